"""Thin disks: they promise more room than they have, as a thin volume does. What was written is
refused later, when the kernel writes it to the disk.

No fault is injected: which sync the kernel tells of it, and whether it tells another one, is its
own word.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.power import KINDS, MEMORY, SIZE_BYTES, copy_image, mount_image


@dataclass
class ThinDisk:
    """A filesystem in a file, itself on a filesystem that is too small for all of it."""

    kind: str
    folder: Path

    @property
    def below(self) -> Path:
        return self.folder / "below"

    @property
    def where(self) -> Path:
        return self.folder / "on-disk"

    @property
    def image(self) -> Path:
        return self.below / "disk"

    def make(self) -> None:
        for where in (self.below, self.where):
            where.mkdir()
        _run("mount", "-t", "tmpfs", "tmpfs", self.below)
        with self.image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        _run(f"mkfs.{self.kind}", "-q", *KINDS[self.kind], self.image)

    def mount(self) -> None:
        mount_image(self.kind, self.image, self.where)

    def mount_again(self) -> None:
        """What only the kernel's memory knew is lost, also where somebody has it mounted still."""
        subprocess.run(["sync", "-f", self.where], capture_output=True)  # as unmounting does
        _run("umount", self.where)
        copy = self.image.with_name("copy")
        copy_image(self.image, copy)
        copy.rename(self.image)
        self.mount()

    def shrink(self, spare_bytes: int) -> None:
        """Leave so much more than lies there now."""
        _run("sync", "-f", self.where)
        used = self.image.stat().st_blocks * 512
        _run("mount", "-o", f"remount,size={used + spare_bytes}", self.below)

    def grow(self) -> None:
        _run("mount", "-o", f"remount,size={2 * SIZE_BYTES}", self.below)

    def end(self) -> None:
        for where in (self.where, self.below):
            subprocess.run(["umount", "-l", where], capture_output=True)


@contextlib.contextmanager
def thin_disk(kind: str) -> Iterator[ThinDisk]:
    """Make one and mount it; skip where that cannot be."""
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not here")
    folder = MEMORY / f"gitd-thin-{os.getpid()}-{kind}"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        disk = ThinDisk(kind, folder)
        stack.callback(disk.end)
        disk.make()
        try:
            disk.mount()
        except subprocess.CalledProcessError:
            pytest.skip(f"{kind} cannot be mounted here")
        yield disk


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
