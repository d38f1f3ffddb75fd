"""A process that takes one tree in, to be killed or failed at any system call of it.

Usage: ingest_child.py SHOP [COUNT [BYTES [PIECE_BYTES]]]. Exits 0 when the tree is in, 3 when the
store said why not. It closes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop

from storage.source import SourceFile
from tests.storage.shop_child import leave, work_on

TREE = {"a/page.html": b"two" * 50, "a/shared": b"one" * 50, "b/run": b"#!/bin/sh\n", "c": b"c"}


def ingest(shop: Shop, count: int = 0, size_bytes: int = 0, piece_bytes: int = 0) -> None:
    """`count`: of more files than these, each of some more bytes than `size_bytes`.

    `piece_bytes`: how long the pieces are that files come in which are longer; 0 for whole ones.
    """
    more = {f"more/{n}": b"%d" % n + bytes(size_bytes) for n in range(count)}
    shop.builds = iter([1000])
    shop.ingest(
        SourceFile(name.encode(), len(data), name == "b/run", reading(data, piece_bytes))
        for name, data in {**TREE, **more}.items()
    )


def reading(data: bytes, piece_bytes: int) -> Callable[[], bytes | Iterator[bytes]]:
    if not 0 < piece_bytes < len(data):
        return partial(bytes, data)
    return lambda: (data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes))


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    leave(work_on(folder, lambda shop: ingest(shop, *map(int, numbers))))
