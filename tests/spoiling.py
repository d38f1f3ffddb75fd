"""Damage, as a medium, a stranger or root does it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from storage.layout import Layout


def rewrite(path: Path | str, data: bytes, *, is_hidden: bool = True) -> None:
    """Write in place, with the mode that was there; `is_hidden`: and the time, so that nothing but
    the bytes and their number tells of it.
    """
    target = Path(path)
    status = target.stat()
    target.chmod(0o644)
    target.write_bytes(data)
    target.chmod(status.st_mode & 0o7777)
    if is_hidden:
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path | str, at: int | None = None) -> None:
    """Change one bit, in the middle or `at` a byte, counted round; `stat` shows nothing of it."""
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2 if at is None else at % len(data)] ^= 1
    rewrite(path, bytes(data))


def damage_index(database: Path, index: str, key: bytes, bit: int = 0x80) -> None:
    """Flip a bit of a key where an index has it: by that it is not found any more."""
    db = sqlite3.connect(database)
    pages = db.execute("SELECT pgoffset, pgsize FROM dbstat WHERE name = ?", (index,)).fetchall()
    db.close()
    data = bytearray(database.read_bytes())
    (at,) = (found for start, size in pages if (found := data.find(key, start, start + size)) >= 0)
    data[at] ^= bit
    database.write_bytes(data)


@contextlib.contextmanager
def closed_quarantine(layout: Layout) -> Iterator[None]:
    """Where nothing can be put: another filesystem that takes no files."""
    quarantine = Path(layout.quarantine)
    quarantine.rmdir()
    quarantine.symlink_to("/proc/sys")
    try:
        yield
    finally:
        quarantine.unlink()
        quarantine.mkdir()
