"""Backups, of real stores, repositories and keys in temporary folders."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.artifacts import Ingested
from storage.backup.keys import KeyPlan, read_keys
from storage.backup.manifest import FileEntry, Manifest, ManifestWriter, is_safe
from storage.backup.places import Places, is_unfinished
from storage.backup.repositories import picture_of
from storage.backup.verify import listed, verify
from storage.check import check_store
from storage.collect import Collector, Order
from storage.copies import anything_at
from storage.custody import Custody
from storage.digest import Digest
from storage.errors import BackupDamagedError, BackupError, StorageFullError
from storage.git.check import check_repository
from storage.ids import new_id
from storage.joblog import JobLogs, LogLine
from storage.model import (
    SYSTEM,
    Action,
    Delivery,
    DeliveryStatus,
    Deployment,
    Environment,
    EnvironmentConfig,
    EnvironmentKind,
    EnvironmentStatus,
    JobStatus,
    PushRecord,
    RefMove,
    Trigger,
    Webhook,
)
from storage.parts import Part, PartKind
from storage.records import (
    audit_log,
    copies,
    damage,
    deployments,
    environment_configs,
    environments,
    jobs,
    pushes,
    release_statements,
    webhooks,
)
from storage.records.db import Records
from storage.records.release_statements import IssuedStatement
from storage.reindex import rebuild_index
from storage.repair import Repairer
from storage.retention import Retention
from storage.signing import SigningKey
from tests.storage.backup.conftest import TREE

KEEP_NOTHING = Retention(0, 0, 0, 0, 0, 0)


def every_file(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_restored_folder_has_all_that_the_server_had(small, restored_at, tmp_path: Path) -> None:
    tip = small.push("two")
    job_id = small.job()
    small.back_up(with_keys=True)
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    assert again.repositories.branches("site_1") == {"main": tip}
    assert again.repositories.default_branch("site_1") == "main"
    assert check_repository(again.repositories.path("site_1"), is_whole=True).is_sound
    assert [log.size_bytes for log in JobLogs(again.places.joblogs).files()] == [
        log.size_bytes for log in JobLogs(small.places.joblogs).files()
    ]
    assert jobs.get(again.records.reader(), job_id).status is JobStatus.QUEUED
    for name in ("signing.key", "root.key", "variables.key"):
        path = again.places.keys / name
        assert path.read_bytes() == (small.places.keys / name).read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert again.ingest({"new": b"new"}, "build_2").new_blobs == 1
    assert not is_unfinished(again.places.root)


def test_backup_is_its_owners_alone(small) -> None:
    small.back_up(with_keys=True)
    for path in small.destination.root.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert stat.S_IMODE(small.destination.root.stat().st_mode) == 0o700


def test_second_backup_copies_only_what_is_new(small) -> None:
    first = small.back_up()
    small.ingest({"index.html": b"<h1>two</h1>", "big": b"0123456789abcdef" * (90 << 10)}, "b2")
    before = {path.name for path in every_file(small.destination.pool)}
    second = small.back_up()
    fresh = [path for path in every_file(small.destination.pool) if path.name not in before]
    # A manifest, a statement, a page, and the records, which are copied each time.
    assert len(fresh) == 4
    database = Path(small.places.database).stat().st_size
    assert second.facts.new_bytes < 2 * database < first.facts.new_bytes
    assert second.facts.size_bytes > first.facts.size_bytes


def test_each_backup_stays_restorable_by_name_and_time(small, restored_at, tmp_path) -> None:
    tips = []
    names = []
    for number in range(3):
        tips.append(small.push(f"push {number}"))
        names.append(small.back_up(with_keys=True).facts.name)
    assert names == sorted(set(names))
    assert [facts.name for facts in listed(small.destination)] == names
    for number in (1, 0, 2):
        small.restore(tmp_path / f"at{number}/data", at=names[number])
        again = restored_at(tmp_path / f"at{number}")
        assert again.repositories.branches("site_1") == {"main": tips[number]}
    assert small.destination.choose("2999-01-01T00:00:00Z") == names[2]
    with pytest.raises(BackupError, match="no backup is that old"):
        small.destination.choose("2001-01-01")
    with pytest.raises(BackupError, match="there is no backup tomorrow"):
        small.destination.choose("tomorrow")


def test_rule_removes_old_backups_and_what_only_they_need(small, restored_at, tmp_path) -> None:
    gone = small.ingest({"gone": b"g" * 100_000}, "build_2")
    first = small.back_up(with_keys=True)
    small.unpin(gone)
    Collector(small.store, small.records, KEEP_NOTHING).run(Order(is_hurried=True))
    second = small.back_up(with_keys=True)
    third = small.back_up(with_keys=True, keep_count=2)
    assert third.pruned == (first.facts.name,)
    assert third.freed_bytes > 100_000
    blob = small.destination.content(Digest.of(b"g" * 100_000))
    assert not Path(blob).exists()
    assert small.destination.names() == [second.facts.name, third.facts.name]
    assert [item.faults for item in verify(small.destination, is_deep=True)] == [(), ()]
    small.restore(tmp_path / "new/data", at=second.facts.name)
    restored_at(tmp_path / "new")


def test_rule_removes_nothing_while_a_backup_that_stays_cannot_be_read(
    small, restored_at, tmp_path
) -> None:
    names = [small.back_up(with_keys=True).facts.name for _ in range(3)]
    with changed(small.destination.manifest(names[1])):
        with pytest.raises(BackupDamagedError, match="was made, but no earlier one removed"):
            small.back_up(with_keys=True, keep_count=3)
        assert len(small.destination.names()) == 4
        small.restore(tmp_path / "new/data", at=names[0])
        restored_at(tmp_path / "new")
    assert small.back_up(with_keys=True, keep_count=3).pruned == tuple(names[:2])


def test_private_keys_and_what_they_protect_are_left_out_unless_asked_for(small) -> None:
    taken = small.back_up()
    assert (taken.facts.signing_key, taken.facts.root_key) == ("left_out", "left_out")
    secrets = [
        (small.places.keys / name).read_bytes()
        for name in ("signing.key", "root.key", "variables.key")
    ]
    held = [path.read_bytes() for path in every_file(small.destination.root)]
    assert not any(secret.strip() in data for secret in secrets for data in held)
    with_keys = small.back_up(with_keys=True)
    assert (with_keys.facts.signing_key, with_keys.facts.root_key) == ("included", "included")


# -- keys that are not in it ----------------------------------------------------------------------


def test_restore_without_keys_says_what_to_do_and_touches_nothing(small, tmp_path: Path) -> None:
    small.back_up()
    with pytest.raises(BackupError, match="--keys DIR; or let --new-keys"):
        small.restore(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_keys_that_were_kept_elsewhere_take_their_places(small, restored_at, tmp_path) -> None:
    small.back_up()
    plan = KeyPlan(read_keys(small.places.keys))
    small.restore(tmp_path / "new/data", plan)
    again = restored_at(tmp_path / "new")
    assert again.custody.signing_key().key_id == small.custody.signing_key().key_id


def test_new_signing_key_by_the_old_root_key_is_one_more_generation(
    small, restored_at, tmp_path: Path
) -> None:
    small.back_up()
    root = {"root.key": (small.places.keys / "root.key").read_bytes()}
    made = small.restore(tmp_path / "new/data", KeyPlan(root, makes_new=True))
    assert not made.is_trust_new
    again = restored_at(tmp_path / "new")  # all that was signed is verified there
    keyring = again.custody.open(again.store.layout.trust)
    assert keyring.version == 3  # introduced, then the one before retired
    assert keyring.keys[made.signing_key_id].is_active
    assert again.custody.root_key_ids() == small.custody.root_key_ids()


def test_without_any_key_trust_begins_anew_and_artifacts_stay_verifiable(
    small, restored_at, tmp_path: Path
) -> None:
    small.back_up()
    made = small.restore(tmp_path / "new/data", KeyPlan({}, makes_new=True))
    assert made.is_trust_new
    again = restored_at(tmp_path / "new")
    keyring = again.custody.open(again.store.layout.trust)
    assert keyring.version == 1
    assert keyring.keys[small.custody.signing_key().key_id].retired
    assert again.custody.root_key_ids() != small.custody.root_key_ids()
    assert again.ingest({"new": b"new"}, "build_2").key_id == made.signing_key_id


@pytest.mark.parametrize("has_root", [True, False])
def test_new_signing_key_stands_in_the_audit_log(
    small, restored_at, tmp_path: Path, *, has_root: bool
) -> None:
    small.back_up()
    root = (small.places.keys / "root.key").read_bytes()
    plan = KeyPlan({"root.key": root} if has_root else {}, makes_new=True)
    made = small.restore(tmp_path / "new/data", plan)
    reader = restored_at(tmp_path / "new").records.reader()
    log = audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=10)
    noted = [each.target for each in log.items if each.action == Action.SIGNING_KEY_ROTATED]
    assert noted == [made.signing_key_id]
    assert audit_log.check(reader).faults == []


def test_restore_of_a_backup_from_before_the_chain_stands_in_the_audit_log(
    small, restored_at, tmp_path: Path, monkeypatch
) -> None:
    copy_into = Records.copy_into

    def copy_as_before(records: Records, path: Path) -> None:
        """As the version before the chain had it."""
        copy_into(records, path)
        with sqlite3.connect(path) as db:
            db.executescript(
                """
                DROP TABLE audit_anchor; DROP TABLE audit_head; DROP TABLE noted_key;
                DROP INDEX audit_log_sequence;
                ALTER TABLE audit_log DROP COLUMN sequence;
                ALTER TABLE audit_log DROP COLUMN previous;
                ALTER TABLE audit_log DROP COLUMN digest;
                DELETE FROM _sqlite_migrations WHERE name = 'chained_audit_log'
                """
            )
        db.close()

    with monkeypatch.context() as before:
        before.setattr(Records, "copy_into", copy_as_before)
        before.setattr("storage.backup.moment._audit_head", lambda _: None)
        taken = small.back_up(with_keys=True)
    assert "chained_audit_log" not in taken.facts.migrations
    small.restore(tmp_path / "new/data")
    reader = restored_at(tmp_path / "new").records.reader()
    log = audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=10)
    assert [each.action for each in log.items].count(Action.BACKUP_RESTORED) == 1
    assert audit_log.check(reader).faults == []


def test_key_that_the_service_manager_handed_over_is_not_missed(
    small, restored_at, tmp_path: Path
) -> None:
    """Nor is its predecessor taken for it, which lies among the keys that were kept elsewhere."""
    kept = read_keys(small.places.keys)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    SigningKey.load_or_create(credentials / "signing.key")
    handed = Custody(small.places.keys, credentials=credentials)
    handed.open(small.store.layout.trust)
    small.back_up()
    for name, plan in (("without", KeyPlan({})), ("with", KeyPlan(kept))):
        small.restore(tmp_path / name / "data", plan)
        places = Places(tmp_path / name / "data")
        assert not (places.keys / "signing.key").exists()
        again = Custody(places.keys, credentials=credentials)
        again.open(places.store / "trust")
        assert again.signing_key().key_id == handed.signing_key().key_id


def test_foreign_key_is_refused(small, tmp_path: Path) -> None:
    small.back_up()
    (tmp_path / "keys").mkdir()
    SigningKey.load_or_create(tmp_path / "keys" / "signing.key")
    with pytest.raises(BackupError, match="none that this server trusts"):
        small.restore(tmp_path / "data", KeyPlan(read_keys(tmp_path / "keys")))
    assert is_unfinished(tmp_path / "data")


def test_values_without_their_key_are_forgotten_only_when_told(small, tmp_path: Path) -> None:
    row = "INSERT INTO variable VALUES('site_1', NULL, 'A', 1, 'build', x'00', 0)"
    small.records.write(lambda db: db.execute(row))
    keys = read_keys(small.places.keys)
    del keys["variables.key"]
    small.back_up()
    with pytest.raises(BackupError, match="--without-variables"):
        small.restore(tmp_path / "new/data", KeyPlan(keys))
    made = small.restore(tmp_path / "new/data", KeyPlan(keys, without_variables=True))
    assert made.forgotten_variables == 1


def test_forgotten_values_take_the_statements_that_speak_of_them_along(
    small, tmp_path: Path
) -> None:
    ingested = small.ingest({"a": b"a"}, "build_2")

    def change(db) -> None:
        environments.add(db, ENVIRONMENT)
        config = EnvironmentConfig("env_1", 1, "d", "p", b"sealed", 0)
        environment_configs.add(db, config)
        for number, version in enumerate((0, 1)):
            deployments.add(db, deployment_of(f"dep_{number}", ingested, version))
            issued = IssuedStatement(
                f"{number}", "env_1", number, f"dep_{number}", "k", "p", "e", 0
            )
            release_statements.add(db, issued)

    small.records.write(change)
    keys = read_keys(small.places.keys)
    del keys["variables.key"]
    assert small.back_up().facts.sealed == 1
    small.restore(tmp_path / "new/data", KeyPlan(keys, without_variables=True))
    with Records.open(tmp_path / "new/data/gitd.db") as records:
        reader = records.reader()
        assert not environment_configs.has_any(reader)
        versions = [deployments.get(reader, f"dep_{n}").config_version for n in (0, 1)]
        assert versions == [0, None]
        assert release_statements.each_name(reader) == ["0"]


# -- what goes on meanwhile ------------------------------------------------------------------------


def test_jobs_that_ran_come_back_as_interrupted(small, restored_at, tmp_path: Path) -> None:
    running = small.job(JobStatus.RUNNING)
    small.back_up(with_keys=True)
    assert small.restore(tmp_path / "new/data").interrupted == 1
    again = restored_at(tmp_path / "new")
    job = jobs.get(again.records.reader(), running)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.interrupted")


def test_webhooks_are_off_in_a_restored_server_and_what_waited_is_given_up(
    small, restored_at, tmp_path: Path
) -> None:
    webhook = Webhook("whe_1", "https://example.com/", ("job.failed",), None, True, b"", 0)
    waits = Delivery(
        id="whd_1",
        webhook_id="whe_1",
        event_id="evt_1",
        event_type="job.failed",
        body=b"{}",
        status=DeliveryStatus.QUEUED,
        attempts=0,
        next_at=1,
        http_status=None,
        error=None,
        created_at=1,
        attempted_at=None,
    )
    small.records.write(lambda db: webhooks.add(db, webhook))
    small.records.write(lambda db: webhooks.add_delivery(db, waits))
    job = jobs.get(small.records.reader(), small.job())
    ended = replace(job, status=JobStatus.FAILED)
    small.records.write(lambda db: webhooks.note_end(db, ended, 1, None))
    small.back_up(with_keys=True)
    assert small.restore(tmp_path / "new/data").webhooks_off == 1
    reader = restored_at(tmp_path / "new").records.reader()
    assert not webhooks.get(reader, "whe_1").is_enabled
    assert webhooks.events(reader, 10) == []
    log = audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=10)
    noted = [(each.action, each.target) for each in log.items]
    assert (Action.WEBHOOK_CHANGED, "whe_1") in noted
    assert [action for action, _ in noted].count(Action.BACKUP_RESTORED) == 1
    assert audit_log.check(reader).faults == []
    (delivery,) = webhooks.deliveries(reader, "whe_1", before=None, limit_count=10).items
    assert (delivery.status, delivery.next_at) == (DeliveryStatus.FAILED, None)
    assert webhooks.get(small.records.reader(), "whe_1").is_enabled


def test_push_in_the_middle_is_left_for_the_restored_server_to_end(
    small, restored_at, tmp_path: Path
) -> None:
    tips = []

    def tell(progress) -> None:
        if progress.what == "repositories" and not tips:
            tips.append(small.push("meanwhile"))
            move = RefMove("refs/heads/main", "0" * 40, tips[0])
            small.records.write(lambda db: pushes.add(db, landed_push(move)))

    taken = small.back_up(with_keys=True, tell=tell)
    assert taken.facts.late_pushes == 1
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    assert again.repositories.branches("site_1") == {"main": tips[0]}
    (open_push,) = pushes.open_ones(again.records.reader())
    assert open_push.moves[0].new == tips[0]


def test_collection_in_the_middle_takes_nothing_that_is_being_copied(
    small, restored_at, tmp_path: Path
) -> None:
    doomed = small.ingest({"doomed": b"d" * 1000}, "build_2")
    collected = []

    def tell(progress) -> None:
        if progress.what == "repositories" and not collected:
            small.unpin(doomed)
            collector = Collector(small.store, small.records, KEEP_NOTHING)
            collected.append(collector.run(Order(is_hurried=True, is_thorough=True)))

    small.back_up(with_keys=True, tell=tell)
    assert (collected[0].trees, collected[0].blobs) == (0, 0)
    small.restore(tmp_path / "new/data")
    restored_at(tmp_path / "new")
    after = Collector(small.store, small.records, KEEP_NOTHING).run(Order(is_hurried=True))
    assert (after.trees, after.blobs) == (1, 1)


def test_packs_that_are_joined_in_the_middle_are_looked_up_again(
    small, restored_at, tmp_path: Path
) -> None:
    bare = small.repositories.path("site_1")
    tips = {f"b{n}": small.push(f"{n}", branch=f"b{n}") for n in range(3)}
    picture = picture_of(bare)
    subprocess.run(["git", "-C", bare, "repack", "-adq"], check=True)
    vanished = [item.path for item in picture.files if not (bare / item.path).exists()]
    assert vanished  # what was listed before is gone
    small.back_up(with_keys=True)
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    assert tips.items() <= again.repositories.branches("site_1").items()


ENVIRONMENT = Environment(
    "env_1",
    "site_1",
    "production",
    EnvironmentKind.PRODUCTION,
    None,
    ephemeral=False,
    status=EnvironmentStatus.ACTIVE,
    hostname="acme-store",
    created_at=0,
)


def deployment_of(deployment_id: str, ingested: Ingested, config_version: int) -> Deployment:
    return Deployment(
        id=deployment_id,
        site_id="site_1",
        env_id="env_1",
        job_id=new_id("job"),
        artifact_id=ingested.artifact_id,
        envelope_sha256=ingested.envelope_sha256,
        trigger=Trigger.DEPLOY,
        status=JobStatus.SUCCEEDED,
        runs_release_command=False,
        release_id=None,
        error=None,
        ref=None,
        commit=None,
        actor=SYSTEM,
        created_at=0,
        started_at=0,
        finished_at=0,
        config_version=config_version,
    )


def landed_push(move: RefMove) -> PushRecord:
    now = time.time_ns() // 1_000_000
    return PushRecord(new_id("push"), "site_1", SYSTEM, (move,), (), now, now)


# -- room ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(small) -> Iterator[None]:
    """Backups lie on a disk of 16 MiB."""
    small.destination.root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small.destination.root]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield
    subprocess.run(["umount", "-l", small.destination.root], check=True)


def test_backup_that_has_no_room_leaves_all_as_it_was(small, small_disk) -> None:
    small.back_up(with_keys=True)
    free = shutil.disk_usage(small.destination.root).free
    (small.work / "noise").write_bytes(random.Random(7).randbytes(16 << 20))
    subprocess.run(["git", "add", "noise"], cwd=small.work, check=True)
    small.push("noise")  # of which is known how large it is only when it is copied
    with pytest.raises(StorageFullError):
        small.back_up(with_keys=True)
    assert [item.faults for item in verify(small.destination)] == [()]
    assert shutil.disk_usage(small.destination.root).free > free - (1 << 20)
    small.ingest({"noise": random.Random(8).randbytes(8 << 20)}, "build_2")
    with pytest.raises(StorageFullError, match=r"are free at .*, and the backup needs"):
        small.back_up(with_keys=True)


# -- what is refused -------------------------------------------------------------------------------


@contextlib.contextmanager
def changed(path: Path) -> Iterator[None]:
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    yield
    path.write_bytes(data)
    path.chmod(0o400)


def test_every_changed_file_is_found_and_not_restored(small, tmp_path: Path) -> None:
    small.back_up(with_keys=True)
    (name,) = small.destination.names()
    contents = [path for path in every_file(small.destination.pool) if path.stat().st_size]
    for path in [*contents, small.destination.manifest(name)]:
        with changed(path):
            (found,) = verify(small.destination)
            assert found.faults, path
    for path in [max(contents, key=lambda p: p.stat().st_size), small.destination.manifest(name)]:
        with changed(path), pytest.raises(BackupDamagedError):
            small.restore(tmp_path / path.name)
    assert is_unfinished(tmp_path / max(contents, key=lambda p: p.stat().st_size).name)
    assert verify(small.destination)[0].faults == ()


@pytest.mark.parametrize("what", ["gone", "cut short", "other bytes", "without end"])
def test_content_that_is_not_what_its_name_says_fills_no_disk_and_is_not_restored(
    small, restored_at, tmp_path: Path, what: str
) -> None:
    small.back_up(with_keys=True)
    path = Path(small.destination.content(Digest.of(TREE["big"])))
    path.chmod(0o600)
    if what == "gone":
        path.unlink()
    elif what == "cut short":
        os.truncate(path, len(TREE["big"]) - 1)
    elif what == "other bytes":
        path.write_bytes(bytes(len(TREE["big"])))
    else:
        os.truncate(path, 256 << 20)
    (found,) = verify(small.destination)
    assert any(path.name in fault for fault in found.faults)
    with pytest.raises(BackupDamagedError, match=path.name):
        small.restore(tmp_path / "new/data")
    assert is_unfinished(tmp_path / "new/data")
    assert max(p.stat().st_size for p in every_file(tmp_path / "new")) < 2 << 20
    path.unlink(missing_ok=True)
    path.write_bytes(TREE["big"])
    small.restore(tmp_path / "new/data")
    restored_at(tmp_path / "new")


def test_folder_of_backups_has_one_writer_or_many_readers(small, tmp_path: Path) -> None:
    """Nobody prunes what another one counts on, or reads."""
    small.back_up(with_keys=True)
    with small.destination.writing():
        for work in (small.back_up, lambda: verify(small.destination)):
            with pytest.raises(BackupError, match="in use"):
                work()
        with pytest.raises(BackupError, match="in use"):
            small.restore(tmp_path / "new/data")
    with small.destination.reading():
        with pytest.raises(BackupError, match="in use"):
            small.back_up(with_keys=True, keep_count=1)
        assert [item.faults for item in verify(small.destination)] == [()]
        small.restore(tmp_path / "new/data")


def test_manifest_of_another_backup_is_known_by_its_digest(small, tmp_path: Path) -> None:
    taken = small.back_up(with_keys=True)
    with pytest.raises(BackupDamagedError, match="and not blake3:0000"):
        small.restore(tmp_path / "data", expected=f"blake3:{'0' * 64}")
    small.restore(tmp_path / "data", expected=str(taken.digest))


def test_folders_that_are_something_else_are_refused(small, tmp_path: Path) -> None:
    small.destination.root.mkdir()
    (small.destination.root / "letter").write_text("dear")
    with pytest.raises(BackupError, match="is not empty"):
        small.back_up()
    (small.destination.root / "letter").unlink()
    small.destination.root.chmod(0o755)
    small.back_up(with_keys=True)
    assert stat.S_IMODE(small.destination.root.stat().st_mode) == 0o700
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gitd.db").write_text("somebody's")
    with pytest.raises(BackupError, match="is not empty"):
        small.restore(tmp_path / "data")
    small.destination.format.chmod(0o600)
    small.destination.format.write_text("gitd-backup 2\nx\n")
    with pytest.raises(BackupError, match="a newer gitd"):
        small.back_up()
    with pytest.raises(BackupError, match="a newer gitd"):
        small.restore(tmp_path / "other")


def test_records_of_a_newer_program_are_refused(small, tmp_path: Path) -> None:
    row = "INSERT INTO _sqlite_migrations VALUES(NULL, 'gitd', 'from_the_future', 'later')"

    def tell(progress) -> None:  # by then it is open: no such database opens
        if progress.what == "records":
            small.records.write(lambda db: db.execute(row))

    small.back_up(with_keys=True, tell=tell)
    with pytest.raises(BackupError, match="from_the_future"):
        small.restore(tmp_path / "data")


def flipped(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().swapcase())


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "other bytes": (flipped, "has other bytes than its name says"),
    "cut short": (cut_short, "has other bytes than its name says"),
    "gone": (Path.unlink, "is gone"),
    "a link": (linked, "cannot be read: Too many levels of symbolic links"),
    "a folder": (replaced_by_a_folder, "cannot be read: not a regular file"),
}
WHY = dict(DAMAGE.values())
OF_THE_BACKUP_BEFORE = "; what the backup before has of it is in this one"


@pytest.mark.parametrize(("spoil", "why"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("kind", PartKind)
def test_damage_that_nobody_knew_of_stops_no_backup_of_the_rest(
    small, tmp_path: Path, kind: PartKind, spoil, why: str
) -> None:
    """What is left out is damaged in the backup's records, as if the server had found it."""
    small.back_up(with_keys=True)
    ingested = small.ingest({"bad": b"bad", "good": b"good"}, "build_2")
    part = {
        PartKind.BLOB: Part.of_blob(Digest.of(b"bad") + b"f"),
        PartKind.TREE: Part.of_tree(ingested.digest),
        PartKind.ENVELOPE: Part.of_envelope(ingested.envelope_sha256),
    }[kind]
    spoil(Path(part.path(small.store.layout)))
    taken = small.back_up(with_keys=True)
    (said,) = taken.found
    assert said.startswith(f"{part}: ")
    assert said.endswith(why)
    assert taken.facts.damaged == 1
    assert [item.faults for item in verify(small.destination, is_deep=True)] == [(), ()]
    assert damage.every(small.records.reader()) == []  # the server is left as it was
    small.restore(tmp_path / "new/data")
    store = tmp_path / "new/data/store"
    with Records.open(tmp_path / "new/data/gitd.db") as records:
        assert [one.part for one in damage.every(records.reader())] == [part]
        assert {one.part for one in check_store(store, records).findings} == {part}
    good = Digest.of(b"good").hex()
    assert (store / "blobs" / good[:2] / good[2:]).read_bytes() == b"good"


