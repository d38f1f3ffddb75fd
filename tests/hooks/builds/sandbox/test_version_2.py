"""Control groups of version 2, as service managers and bare machines have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hooks.builds.sandbox import cgroupfs
from hooks.builds.sandbox.limits import Limit
from hooks.builds.sandbox.processor_share import KEEPER_NAME
from tests.hooks.builds.conftest import UID, order_for
from tests.hooks.builds.sandbox.test_processor_share import is_idle, keepers_of, until

TOP = Path("/sys/fs/cgroup")
MiB = 1 << 20
CONTROLLERS = {"cpu", "io", "memory", "pids"}
HOG = "x = b'1' * (300 << 20)"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not set(cgroupfs.words(TOP / "cgroup.controllers")) >= CONTROLLERS,
        reason="the control groups of this machine are of version 1",
    ),
]


def within(group, *more):
    """What starts a program in a group: `more` is a program that it is started through there."""
    return ("sh", "-c", 'echo 0 > "$1" && shift && exec "$@"', "sh", group / "cgroup.procs", *more)


def as_user(uid):
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs")


def delegate(group, uid):
    """What a service manager does for `Delegate=` and `User=`."""
    for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(group / name, uid, uid)


@pytest.fixture
def unit():
    """The group of a service's unit, below that of a slice, delegated to the sandboxes' user."""
    upper = TOP / f"test{os.getpid()}.slice"
    group = upper / "gitd-builder@0.service"
    for folder in (upper, group):
        folder.mkdir()
        for name in CONTROLLERS:
            cgroupfs.write(folder.parent / "cgroup.subtree_control", f"+{name}")
    cgroupfs.write(group / "memory.max", 600 * MiB)
    delegate(group, UID)
    yield group
    cgroupfs.write(group / "cgroup.kill", 1)
    until(lambda: "populated 0" in (group / "cgroup.events").read_text())
    for above, _, _ in os.walk(upper, topdown=False):
        Path(above).rmdir()


def ask(starter, command, **rest):
    starter.stdin.write(order_for(command, **rest))
    starter.stdin.flush()
    return json.loads(starter.stdout.readline())


def group_of(pid):
    return TOP / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def limits_with_processes(unit):
    """The groups that pass controllers on and have processes: the kernel has none."""
    return [
        each
        for each in unit.rglob("*/")
        if cgroupfs.words(each / "cgroup.subtree_control") and cgroupfs.processes(each)
    ]


@pytest.fixture(params=["the unit's group", "a group in the unit"])
def starter(request, start_starter, unit):
    """Who makes sandboxes as a unit's main process, with its user from the start.

    A newer service manager puts it into a group in there if told to (`DelegateSubgroup=`).
    """
    group = unit
    if request.param == "a group in the unit":
        group = unit / "main"
        group.mkdir()
        delegate(group, UID)
    return start_starter(uid=None, way="weighed", through=within(group, *as_user(UID)))


def test_service_has_groups_with_limits_in_its_unit(starter, unit):
    for code, limits, exceeded in [
        (HOG, {"memory_bytes": 100 * MiB}, Limit.MEMORY),
        (BOMB, {"process_count": 40}, Limit.PROCESSES),
    ]:
        python = ["/usr/bin/python3", "-c", code]
        ran = ask(starter, python, limits=limits, is_background=True)
        assert ran["exceeded"] == exceeded
        assert set(ran["survivors"]) <= {KEEPER_NAME}
    assert group_of(starter.pid).is_relative_to(unit)
    assert group_of(starter.pid).name == "self"
    assert (unit / "memory.max").read_text() == f"{600 * MiB}\n"
    assert cgroupfs.processes(unit) == limits_with_processes(unit) == []


def test_sandboxes_of_a_service_are_told_from_it_by_their_groups(starter, unit):
    """A keeper is of use where its unit has somebody else in it, and is in the unit then."""
    ask(starter, "true")
    for keeper in keepers_of(starter):
        assert group_of(keeper) == unit / "main"
    made = group_of(starter.pid).parent
    starter.stdin.write(order_for("sleep 600", is_background=True))
    starter.stdin.flush()
    until(lambda: any(map(cgroupfs.processes, made.glob("box-*"))))
    (box,) = [each for each in made.glob("box-*") if cgroupfs.processes(each)]
    assert starter.pid not in cgroupfs.processes(box)
    assert (box / "memory.max").read_text() != "max\n"


def test_groups_are_idle_below_the_group_of_the_whole_machine_too(start_starter):
    """Where nothing manages services, all others are in there: beside those it gives way."""
    starter = start_starter(way="weighed", through=within(TOP))
    ask(starter, "true")
    made = group_of(starter.pid).parent
    assert made.parent == TOP
    (keeper,) = keepers_of(starter)
    assert group_of(keeper) == TOP
    starter.stdin.write(order_for("sleep 600", is_background=True))
    starter.stdin.flush()
    until(lambda: is_idle(made))
