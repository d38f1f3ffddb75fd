"""A process that takes a folder in with a second process that reads, to be killed or failed at any
system call of its own.

Usage: helped_child.py SHOP. Takes `tree` in it. Exits 0 when the tree is in, 3 when the store said
why not. It closes nothing, as `ingest_child.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_shop

from storage import ingest, source_helper
from storage.errors import StorageError
from storage.scan import scan_directory


def main() -> int:
    ingest.HELPED_COUNT_MIN = ingest._CHUNK_COUNT = 4
    source_helper.IDLE_COUNT_MIN = -(1 << 20)
    try:
        shop = make_shop(Path(sys.argv[1]))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        shop.builds = iter([1000])
        shop.ingest(scan_directory(shop.folder / "tree", owner_uid=None))
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
