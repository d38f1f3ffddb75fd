"""What ends a sandbox that uses too much, with control groups and without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hooks.builds.errors import BuildFailedError
from hooks.builds.sandbox.cgroups import Group
from hooks.builds.sandbox.disk import shortage
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.limits import Limit, Limits, explain, in_units
from hooks.builds.sandbox.namespace import Init
from hooks.builds.sandbox.spec import APP_DIR
from hooks.builds.sandbox.watch import Watch
from tests.power import disk_of

MiB = 1 << 20


@pytest.fixture(params=["groups", "watching"])
def limited(request, runner, watching_runner, in_sandbox, own_dir):
    """Run a command under limits, kept the one way or the other; /app is on the disk."""
    if request.param == "groups" and os.geteuid() != 0:
        pytest.skip("needs root, to make control groups")
    starter = runner if request.param == "groups" else watching_runner

    def run(command, more_binds=(), **limits):
        binds = [[str(own_dir), APP_DIR, True], *more_binds]
        return in_sandbox(
            command,
            starter=starter,
            binds=binds,
            cwd=APP_DIR,
            limits=limits,
            is_background=True,
            kill_after_s=100,
        )

    return run


def python(code):
    return ["/usr/bin/python3", "-c", code]


def test_memory_of_all_processes_together_is_bounded(limited, gone):
    """Each of them is far below the limit."""
    hog = "python3 -c 'import time; x = b\"1\" * (60 << 20); time.sleep(4820)'"
    ran = limited(f"for i in 1 2 3 4 5; do setsid {hog} & done; wait", memory_bytes=200 * MiB)
    assert ran.exceeded == Limit.MEMORY
    assert ran.survivors == []
    gone("4820", timeout_s=0)


def test_memory_of_one_process_is_bounded(limited):
    """As it grows: refused at the limit itself, the program would end by an error of its own."""
    grow = "import time; x = [b'1' * (1 << 20) for _ in range(400)]; time.sleep(20)"
    assert limited(python(grow), memory_bytes=100 * MiB).exceeded == Limit.MEMORY
    at_once = "import time; x = b'1' * (300 << 20); time.sleep(20)"
    assert limited(python(at_once), memory_bytes=100 * MiB).exceeded == Limit.MEMORY


def test_memory_below_the_limit_is_had(limited):
    ran = limited(python("x = b'1' * (100 << 20); print('had')"), memory_bytes=200 * MiB)
    assert (ran.output, ran.exceeded) == ("had\n", None)


def test_memory_that_processes_share_counts_once(limited):
    code = (
        "import os, time; x = b'1' * (90 << 20)\n"
        "for _ in range(5):\n"
        "    if not os.fork(): time.sleep(1.5); os._exit(0)\n"
        "while True:\n"
        "    try: os.wait()\n"
        "    except ChildProcessError: break\n"
        "print('fine')"
    )
    ran = limited(python(code), memory_bytes=200 * MiB)
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_file_in_memory_that_is_mapped_counts_once(limited):
    code = (
        "import mmap, time\n"
        "with open('/tmp/x', 'w+b', buffering=0) as file:\n"
        "    for _ in range(70): file.write(bytes(1 << 20))\n"
        "    mapped = mmap.mmap(file.fileno(), 0)\n"
        "    sum(mapped[at] for at in range(0, len(mapped), 4096))\n"
        "    time.sleep(1.5)\n"
        "print('fine')"
    )
    ran = limited(python(code), memory_bytes=120 * MiB, tmp_bytes=200 * MiB)
    assert (ran.output, ran.exceeded) == ("fine\n", None)


@pytest.mark.parametrize(
    ("left", "kept"), [(0, slice(None)), (1, slice(1, None)), (999, slice(-1, None))]
)
def test_processors_are_left_to_others_but_for_one(limited, left, kept):
    """Also when the program asks for all: so does `taskset`, and goes on."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        pytest.skip("one processor")
    code = (
        "import os, subprocess\n"
        f"os.sched_setaffinity(0, {processors})\n"
        "ask = 'import os; print(sorted(os.sched_getaffinity(0)))'\n"
        "subprocess.run(['python3', '-c', ask])"
    )
    ran = limited(python(code), processors_free=left)
    assert ran.output == f"{processors[kept]}\n"


