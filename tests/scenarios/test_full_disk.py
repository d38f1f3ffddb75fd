"""A disk that is really full, to its last byte, at every step of a push: what is live goes on, and
everything else as soon as there is room again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import wait_until
from tests.scenarios.test_collection import finish, release_all, releases, roll_back
from tests.scenarios.test_kills import Moment, commit, unfinished

MB = 1 << 20
SETTLED_S = 60.0
STEPS = ("receiving", "queued", "building", "rolling", "starting")
SMALL = """
[store]
free_bytes_min = 33554432
free_inodes_min = 100
collect_below_bytes = 50331648

[builders]
disk_free_bytes_min = 1048576
"""

NO_ROOM = ("store.no_space", "build.limit_exceeded", "deployment.host_failed")


@pytest.fixture
def small(stopped, folder: Path) -> Iterator[object]:
    """A server whose data lies on a disk of its own, of 160 MiB."""
    if os.getuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("makes and mounts a filesystem")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(160 * MB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    stopped.data.mkdir()
    if subprocess.run(["mount", "-o", "loop", image, stopped.data], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    stopped.config = SMALL
    stopped.reserve_bytes = 8 * MB
    try:
        stopped.start()
        stopped.new_site()
        yield stopped
    finally:
        stopped.end()
        subprocess.run(["umount", "-l", stopped.data], check=True)


def reserve_of(server) -> Path:
    return server.data / "store" / "reserve"


def fill(server) -> Path:
    """Take the disk's last byte, as another program might."""
    path = server.data / "somebody's"
    size = 4 * MB
    with path.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
        if not reserve_of(server).exists():  # given up meanwhile: not for this program
            file.truncate(max(0, file.tell() - server.reserve_bytes))
        os.fsync(file.fileno())
    is_full = shutil.disk_usage(server.data).free < MB
    assert is_full or not reserve_of(server).exists(), "what it has set aside it may give up"
    return path


@pytest.mark.root
def test_full_disk_stops_builds_and_pushes_and_nothing_else(small) -> None:
    work = small.work()
    release_all(small, work, ["one", "two"])
    work.push("main:staging")
    work.commit({"index.html": "three"})
    work.push("main:staging")
    reserve = reserve_of(small)
    filler = fill(small)

    # What is live serves on; it can be rolled back and promoted, more than once.
    assert small.serves("two")
    _, one = releases(small)
    assert finish(small, roll_back(small, one["id"]))["status"] == "succeeded"
    assert small.serves("one")
    path = "/sites/acme-store/environments/staging/promote"
    promoted = finish(small, small.api("POST", path, {"to_env": "production"}))
    assert promoted["status"] == "succeeded", promoted
    assert small.serves("three")
    assert finish(small, roll_back(small, one["id"]))["status"] == "succeeded"

    # What needs room says so, with the numbers.
    answer = small.api("POST", "/sites/acme-store/environments/production/builds", {"clean": True})
    failed = finish(small, answer)
    assert failed["error"]["code"] == "store.no_space"
    assert "33.6 MB are kept free" in failed["error"]["message"]
    work.commit({"index.html": "four"})
    said = work.push(check=False)
    assert "The server has no room for pushes" in said
    assert "33.6 MB are kept free" in said
    assert "507" in said
    work.git("fetch", "managed")
    small.gitd("gc")

    # It comes up on the full disk, too.
    assert small.stop() == 0
    small.start()
    assert small.serves("one")
    assert finish(small, roll_back(small, releases(small)[1]["id"]))["status"] == "succeeded"
    assert small.serves("three")
    assert not reserve.exists()

    filler.unlink()
    work.push()
    assert small.serves("four")
    assert json.loads(small.gitd("check", "--json"))["ok"]
    small.gitd("gc")
    assert reserve.stat().st_size == 8 * MB


@contextlib.contextmanager
def visited(server) -> Iterator[Counter]:
    """Somebody visits production all the time: what they get, counted."""
    found: Counter = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.01):
            try:
                answer = server.visit()
                found[answer.status, answer.body] += 1
            except OSError as error:
                found[type(error).__name__, b""] += 1

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        yield found
    finally:
        over.set()
        visitor.join()


@pytest.mark.root
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.soak] * (step != "building")) for step in STEPS]
)
def test_disk_that_is_full_at_a_step_harms_nothing_and_all_goes_on_with_room(
    small, step: str
) -> None:
    work = small.work()
    for version in ("one", "two"):
        commit(work, version)
        assert "production is live" in work.push()
    commit(
        work,
        "three",
        builds_s=1 if step == "building" else 0.1,
        starts_s=1 if step in ("rolling", "starting") else 0.1,
    )
    now = Moment(small, step)
    with visited(small) as found:
        with subprocess.Popen(
            ["git", "push", "--progress", "managed", "main"],
            cwd=work.path,
            env=small.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as push:
            wait_until(now.reached, f"{step} is reached")
            filler = fill(small)
            now.let_go()
            said = push.communicate(timeout=SETTLED_S)[1]
        wait_until(lambda: not unfinished(small), "every job has its end", SETTLED_S)
        last, *_ = small.jobs()
        print(f"{step}: the push ended with {push.returncode}, the last job so: {last}\n{said}")
        if last["status"] == "failed":
            assert last["error"]["code"] in NO_ROOM, last
        # What is live can be rolled back and forth.
        for number in (1, 2):
            back = releases(small)[number]
            assert finish(small, roll_back(small, back["id"]))["status"] == "succeeded"
        filler.unlink()
        commit(work, "four")
        began = time.monotonic()
        while "production is live" not in work.push(check=False):  # it looks every few seconds
            assert time.monotonic() - began < SETTLED_S, small.log()
    pages = {(200, f"version {each}".encode()) for each in ("one", "two", "three", "four")}
    assert set(found) <= pages, found
    assert small.visit().body == b"version four"
    assert json.loads(small.gitd("check", "--json"))["ok"]
