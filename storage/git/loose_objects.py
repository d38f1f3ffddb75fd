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

from storage.git.errors import RepositoryCorruptError
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


def read_loose(path: str) -> tuple[int, bytes]:
    """Return the type and the content in a loose object's file.

    Raises:
        FileNotFoundError: it is gone by now.
        RepositoryCorruptError: it is damaged.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            data = zlib.decompress(file.read())
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    kind, size, start = _head(data[:_HEAD_BYTES], path)
    if len(data) - start != size:
        raise RepositoryCorruptError(f"loose object {path[-41:]} has the wrong size")
    return kind, data[start:]


def read_loose_head(path: str) -> tuple[int, int]:
    """Return the type and the size, as the file begins. Raises as `read_loose` does."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            head = zlib.decompressobj().decompress(file.read(4096), _HEAD_BYTES)
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error
    return _head(head, path)[:2]


def loose_chunks(path: str) -> Iterator[bytes]:
    """Yield the content in bounded pieces. Raises as `read_loose` does."""
    inflater = zlib.decompressobj()
    is_first = True
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- hot
            while rest := file.read(CHUNK_BYTES):
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, CHUNK_BYTES)
                    rest = inflater.unconsumed_tail
                    if is_first and piece:
                        piece = piece[_head(piece[:_HEAD_BYTES], path)[2] :]
                        is_first = False
                    if piece:
                        yield piece
    except zlib.error as error:
        raise RepositoryCorruptError(f"loose object {path[-41:]} is damaged") from error


def _head(head: bytes, path: str) -> tuple[int, int, int]:
    stop = head.find(b"\0")
    name, _, size = head[: max(stop, 0)].partition(b" ")
    if name not in TYPE_NUMBERS or not size.isdigit():
        raise RepositoryCorruptError(f"loose object {path[-41:]} has no valid head")
    return TYPE_NUMBERS[name], int(size), stop + 1
