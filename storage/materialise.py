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
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from storage.blob_reading import facts_of, has_bytes
from storage.digest import Digest
from storage.files import (
    SYNC_EACH_COUNT_MAX,
    mapped_errors,
    read_sized,
    sync_directory,
    sync_filesystem,
    write_all,
)
from storage.layout import Layout, blob_mode, blob_mtime
from storage.long_write import LONG_BYTES_MIN, WINDOW_BYTES, LongWrite
from storage.manifest import DirectoryEntry, Entry, FileEntry, Manifest
from storage.stored_blobs import open_blob, reading_blobs
from storage.unpacked import FOLDER_MODE, OPEN_FOLDER, WHOLE_BYTES_MAX, expect_bytes

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

    `beside`: a folder that was unpacked before, by the same user; nothing is taken from it when it
    has to survive a power cut, since nobody knows whether that one would. A file that it has under
    the same path is linked instead of copied, after it was read and found to be what it must be,
    and its blob in the store as well.

    Files are 0444 or 0555 and bear `blob_mtime`; folders are 0755. Until it is complete the
    folder is named `.<name>.partial-<hex>` beside `dest` and only its owner can enter; a crash
    leaves such a folder.

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
                if durable:
                    _unpack_durably(layout, manifest.entries, root, partial)
                else:
                    unpack_entries(layout, manifest.entries, root, beside=beside)
                    os.fchmod(root, FOLDER_MODE)
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
    layout: Layout, entries: Collection[Entry], root: int, *, beside: Path | None = None
) -> None:
    """Unpack entries into the open folder `root`, each verified. `beside`: as for `materialise`,
    when it is not durable.
    """
    with _opened(beside) as previous:
        if previous is None:
            for entry in entries:
                _unpack(layout, entry, root)
            return
        with reading_blobs(layout, entries) as blobs:
            linked = list(_linked(layout, entries, root, previous))
            blobs.begin(linked)
            for entry in _differing(linked, root):
                os.unlink(entry.path, dir_fd=root)
                _copy(layout, entry, root)
            blobs.verify()


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


def _unpack(
    layout: Layout, entry: Entry, root: int, *, done: Callable[[int], None] = os.close
) -> None:
    if isinstance(entry, FileEntry):
        _copy(layout, entry, root, done=done)
    elif isinstance(entry, DirectoryEntry):
        os.mkdir(entry.path, dir_fd=root)
        os.chmod(entry.path, FOLDER_MODE, dir_fd=root)
    else:
        os.symlink(entry.target, entry.path, dir_fd=root)


def _linked(
    layout: Layout, entries: Iterable[Entry], root: int, previous: int
) -> Iterator[FileEntry]:
    """Unpack everything; yield what was linked: neither it nor its blob was read."""
    for entry in entries:
        if isinstance(entry, FileEntry) and _link(entry, previous, root):
            yield entry
        else:
            _unpack(layout, entry, root)


def _link(entry: FileEntry, previous: int, root: int) -> bool:
    """Link whatever an earlier folder has in a file's place; say whether that was possible."""
    if not entry.size_bytes:
        return False
    try:
        os.link(entry.path, entry.path, src_dir_fd=previous, dst_dir_fd=root, follow_symlinks=False)
    except OSError:  # not there, not ours to link, too many links: it is copied then
        return False
    return True


def _differing(linked: Iterable[FileEntry], root: int) -> Iterator[FileEntry]:
    """Read what was linked, by its new name: so what is read is what was linked."""
    uid = os.geteuid()
    for entry in linked:
        facts = facts_of(entry.executable, uid, entry.size_bytes, entry.digest)
        if not has_bytes(root, entry.path, facts, entry.digest):
            yield entry


def _copy(
    layout: Layout, entry: FileEntry, root: int, *, done: Callable[[int], None] = os.close
) -> None:
    """Copy a file. `done`: takes it over, open, and closes it in time."""
    source = open_blob(layout, entry)
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
        except BaseException:
            os.close(target)
            raise
        done(target)
    finally:
        os.close(source)


def _copy_large(source: int, target: int, entry: FileEntry) -> None:
    hasher = blake3()
    contents = LongWrite(target, entry.size_bytes)
    count = dropped = 0
    while count <= entry.size_bytes and (data := os.read(source, WHOLE_BYTES_MAX)):
        hasher.update(data)
        count += len(data)
        contents.write(data)
        if entry.size_bytes >= LONG_BYTES_MIN and count - dropped >= WINDOW_BYTES:
            # Nobody else reads the store's copy. From its beginning: half a folio is never dropped.
            os.posix_fadvise(source, 0, count, os.POSIX_FADV_DONTNEED)
            dropped = count
    expect_bytes(entry, hasher.digest(), count)


def _unpack_durably(layout: Layout, entries: Collection[Entry], root: int, partial: str) -> None:
    """Unpack entries into the open folder `root`, which lies at `partial`, and sync them.

    A few files stay open until then, as in `storage.files.Unsynced`. `root` was opened before the
    first of many, and is told what went wrong with them.
    """
    are_few = len(entries) <= SYNC_EACH_COUNT_MAX
    with contextlib.ExitStack() as closing:
        files: list[int] = []

        def keep(fd: int) -> None:
            closing.callback(os.close, fd)
            files.append(fd)

        for entry in entries:
            _unpack(layout, entry, root, done=keep if are_few else os.close)
        os.fchmod(root, FOLDER_MODE)
        if not are_few:
            sync_filesystem(root)
            return
        for fd in files:
            os.fsync(fd)
        for entry in entries:
            if isinstance(entry, DirectoryEntry):
                sync_directory(f"{partial}/{os.fsdecode(entry.path)}")
        os.fsync(root)
