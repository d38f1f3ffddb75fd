"""Scanning: a folder on disk as the entries of a source, read without following a link."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from storage.beneath import DIRECTORY, FILE, descend, facts_of, identity
from storage.errors import TreeInvalidError
from storage.files import read_sized
from storage.manifest import DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX
from storage.source import (
    WHOLE_BYTES_MAX,
    Place,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
    check_path,
)

_CAPABILITY = "security.capability"
_ODD = re.compile(rb"[\x00-\x1f\x7f]")
_SET_ID = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_MODE, _SIZE = 2, 3  # where they stand in an identity

OnFile = Callable[[bytes, os.stat_result], None]


class _Scan(NamedTuple):
    """What `scan_directory` was asked for; `top` is the root, open."""

    root: Path
    top: _Folder
    owner_uid: int | None
    on_refused: Callable[[TreeInvalidError], None] | None
    on_file: OnFile | None


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
    on_file: OnFile | None = None,
) -> Iterator[SourceEntry]:
    """Give what is in a folder; whoever wrote it must be gone.

    `owner_uid`: everything must belong to it, so that a hard link to a stranger's file is not
    taken in; None does not look. Devices, pipes, sockets, set-id files and programs with
    capabilities are refused; other attributes and times are not part of a tree. `on_refused` is
    told of what is refused, which is left out then; without it that is an error. `on_file` is told
    the path and status of each file, before it is given.

    Raises:
        TreeInvalidError: While iterating or reading: something may not be in an artifact,
            cannot be read, or changed while it was read.
    """
    try:
        top = _Folder(os.open(root, DIRECTORY & ~os.O_NOFOLLOW))
    except PermissionError as error:
        raise TreeInvalidError(b".", f"cannot be read: {error.strerror}") from error
    try:
        yield from _scan(_Scan(root, top, owner_uid, on_refused, on_file), top, b"")
    finally:
        top.close()


def _scan(scan: _Scan, folder: _Folder, prefix: bytes) -> Iterator[SourceEntry]:
    if prefix.count(b"/") > DEPTH_MAX:
        raise TreeInvalidError(prefix, "lies too deep")
    names = sorted(os.listdir(folder.fd))  # noqa: PTH208 - an open folder
    joined = os.fsencode("/".join(names))
    is_plain = _are_plain(prefix, joined)
    for name, encoded in zip(names, joined.split(b"/"), strict=False):  # nothing has one part
        path = prefix + encoded
        try:
            if not is_plain:
                check_path(path)
            entry, child = _look(scan, folder, name, path)
        except TreeInvalidError as error:
            if scan.on_refused is None:
                raise
            scan.on_refused(error)
            continue
        if child is None:
            yield entry
            continue
        try:
            yield entry
            yield from _scan(scan, child, path + b"/")
        finally:
            child.close()


def _are_plain(prefix: bytes, joined: bytes) -> bool:
    """Say of all names in a folder, joined by `/`, that `check_path` would let them pass."""
    return (
        joined.isascii()
        and not _ODD.search(joined)
        and max(map(len, joined.split(b"/"))) <= NAME_BYTES_MAX
        and len(prefix) + NAME_BYTES_MAX <= PATH_BYTES_MAX
        and prefix.count(b"/") < DEPTH_MAX
    )


def _look(
    scan: _Scan, folder: _Folder, name: str, path: bytes
) -> tuple[SourceEntry, _Folder | None]:
    """Return an entry, and of a folder that it is, open."""
    try:
        status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        mode = status.st_mode
        if scan.owner_uid is not None and status.st_uid != scan.owner_uid:
            raise TreeInvalidError(path, "belongs to another user")
        if stat.S_ISREG(mode):
            if mode & _SET_ID:
                raise TreeInvalidError(path, "has a set-uid, set-gid or sticky bit")
            if scan.on_file is not None:
                scan.on_file(path, status)
            found = _Scanned(scan, folder, path, status)
            file = SourceFile(
                path, status.st_size, bool(mode & _EXECUTABLE), found, place=found.place
            )
            return file, None
        if stat.S_ISDIR(mode):
            return SourceDirectory(path), _Folder(os.open(name, DIRECTORY, dir_fd=folder.fd))
        if stat.S_ISLNK(mode):
            return SourceLink(path, os.fsencode(os.readlink(name, dir_fd=folder.fd))), None
    except OSError as error:
        raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error
    raise TreeInvalidError(path, "is neither a file, a directory nor a symbolic link")


class _Scanned:
    """A file as it was found: a call reads it later, and only as long as it is that very file,
    unchanged.
    """

    __slots__ = ("_folder", "_found", "_path", "_scan")

    def __init__(self, scan: _Scan, folder: _Folder, path: bytes, status: os.stat_result) -> None:
        self._scan = scan
        self._folder = folder
        self._path = path
        self._found = identity(status)

    def place(self) -> Place | None:
        if self._found[_MODE] & _EXECUTABLE:
            return None  # its attributes are to be seen, too
        top = self._scan.top
        return Place(top, top.fd, self._path, 0, facts_of(self._found))

    def __call__(self) -> bytes | Iterator[bytes]:
        size_bytes = self._found[_SIZE]
        if size_bytes > WHOLE_BYTES_MAX:
            return self._pieces()
        fd = self._open()
        try:
            # Whatever lies there by now gives so many bytes, without a wait, or an error.
            data = read_sized(fd, size_bytes)
            self._expect_same(fd)
            self._expect_plain(fd)
        except OSError as error:
            raise TreeInvalidError(self._path, f"cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        return data

    def _pieces(self) -> Iterator[bytes]:
        fd = self._open()  # no sooner than somebody reads, who closes it
        try:
            self._expect_same(fd)
            self._expect_plain(fd)
            while data := os.read(fd, WHOLE_BYTES_MAX):
                yield data
            self._expect_same(fd)
        finally:
            os.close(fd)

    def _open(self) -> int:
        path = self._path
        try:
            if self._folder.fd >= 0:
                return os.open(path[path.rfind(b"/") + 1 :], FILE, dir_fd=self._folder.fd)
            return _open_beneath(self._scan.root, path)  # asked for later
        except OSError as error:
            raise TreeInvalidError(path, f"cannot be read: {error.strerror}") from error

    def _expect_same(self, fd: int) -> None:
        if identity(os.fstat(fd)) != self._found:
            raise TreeInvalidError(self._path, "changed while it was read")

    def _expect_plain(self, fd: int) -> None:
        # Capabilities are what a program is started with: without an x bit they are no more.
        if self._found[_MODE] & _EXECUTABLE and _CAPABILITY in os.listxattr(fd):
            raise TreeInvalidError(self._path, "has capabilities")


def _open_beneath(root: Path, path: bytes) -> int:
    """Open a file without following a link anywhere below the root."""
    parent, _, name = path.rpartition(b"/")
    folder = descend(os.open(root, DIRECTORY & ~os.O_NOFOLLOW), parent)
    try:
        return os.open(name, FILE, dir_fd=folder)
    finally:
        os.close(folder)