WITHOUT_CPUACCT = """
found=$(awk '$3 == "cgroup" && $4 ~ /cpuacct/ { print $2 }' /proc/mounts)
[ -n "$found" ] && umount "$found" || exit 77
exec "$@"
"""


@pytest.mark.root
def test_processor_time_is_bounded_where_the_kernel_does_not_count_that_of_groups(
    in_sandbox, start_starter, own_dir
):
    through = ("unshare", "--mount", "sh", "-c", WITHOUT_CPUACCT, "sh")
    if subprocess.run([*through, "true"], check=False).returncode:
        pytest.skip("the control groups of this machine are of version 2")
    starter = start_starter(through=through)
    spin = "for i in 1 2 3; do sh -c 'while :; do :; done' & done; wait"
    ran = in_sandbox(spin, starter=starter, limits={"cpu_s": 1}, kill_after_s=60)
    assert ran.exceeded == Limit.CPU


async def test_watch_goes_on_after_a_refusal_that_was_none(tmp_path):
    """Else nothing was watched any more, the disk neither, and no limit ended anything."""
    told = {"pids.events": "max 0\n", "memory.events": "oom_kill 0\n", "cpu.stat": "usage_usec 0\n"}
    for name, text in told.items():
        (tmp_path / name).write_text(text)
    group = Group({"memory": tmp_path, "pids": tmp_path}, version=2)
    watch = Watch(Limits(), group=group, in_memory=(), on_disk={}, is_background=False)
    watching = asyncio.create_task(watch.run(Init(0, None)))
    for number in range(2):
        await asyncio.sleep(0.1)
        (tmp_path / "pids.events").write_text(f"max 0\nnothing {number}\n")
    await asyncio.sleep(0.1)
    assert not watching.done()
    (tmp_path / "pids.events").write_text("max 1\n")
    assert await asyncio.wait_for(watching, 20) == Limit.PROCESSES


KILLED_2 = {"memory.events": "oom {}\noom_kill 1\n", "cpu.stat": "usage_usec 0\n"}
KILLED_1 = {
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "memory.limit_in_bytes": "1000000\n",
    "memory.max_usage_in_bytes": "{}\n",
}


@pytest.mark.parametrize(
    ("version", "told", "used", "limit"),
    [
        (1, KILLED_1, 990_000, Limit.MEMORY),
        (1, KILLED_1, 500_000, Limit.MACHINE_MEMORY),
        (2, KILLED_2, 1, Limit.MEMORY),
        (2, KILLED_2, 0, Limit.MACHINE_MEMORY),
    ],
)
def test_want_of_memory_on_the_machine_is_told_from_that_of_the_sandbox(
    tmp_path, version, told, used, limit
):
    """As the kernel tells both: files of a group in which a process was killed."""
    for name, text in {"pids.events": "max 0\n", **told}.items():
        (tmp_path / name).write_text(text.format(used))
    group = Group({"memory": tmp_path, "pids": tmp_path}, version=version)
    watch = Watch(Limits(), group=group, in_memory=(), on_disk={}, is_background=False)
    assert watch.last_look(137) == limit


