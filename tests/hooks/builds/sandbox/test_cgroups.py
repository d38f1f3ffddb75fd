"""Control groups: where they are made, whose they are, and that none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hooks.builds.sandbox import cgroupfs, cgroups

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make control groups")

MAKES_A_GROUP = """
import sys, time
from hooks.builds.sandbox.cgroups import Groups
from hooks.builds.sandbox.limits import Limits
groups = Groups.prepare(sys.argv[1], owner=(60690, 60690), weight=10)
group = groups.make(Limits(memory_bytes=64 << 20, process_count=9), is_background=True)
if len(sys.argv) > 2:
    group.join(int(sys.argv[2]))
print("made", flush=True)
time.sleep(600)
"""

MAKES_ONE_AFTER_ANOTHER = """
import subprocess, sys, time
from hooks.builds.sandbox.cgroups import Groups
from hooks.builds.sandbox.limits import Limits
groups = Groups.prepare(sys.argv[1])
inside = subprocess.Popen(["sleep", "600"])
group = groups.make(Limits(), is_background=False)
group.join(inside.pid)
groups.end(group)
group.kill()
inside.wait()
print("made", flush=True)
while True:
    groups.end(groups.make(Limits(), is_background=False))
    time.sleep(0.01)
"""


def folders(label):
    """The folders of all hierarchies that groups with this label are in."""
    return [
        Path(above, name)
        for above, names, _ in os.walk("/sys/fs/cgroup")  # where others make and remove groups too
        for name in names
        if name.startswith(f"gitd-{label}-")
    ]


@pytest.fixture
def label(request):
    return f"test{os.getpid()}"


@pytest.fixture
def start_maker(label):
    makers = []

    def start(*more, program=MAKES_A_GROUP):
        maker = subprocess.Popen(
            [sys.executable, "-c", program, label, *map(str, more)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
            stdout=subprocess.PIPE,
            text=True,
        )
        makers.append(maker)
        assert maker.stdout.readline() == "made\n"
        return maker

    yield start
    for maker in makers:
        maker.kill()
        maker.wait()
        maker.stdout.close()
    cgroups.tidy()


def values(label, *names):
    """The first file of one of these names in a sandbox's group, as text."""
    for name in names:
        for folder in folders(label):
            for path in folder.glob(f"box-1/{name}"):
                return path.read_text().strip()
    return None


@needs_root
def test_group_has_the_limits_and_belongs_to_who_makes_sandboxes(start_maker, label):
    start_maker()
    assert values(label, "memory.max", "memory.limit_in_bytes") == str(64 << 20)
    swap = values(label, "memory.swap.max", "memory.memsw.limit_in_bytes")
    assert swap in ("0", str(64 << 20), None), "None: the kernel does not count it"
    assert values(label, "pids.max") == "10"  # one more: bubblewrap's own
    weights = [
        (folder / name).read_text().strip()
        for folder in folders(label)
        for name in ("cpu.weight", "cpu.shares")
        if (folder / name).exists()
    ]
    assert weights in (["10"], ["102"])
    assert values(label, "cpu.weight", "cpu.shares") in ("10", "102"), "against 100 for its maker"
    for folder in folders(label):
        assert folder.stat().st_uid == 60690
        for limit in ("memory.max", "memory.limit_in_bytes", "cpu.weight", "cpu.shares"):
            if (folder / limit).exists():
                assert (folder / limit).stat().st_uid == 0


@needs_root
def test_groups_of_a_killed_process_are_removed_and_what_ran_in_them_is_ended(start_maker, label):
    left = subprocess.Popen(["sleep", "600"])
    try:
        maker = start_maker(left.pid)
        maker.kill()
        maker.wait()
        deadline = time.monotonic() + 20
        while folders(label):
            assert time.monotonic() < deadline
            cgroups.tidy()
        assert left.wait(20) != 0
    finally:
        left.kill()
        left.wait()


@needs_root
async def test_server_goes_on_removing_what_killed_processes_left(start_maker, label):
    keeping = asyncio.create_task(cgroups.keep_tidy(0.01))
    for _ in range(2):
        maker = start_maker()
        maker.kill()
        maker.wait()
        async with asyncio.timeout(20):
            while folders(label):
                await asyncio.sleep(0.01)
    assert not keeping.done()
    keeping.cancel()


