"""How fast a sandbox may write to its disk, and that what is halted for it ends all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from hooks.builds.sandbox import cgroupfs, write_pace
from hooks.builds.sandbox.cgroups import Group
from hooks.builds.sandbox.inside import Inside
from hooks.builds.sandbox.limits import Limit, Limits
from hooks.builds.sandbox.namespace import Written, written_in
from hooks.builds.sandbox.spec import APP_DIR
from hooks.builds.sandbox.write_pace import PacedWrites, WritePace

MiB = 1 << 20
PACED = {"write_bytes_per_s": 8 * MiB, "write_burst_bytes": 8 * MiB}
STOPPED = {"write_bytes_per_s": MiB, "write_burst_bytes": 0}  # after the first look, for minutes


@pytest.fixture
def paced(start_starter, in_sandbox, own_dir):
    """Run commands in sandboxes one after the other; /app is on the disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make control groups")
    starter = start_starter()

    def run(command, *, kill_after_s=100, **limits):
        return in_sandbox(
            command,
            starter=starter,
            binds=[[str(own_dir), APP_DIR, True]],
            cwd=APP_DIR,
            limits=limits,
            is_background=True,
            kill_after_s=kill_after_s,
        )

    return run


def is_halted(pid):
    """Say whether its group is; bubblewrap outside of its sandbox may be in the topmost one."""
    folders = cgroupfs.find_folders(
        Path(f"/proc/{pid}/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    )
    if "freezer" in folders:
        return cgroupfs.words(folders["freezer"] / "freezer.state") == ["FROZEN"]
    events = folders[""] / "cgroup.events"
    return events.exists() and cgroupfs.values(events)["frozen"] == 1


def test_pace_begins_where_the_burst_ends():
    pace, limits = WritePace(), Limits(write_bytes_per_s=10, write_burst_bytes=100)
    at = time.monotonic()
    assert pace.wrote(100, limits, at) == 0
    assert pace.wrote(30, limits, at + 1) == pytest.approx(2, abs=0.1)
    assert pace.wrote(0, limits, at + 3) == pytest.approx(0, abs=0.1)
    assert pace.wrote(-60, limits, at + 3) == 0  # removed before it was on the disk
    assert pace.wrote(60, limits, at + 3) == pytest.approx(0, abs=0.1)


def test_time_without_writes_gives_no_more_than_the_burst():
    pace, limits = WritePace(), Limits(write_bytes_per_s=10, write_burst_bytes=100)
    at = time.monotonic()
    assert pace.wrote(150, limits, at + 1_000_000) == 5


def test_without_a_pace_nothing_is_halted():
    assert WritePace().wrote(1 << 50, Limits(), time.monotonic()) == 0


def test_what_was_written_is_what_the_kernel_says():
    assert written_in("rchar: 1\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n") == (8192, 4096)
    assert written_in("") == (0, 0)


def counted(*looks):
    """Return what is ahead of a pace of nearly nothing after these looks at what was written."""
    pace, limits = WritePace(), Limits(write_bytes_per_s=1, write_burst_bytes=0)
    writes = PacedWrites(pace, limits, Group({}, version=1))
    found = iter(looks)
    with contextlib.suppress(StopIteration):
        while True:
            writes.count_rest(lambda: Written(*next(found)))
    return pace.wrote(0, limits, time.monotonic())


def test_what_one_look_passed_over_is_not_counted_twice():
    """Who ends while it is looked at counts with who waited for it, who was looked at before."""
    assert counted((100, 30), (0, 0), (100, 30), (100, 30)) == pytest.approx(70, abs=1)


def test_what_follows_writes_that_are_counted_no_more_is_counted():
    assert counted((100, 0), (20, 0), (20, 0), (50, 0)) == pytest.approx(130, abs=1)


def test_kernel_that_does_not_tell_what_all_write_has_each_process_asked(tmp_path, monkeypatch):
    """A service that sees nothing of `/proc` but processes, say."""
    monkeypatch.setattr(write_pace, "_VMSTAT", tmp_path / "none")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "io").write_text("write_bytes: 4096\n")
    (tmp_path / "freezer.state").write_text("")
    limits = Limits(write_bytes_per_s=1, write_burst_bytes=0)
    inside = Inside(os.open(tmp_path, os.O_RDONLY), [])
    writes = PacedWrites(WritePace(), limits, Group({"freezer": tmp_path}, version=1))
    with contextlib.closing(inside):
        writes.look(inside)
    assert writes.was_halted
    assert (tmp_path / "freezer.state").read_text() == "FROZEN"


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        "head -c 40M /dev/zero > x; sleep 1",
        "for i in 1 2 3 4; do head -c 10M /dev/zero > x$i; done; sleep 1",
        "for i in 1 2 3 4; do head -c 10M /dev/zero > x; sync x; done; sleep 1",
        "(for i in 1 2; do head -c 20M /dev/zero > x$i & done; wait) & wait; sleep 1",
        "dd if=/dev/zero of=x bs=1M count=40 oflag=direct status=none; sleep 1",
    ],
    ids=["at once", "in many files", "over and over", "side by side", "past the page cache"],
)
def test_what_writes_faster_than_it_may_is_halted_and_ends_well(paced, command):
    ran = paced(command, **PACED)
    assert (ran.status, ran.exceeded, ran.output) == (0, None, "(halted)\n")
    assert 0 < ran.halted_s < ran.seconds


