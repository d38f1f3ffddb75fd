"""The packs of a directory, as they were at a moment, and as they are when somebody looks again."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from storage.git.errors import RepositoryCorruptError
from storage.git.file_times import is_settled
from storage.git.pack import Pack

LISTING_TRIES_MAX = 20


@dataclass(frozen=True, slots=True)
class PackListing:
    """What was found: replaced as a whole, so that threads never see halves of two.

    Two listings of one `serial` have the same packs.
    """

    packs: dict[str, Pack] = field(default_factory=dict)
    stamp: tuple[int, int] | None = None
    seen_ns: int = 0
    serial: int = field(default_factory=itertools.count().__next__)

    def is_current(self, directory: str) -> bool:
        """Say whether looking again would find nothing new. One call of the system."""
        stamp = _stamp(directory)
        return stamp is not None and self._is_settled(stamp)

    def _is_settled(self, stamp: tuple[int, int]) -> bool:
        """Say whether this is of a directory with that stamp, and was not made too early."""
        return stamp == self.stamp and is_settled(stamp[0], self.seen_ns)

    def refreshed(self, directory: str) -> PackListing:
        """List the packs again if their directory changed."""
        names: frozenset[str] | None = None
        for _ in range(LISTING_TRIES_MAX):
            now_ns = time.time_ns()
            stamp = _stamp(directory)
            if stamp is None:
                return PackListing() if self.stamp is not None else self
            if self._is_settled(stamp):
                return self
            packs, is_whole = _list_packs(directory, self.packs)
            # A directory that changes while it is read may show neither the old packs nor the
            # new: one that was touched just now is read until it looks the same twice.
            is_same, names = names == packs.keys(), frozenset(packs)
            if is_whole and (is_same or is_settled(stamp[0], now_ns)):
                break
        if packs.keys() == self.packs.keys():
            return replace(self, stamp=stamp, seen_ns=now_ns)
        return PackListing(packs, stamp, now_ns)

    def with_pack(self, index_path: Path) -> PackListing:
        """Add a pack that was just put there, without listing all of them."""
        return PackListing({index_path.name: Pack(index_path), **self.packs}, self.stamp)


def _stamp(directory: str) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)  # noqa: PTH116 -- asked at every request
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def _list_packs(directory: str, known: dict[str, Pack]) -> tuple[dict[str, Pack], bool]:
    """Open the packs of a directory; false when one was gone, or half replaced, meanwhile."""
    try:
        names = set(os.listdir(directory))  # noqa: PTH208 -- names alone are wanted
    except FileNotFoundError:
        return {}, False
    packs: dict[str, Pack] = {}
    is_whole = True
    for name in names:
        if name.endswith(".idx") and name[:-4] + ".pack" in names:
            pack = known.get(name)
            try:
                packs[name] = Pack(Path(directory, name)) if pack is None else pack
            except (FileNotFoundError, RepositoryCorruptError):
                is_whole = False
    return packs, is_whole
