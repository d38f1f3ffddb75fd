"""A file that is written piece by piece, and what of it stays in memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.long_write import AHEAD_BYTES, LONG_BYTES_MIN, WINDOW_BYTES, LongWrite
from tests.storage.conftest import make_shop

DISK = "/var/tmp"  # temporary folders may be in memory
PIECE_BYTES = 1 << 20
SIZE_BYTES = AHEAD_BYTES + 5 * WINDOW_BYTES
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def fd() -> Iterator[int]:
    with tempfile.TemporaryFile(dir=DISK) as file:
        os.write(file.fileno(), bytes(PIECE_BYTES))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if kept_bytes(file.fileno()) > 0:
            pytest.skip(f"{DISK} forgets nothing")
        os.ftruncate(file.fileno(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        yield file.fileno()


def kept_bytes(fd: int) -> int:
    """How much of a file is in memory. Source: mincore(2)."""
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        first = ctypes.c_byte.from_buffer(mapped)
        assert _LIBC.mincore(ctypes.byref(first), ctypes.c_size_t(size), pages) == 0
        del first
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("size_bytes", "kept"), [(LONG_BYTES_MIN, AHEAD_BYTES), (LONG_BYTES_MIN - 1, SIZE_BYTES)]
)
def test_of_a_long_file_no_more_stays_in_memory_than_is_being_written(
    fd: int, size_bytes: int, kept: int
) -> None:
    contents = LongWrite(fd, size_bytes)
    pieces = [bytes([number]) * PIECE_BYTES for number in range(SIZE_BYTES // PIECE_BYTES)]
    for piece in pieces:
        contents.write(piece)
    assert kept_bytes(fd) == kept
    assert os.pread(fd, SIZE_BYTES + 1, 0) == b"".join(pieces)


def test_of_a_long_file_that_is_unpacked_neither_copy_stays_in_memory(fd: int) -> None:
    data = bytes(LONG_BYTES_MIN)
    with tempfile.TemporaryDirectory(dir=DISK) as name:
        shop = make_shop(Path(name) / "shop")
        ingested = shop.ingest({"long": data})
        shop.reader.materialise(shop.verify(ingested), Path(name) / "release")
        shop.records.close()
        for path in (shop.blob(data), Path(name) / "release/long"):
            with path.open("rb") as file:
                assert kept_bytes(file.fileno()) <= AHEAD_BYTES


@pytest.mark.parametrize("piece_bytes", [1, WINDOW_BYTES - 1, AHEAD_BYTES + WINDOW_BYTES + 1])
def test_pieces_of_any_length_stand_one_behind_another(fd: int, piece_bytes: int) -> None:
    contents = LongWrite(fd, LONG_BYTES_MIN)
    pieces = [bytes([number]) * piece_bytes for number in range(1, 8)]
    for piece in pieces:
        contents.write(piece)
    assert os.pread(fd, 8 * piece_bytes, 0) == b"".join(pieces)
