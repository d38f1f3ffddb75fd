"""Collecting beside the running daemon, and a disk that is really full."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MB = 1 << 20
KEEP_LITTLE = """
[retention]
releases = 2
branch_artifacts = 0
recent_s = 0
grace_s = {grace_s}
"""


def finish(server, answer) -> dict:
    assert answer.status == 202, answer.body
    job_id = answer.json["data"]["id"]
    while True:
        job = server.api("GET", f"/jobs/{job_id}?wait=10").json["data"]
        if job["status"] not in ("queued", "running"):
            return job


def releases(server, env="production") -> list[dict]:
    return server.api("GET", f"/sites/acme-store/environments/{env}/releases").json["data"]


def roll_back(server, named: str, env="production"):
    path = f"/sites/acme-store/environments/{env}/deployments/{named}/rollback"
    return server.api("POST", path)


def release_all(server, work, contents) -> None:
    for content in contents:
        work.commit({"index.html": content})
        work.push()
        assert server.serves(content)


def stored(server) -> set[str]:
    return {path.name for path in (server.data / "store" / "blobs").rglob("*/*")}


@pytest.fixture
def keeper(stopped):
    """A server that keeps little, with four releases of production: one, two, three, four."""
    stopped.config = KEEP_LITTLE.format(grace_s=86400)
    stopped.start()
    stopped.gitd("gc")  # and the server's own is not due for an hour
    stopped.new_site()
    work = stopped.work()
    release_all(stopped, work, ["one", "two", "three", "four"])
    stopped.tree = work
    return stopped


def test_gc_says_what_goes_and_why_and_what_is_listed_stays_deployable(keeper) -> None:
    before = stored(keeper)
    said = keeper.gitd("gc", "--dry-run")
    assert said.count("expires") == 2
    assert "acme-store: nothing keeps it; can be pinned until" in said
    assert "1 artifacts kept: runs on an environment" in said
    assert "1 artifacts kept: among the last releases of an environment" in said
    assert [r["available"] for r in releases(keeper)] == [True] * 4
    keeper.gitd("gc")
    assert stored(keeper) == before  # they can be brought back for a day
    four, three, two, one = releases(keeper)
    assert [r["available"] for r in (four, three, two, one)] == [True, True, False, False]

    refused = keeper.mf(
        "rollback", one["id"], "--site", "acme-store", "--env", "production", check=False
    )
    assert refused.returncode == 3
    assert "release.unavailable" in refused.stderr
    keeper.mf("artifacts", "pin", two["artifact_id"], "--site", "acme-store", "--env", "production")
    assert finish(keeper, roll_back(keeper, two["id"]))["status"] == "succeeded"
    assert keeper.serves("two")

    keeper.config = KEEP_LITTLE.format(grace_s=0)
    (keeper.root / "now.toml").write_text(keeper.config)
    report = json.loads(keeper.gitd("gc", "--json", "--config", str(keeper.root / "now.toml")))
    fates = {item["id"]: item["fate"] for item in report["artifacts"]}
    assert fates == {one["artifact_id"]: "dropped", three["artifact_id"]: "dropped"}
    assert (report["trees"], report["blobs"], report["freed"], report["logical"]) == (2, 2, 8, 8)
    assert len(before - stored(keeper)) == 2
    for wanted in (four, two):
        assert finish(keeper, roll_back(keeper, wanted["id"]))["status"] == "succeeded"
    assert roll_back(keeper, one["id"]).json["error"]["code"] == "release.unavailable"
    assert json.loads(keeper.gitd("check", "--json"))["ok"]


def test_site_host_verifies_and_serves_again_whatever_was_collected(keeper) -> None:
    (keeper.root / "now.toml").write_text(KEEP_LITTLE.format(grace_s=0))
    keeper.gitd("gc", "--config", str(keeper.root / "now.toml"))
    (host,) = keeper.children("host")
    shutil.rmtree(keeper.data / "host" / "environments")  # as if its disk were new
    os.kill(host, signal.SIGKILL)
    keeper.wait_for("four")


def test_gc_that_is_killed_harms_nothing(keeper) -> None:
    (keeper.root / "now.toml").write_text(KEEP_LITTLE.format(grace_s=0))
    command = ["gitd", "gc", "--data", str(keeper.data), "--config", str(keeper.root / "now.toml")]
    collecting = subprocess.Popen(command, env=keeper.environ, stdout=subprocess.DEVNULL)
    # At some moment of it: the sweep over all of them is in tests/storage.
    while collecting.poll() is None and len(stored(keeper)) == 4:
        os.sched_yield()
    collecting.kill()
    collecting.wait()
    keeper.gitd("gc", "--config", str(keeper.root / "now.toml"))
    assert json.loads(keeper.gitd("check", "--json"))["ok"]
    assert len(stored(keeper)) == 2
    _, three, *_ = releases(keeper)
    assert finish(keeper, roll_back(keeper, three["id"]))["status"] == "succeeded"


# -- a full disk -------------------------------------------------------------------------------

SMALL = """
[store]
free_bytes_min = 33554432
free_inodes_min = 100
collect_below_bytes = 50331648
"""


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
        os.fsync(file.fileno())
    assert shutil.disk_usage(server.data).free < MB
    return path


@pytest.mark.root
def test_full_disk_stops_builds_and_pushes_and_nothing_else(small) -> None:
    work = small.work()
    release_all(small, work, ["one", "two"])
    work.push("main:staging")
    work.commit({"index.html": "three"})
    work.push("main:staging")
    reserve = small.data / "store" / "reserve"
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
