"""What tests start in forks is like what they would start anew."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm import warm

SHOWS = """
import os, sys, pathlib
print(sys.argv, os.getcwd(), sorted(os.environ), "json" in sys.modules, input())
print(*sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{fd}")))
words = pathlib.Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").split(b"\\0")
print([word for word in words if b"import" not in word], file=sys.stderr)
"""


@pytest.fixture(params=[subprocess.Popen, warm("import json")], ids=["anew", "warm"])
def popen(request):
    return request.param


def run(popen, *command, **options):
    pipe = subprocess.PIPE
    begun = popen([sys.executable, *command], stdin=pipe, stdout=pipe, stderr=pipe, **options)
    with begun:
        out, err = begun.communicate(b"said\n", timeout=60)
    return begun.returncode, out.decode(), err.decode()


def until(is_so) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_sees_what_it_is_given(popen, tmp_path: Path) -> None:
    with socket.socket() as inherited:
        fd = inherited.fileno()
        environ = {"A": "b", "LC_CTYPE": "C.UTF-8"}
        code, out, err = run(
            popen, "-c", "import json\n" + SHOWS, "word", cwd=tmp_path, env=environ, pass_fds=[fd]
        )
    assert code == 0, err
    assert out.splitlines() == [
        f"['-c', 'word'] {tmp_path} ['A', 'LC_CTYPE'] True said",
        f"0 1 2 {fd}",
    ]
    assert err.strip() == str([os.fsencode(sys.executable), b"-c", b"word"])


def test_programs_are_scripts_and_modules_too(popen, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("text = 'beside'")
    (tmp_path / "script.py").write_text(
        "import beside, sys\nprint(__name__, beside.text, sys.argv[1:], sys.path[0])"
    )
    said = f"__main__ beside ['1'] {tmp_path}\n"
    assert run(popen, tmp_path / "script.py", "1")[:2] == (0, said)
    assert run(popen, "-m", "script", "1", cwd=tmp_path)[:2] == (0, said)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('x', end='')", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('text')", 1, "text\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
        ("import atexit; atexit.register(print, 1); 1/0", 1, "ZeroDivisionError"),
        ("import warnings; warnings.warn('old')", 1, "UserWarning: old"),
    ],
)  # fmt: skip
def test_it_ends_as_it_would(popen, code, status, said) -> None:
    ended, _, err = run(popen, "-c", code, env={"PYTHONWARNINGS": "error"})
    assert ended == status
    assert said in err
    assert bool(said) or not err


def test_it_is_waited_for_and_killed(popen) -> None:
    with popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as begun:
        assert begun.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            begun.wait(0.01)
        begun.kill()
        assert begun.wait(30) == -signal.SIGKILL
        assert begun.poll() == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{begun.pid}").exists())


def test_one_that_has_ended_stays_until_it_is_waited_for(popen) -> None:
    with popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE) as begun:
        assert begun.stdout is not None
        assert begun.stdout.read() == b"\n"
        until(lambda: "State:\tZ" in Path(f"/proc/{begun.pid}/status").read_text())


@pytest.mark.parametrize(
    "option",
    [
        {"shell": True}, {"start_new_session": True}, {"process_group": 0}, {"umask": 0o77},
        {"user": os.getuid()}, {"group": os.getgid()}, {"extra_groups": []},
    ],
)  # fmt: skip
def test_what_a_fork_cannot_be_given_is_not_asked_for(option) -> None:
    with pytest.raises(AssertionError):
        warm("import json")([sys.executable, "-c", ""], **option)
