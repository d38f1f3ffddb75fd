"""A process that repairs a store, to be killed or failed at any system call of it.

Usage: repair_child.py SHOP [index]. Takes copies from the folder `copy` in it; with `index` it
makes the index again instead. Exits 0 when it is through, 3 when the store said why not. It closes
nothing, as `ingest_child.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop, make_shop

from storage.check import check_store
from storage.copies import anything_at, twins
from storage.errors import StorageError
from storage.reindex import rebuild_index
from storage.repair import Repairer


def repair(shop: Shop) -> None:
    repairer = Repairer(shop.store, shop.records)
    found = check_store(shop.store.layout.root, shop.records).findings
    repairer.condemn([finding.part for finding in found if finding.part is not None])
    repairer.mend([twins(shop.store.layout), anything_at(shop.folder / "copy")])


def main() -> int:
    try:
        shop = make_shop(Path(sys.argv[1]))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        if sys.argv[2:] == ["index"]:
            rebuild_index(shop.store, shop.records)
        else:
            repair(shop)
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
