"""Holding: whoever reads trees says which, so that the collector leaves them alone meanwhile.

A hold is a lease of the store with a list of digests in it. It ends with its owner.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from storage.digest import Digest
from storage.errors import DigestInvalidError
from storage.files import Lease, read_bounded, write_all
from storage.layout import Layout

READS_NAME = "reads"  # in a lease: the digests of the trees that its owner reads, a line each
_READS_BYTES_MAX = 256 << 20


def hold_trees(layout: Layout, digests: Iterable[Digest]) -> Lease:
    """Hold some trees until the lease is released: what they refer to stays, whatever rows say.

    The caller keeps the collector from deciding meanwhile, by the gate or by the collector's own
    lock, and looks only then whether they are there.

    Raises:
        OSError: The system refused.
    """
    lease = Lease.take(layout.tmp)
    try:
        path = f"{lease.path}/{READS_NAME}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, b"".join(f"{digest}\n".encode() for digest in digests))
        finally:
            os.close(fd)
    except BaseException:
        lease.release()
        raise
    return lease


def held_trees(layout: Layout) -> set[Digest]:
    """Return the trees that somebody holds. For the collector, alone behind the gate."""
    found: set[Digest] = set()
    for name in os.listdir(layout.tmp):  # noqa: PTH208 - plain names are wanted
        # A half written one is a dead reader's.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, DigestInvalidError):
            path = f"{layout.tmp}/{name}/{READS_NAME}"
            lines = read_bounded(path, size_bytes_max=_READS_BYTES_MAX).decode().splitlines()
            found.update(map(Digest.parse, lines))
    return found
