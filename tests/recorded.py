"""Power cuts at any moment of a run: what its disk was told is recorded once, and done again up to
each moment on a copy.

Beside the moments between two writes, there are those of a disk that reorders in a cache of its
own: of what was written since it was last told to flush, any part may be lost.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests import recorder
from tests.power import Disk, copy_image, run

BLOCK_BYTES = 4096  # what a disk writes whole or not at all
# Of the blocks that a disk may lose, how many it does: a few, half, most.
LOSSES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Moment:
    """When the power is cut.

    Attributes:
        count: How much the disk was told before.
        is_done: The run had ended well by then.
        loss: Which part it loses of what it was not told to flush since.
    """

    count: int
    is_done: bool
    loss: float = 0.0


@dataclass(frozen=True)
class _Record:
    what: bytes
    offset: int
    size_bytes: int
    place: int  # of its bytes in the log


class Recording:
    """What a disk was told while a program ran on it.

    Attributes:
        status: What the program ended with.
    """

    def __init__(self, disk: Disk, base: str, spans: tuple[int, int], status: int) -> None:
        """`spans`: how long the log was when the program began, and when it had ended."""
        self.status = status
        self._disk = disk
        self._base = disk.folder / base
        self._flushed = disk.folder / "flushed"
        self._log = disk.folder / "log"
        begun, ended = spans
        self._records = list(_records(self._log, ended))
        self._begun = sum(record.place <= begun for record in self._records)
        self._applied = -1

    @functools.cached_property
    def moments(self) -> list[Moment]:
        """All that differ on the disk, from the beginning of the run to its end."""
        end = len(self._records)
        flushes = [n for n, record in enumerate(self._records) if record.what == recorder.FLUSH]
        found = [
            Moment(number + 1, is_done=False)
            for number in range(self._begun, end - 1)
            if self._records[number].what != recorder.FLUSH
        ]
        for last, flush in pairwise(flushes):
            if flush > self._begun and flush - last > 2:
                found += [Moment(flush, False, loss) for loss in LOSSES]
        is_done = self.status == 0
        found.append(Moment(end, is_done))
        found += [Moment(end, is_done, loss) for loss in (*LOSSES, 1.0)]
        return sorted(found, key=lambda moment: moment.count)

    def cuts(self, moments: Iterable[Moment]) -> Iterator[tuple[Path, bool]]:
        """Cut the power at each of them: mount what is on the disk then, and say whether the run
        had ended well. Quickest when they come in order.
        """
        for moment in moments:
            print(moment)
            try:
                yield self._mount(moment), moment.is_done
            finally:
                self._disk.end()

    def _mount(self, moment: Moment) -> Path:
        told = self._records[: moment.count]
        flushed = max(n + 1 for n, record in enumerate(told) if record.what == recorder.FLUSH)
        if not 0 <= self._applied <= flushed:
            copy_image(self._base, self._flushed)
            self._applied = 0
        with _opened(self._log, self._flushed) as (log, image):
            for record in told[self._applied : flushed]:
                _apply(log, image, record)
        self._applied = flushed
        kept = self._disk.folder / "kept"
        copy_image(self._flushed, kept)
        pick = random.Random(f"{moment} {os.environ.get('CRASH_SEED', '0')}")
        with _opened(self._log, kept) as (log, image):
            for record in told[flushed:]:
                for part in _blocks(record) if moment.loss else [record]:
                    if pick.random() >= moment.loss:
                        _apply(log, image, part)
        return self._disk.mount(kept)


def record(
    disk: Disk,
    child: Callable[[Path], Sequence[str | Path]],
    *,
    base: str = "base",
    is_restless: bool = False,
) -> Recording:
    """Run a program, told where the disk is, on what lies at `base`.

    `is_restless`: somebody else syncs that filesystem again and again, so that much is on the disk
    that the program asks nobody to write yet.
    """
    if not Path("/dev/fuse").exists():
        pytest.skip("this kernel has no FUSE")
    copy_image(disk.folder / base, disk.image)
    log = disk.folder / "log"
    log.write_bytes(b"")
    with _recorder(disk, log) as image:
        where = disk.mount(image)
        begun = log.stat().st_size
        with _syncing(where) if is_restless else contextlib.nullcontext():
            status = run(where, child(where))
            ended = log.stat().st_size
        disk.end()
    return Recording(disk, base, (begun, ended), status)


@contextlib.contextmanager
def _recorder(disk: Disk, log: Path) -> Iterator[Path]:
    """Offer the disk's image once more, as a file that is recorded."""
    folder = disk.folder / "recorded"
    folder.mkdir(exist_ok=True)
    fuse = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
        command: list[str | Path] = ["mount", "-i", "-t", "fuse", "-o", options, "recorder", folder]
        subprocess.run(command, check=True, pass_fds=[fuse])
        words: list[str | Path] = [sys.executable, recorder.__file__, str(fuse), disk.image, log]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[fuse])
    finally:
        os.close(fuse)
    with process:
        try:
            yield folder / "disk"
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
            process.communicate()


@contextlib.contextmanager
def _syncing(where: Path) -> Iterator[None]:
    loop = 'while sync -f "$0"; do :; done'
    with subprocess.Popen(["sh", "-c", loop, where], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _records(log: Path, size_bytes: int) -> Iterator[_Record]:
    place = 0
    with log.open("rb") as file:
        while place < size_bytes:
            what, offset, size = recorder.RECORD.unpack(file.read(recorder.RECORD.size))
            place += recorder.RECORD.size
            yield _Record(what, offset, size, place)
            place += size if what == recorder.WRITE else 0
            file.seek(place)


def _blocks(record: _Record) -> Iterator[_Record]:
    if record.what != recorder.WRITE:
        yield record
        return
    for start in range(0, record.size_bytes, BLOCK_BYTES):
        size = min(BLOCK_BYTES, record.size_bytes - start)
        yield _Record(record.what, record.offset + start, size, record.place + start)


@contextlib.contextmanager
def _opened(log: Path, image: Path) -> Iterator[tuple[int, int]]:
    with log.open("rb") as first, image.open("r+b") as second:
        yield first.fileno(), second.fileno()


def _apply(log: int, image: int, record: _Record) -> None:
    data = b""
    if record.what == recorder.WRITE:
        data = os.pread(log, record.size_bytes, record.place)
    recorder.apply(image, record.what, record.offset, record.size_bytes, data)