@pytest.mark.parametrize("spoil", [spoil for spoil, _ in DAMAGE.values()], ids=DAMAGE)
@pytest.mark.parametrize("kind", PartKind)
def test_damage_to_what_an_earlier_backup_has_is_no_loss(
    small, restored_at, tmp_path: Path, kind: PartKind, spoil
) -> None:
    """Nobody knew of it: the last good copy does not go by the rule with that backup."""
    ingested = small.ingest({"bad": b"bad"}, "build_2")
    small.back_up(with_keys=True)
    layout = small.store.layout
    path = {
        PartKind.BLOB: layout.blob(Digest.of(b"bad"), executable=False),
        PartKind.TREE: layout.tree(ingested.digest),
        PartKind.ENVELOPE: layout.envelope(ingested.envelope_sha256),
    }[kind]
    spoil(Path(path))
    for _ in range(2):  # the first of them takes it from one that goes by the rule
        taken = small.back_up(with_keys=True, keep_count=1)
        assert (taken.found, taken.facts.damaged) == ((), 0)
        said = "1 part of the store that was found damaged is in it"
        is_said = [warning.split(",")[0] == said for warning in taken.warnings]
        # What is named by its BLAKE3 is asked of the pool alone.
        assert is_said == ([True] if kind is PartKind.ENVELOPE else [])
        assert [item.faults for item in verify(small.destination, is_deep=True)] == [()]
    small.restore(tmp_path / "new/data")
    assert restored_at(tmp_path / "new").store.layout.root.is_dir()


