"""Collecting beside the running daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

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
    assert "1 artifact kept: runs on an environment" in said
    assert "1 artifact kept: among the last releases of an environment" in said
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
