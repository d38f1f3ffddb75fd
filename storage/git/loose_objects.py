"""Objects that have a file of their own each, below `objects/`.

Source: gitrepository-layout(5); git's object-file.c.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from storage.git.errors import PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import TYPE_NUMBERS
from storage.git.pack import CHUNK_BYTES

_HEAD_BYTES = 64
_NAME = re.compile(r"[0-9a-f]{38}")
_FAN_OUT = re.compile(r"[0-9a-f]{2}")  # the first byte of an id


class LooseObjects:
    """Those of one `objects` directory. Any of them may be packed, and gone, at any moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path_of(self, oid: bytes) -> str | None:
        """Return the file of an object, if it has one."""
        digits = oid.hex()
        path = f"{self._directory}/{digits[:2]}/{digits[2:]}"
        # Ten times as fast as pathlib, and it is hot.
        return path if os.path.exists(path) else None  # noqa: PTH110

    def directories(self) -> list[str]:
        """List the directories that objects lie in, by the first byte of their ids."""
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 -- asked at every fetch
        except FileNotFoundError:
            return []
        return [f"{self._directory}/{name}" for name in names if _FAN_OUT.fullmatch(name)]

    def files(self) -> Iterator[Path]:
        """Yield the files of all objects."""
        for directory in self.directories():
            with contextlib.suppress(FileNotFoundError):
                yield from (p for p in Path(directory).iterdir() if _NAME.fullmatch(p.name))

    def sizes(self) -> Iterator[int]:
        """Yield the bytes of every file."""
        for path in self.directories():
            with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.stat().st_size

    def with_prefix(self, digits: str) -> Iterator[bytes]:
        """Yield the ids that begin with these hex digits, at least two."""
        with contextlib.suppress(FileNotFoundError):
            for path in (self._directory / digits[:2]).iterdir():
                if _NAME.fullmatch(path.name) and path.name.startswith(digits[2:]):
                    yield bytes.fromhex(digits[:2] + path.name)


def read_loose(path: str, bytes_max: int | None = None) -> tuple[int, bytes]:
    """Return the type and the content in a loose object's file.

    No more is inflated than its head says.

    Raises:
        FileNotFoundError: it is gone by now.
        RepositoryCorruptError: it is damaged.
        PackOutgrownError: it has more than `bytes_max`.
    """
    with open(path, "rb") as file:  # noqa: PTH123 -- hot
        kind, size, content = _opened(file, path)
        if bytes_max is not None and size > bytes_max:
            raise PackOutgrownError("an object is too large for memory")
        pieces = list(content)
    return kind, pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_loose_head(path: str) -> tuple[int, int]:
    """Return the type and the size, as the file begins. Raises as `read_loose` does."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            head = zlib.decompressobj().decompress(file.read(4096), _HEAD_BYTES)
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    return _head(head, path)[:2]


def loose_chunks(path: str) -> Iterator[bytes]:
    """Yield the content in bounded pieces. Raises as `read_loose` does, perhaps only at the end."""
    with open(path, "rb") as file:  # noqa: PTH123 -- hot
        yield from _opened(file, path)[2]


def _opened(file: BinaryIO, path: str) -> tuple[int, int, Iterator[bytes]]:
    """Read the head; return the type, the size, and the content in bounded pieces."""
    inflater = zlib.decompressobj()
    try:
        first = inflater.decompress(file.read(CHUNK_BYTES), _HEAD_BYTES)
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    kind, size, start = _head(first, path)
    return kind, size, _content(file, inflater, first[start:], size, path)


def _content(
    file: BinaryIO, inflater: zlib._Decompress, first: bytes, size: int, path: str
) -> Iterator[bytes]:
    piece, left_bytes = first, size
    try:
        while True:
            left_bytes -= len(piece)
            if left_bytes < 0:
                break
            if piece:
                yield piece
            if inflater.eof:
                break
            rest = inflater.unconsumed_tail or file.read(CHUNK_BYTES)
            # One byte more than there should be shows that there are more.
            piece = inflater.decompress(rest, min(left_bytes + 1, CHUNK_BYTES))
            if not rest and not piece:
                break
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    if left_bytes or not inflater.eof:
        raise RepositoryCorruptError(f"loose object {path[-41:]} has the wrong size")
    if inflater.unused_data or file.read(1):
        raise RepositoryCorruptError(f"loose object {path[-41:]} has something behind its end")


def _head(head: bytes, path: str) -> tuple[int, int, int]:
    stop = head.find(b"\0")
    name, _, size = head[: max(stop, 0)].partition(b" ")
    if name not in TYPE_NUMBERS or not size.isdigit():
        raise RepositoryCorruptError(f"loose object {path[-41:]} has no valid head")
    return TYPE_NUMBERS[name], int(size), stop + 1
