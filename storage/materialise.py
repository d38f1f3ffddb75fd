"""Materialising: a stored tree becomes a folder.

Files are copied, never linked: the folder's owner is not the store's, and whoever could write to
a linked file would write to the store. Each byte is hashed on its way.
"""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH102, PTH104

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from storage.blob_reading import suspects
from storage.blobs import BlobKey, entry_key
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
from storage.manifest import DirectoryEntry, Entry, FileEntry, Manifest
from storage.unpacked import (
    FOLDER_MODE,
    OPEN_FOLDER,
    WHOLE_BYTES_MAX,
    expect_bytes,
    expect_read,
    verify_file,
)

SYNC_EACH_COUNT_MAX = 16  # with more entries one sync of the filesystem is cheaper
PARTIAL_MARK = ".partial-"
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
                unpack_entries(layout, manifest.entries, root, beside=beside)
                os.fchmod(root, FOLDER_MODE)
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


def unpack_entries(
    layout: Layout, entries: Iterable[Entry], root: int, *, beside: Path | None = None
) -> None:
    """Unpack entries into the open folder `root`, each verified. `beside`: as for `materialise`."""
    with _opened(beside) as previous:
        linked = list(_unpacked(layout, entries, root, previous))
    _verify_blobs(layout, linked)


def verify_blobs(layout: Layout, manifest: Manifest) -> None:
    """Hold the blobs of a tree, as the store has them, against its manifest.

    Raises:
        ArtifactMissingError: A blob is not in the store.
        ArtifactCorruptError: A blob is not what the manifest says; `path` names the entry.
        StorageIoError: The system refused.
    """
    with mapped_errors("verify the blobs of a tree"):
        _verify_blobs(layout, (e for e in manifest.entries if isinstance(e, FileEntry)))


def remove_partials(folder: Path) -> int:
    """Remove what unpackings that were cut short left in `folder`; return how many."""
    partials = [path for path in folder.iterdir() if PARTIAL_MARK in path.name]
    for path in partials:
        shutil.rmtree(path, ignore_errors=True)
    return len(partials)


# -- unpacking -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folder: Path | None) -> Iterator[int | None]:
    """Open a folder to take files from; None where there is none: all is copied then."""
    try:
        fd = None if folder is None else os.open(folder, OPEN_FOLDER)
    except OSError:
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _unpacked(
    layout: Layout, entries: Iterable[Entry], root: int, previous: int | None
) -> Iterator[FileEntry]:
    """Unpack everything; yield what was linked: its blob was not read."""
    for entry in entries:
        if isinstance(entry, FileEntry):
            if previous is not None and _link(entry, previous, root):
                yield entry
            else:
                _copy(layout, entry, root)
        elif isinstance(entry, DirectoryEntry):
            os.mkdir(entry.path, dir_fd=root)
            os.chmod(entry.path, FOLDER_MODE, dir_fd=root)
        else:
            os.symlink(entry.target, entry.path, dir_fd=root)


def _link(entry: FileEntry, previous: int, root: int) -> bool:
    """Link the file that an earlier folder has, and say whether it is what `entry` wants.

    What is linked is what was read: the name is checked, then its inode.
    """
    try:
        status = os.stat(entry.path, dir_fd=previous, follow_symlinks=False)
        wanted = (entry.size_bytes, blob_mtime(entry.digest))
        if not entry.size_bytes or (status.st_size, int(status[stat.ST_MTIME])) != wanted:
            return False
        os.link(entry.path, entry.path, src_dir_fd=previous, dst_dir_fd=root, follow_symlinks=False)
    except OSError:  # not there, not ours to link, too many links: it is copied then
        return False
    try:
        verify_file(entry, root)
    except (ArtifactCorruptError, OSError):
        os.unlink(entry.path, dir_fd=root)
        return False
    return True


def _copy(layout: Layout, entry: FileEntry, root: int) -> None:
    source = _open_blob(layout, entry)
    try:
        target = os.open(entry.path, _CREATE, 0o600, dir_fd=root)
        try:
            if entry.size_bytes <= WHOLE_BYTES_MAX:
                data = read_sized(source, entry.size_bytes)
                expect_bytes(entry, Digest.of(data), len(data))
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


def _verify_blobs(layout: Layout, entries: Iterable[FileEntry]) -> None:
    """Read the blobs of files, each once, shard by shard; judge those that do not look right."""
    wanted = {entry_key(entry): entry for entry in entries}
    sizes = ((key, entry.size_bytes) for key, entry in wanted.items())
    for key in suspects(layout, sizes, reads=True):
        entry = wanted[BlobKey(key)]
        source = _open_blob(layout, entry)
        try:
            expect_read(source, entry)
        finally:
            os.close(source)


def _copy_large(source: int, target: int, entry: FileEntry) -> None:
    hasher = blake3()
    count = 0
    while count <= entry.size_bytes and (data := os.read(source, WHOLE_BYTES_MAX)):
        hasher.update(data)
        count += len(data)
        write_all(target, data)
    expect_bytes(entry, hasher.digest(), count)


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