@pytest.mark.parametrize("spoil", [linked, replaced_by_a_folder])
def test_job_log_that_is_no_file_stops_no_backup_of_the_rest(
    small, restored_at, tmp_path: Path, spoil
) -> None:
    logs = JobLogs(small.places.joblogs)
    (old,) = logs.files()
    small.back_up(with_keys=True)
    logs.append(fresh := small.job(), [LogLine("built", "now", "build")])
    for job_id in (old.job_id, fresh):
        spoil(Path(logs.path(job_id)))
    for _ in range(2):  # the first of them takes it from one that goes by the rule
        taken = small.back_up(with_keys=True, keep_count=1)
        assert taken.facts.damaged == 2
        assert taken.found == tuple(
            sorted(
                f"job log {job_id[-2:]}/{job_id}.ndjson: {logs.path(job_id)} cannot be read: "
                f"{WHY[spoil].partition(': ')[2]}: move it away{known}"
                for job_id, known in ((old.job_id, OF_THE_BACKUP_BEFORE), (fresh, ""))
            )
        )
        assert [item.faults for item in verify(small.destination, is_deep=True)] == [()]
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    assert JobLogs(again.places.joblogs).files() == [old]
    assert damage.every(again.records.reader()) == []


def test_damage_that_is_known_is_left_out_and_said(small, tmp_path: Path) -> None:
    ingested = small.ingest({"bad": b"bad"}, "build_2")
    blob = Path(small.store.layout.blob(Digest.of(b"bad"), executable=False))
    blob.unlink()
    envelope = Path(small.store.layout.envelope(ingested.envelope_sha256))
    envelope.unlink()
    for part in (
        Part.of_blob(Digest.of(b"bad") + b"f"),
        Part(PartKind.ENVELOPE, envelope.name[:64]),
    ):
        small.records.write(lambda db, part=part: damage.note(db, part, "is gone", 0))
    taken = small.back_up(with_keys=True)
    assert [warning[:8] for warning in taken.warnings] == ["2 parts "]
    assert (taken.found, taken.facts.damaged) == ((), 2)
    assert verify(small.destination)[0].faults == ()
    small.restore(tmp_path / "new/data")
    with Records.open(tmp_path / "new/data/gitd.db") as records:
        assert len(damage.every(records.reader())) == 2


