"""What a build may use, by the settings and by the machine."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from gitd.build_limits import KEPT_BYTES, of_builds, share
from gitd.config import BuildersConfig

GiB = 1 << 30
MiB = 1 << 20
SMALL = 1940 * MiB  # what a machine of 2 GB has


@pytest.mark.parametrize(
    ("machine_bytes", "slots", "expected"),
    [
        (SMALL, 1, GiB),
        (SMALL, 2, 714 * MiB),
        (SMALL, 4, 357 * MiB),
        (SMALL, 64, 256 * MiB),
        (960 * MiB, 2, 256 * MiB),
        (4 * GiB, 2, GiB),
        (64 * GiB, 8, GiB),
    ],
)
def test_builds_in_all_slots_leave_room_for_the_rest_where_that_can_be(
    machine_bytes: int, slots: int, expected: int
) -> None:
    assert share(machine_bytes, slots) == expected
    if expected > 256 * MiB:
        assert slots * expected + KEPT_BYTES <= machine_bytes


def test_default_is_the_share_of_this_machine_and_what_is_set_is_taken_as_it_is() -> None:
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert of_builds(BuildersConfig()).memory_bytes_max == share(here, 2)
    assert of_builds(BuildersConfig(slots=64)).memory_bytes_max == share(here, 64)
    named = replace(BuildersConfig(), users=("a", "b", "c"), slots=64)
    assert of_builds(named).memory_bytes_max == share(here, 3)
    assert of_builds(BuildersConfig(memory_bytes_max=3 * GiB)).memory_bytes_max == 3 * GiB


def test_pace_of_writes_is_as_the_settings_have_it() -> None:
    limits = of_builds(BuildersConfig(write_bytes_per_s_max=5, write_burst_bytes_max=7))
    assert (limits.write_bytes_per_s_max, limits.write_burst_bytes_max) == (5, 7)
    usual = of_builds(BuildersConfig())
    assert (usual.write_bytes_per_s_max, usual.write_burst_bytes_max) == (32 * MiB, GiB)
