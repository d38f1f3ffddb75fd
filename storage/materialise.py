"""Materialising: a stored tree becomes a folder, and a folder is held against its manifest.

Files are copied, never linked: the folder's owner is not the store's, and whoever could write to
a linked file would write to the store. Each byte is hashed on its way.
"""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH115, PTH208, PTH211

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path

from blake3 import blake3

from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.files import (
    mapped_errors,
    open_regular,
    read_sized,
    sync_directory,
    sync_file,
    sync_filesystem,
    write_all,
)
from storage.layout import Layout, blob_mode, blob_mtime
from storage.manifest import DirectoryEntry, Entry, FileEntry, LinkEntry, Manifest

WHOLE_BYTES_MAX = 1 << 20  # larger files go through in pieces of this size
SYNC_EACH_COUNT_MAX = 16  # with more entries one sync of the filesystem is cheaper
PARTIAL_MARK = ".partial-"
_DIRECTORY_MODE = 0o755
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def materialise(
    layout: Layout,
    manifest: Manifest,
    dest: Path,
    *,
    durable: bool = True,
    beside: Path | None = None,
) -> None:
    """Unpack a tree as the new folder `dest`: whole and verified, or not at all.

    It survives the end of this process. `durable`: it survives a power cut too; without that, a
    folder that was there before the machine went down is held against its manifest
    (`verify_tree`) before it is used, and unpacked anew when it does not hold.

    `beside`: a folder that was unpacked before, by the same user. A file that it has under the
    same path is linked instead of copied, after it was read and found to be what it must be, and
    its blob in the store as well.

    Files are 0444 or 0555 and bear `blob_mtime`; folders are 0755. Until it is complete the
    folder is named `.<name>.partial-<hex>` beside `dest` and only its owner can enter; a crash
    leaves such a folder, for `remove_partials`.

    Raises:
        ArtifactMissingError: A blob is not in the store.
        ArtifactCorruptError: A blob is not what the manifest says; `path` names the entry.
        StorageFullError: No room.
        StorageIoError: The system refused; `dest` exists; two names are one to this filesystem.
    """
    partial = f"{dest.parent}/.{dest.name}{PARTIAL_MARK}{secrets.token_hex(4)}"
    with mapped_errors(f"unpack into {dest}"):
        if os.path.lexists(dest):
            raise FileExistsError(errno.EEXIST, "there is something already", str(dest))
        os.mkdir(partial, 0o700)
        try:
            root = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                previous = None if beside is None else os.fsencode(beside)
                for entry in manifest.entries:
                    _unpack(layout, entry, partial, previous)
                os.fchmod(root, _DIRECTORY_MODE)
                if durable:
                    _sync(root, partial, manifest)
            finally:
                os.close(root)
            os.rename(partial, dest)
            partial = str(dest)
            if durable:
                sync_directory(dest.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def verify_blobs(layout: Layout, manifest: Manifest) -> None:
    """Hold the blobs of a tree, as the store has them, against its manifest.

    Raises:
        ArtifactMissingError: A blob is not in the store.
        ArtifactCorruptError: A blob is not what the manifest says; `path` names the entry.
        StorageIoError: The system refused.
    """
    files = {(e.digest, e.executable): e for e in manifest.entries if isinstance(e, FileEntry)}
    with mapped_errors("verify the blobs of a tree"):
        for entry in files.values():
            _verify_blob(layout, entry)


def remove_partials(folder: Path) -> int:
    """Remove what unpackings that were cut short left in `folder`; return how many."""
    partials = [path for path in folder.iterdir() if PARTIAL_MARK in path.name]
    for path in partials:
        shutil.rmtree(path, ignore_errors=True)
    return len(partials)


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
            status = os.lstat(root)
        except FileNotFoundError as error:
            raise ArtifactMissingError(f"there is no folder {root}") from error
        _expect_directory(b"", status)
        top = os.fsencode(root)
        names = {b"": set(os.listdir(top))}
        for entry in manifest.entries:
            _verify_entry(top, entry, names, reads=reads)
        for parent, rest in names.items():
            if rest:
                extra = min(rest)
                raise ArtifactCorruptError(
                    parent + b"/" + extra if parent else extra, "is not in the manifest"
                )


# -- unpacking -----------------------------------------------------------------------------------


def _unpack(layout: Layout, entry: Entry, partial: str, previous: bytes | None) -> None:
    path = os.fsencode(partial) + b"/" + entry.path
    if isinstance(entry, FileEntry):
        if previous is not None and _link(entry, previous + b"/" + entry.path, path):
            _verify_blob(layout, entry)
        else:
            _copy(layout, entry, path)
    elif isinstance(entry, DirectoryEntry):
        os.mkdir(path)
        os.chmod(path, _DIRECTORY_MODE)
    else:
        os.symlink(entry.target, path)


def _link(entry: FileEntry, source: bytes, path: bytes) -> bool:
    """Link the file that an earlier folder has, and say whether it is what `entry` wants.

    What is linked is what was read: the name is checked, then its inode.
    """
    try:
        status = os.lstat(source)
        wanted = (entry.size_bytes, blob_mtime(entry.digest))
        if not entry.size_bytes or (status.st_size, int(status.st_mtime)) != wanted:
            return False
        os.link(source, path, follow_symlinks=False)
    except OSError:  # not there, not ours to link, too many links: it is copied then
        return False
    try:
        _verify_file(path, entry)
    except (ArtifactCorruptError, OSError):
        os.unlink(path)
        return False
    return True


def _copy(layout: Layout, entry: FileEntry, path: bytes) -> None:
    source = _open_blob(layout, entry)
    try:
        target = os.open(path, _CREATE, 0o600)
        try:
            if entry.size_bytes <= WHOLE_BYTES_MAX:
                data = read_sized(source, entry.size_bytes)
                _expect_bytes(entry, Digest.of(data), len(data))
                write_all(target, data)
            else:
                _copy_large(source, target, entry)
            os.fchmod(target, blob_mode(executable=entry.executable))
            mtime = blob_mtime(entry.digest)
            os.utime(target, (mtime, mtime))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _verify_blob(layout: Layout, entry: FileEntry) -> None:
    source = _open_blob(layout, entry)
    try:
        _expect_read(source, entry)
    finally:
        os.close(source)


def _copy_large(source: int, target: int, entry: FileEntry) -> None:
    hasher = blake3()
    count = 0
    while count <= entry.size_bytes and (data := os.read(source, WHOLE_BYTES_MAX)):
        hasher.update(data)
        count += len(data)
        write_all(target, data)
    _expect_bytes(entry, hasher.digest(), count)


def _open_blob(layout: Layout, entry: FileEntry) -> int:
    path = layout.blob(entry.digest, executable=entry.executable)
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise ArtifactMissingError(
            f"{os.fsdecode(entry.path)!r}: its blob {entry.digest} is not in the store"
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL):
            raise ArtifactCorruptError(entry.path, "its blob is no regular file") from error
        raise


def _expect_read(fd: int, entry: FileEntry) -> None:
    """Read a file and hold it against its entry."""
    if entry.size_bytes <= WHOLE_BYTES_MAX:
        data = read_sized(fd, entry.size_bytes)
        _expect_bytes(entry, Digest.of(data), len(data))
        return
    hasher = blake3()
    count = 0
    while count <= entry.size_bytes and (data := os.read(fd, WHOLE_BYTES_MAX)):
        hasher.update(data)
        count += len(data)
    _expect_bytes(entry, hasher.digest(), count)


def _expect_bytes(entry: FileEntry, digest: bytes, size_bytes: int) -> None:
    if digest != entry.digest or size_bytes != entry.size_bytes:
        raise ArtifactCorruptError(entry.path, "its bytes are not what the manifest says")


def _sync(root: int, partial: str, manifest: Manifest) -> None:
    if len(manifest.entries) > SYNC_EACH_COUNT_MAX:
        sync_filesystem(root)
        return
    for entry in manifest.entries:
        if isinstance(entry, FileEntry):
            sync_file(f"{partial}/{os.fsdecode(entry.path)}")
        elif isinstance(entry, DirectoryEntry):
            sync_directory(f"{partial}/{os.fsdecode(entry.path)}")
    os.fsync(root)


# -- verifying -----------------------------------------------------------------------------------


def _verify_entry(top: bytes, entry: Entry, names: dict[bytes, set[bytes]], *, reads: bool) -> None:
    parent, _, name = entry.path.rpartition(b"/")
    path = top + b"/" + entry.path
    if name not in names[parent]:
        raise ArtifactCorruptError(entry.path, "is missing")
    names[parent].discard(name)
    if isinstance(entry, FileEntry):
        _verify_file(path, entry, reads=reads)
        return
    status = os.lstat(path)
    if isinstance(entry, LinkEntry):
        if not stat.S_ISLNK(status.st_mode) or os.readlink(path) != entry.target:
            raise ArtifactCorruptError(entry.path, "is not the link that the manifest says")
        return
    _expect_directory(entry.path, status)
    names[entry.path] = set(os.listdir(path))


def _verify_file(path: bytes, entry: FileEntry, *, reads: bool = True) -> None:
    try:
        fd = open_regular(os.fsdecode(path))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENOENT, errno.EACCES):
            raise ArtifactCorruptError(entry.path, f"cannot be read: {error.strerror}") from error
        raise
    try:
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != blob_mode(executable=entry.executable):
            raise ArtifactCorruptError(entry.path, "its mode is not what the manifest says")
        if status.st_size != entry.size_bytes:
            raise ArtifactCorruptError(entry.path, "its size is not what the manifest says")
        if reads:
            _expect_read(fd, entry)
        elif int(status.st_mtime) != blob_mtime(entry.digest):
            raise ArtifactCorruptError(entry.path, "was written to, or its time was set")
    finally:
        os.close(fd)


def _expect_directory(path: bytes, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) != _DIRECTORY_MODE:
        raise ArtifactCorruptError(path, "is not the folder that the manifest says")