def condemned(small, ingested: Ingested, *contents: bytes) -> Repairer:
    """Damage an artifact's manifest, its statement and contents of it, and have that found."""
    layout = small.store.layout
    paths = [layout.tree(ingested.digest), layout.envelope(ingested.envelope_sha256)]
    paths += [layout.blob(Digest.of(data), executable=False) for data in contents]
    for path in map(Path, paths):
        path.chmod(0o644)
        path.write_bytes(b"other bytes")
    repairer = Repairer(small.store, small.records)
    found = check_store(layout.root, small.records).findings
    assert len(repairer.condemn([one.part for one in found if one.part is not None])) == len(paths)
    return repairer


def test_last_good_copy_of_what_is_damaged_goes_from_backup_to_backup(
    small, restored_at, tmp_path: Path
) -> None:
    ingested = small.ingest({"bad": b"bad"}, "build_2")
    small.back_up(with_keys=True)
    repairer = condemned(small, ingested, b"bad")
    for _ in range(2):  # the first of them takes it from one that goes by the rule
        taken = small.back_up(with_keys=True, keep_count=1)
        assert [warning.split(",")[0] for warning in taken.warnings] == [
            "3 parts of the store that were found damaged are in it"
        ]
    assert [item.faults for item in verify(small.destination)] == [()]
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    blob = Path(again.store.layout.blob(Digest.of(b"bad"), executable=False))
    assert blob.read_bytes() == b"bad"
    repairer.mend([anything_at(small.destination.root)])
    assert check_store(small.store.layout.root, small.records).problems == ()


