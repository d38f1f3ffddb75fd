"""Packing: the output of a build becomes a signed artifact, and the build a success.

Artifact, statement, the end of the build and its deployment are one commit. A build whose inputs
gave an artifact before gets that one, with the statement of the build that made it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import structlog

from hooks.builds.control.ending import note_output, note_success
from hooks.builds.control.memo import Memo
from hooks.builds.control.reproducibility import compared
from hooks.builds.errors import BuildFailedError, BuildOverError
from hooks.builds.profiles.toolchain import toolchain_digest
from hooks.builds.sources.files import SourceFiles
from hooks.builds.sources.sources import Sources
from hooks.builds.sources.tree import OUTPUT_TOO_LARGE, output_too_large
from hooks.builds.wire import Finish
from hooks.clock import rfc3339
from hooks.housekeeping import quota_message
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.variables import Variables
from storage.artifacts import ArtifactStore, Ingested
from storage.envelope import Envelope
from storage.errors import QuotaExceededError, TreeBytesError, TreeTooLargeError
from storage.manifest import Manifest
from storage.model import Attestation, Build, PushPolicy
from storage.provenance import (
    SANDBOX_BUILDER,
    SOURCE_BUILDER,
    Provenance,
    RunCommands,
    Submodule,
    build_provenance,
)
from storage.records import build_memos, builds, environments, garbage, sites
from storage.repos import Graft, Grafts
from storage.source import Limits, SourceEntry
from storage.tar import scan_tar

log = structlog.get_logger(__name__)

PACK = "pack"  # the stages that are control's own
MEMO = "memo"
NOT_COMPARED = "not compared: no earlier build of the same inputs has an artifact that is kept"


class Packer:
    """Keeps outputs. `scratch` holds the tars that builders send, until they are packed.

    `seal` signs a statement.
    """

    def __init__(  # noqa: PLR0913 - each has a name
        self,
        jobs: Jobs,
        sources: Sources,
        store: ArtifactStore,
        seal: Callable[[bytes], Envelope],
        *,
        scratch: Path,
        size_bytes_max: int,
        site_bytes_max: int = 0,
        variables: Variables | None = None,
        push_policy: PushPolicy = PushPolicy.OVERRIDE,
    ) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._sources = sources
        self._store = store
        self._seal = seal
        self._scratch = scratch
        self._size_bytes_max = size_bytes_max
        self._site_bytes_max = site_bytes_max
        self._push_policy = push_policy
        self._version = version("gitd")
        self.memo = Memo(jobs.records, sources, variables)

    def tar_of(self, job_id: str) -> Path:
        """Where the tar of the job's output is kept until the build is finished."""
        return self._scratch / f"output-{job_id}.tar"

    def discard(self, job_id: str) -> None:
        """Remove that tar, if there is one. On a disk in trouble it is left to the next start."""
        _remove(self.tar_of(job_id))

    def tidy(self) -> None:
        """After a start: remove the tars of builds that did not end. None of them holds it up."""
        for path in self._scratch.glob("output-*"):
            _remove(path)

    async def keep(
        self,
        build: Build,
        outcome: Finish,
        *,
        given: str | None = None,
        previews_only: bool = False,
        begin_log: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Pack, sign and record the output, and queue its deployment: one commit for all.

        `given`: the digest of the variables and secrets that it was given, if any is known.
        `previews_only`: if it is of a preview, it may have begun with what one left.
        `begin_log`: what the log has to wait for, while the output is being packed already.

        Raises:
            TreeError: The output holds what no artifact may hold.
            BuildFailedError: There is too much of it; a submodule cannot be had, or a file is a
                pointer of LFS.
            QuotaExceededError: The site's artifacts would be too large with it.
            StorageError: The store could not take it. In each case nothing was kept.
                Nor is it when the build is over before its commit is read: there is no use in it.
        """
        published: list[JobChanges] = []
        began = time.monotonic()
        packing = asyncio.ensure_future(
            asyncio.to_thread(
                self._pack, build, outcome, given, began, published, previews_only=previews_only
            )
        )
        if begin_log is not None:
            await begin_log()
        self._jobs.log.begin_stage(build.job_id, PACK)
        committed: list[JobChanges] = []
        try:
            kept, before = await packing
            committed = published
            await self._say_whether_equal(build, kept, before)
        except BuildOverError:
            return
        except TreeBytesError as error:
            raise output_too_large(self._size_bytes_max) from error
        except TreeTooLargeError as error:
            raise BuildFailedError(OUTPUT_TOO_LARGE, f"output: {error}.") from error
        finally:
            self._jobs.log.end_stage(build.job_id, PACK, time.monotonic() - began)
            for changes in committed:
                self._jobs.publish(changes)

    def _pack(
        self,
        build: Build,
        outcome: Finish,
        given: str | None,
        began: float,
        published: list[JobChanges],
        *,
        previews_only: bool,
    ) -> tuple[Ingested, Attestation | None]:
        """Do the work of `keep`. Returns what is kept, and for a clean build what was before."""
        site = sites.find(self._records.reader(), build.site_id)
        environment = environments.get(self._records.reader(), build.env_id)
        assert site is not None, "a site that goes cancels its builds"
        slug = environment.slug if environment is not None else None  # it may be going
        grafts = self._sources.grafts_of(build, outcome)
        inputs = self.memo.inputs_given(build, given)
        toolchain = toolchain_digest(outcome.toolchain)
        before = self._recall(build, inputs, toolchain) if build.clean else None
        if outcome.output == "source" or not self.memo.is_for_preview(build):
            previews_only = False  # it began with nothing, or with what production may begin with

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
            note_output(changes, build, outcome, kept, took, self._push_policy)
            if inputs is not None:
                build_memos.put(
                    db,
                    build.site_id,
                    inputs,
                    toolchain,
                    kept.envelope_sha256,
                    previews_only=previews_only,
                )
            self._check_quota(db, build.site_id)

        return self._ingest(build, outcome, grafts, attest, record), before

    def _ingest(
        self,
        build: Build,
        outcome: Finish,
        grafts: Grafts,
        attest: Callable[[Manifest], Envelope],
        record: Callable[[sqlite3.Connection, Ingested], None],
    ) -> Ingested:
        limits = Limits(size_bytes_max=self._size_bytes_max)
        if outcome.output == "tar":
            with self.tar_of(build.job_id).open("rb") as tar:
                files = self._sources.unchanged(build, outcome, grafts)
                entries = chain(scan_tar(tar, is_file=True), files)
                return self._take_in(entries, files, limits, attest, record)
        files = self._sources.files(build, outcome, grafts)
        return self._take_in(files, files, limits, attest, record)

    def _take_in(
        self,
        entries: Iterable[SourceEntry],
        files: SourceFiles,
        limits: Limits,
        attest: Callable[[Manifest], Envelope],
        record: Callable[[sqlite3.Connection, Ingested], None],
    ) -> Ingested:
        def attest_and_learn(manifest: Manifest) -> Envelope:
            files.learn(manifest)
            return attest(manifest)

        return self._store.ingest(entries, limits=limits, attest=attest_and_learn, record=record)[0]

    async def reuse(self, build: Build, toolchain: str) -> bool:
        """End a queued build with what its inputs gave before, and queue its deployment.

        `toolchain`: the digest of what it would be built with. False when nothing can be reused:
        it was never built, is not kept any more, or must not be read by who asks. A build that
        is over already stays as it is.

        Raises:
            StorageError: The commit failed, and the build is as it was.
        """
        inputs = await asyncio.to_thread(self.memo.inputs_of, build)
        made_by = self._recall(build, inputs, toolchain)
        if inputs is None or made_by is None:
            return False
        for_preview = self.memo.is_for_preview(build)
        if not await asyncio.to_thread(self.memo.may_read, build):
            return False
        self._jobs.log.add(build.job_id, _reused(made_by), stage=MEMO)

        def change(changes: JobChanges) -> bool:
            # In the transaction: the collector may have come in between.
            made_by = self.memo.recall(
                changes.db, build.site_id, inputs, toolchain, for_preview=for_preview
            )
            if made_by is None:
                return False
            if changes.start(build.job_id) is not None:
                builds.start(changes.db, build.id, changes.now)
                note_success(changes, build, made_by, {}, self._push_policy, cached=True)
            return True

        is_over = await self._jobs.commit(change)
        if not is_over:
            gone = "that artifact was collected meanwhile: building it again"
            self._jobs.log.add(build.job_id, [gone], stage=MEMO)
        return is_over

    def _recall(self, build: Build, inputs: str | None, toolchain: str) -> Attestation | None:
        if inputs is None:
            return None
        reader, for_preview = self._records.reader(), self.memo.is_for_preview(build)
        return self.memo.recall(reader, build.site_id, inputs, toolchain, for_preview=for_preview)

    async def _say_whether_equal(
        self, build: Build, kept: Ingested, before: Attestation | None
    ) -> None:
        if not build.clean:
            return
        if before is None:
            self._jobs.log.add(build.job_id, [NOT_COMPARED], stage=PACK)
            return
        try:
            said = await asyncio.to_thread(compared, self._store, self._records, kept, before)
        except Exception:  # the ring of what only tells: the build is kept
            log.exception("outputs_not_compared", job_id=build.job_id)
            said = [
                f"not compared: what {before.build_id}, which had the same inputs, gave is damaged"
            ]
        self._jobs.log.add(build.job_id, said, stage=PACK)

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


def _remove(output: Path) -> None:
    try:
        output.unlink(missing_ok=True)
    except OSError:
        log.exception("output_not_removed", path=str(output), advice="see what holds it")


def _reused(made_by: Attestation) -> list[str]:
    of = made_by.commit[:12] if made_by.ref is None else f"{made_by.commit[:12]} ({made_by.ref})"
    return [
        f"nothing to build: {made_by.build_id}, of {of}, had the same inputs",
        f"its artifact is taken: {made_by.artifact_id}",
    ]
