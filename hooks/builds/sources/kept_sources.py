"""Kept sources: large commits that a slot built last, each unpacked once more, for the next build.

The next build of a site is given such a tree, and of its own commit only what is another than
there. No build has seen such a tree before, and no other will: it is unpacked from the archive that
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import structlog

from hooks.builds.errors import BuilderError, BuildFailedError
from hooks.builds.sandbox.disk import NAME_BYTES, shortage_beside_build
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sources.archive import SourceArchive
from hooks.builds.sources.originals import Originals
from hooks.builds.sources.tree import StoppedError, remove_tree, unpack
from hooks.builds.wire import SourceHead
from storage.errors import StorageError

log = structlog.get_logger(__name__)
T = TypeVar("T")

FOLDER = "sources"  # in a slot's scratch folder, as long as anything is kept
FILES_COUNT_MIN = 500  # fewer are unpacked before anybody could notice
SIZE_BYTES_MAX = 256 << 20  # of one commit
KEPT_BYTES_MAX = 1 << 30  # of a slot: archives, and what is unpacked of them
KEPT_COUNT_MAX = 2  # of one site: two branches may have little in common
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
    taken_names: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The trees that lie ready for a build, those used last first. `is_all`: no more are kept."""

    trees: tuple[KeptTree, ...] = ()
    is_all: bool = True


