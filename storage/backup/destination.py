"""A folder of backups: what lies where in it, and who may write.

    FORMAT              "gitd-backup 1", then the folder's own id
    lock                held by whoever writes; readers share it
    backups/<name>      the manifest of a backup; it comes last, and makes the backup count
    pool/<2 hex>/<62 hex>   contents of files, by BLAKE3, each once for all backups
    tmp/<lease>/        what is being written
    unfinished          there from the beginning of a backup to its end

Names are times (UTC), such as `20260131T030000Z`: they sort by age. Everything is the owner's
alone: 0700 and 0400.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import BackupError
from storage.files import Lease, mapped_errors, read_bounded, sync_directory, write_atomic

FORMAT_LINE = b"gitd-backup 1\n"
FILE_MODE = 0o400
FOLDER_MODE = 0o700
_FORMAT = re.compile(rb"gitd-backup ([0-9]+)\n")
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
_HARMLESS = {"lost+found"}  # what a new filesystem has in it


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder of backups."""

    root: Path

    @property
    def format(self) -> Path:
        return self.root / "FORMAT"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def unfinished(self) -> Path:
        return self.root / "unfinished"

    def manifest(self, name: str) -> Path:
        return self.backups / name

    def content(self, digest: bytes) -> str:
        name = digest.hex()
        return f"{self.root}/pool/{name[:2]}/{name[2:]}"

    # -- opening ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Open it for writing, alone, and make it first where there is none.

        Gives whether an earlier backup broke off: what it was writing is removed by then, and what
        it had put into the pool may still be there. A context that ends without an error has ended
        its backup.

        Raises:
            BackupError: It is something else, of another format, or in use.
            StorageIoError: The system refused.
        """
        with mapped_errors(f"open {self.root}"):
            if not self.format.exists():
                self._make()
            self.check_format()
            for folder in (self.backups, self.pool, self.tmp):
                folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_directory(self.root)
        with self._locked(fcntl.LOCK_EX):
            self._remove_leases()
            broke_off = self.unfinished.exists()
            with mapped_errors(f"write to {self.root}"):
                self.unfinished.touch(mode=0o600)
            yield broke_off
            with mapped_errors(f"write to {self.root}"):
                self.unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Open it for reading: nobody writes meanwhile. It may lie on a medium that only reads.

        Raises:
            BackupError: It is no folder of backups, of another format, or being written.
            StorageIoError: The system refused.
        """
        self.check_format()
        with self._locked(fcntl.LOCK_SH):
            yield

    def check_format(self) -> None:
        try:
            data = read_bounded(self.format, size_bytes_max=4096)
        except OSError as error:
            raise BackupError(
                f"{self.root} is no folder of backups: {self.format.name} in it cannot be read"
                f" ({error.strerror})"
            ) from error
        if data.startswith(FORMAT_LINE):
            return
        found = _FORMAT.match(data)
        if found is None:
            raise BackupError(f"{self.format} is not of a folder of backups")
        age = "a newer" if int(found[1]) > 1 else "another"
        raise BackupError(
            f"{self.root} has format {int(found[1])}, which {age} gitd wrote; this one knows"
            " format 1. Use that gitd, or another folder."
        )

    def _make(self) -> None:
        above = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for path in above or [self.root]:  # that one: somebody may have been killed here
            with contextlib.suppress(
                PermissionError
            ):  # who may make a name need not see the others
                sync_directory(path.parent)
        strangers = sorted(path.name for path in self.root.iterdir() if path.name not in _HARMLESS)
        if [name for name in strangers if not name.startswith(".FORMAT.")]:
            raise BackupError(
                f"{self.root} is not empty ({strangers[0]} is in it), and no folder of backups."
                " Name one that is empty, or that is not there yet."
            )
        for name in strangers:  # of a first backup that was killed before it began
            (self.root / name).unlink()
        self.root.chmod(FOLDER_MODE)
        own_id = secrets.token_hex(16).encode() + b"\n"
        write_atomic(self.format, FORMAT_LINE + own_id, mode=FILE_MODE, replace=False)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        path = self.root / "lock"
        flags = os.O_RDWR | os.O_CREAT if how == fcntl.LOCK_EX else os.O_RDONLY
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # copied without it: nobody writes there
            yield
            return
        except OSError as error:
            raise BackupError(f"cannot open {path}: {error.strerror}") from error
        try:
            with mapped_errors(f"lock {path}"):  # not every filesystem has locks
                self._lock(fd, how)
            yield
        finally:
            os.close(fd)

    def _lock(self, fd: int, how: int) -> None:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"{self.root} is in use: another backup or restore is at work") from (
                None
            )

    def _remove_leases(self) -> None:
        with mapped_errors(f"tidy {self.tmp}"):
            for path in self.tmp.iterdir():
                lease = Lease.seize(path)
                if lease is not None:
                    lease.release()

    # -- backups ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the backups, the oldest first."""
        with mapped_errors(f"list {self.backups}"):
            found = [path.name for path in self.backups.iterdir()]
        return sorted((name for name in found if _NAME.fullmatch(name)), key=_order)

    def new_name(self) -> str:
        """A name for a backup of now; it sorts behind those that are there."""
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        last = self.names()[-1:]
        if last and _order(last[0]) >= _order(name):
            stem, number = _order(last[0])
            return f"{stem}-{number + 1}"
        return name

    def choose(self, wanted: str | None) -> str:
        """The name of the backup that `wanted` means: its name, or a time that it is the last
        before; the newest when None.

        Raises:
            BackupError: There is none.
        """
        names = self.names()
        if not names:
            raise BackupError(f"there is no backup in {self.root}")
        if wanted is None:
            return names[-1]
        if wanted in names:
            return wanted
        moment = _moment(wanted)
        if moment is None:
            raise BackupError(
                f"there is no backup {wanted}; gitd backup {self.root} --list shows them. A time"
                " is written as in 2026-01-31T03:00:00Z"
            )
        before = [name for name in names if _order(name)[0] <= moment]
        if not before:
            raise BackupError(f"no backup is that old: the first one is {names[0]}")
        return before[-1]


def _order(name: str) -> tuple[str, int]:
    stem, _, number = name.partition("-")
    return stem, int(number or 1)


def _moment(text: str) -> str | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return when.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