@pytest.mark.parametrize("is_strict", [True, False])
def test_limits_of_each_process_are_set_beside_those_of_all(request, limited, is_strict):
    """They hold where nobody has looked yet; those of memory and processes where no group is.

    More than what is allowed, for the watch to see that it is too much, and end who is to end.
    """
    kinds = ("CPU", "NOFILE", "CORE", "FSIZE", "NPROC", "DATA")
    code = f"import resource\nfor kind in {kinds}:\n"
    code += "    print(*resource.getrlimit(getattr(resource, f'RLIMIT_{kind}')))"
    ran = limited(
        python(code),
        cpu_s=60,
        open_file_count=123,
        file_bytes=1000,
        process_count=50,
        memory_bytes=300 * MiB,
        is_strict=is_strict,
    )
    found = [set(line.split()) for line in ran.output.splitlines()]
    assert found[:4] == [{"62"}, {"123"}, {"1"}, {"1001"}]
    if request.node.callspec.params["limited"] == "watching":
        assert found[4:] == [{"100"}, {f"{(1324 if is_strict else 300) * MiB}"}]


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "~"])
def test_files_in_memory_count_as_memory(limited, folder):
    ran = limited(
        f"head -c 150000000 /dev/zero > {folder}/x; sleep 20",
        memory_bytes=100 * MiB,
        tmp_bytes=200 * MiB,
    )
    assert ran.exceeded == Limit.MEMORY


def test_empty_files_in_memory_count_as_what_the_kernel_keeps_for_them(limited):
    """Else they took the machine's memory without a byte in them, and without a process to end."""
    ran = limited("cd /tmp; seq 200000 | xargs touch; sleep 20", memory_bytes=100 * MiB)
    assert ran.exceeded == Limit.MEMORY


def test_memory_that_is_shared_and_no_file_counts(limited):
    code = (
        "import mmap, time; shared = mmap.mmap(-1, 150 << 20)\n"
        "for _ in range(150): shared.write(b'1' * (1 << 20))\n"
        "time.sleep(20)"
    )
    assert limited(python(code), memory_bytes=100 * MiB).exceeded == Limit.MEMORY


def test_files_without_a_name_count_as_memory(limited):
    code = (
        "import os, time; fd = os.memfd_create('x')\n"
        "for _ in range(150): os.write(fd, bytes(1 << 20))\n"
        "time.sleep(20)"
    )
    ran = limited(python(code), memory_bytes=100 * MiB)
    assert ran.exceeded == Limit.MEMORY


def test_processes_that_come_and_go_hide_nothing(limited):
    """Many end between two looks at them, and some between a look at their names and at them."""
    churn = "(for i in 1 2 3 4 5 6; do (while :; do /bin/true; done) & done; wait)"
    hog = "import time; time.sleep(2); x = b'1' * (70 << 20); time.sleep(20)"
    hogs = f'python3 -c "{hog}" & python3 -c "{hog}"'
    ran = limited(f"{churn} & {hogs}", memory_bytes=100 * MiB)
    assert ran.exceeded == Limit.MEMORY


def test_fork_bomb_is_ended(limited, gone):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    ran = limited(["/usr/bin/python3", "-c", bomb, "4821"], process_count=60)
    assert ran.exceeded == Limit.PROCESSES
    assert ran.survivors == []
    gone("4821", timeout_s=0)


def test_processes_are_counted_before_what_they_use_is_added_up(in_sandbox, watching_runner):
    """Where they are too many that takes long, and to add up what they share longer still."""
    code = (
        "import os, time\n"
        "reading, writing = os.pipe()\n"
        "for _ in range(50):\n"
        "    if not os.fork():\n"
        "        os.close(writing)\n"
        "        os.read(reading, 1)  # until all are there\n"
        "        x = b'1' * (8 << 20)\n"
        "        break\n"
        "else: os.close(writing)\n"
        "time.sleep(60)"
    )
    for count, exceeded in ((40, Limit.PROCESSES), (100, Limit.MEMORY)):
        ran = in_sandbox(
            python(code),
            starter=watching_runner,
            limits={"process_count": count, "memory_bytes": 100 * MiB},
            is_background=True,
            kill_after_s=100,
        )
        assert ran.exceeded == exceeded


def test_as_many_processes_as_allowed_are_had(limited):
    ran = limited("for i in $(seq 18); do sleep 1 & done; wait; echo fine", process_count=20)
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_threads_count_as_processes(limited):
    code = (
        "import threading, time\n"
        "for _ in range(40): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
        "time.sleep(5)"
    )
    assert limited(python(code), process_count=30).exceeded == Limit.PROCESSES


