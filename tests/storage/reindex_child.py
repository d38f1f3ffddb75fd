"""A process that makes the index of a store again, to be killed or failed at any system call of it.

Usage: reindex_child.py SHOP. Exits 0 when it is through, 3 when the store said why not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_shop

from storage.errors import StorageError
from storage.reindex import rebuild_index


def main() -> int:
    try:
        shop = make_shop(Path(sys.argv[1]))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        rebuild_index(shop.store, shop.records)
        shop.records.close()
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
