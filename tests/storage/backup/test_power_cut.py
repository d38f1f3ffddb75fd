"""Power cuts: a backup and a restore that were acknowledged are on the medium; nothing counts of
what was broken off, and it can be done again.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from storage.backup.destination import Destination
from storage.backup.verify import verify
from tests.crashing import needs_strace
from tests.power import KINDS, KINDS_IN_TURN, disk_of, killed_at, needs_disks, run
from tests.storage.backup.test_crash import CHILD, EXPECT, expect_whole, make_before

CALLS = {
    "take": ("write", "pwrite64", "rename", "mkdir", "unlinkat", "fsync", "fdatasync"),
    "restore": ("write", "rename", "mkdir", "chmod", "utimensat", "fsync", "syncfs", "unlink"),
}

pytestmark = [*needs_disks, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kind", KINDS_IN_TURN)
def test_acknowledged_backup_and_restore_survive_a_power_cut(make_small, kind: str) -> None:
    with disk_of(kind, lambda where: make_small(where / "small").close()) as disk:
        assert back_up(disk.begin() / "small") == 0
        kept = disk.cut() / "small"
        assert [item.faults for item in verify(Destination(kept / "backups"))] == [()]
        disk.end()
        assert back_up(disk.begin() / "small") == 0
        disk.keep("taken")
        assert back_up(disk.begin("taken") / "small", "restore") == 0
        expect_whole(disk.cut() / "small" / "new")


def back_up(small: Path, what: str = "take", *strace: str) -> int:
    return run(small.parent, [CHILD, small, what], strace)


@needs_strace
@pytest.mark.soak
@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_any_moment_leaves_backups_that_are_whole_and_no_half_restore(
    make_small, kind: str, what: str
) -> None:
    pick = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    reached = 0
    with disk_of(kind, lambda where: make_before(make_small, where / "small")) as disk:
        for call in CALLS[what]:
            for number in sorted(pick.sample(range(1, 21), 5)):
                is_done = back_up(disk.begin() / "small", what, *killed_at(call, number)) == 0
                EXPECT[what](disk.cut() / "small", is_done=is_done)
                reached += not is_done
                disk.end()
    print(f"{kind}: {reached} cuts, {what}")
    assert reached > 12
