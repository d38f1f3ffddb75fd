"""What a disk refuses of a tree when it is synced, though it took it when it was written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.check import check_store
from tests.power import KINDS, OF_THE_STORE, needs_disks
from tests.storage.trees import INGEST_CHILD, LARGE, LONG, Tree
from tests.thin_disk import thin_disk
from tests.warm import run_warm

SPARE_BYTES = 20 << 20
LAST = Tree("last", 30, 1 << 20)  # all of it is synced at its end; of a large one most is before

pytestmark = [*needs_disks, pytest.mark.timeout(300)]


def ingest(shop: Path, tree: Tree) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, INGEST_CHILD, *tree.words(shop)]
    return run_warm(OF_THE_STORE, command, env=os.environ)


def envelopes(shop) -> int:
    shop.store.recover()
    report = check_store(shop.folder / "store", shop.records)
    assert (report.problems, report.leftovers) == ((), ())
    shop.records.close()
    return report.envelopes


@pytest.mark.parametrize("tree", [LARGE, LAST, LONG], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tree_that_the_disk_refuses_when_it_is_synced_is_never_acknowledged(
    shop_at, kind: str, tree: Tree
) -> None:
    with thin_disk(kind) as disk:
        shop = shop_at(disk.where / "shop")
        shop.ingest({"f": b"before"})
        shop.records.close()
        disk.shrink(SPARE_BYTES)
        done = ingest(shop.folder, tree)
        assert done.returncode == 3, done.stdout + done.stderr
        assert done.stdout.startswith(("StorageFullError", "StorageIoError")), done.stdout
        disk.grow()
        disk.mount_again()
        assert envelopes(shop_at(shop.folder)) == 1
        assert ingest(shop.folder, tree).returncode == 0
        disk.mount_again()
        assert envelopes(shop_at(shop.folder)) == 2
