"""What one record says of others is looked at: each of these is found, and nothing else."""

from __future__ import annotations

import sqlite3

import pytest

from storage.records import integrity
from storage.records.db import Records

ART = "art_0000000000000000000000000"
DIGEST = "blake3:" + "00" * 32
ELSE = "blake3:" + "ff" * 32
ACTOR = "'user', 'a', 'a'"
SOUND = f"""
INSERT INTO site(id, name, default_branch, created_at) VALUES('site_1','acme-store','main',0);
INSERT INTO environment(id,site_id,slug,kind,branch,ephemeral,status,hostname,created_at)
  VALUES('env_1','site_1','production','production','main',0,'active','acme',0);
INSERT INTO job(id,type,status,progress,resource_type,resource_id,site_id,env_id,version,attempts,
  created_at,finished_at) VALUES('job_1','build.run','succeeded',100,'build','build_1','site_1',
  'env_1',1,1,0,1), ('job_2','deployment.roll','succeeded',100,'deployment','dep_1','site_1',
  'env_1',1,1,0,1);
INSERT INTO tree(digest,sha256,files,size_bytes,manifest_bytes) VALUES(zeroblob(32),x'01',1,1,1);
INSERT INTO artifact(id,digest,manifest_sha256,files,size_bytes,created_at)
  VALUES('{ART}0','{DIGEST}','01',1,1,0);
INSERT INTO attestation(envelope_sha256,artifact_id,site_id,build_id,key_id,signature,profile,
  commit_id,created_at,sequence) VALUES('e','{ART}0','site_1','build_1','k','s','static','c',0,1);
INSERT INTO build(id,site_id,env_id,job_id,commit_id,status,clean,deploys,pushed,cached,artifact_id,
  timings,actor_type,actor_id,actor_label,created_at,finished_at) VALUES('build_1','site_1','env_1',
  'job_1','c','succeeded',0,0,0,0,'{ART}0','{{}}',{ACTOR},0,1);
INSERT INTO deployment(id,site_id,env_id,job_id,artifact_id,envelope_sha256,trigger_kind,status,
  runs_release_command,release_id,actor_type,actor_id,actor_label,created_at,finished_at)
  VALUES('dep_1','site_1','env_1','job_2','{ART}0','e','push','succeeded',0,'rel_1',{ACTOR},0,1);
INSERT INTO release(id,site_id,env_id,deployment_id,artifact_id,actor_type,actor_id,actor_label,
  deployed_at,is_current) VALUES('rel_1','site_1','env_1','dep_1','{ART}0',{ACTOR},0,1);
INSERT INTO artifact_pin VALUES('site_1','{ART}0',{ACTOR},0)
"""
WRONG = {
    "build build_1: its job job_9 is gone": "UPDATE build SET job_id = 'job_9'",
    "deployment dep_1: its job job_9 is gone": "UPDATE deployment SET job_id = 'job_9'",
    "build build_1: the artifact art_9 that it gave is unknown": (
        "UPDATE build SET artifact_id = 'art_9'"
    ),
    "build build_1: is succeeded, and its job is running": (
        "UPDATE job SET finished_at = NULL, status = 'running' WHERE id = 'job_1'"
    ),
    "deployment dep_1: is running, and its job is succeeded": (
        "UPDATE deployment SET finished_at = NULL, status = 'running'"
    ),
    "release rel_1: the deployment dep_1 that made it is gone, or says otherwise": (
        "UPDATE deployment SET release_id = NULL"
    ),
    "deployment dep_1: the release rel_1 that it made is gone": "DELETE FROM release",
    "environment acme-store/production: has releases, and none is current": (
        "UPDATE release SET is_current = 0"
    ),
    "environment acme-store/production: runs by the statement f, which the records do not know": (
        "UPDATE deployment SET envelope_sha256 = 'f'"
    ),
    f"environment acme-store/production: runs {ART}0, which was dropped": (
        "UPDATE artifact SET dropped_at = 1"
    ),
    f"site acme-store: the artifact {ART}0 is pinned, and not kept": (
        "UPDATE artifact SET expired_at = 1"
    ),
    f"artifact {ART}0: is kept, and no statement says who built it": ("DELETE FROM attestation"),
    f"artifact {ART}0: the store knows no tree {DIGEST}": "DELETE FROM tree",
    f"artifact {ART}0: its row, 7 files and 1 byte, says otherwise than its tree's": (
        "UPDATE artifact SET files = 7"
    ),
    "database: a row of attestation refers to a row of artifact that is not there": (
        "UPDATE attestation SET artifact_id = 'art_9'"
    ),
    f"artifact {ART}0: has the digest {ELSE}, which is another's": (
        f"UPDATE artifact SET digest = '{ELSE}'"
    ),
}


@pytest.fixture
def records(tmp_path):
    with Records.open(tmp_path / "gitd.db") as opened:

        def fill(db) -> None:
            for statement in SOUND.split(";"):
                db.execute(statement)

        opened.write(fill)
        yield opened


def test_sound_records_have_no_faults(records) -> None:
    assert integrity.faults(records.reader()) == []


@pytest.mark.parametrize(("fault", "change"), WRONG.items(), ids=WRONG.values())
def test_records_that_contradict_each_other_are_named(records, fault: str, change: str) -> None:
    db = sqlite3.connect(records.path)  # as one that does not mind foreign keys
    with db:
        db.execute(change)
    db.close()
    assert fault in integrity.faults(records.reader())


def test_many_faults_of_a_kind_are_bounded(records) -> None:
    def change(db) -> None:
        for number in range(100):
            db.execute(
                "INSERT INTO artifact(id,digest,manifest_sha256,files,size_bytes,created_at,"
                "dropped_at) VALUES(?,?,'',0,0,0,1)",
                (f"art_{number}", f"no digest {number}"),
            )

    records.write(change)
    faults = integrity.faults(records.reader())
    assert len(faults) == integrity.FAULTS_MAX + 1
    assert faults[-1] == "and 80 more like the one before"


def test_values_of_another_kind_are_said_and_nothing_else_asked(records) -> None:
    records.write(lambda db: db.execute("UPDATE job SET created_at = 'never', site_id = x'00'"))
    (fault,) = integrity.faults(records.reader())
    assert fault.startswith("database: ")
    assert "of job ha" in fault


@pytest.mark.parametrize(
    "column",
    [
        *("build.job_id", "build.status", "build.artifact_id", "deployment.envelope_sha256"),
        *("deployment.release_id", "artifact.digest", "artifact.id"),
    ],
)
def test_text_that_is_none_is_said_and_nothing_else_asked(records, column: str) -> None:
    table, _, name = column.partition(".")
    db = sqlite3.connect(records.path)
    with db:
        db.execute(f"UPDATE {table} SET {name} = CAST(x'ff41' AS TEXT)")
    db.close()
    said = f"database: a row of {table} has bytes that are no text as {name}"
    assert integrity.faults(records.reader()) == [said]


def test_broken_database_file_is_said_and_nothing_else_asked(records) -> None:
    records.checkpoint()
    (page,) = (
        records.reader()
        .execute("SELECT rootpage FROM sqlite_master WHERE name = 'job_site'")
        .fetchone()
    )
    (size,) = records.reader().execute("PRAGMA page_size").fetchone()
    with records.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    records.close()
    with Records.open(records.path) as again:
        faults = integrity.faults(again.reader())
    assert faults
    assert all(fault.startswith("database: ") for fault in faults)
