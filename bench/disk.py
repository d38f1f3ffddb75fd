"""A disk to measure on: a journalled ext4 of its own, so that all machines have the same kind.

Without a journal, or with online discard, a removal costs many times as much.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def journalled(size_bytes: int, *, inodes: int | None = None) -> Iterator[Path]:
    """Yield a folder on such a disk; a plain temporary one, and say so, where none can be made.

    `inodes`: how many files it takes; None for as many as mkfs finds right, one for each 16 KiB.
    """
    with tempfile.TemporaryDirectory(prefix="gitd-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # builds and site hosts are other users
        device = _attach(folder / "image", size_bytes, inodes)
        if device is None:
            print("(not on a disk of its own: needs root and mkfs.ext4)")
            yield folder
            return
        where = folder / "disk"
        where.mkdir()
        try:
            subprocess.run(["mount", device, where], check=True)
            try:
                where.chmod(0o711)
                yield where
            finally:
                subprocess.run(["umount", where], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


def _attach(image: Path, size_bytes: int, inodes: int | None) -> str | None:
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not shutil.which("losetup"):
        return None
    with image.open("wb") as file:
        file.truncate(size_bytes)
    made = ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    made += ["-N", str(inodes)] if inodes else []
    subprocess.run([*made, image], check=True)
    attach = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
    done = subprocess.run(attach, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
