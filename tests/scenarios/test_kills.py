"""kill -9 of each process at each moment of a push and of a roll.

Afterwards, within ten seconds of the restart: no job without an end, one whole release that is
what the records say, nothing wrong in the store, and the next push goes live.
Source: docs/architecture.md, "When things die".
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.scenarios.conftest import wait_until

# 10 and 5 s are what is promised of a machine that does nothing else.
SETTLED_S = 3 * 10.0
OWNED_S = 5.0
BUSY_S_MAX = 10.0  # what is allowed besides, where the machine is busy: with this server, too
APP = """
import http.server, os, time
time.sleep({starts_s})
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"version {version}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"""
SETTINGS = '[build]\ncommand = "echo building now; sleep {builds_s}"\n'
MOMENTS = ("receiving", "queued", "building", "rolling", "starting")
HOOK = """#!/bin/sh
touch {folder}/reached
while [ -e {folder}/hold ]; do sleep 0.02; done
"""
HOOKS = {"receiving": "pre-receive", "landing": "post-receive"}


def unfinished(server):
    jobs = server.api("GET", "/jobs").json["data"]
    return [job for job in jobs if job["status"] in ("queued", "running")]


def commit(work, version: str, *, builds_s: float = 0.1, starts_s: float = 0.1) -> str:
    app = APP.replace("{version}", version).replace("{starts_s}", str(starts_s))
    return work.commit(
        {
            "Procfile": "web: python3 app.py\n",
            "managed.toml": SETTINGS.format(builds_s=builds_s),
            "app.py": app,
        }
    )


class Moment:
    """A moment of a push and its roll, long enough to be met: `reached` says that it is now."""

    def __init__(self, server, name: str) -> None:
        self._server = server
        self._name = name
        self._hold = server.root / "hold"
        if name in HOOKS:  # git's own hooks, which the push waits for
            self._hold.touch()
            (repository,) = (server.data / "repos").glob("*.git")
            hook = repository / "hooks" / HOOKS[name]
            hook.write_text(HOOK.format(folder=server.root))
            hook.chmod(0o755)

    def reached(self) -> bool:
        if self._name in HOOKS:
            return (self._server.root / "reached").exists()
        jobs = {job["type"]: job for job in unfinished(self._server)}
        build, roll = jobs.get("build.run"), jobs.get("deployment.roll")
        if self._name == "queued":
            return build is not None
        if self._name == "building":
            return build is not None and self._log_says(build, "building now")
        if self._name == "rolling":
            return roll is not None
        return roll is not None and self._log_says(roll, "$ python3 app.py")

    def _log_says(self, job, text: str) -> bool:
        logs = (self._server.data / "joblogs").rglob(f"{job['id']}*")
        return any(text.encode() in log.read_bytes() for log in logs)

    def let_go(self) -> None:
        """Let the push go on that waits at this moment."""
        self._hold.unlink(missing_ok=True)


def serves_what_the_records_say(server) -> str | None:
    path = "/sites/acme-store/environments/production/releases"
    current = [r for r in server.api("GET", path).json["data"] if r["current"]]
    assert len(current) == 1
    answer = server.visit()
    return answer.body.decode() if answer.status == 200 else None


def leases(server) -> set[str]:
    """The leases of the builds that count as running, straight from the records."""
    with contextlib.closing(sqlite3.connect(server.data / "gitd.db", timeout=10)) as db:
        return {row[0] for row in db.execute("SELECT lease_id FROM job WHERE status = 'running'")}


KILLS = [
    *itertools.product(("control", "builder", "host"), MOMENTS),
    ("control", "landing"),
    ("control and builder", "building"),
]
# When the one that dies has no part in what goes on, or hardly another one than a moment later.
LEFT_TO_SOAK = {
    *itertools.product(["builder"], ("receiving", "queued", "rolling", "starting")),
    *itertools.product(["host"], ("receiving", "queued", "building", "rolling")),
    *itertools.product(["control"], ("queued", "rolling")),
}


def waited_for_the_machine_s() -> float:
    """How long some process has waited for a processor or a disk; for ever where nobody counts.

    Processes of the server and of the test count as well: nobody tells them from others.

    Source: Linux 6.1, Documentation/accounting/psi.rst.
    """
    total_us = 0
    for what in ("cpu", "io"):
        try:
            some = Path("/proc/pressure", what).read_text().splitlines()[0]
        except OSError:
            return time.monotonic()
        total_us += int(some.rpartition("total=")[2])
    return total_us / 1e6