LOSE_A_REFERENCE = "DELETE FROM ref WHERE blob_id = (SELECT id FROM blob WHERE key = ?)"
LOSSES = {
    "a reference": [LOSE_A_REFERENCE],
    "a blob": [LOSE_A_REFERENCE, "DELETE FROM blob WHERE key = ?"],
}


@pytest.mark.parametrize("lost", LOSSES.values(), ids=LOSSES)
def test_manifest_that_is_taken_over_brings_back_the_references_that_are_lost(
    small, restored_at, tmp_path: Path, lost: list[str]
) -> None:
    ingested = small.ingest({"lone": b"lone", "index.html": b"<h1>one</h1>"}, "build_2")
    small.back_up(with_keys=True)
    key = bytes(Digest.of(b"lone")) + b"f"
    for statement in lost:
        small.records.write(lambda db, statement=statement: db.execute(statement, (key,)))
    Path(small.store.layout.tree(ingested.digest)).unlink()
    repairer = Repairer(small.store, small.records)
    repairer.condemn([Part.of_tree(ingested.digest)])
    small.back_up(with_keys=True, keep_count=1)
    assert [item.faults for item in verify(small.destination, is_deep=True)] == [()]
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new")
    blob = Path(again.store.layout.blob(Digest.of(b"lone"), executable=False))
    assert blob.read_bytes() == b"lone"
    repairer.mend([anything_at(small.destination.root)])
    assert check_store(small.store.layout.root, small.records).problems == ()


