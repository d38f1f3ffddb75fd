"""Names of refs beside each other: one can be no folder of another one's.

Source: git's refs.c, refs_verify_refname_available().
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping


class TakenNames:
    """The names that are taken: those of `existing` (ascending), less and more as they change."""

    def __init__(self, existing: Mapping[bytes, bytes] | None = None) -> None:
        self._existing = existing or {}
        self._ascending = list(self._existing)
        self._freed: set[bytes] = set()
        self._added: set[bytes] = set()
        self._folders: dict[bytes, bytes] = {}  # of what was added -> one name below it

    def add(self, name: bytes) -> None:
        """Take a name."""
        self._added.add(name)
        for folder in _folders(name):
            self._folders.setdefault(folder, name)

    def free(self, name: bytes) -> None:
        """Give up a name that existed."""
        self._freed.add(name)

    def conflict(self, name: bytes) -> bytes | None:
        """Return a name that `name` cannot stand beside, or None."""
        for folder in _folders(name):
            if folder in self._added or (folder in self._existing and folder not in self._freed):
                return folder
        if name in self._folders:
            return self._folders[name]
        prefix = name + b"/"
        at = bisect_left(self._ascending, prefix)
        while at < len(self._ascending) and self._ascending[at].startswith(prefix):
            if self._ascending[at] not in self._freed:
                return self._ascending[at]
            at += 1
        return None


def _folders(name: bytes) -> Iterator[bytes]:
    """The folders that a ref's file lies in, below `refs`: `refs/stash` can be a ref, too."""
    parts = name.split(b"/")
    for count in range(2, len(parts)):
        yield b"/".join(parts[:count])
