"""Power cuts: a filesystem on a loop device over memory, whose image is copied at some moment.

What only the kernel's memory knew is lost then, as in a power cut. It does not model a disk that
reorders writes in a cache of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.warm import loading, run_warm

MEMORY = Path("/dev/shm")
KINDS = {"ext4": ["-F"], "xfs": ["-f"], "btrfs": ["-f"]}
# For a test that is not long: on one of them always, on the others in `make soak`.
KINDS_IN_TURN = [
    pytest.param(kind, marks=[] if kind == "ext4" else [pytest.mark.soak]) for kind in KINDS
]
# What the programs load that work on a store, or on a copy of it.
_STORAGE = Path(__file__).with_name("storage")
OF_THE_STORE = loading(_STORAGE / "ingest_child.py", _STORAGE / "backup" / "backup_child.py")
SIZE_BYTES = 600 << 20  # with less, a store refuses for want of room; holes cost nothing

needs_disks = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0 or not MEMORY.is_dir(), reason="mounts filesystems"),
]


@dataclass
class Disk:
    """A disk that can lose its power, with something on it."""

    kind: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "disk"

    def begin(self, base: str = "base") -> Path:
        """Put the first state back and mount it."""
        copy_image(self.folder / base, self.image)
        return self.mount(self.image)

    def keep(self, base: str) -> None:
        """Unmount, and keep what is there as another first state."""
        _unmount(self.folder / "on-disk")
        copy_image(self.image, self.folder / base)

    def mount(self, image: Path) -> Path:
        where = self.folder / f"on-{image.name}"
        where.mkdir(exist_ok=True)
        mount_image(self.kind, image, where)
        return where

    def cut(self) -> Path:
        """Keep what reached the disk by now, and mount that."""
        self._copy_as_of_one_moment(self.folder / "kept")
        subprocess.run(["umount", "-l", self.folder / "on-disk"], check=True)
        return self.mount(self.folder / "kept")

    def _copy_as_of_one_moment(self, target: Path) -> None:
        """A power cut has one moment, and a copy takes a while: what the kernel writes meanwhile
        might come without what it wrote before, and no filesystem would stand that.
        """
        for _ in range(100):
            before = self.image.stat().st_mtime_ns
            copy_image(self.image, target)
            if self.image.stat().st_mtime_ns == before:
                return
        raise AssertionError("the disk is written to all the time")

    def end(self) -> None:
        for name in ("on-kept", "on-disk"):
            subprocess.run(["umount", "-l", self.folder / name], capture_output=True)


def run(where: Path, child: Sequence[str | Path], strace: Sequence[str] = ()) -> int:
    """Run a Python program and return its status; `where`, a disk, has no trace of it in it."""
    command: list[str | Path] = [sys.executable, *child]
    if not strace:
        return run_warm(OF_THE_STORE, command, env=os.environ).returncode
    command = ["strace", "-f", "-qq", "-o", where.parent / "trace", *strace, *command]
    return subprocess.run(command, capture_output=True).returncode


def killed_at(call: str, number: int) -> tuple[str, ...]:
    return ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")


def mount_image(kind: str, image: Path, where: Path) -> None:
    """Mount it, beside others that were copied from the same one."""
    options = "loop,nouuid" if kind == "xfs" else "loop"
    subprocess.run(["mount", "-o", options, image, where], check=True, capture_output=True)


def copy_image(source: Path, target: Path) -> None:
    """With its holes, and as a new file: where somebody has the old one mounted still, as a sandbox
    that started meanwhile does, what is mounted of it next is what the kernel remembers of it.
    """
    command: list[str | Path] = ["cp", "--sparse=always", "--remove-destination", source, target]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def disk_of(
    kind: str,
    fill: Callable[[Path], object],
    *,
    size_bytes: int = SIZE_BYTES,
    options: Sequence[str] = (),
) -> Iterator[Disk]:
    """Make a disk with what `fill` puts on it as its first state; skip where that cannot be.

    `options`: more of those that mkfs has for this kind.
    """
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not here")
    folder = MEMORY / f"gitd-power-{os.getpid()}-{kind}"
    folder.mkdir()
    made = Disk(kind, folder)
    try:
        with (folder / "base").open("wb") as file:
            file.truncate(size_bytes)
        quiet = ["mkfs.ext4", "-q"] if kind == "ext4" else [f"mkfs.{kind}", "-q"]
        command: list[str | Path] = [*quiet, *KINDS[kind], *options, folder / "base"]
        subprocess.run(command, check=True, capture_output=True)
        try:
            where = made.mount(folder / "base")
        except subprocess.CalledProcessError:
            pytest.skip(f"{kind} cannot be mounted here")
        fill(where)
        _unmount(where)
        yield made
    finally:
        made.end()
        subprocess.run(["umount", "-l", folder / "on-base"], capture_output=True)
        shutil.rmtree(folder)


def _unmount(where: Path) -> None:
    """Write all of it; unmounting does not where somebody has it mounted still."""
    subprocess.run(["sync", "-f", where], check=True)
    subprocess.run(["umount", where], check=True)