def test_copy_that_is_damaged_too_is_not_taken_over(small) -> None:
    ingested = small.ingest({"bad": b"bad"}, "build_2")
    path = Path(small.store.layout.envelope(ingested.envelope_sha256))
    statement = Digest.of(path.read_bytes())
    small.back_up(with_keys=True)
    condemned(small, ingested, b"bad")
    content = Path(small.destination.content(Digest.of(b"bad")))
    content.chmod(0o600)
    content.write_bytes(b"BAD")
    envelope = spoil(small.destination.content(statement))
    taken = small.back_up(with_keys=True, keep_count=1)
    assert [warning[:8] for warning in taken.warnings] == ["1 part o", "2 parts "]
    assert [item.faults for item in verify(small.destination)] == [()]
    assert not content.exists()
    assert not envelope.exists()


def spoil(path: str | Path) -> Path:
    """Give a file other bytes, as many as before."""
    spoiled = Path(path)
    spoiled.chmod(0o600)
    spoiled.write_bytes(b"x" * spoiled.stat().st_size)
    return spoiled


@pytest.mark.parametrize("spoil", [spoil, cut_short, linked])
def test_manifest_that_rotted_in_the_pool_is_written_anew(small, spoil) -> None:
    ingested = small.ingest({"a": b"a"}, "build_2")
    small.back_up()
    content = Path(small.destination.content(ingested.digest))
    spoil(content)
    taken = small.back_up(keep_count=1)
    (warning,) = taken.warnings
    assert warning.startswith(f"1 file of {small.destination.root}/pool was damaged, and")
    assert Digest.of(content.read_bytes()) == ingested.digest
    assert [item.faults for item in verify(small.destination)] == [()]
    assert small.back_up().warnings == ()


