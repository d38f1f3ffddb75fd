"""The units: what the service manager's own checker says of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from hooks.builds.sandbox import seccomp
from tests.ports import free_port

UNITS = Path(__file__).parents[2] / "systemd"
BIN = Path(sys.executable).parent
CALLS_OF_X86_64 = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
UNIT_KINDS = {".service", ".socket", ".timer"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_units_pass_the_verifier(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "gitd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    names = []
    for unit in (path for path in UNITS.iterdir() if path.suffix in UNIT_KINDS):
        text = unit.read_text().replace("/opt/gitd", str(tmp_path))
        (tmp_path / unit.name).write_text(text)
        names.append(str(tmp_path / unit.name.replace("@.", "@0.")))
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_program_that_tries_a_call_which_its_unit_does_not_allow_is_not_killed(path: Path) -> None:
    """Node tries memory protection keys as it starts."""
    assert "SystemCallFilter" in settings_of(path)
    assert settings_of(path)["SystemCallErrorNumber"] == ["ENOSYS"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.skipif(not CALLS_OF_X86_64.exists(), reason="needs the headers of the C library")
@pytest.mark.parametrize("name", ["gitd-builder@.service", "gitd-host.service"])
def test_calls_that_a_sandbox_allows_are_allowed_by_the_unit_around_it(name: str) -> None:
    has_numbers = re.findall(r"__NR_(\w+) \d+", CALLS_OF_X86_64.read_text())
    for_nobody = {"adjtimex", "fanotify_mark"}  # refused in it for want of rights
    for_nobody |= {"afs_syscall", "getpmsg", "putpmsg", "security", "sysfs", "tuxcall", "vserver"}
    known = expanded(["@known"])
    allowed = expanded(" ".join(settings_of(UNITS / name)["SystemCallFilter"]).split())
    refused = set(seccomp._DENIED) | for_nobody
    assert set(has_numbers) & known - refused - allowed == set()


def settings_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def expanded(names: list[str]) -> set[str]:
    """The calls that are meant, as the service manager resolves its groups of them."""
    calls = {name for name in names if not name.startswith("@")}
    for group in set(names) - calls:
        done = subprocess.run(
            ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
        )
        lines = [line.strip() for line in done.stdout.splitlines()[1:]]
        calls |= expanded([line for line in lines if line and not line.startswith("#")])
    return calls


def test_slot_is_not_watched_before_it_is_ready() -> None:
    slot = settings_of(UNITS / "gitd-builder@.service")
    assert "WatchdogSec" in slot
    assert slot["Type"] == ["notify"]


def test_control_may_take_its_time_to_give_the_records_their_new_form() -> None:
    control = settings_of(UNITS / "gitd.service")
    assert (control["Type"], control["TimeoutStartSec"]) == (["notify"], ["infinity"])


def test_slots_weigh_what_their_unit_says_against_other_services() -> None:
    """Instances have by default a slice of their template, and weigh in there alone."""
    slot = settings_of(UNITS / "gitd-builder@.service")
    assert (slot["Slice"], slot["CPUWeight"], slot["IOWeight"]) == (
        ["system.slice"],
        ["10"],
        ["10"],
    )


def test_slot_tells_the_service_manager_that_it_is_ready_and_then_that_it_does_not_hang(
    tmp_path: Path,
) -> None:
    own = ["--uid", "60691", "--gid", "60691"] if os.geteuid() == 0 else []
    scratch = tempfile.mkdtemp(prefix="gitd-test-")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = f"gitd-test-{os.getpid()}"
        manager.bind(f"\0{address}")
        manager.settimeout(30)
        slot = subprocess.Popen(
            [
                *(sys.executable, "-m", "gitd", "builder", "--socket", str(tmp_path / "none.sock")),
                *("--scratch", scratch, "--slot", "s", *own),
            ],
            env={**os.environ, "NOTIFY_SOCKET": f"@{address}", "WATCHDOG_USEC": "100000"},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            slot.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, slot.pid, os.WSTOPPED)
            manager.settimeout(0.3)  # three of its periods
            said_before = 0
            with contextlib.suppress(TimeoutError):
                while said_before < 100:
                    said_before += len(manager.recv(100)) > 0
            assert said_before < 100, "it says so without end, and hangs"
        finally:
            slot.kill()
            slot.wait()
            shutil.rmtree(scratch)


def test_site_host_of_the_service_says_ready_when_it_listens_where_the_settings_say(
    tmp_path: Path,
) -> None:
    (line,) = re.findall(
        r"^ExecStart=(.*)$", (UNITS / "gitd-host.service").read_text(), re.MULTILINE
    )
    port = free_port()
    settings = tmp_path / "gitd.toml"
    settings.write_text(f'[sites]\nlisten = "127.0.0.1:{port}"\n')
    (tmp_path / "gitd-host").mkdir()
    own = {"/etc/gitd/gitd.toml": str(settings), "/opt/gitd/bin/gitd": f"{BIN / 'gitd'}"}
    words = [own.get(word, word.replace("/var/lib", str(tmp_path))) for word in line.split()]
    assert str(settings) in words
    assert settings_of(UNITS / "gitd-host.service")["Type"] == ["notify"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0gitd-test-{os.getpid()}")
        manager.settimeout(60)
        with (tmp_path / "log").open("wb") as log:
            environ = {**os.environ, "NOTIFY_SOCKET": f"@gitd-test-{os.getpid()}"}
            host = subprocess.Popen(words, env=environ, stdout=log, stderr=log)
        try:
            assert manager.recv(100) == b"READY=1"
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            pytest.fail((tmp_path / "log").read_text())
        finally:
            host.kill()
            host.wait()


def test_site_host_waits_for_a_store_that_control_has_not_opened_yet() -> None:
    """As after a restore: the units are started together, and control opens the store."""
    own = ["--uid", "60692", "--gid", "60692"] if os.geteuid() == 0 else []
    root = Path(tempfile.mkdtemp(prefix="gitd-test-"))
    root.chmod(0o711)
    store = root / "store"
    store.mkdir(mode=0o700 if own else 0)
    command = [sys.executable, "-m", "gitd", "host", "--socket", str(root / "none.sock"), *own]
    command += ["--dir", str(root / "sites"), "--store", str(store), "--listen", "127.0.0.1:0"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0gitd-test-{os.getpid()}")
        manager.settimeout(60)
        host = subprocess.Popen(
            command,
            env={**os.environ, "NOTIFY_SOCKET": f"@gitd-test-{os.getpid()}"},
            stderr=subprocess.PIPE,
        )
        try:
            assert host.stderr is not None
            assert any(b"store_closed" in line for line in host.stderr)
            store.chmod(0o755)
            assert manager.recv(100) == b"READY=1"
        finally:
            host.kill()
            host.communicate()
            shutil.rmtree(root)


def test_settings_of_the_service_are_valid_and_name_the_users_it_makes() -> None:
    from gitd.config import load

    config = load(UNITS / "gitd.toml", {})
    users = {
        line.split()[1]
        for line in (UNITS / "gitd.sysusers").read_text().splitlines()
        if line.startswith("u ")
    }
    assert {"gitd", config.host.user, *config.builders.users} == users


@pytest.mark.soak  # two installations with pip
def test_installation_for_elsewhere_says_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    made = tmp_path / "made"
    subprocess.run(
        ["make", "install-service", f"DESTDIR={made}", f"PYTHON={sys.executable}"],
        cwd=UNITS.parent,
        env={**os.environ, "PIP_NO_DEPS": "1"},  # what it stands on is the same, and takes long
        check=True,
        capture_output=True,
    )
    programs = made / "opt/gitd/bin"
    for name in ("gitd", "mf", "pip"):
        assert (programs / name).read_text().startswith("#!/opt/gitd/bin/python3")
    files = [path for path in made.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if str(made).encode() in path.read_bytes()] == []
    unit = (made / "etc/systemd/system/gitd.service").read_text()
    assert "ExecStart=/opt/gitd/bin/gitd serve" in unit
    assert (made / "etc/systemd/system/gitd-backup.timer").exists()
    assert (made / "etc/sysusers.d/gitd.conf").exists()
    assert (made / "etc/gitd/gitd.toml").exists()
    if os.geteuid() == 0:  # as it will be found: at its own place
        moved = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/opt"]
        moved += ["--bind", str(made / "opt/gitd"), "/opt/gitd", "/opt/gitd/bin/gitd", "--version"]
        stands_on = {"PYTHONPATH": sysconfig.get_path("purelib")}
        done = subprocess.run(
            moved, env={**os.environ, **stands_on}, capture_output=True, text=True, cwd="/"
        )
        assert (done.returncode, done.stdout) == (0, f"gitd, version {version('gitd')}\n")