@pytest.mark.root
def test_what_ends_before_anybody_looks_is_counted(paced):
    """Else who begins anew as soon as it has written is never halted."""
    limits = {"write_bytes_per_s": 3 * MiB, "write_burst_bytes": 50 * MiB}
    for name in "abc":
        assert paced(f"head -c 20M /dev/zero > {name}", **limits).halted_s == 0
    assert paced("sleep 1", **limits).halted_s > 0


@pytest.mark.root
def test_what_is_ended_by_a_limit_before_anybody_looks_is_counted(paced):
    limits = {"write_bytes_per_s": 3 * MiB, "write_burst_bytes": 30 * MiB, "process_count": 10}
    bomb = "for i in $(seq 30); do sleep 4896 & done; wait"
    ran = paced(f"head -c 40M /dev/zero > x; {bomb}", **limits)
    assert ran.exceeded == Limit.PROCESSES
    assert paced("sleep 1", **limits).halted_s > 0


@pytest.mark.root
def test_next_sandbox_goes_on_at_the_pace_of_the_one_before(paced):
    """Else who is halted would begin anew, and have the burst again."""
    limits = {"write_bytes_per_s": 2 * MiB, "write_burst_bytes": 32 * MiB}
    assert paced("head -c 30M /dev/zero > x; sleep 0.5", **limits).halted_s == 0
    assert paced("head -c 10M /dev/zero > y; sleep 1", **limits).halted_s > 0


@pytest.mark.root
def test_limits_hold_for_what_is_halted(paced):
    command = "for i in 1 2 3 4 5 6 7 8; do head -c 10M /dev/zero > x$i; sleep 0.1; done"
    ran = paced(command, disk_bytes=40 * MiB, **PACED)
    assert (ran.exceeded, ran.survivors) == (Limit.DISK, [])
    assert ran.halted_s > 0


@pytest.mark.root
def test_what_is_halted_is_killed_at_once(paced, gone):
    ran = paced("head -c 80M /dev/zero > x; sleep 4894", kill_after_s=3, **STOPPED)
    assert ran.status == 128 + signal.SIGKILL
    assert ran.halted_s > 0
    assert ran.survivors == []
    gone("4894", timeout_s=0)


@pytest.mark.root
def test_what_is_halted_when_its_slot_is_killed_ends_with_the_next_one(
    start_sandboxed, start_starter, own_dir, alive, gone
):
    """In version 1 nothing halted dies of a signal."""
    starter = start_sandboxed(
        "head -c 40M /dev/zero > x; exec sleep 4895",
        binds=[[str(own_dir), APP_DIR, True]],
        cwd=APP_DIR,
        limits=STOPPED,
    )
    while not any(map(is_halted, alive("4895"))):
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    start_starter()
    gone("4895", timeout_s=10)


@pytest.mark.root
@pytest.mark.parametrize("is_frozen", [True, False])
def test_group_says_whether_it_can_be_halted(tmp_path, is_frozen):
    folders = {"memory": tmp_path / "memory"} | ({"freezer": tmp_path} if is_frozen else {})
    if is_frozen:
        (tmp_path / "freezer.state").write_text("")
    assert Group(folders, version=1).freeze() is is_frozen