def test_manifest_that_rotted_in_the_pool_and_the_store_is_told_with_what_to_do(small) -> None:
    ingested = small.ingest({"a": b"a"}, "build_2")
    small.back_up()
    content = spoil(small.destination.content(ingested.digest))
    spoil(small.store.layout.tree(ingested.digest))
    for _ in range(2):
        with pytest.raises(BackupDamagedError, match=rf"{content} .* move the copy away"):
            small.back_up()
    content.unlink()
    Repairer(small.store, small.records).condemn([Part.of_tree(ingested.digest)])
    assert [warning[:8] for warning in small.back_up(keep_count=1).warnings] == ["1 part o"]
    assert [item.faults for item in verify(small.destination)] == [()]


def test_pack_that_rotted_in_the_pool_is_written_anew(small) -> None:
    repack = ["git", "-C", small.repositories.path("site_1"), "repack", "-adq"]
    subprocess.run(repack, check=True)
    small.back_up()
    (pack,) = small.repositories.path("site_1").glob("objects/pack/*.pack")
    content = spoil(small.destination.content(Digest.of(pack.read_bytes())))
    small.push("two")
    assert [warning[:8] for warning in small.back_up(keep_count=1).warnings] == ["1 file o"]
    assert content.read_bytes() == pack.read_bytes()
    assert [item.faults for item in verify(small.destination)] == [()]


def test_content_that_was_removed_from_the_pool_is_copied_again(small) -> None:
    small.back_up()
    for path in every_file(small.destination.pool):
        path.unlink()
    small.back_up(keep_count=1)
    assert [item.faults for item in verify(small.destination, is_deep=True)] == [()]


