"""`packed-refs`: many refs in one file, replaced whole.

As git does it: `packed-refs.lock` is held, `packed-refs.new` is written, synced and renamed.
Source: gitrepository-layout(5); git's refs/packed-backend.c.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from storage.files import sync_directory
from storage.git.errors import RefNotDurableError, RepositoryCorruptError
from storage.git.locks import create_lock, wait_for_lock
from storage.git.repository import Repository

LOCK_TIMEOUT_S = 1.0  # git's core.packedRefsTimeout
HEADER = b"# pack-refs with: peeled fully-peeled sorted \n"


@contextlib.contextmanager
def packed_refs_locked(root: bytes) -> Iterator[None]:
    """Hold the lock of `packed-refs` in the git directory `root` (with a slash at its end).

    Raises:
        FileExistsError: Somebody else has held it for too long.
    """
    lock = root + b"packed-refs.lock"
    wait_for_lock(lock, LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(lock)  # noqa: PTH108


def replace_packed_refs(
    repository: Repository, values: dict[bytes, bytes], peeled: dict[bytes, bytes]
) -> None:
    """Write the file anew. Durable when it returns; the caller holds its lock.

    `peeled`: what annotated tags name in the end, as far as that is known.

    Raises:
        OSError: The file is as it was.
        RefNotDurableError: It is the new one, and after a power cut perhaps the old one.
    """
    root = os.fsencode(repository.path) + b"/"
    new = root + b"packed-refs.new"
    try:
        with open(new, "wb") as file:  # noqa: PTH123
            file.write(written(repository, values, peeled))
            file.flush()
            os.fsync(file.fileno())
        repository.sharing.apply(new)
        os.rename(new, root + b"packed-refs")  # noqa: PTH104
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)  # noqa: PTH108
        raise
    try:
        sync_directory(os.fsdecode(root))
    except OSError as error:
        raise RefNotDurableError(f"cannot sync packed-refs: {error.strerror}") from error


def written(
    repository: Repository, values: dict[bytes, bytes], peeled: dict[bytes, bytes]
) -> bytes:
    """Return the file's content for some refs; `peeled` as in `replace_packed_refs`."""
    known = repository.refs.snapshot().unpeelable
    lines = [HEADER]
    for name in sorted(values):
        oid = values[name]
        lines.append(b"%s %s\n" % (oid.hex().encode(), name))
        target = peeled.get(oid)
        if target is None and oid not in known:
            with contextlib.suppress(RepositoryCorruptError):
                target = repository.objects.links.peel(oid)[1]
        if target is not None and target != oid:
            lines.append(b"^%s\n" % target.hex().encode())
    return b"".join(lines)


def pack_loose_refs(repository: Repository) -> int:
    """Move loose refs into `packed-refs`; return how many. What changes meanwhile stays loose."""
    root = os.fsencode(repository.path) + b"/"
    try:
        with packed_refs_locked(root):
            values, peeled = repository.refs.packed()
            loose = repository.refs.loose_values()
            replace_packed_refs(repository, {**values, **loose}, peeled)
    except FileExistsError:
        return 0
    return prune_loose_refs(repository, loose)


def prune_loose_refs(repository: Repository, packed: Mapping[bytes, bytes]) -> int:
    """Remove the files of refs that were packed with these values; return how many went.

    One that was deleted since and made again as it was is in `packed-refs` no more: its file stays.
    """
    root = os.fsencode(repository.path) + b"/"
    moved = 0
    for name, oid in packed.items():
        lock = root + name + b".lock"
        try:
            create_lock(lock)
        except OSError:
            continue  # somebody is at it
        try:
            refs = repository.refs
            if refs.loose_value(name) == oid and refs.packed_value(name) == oid:
                os.unlink(root + name)  # noqa: PTH108
                moved += 1
        finally:
            os.unlink(lock)  # noqa: PTH108
    return moved
