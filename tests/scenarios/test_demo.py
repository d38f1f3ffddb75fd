"""`make demo`, as somebody tries it: its commands can be repeated, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
VISIT = """
exec 3<> /dev/tcp/127.0.0.1/{port}
printf 'GET / HTTP/1.0\\r\\nHost: acme-store.localhost\\r\\n\\r\\n' >&3
cat <&3
kill %1
wait
"""


def start(*, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO)],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


@pytest.fixture(autouse=True)
def usual_ports_are_taken() -> Iterator[None]:
    """So that the demo takes others, and demos of two tests at once never the same."""
    with contextlib.ExitStack() as stack:
        for port in (8080, 8081):
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                taken.listen()
        yield


def interrupt_at(line: str, folder: Path) -> tuple[int, str]:
    """Run the demo, press Ctrl-C once it has said `line`; return its status and all it said."""
    with start(folder=folder) as demo:
        said = ""
        while line not in said:
            more = demo.stdout.readline()
            assert more, said
            said += more
        demo.send_signal(signal.SIGINT)
        said += demo.communicate(timeout=60)[0]
    return demo.returncode, said


def test_ctrl_c_in_the_middle_leaves_nothing(folder: Path) -> None:
    status, said = interrupt_at("$ git push managed main", folder)
    assert status == 130, said
    assert "Traceback" not in said
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []


@pytest.mark.soak
def test_commands_that_the_demo_prints_do_the_same_in_a_shell(folder: Path) -> None:
    status, said = interrupt_at("Ctrl-C ends it", folder)
    assert status == 0, said
    assert said.endswith("everything is removed.\n")
    assert list(folder.iterdir()) == []
    assert processes_of(folder) == []
    commands = re.findall(r"^\$ (.*)$", said, re.MULTILINE)
    port = re.search(r"http://acme-store.localhost:(\d+)", said)[1]
    script = ["set -eu", "export GIT_CONFIG_GLOBAL=/dev/null"]
    for command in commands:
        # Without a terminal a push has to be told to wait.
        script.append(command.replace("git push", "git push --progress"))
        if command.endswith("&"):
            address = re.search(r"--listen ([\d.]+):(\d+)", command).expand(r"\1/\2")
            script.append(f"until (: </dev/tcp/{address}) 2>/dev/null; do sleep 0.1; done")
    script.append(VISIT.format(port=port))
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Version one" in done.stdout
    assert processes_of(folder) == []
