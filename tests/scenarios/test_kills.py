"""kill -9 of each process at each moment of a push and of a roll.

Afterwards, within ten seconds of the restart: no job without an end, one whole release that is
what the records say, nothing wrong in the store, and the next push goes live.
Source: docs/architecture.md, "When things die".
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import time

import pytest

SETTLED_S = 10.0
OWNED_S = 5.0
APP = """
import http.server, os, time
time.sleep(0.3)
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
SETTINGS = '[build]\ncommand = "echo building now; sleep 0.4"\n'
MOMENTS = ("receiving", "queued", "building", "rolling", "starting")


def unfinished(server):
    jobs = server.api("GET", "/jobs").json["data"]
    return [job for job in jobs if job["status"] in ("queued", "running")]


def commit(work, version: str) -> str:
    return work.commit(
        {
            "Procfile": "web: python3 app.py\n",
            "managed.toml": SETTINGS,
            "app.py": APP.replace("{version}", version),
        }
    )


def wait_for_moment(server, moment: str) -> None:
    """Return at the moment, or when it is over: a kill then is a kill at another good moment."""
    if moment == "receiving":
        time.sleep(0.03)
        return
    end = time.monotonic() + 10
    while time.monotonic() < end:
        jobs = unfinished(server)
        types = {job["type"] for job in jobs}
        if moment == "queued" and jobs:
            return
        if moment == "building" and "build.run" in types:
            build = next(job for job in jobs if job["type"] == "build.run")["resource"]["id"]
            path = f"/sites/acme-store/environments/production/builds/{build}/log"
            if b"building now" in server.api("GET", path).body:
                return
        if moment in ("rolling", "starting") and "deployment.roll" in types:
            if moment == "starting":
                time.sleep(0.15)
            return
        time.sleep(0.005)


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


@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        *itertools.product(("control", "builder", "host"), MOMENTS),
        ("control and builder", "building"),
    ],
)
def test_killed_process_loses_nothing(server, victim: str, moment: str) -> None:
    work = server.work()
    commit(work, "one")
    work.push()
    assert server.visit().body == b"version one"
    new = commit(work, "two")
    push = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_moment(server, moment)
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
    if "control" in victim:
        server.start()
    restarted = time.monotonic()
    if "host" not in victim:
        while held & leases(server) - {None}:
            assert time.monotonic() - restarted < OWNED_S, "running without an owner"
            time.sleep(0.05)
    while unfinished(server):
        assert time.monotonic() - restarted < SETTLED_S, (unfinished(server), server.log())
        time.sleep(0.05)
    push.wait(30)
    if moment == "building":  # what was in the log before the kill is there after it
        [build, *_] = server.api("GET", "/jobs?resource_type=build").json["data"]
        path = f"/sites/acme-store/environments/production/builds/{build['resource']['id']}/log"
        assert b"building now" in server.api("GET", path).body
    tip = work.git("ls-remote", "managed", "refs/heads/main").stdout.split()[0]
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
