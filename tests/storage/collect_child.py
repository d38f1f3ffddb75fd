"""A process that collects, to be killed or failed at any system call of it.

Usage: collect_child.py SHOP [ingest]. Keeps what is pinned. With `ingest` it takes a tree in first,
whatever comes of that, and ends without a close, as in a crash. Exits 0 when it has collected, 3
when the store said why not.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import KEEP_NOTHING, make_shop

from storage.collect import Collector, Order
from storage.errors import StorageError


def main() -> int:
    try:
        shop = make_shop(Path(sys.argv[1]))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    takes_in = sys.argv[2:] == ["ingest"]
    try:
        if takes_in:
            shop.builds = iter([1000])
            with contextlib.suppress(StorageError):
                shop.ingest({"a/new": b"new", "a/shared": b"one" * 50})
        collector = Collector(shop.store, shop.records, KEEP_NOTHING)
        collector.run(Order(is_hurried=True, is_thorough=True))
        if not takes_in:
            shop.records.close()
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
