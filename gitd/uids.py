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

    @classmethod
    def choose(cls, config: Config) -> Uids:
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
            return cls(host, slots, group)
        return cls(config.host.uid, slots, config.host.uid) if own == 0 else cls(own, slots, None)


def _user(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"there is no user {name!r} on this machine") from None
    return found.pw_uid, found.pw_gid
