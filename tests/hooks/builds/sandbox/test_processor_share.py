"""What builds get of the processors: what others leave, and their weight where that is nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hooks.builds.sandbox.cgroupfs import find_folders
from hooks.builds.sandbox.processor_share import KEEPER_NAME, Starvation
from tests.hooks.builds.conftest import UID, order_for

WEIGHTS = {"cpu.shares": "102", "cpu.weight": "10"}
SPIN = "while :; do :; done"


def looks(*found):
    """Let a sandbox be looked at every half second; returns when it was seen to starve, or None.

    `found`: what it has used by then, and whether it wants a processor.
    """
    starvation = Starvation(0.0, 0.0)
    for number, (cpu_s, wants) in enumerate(found, 1):
        if starvation.is_seen(number / 2, cpu_s, lambda wants=wants: wants):
            return number / 2
    return None


def test_sandbox_that_waits_for_a_processor_and_gets_none_starves():
    assert looks(*[(0.0, True)] * 10) == 2.0
    assert looks(*[(number / 500, True) for number in range(10)]) == 2.0


def test_sandbox_that_rests_does_not_starve():
    assert looks(*[(0.0, False)] * 10) is None


def test_sandbox_that_gets_some_of_a_processor_does_not_starve():
    assert looks(*[(number / 20, True) for number in range(1, 10)]) is None


def test_time_begins_anew_with_each_rest_and_with_what_it_gets():
    assert looks(*[(0.0, True)] * 3, (0.0, False), *[(0.0, True)] * 5) == 4.0
    assert looks(*[(0.0, True)] * 3, *[(1.0, True)] * 5) == 4.0


@contextlib.contextmanager
def nobody_left_a_processor():
    """Keep all processors busy in this process's own group."""
    burners = [
        subprocess.Popen(["taskset", "-c", str(number), "sh", "-c", SPIN], start_new_session=True)
        for number in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def keepers_of(starter):
    """Return who watches the starter's group: one copy of the starter, or none."""
    children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
    return [
        int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == KEEPER_NAME
    ]


@pytest.fixture
def weighed(start_starter):
    """A process that starts sandboxes, and its part of the groups, where groups can be idle."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make control groups")
    starter = start_starter(way="weighed")
    starter.stdin.write(order_for("true"))  # it has gone to its group by then
    starter.stdin.flush()
    starter.stdout.readline()
    text = Path(f"/proc/{starter.pid}/cgroup").read_text()
    found = find_folders(text, Path("/proc/self/mountinfo").read_text())
    group = found.get("cpu", found.get("", Path())).parent
    if not (group / "cpu.idle").exists():
        pytest.skip("the kernel knows no idle groups")
    return starter, group


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_idle(group):
    return (group / "cpu.idle").read_text() == "1\n"


def weight(group):
    return {
        name: (group / name).read_text().strip() for name in WEIGHTS if (group / name).exists()
    }.items()


def test_sandbox_gives_way_while_it_runs_and_its_starter_has_its_weight_again_then(weighed):
    starter, group = weighed
    starter.stdin.write(order_for("sleep 600", is_background=True))
    starter.stdin.flush()
    until(lambda: is_idle(group))
    for processes in group.glob("box-*/cgroup.procs"):
        for pid in processes.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    assert starter.stdout.readline()
    assert not is_idle(group)
    assert weight(group) <= WEIGHTS.items()


def test_sandbox_that_nobody_leaves_a_processor_has_its_weight(weighed):
    starter, group = weighed
    with nobody_left_a_processor():
        starter.stdin.write(order_for(SPIN, is_background=True))
        starter.stdin.flush()
        until(lambda: is_idle(group))
        until(lambda: not is_idle(group) and weight(group) <= WEIGHTS.items())


def test_starter_that_gets_no_processor_itself_has_its_weight(weighed):
    starter, group = weighed
    starter.stdin.write(order_for(SPIN, is_background=True))
    starter.stdin.flush()
    until(lambda: is_idle(group))
    os.kill(starter.pid, signal.SIGSTOP)  # as somebody whose turn does not come
    try:
        with nobody_left_a_processor():
            until(lambda: not is_idle(group) and weight(group) <= WEIGHTS.items())
    finally:
        os.kill(starter.pid, signal.SIGCONT)


def test_keeper_is_outside_of_the_group_with_no_rights_and_nothing_open(weighed):
    starter, group = weighed
    (pid,) = keepers_of(starter)
    inside = {
        int(each) for path in group.rglob("cgroup.procs") for each in path.read_text().split()
    }
    assert starter.pid in inside
    assert pid not in inside
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "CapEff:\t0000000000000000\n" in status
    files = [each.readlink() for each in Path(f"/proc/{pid}/fd").iterdir()]
    others = [file.name for file in files if file.name != "null" and "pipe:" not in file.name]
    assert sorted(others) == ["cpu.idle", *sorted(dict(weight(group)))]


def test_keeper_does_not_end_before_its_starter(weighed):
    """A service manager asks all of a unit to end, and the sandbox may have to end first."""
    starter, group = weighed
    (pid,) = keepers_of(starter)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    starter.stdin.write(order_for("sleep 600", is_background=True))
    starter.stdin.flush()
    until(lambda: is_idle(group))
    assert keepers_of(starter) == [pid]


def test_keeper_ends_with_its_starter(weighed):
    starter, _ = weighed
    (pid,) = keepers_of(starter)
    starter.kill()
    starter.wait()
    with contextlib.suppress(FileNotFoundError):
        until(lambda: not Path(f"/proc/{pid}/cmdline").read_bytes())  # nobody may reap it