def test_one_that_is_not_strict_is_refused_processes_and_goes_on(limited):
    code = (
        "import os, time\n"
        "try:\n"
        "    while True:\n"
        "        if not os.fork(): time.sleep(1); os._exit(0)\n"
        "except OSError: time.sleep(1); print('fine')"
    )
    ran = limited(python(code), process_count=30, is_strict=False)
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_one_that_is_not_strict_goes_on_where_tmp_is_full(limited):
    ran = limited(
        "head -c 9000000 /dev/zero > /tmp/x 2> /dev/null; sleep 1; echo fine",
        tmp_bytes=4 * MiB,
        is_strict=False,
    )
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_processor_time_of_all_processes_together_is_bounded(limited):
    burn = "python3 -c 'while True: pass'"
    ran = limited(f"{burn} & {burn} & {burn} & wait", cpu_s=1)
    assert ran.exceeded == Limit.CPU
    assert ran.survivors == []


def test_processor_time_of_processes_that_ended_counts(limited):
    burn = "python3 -c 'import time\nwhile time.process_time() < 0.4: pass'"
    ran = limited(f"while :; do {burn}; done", cpu_s=1)
    assert ran.exceeded == Limit.CPU


# Far more than the limit, where it is told by what the disk lost: others give back some meanwhile.
UNSEEN = "head -c 300M /dev/zero"


def hiding(how):
    """As much in files that are neither named nor open: their size is seen from nowhere."""
    return (
        "python3 -c 'import mmap, os, socket, time\n"
        "keep, pair = [], socket.socketpair()\n"
        "for _ in range(300):\n"
        '    fd = os.open("x", os.O_RDWR | os.O_CREAT); os.unlink("x")\n'
        "    os.write(fd, bytes(1 << 20))\n"
        f"    {how}\n"
        "    os.close(fd)\n"
        "time.sleep(20)'"
    ).replace("b'x'", 'b"x"')


@pytest.mark.parametrize(
    "fill",
    [
        "head -c 12000000 /dev/urandom > x",
        "mkdir -p a/b; for i in $(seq 40); do head -c 400000 /dev/urandom > a/b/$i; done",
        f"mkdir closed; {UNSEEN} > closed/x; chmod 0 closed",
        "exec 3> x; rm x; head -c 12000000 /dev/urandom >&3",
        "for i in $(seq 250); do mkdir d; cd d; done; " + UNSEEN + " > x",
        "mkdir many; cd many; seq 3000 | xargs touch",
        hiding("keep.append(mmap.mmap(fd, 4096))"),
        hiding("keep.append(pair); socket.send_fds(pair[0], [b'x'], [fd])"),
    ],
    ids=[
        *("one file", "many files", "a closed folder", "a file without a name"),
        *("a file in a deep folder", "empty files"),
        *("files that are only mapped", "files that wait in a socket"),
    ],
)
def test_disk_filler_is_ended(limited, fill):
    ran = limited(f"{fill}; sync -f .; sleep 20", disk_bytes=8 * MiB)
    assert ran.exceeded == Limit.DISK


@pytest.fixture
def overlay(own_dir):
    """Let `own_dir` be an overlay whose layers are on two disks: files are on one, folders not."""
    below = own_dir.parent / "layers"
    layers = [below / "lower", below / "upper"]
    with contextlib.ExitStack() as stack:
        for layer in layers:
            layer.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", layer], check=True)
            stack.callback(subprocess.run, ["umount", "-l", layer], check=True)
        upper, work = layers[1] / "upper", layers[1] / "work"
        upper.mkdir()
        work.mkdir()
        shutil.copystat(own_dir, upper)
        os.chown(upper, own_dir.stat().st_uid, own_dir.stat().st_gid)
        options = f"lowerdir={layers[0]},upperdir={upper},workdir={work}"
        if subprocess.run(["mount", "-t", "overlay", "-o", options, "none", own_dir]).returncode:
            pytest.skip("this kernel has no overlays")
        stack.callback(subprocess.run, ["umount", "-l", own_dir], check=True)
        yield


