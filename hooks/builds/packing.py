"""Packing: the output of a build becomes a signed artifact, and the build a success.

Artifact, statement, the end of the build and its deployment are one commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hooks.builds.sources import Sources
from hooks.builds.wire import Finish
from hooks.clock import rfc3339
from hooks.housekeeping import quota_message
from hooks.jobs import JobChanges, Jobs
from hooks.queueing import DeploymentOrder, queue_deployment
from storage.artifacts import ArtifactStore, Ingested
from storage.envelope import Envelope
from storage.errors import QuotaExceededError
from storage.manifest import Manifest
from storage.model import Artifact, Attestation, Build, Trigger
from storage.provenance import (
    SANDBOX_BUILDER,
    SOURCE_BUILDER,
    Provenance,
    RunCommands,
    Submodule,
    build_provenance,
)
from storage.records import artifacts, builds, environments, garbage, sites
from storage.records import jobs as job_rows
from storage.repos import Graft, Grafts
from storage.source import Limits
from storage.tar import scan_tar

PACK = "pack"  # the stage that is control's own


class Packer:
    """Keeps outputs. `scratch` holds the tars that builders send, until they are packed.

    `seal` signs a statement.
    """

    def __init__(
        self,
        jobs: Jobs,
        sources: Sources,
        store: ArtifactStore,
        seal: Callable[[bytes], Envelope],
        *,
        scratch: Path,
        size_bytes_max: int,
        site_bytes_max: int = 0,
    ) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._sources = sources
        self._store = store
        self._seal = seal
        self._scratch = scratch
        self._size_bytes_max = size_bytes_max
        self._site_bytes_max = site_bytes_max
        self._version = version("gitd")

    def tar_of(self, job_id: str) -> Path:
        """Where the tar of the job's output is kept until the build is finished."""
        return self._scratch / f"output-{job_id}.tar"

    def tidy(self) -> None:
        """After a start: remove the tars of builds that did not end."""
        for path in self._scratch.glob("output-*"):
            path.unlink()

    async def keep(self, build: Build, outcome: Finish) -> None:
        """Pack, sign and record the output, and queue its deployment: one commit for all.

        Raises:
            TreeError: The output holds what no artifact may hold, or too much of it.
            BuildFailedError: A submodule cannot be had, or a file is a pointer of LFS.
            QuotaExceededError: The site's artifacts would be too large with it.
            StorageError: The store could not take it. In each case nothing was kept.
        """
        site = sites.find(self._records.reader(), build.site_id)
        environment = environments.get(self._records.reader(), build.env_id)
        assert site is not None, "a site that goes cancels its builds"
        slug = environment.slug if environment is not None else None  # it may be going
        grafts = await asyncio.to_thread(self._sources.grafts_of, build, outcome)
        published: list[JobChanges] = []
        self._jobs.begin_stage(build.job_id, PACK)
        began = time.monotonic()

        def attest(manifest: Manifest) -> Envelope:
            facts = replace(
                self._provenance(site.name, slug, build, outcome),
                submodules=tuple(map(self._submodule, grafts.items())),
            )
            return self._seal(build_provenance(facts, manifest))

        def record(db: sqlite3.Connection, kept: Ingested) -> None:
            changes = self._jobs.changes_in(db)
            published[:] = [changes]  # a commit that raced with the collector runs again
            took = {**outcome.timings, PACK: round(time.monotonic() - began, 6)}
            _record_success(changes, build, outcome, kept, took)
            self._check_quota(db, build.site_id)

        try:
            await asyncio.to_thread(self._ingest, build, outcome, grafts, attest, record)
        finally:
            self._jobs.end_stage(build.job_id, PACK, time.monotonic() - began)
        for changes in published:
            self._jobs.publish(changes)

    def _ingest(
        self,
        build: Build,
        outcome: Finish,
        grafts: Grafts,
        attest: Callable[[Manifest], Envelope],
        record: Callable[[sqlite3.Connection, Ingested], None],
    ) -> None:
        limits = Limits(size_bytes_max=self._size_bytes_max)
        if outcome.output == "tar":
            with self.tar_of(build.job_id).open("rb") as tar:
                self._store.ingest(scan_tar(tar), limits=limits, attest=attest, record=record)
            return
        entries = self._sources.entries(build, outcome, grafts)
        self._store.ingest(entries, limits=limits, attest=attest, record=record)

    def _check_quota(self, db: sqlite3.Connection, site_id: str) -> None:
        """Here, in the transaction: no other build of the site comes in between."""
        allowed = self._site_bytes_max
        if allowed and (used := garbage.site_bytes(db, site_id)) > allowed:
            raise QuotaExceededError(quota_message(used, allowed))

    def _provenance(
        self, site: str, environment: str | None, build: Build, outcome: Finish
    ) -> Provenance:
        run = outcome.run
        return Provenance(
            site=site,
            ref=build.ref,
            commit=build.commit,
            profile=outcome.profile or "static",
            run=RunCommands(run.web, run.release, run.health),
            build_id=build.id,
            builder=SOURCE_BUILDER if outcome.output == "source" else SANDBOX_BUILDER,
            started_at=rfc3339(build.started_at or build.created_at),
            finished_at=rfc3339(self._jobs.clock()),
            tree=self._sources.tree_of(build),
            environment=environment,
            settings={**outcome.settings, **({"clean": "true"} if build.clean else {})},
            toolchain=outcome.toolchain,
            cache_inputs=outcome.cache_inputs,
            gitd_version=self._version,
        )

    def _submodule(self, item: tuple[str, Graft]) -> Submodule:
        path, graft = item
        site = sites.find(self._records.reader(), graft.site_id)
        return Submodule(path, site.name if site is not None else graft.site_id, graft.commit)