@dataclass(slots=True, eq=False)
class _Kept:
    """An archive, and what is unpacked of it, as long as no build has taken that.

    `tree_bytes`, `tree_names`: what that takes of the disk, as counted when the build unpacked it.
    """

    key: SourceKey
    archive: SourceArchive
    tree: str
    limits: Limits
    tree_bytes: int
    tree_names: int
    used_at: float
    unpacked: KeptTree | None = None

    @property
    def size_bytes(self) -> int:
        """What both take of the disk. A tree that is not unpacked yet counts too."""
        return self.archive.size_bytes + self.tree_bytes


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
        self._kept: list[_Kept] = []  # those used last at the end
        self._tending: asyncio.Task[None] | None = None
        self._unpacks: _Kept | None = None
        self._unpacking_ended = asyncio.Event()  # that of `_unpacks`
        self._stopped = threading.Event()
        self._removing: set[asyncio.Task[None]] = set()
        self._aside: list[_Kept] = []  # nobody's any more, and there until the slot rests

    # -- for a build ----------------------------------------------------------------------------

    async def offer(self, key: SourceKey, limits: Limits) -> Offer:
        """Say what lies ready for a build, which `take`s one of it before the slot rests again.

        Of what the build needs of the disk nothing is kept from it.
        """
        if self._unpacks is not None and self._unpacks.key == key:
            await self._unpacking_ended.wait()
        await self.give_way(limits)
        found = [each for each in reversed(self._kept) if each.key == key]
        for each in found:
            if each.unpacked is not None and not os.path.isdir(each.unpacked.path):  # noqa: PTH112 - no errors
                each.unpacked = None
        trees = tuple(each.unpacked for each in found if each.unpacked is not None)
        return Offer(trees, is_all=len(trees) == len(found))

    def take(self, tree: KeptTree) -> None:
        """Note that a tree is a build's, which has moved it away."""
        for kept in self._kept:
            if kept.unpacked is tree:
                kept.unpacked = None
                kept.used_at = time.monotonic()
                self._kept.remove(kept)
                self._kept.append(kept)
                break
        if os.path.lexists(tree.path):  # it could not be moved
            self._in_background(remove_tree, tree.path)

    def wants(self, head: SourceHead, limits: Limits) -> bool:
        """Say whether a source that comes whole is to be kept. From any thread."""
        size_bytes = 2 * (head.size_bytes + head.files * NAME_BYTES)
        return (
            head.tree is not None
            and head.files >= FILES_COUNT_MIN
            and head.size_bytes <= SIZE_BYTES_MAX
            and size_bytes <= self._kept_bytes_max
            and self._has_room(limits, size_bytes, 1 + head.files)
        )

    def keep(
        self,
        key: SourceKey,
        archive: SourceArchive,
        tree: str,
        limits: Limits,
        *,
        tree_bytes: int,
        tree_names: int,
    ) -> None:
        """Keep a source, whose archive is moved away; see `_Kept`. Beyond `KEPT_COUNT_MAX` of its
        key the one goes that was used longest ago.
        """
        of_key = [each for each in self._kept if each.key == key]
        same = [each for each in of_key if each.tree == tree]
        others = [each for each in of_key if each.tree != tree]
        for each in (*same, *others[: max(0, len(others) - KEPT_COUNT_MAX + 1)]):
            self._drop(each)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            archive = archive.moved(self._folder / f"{next(self._names)}.tar")
        except OSError as error:  # the build has its source all the same
            _warn(key, error)
            return
        now = time.monotonic()
        self._kept.append(_Kept(key, archive, tree, limits, tree_bytes, tree_names, now))

    def forget(self, key: SourceKey) -> None:
        """Let go of what is kept of a key; what was unpacked goes when the slot rests."""
        self._remove_aside()  # those of a build before: it has had no rest since
        for each in [each for each in self._kept if each.key == key]:
            if each.unpacked is None:
                self._drop(each)
            else:
                self._kept.remove(each)
                self._aside.append(each)

    async def give_way(self, limits: Limits) -> None:
        """Leave a build the processor, and all of the disk that it may need."""
        self.stop()
        if not await asyncio.to_thread(self._has_room, limits):
            self._remove_aside()
            for each in list(self._kept):
                self._drop(each)

    # -- while nothing is to be done ------------------------------------------------------------

    def rest(self) -> None:
        """Call it when the slot has nothing to do: a moment later trees are unpacked."""
        if not (self._kept or self._aside) or not (self._tending is None or self._stopped.is_set()):
            return
        self._stopped = threading.Event()
        self._tending = asyncio.create_task(self._tend(self._tending, self._stopped))

    def hold(self) -> None:
        """Begin nothing before the next `rest`; what has begun goes on."""
        if self._unpacks is None:
            self.stop()

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
            if self._removing:  # they make room
                await asyncio.wait(self._removing)
            await self._unpack_all(stopped)
        finally:
            stopped.set()  # there is nothing to stop any more

    def _let_go(self) -> None:
        """Let go of what was not used for long, and of what is too much."""
        self._remove_aside()
        now, size_bytes = time.monotonic(), 0
        for kept in reversed(list(self._kept)):
            is_too_much = size_bytes + kept.size_bytes > self._kept_bytes_max
            if is_too_much or now - kept.used_at > self._kept_s_max:
                self._drop(kept)
            else:
                size_bytes += kept.size_bytes

    async def _unpack_all(self, stopped: threading.Event) -> None:
        """Unpack what builds took, the newest first, until one needs the processor."""
        for kept in reversed(list(self._kept)):
            has_room = await self._made_room(kept, stopped)
            if stopped.is_set():
                return
            if not has_room or kept.unpacked is not None:
                continue
            self._unpacks, self._unpacking_ended = kept, asyncio.Event()
            try:
                kept.unpacked = await asyncio.to_thread(self._unpack, kept, stopped)
            except StoppedError:
                return
            except (OSError, StorageError, BuildFailedError, BuilderError) as error:
                _warn(kept.key, error)
                self._drop(kept)
                continue
            finally:
                self._unpacks = None
                self._unpacking_ended.set()
            if kept not in self._kept:  # something newer took its place
                self._remove(kept)

    async def _made_room(self, kept: _Kept, stopped: threading.Event) -> bool:
        """Let go of what was used longest ago, as long as the disk has no room for a build and
        the tree that is to be unpacked; return whether this one is kept still.
        """
        while kept in self._kept and not stopped.is_set():
            is_there = kept.unpacked is not None
            more = (0, 0) if is_there else (kept.tree_bytes, kept.tree_names)
            if await asyncio.to_thread(self._has_room, kept.limits, *more):
                break
            self._drop(self._kept[0])
            await asyncio.wait(self._removing)
        return kept in self._kept

    def _unpack(self, kept: _Kept, stopped: threading.Event) -> KeptTree:
        """Unpack an archive. Blocking."""
        path = self._folder / str(next(self._names))
        originals = Originals()
        allowance = DiskAllowance(self._folder, kept.limits)
        try:
            with kept.archive.reading() as stream:
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
        return KeptTree(path, kept.tree, originals, allowance.taken_bytes, allowance.taken_names)

    # -- letting go -----------------------------------------------------------------------------

    def _drop(self, kept: _Kept) -> None:
        if kept in self._kept:
            self._kept.remove(kept)
            self._remove(kept)

    def _remove_aside(self) -> None:
        for each in self._aside:
            self._remove(each)
        self._aside.clear()

    def _remove(self, kept: _Kept) -> None:
        """Remove what is kept of a source, in the background."""
        self._in_background(_remove, kept)

    def _in_background(self, remove: Callable[[T], None], what: T) -> None:
        removing = asyncio.create_task(asyncio.to_thread(remove, what))
        self._removing.add(removing)
        removing.add_done_callback(self._removed)

    def _removed(self, removing: asyncio.Task[None]) -> None:
        self._removing.discard(removing)
        if error := removing.exception():  # whatever it is: the next start of the slot removes it
            log.warning("kept_source_not_removed", reason=str(error))
        if not self._kept:
            with contextlib.suppress(OSError):  # something is being removed still
                self._folder.rmdir()

    def _has_room(self, limits: Limits, more_bytes: int = 0, more_names: int = 0) -> bool:
        """Say whether the disk has as much as a build may take, and what it must leave free, and
        so many bytes and files more.
        """
        short = shortage_beside_build(
            self._folder.parent, limits, new_bytes=more_bytes, new_names=more_names
        )
        return short is None


def _warn(key: SourceKey, error: Exception) -> None:
    log.warning("source_not_kept", site=key.site, reason=str(error))


def _remove(kept: _Kept) -> None:
    kept.archive.path.unlink(missing_ok=True)
    if kept.unpacked is not None:
        remove_tree(kept.unpacked.path)
