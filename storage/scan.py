"""Scanning: a folder on disk as the entries of a source, read without following a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from storage.errors import TreeInvalidError
from storage.files import read_up_to
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
        top = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
    except PermissionError as error:
        raise TreeInvalidError(b".", f"cannot be read: {error.strerror}") from error
    try:
        yield from _scan(root, top, b"", owner_uid, on_refused)
    finally:
        os.close(top)


def _scan(
    root: Path,
    folder: int,
    prefix: bytes,
    owner_uid: int | None,
    on_refused: Callable[[TreeInvalidError], None] | None,
) -> Iterator[SourceEntry]:
    if prefix.count(b"/") > DEPTH_MAX:
        raise TreeInvalidError(prefix, "lies too deep")
    for name in sorted(os.listdir(folder)):
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
                os.close(child)


def _look(
    root: Path, folder: int, name: str, path: bytes, owner_uid: int | None
) -> tuple[SourceEntry, int | None]:
    """Return an entry, and of a folder that is open."""
    check_path(path)
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        entry = _entry(root, folder, name, path, status, owner_uid)
        is_folder = stat.S_ISDIR(status.st_mode)
        return entry, os.open(name, _DIRECTORY, dir_fd=folder) if is_folder else None
    except OSError as error:
        raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error


def _entry(
    root: Path,
    folder: int,
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
        read = partial(_read, root, path, status)
        return SourceFile(path, status.st_size, bool(mode & 0o111), read)
    if stat.S_ISDIR(mode):
        return SourceDirectory(path)
    if stat.S_ISLNK(mode):
        return SourceLink(path, os.fsencode(os.readlink(name, dir_fd=folder)))
    raise TreeInvalidError(path, "is neither a file, a directory nor a symbolic link")


def _read(root: Path, path: bytes, scanned: os.stat_result) -> bytes | Iterator[bytes]:
    try:
        fd = _open_beneath(root, path)
    except OSError as error:
        raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error
    if scanned.st_size > WHOLE_BYTES_MAX:
        return _pieces(fd, path, scanned)
    try:
        _expect_same(fd, path, scanned)
        if _CAPABILITY in os.listxattr(fd):
            raise TreeInvalidError(path, "has capabilities")
        data = read_up_to(fd, scanned.st_size + 1)
        _expect_same(fd, path, scanned)
        return data
    finally:
        os.close(fd)


def _pieces(fd: int, path: bytes, scanned: os.stat_result) -> Iterator[bytes]:
    try:
        _expect_same(fd, path, scanned)
        if _CAPABILITY in os.listxattr(fd):
            raise TreeInvalidError(path, "has capabilities")
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


def _expect_same(fd: int, path: bytes, scanned: os.stat_result) -> None:
    if _identity(os.fstat(fd)) != _identity(scanned):
        raise TreeInvalidError(path, "changed while it was read")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
