"""Power cuts: a backup and a restore that were acknowledged are on the medium; nothing counts of
what was broken off, and it can be done again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.backup.destination import Destination
from storage.backup.verify import verify
from tests.crashing import share
from tests.power import KINDS, KINDS_IN_TURN, disk_of, needs_disks, run
from tests.recorded import record
from tests.storage.backup.test_crash import CHILD, EXPECT, expect_whole, make_before

pytestmark = [*needs_disks, pytest.mark.timeout(3600)]


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


def back_up(small: Path, what: str = "take") -> int:
    return run(small.parent, [CHILD, small, what])


@pytest.mark.soak
@pytest.mark.parametrize("is_restless", [False, True], ids=["quiet", "restless"])
@pytest.mark.parametrize("what", EXPECT)
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_any_moment_leaves_backups_that_are_whole_and_no_half_restore(
    make_small, *, kind: str, what: str, is_restless: bool
) -> None:
    with disk_of(kind, lambda where: make_before(make_small, where / "small")) as disk:
        recording = record(
            disk, lambda where: [CHILD, where / "small", what], is_restless=is_restless
        )
        assert recording.status == 0
        for kept, is_done in recording.cuts(share(recording.moments)):
            EXPECT[what](kept / "small", is_done=is_done)
