"""The reach of an actor's key, as the records have it now: how far its work may have effects."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.model import ActorRef, Environment
from storage.records import api_keys


@dataclass(frozen=True, slots=True)
class KeyReach:
    """Every environment, or at most the one that the key is bound to."""

    is_everywhere: bool
    env_id: str | None

    @classmethod
    def of(cls, db: sqlite3.Connection, actor: ActorRef) -> KeyReach:
        """A bound key goes with its environment or its site, so one that is gone was bound."""
        key = api_keys.get(db, actor.id)
        env_id = None if key is None else key.env_id
        return cls(key is not None and env_id is None, env_id)

    def has(self, environment: Environment | None) -> bool:
        """Say so of an environment; of one that would have to be made, with None."""
        return self.is_everywhere or (environment is not None and environment.id == self.env_id)
