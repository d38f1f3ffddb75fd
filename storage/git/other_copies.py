"""What is damaged in one place, read from another: a second pack or file may have the object whole.

As git does, which marks such an entry and looks on. Source: git's packfile.c, `unpack_entry` and
`mark_bad_packed_object`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from storage.git.delta_formats import DELTA_DEPTH_MAX, patched
from storage.git.errors import RepositoryCorruptError
from storage.git.loose_objects import read_loose
from storage.git.object_formats import object_id
from storage.git.pack import Pack

_log = logging.getLogger(__name__)
_Object = tuple[int, bytes]  # type and content


class Copies(Protocol):
    """What may have an object more than once."""

    def packs(self) -> list[Pack]:
        """List all packs."""

    def loose_paths(self, oid: bytes) -> list[str]:
        """List the files that an object has of its own."""

    def at(self, pack: Pack, offset: int, bytes_max: int | None = None) -> _Object:
        """Read an entry; where it is damaged, by way of this."""


class OtherCopies:
    """Finds the other copies of what cannot be read. Safe from any thread."""

    def __init__(self, store: Copies) -> None:
        self._store = store
        self._local = threading.local()

    def of_entry(
        self, pack: Pack, offset: int, bytes_max: int | None, error: RepositoryCorruptError
    ) -> _Object:
        """Read a packed object that could not be read there: it, or a base of it, is damaged.

        Raises:
            RepositoryCorruptError: `error`, when there is no other copy that is whole.
            PackOutgrownError: see `ObjectStore.get`.
        """
        with self._tried(error) as tried:
            deltas: list[bytes] = []
            at = offset
            for _ in range(DELTA_DEPTH_MAX):
                oid = _oid_at(pack, at, error)
                found = self._other(oid, os.fspath(pack.path), tried, bytes_max)
                if found is not None:
                    self._note(pack, oid, error)
                    break
                base, delta = _delta_at(pack, at, error)
                deltas.append(delta)
                inside = base if isinstance(base, int) else pack.find(base)
                if inside is None:
                    assert isinstance(base, bytes)
                    found = self._other(base, os.fspath(pack.path), tried, bytes_max)
                    break
                at = inside
            if found is None:
                raise error
            for delta in reversed(deltas):
                found = found[0], patched(found[1], delta)
            return found

    def of_loose(
        self, oid: bytes, path: str, bytes_max: int | None, error: RepositoryCorruptError
    ) -> _Object:
        """Read an object whose own file is damaged. Raises as `of_entry` does."""
        with self._tried(error) as tried:
            found = self._other(oid, path, tried, bytes_max)
            if found is None:
                raise error
            return found

    def require(
        self, pack: Pack, oid: bytes, bytes_max: int | None, error: RepositoryCorruptError
    ) -> None:
        """Look for another copy of an entry, and take that from now on. Raises as `of_entry`."""
        with self._tried(error) as tried:
            if self._other(oid, os.fspath(pack.path), tried, bytes_max) is None:
                raise error
            self._note(pack, oid, error)

    @contextlib.contextmanager
    def _tried(self, error: RepositoryCorruptError) -> Iterator[set[tuple[str, bytes]]]:
        """Give the places that were tried for the sake of the object that was asked for first.

        Each is tried once, however copies and their bases hang together.
        """
        tried: set[tuple[str, bytes]] | None = getattr(self._local, "tried", None)
        if tried is not None:
            yield tried
            return
        self._local.tried = tried = set()
        try:
            yield tried
        except RecursionError:
            raise error from None
        finally:
            self._local.tried = None

    def _other(
        self, oid: bytes, place: str, tried: set[tuple[str, bytes]], bytes_max: int | None
    ) -> _Object | None:
        """Read an object, by its id, from anywhere but `place` and where it was tried before."""
        tried.add((place, oid))
        for name, read in self._places(oid, bytes_max):
            if (name, oid) in tried:
                continue
            tried.add((name, oid))
            with contextlib.suppress(RepositoryCorruptError, FileNotFoundError):
                found = read()
                if object_id(*found) == oid:
                    return found
        return None

    def _places(
        self, oid: bytes, bytes_max: int | None
    ) -> Iterator[tuple[str, Callable[[], _Object]]]:
        store = self._store
        for pack in store.packs():
            offset = pack.find(oid)
            if offset is not None:
                yield os.fspath(pack.path), lambda p=pack, at=offset: store.at(p, at, bytes_max)  # type: ignore[misc]
        for path in store.loose_paths(oid):
            yield path, lambda path=path: read_loose(path, bytes_max)  # type: ignore[misc]

    def _note(self, pack: Pack, oid: bytes, error: RepositoryCorruptError) -> None:
        """Take the other copy from now on; say so once for each pack."""
        if not pack.damaged:
            _log.warning(
                "%s is damaged at object %s (%s); another copy of it is used: 'gitd check' or "
                "'git fsck' tells more",
                pack.path,
                oid.hex(),
                error,
            )
        pack.damaged.add(oid)


def _oid_at(pack: Pack, offset: int, error: RepositoryCorruptError) -> bytes:
    try:
        return pack.oid_of(offset)
    except KeyError:
        raise error from None


def _delta_at(pack: Pack, offset: int, error: RepositoryCorruptError) -> tuple[int | bytes, bytes]:
    """Read an entry as a delta: its base, and its bytes."""
    try:
        _, size, base, data_at = pack.header(offset)
        if base is None:
            raise error
        return base, pack.inflate(data_at, size)
    except RepositoryCorruptError:
        raise error from None
