"""Kept sources: large commits that a slot built last, each unpacked once more, for the next build.

The next build of a site is given that tree, and of its own commit only what is another than there.
No build has seen such a tree before, and no other will: it is unpacked from the archive that
control sent, which builds do not see either, while the slot has nothing else to do. So nothing
that a build did is in it, and nobody has to believe that a build left something alone.

What is kept ends with the slot, or an hour after its last use, and gives way to what builds need
of the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import structlog

from hooks.builds.disk_allowance import DiskAllowance
from hooks.builds.errors import BuildFailedError
from hooks.builds.limits import Limits
from hooks.builds.originals import Originals
from hooks.builds.tree import StoppedError, remove_tree, unpack
from hooks.builds.wire import SourceHead
from storage.errors import StorageError

log = structlog.get_logger(__name__)

FOLDER = "sources"  # in a slot's scratch folder, as long as anything is kept
FILES_COUNT_MIN = 500  # fewer are unpacked before anybody could notice
SIZE_BYTES_MAX = 256 << 20  # of one commit
KEPT_BYTES_MAX = 1 << 30  # of a slot: archives, and what is unpacked of them
KEPT_S_MAX = 3600.0
IDLE_S = 0.25  # the slot has had nothing to do for so long, when it begins to unpack


class SourceKey(NamedTuple):
    """What two builds have in common that may use one source."""

    site: str
    folder: str
    ignores_submodules: bool
    ignores_lfs: bool


@dataclass(frozen=True, slots=True)
class KeptTree:
    """An unpacked commit for one build: its folder, the id of its git tree, its files as they are
    when nobody touched them, and what it takes of the disk.
    """

    path: Path
    tree: str
    originals: Originals
    taken_bytes: int


@dataclass(slots=True)
class _Kept:
    """An archive, and what is unpacked of it, as long as no build has taken that."""

    archive: Path
    head: SourceHead
    limits: Limits
    used_at: float
    unpacked: KeptTree | None = None

    @property
    def size_bytes(self) -> int:
        """An estimate of what both take of the disk: each file takes 4 KiB more than its size.
        A tree that is not unpacked yet counts too.
        """
        return 2 * (self.head.size_bytes + self.head.files * 4096)


class KeptSources:
    """Those of one slot. Belongs to one event loop; `aclose` it."""

    def __init__(
        self,
        scratch: Path,
        *,
        kept_bytes_max: int = KEPT_BYTES_MAX,
        kept_s_max: float = KEPT_S_MAX,
        idle_s: float = IDLE_S,
    ) -> None:
        self._folder = scratch / FOLDER
        self._kept_bytes_max = kept_bytes_max
        self._kept_s_max = kept_s_max
        self._idle_s = idle_s
        self._names = itertools.count()
        self._kept: dict[SourceKey, _Kept] = {}  # those used last at the end
        self._tending: asyncio.Task[None] | None = None
        self._unpacks: SourceKey | None = None
        self._unpacking_ended = asyncio.Event()  # that of `_unpacks`
        self._stopped = threading.Event()
        self._removing: set[asyncio.Task[None]] = set()

    def wants(self, head: SourceHead, limits: Limits) -> bool:
        """Say whether a source that comes whole is to be kept."""
        return (
            head.tree is not None
            and head.files >= FILES_COUNT_MIN
            and head.size_bytes <= SIZE_BYTES_MAX
            and self._has_room(limits)
        )

    def keep(self, key: SourceKey, archive: Path, head: SourceHead, limits: Limits) -> None:
        """Keep a source, whose archive is moved away; what was kept of it before goes."""
        self._drop(key)
        path = self._folder / f"{next(self._names)}.tar"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            archive.rename(path)
        except OSError as error:  # the build has its source all the same
            _warn(key, error)
            return
        self._kept[key] = _Kept(path, head, limits, time.monotonic())

    def forget(self, key: SourceKey) -> None:
        """Let go of a source: the site's commits are others by now, and none to be kept."""
        self._drop(key)

    async def take(self, key: SourceKey, into: Path, limits: Limits) -> KeptTree | None:
        """Move the tree that is kept for a build to `into`, if there is one. It is the build's.

        Of what the build needs of the disk nothing is kept from it.
        """
        if self._unpacks == key:
            await self._unpacking_ended.wait()
        await self.give_way(limits)
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        self._kept[key] = kept  # the last one
        kept.used_at = time.monotonic()
        unpacked, kept.unpacked = kept.unpacked, None
        if unpacked is None:
            return None
        try:
            unpacked.path.rename(into)
        except OSError as error:  # the commit can come whole
            _warn(key, error)
            kept.unpacked = unpacked
            self._drop(key)
            return None
        return KeptTree(into, unpacked.tree, unpacked.originals, unpacked.taken_bytes)

    async def give_way(self, limits: Limits) -> None:
        """Leave a build the processor, and all of the disk that it may need."""
        self.stop()
        if not await asyncio.to_thread(self._has_room, limits):
            for each in list(self._kept):
                self._drop(each)

    def rest(self) -> None:
        """Call it when the slot has nothing to do: a moment later trees are unpacked."""
        if not self._kept or not (self._tending is None or self._stopped.is_set()):
            return
        self._stopped = threading.Event()
        self._tending = asyncio.create_task(self._tend(self._tending, self._stopped))

    def stop(self) -> None:
        """Unpack no further: a build needs the processor more."""
        self._stopped.set()

    async def aclose(self) -> None:
        """Stop what goes on. What is kept is left to the next start of the slot."""
        self.stop()
        if tasks := [*self._removing, *([self._tending] if self._tending is not None else [])]:
            await asyncio.wait(tasks)

    async def _tend(self, before: asyncio.Task[None] | None, stopped: threading.Event) -> None:
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(self._idle_s)
        try:
            self._let_go()
            await self._unpack_all(stopped)
        finally:
            stopped.set()  # there is nothing to stop any more

    async def _unpack_all(self, stopped: threading.Event) -> None:
        """Unpack what builds took, the newest first, until one needs the processor.

        What leaves a build too little of the disk goes, unpacked or not.
        """
        for key, kept in reversed(list(self._kept.items())):
            has_room = await asyncio.to_thread(self._has_room, kept.limits)
            if stopped.is_set():
                return
            if not has_room:
                self._drop(key)
                continue
            if kept.unpacked is not None:
                continue
            self._unpacks, self._unpacking_ended = key, asyncio.Event()
            try:
                kept.unpacked = await asyncio.to_thread(self._unpack, kept, stopped)
            except StoppedError:
                return
            except (OSError, StorageError, BuildFailedError) as error:
                _warn(key, error)
                if self._kept.get(key) is kept:
                    self._drop(key)
                continue
            finally:
                self._unpacks = None
                self._unpacking_ended.set()
            if self._kept.get(key) is not kept:  # something newer took its place
                self._remove(kept)

    def _unpack(self, kept: _Kept, stopped: threading.Event) -> KeptTree:
        """Unpack an archive. Blocking."""
        path = self._folder / str(next(self._names))
        originals = Originals()
        allowance = DiskAllowance(self._folder, kept.limits)
        try:
            with kept.archive.open("rb", buffering=1 << 20) as stream:
                unpack(
                    stream,
                    path,
                    allowance=allowance,
                    is_stopped=stopped.is_set,
                    ignores_lfs=True,  # it was looked for when this was first unpacked
                    on_file=originals.note,
                )
        except BaseException:
            remove_tree(path)
            raise
        assert kept.head.tree is not None, "others are not kept"
        return KeptTree(path, kept.head.tree, originals, allowance.taken_bytes)

    def _let_go(self) -> None:
        """Let go of what was not used for long, and of what is too much."""
        now, size_bytes = time.monotonic(), 0
        for key, kept in reversed(list(self._kept.items())):
            size_bytes += kept.size_bytes
            if now - kept.used_at > self._kept_s_max or size_bytes > self._kept_bytes_max:
                self._drop(key)

    def _drop(self, key: SourceKey) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._remove(kept)

    def _remove(self, kept: _Kept) -> None:
        """Remove what is kept of a source, in the background."""
        removing = asyncio.create_task(asyncio.to_thread(_remove, kept))
        self._removing.add(removing)
        removing.add_done_callback(self._removed)

    def _removed(self, removing: asyncio.Task[None]) -> None:
        self._removing.discard(removing)
        if not self._kept:
            with contextlib.suppress(OSError):  # something is being removed still
                self._folder.rmdir()

    def _has_room(self, limits: Limits) -> bool:
        """Say whether the disk has as much as a build may take, and what it must leave free."""
        found = os.statvfs(self._folder.parent)
        needed = (limits.disk_bytes or 0) + (limits.disk_free_bytes or 0)
        return found.f_bavail * found.f_frsize >= needed


def _warn(key: SourceKey, error: Exception) -> None:
    log.warning("source_not_kept", site=key.site, reason=str(error))


def _remove(kept: _Kept) -> None:
    kept.archive.unlink(missing_ok=True)
    if kept.unpacked is not None:
        remove_tree(kept.unpacked.path)