def unnamed_file(count):
    """Have a file of so many MiB open for a while."""
    return python(
        "import tempfile, time\n"
        "with tempfile.TemporaryFile(dir='.', buffering=0) as file:\n"
        f"    for _ in range({count}): file.write(bytes(1 << 20))\n"
        "    time.sleep(3)\n"
        "print('fine')"
    )


@pytest.mark.root
def test_file_without_a_name_counts_as_disk_in_an_overlay_too(limited, overlay):
    assert limited(unnamed_file(12), disk_bytes=8 * MiB).exceeded == Limit.DISK


@pytest.mark.root
def test_file_without_a_name_in_an_overlay_is_no_memory(
    in_sandbox, watching_runner, own_dir, overlay
):
    """Where groups keep limits, the kernel counts for itself; here the overlay is in memory."""
    ran = in_sandbox(
        unnamed_file(70),
        starter=watching_runner,
        binds=[[str(own_dir), APP_DIR, True]],
        cwd=APP_DIR,
        limits={"memory_bytes": 50 * MiB, "disk_bytes": 1 << 30},
        is_background=True,
        kill_after_s=100,
    )
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_program_that_the_machine_replaces_while_it_runs_hides_nothing(limited, own_dir, open_dir):
    """What others take of the disk meanwhile is not this one's."""
    tools = open_dir / "tools"
    tools.mkdir()
    shutil.copy(shutil.which("sleep"), tools / "sleep")
    others = open_dir / "others"

    def replace():
        for _ in range(3000):
            if (own_dir / "begun").exists():
                break
            time.sleep(0.01)
        (tools / "sleep").unlink()
        with others.open("wb") as file:
            file.write(os.urandom(40 * MiB))
            os.fsync(file.fileno())
        (own_dir / "written").touch()

    with ThreadPoolExecutor() as pool:
        replaced = pool.submit(replace)
        ran = limited(
            "/opt/tools/sleep 60 & sleep 0.3; touch begun;"
            " until [ -e written ]; do sleep 0.1; done; sleep 1; kill $!; echo fine",
            more_binds=[[str(tools), "/opt/tools", False]],
            disk_bytes=8 * MiB,
        )
        replaced.result()
    assert (ran.output, ran.exceeded) == ("fine\n", None)


def test_what_it_may_only_read_is_not_what_it_takes_of_the_disk(limited, open_dir):
    shown = open_dir / "shown"
    shown.mkdir()
    (shown / "large").write_bytes(bytes(12 * MiB))
    ran = limited("exit 3", more_binds=[[str(shown), "/opt/shown", False]], disk_bytes=8 * MiB)
    assert (ran.status, ran.exceeded) == (3, None)


def test_sandbox_that_nobody_can_watch_any_more_does_not_run_on(
    start_sandboxed, own_dir, alive, gone
):
    """Its folder has gone: what it takes of the disk cannot be seen."""
    command, limits = "sleep 4825", {"disk_bytes": 8 * MiB}
    binds = [[str(own_dir), APP_DIR, True]]
    start_sandboxed(command, way="watching", binds=binds, limits=limits, is_background=True)
    while not alive("4825"):
        time.sleep(0.01)
    own_dir.rmdir()
    gone("4825")


def test_sessions_of_a_program_in_the_background_come_last_without_groups(
    in_sandbox, watching_runner
):
    """The kernel shares the processor between sessions: the program may lead many."""
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel knows no sessions")
    for is_background, nice in ((False, "0"), (True, "19")):
        ran = in_sandbox(
            "setsid sh -c 'sleep 2; cat /proc/self/autogroup'",
            starter=watching_runner,
            is_background=is_background,
        )
        assert ran.output.split()[1:] == ["nice", nice]


def test_disk_that_was_too_much_only_at_the_end_is_told_too(limited):
    ran = limited("seq 3000 | xargs touch; exit 3", disk_bytes=8 * MiB)
    assert ran.exceeded == Limit.DISK