@needs_root
def test_what_is_left_of_a_group_in_one_hierarchy_alone_is_removed_too(start_maker, label):
    """The kernel had let go of it in the others, where it was removed then."""
    while True:
        maker = start_maker()
        maker.kill()
        maker.wait()
        if left := sorted(folders(label)):
            break  # and no server of another test has removed them meanwhile
    *others, last = left
    for folder in others:  # in version 2 there is one
        remove(folder)
    while last.exists():
        cgroups.tidy()
        time.sleep(0.01)


def remove(folder):
    """Remove a group and those in it, as soon as the kernel lets go of who was killed in them."""
    deadline = time.monotonic() + 20
    for inner in (*folder.glob("*/"), folder):
        while inner.exists():
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                inner.rmdir()


@needs_root
def test_groups_of_a_living_process_are_left_alone(start_maker, label):
    earlier = set(folders(label))  # of another test: the kernel may not have let go of them yet
    start_maker()
    made = set(folders(label)) - earlier
    cgroups.tidy()
    assert made
    assert made <= set(folders(label))


@needs_root
@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").is_dir(), reason="needs version 1")
def test_groups_of_a_living_process_whose_memory_is_counted_elsewhere_are_left_alone(
    start_maker, label
):
    elsewhere = Path("/sys/fs/cgroup/memory") / f"elsewhere-{label}"
    elsewhere.mkdir()
    earlier = set(folders(label))  # as above
    own = cgroupfs.own_folders()["memory"]
    cgroupfs.write(elsewhere / "cgroup.procs", 0)
    try:
        maker = start_maker()
    finally:
        cgroupfs.write(own / "cgroup.procs", 0)
    made = set(folders(label)) - earlier
    cgroups.tidy()
    assert made
    assert made <= set(folders(label))
    maker.kill()
    maker.wait()
    for folder in (*elsewhere.glob("*/"), elsewhere):  # its keeper ends after it
        remove(folder)


@needs_root
def test_group_that_still_has_a_process_goes_when_the_next_one_is_made(start_maker, label):
    start_maker(program=MAKES_ONE_AFTER_ANOTHER)
    assert folders(label)
    deadline = time.monotonic() + 20
    while any((folder / "box-1").exists() for folder in folders(label)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_root
def test_group_of_a_sandbox_goes_with_it(start_starter, in_sandbox):
    """The last one at the latest with the next: a slot makes one for each step of its builds."""
    starter = start_starter()
    for _ in range(3):
        assert in_sandbox("true", starter=starter).status == 0
    text = Path(f"/proc/{starter.pid}/cgroup").read_text()
    found = cgroupfs.find_folders(text, Path("/proc/self/mountinfo").read_text())
    made = found.get("cpu", found.get("", Path())).parent
    assert made.name.startswith("gitd-test-")
    assert len(list(made.glob("box-*"))) <= 1


# -- where this process is ------------------------------------------------------------------------

MOUNTED_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTED_V1 = (
    "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    "35 30 0:31 / / rw - ext4 /dev/vda rw\n"
)


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "found"),
    [
        ("0::/system.slice/gitd.service\n", MOUNTED_V2, {"": "system.slice/gitd.service"}),
        ("0::/\n", MOUNTED_V2, {"": ""}),
        (
            "4:memory:/docker/1\n3:cpu,cpuacct:/\n1:name=systemd:/x\n0::/\n",
            MOUNTED_V1,
            {
                "memory": "memory/docker/1",
                "cpu": "cpu,cpuacct",
                "cpuacct": "cpu,cpuacct",
                "": "unified",
                "name=systemd": "systemd/x",
            },
        ),
        # a container that sees the machine's paths, and its own part of the hierarchy alone
        ("0::/docker/1/a\n", MOUNTED_V2.replace(" / /sys", " /docker/1 /sys"), {"": "a"}),
        ("0::/other\n", MOUNTED_V2.replace(" / /sys", " /docker/1 /sys"), {}),
        # outside of its own namespace of control groups
        ("0::/../../session\n", MOUNTED_V2, {}),
        ("0::/a\\b\n", MOUNTED_V2, {"": "a\\b"}),
        ("0::/\n", MOUNTED_V2.replace("/sys/fs/cgroup", "/sys/fs/c\\040d"), {"": "/sys/fs/c d"}),
        ("0::/\n", "", {}),
    ],
)
def test_own_group_is_found(cgroup, mountinfo, found):
    expected = {name: Path("/sys/fs/cgroup", path) for name, path in found.items()}
    assert cgroupfs.find_folders(cgroup, mountinfo) == expected
