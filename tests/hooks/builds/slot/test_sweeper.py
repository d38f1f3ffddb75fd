"""What a slot waits for before its next build, where the last one left a lot to remove."""

from __future__ import annotations

import contextlib

import pytest

from hooks.builds.sandbox.limits import Limits
from hooks.builds.slot.sweeper import Sweeper
from tests.power import disk_of

LIMITS = Limits(disk_bytes=10 << 20, disk_free_bytes=6 << 20)


@pytest.mark.root
@pytest.mark.parametrize(("count", "waits"), [(1_500, True), (100, False)])
async def test_next_build_waits_where_the_disk_has_too_few_files_for_it(count, waits):
    options = ["-N", "1792"]
    with disk_of("ext4", lambda _: None, size_bytes=64 << 20, options=options) as disk:
        where = disk.begin()
        left = where / "left"
        left.mkdir()
        for number in range(count):
            (left / f"{number}").touch()
        async with contextlib.aclosing(Sweeper(where)) as sweeper:
            sweeper.sweep(left, LIMITS)
            await sweeper.room()
            assert left.exists() is not waits
        assert not left.exists()
