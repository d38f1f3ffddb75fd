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

from conftest import KEEP_NOTHING, Shop

from storage.collect import Collector, Order
from storage.errors import StorageError
from tests.storage.shop_child import work_on


def collect(shop: Shop) -> None:
    collector = Collector(shop.store, shop.records, KEEP_NOTHING)
    collector.run(Order(is_hurried=True, is_thorough=True))


def collect_and_close(shop: Shop) -> None:
    collect(shop)
    shop.records.close()


def ingest_and_collect(shop: Shop) -> None:
    shop.builds = iter([1000])
    with contextlib.suppress(StorageError):
        shop.ingest({"a/new": b"new", "a/shared": b"one" * 50})
    collect(shop)


if __name__ == "__main__":
    folder, *what = sys.argv[1:]
    sys.exit(work_on(folder, ingest_and_collect if what == ["ingest"] else collect_and_close))
