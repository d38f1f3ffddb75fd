"""The queue with the installed daemon and the real git: pushes at once, newer ones, cancels."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.scenarios.conftest import wait_until

PAGE = "<!doctype html><title>t</title><p>{}</p>"
QUICK = '[build]\ncommand = "true"\noutput = "."\n'


def slow(nap: int) -> str:
    """Settings of a build that ends by itself in two hours, and minds no polite signal."""
    command = f"trap : TERM; (setsid sleep {nap} &) ; echo building now; sleep {nap}"
    return f"[build]\ncommand = '{command}'\noutput = 'out'\n"


def begin_push(work, refspec: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["git", "push", "--progress", "managed", refspec],
        cwd=work.path,
        env=work.server.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(push: subprocess.Popen[str], text: str) -> str:
    assert push.stdout is not None
    seen = ""
    while text not in seen:
        line = push.stdout.readline()
        assert line, seen
        seen += line
    return seen


def end(push: subprocess.Popen[str]) -> str:
    said, _ = push.communicate(timeout=60)
    assert push.returncode == 0, said
    return said


def is_alive(text: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if text.encode() in words:
                return True
    return False


def jobs(server, status: str):
    return server.api("GET", f"/jobs?status={status}&resource_type=build").json["data"]


def test_newer_push_takes_over_from_the_build_that_runs(server) -> None:
    work = server.work()
    work.commit({"managed.toml": slow(7261)})
    older = begin_push(work, "main")
    read_until(older, "building now")
    (work.path / "managed.toml").unlink()
    tip = work.commit({"index.html": PAGE.format("new")})
    said = work.push()
    assert "production is live" in said
    assert server.serves("new")
    said = end(older)
    assert f"superseded by a newer push, of commit {tip[:12]}" in said
    assert "nothing failed" in said
    [canceled] = server.mine(jobs(server, "canceled"))
    assert canceled["error"]["code"] == "build.superseded"
    wait_until(lambda: not is_alive("7261"), "the older build is dead")


def test_pushes_at_once_are_built_in_turn_and_a_cancel_starts_the_next(stopped) -> None:
    stopped.config = "[builders]\nslots = 1\n"
    stopped.start()
    stopped.new_site()
    server = stopped
    work, other = server.work(), server.work(folder="other")
    work.commit({"managed.toml": slow(7262)})
    first = begin_push(work, "main")
    read_until(first, "building now")
    for each in (work, other):
        each.commit({"managed.toml": QUICK, "index.html": PAGE.format(each.path.name)})
    pushes = [begin_push(work, "main:one"), begin_push(other, "main:two")]
    wait_until(lambda: len(jobs(server, "queued")) == 2, "both are queued")
    plain = server.work(folder="plain")
    plain.commit({"index.html": PAGE.format("plain")})
    assert "is live after" in end(begin_push(plain, "main:three")), "it needs no builder"
    assert sorted(job["queue_position"] for job in jobs(server, "queued")) == [1, 2]
    listed = server.mf("jobs", "list", "--status", "queued").stdout
    assert "QUEUE" in listed
    for push in pushes:
        read_until(push, "queued   ")
    [running] = jobs(server, "running")
    assert "canceled" in server.mf("jobs", "cancel", running["id"]).stdout
    said = "".join(map(end, pushes))
    assert said.count("is live after") == 2
    said = end(first)
    assert "build canceled" in said
    assert "mf build --site acme-store --env production --ref main --deploy --wait" in said
    wait_until(lambda: not is_alive("7262"), "the canceled build is dead")


def test_builder_that_hangs_is_ended_and_its_build_begins_again(server) -> None:
    work = server.work()
    settings = (
        "[build]\ncommand = 'echo building now; sleep 4; mkdir out; echo hi > out/index.html'"
    )
    work.commit({"managed.toml": f"{settings}\noutput = 'out'\n"})
    push = begin_push(work, "main")
    read_until(push, "building now")
    [hung] = [pid for pid in server.children("builder") if children_of(pid)]
    os.kill(hung, signal.SIGSTOP)
    said = end(push)
    assert "the builder was lost (fell silent)" in said
    assert "building now" in said, "once more"
    assert "production is live" in said
    assert hung not in server.children("builder")
    assert "child_hangs" in server.log()


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
