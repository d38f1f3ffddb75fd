"""The decisions of a collection: what is to go, by all that the records know, and its rows going.

Rows alone change here; the files of what went are the collector's business.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.digest import Digest
from storage.model import BuildCache
from storage.records import build_caches
from storage.records import retention as rows
from storage.retention import Fate, Pressure, Retention, Verdict, caches_to_evict, judge


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to go and what is to stay.

    Attributes:
        verdicts: About every artifact that is there.
        caches: The build caches that go, and why each does.
        going: The trees that nothing asks for any more then.
    """

    verdicts: tuple[Verdict, ...]
    caches: tuple[tuple[BuildCache, str], ...]
    going: frozenset[Digest]

    def ids(self, fate: Fate) -> list[str]:
        """The artifacts with one fate."""
        return [verdict.artifact.id for verdict in self.verdicts if verdict.fate is fate]

    @property
    def gives_up(self) -> bool:
        """Whether something is lost for good."""
        return bool(self.caches or self.ids(Fate.DROPPED))

    @property
    def unchanged(self) -> tuple[Verdict, ...]:
        """What is about artifacts of which nothing becomes."""
        return tuple(v for v in self.verdicts if v.fate in (Fate.KEPT, Fate.WAITS))

    @property
    def changes(self) -> bool:
        return bool(self.caches) or len(self.unchanged) < len(self.verdicts)


def decide(db: sqlite3.Connection, retention: Retention, now: int, pressure: Pressure) -> Decided:
    """Decide about everything, at the time `now`. Changes nothing."""
    verdicts = tuple(judge(facts, retention, now, pressure) for facts in rows.facts(db))
    every = build_caches.every(db)
    caches = tuple(caches_to_evict(every, retention, pressure))
    evicted = {cache.id for cache, _ in caches}
    kept = {v.artifact.digest for v in verdicts if v.fate is not Fate.DROPPED}
    kept |= {cache.tree_digest for cache in every if cache.id not in evicted}
    gone = {v.artifact.digest for v in verdicts if v.fate is Fate.DROPPED}
    gone |= {cache.tree_digest for cache, _ in caches}
    return Decided(verdicts, caches, frozenset(map(Digest.parse, gone - kept)))


def apply(db: sqlite3.Connection, decided: Decided, now: int) -> list[str]:
    """Let go what is to go; return the envelopes that are nobody's any more."""
    rows.expire(db, decided.ids(Fate.EXPIRES), now)
    rows.restore(db, decided.ids(Fate.RESTORED))
    for cache, _ in decided.caches:
        build_caches.delete(db, cache.id)
    dropped = decided.ids(Fate.DROPPED)
    return [name for artifact_id in dropped for name in rows.drop(db, artifact_id, now)]
