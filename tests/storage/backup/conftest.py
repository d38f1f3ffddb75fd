"""A small server's data, as control has it: a store, records, keys, repositories and logs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore, Ingested
from storage.backup.destination import Destination
from storage.backup.keys import KeyPlan
from storage.backup.places import Places
from storage.backup.restore import Restored, restore
from storage.backup.take import Taken, take
from storage.check import check_store
from storage.custody import Custody
from storage.envelope import Envelope
from storage.ids import new_id
from storage.joblog import JobLogs, LogLine
from storage.manifest import Manifest
from storage.model import SYSTEM, Artifact, Attestation, Job, JobStatus, JobType, Site
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.records import artifacts, jobs, retention, sites
from storage.records.db import Records
from storage.repos import Repositories
from storage.sealing import Vault
from storage.source import Limits, SourceFile
from tests.new_records import open_records

TREE = {"index.html": b"<h1>one</h1>", "big": b"0123456789abcdef" * (90 << 10), "run*": b"#!"}
IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **IDENTITY},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@dataclass
class Small:
    """A server's data folder, and a folder for its backups."""

    places: Places
    destination: Destination
    records: Records
    store: ArtifactStore
    custody: Custody
    repositories: Repositories
    work: Path

    @classmethod
    def open(cls, root: Path) -> Small:
        """Open what is there, making it first where there is nothing."""
        places = Places(root / "data")
        places.root.mkdir(parents=True, exist_ok=True)
        places.keys.mkdir(mode=0o700, exist_ok=True)
        records = open_records(places.database)
        store = ArtifactStore.open(places.store, records, group=None)
        custody = Custody(places.keys)
        custody.open(store.layout.trust)
        Vault.open(places.keys, may_create=True)
        made = cls(
            places,
            Destination(root / "backups"),
            records,
            store,
            custody,
            Repositories(places.repositories),
            root / "work",
        )
        if sites.find(records.reader(), "site_1") is None:
            made._begin()
        return made

    def _begin(self) -> None:
        self.records.write(lambda db: sites.add(db, Site("site_1", "acme-store", "main", 0)))
        bare = self.repositories.create("site_1", "main")
        self.work.mkdir()
        git("init", "-q", "-b", "main", ".", cwd=self.work)
        git("remote", "add", "managed", bare, cwd=self.work)
        self.push("one")
        JobLogs(self.places.joblogs).append(self.job(), [LogLine("built", "now", "build")])
        self.ingest(TREE, "build_1")

    def push(self, text: str, branch: str = "main") -> str:
        (self.work / "page").write_text(text)
        git("add", "page", cwd=self.work)
        git("commit", "-q", "--allow-empty", "-m", text, cwd=self.work)
        git("push", "-q", "managed", f"HEAD:{branch}", cwd=self.work)
        return git("rev-parse", "HEAD", cwd=self.work)

    def job(self, status: JobStatus = JobStatus.QUEUED) -> str:
        job = Job(
            id=new_id("job"),
            type=JobType.BUILD_RUN,
            status=status,
            progress=0,
            resource_type="build",
            resource_id=new_id("build"),
            site_id="site_1",
            env_id="env_1",
            result=None,
            error=None,
            version=1,
            owner=None,
            lease_id=None,
            attempts=0,
            losses=0,
            created_at=0,
            started_at=None,
            finished_at=None,
        )
        self.records.write(lambda db: jobs.add(db, job))
        return job.id

    def ingest(self, tree: dict[str, bytes], build_id: str) -> Ingested:
        """Take a tree in, and keep it."""
        entries = [
            SourceFile(name.rstrip("*").encode(), len(data), name.endswith("*"), lambda d=data: d)
            for name, data in tree.items()
        ]

        def attest(manifest: Manifest) -> Envelope:
            return self.custody.seal(build_provenance(_provenance(build_id), manifest))

        ingested, _ = self.store.ingest(
            entries,
            limits=Limits(),
            attest=attest,
            record=lambda db, done: _record(db, done, build_id),
        )
        return ingested

    def unpin(self, ingested: Ingested) -> None:
        self.records.write(lambda db: retention.unpin(db, "site_1", ingested.artifact_id))

    def back_up(self, **how: object) -> Taken:
        return take(self.places, self.destination, **how)

    def restore(self, root: Path, plan: KeyPlan | None = None, **how: object) -> Restored:
        return restore(self.destination, Places(root), plan or KeyPlan({}), **how)

    def close(self) -> None:
        self.records.close()


def _provenance(build_id: str) -> Provenance:
    return Provenance(
        site="acme-store",
        ref="refs/heads/main",
        commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
        profile="static",
        run=RunCommands(),
        build_id=build_id,
        builder=SOURCE_BUILDER,
        started_at="2026-01-01T00:00:00.000Z",
        finished_at="2026-01-01T00:00:05.000Z",
        tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        environment="production",
        settings={"output": "."},
        toolchain={"os": "debian 12"},
        gitd_version="0.1.0",
    )


def _record(db: object, done: Ingested, build_id: str) -> None:
    artifacts.add(
        db,
        Artifact(
            done.artifact_id, str(done.digest), done.manifest_sha256, done.files, done.size_bytes, 0
        ),
    )
    artifacts.attest(
        db,
        Attestation(
            envelope_sha256=done.envelope_sha256,
            artifact_id=done.artifact_id,
            site_id="site_1",
            build_id=build_id,
            key_id=done.key_id,
            signature=done.signature,
            profile="static",
            ref=None,
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            created_at=0,
        ),
    )
    retention.pin(db, "site_1", done.artifact_id, SYSTEM, 0)


def expect_equal(root: Path) -> Small:
    """Open a restored folder as a server would, and check all of it. Returns it open."""
    places = Places(root / "data")
    records = Records.open(places.database)
    store = ArtifactStore.open(places.store, records, group=None)
    report = check_store(places.store, records)
    assert (report.problems, report.leftovers) == ((), ())
    return Small(
        places,
        Destination(root / "backups"),
        records,
        store,
        Custody(places.keys),
        Repositories(places.repositories),
        root / "work",
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    made = Small.open(tmp_path / "small")
    yield made
    made.close()


@pytest.fixture(scope="session")
def make_small() -> Callable[[Path], Small]:
    """Makes one in a folder, for fixtures that live longer than a test. Close it."""
    return Small.open


@pytest.fixture
def restored_at() -> Iterator[object]:
    """Opens what was restored into a folder, checked."""
    opened: list[Small] = []

    def open_it(root: Path) -> Small:
        opened.append(expect_equal(root))
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()
