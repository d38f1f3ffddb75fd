"""Whose processes the slots and the site host are."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from gitd.config import Config
from gitd.errors import StartError


@dataclass(frozen=True, slots=True)
class Uids:
    """Whose processes the slots and the site host are.

    Named users where the settings name them; else numbers of their own when this process is root,
    and its own number when it is not. `group` may read the store; None keeps it to this process.
    """

    host: int
    slots: dict[str, int]
    group: int | None

    @property
    def are_one(self) -> bool:
        """Whether builds, sites and this process have a user in common."""
        everybody = [os.geteuid(), self.host, *self.slots.values()]
        return len(set(everybody)) < len(everybody)

    @classmethod
    def choose(cls, config: Config) -> Uids:
        """Read who they are.

        Raises:
            StartError: A user is named that is not there, that is another's, or that is root's or
                this process's own.
        """
        own = os.geteuid()
        users = config.builders.users
        names = [f"slot-{number}" for number in range(len(users) or config.builders.slots)]
        first = config.builders.first_uid
        if users:
            slots = {name: _user(user)[0] for name, user in zip(names, users, strict=True)}
        elif own == 0:
            slots = {name: first + number for number, name in enumerate(names)}
        else:
            slots = dict.fromkeys(names, own)
        if config.host.user:
            host, group = _user(config.host.user)
            chosen = cls(host, slots, group)
        elif own == 0:
            chosen = cls(config.host.uid, slots, config.host.uid)
        else:
            chosen = cls(own, slots, None)
        chosen._require_apart(config)
        return chosen

    def _require_apart(self, config: Config) -> None:
        """Each is kept from all others, and from this process, but where none can be had."""
        own = os.geteuid()
        slots = config.builders.users or tuple(self.slots)
        parties = [
            *(
                (f"builders.users: {slot}", uid)
                for slot, uid in zip(slots, self.slots.values(), strict=True)
            ),
            (f"host.user: {config.host.user}", self.host),
        ]
        is_named = [bool(config.builders.users)] * len(self.slots) + [bool(config.host.user)]
        taken = {own: "this server itself", 0: "root"}
        for (who, uid), named in zip(parties, is_named, strict=True):
            if uid == own and not named:
                continue
            if uid in taken:
                raise StartError(f"{who} has the user {uid} of {taken[uid]}: each needs its own")
            taken[uid] = who


def _user(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"there is no user {name!r} on this machine") from None
    return found.pw_uid, found.pw_gid