def test_file_that_was_written_to_is_copied_again_though_its_size_is_the_same(
    small, restored_at, tmp_path: Path
) -> None:
    description = small.repositories.path("site_1") / "description"
    description.write_text("one")
    small.back_up(with_keys=True)
    description.write_text("two")
    small.back_up(with_keys=True)
    small.restore(tmp_path / "new/data")
    again = restored_at(tmp_path / "new").repositories.path("site_1")
    assert (again / "description").read_text() == "two"


def test_repository_that_is_damaged_ends_the_backup(small) -> None:
    small.back_up()
    tip = small.push("two")
    objects = small.repositories.path("site_1") / "objects"
    lost = objects / tip[:2] / tip[2:]
    lost.unlink()
    with pytest.raises(BackupDamagedError, match=r"site acme-store: .*No backup was made"):
        small.back_up()
    assert len(small.destination.names()) == 1


def test_backup_is_a_source_of_copies(small) -> None:
    """As `gitd check --repair --from` goes by one."""
    small.back_up()
    layout = small.store.layout
    (manifest,) = (layout.root / "trees").glob("*/*")
    (envelope,) = (layout.root / "attest").glob("*/*")
    blob = Path(layout.blob(Digest.of(b"<h1>one</h1>"), executable=False))
    for path in (manifest, envelope, blob):
        path.chmod(0o644)
        path.write_bytes(b"other bytes")
    repairer = Repairer(small.store, small.records)
    found = check_store(layout.root, small.records).findings
    repairer.condemn([finding.part for finding in found if finding.part is not None])
    mended = repairer.mend([anything_at(small.destination.root)])
    assert {one.part.kind for one in mended} == set(PartKind)
    assert check_store(layout.root, small.records).problems == ()


def test_records_that_lost_a_reference_are_not_backed_up(small, restored_at, tmp_path) -> None:
    small.ingest({"lone": b"lone"}, "build_2")
    key = bytes(Digest.of(b"lone")) + b"f"
    small.records.write(lambda db: db.execute(LOSE_A_REFERENCE, (key,)))
    with pytest.raises(BackupDamagedError, match=r"names 1 blob .* gitd check --rebuild-index"):
        small.back_up(with_keys=True)
    assert small.destination.names() == []
    rebuild_index(small.store, small.records)
    small.back_up(with_keys=True)
    small.restore(tmp_path / "new/data")
    restored_at(tmp_path / "new")


def test_backup_of_records_that_lost_a_reference_is_not_whole(small, tmp_path: Path) -> None:
    small.ingest({"lone": b"lone"}, "build_2")
    taken = small.back_up(with_keys=True)
    manifest = Manifest.open(small.destination.manifest(taken.facts.name))
    entries = {getattr(entry, "path", entry.digest): entry for entry in manifest.entries()}
    # As a backup was made before manifests were held against the records.
    copy = tmp_path / "copy"
    shutil.copyfile(small.destination.content(entries["gitd.db"].digest), copy)
    with copies.editing(copy) as db:
        db.execute(LOSE_A_REFERENCE, (bytes(Digest.of(b"lone")) + b"f",))
        copies.drop_garbage(db)
    del entries[Digest.of(b"lone")]
    data = copy.read_bytes()
    entries["gitd.db"] = replace(entries["gitd.db"], digest=Digest.of(data), size_bytes=len(data))
    content = Path(small.destination.content(Digest.of(data)))
    content.parent.mkdir(exist_ok=True)
    content.write_bytes(data)
    manifest.path.unlink()
    with manifest.path.open("wb") as file:
        writer = ManifestWriter(file)
        for entry in entries.values():
            writer.add(entry)
        writer.finish(taken.facts)
    (found,) = verify(small.destination)
    assert [fault.split(": ")[1] for fault in found.faults] == [
        "names 1 blob that the records do not count on for it"
    ]


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a/\tb", ".", "a/."])
def test_path_that_leads_elsewhere_is_none(path: str) -> None:
    assert not is_safe(path)


def test_backup_makes_no_file_set_uid(small, tmp_path: Path) -> None:
    """Whoever can write the folder of backups would have one run as root by a restore."""
    taken = small.back_up(with_keys=True)
    manifest = Manifest.open(small.destination.manifest(taken.facts.name))
    entries = list(manifest.entries())
    manifest.path.unlink()
    with manifest.path.open("wb") as file:
        writer = ManifestWriter(file)
        for entry in entries:
            is_file = isinstance(entry, FileEntry) and entry.path != "gitd.db"
            writer.add(replace(entry, mode=entry.mode | 0o4000) if is_file else entry)
        writer.finish(taken.facts)
    with pytest.raises(BackupDamagedError, match="one of its lines is none"):
        small.restore(tmp_path / "new/data")


def test_manifest_is_readable_by_other_tools(small) -> None:
    taken = small.back_up()
    manifest = Manifest.open(small.destination.manifest(taken.facts.name))
    lines = manifest.path.read_bytes().splitlines(keepends=True)
    assert lines[0] == b"gitd-backup\t1\tblake3\n"
    assert Digest.of(b"".join(lines[:-1])) == taken.digest
    assert lines[-1] == f"blake3\t{taken.digest.hex()}\n".encode()
