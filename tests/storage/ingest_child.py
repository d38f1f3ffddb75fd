"""A process that takes one tree in, to be killed or failed at any system call of it.

Usage: ingest_child.py SHOP [COUNT [BYTES]]. Exits 0 when the tree is in, 3 when the store said why
not. It closes nothing: whatever is durable was so when the store said that it is in.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_shop

from storage.errors import StorageError
from storage.source import SourceFile

TREE = {"a/page.html": b"two" * 50, "a/shared": b"one" * 50, "b/run": b"#!/bin/sh\n", "c": b"c"}


def main() -> int:
    # More of them than are synced one by one, when there are more.
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    size = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    more = {f"more/{n}": b"%d" % n + bytes(size) for n in range(count)}
    try:
        shop = make_shop(Path(sys.argv[1]))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        shop.builds = iter([1000])
        shop.ingest(
            SourceFile(name.encode(), len(data), name == "b/run", partial(bytes, data))
            for name, data in {**TREE, **more}.items()
        )
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
