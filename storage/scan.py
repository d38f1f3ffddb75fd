"""Scanning: a folder on disk as the entries of a source, read without following a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path

from storage.errors import TreeInvalidError
from storage.files import read_sized
from storage.manifest import DEPTH_MAX
from storage.source import (
    WHOLE_BYTES_MAX,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
    check_path,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CAPABILITY = "security.capability"
# What tells a file, and whether it was written to since.
_identity = attrgetter("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")


class _Folder:
    """A folder below the root, as long as it is open: `fd` is -1 then."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1


def scan_directory(
    root: Path,
    *,
    owner_uid: int | None,
    on_refused: Callable[[TreeInvalidError], None] | None = None,
) -> Iterator[SourceEntry]:
    """Give what is in a folder; whoever wrote it must be gone.

    `owner_uid`: everything must belong to it, so that a hard link to a stranger's file is not
    taken in; None does not look. Devices, pipes, sockets, set-id files and files with
    capabilities are refused; other attributes and times are not part of a tree. `on_refused` is
    told of what is refused, which is left out then; without it that is an error.

    Raises:
        TreeInvalidError: While iterating or reading: something may not be in an artifact,
            cannot be read, or changed while it was read.
    """
    try:
        top = _Folder(os.open(root, _DIRECTORY & ~os.O_NOFOLLOW))
    except PermissionError as error:
        raise TreeInvalidError(b".", f"cannot be read: {error.strerror}") from error
    try:
        yield from _scan(root, top, b"", owner_uid, on_refused)
    finally:
        top.close()


def _scan(
    root: Path,
    folder: _Folder,
    prefix: bytes,
    owner_uid: int | None,
    on_refused: Callable[[TreeInvalidError], None] | None,
) -> Iterator[SourceEntry]:
    if prefix.count(b"/") > DEPTH_MAX:
        raise TreeInvalidError(prefix, "lies too deep")
    for name in sorted(os.listdir(folder.fd)):  # noqa: PTH208 - an open folder
        path = prefix + os.fsencode(name)
        try:
            entry, child = _look(root, folder, name, path, owner_uid)
        except TreeInvalidError as error:
            if on_refused is None:
                raise
            on_refused(error)
            continue
        try:
            yield entry
            if child is not None:
                yield from _scan(root, child, path + b"/", owner_uid, on_refused)
        finally:
            if child is not None:
                child.close()


def _look(
    root: Path, folder: _Folder, name: str, path: bytes, owner_uid: int | None
) -> tuple[SourceEntry, _Folder | None]:
    """Return an entry, and of a folder that it is, open."""
    check_path(path)
    try:
        status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        entry = _entry(root, folder, name, path, status, owner_uid)
        if not stat.S_ISDIR(status.st_mode):
            return entry, None
        return entry, _Folder(os.open(name, _DIRECTORY, dir_fd=folder.fd))
    except OSError as error:
        raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error


def _entry(
    root: Path,
    folder: _Folder,
    name: str,
    path: bytes,
    status: os.stat_result,
    owner_uid: int | None,
) -> SourceEntry:
    mode = status.st_mode
    if owner_uid is not None and status.st_uid != owner_uid:
        raise TreeInvalidError(path, "belongs to another user")
    if stat.S_ISREG(mode):
        if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
            raise TreeInvalidError(path, "has a set-uid, set-gid or sticky bit")
        read = partial(_read, root, folder, path, status.st_size, _identity(status))
        return SourceFile(path, status.st_size, bool(mode & 0o111), read)
    if stat.S_ISDIR(mode):
        return SourceDirectory(path)
    if stat.S_ISLNK(mode):
        return SourceLink(path, os.fsencode(os.readlink(name, dir_fd=folder.fd)))
    raise TreeInvalidError(path, "is neither a file, a directory nor a symbolic link")


def _read(
    root: Path, folder: _Folder, path: bytes, size_bytes: int, scanned: tuple[int, ...]
) -> bytes | Iterator[bytes]:
    try:
        if folder.fd >= 0:
            fd = os.open(path[path.rfind(b"/") + 1 :], _FILE, dir_fd=folder.fd)
        else:  # asked for later
            fd = _open_beneath(root, path)
    except OSError as error:
        raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error
    if size_bytes > WHOLE_BYTES_MAX:
        return _pieces(fd, path, scanned)
    try:
        _expect_plain(fd, path, scanned)
        data = read_sized(fd, size_bytes)
        _expect_same(fd, path, scanned)
        return data
    finally:
        os.close(fd)


def _pieces(fd: int, path: bytes, scanned: tuple[int, ...]) -> Iterator[bytes]:
    try:
        _expect_plain(fd, path, scanned)
        while data := os.read(fd, WHOLE_BYTES_MAX):
            yield data
        _expect_same(fd, path, scanned)
    finally:
        os.close(fd)


def _open_beneath(root: Path, path: bytes) -> int:
    """Open a file without following a link anywhere below the root."""
    *parents, name = path.split(b"/")
    folder = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        for parent in parents:
            child = os.open(parent, _DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = child
        return os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)


def _expect_same(fd: int, path: bytes, scanned: tuple[int, ...]) -> None:
    if _identity(os.fstat(fd)) != scanned:
        raise TreeInvalidError(path, "changed while it was read")


def _expect_plain(fd: int, path: bytes, scanned: tuple[int, ...]) -> None:
    _expect_same(fd, path, scanned)
    if _CAPABILITY in os.listxattr(fd):
        raise TreeInvalidError(path, "has capabilities")
