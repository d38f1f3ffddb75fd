"""The harness of the power cuts, and of thin disks, itself."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power import KINDS, disk_of, needs_disks
from tests.recorded import record
from tests.thin_disk import thin_disk

OF_MAKING = {"lost+found"}

pytestmark = needs_disks


@contextlib.contextmanager
def somebody_has_all_mounts() -> Iterator[None]:
    """As a sandbox that starts now: what is unmounted here stays mounted there."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo begun; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        yield


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - OF_MAKING


@pytest.mark.parametrize("kind", KINDS)
def test_first_state_is_put_back_though_somebody_has_the_disk_mounted_still(kind: str) -> None:
    with disk_of(kind, lambda where: (where / "first").touch()) as disk:
        (disk.begin() / "written").touch()
        (disk.cut() / "after").touch()
        with somebody_has_all_mounts():
            disk.end()
            assert names(disk.begin()) == {"first"}
            assert names(disk.cut()) == {"first"}
            disk.end()


DATA = b"it" * 2048
# Over what is there, past the kernel's memory, and with nobody asking the disk to keep it.
WRITES_DIRECTLY = """
import mmap, os, sys
data = mmap.mmap(-1, 4096)
data.write(b"it" * 2048)
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT), data)
"""
WRITES = """
import os, sys
for name in ("synced", "not"):
    with open(f"{sys.argv[1]}/{name}", "wb", buffering=0) as file:
        file.write(b"it" * 2048)
        if name == "synced":
            os.fsync(file.fileno())
"""


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_run_has_what_it_synced_and_nothing_else(kind: str) -> None:
    with disk_of(kind, lambda where: (where / "first").touch()) as disk:
        recording = record(disk, lambda where: ["-c", WRITES, where])
        assert recording.status == 0
        found = [
            ({path.name for path in kept.glob("*") if path.is_file() and path.read_bytes()}, done)
            for kept, done in recording.cuts(recording.moments)
        ]
    assert [whole for whole, is_done in found if is_done] == [{"synced"}] * 5
    assert [whole for whole, is_done in found if not is_done and not whole]


def test_recorded_disk_may_lose_what_it_was_not_told_to_flush() -> None:
    with disk_of("ext4", lambda where: (where / "first").write_bytes(bytes(4096))) as disk:
        recording = record(disk, lambda where: ["-c", WRITES_DIRECTLY, where / "first"])
        done = [moment for moment in recording.moments if moment.is_done]
        kept = {
            moment.loss: (where / "first").read_bytes()
            for moment in done
            for where, _ in recording.cuts([moment])
        }
    assert (kept[0.0], kept[1.0]) == (DATA, bytes(4096))


@pytest.mark.parametrize("kind", KINDS)
def test_thin_disk_is_read_anew_though_somebody_has_it_mounted_still(kind: str) -> None:
    with thin_disk(kind) as disk:
        disk.grow()
        (disk.where / "written").touch()
        before = disk.where.stat().st_dev
        with somebody_has_all_mounts():
            disk.mount_again()
            assert disk.where.stat().st_dev != before
            assert names(disk.where) == {"written"}
