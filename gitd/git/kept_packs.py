"""Packs made for fetches: written once for all who want the same, and kept for the next.

Their files lose their names as soon as they are open: the system frees them with the last reader,
whatever becomes of this process. What is still being written lies in a folder of this process.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitd.git.work_folder import WorkFolder
from storage.git.pack_builder import BuiltPack

COUNT_MAX = 32  # packs kept
SOUND_COUNT_MAX = 1000  # stored packs of which it is remembered that they were sound
FREE_BYTES_MIN = 1 << 30


class SoundPacks:
    """The files of stored packs that were found sound, as they were then."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def add(self, descriptor: int) -> None:
        self._seen[_identity(descriptor)] = None
        while len(self._seen) > SOUND_COUNT_MAX:
            self._seen.popitem(last=False)

    def __contains__(self, descriptor: int) -> bool:
        return _identity(descriptor) in self._seen


def _identity(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class ReadyPack:
    """A whole pack and, if it is not in memory, its open file. The last of its users closes it.

    Attributes:
        descriptor: to read from with `os.pread`; None for a pack in memory.
        is_sound: what it ends with was found to be the sum of its bytes, or has just been made so.
    """

    def __init__(
        self, built: BuiltPack, on_closed: Callable[[ReadyPack], None], sound: SoundPacks
    ) -> None:
        self.built = built
        self.descriptor: int | None = None
        self._sound = sound
        if built.path is not None:
            self.descriptor = os.open(built.path, os.O_RDONLY | os.O_CLOEXEC)
            if built.is_temporary:
                Path(built.path).unlink()
        self._on_closed = on_closed
        self._user_count = 1

    @property
    def room_bytes(self) -> int:
        """What it takes of the disk, beside the repository."""
        return self.built.size_bytes if self.built.is_temporary else 0

    @property
    def is_sound(self) -> bool:
        return self.built.is_temporary or self.descriptor is None or self.descriptor in self._sound

    def note_sound(self) -> None:
        """Remember that its file is sound: the next reader need not look again."""
        if self.descriptor is not None:
            self._sound.add(self.descriptor)

    def share(self) -> ReadyPack:
        """Have one more user, who closes it too."""
        self._user_count += 1
        return self

    def close(self) -> None:
        """Have one user less."""
        self._user_count -= 1
        if not self._user_count:
            if self.descriptor is not None:
                # Its number is another file's at once: whoever comes late must not read that.
                os.close(self.descriptor)
                self.descriptor = None
            self._on_closed(self)


@dataclass(slots=True)
class _Making:
    """A pack that is being made, and how many wait for it.

    `is_finished`: it was kept or failed, so that it is open for none but those who wait.
    """

    task: asyncio.Task[ReadyPack]
    waiting_count: int = 0
    is_finished: bool = False

    def result(self) -> ReadyPack | None:
        """Return the pack, once it is made; None when it failed."""
        is_made = self.task.done() and not self.task.cancelled() and not self.task.exception()
        return self.task.result() if is_made else None


class KeptPacks:
    """Packs that answer whole clones.

    What is wanted never changes: an id stands for one history, so that a kept pack is right for as
    long as it is there.

    Args:
        parent: where the folder of this process is made, on a disk with room for packs.
        bytes_max: packs are kept while all that were made take no more, with those that nobody
            keeps and slow readers hold.
        free_bytes_min: with less than this free on the disk, none is kept.
    """

    def __init__(
        self, parent: Path, bytes_max: int, *, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        self._folder = WorkFolder(parent)
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._kept: OrderedDict[bytes, ReadyPack | BuiltPack] = OrderedDict()
        self._making: dict[bytes, _Making] = {}
        self._sound = SoundPacks()
        self._count = 0
        self.used_bytes = 0

    def new_path(self) -> str:
        """Return a path for a pack to be written to. Raises OSError when there is no place."""
        self._count += 1
        return f"{self._folder.path()}/{self._count}.pack"

    def opened(self, built: BuiltPack) -> ReadyPack:
        """Take over a finished pack. Raises FileNotFoundError when its file is gone."""
        ready = ReadyPack(built, self._note_closed, self._sound)
        self.used_bytes += ready.room_bytes
        return ready

    def _note_closed(self, ready: ReadyPack) -> None:
        self.used_bytes -= ready.room_bytes

    async def shared(
        self, key: bytes, make: Callable[[], Coroutine[Any, Any, ReadyPack]]
    ) -> ReadyPack:
        """Return the pack of a key: a kept one, or what `make` makes. The caller closes it.

        `make` runs once, however many ask meanwhile, and goes on when they leave.
        """
        kept = self._find(key)
        if kept is not None:
            return kept
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = _Making(asyncio.create_task(make()))
            making.task.add_done_callback(lambda _: self._finish(key))
        making.waiting_count += 1
        try:
            return (await asyncio.shield(making.task)).share()
        finally:
            making.waiting_count -= 1
            self._let_go(making)

    def _find(self, key: bytes) -> ReadyPack | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        if isinstance(kept, ReadyPack):
            return kept.share()
        # A stored pack, which somebody may have replaced since.
        try:
            ready = self.opened(kept)
        except FileNotFoundError:
            del self._kept[key]
            return None
        assert ready.descriptor is not None
        if os.fstat(ready.descriptor).st_size == kept.size_bytes:
            return ready
        del self._kept[key]
        ready.close()
        return None

    def _finish(self, key: bytes) -> None:
        making = self._making.pop(key)
        making.is_finished = True
        ready = making.result()
        if ready is not None and ready.descriptor is not None:
            self._kept[key] = ready.share() if ready.built.is_temporary else ready.built
            self._shrink(os.fstatvfs(ready.descriptor))
        self._let_go(making)

    def _let_go(self, making: _Making) -> None:
        """Close a new pack for its maker, when nobody waits for it any longer.

        One who is canceled in the turn in which it is made leaves before it can be kept.
        """
        ready = making.result()
        if ready is not None and making.is_finished and not making.waiting_count:
            ready.close()

    def _shrink(self, disk: os.statvfs_result) -> None:
        """Drop the packs that were used longest ago, when there are too many."""
        is_scarce = disk.f_bavail * disk.f_frsize < self._free_bytes_min
        while self._kept and (
            is_scarce or len(self._kept) > COUNT_MAX or self.used_bytes > self._bytes_max
        ):
            _, oldest = self._kept.popitem(last=False)
            if isinstance(oldest, ReadyPack):
                oldest.close()

    async def close(self) -> None:
        """Drop all of them."""
        tasks = [making.task for making in self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._kept:
            _, kept = self._kept.popitem()
            if isinstance(kept, ReadyPack):
                kept.close()
        self._folder.close()