@pytest.mark.parametrize(
    ("victim", "moment"),
    [pytest.param(*kill, marks=[pytest.mark.soak] * (kill in LEFT_TO_SOAK)) for kill in KILLS],
)
def test_killed_process_loses_nothing(server, victim: str, moment: str) -> None:
    work = server.work()
    commit(work, "one")
    work.push()
    assert server.visit().body == b"version one"
    new = commit(
        work,
        "two",
        builds_s=1 if moment == "building" else 0.1,
        starts_s=1 if moment in ("rolling", "starting") else 0.1,
    )
    now = Moment(server, moment)
    push = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(now.reached, f"{moment} is reached")
    held = leases(server)
    if "control" in victim:
        server.kill()
        held = leases(server)
    if victim != "control":
        pids = server.children(victim.rsplit(maxsplit=1)[-1])
        assert pids or "control" in victim
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    now.let_go()
    if "control" in victim:
        push.wait(30)
        server.start()
    restarted, waited_s = time.monotonic(), waited_for_the_machine_s()
    if "host" not in victim:
        while held & leases(server) - {None}:
            busy_s = min(BUSY_S_MAX, waited_for_the_machine_s() - waited_s)
            assert time.monotonic() - restarted - busy_s < OWNED_S, "running without an owner"
            time.sleep(0.05)
    if "control" not in victim:
        push.wait(30)
    while unfinished(server):
        assert time.monotonic() - restarted < SETTLED_S, (unfinished(server), server.log())
        time.sleep(0.05)
    if moment == "building":  # what was in the log before the kill is there after it
        [build, *_] = server.api("GET", "/jobs?resource_type=build").json["data"]
        path = f"/sites/acme-store/environments/production/builds/{build['resource']['id']}/log"
        assert b"building now" in server.api("GET", path).body
    tip = work.git("ls-remote", "managed", "refs/heads/main").stdout.split()[0]
    if moment == "receiving" and "control" in victim:
        assert tip != new, "killed before the refs moved"
    else:
        assert tip == new
    end = time.monotonic() + SETTLED_S
    said = None
    while said is None and time.monotonic() < end:
        said = serves_what_the_records_say(server)
        time.sleep(0.02)
    assert said == ("version two" if tip == new else "version one"), server.log()
    assert "all well" in server.gitd("check")
    commit(work, "three")
    work.push("--force", "main")
    assert server.visit().body == b"version three"


def test_push_under_way_is_told_to_go_on_elsewhere_when_the_server_is_stopped(server) -> None:
    """SIGTERM: what a push waits for goes on at the next start, and nothing is lost."""
    work = server.work()
    commit(work, "one")
    work.push()
    new = commit(work, "two", builds_s=1)
    push = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = ""
    while "building now" not in said:
        line = push.stderr.readline()
        assert line, said
        said += line
    assert server.stop() == 0
    said += push.communicate(timeout=30)[1]
    assert push.returncode == 0, "its refs had moved"
    assert "gitd is being stopped; go on with: mf jobs wait job_" in said
    assert "hung up" not in said
    with pytest.raises(OSError, match="refused"):  # the site host is stopped too
        server.visit()
    server.start()
    server.wait_for("version two", timeout_s=SETTLED_S)
    assert work.git("ls-remote", "managed", "refs/heads/main").stdout.split()[0] == new


def test_release_command_of_a_roll_that_is_done_again_is_heard_again(server) -> None:
    work = server.work()
    # The first time it goes on until the host is killed.
    said = "mkdir /data/was && nap=60; for n in 1 2 3; do echo line $n; done; sleep ${nap:-0}"
    app = APP.replace("{version}", "one").replace("{starts_s}", "0")
    work.commit({"Procfile": f"web: python3 app.py\nrelease: {said}\n", "app.py": app})
    push = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    heard = ""
    while "line 3" not in heard:
        line = push.stderr.readline()
        assert line, heard
        heard += line
    for pid in server.children("host"):
        os.kill(pid, signal.SIGKILL)
    heard += push.communicate(timeout=60)[1]
    assert server.visit().body == b"version one"
    assert [heard.count(f"release  line {n} ") for n in (1, 2, 3)] == [2, 2, 2], heard


def test_sites_serve_on_while_control_is_dead(server) -> None:
    work = server.work()
    commit(work, "one")
    work.push()
    hosts = server.children("host")
    server.kill()
    for _ in range(20):
        assert server.visit().body == b"version one"
    server.start()
    assert server.children("host") == hosts, "taken over, not started anew"
    commit(work, "two")
    work.push()
    assert server.visit().body == b"version two"


def test_everything_killed_at_once_comes_back_with_the_next_start(server) -> None:
    work = server.work()
    commit(work, "one")
    work.push()
    pids = server.children("host") + server.children("builder")
    server.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.start()
    server.wait_for("version one", timeout_s=SETTLED_S)


def test_child_that_cannot_be_started_is_tried_again_and_control_serves_on(server) -> None:
    """Its start needs files that control may not open now; so it might be with memory."""
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, limits[1]))
    for host in server.children("host"):
        os.kill(host, signal.SIGKILL)
    wait_until(lambda: "child_not_started" in server.log(), "its start fails")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: server.children("host"), "it is started")
    work = server.work()
    commit(work, "one")
    work.push()
    assert server.visit().body == b"version one"


def test_host_without_a_note_for_the_next_control_serves_on(server) -> None:
    """No room to write it, for instance: what is in the way here."""
    in_the_way = server.data / "run" / "host.new"
    in_the_way.mkdir()
    try:
        for host in server.children("host"):
            os.kill(host, signal.SIGKILL)
        wait_until(lambda: "child_not_noted" in server.log(), "it cannot be noted")
        work = server.work()
        commit(work, "one")
        work.push()
        assert server.visit().body == b"version one"
    finally:
        in_the_way.rmdir()