def test_file_with_many_names_counts_once(limited):
    fill = "head -c 3000000 /dev/urandom > x; for i in $(seq 30); do ln x y$i; done"
    assert limited(f"{fill}; exit 3", disk_bytes=8 * MiB).exceeded is None


def test_build_ends_before_the_disk_is_full_for_everybody(limited, own_dir):
    state = os.statvfs(own_dir)
    more = state.f_bavail * state.f_frsize + (1 << 40)
    ran = limited("sleep 20", disk_free_bytes=more)
    assert ran.exceeded == Limit.DISK_FREE


@pytest.fixture(scope="module")
def small_disk():
    """A disk of its own, that can hold 38,000 files."""
    with disk_of("ext4", lambda _: None) as disk:
        where = disk.begin()
        where.chmod(0o777)
        yield where


def on_small_disk(in_sandbox, starter, where, command, **limits):
    folder = where / f"app-{time.monotonic_ns()}"
    folder.mkdir()
    folder.chmod(0o777)
    binds = [[str(folder), APP_DIR, True]]
    limits = {"disk_bytes": 400 * MiB, "disk_free_bytes": 300 * MiB, "file_bytes": 1 << 30} | limits
    try:
        ran = in_sandbox(
            command,
            starter=starter,
            binds=binds,
            cwd=APP_DIR,
            limits=limits,
            is_background=True,
            kill_after_s=100,
        )
        ran.ended_at = time.monotonic()
        return ran, os.statvfs(where)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("rest", ["; sleep 20", "", " 2>/dev/null; exit 0"])
@pytest.mark.parametrize("count", [25_000, 60_000])
@pytest.mark.root
def test_build_ends_before_no_file_can_be_made_by_anybody(
    in_sandbox, runner, small_disk, rest, count
):
    """Who makes them rests behind each 4,000: no machine is faster than the watch then."""
    make = f"seq {count} | xargs -n 4000 sh -c 'touch \"$@\" && sleep 0.3' sh{rest}"
    ran, left = on_small_disk(in_sandbox, runner, small_disk, make)
    assert ran.exceeded == Limit.FILES_FREE
    assert ran.seconds < 20
    assert left.f_favail > 0, "it was ended before it had them all"


@pytest.mark.root
def test_slot_itself_makes_no_more_files_than_a_build_may(small_disk):
    limits = Limits(disk_bytes=400 * MiB, disk_free_bytes=300 * MiB)
    assert shortage(small_disk, limits, new_names=10_000) is None
    assert shortage(small_disk, limits, new_names=20_000) == Limit.FILES_FREE
    allowance = DiskAllowance(small_disk, limits)

    def take_all():
        for number in range(40_000):
            allowance.take()
            (made / f"{number}").touch()

    made = small_disk / "made"
    made.mkdir()
    try:
        with pytest.raises(BuildFailedError, match=r"too few more files .*disk_free_bytes_min"):
            take_all()
        state = os.statvfs(small_disk)
        least = state.f_files * limits.disk_free_bytes / (state.f_blocks * state.f_frsize)
        assert least <= state.f_favail <= least + 600
    finally:
        shutil.rmtree(made)


@pytest.mark.root
@pytest.mark.soak
def test_disk_that_does_not_bound_its_files_is_not_short_of_them():
    with disk_of("btrfs", lambda _: None) as disk:
        limits = Limits(disk_free_bytes=60 * MiB)
        assert shortage(disk.begin(), limits, new_names=1 << 40) is None


MANY_NAMES = """
import os, time
for name in "abcd":
    open(name, "w").close()
    for number in range(50_000):
        os.link(name, f"{name}{number}")
time.sleep(4)
print(time.monotonic(), flush=True)
open("x", "wb").write(bytes(40 << 20))
time.sleep(60)
"""


