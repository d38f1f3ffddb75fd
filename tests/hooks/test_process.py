"""Child processes: real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hooks.process import Process

ROOT = Path(__file__).parents[2]


async def ran(*argv, **environ):
    output = bytearray()
    process = Process.start(argv, environ=environ, on_output=output.extend)
    return await process.wait(), output.decode()


async def test_process_gives_output_and_error_in_order_and_its_status():
    assert await ran("/bin/sh", "-c", "echo a; echo b >&2; exit 3") == (3, "a\nb\n")


async def test_process_has_exactly_the_given_environment_and_no_input():
    assert await ran("/usr/bin/env", A="1") == (0, "A=1\n")
    assert await ran("/bin/cat") == (0, "")


async def test_death_by_signal_is_128_and_the_signal():
    assert await ran("/bin/sh", "-c", "kill -TERM $$") == (143, "")


async def test_program_that_is_not_there_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        Process.start(["/no/such/program"], environ={}, on_output=print)


async def test_kill_ends_the_process_and_its_group():
    output = bytearray()
    process = Process.start(
        ["/bin/sh", "-c", "sleep 30 & echo $!; wait"], environ={}, on_output=output.extend
    )
    while b"\n" not in output:
        await asyncio.sleep(0.005)
    process.kill()
    assert await process.wait() == 137
    await _dead(int(output))


async def test_wait_ends_what_the_process_left_in_its_group():
    status, output = await ran("/bin/sh", "-c", "sleep 30 & echo $!; exit 4")
    assert status == 4
    await _dead(int(output))


async def test_wait_may_be_called_twice_and_canceled():
    process = Process.start(["/bin/sleep", "1"], environ={}, on_output=print)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.05)
    assert await asyncio.gather(process.wait(), process.wait()) == [0, 0]
    process.kill()
    process.signal(signal.SIGTERM)


async def test_open_files_are_not_inherited(tmp_path):
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        status, _ = await ran("/bin/sh", "-c", f"test -e /proc/self/fd/{secret.fileno()}")
    assert status == 1


async def _dead(pid):
    async with asyncio.timeout(20):
        while _is_alive(pid):
            await asyncio.sleep(0.005)


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=20,
        **options,
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_dropped_privileges_do_not_come_back():
    done = python(
        "import os\n"
        "from hooks.process import drop_privileges\n"
        "drop_privileges(60691, 60692)\n"
        "print(os.getresuid(), os.getresgid(), os.getgroups())\n"
        "try: os.setuid(0)\n"
        "except PermissionError: print('refused')\n"
        "status = open('/proc/self/status').read()\n"
        "print([line for line in status.splitlines() if line[:6] in ('CapEff', 'NoNewP')])\n"
        "'ü'.encode('idna'), 'ü'.encode('unicode_escape')\n"
    )
    assert done.stdout.splitlines() == [
        "(60691, 60691, 60691) (60692, 60692, 60692) []",
        "refused",
        "['CapEff:\\t0000000000000000', 'NoNewPrivs:\\t1']",
    ]
    assert done.stderr == ""


def test_child_that_dies_with_its_parent_does():
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import os, time\\n"
        "from hooks.process import die_with_parent\\n"
        "die_with_parent(os.getppid())\\n"
        "print(os.getpid(), flush=True)\\n"
        "time.sleep(60)'])\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert _is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_parent_that_is_gone_already_counts_as_dead():
    done = python("from hooks.process import die_with_parent\ndie_with_parent(1)\nprint('alive')")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == ""
