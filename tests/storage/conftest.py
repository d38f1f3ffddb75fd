"""A real store in a temporary folder, real keys, and small trees to put into it."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore, Ingested, KeptTree
from storage.check import check_store
from storage.collect import Collected, Collector, Order
from storage.digest import Digest
from storage.envelope import Envelope, seal
from storage.ids import new_id
from storage.manifest import Manifest
from storage.model import (
    SYSTEM,
    Artifact,
    Attestation,
    BuildCache,
    Deployment,
    Environment,
    EnvironmentKind,
    EnvironmentStatus,
    JobStatus,
    Release,
    Site,
    Trigger,
)
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.reader import StoreReader, VerifiedArtifact
from storage.records import (
    artifacts,
    build_caches,
    deployments,
    environments,
    releases,
    retention,
    sites,
)
from storage.records.db import Records
from storage.retention import DAY_MS, Retention
from storage.signing import SigningKey
from storage.source import Limits, SourceEntry, SourceFile
from storage.trust import establish
from tests.new_records import open_records

AT_ONCE = Order(is_hurried=True, is_thorough=True)
KEEP_NOTHING = Retention(
    releases=0,
    branch_artifacts=0,
    recent_ms=0,
    grace_ms=0,
    cache_bytes_max=0,
    cache_site_bytes_max=0,
)


@dataclass
class Shop:
    """A store with its records and keys, as control has them, and a reader, as a host has it."""

    folder: Path
    records: Records
    store: ArtifactStore
    reader: StoreReader
    root_key: SigningKey
    signing_key: SigningKey
    builds: Iterator[int] = field(default_factory=itertools.count)

    def ingest(
        self,
        tree: Iterable[SourceEntry] | dict[str, bytes],
        *,
        limits: Limits | None = None,
        **facts: object,
    ) -> Ingested:
        entries = files(tree) if isinstance(tree, dict) else tree
        build_id = f"build_{next(self.builds)}"
        ingested, _ = self.store.ingest(
            entries,
            limits=limits or Limits(),
            attest=lambda manifest: self.attest(manifest, build_id, **facts),
            record=lambda db, ingested: record(db, ingested, build_id),
        )
        return ingested

    def keep_tree(self, tree: dict[str, bytes], key: str = "k") -> KeptTree:
        """Keep a tree as the build cache of a site that is made for it."""

        def record(db: sqlite3.Connection, kept: KeptTree) -> None:
            if sites.find(db, "site_1") is None:
                sites.add(db, Site("site_1", "acme-store", "main", 0))
            build_caches.put(
                db,
                BuildCache(
                    id=new_id("cache"),
                    site_id="site_1",
                    profile="node",
                    cache_key=key,
                    tree_digest=str(kept.digest),
                    files=kept.files,
                    size_bytes=kept.size_bytes,
                    created_at=0,
                    used_at=0,
                ),
            )

        return self.store.keep_tree(files(tree), limits=Limits(), record=record)[0]

    def pin(self, ingested: Ingested) -> None:
        """Let an artifact be kept, for a site that is made for it."""

        def change(db: sqlite3.Connection) -> None:
            if sites.find(db, "site_1") is None:
                sites.add(db, Site("site_1", "acme-store", "main", 0))
            retention.pin(db, "site_1", ingested.artifact_id, SYSTEM, 0)

        self.records.write(change)

    def attest(self, manifest: Manifest, build_id: str, **facts: object) -> Envelope:
        return seal(build_provenance(provenance(build_id, **facts), manifest), self.signing_key)

    def verify(self, ingested: Ingested, **how: str) -> VerifiedArtifact:
        return self.reader.verify(ingested.digest, ingested.envelope_sha256, **how)

    def blob(self, contents: bytes, *, executable: bool = False) -> Path:
        return Path(self.store.layout.blob(Digest.of(contents), executable=executable))


@dataclass
class Clock:
    """The time of day, as a test sets it. Milliseconds."""

    now: int = 100 * DAY_MS

    def __call__(self) -> int:
        return self.now


@dataclass
class World:
    """A shop whose site has environments, and a collector that keeps nothing by itself."""

    shop: Shop
    clock: Clock = field(default_factory=Clock)
    retention: Retention = KEEP_NOTHING

    def __post_init__(self) -> None:
        self.write(lambda db: sites.add(db, Site("site_1", "acme-store", "main", 0)))
        self.environment("env_1", branch="main")

    def write(self, change: Callable[[sqlite3.Connection], object]) -> object:
        return self.shop.records.write(change)

    def environment(self, env_id: str, *, branch: str, site: str = "site_1") -> None:
        made = Environment(
            env_id,
            site,
            branch,
            EnvironmentKind.PREVIEW,
            branch,
            ephemeral=True,
            status=EnvironmentStatus.ACTIVE,
            hostname=env_id,
            created_at=0,
        )
        self.write(lambda db: environments.add(db, made))

    def deployment(self, ingested: Ingested, env_id: str = "env_1") -> Deployment:
        made = deployment_of(ingested.artifact_id, ingested.envelope_sha256, env_id)
        self.write(lambda db: deployments.add(db, made))
        return made

    def release(self, ingested: Ingested, env_id: str = "env_1") -> None:
        deployment = self.deployment(ingested, env_id)
        made = Release(
            id=new_id("rel"),
            site_id="site_1",
            env_id=env_id,
            deployment_id=deployment.id,
            artifact_id=ingested.artifact_id,
            ref=None,
            commit=None,
            actor=SYSTEM,
            deployed_at=0,
            is_current=True,
        )
        self.write(lambda db: deployments.succeed(db, deployment.id, made.id, 0))
        self.write(lambda db: releases.add_current(db, made))

    def end(self, deployment: Deployment) -> None:
        self.write(lambda db: deployments.end(db, deployment.id, JobStatus.FAILED, None, 0))

    def restart(self) -> None:
        """What a kill and a start give: whatever was in memory is gone."""
        self.shop.records.close()
        builds = self.shop.builds
        self.shop = make_shop(self.shop.folder)
        self.shop.builds = builds
        self.shop.store.recover()

    def collector(self, kind: type[Collector] = Collector) -> Collector:
        return kind(self.shop.store, self.shop.records, self.retention, clock=self.clock)

    def collect(self, order: Order = AT_ONCE) -> Collected:
        return self.collector().run(order)

    def listed(self) -> set[str]:
        page = artifacts.page(
            self.shop.records.reader(), PREVIEW, newest=None, last=None, limit_count=100
        )
        return {item.artifact.id for item in page.items}

    def expect_whole(self) -> None:
        """What is listed can be unpacked, nothing lies there that nobody knows."""
        report = check_store(self.shop.folder / "store", self.shop.records)
        assert (report.problems, report.leftovers) == ((), ())
        assert list(self.shop.store.layout.tmp.iterdir()) == []
        for number, artifact_id in enumerate(sorted(self.listed())):
            found = artifacts.of_environment(self.shop.records.reader(), PREVIEW, artifact_id)
            verified = self.shop.reader.verify(
                Digest.parse(found.artifact.digest), found.attestation.envelope_sha256
            )
            out = self.shop.folder / f"out{number}"
            self.shop.reader.materialise(verified, out)
            shutil.rmtree(out)


PREVIEW = Environment(
    id="env_preview",
    site_id="site_1",
    slug="topic",
    kind=EnvironmentKind.PREVIEW,
    branch="topic",
    ephemeral=True,
    status=EnvironmentStatus.ACTIVE,
    hostname="topic",
    created_at=0,
)
"""It has built nothing: what it goes by, it shares with every preview of `site_1`."""


def deployment_of(artifact_id: str, envelope_sha256: str, env_id: str) -> Deployment:
    """A deployment that waits for its turn."""
    return Deployment(
        id=new_id("dep"),
        site_id="site_1",
        env_id=env_id,
        job_id=new_id("job"),
        artifact_id=artifact_id,
        envelope_sha256=envelope_sha256,
        trigger=Trigger.DEPLOY,
        status=JobStatus.QUEUED,
        runs_release_command=True,
        release_id=None,
        error=None,
        ref=None,
        commit=None,
        actor=SYSTEM,
        created_at=0,
        started_at=None,
        finished_at=None,
    )


def provenance(build_id: str, **facts: object) -> Provenance:
    stated = {
        "site": "acme-store",
        "ref": "refs/heads/main",
        "commit": "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
        "profile": "static",
        "run": RunCommands(),
        "build_id": build_id,
        "builder": SOURCE_BUILDER,
        "started_at": "2026-01-01T00:00:00.000Z",
        "finished_at": "2026-01-01T00:00:05.000Z",
        "tree": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        "environment": "production",
        "settings": {"output": "."},
        "toolchain": {"node": "20.20.2", "os": "debian 12"},
        "gitd_version": "0.1.0",
    }
    return Provenance(**{**stated, **facts})  # type: ignore[arg-type]


def record(db: sqlite3.Connection, ingested: Ingested, build_id: str) -> None:
    artifacts.add(
        db,
        Artifact(
            ingested.artifact_id,
            str(ingested.digest),
            ingested.manifest_sha256,
            ingested.files,
            ingested.size_bytes,
            0,
        ),
    )
    artifacts.attest(
        db,
        Attestation(
            envelope_sha256=ingested.envelope_sha256,
            artifact_id=ingested.artifact_id,
            site_id="site_1",
            build_id=build_id,
            key_id=ingested.key_id,
            signature=ingested.signature,
            profile="static",
            ref=None,
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            created_at=0,
        ),
    )


def files(tree: dict[str, bytes]) -> list[SourceEntry]:
    return [
        SourceFile(name.rstrip("*").encode(), len(data), name.endswith("*"), lambda data=data: data)
        for name, data in tree.items()
    ]


def make_shop(folder: Path) -> Shop:
    folder.mkdir(exist_ok=True)
    records = open_records(folder / "gitd.db")
    store = ArtifactStore.open(folder / "store", records, group=None)
    root_key = SigningKey.load_or_create(folder / "root.key")
    signing_key = SigningKey.load_or_create(folder / "signing.key")
    establish(store.layout.trust, root=root_key, signing=signing_key)
    return Shop(folder, records, store, StoreReader(folder / "store"), root_key, signing_key)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for what is copied and thrown away again and again."""
    # The programs of the tests, which need this file too, are not to look for strace.
    from tests.crashing import scratch_folder

    with scratch_folder() as folder:
        yield folder


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = make_shop(tmp_path / "shop")
    yield made
    made.records.close()


@pytest.fixture
def shop_at() -> Iterator[Callable[[Path], Shop]]:
    """Opens the shop in a folder, also one that another process made."""
    opened: list[Shop] = []

    def open_shop(folder: Path) -> Shop:
        opened.append(make_shop(folder))
        return opened[-1]

    yield open_shop
    for one in opened:
        one.records.close()


@pytest.fixture
def world(shop: Shop) -> World:
    return World(shop)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[], World]]:
    """Makes worlds, each in a folder of its own."""
    made: list[World] = []

    def make() -> World:
        made.append(World(make_shop(tmp_path / f"shop{len(made)}")))
        return made[-1]

    yield make
    for one in made:
        one.shop.records.close()


@pytest.fixture
def source_files() -> Callable[[dict[str, bytes]], list[SourceEntry]]:
    return files
