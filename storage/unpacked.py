"""An unpacked tree: a folder that is held against its manifest, from the open folder down."""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH208

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from blake3 import blake3

from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.files import mapped_errors, read_sized
from storage.layout import blob_mode, blob_mtime
from storage.manifest import Entry, FileEntry, LinkEntry, Manifest

WHOLE_BYTES_MAX = 1 << 20  # larger files go through in pieces of this size
FOLDER_MODE = 0o755
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def verify_tree(root: Path, manifest: Manifest, *, reads: bool = True) -> None:
    """Hold a folder against a manifest: the exact set of names, kinds, modes, targets and bytes.

    Without `reads` the bytes are believed to be right in a file of the right size and time.

    Raises:
        ArtifactCorruptError: Something differs; `path` names it.
        ArtifactMissingError: There is no such folder.
        StorageIoError: The system refused.
    """
    with mapped_errors(f"verify {root}"):
        try:
            _expect_directory(b"", os.lstat(root))
            top = os.open(root, OPEN_FOLDER)
        except FileNotFoundError as error:
            raise ArtifactMissingError(f"there is no folder {root}") from error
        try:
            names = {b"": _names_in(top, b".")}
            for entry in manifest.entries:
                _verify_entry(top, entry, names, reads=reads)
        finally:
            os.close(top)
        for parent, rest in names.items():
            if rest:
                extra = min(rest)
                raise ArtifactCorruptError(
                    parent + b"/" + extra if parent else extra, "is not in the manifest"
                )


def verify_file(entry: FileEntry, root: int, *, reads: bool = True) -> None:
    """Hold one file below the open folder `root` against its entry. As `verify_tree`."""
    try:
        fd = os.open(entry.path, _OPEN_FILE, dir_fd=root)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT, errno.EACCES):
            raise ArtifactCorruptError(entry.path, f"cannot be read: {error.strerror}") from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactCorruptError(entry.path, "is not the file that the manifest says")
        if stat.S_IMODE(status.st_mode) != blob_mode(executable=entry.executable):
            raise ArtifactCorruptError(entry.path, "its mode is not what the manifest says")
        if status.st_size != entry.size_bytes:
            raise ArtifactCorruptError(entry.path, "its size is not what the manifest says")
        if reads:
            expect_read(fd, entry)
        elif int(status[stat.ST_MTIME]) != blob_mtime(entry.digest):
            raise ArtifactCorruptError(entry.path, "was written to, or its time was set")
    finally:
        os.close(fd)


def expect_read(fd: int, entry: FileEntry) -> None:
    """Read a file and hold it against its entry."""
    if entry.size_bytes <= WHOLE_BYTES_MAX:
        data = read_sized(fd, entry.size_bytes)
        expect_bytes(entry, Digest.of(data), len(data))
        return
    hasher = blake3()
    count = 0
    while count <= entry.size_bytes and (data := os.read(fd, WHOLE_BYTES_MAX)):
        hasher.update(data)
        count += len(data)
    expect_bytes(entry, hasher.digest(), count)


def expect_bytes(entry: FileEntry, digest: bytes, size_bytes: int) -> None:
    """Hold what was read against its entry.

    Raises:
        ArtifactCorruptError: It is something else.
    """
    if digest != entry.digest or size_bytes != entry.size_bytes:
        raise ArtifactCorruptError(entry.path, "its bytes are not what the manifest says")


def _verify_entry(root: int, entry: Entry, names: dict[bytes, set[bytes]], *, reads: bool) -> None:
    parent, _, name = entry.path.rpartition(b"/")
    if name not in names[parent]:
        raise ArtifactCorruptError(entry.path, "is missing")
    names[parent].discard(name)
    if isinstance(entry, FileEntry):
        verify_file(entry, root, reads=reads)
        return
    status = os.stat(entry.path, dir_fd=root, follow_symlinks=False)
    if isinstance(entry, LinkEntry):
        if not stat.S_ISLNK(status.st_mode) or os.readlink(entry.path, dir_fd=root) != entry.target:
            raise ArtifactCorruptError(entry.path, "is not the link that the manifest says")
        return
    _expect_directory(entry.path, status)
    names[entry.path] = _names_in(root, entry.path)


def _names_in(root: int, path: bytes) -> set[bytes]:
    folder = os.open(path, OPEN_FOLDER, dir_fd=root)
    try:
        return set(map(os.fsencode, os.listdir(folder)))
    finally:
        os.close(folder)


def _expect_directory(path: bytes, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) != FOLDER_MODE:
        raise ArtifactCorruptError(path, "is not the folder that the manifest says")
