"""A source archive: the tar of a commit as it came, written beside while it is unpacked, to be
unpacked again later.

It is not synced, and may lie for an hour: a disk that cannot write tells nobody by then. So what is
read of it later is held against a digest of what came.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from hooks.builds.errors import BuilderError
from hooks.pipes import PIPE_BYTES


class ArchiveDamagedError(BuilderError):
    """What was read is not what came."""


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """The file of an archive, its size, and the digest of what came."""

    path: Path
    size_bytes: int
    digest: bytes

    def moved(self, path: Path) -> SourceArchive:
        """Rename it; return it as it is then."""
        self.path.rename(path)
        return SourceArchive(path, self.size_bytes, self.digest)

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Give its contents, to be read to their end. Blocking.

        Raises:
            ArchiveDamagedError: At the end: they are others than came.
        """
        with self.path.open("rb", buffering=0) as file:
            contents = _Summed(file)
            yield io.BufferedReader(contents, PIPE_BYTES)
        if contents.digest() != self.digest:
            raise ArchiveDamagedError(f"{self.path.name} is not what was written")


class Copying:
    """Copies what is read of a pipe to an archive as well, as long as the disk takes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.archive: SourceArchive | None = None
        """What came, once that was all."""

    @contextlib.contextmanager
    def copied(self, stream: BinaryIO) -> Iterator[BinaryIO]:
        """Give what to read in place of `stream`, which reads a pipe. Blocking."""
        assert isinstance(stream, io.BufferedReader), "it reads a pipe"
        try:
            file = self._path.open("wb", buffering=0)
        except OSError:
            yield stream
            return
        copy = _Copied(stream.raw, file)
        try:
            yield io.BufferedReader(copy, PIPE_BYTES)
        finally:
            copy.end()
        if copy.is_whole:
            self.archive = SourceArchive(self._path, copy.size_bytes, copy.digest())


class _Summed(io.RawIOBase):
    """A stream whose bytes are summed up while they are read."""

    def __init__(self, stream: io.RawIOBase) -> None:
        super().__init__()
        self._stream = stream
        self._sum = blake3()

    def digest(self) -> bytes:
        return self._sum.digest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._stream.readinto(buffer)
        if count:
            self._sum.update(memoryview(buffer)[:count])
        return count


class _Copied(_Summed):
    """A stream whose bytes are written to a file too."""

    def __init__(self, stream: io.RawIOBase, file: io.FileIO) -> None:
        super().__init__(stream)
        self._file = file
        self.is_whole = True
        self.size_bytes = 0

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        if count and self.is_whole:
            try:
                self.is_whole = self._file.write(memoryview(buffer)[:count]) == count
            except OSError:
                self.is_whole = False
            self.size_bytes += count
            if not self.is_whole:
                self._give_up()
        return count

    def end(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError:  # some file systems tell only then that they could not write
            self.is_whole = False

    def _give_up(self) -> None:
        """Leave the build what the disk has left."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), 0)
