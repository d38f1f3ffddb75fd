"""What a disk refuses of a backup or a restore when it is synced, though it took it before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.backup.destination import Destination
from storage.backup.verify import verify
from tests.power import KINDS, OF_THE_STORE, needs_disks
from tests.storage.backup.test_crash import CHILD, expect_whole
from tests.thin_disk import ThinDisk, thin_disk
from tests.warm import run_warm

SPARE_BYTES = 20 << 20

pytestmark = [*needs_disks, pytest.mark.timeout(300)]


def run(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    return run_warm(OF_THE_STORE, [sys.executable, CHILD, folder, what], env=os.environ)


def expect_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith(("StorageFullError", "StorageIoError")), done.stdout


def make_large(make_small, folder: Path):
    small = make_small(folder)
    small.ingest({f"{n}": b"%d" % n + bytes(1 << 20) for n in range(30)}, "build_2")
    return small


@pytest.mark.parametrize("kind", KINDS)
def test_backup_counts_on_nothing_that_the_disk_refused_of_one_before(
    make_small, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "small"
    make_large(make_small, folder).close()
    with thin_disk(kind) as disk:
        (disk.where / "backups").mkdir()
        (folder / "backups").symlink_to(disk.where / "backups")
        disk.shrink(SPARE_BYTES)
        expect_refused(run(folder, "take"))
        disk.grow()
        go_on(disk, folder, "take")
        (found,) = verify(Destination(folder / "backups"), is_deep=True)
        assert found.faults == ()


@pytest.mark.parametrize("kind", KINDS)
def test_restore_that_goes_on_believes_nothing_that_the_disk_refused_before(
    make_small, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "small"
    small = make_large(make_small, folder)
    small.back_up(with_keys=True)
    small.close()
    with thin_disk(kind) as disk:
        (disk.where / "new").mkdir()
        (folder / "new").symlink_to(disk.where / "new")
        disk.shrink(SPARE_BYTES)
        expect_refused(run(folder, "restore"))
        disk.grow()
        go_on(disk, folder, "restore")
        expect_whole(disk.where / "new")


def go_on(disk: ThinDisk, folder: Path, what: str) -> None:
    """Do it again, at once where that can be, and look at what is on the disk.

    Whether a filesystem takes anything more before it is mounted again is the kernel's choice.
    """
    again = run(folder, what)
    disk.mount_again()
    if again.returncode:
        assert again.returncode == 3, again.stdout + again.stderr
        done = run(folder, what)
        assert done.returncode == 0, done.stdout + done.stderr
        disk.mount_again()
