"""The links of commits and tags: read without the words behind them, and remembered for walks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from storage.git.errors import PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import COMMIT, TAG, Commit, parse_commit, parse_tag
from storage.git.pack_entries import DELTA_BYTES_MAX

LINKS_BYTES_MAX = 16 << 20  # of the head of a commit or tag, which says what it links to
LINKS_REMEMBERED_MAX = 200_000  # of commits; about 40 MB when each has one parent
COMMIT_LINKS_REMEMBERED_MAX = 1_000  # a commit with more of them is read again


class Contents(Protocol):
    """The objects that are read."""

    def get_typed(self, oid: bytes, kind: int, bytes_max: int | None = None) -> bytes:
        """Return the content of an object of a known type."""

    def kind_and_size(self, oid: bytes) -> tuple[int, int]:
        """Return type and size of an object."""

    def stream(self, oid: bytes, bytes_max: int | None = None) -> Iterator[bytes]:
        """Yield the content of an object in pieces."""


class ObjectLinks:
    """Those of the objects of one store."""

    def __init__(self, objects: Contents) -> None:
        self._objects = objects
        self._commits = _Commits()

    def forget(self) -> None:
        """Read every commit again: objects went."""
        self._commits = _Commits()

    def commit(self, oid: bytes, bytes_max: int | None = None) -> Commit:
        """Return the links of a commit.

        Raises:
            RepositoryCorruptError: it is missing, damaged or no commit.
            PackOutgrownError: see `ObjectStore.get`.
        """
        found = self._commits.get(oid)
        if found is None:
            found = parse_commit(self._of(oid, COMMIT, bytes_max))
            self._commits.note(oid, found)
        return found

    def tag(self, oid: bytes) -> tuple[bytes, int]:
        """Return what an annotated tag names, and as what type; raises as `commit` does."""
        return parse_tag(self._of(oid, TAG))

    def _of(self, oid: bytes, kind: int, bytes_max: int | None = None) -> bytes:
        """Return what a commit or tag begins with, at least up to the end of its links.

        Its words behind them may be as many as somebody likes, unless it is stored as a delta of
        more than `DELTA_BYTES_MAX`; links of more than `LINKS_BYTES_MAX` are none.
        """
        try:
            return self._objects.get_typed(oid, kind, bytes_max or LINKS_BYTES_MAX)
        except PackOutgrownError:
            if bytes_max is not None:
                raise
        head = bytearray()
        with contextlib.suppress(PackOutgrownError):
            for piece in self._objects.stream(oid, DELTA_BYTES_MAX):
                head += piece
                if len(head) >= LINKS_BYTES_MAX:
                    break
        end = head.find(b"\n\n") + 1
        if not end or self._objects.kind_and_size(oid)[0] != kind:
            raise RepositoryCorruptError(f"object {oid.hex()} has no links that can be read")
        return bytes(head[:end])

    def peel(self, oid: bytes) -> tuple[int, bytes]:
        """Follow annotated tags to what they name in the end: (type, oid).

        Raises:
            RepositoryCorruptError: an object on the way is missing or damaged.
        """
        kind = self._objects.kind_and_size(oid)[0]
        while kind == TAG:
            oid, kind = self.tag(oid)
            if kind != TAG:
                kind = self._objects.kind_and_size(oid)[0]
        return kind, oid


class _Commits(dict[bytes, Commit]):
    """The links of commits that were read, until they are too many."""

    links_count = 0

    def note(self, oid: bytes, commit: Commit) -> None:
        """Remember a commit, unless it alone would fill the place of many."""
        count = 1 + len(commit.parents)
        if count > COMMIT_LINKS_REMEMBERED_MAX:
            return
        if self.links_count + count > LINKS_REMEMBERED_MAX:
            self.clear()
            self.links_count = 0
        self[oid] = commit
        self.links_count += count
