"""A damaged store: nothing of it is rolled, all hear of it, and what can be had is mended."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

pytestmark = pytest.mark.own_server

PAGE = "<!doctype html><title>t</title><p>{}</p>"
ENVIRONMENTS = "/sites/acme-store/environments"
SITE = ("--site", "acme-store", "--env", "staging")


def finish(server, answer) -> dict:
    assert answer.status == 202, answer.body
    job_id = answer.json["data"]["id"]
    while True:
        job = server.api("GET", f"/jobs/{job_id}?wait=10").json["data"]
        if job["status"] not in ("queued", "running"):
            return job


def build(server) -> dict:
    return finish(server, server.api("POST", f"{ENVIRONMENTS}/staging/builds", {"ref": "v1"}))


def deploy(server, artifact_id: str) -> dict:
    body = {"artifact_id": artifact_id}
    return finish(server, server.api("POST", f"{ENVIRONMENTS}/staging/deployments", body))


def artifact(server) -> dict:
    return server.api("GET", f"{ENVIRONMENTS}/staging/artifacts").json["data"][0]


def check(server, *options: str) -> dict:
    words = ("check", "--json", *options, "--data", str(server.data))
    done = server.run("gitd", *words, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    return report


def damage(server, content: str) -> Path:
    """Change a bit of a blob, and nothing that `stat` would show."""
    found = [
        path
        for path in (server.data / "store/blobs").rglob("*")
        if path.is_file() and path.read_bytes() == content.encode()
    ]
    (path,) = found
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(content.encode()[:-1] + b"#")
    path.chmod(0o444)
    os.utime(path, (status.st_atime, status.st_mtime))
    return path


def test_damage_without_another_copy_fails_rolls_until_it_is_built_again(server) -> None:
    work = server.work()
    commit = work.commit({"index.html": PAGE.format("one"), "b.txt": "b"})
    work.git("tag", "v1")
    work.push("v1")
    assert build(server)["status"] == "succeeded"
    made = artifact(server)
    export = server.root / "export.tar"
    server.mf("artifacts", "export", made["id"], *SITE, "-o", str(export))
    path = damage(server, PAGE.format("one"))
    job = deploy(server, made["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "artifact.corrupt")
    assert "1 of its files in the store is damaged and in quarantine" in job["error"]["message"]
    assert f"build {commit[:12]} of acme-store again" in job["error"]["message"]
    assert not path.exists()
    (kept,) = (server.data / "store/quarantine").iterdir()
    assert kept.read_bytes().endswith(b"#")
    assert '"event":"damage_found"' in server.log().replace(" ", "")
    assert artifact(server)["status"] == "damaged"
    job = deploy(server, made["id"])  # the host is not even asked
    assert (job["status"], job["error"]["code"]) == ("failed", "artifact.corrupt")
    # What was exported is as good as ever. Where there is nothing, the same commit is built again.
    report = check(server, "--repair", "--from", str(export))
    assert (report["ok"], len(report["mended"])) == (True, 1)
    assert deploy(server, made["id"])["status"] == "succeeded"
    assert server.serves("one", "acme-store--staging")


def test_damage_is_mended_by_building_the_same_commit_again(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one"), "b.txt": "b"})
    work.git("tag", "v1")
    work.push("v1")
    build(server)
    made = artifact(server)
    path = damage(server, PAGE.format("one"))
    assert deploy(server, made["id"])["error"]["code"] == "artifact.corrupt"
    assert not check(server, "--repair")["ok"]
    assert build(server)["result"]["artifact_id"] == made["id"]
    assert path.read_bytes() == PAGE.format("one").encode()
    assert deploy(server, made["id"])["status"] == "succeeded"
    assert server.serves("one", "acme-store--staging")
    report = check(server, "--deep")
    assert (report["ok"], len(report["quarantine"])) == (True, 1)


def test_damage_is_mended_from_the_folder_of_a_release(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one"), "b.txt": "b"})
    work.push("main")
    one = server.api("GET", f"{ENVIRONMENTS}/production/artifacts").json["data"][0]["id"]
    path = damage(server, PAGE.format("one"))
    assert server.serves("one")
    assert check(server)["ok"]
    (found,) = check(server, "--deep")["findings"]
    assert found["fault"] == "has other bytes"
    assert found["artifacts"] == [one]
    assert found["environments"] == ["acme-store/production"]
    promotion = f"{ENVIRONMENTS}/production/promote"
    job = finish(server, server.api("POST", promotion, {"to_env": "staging"}))
    assert (job["status"], job["error"]["code"]) == ("failed", "artifact.corrupt")
    assert "What was damaged was repaired from the release folder" in job["error"]["message"]
    assert path.read_bytes() == PAGE.format("one").encode()
    job = finish(server, server.api("POST", promotion, {"to_env": "staging"}))
    assert job["status"] == "succeeded"
    assert server.serves("one", "acme-store--staging")
    assert check(server, "--deep")["ok"]


def test_release_folder_and_records_that_say_otherwise_are_named(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push("main")
    (page,) = (server.data / "host/environments").glob("*/releases/*/index.html")
    status = page.stat()
    page.chmod(0o644)
    page.write_text(PAGE.format("two"))
    page.chmod(0o444)
    os.utime(page, (status.st_atime, status.st_mtime))
    assert check(server)["ok"], "its size and time are as before"
    report = check(server, "--deep")
    (found,) = report["findings"]
    assert found["what"] == f"release folder {page.parent}"
    assert "index.html: its bytes are not what the manifest says" in found["fault"]
    assert found["environments"] == ["acme-store/production"]
    page.unlink()
    with sqlite3.connect(server.data / "gitd.db") as db:
        db.execute("UPDATE release SET is_current = 0")
        db.execute("UPDATE job SET finished_at = NULL WHERE type = 'deployment.roll'")
    db.close()
    faults = check(server)["faults"]
    assert [fault.split(":")[0].split()[0] for fault in faults] == [
        "deployment",
        "environment",
        "release",
    ]
    assert "index.html: is missing" in faults[2]


def test_damaged_logs_and_strangers_beside_them_hold_up_no_start(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push("main")
    build, roll = (
        next(job["id"] for job in server.jobs() if job["type"] == kind)
        for kind in ("build.run", "deployment.roll")
    )
    assert server.stop() == 0
    (path,) = (server.data / "joblogs").rglob(f"{build}.ndjson")
    with path.open("r+b") as log:
        log.seek(40)
        log.write(b"\xff")
    (path,) = (server.data / "joblogs").rglob(f"{roll}.ndjson")
    path.unlink()
    path.mkdir()
    stranger = server.data / "joblogs" / "AA" / "old.ndjson"
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    os.utime(stranger, (0, 0))
    server.start()
    server.wait_for("one")
    said = server.mf("logs", build).stdout
    assert "(a line of this log is damaged)" in said
    assert "== pack" in said
    report = check(server)
    assert [finding["what"].split("/")[-1] for finding in report["findings"]] == [f"{build}.ndjson"]
    assert "1 of its lines cannot be read" in report["faults"][0]
    work.commit({"index.html": PAGE.format("two")})
    work.push("main")
    assert server.serves("two")
    path.rmdir()
