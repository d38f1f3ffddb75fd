"""A process that takes a folder in with a second process that reads, to be killed or failed at any
system call of its own.

Usage: helped_child.py SHOP. Takes `tree` in it. Exits 0 when the tree is in, 3 when the store said
why not. It closes nothing, as `ingest_child.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop

from storage import ingest, source_helper
from storage.scan import scan_directory
from tests.storage.shop_child import leave, work_on


def ingest_helped(shop: Shop) -> None:
    shop.builds = iter([1000])
    shop.ingest(scan_directory(shop.folder / "tree", owner_uid=None))


if __name__ == "__main__":
    ingest.HELPED_COUNT_MIN = ingest._CHUNK_COUNT = 4
    source_helper.IDLE_COUNT_MIN = -(1 << 20)
    leave(work_on(sys.argv[1], ingest_helped))
