"""Power cuts: a backup and a restore that were acknowledged are on the medium."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from storage.backup.destination import Destination
from storage.backup.verify import verify
from tests.power import disk_of, needs_disks
from tests.storage.backup.test_crash import CHILD, expect_whole

pytestmark = needs_disks


def run(small: Path, what: str) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, CHILD, small, what], env=environ, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_acknowledged_backup_and_restore_survive_a_power_cut(make_small) -> None:
    with disk_of("ext4", lambda where: make_small(where / "small").close()) as disk:
        run(disk.begin() / "small", "take")
        kept = disk.cut() / "small"
        assert [item.faults for item in verify(Destination(kept / "backups"))] == [()]
        disk.end()
        run(disk.begin() / "small", "take")
        disk.keep("taken")
        run(disk.begin("taken") / "small", "restore")
        expect_whole(disk.cut() / "small" / "new")
