"""The harness of the power cuts, and of thin disks, itself."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power import KINDS, disk_of, needs_disks
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