@pytest.mark.root
@pytest.mark.soak  # for as long as it takes to make so many names, and then to remove them
def test_disk_is_looked_at_on_time_where_to_walk_through_it_takes_long(
    in_sandbox, runner, small_disk
):
    """After a walk of half a second nobody looked for five what the disk had left."""
    state = os.statvfs(small_disk)
    least = state.f_bavail * state.f_frsize - 25 * MiB
    hog = python(MANY_NAMES)
    ran, _ = on_small_disk(
        in_sandbox, runner, small_disk, hog, disk_free_bytes=least, disk_bytes=1 << 40
    )
    assert ran.exceeded == Limit.DISK_FREE
    assert ran.ended_at - float(ran.output) < 4


@pytest.mark.parametrize(
    "write",
    [
        "head -c 9000000 /dev/zero > x",
        "truncate -s 9M x",
        'python3 -c \'open("x", "wb", 0).write(bytes(9 << 20)); 1/0\'',
        "(head -c 9000000 /dev/zero > x; exit 0); exit 1",
    ],
)
def test_file_that_is_too_large_is_named(limited, write):
    assert limited(write, file_bytes=4 * MiB).exceeded == Limit.FILE


@pytest.mark.root
@pytest.mark.parametrize(
    "write",
    [
        "head -c 9000000 /dev/zero > x; exit 0",
        "head -c 9000000 /dev/zero | tee x | wc -c",
        "head -c 9000000 /dev/zero > x || true; sleep 20",
        "trap '' XFSZ; mkdir d; head -c 9000000 /dev/zero > d/x; exit 0",
    ],
)
def test_file_that_is_too_large_fails_a_build_whose_command_did_not_mind(
    in_sandbox, runner, small_disk, write
):
    ran, _ = on_small_disk(in_sandbox, runner, small_disk, write, file_bytes=4 * MiB)
    assert ran.exceeded == Limit.FILE
    assert ran.seconds < 20


@pytest.mark.root
def test_file_of_the_size_that_it_may_have_is_none_that_is_too_large(
    in_sandbox, runner, small_disk
):
    write = f"head -c {4 * MiB} /dev/zero > x; truncate -s 4M y; sleep 3"
    ran, _ = on_small_disk(in_sandbox, runner, small_disk, write, file_bytes=4 * MiB)
    assert (ran.status, ran.exceeded) == (0, None)


def test_full_tmp_is_named(limited):
    ran = limited("head -c 9000000 /dev/zero > /tmp/x; sleep 60", tmp_bytes=4 * MiB)
    assert ran.exceeded == Limit.TMP
    assert ran.seconds < 50, "it was ended, and not looked at when it had"


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "~"])
@pytest.mark.parametrize("rest", ["", "; exit 0"])
@pytest.mark.parametrize("before", ["", "sleep 0.5; "])
def test_tmp_that_ends_a_program_as_it_gets_full_is_named(limited, folder, rest, before):
    """Also at once, before the watch has looked for the first time."""
    ran = limited(f"{before}head -c 900000 /dev/zero > {folder}/x{rest}", tmp_bytes=MiB // 2)
    assert ran.exceeded == Limit.TMP


def test_limit_that_ends_it_at_once_is_told_before_any_look(limited):
    """It is over long before the watch would have looked."""
    for _ in range(2):
        ran = limited("head -c 1000000 /dev/zero > x", file_bytes=1000)
        assert ran.exceeded == Limit.FILE


# -- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", Limit)
def test_message_names_the_limit_its_value_and_the_setting(limit):
    limits = Limits(cpu_s=60, disk_bytes=4 << 30, disk_free_bytes=512 * MiB, file_bytes=1 << 30)
    text = explain(limit, limits, who="the build", section="builders")
    assert "the build" in text
    assert "(builders." in text
    assert any(value in text for value in ("GiB", "MiB", "512", "60 s"))


def test_message_of_memory_reads_well():
    text = explain(Limit.MEMORY, Limits(), who="the build", section="builders")
    assert text == "memory: the build used more than 1 GiB (builders.memory_bytes_max)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1 << 30, "1 GiB"),
        (3 << 29, "1.5 GiB"),
        (256 * MiB, "256 MiB"),
        (2048, "2 KiB"),
        (7, "7 bytes"),
    ],
)
def test_size_reads_well(count, text):
    assert in_units(count) == text
