"""What a disk refuses of a restore when it is synced, though it took it when it was written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.power import KINDS, needs_disks
from tests.storage.backup.test_crash import CHILD, expect_whole
from tests.thin_disk import thin_disk

SPARE_BYTES = 20 << 20

pytestmark = [*needs_disks, pytest.mark.timeout(300)]


def restore(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CHILD, folder, "restore"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_restore_that_goes_on_believes_nothing_that_the_disk_refused_before(
    make_small, tmp_path: Path, kind: str
) -> None:
    small = make_small(tmp_path / "small")
    small.ingest({f"{n}": b"%d" % n + bytes(1 << 20) for n in range(30)}, "build_2")
    small.back_up(with_keys=True)
    small.close()
    with thin_disk(kind) as disk:
        (disk.where / "new").mkdir()
        (tmp_path / "small" / "new").symlink_to(disk.where / "new")
        disk.shrink(SPARE_BYTES)
        done = restore(tmp_path / "small")
        assert done.returncode == 3, done.stdout + done.stderr
        assert done.stdout.startswith(("StorageFullError", "StorageIoError")), done.stdout
        disk.grow()
        # XFS goes on; ext4 and btrfs take nothing more before they are mounted again.
        again = restore(tmp_path / "small")
        assert (again.returncode == 0) == (kind == "xfs"), again.stdout + again.stderr
        disk.mount_again()
        if again.returncode:
            assert restore(tmp_path / "small").returncode == 0
            disk.mount_again()
        expect_whole(disk.where / "new")