def _record_success(
    changes: JobChanges,
    build: Build,
    outcome: Finish,
    kept: Ingested,
    took: Mapping[str, float],
) -> None:
    profile = outcome.profile or "static"
    artifacts.add(
        changes.db,
        Artifact(
            kept.artifact_id,
            str(kept.digest),
            kept.manifest_sha256,
            kept.files,
            kept.size_bytes,
            changes.now,
        ),
    )
    artifacts.attest(
        changes.db,
        Attestation(
            envelope_sha256=kept.envelope_sha256,
            artifact_id=kept.artifact_id,
            site_id=build.site_id,
            build_id=build.id,
            key_id=kept.key_id,
            signature=kept.signature,
            profile=profile,
            ref=build.ref,
            commit=build.commit,
            created_at=changes.now,
        ),
    )
    result = {"artifact_id": kept.artifact_id, "build_id": build.id}
    deployment_id = None
    if build.deploys and (job := job_rows.get(changes.db, build.job_id)) and not job.finished_at:
        deployment_id = _queue_its_deployment(changes, build, kept)
        result["deployment_id"] = deployment_id
    if changes.succeed(build.job_id, result) is None:
        return  # canceled meanwhile: the artifact is kept, and that is all
    started = builds.get(changes.db, build.id) or build
    builds.succeed(
        changes.db,
        build.id,
        artifact_id=kept.artifact_id,
        deployment_id=deployment_id,
        profile=profile,
        timings={**started.waited, **took},
        at=changes.now,
    )


def _queue_its_deployment(changes: JobChanges, build: Build, kept: Ingested) -> str:
    environment = environments.get(changes.db, build.env_id)
    assert environment is not None, "an environment that goes cancels its builds"
    order = DeploymentOrder(
        environment,
        kept.artifact_id,
        kept.envelope_sha256,
        Trigger.PUSH if build.pushed else Trigger.DEPLOY,
        build.actor,
        build.ref,
        build.commit,
    )
    deployment, _ = queue_deployment(changes, order)
    return deployment.id
