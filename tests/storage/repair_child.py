"""A process that repairs a store, to be killed or failed at any system call of it.

Usage: repair_child.py SHOP [index]. Takes copies from the folder `copy` in it; with `index` it
makes the index again instead. Exits 0 when it is through, 3 when the store said why not. It closes
nothing, as `ingest_child.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop

from storage.check import check_store
from storage.copies import anything_at, twins
from storage.reindex import rebuild_index
from storage.repair import Repairer
from tests.storage.shop_child import leave, work_on


def repair(shop: Shop) -> None:
    repairer = Repairer(shop.store, shop.records)
    found = check_store(shop.store.layout.root, shop.records).findings
    repairer.condemn([finding.part for finding in found if finding.part is not None])
    repairer.mend([twins(shop.store.layout), anything_at(shop.folder / "copy")])


def make_index(shop: Shop) -> None:
    rebuild_index(shop.store, shop.records)


if __name__ == "__main__":
    folder, *what = sys.argv[1:]
    leave(work_on(folder, make_index if what == ["index"] else repair))
