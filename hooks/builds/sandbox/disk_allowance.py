"""What a slot itself may write for a build, where no watch is over it as over its sandbox."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from hooks.builds.errors import BuilderError, BuildFailedError
from hooks.builds.sandbox.disk import NAME_BYTES, shortage
from hooks.builds.sandbox.limits import LIMIT_EXCEEDED, Limit, Limits, explain
from storage.files import FULL

LOOK_EVERY_BYTES = 1 << 20


def exceeded(limit: Limit, limits: Limits) -> BuildFailedError:
    """Return what says that a build would exceed a limit."""
    message = explain(limit, limits, who="the build", section="builders")
    return BuildFailedError(LIMIT_EXCEEDED, f"{message}.")


class DiskAllowance:
    """The disk that a build may take in `folder` and below, by the limits of its sandbox.

    What is counted is about to be written: nothing is, that would be too much. Not for several
    threads at once.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._taken_bytes = 0
        self._taken_names = 0
        self._unseen_bytes = LOOK_EVERY_BYTES

    def clear(self) -> None:
        """Note that nothing of what was taken is there any more."""
        self._taken_bytes = self._taken_names = 0

    @property
    def taken_bytes(self) -> int:
        """What was counted so far."""
        return self._taken_bytes

    @property
    def taken_names(self) -> int:
        """How many files, folders and links were counted so far."""
        return self._taken_names

    def take_over(self, taken_bytes: int, taken_names: int) -> None:
        """Count what is there already, and was looked at when it was written."""
        self._taken_bytes += taken_bytes
        self._taken_names += taken_names

    def give_back(self, size_bytes: int = 0) -> None:
        """Count no more what `take` counted so."""
        self._taken_bytes -= max(size_bytes, NAME_BYTES)
        self._taken_names -= 1

    def take(self, size_bytes: int = 0) -> None:
        """Count a file of so many bytes, a folder or a link, that is there to stay.

        Raises:
            BuildFailedError: `build.limit_exceeded`.
        """
        counted = max(size_bytes, NAME_BYTES)
        self._taken_bytes += counted
        self._taken_names += 1
        self.check(self._taken_bytes, counted)

    def check(self, size_bytes: int, new_bytes: int) -> None:
        """Say whether there may be so many bytes of something, `new_bytes` more than before.

        Raises:
            BuildFailedError: `build.limit_exceeded`.
        """
        if self._limits.disk_bytes is not None and size_bytes > self._limits.disk_bytes:
            raise self._exceeded(Limit.DISK)
        self._unseen_bytes += new_bytes
        if self._unseen_bytes >= LOOK_EVERY_BYTES:
            new = self._unseen_bytes
            short = shortage(self._folder, self._limits, new_bytes=new, new_names=new // NAME_BYTES)
            if short is not None:
                raise self._exceeded(short)
            self._unseen_bytes = 0

    @contextlib.contextmanager
    def full_disk_told(self) -> Iterator[None]:
        """Let an error of a disk that is full all the same be the limit's."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                short = shortage(self._folder, self._limits) or Limit.DISK_FREE
                raise self._exceeded(short) from error
            raise

    @contextlib.contextmanager
    def spool(self) -> Iterator[Spool]:
        """Give a file without a name, for what is unpacked and then gone."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            yield Spool(cast("BinaryIO", file), self)

    def _exceeded(self, limit: Limit) -> BuildFailedError:
        return exceeded(limit, self._limits)


class Spool:
    """A file that takes what comes over a connection. Blocking.

    It never fails as the connection does, with an `OSError`, which would be worth another try.
    """

    def __init__(self, file: BinaryIO, allowance: DiskAllowance) -> None:
        self._file = file
        self._allowance = allowance
        self._size_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            BuildFailedError: `build.limit_exceeded`.
            BuilderError: The disk refused.
        """
        self._size_bytes += len(chunk)
        with self._mapped_errors():
            self._allowance.check(self._size_bytes, len(chunk))
            self._file.write(chunk)

    def content(self) -> BinaryIO:
        """Return the file, at its start."""
        with self._mapped_errors():
            self._file.seek(0)
        return self._file

    @contextlib.contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            with self._allowance.full_disk_told():
                yield
        except OSError as error:
            raise BuilderError(f"the scratch folder cannot be written to: {error}") from error
