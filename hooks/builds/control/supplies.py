"""Supplies: what control gives to the slot that holds a build, and keeps for the next one."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from hooks.builds.caches.build_cache import BuildCaches
from hooks.builds.control.dispatcher import Dispatcher
from hooks.builds.control.given import given_to_build
from hooks.builds.control.leases import Leases, Running
from hooks.builds.errors import BuildFailedError
from hooks.builds.sources.sources import Sources
from hooks.builds.wire import CacheAnswer, CacheRequest, Folder, Given, Lease, SourceHead
from hooks.jobs import Jobs
from hooks.variables import BuildValues, Variables
from storage.errors import SealBrokenError, StorageError
from storage.model import Build
from storage.records import environments, sites
from storage.trees import Changes, TreeFile

LEAST_SHARE = 4  # of a folder's files: what has more to come, or to go, is sent whole

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What a slot gets of a commit. `write` writes the body: blocking, for a thread."""

    head: SourceHead
    write: Callable[[BinaryIO], None]


class Supplies:
    """What slots get of the commits that they build, by the job that they hold.

    Each call raises `LeaseLostError` when nobody holds it.
    """

    def __init__(
        self,
        jobs: Jobs,
        leases: Leases,
        dispatcher: Dispatcher,
        sources: Sources,
        *,
        variables: Variables | None,
        caches: BuildCaches | None,
    ) -> None:
        self._records = jobs.records
        self._leases = leases
        self._dispatcher = dispatcher
        self._sources = sources
        self._variables = variables
        self._caches = caches

    def lease(self, running: Running) -> Lease:
        """What a slot is told of the job that it now holds.

        Raises:
            StorageError, RepositoryError: The commit cannot be read.
        """
        limits = self._leases.limits
        build = self._dispatcher.build_of(running.job)
        reader = self._records.reader()
        site = sites.find(reader, build.site_id)
        environment = environments.get(reader, build.env_id)
        assert site is not None, "a site that goes cancels its builds"
        assert environment is not None, "an environment that goes cancels its builds"
        root = self._sources.folder(build)
        assert root is not None, "a commit has a tree"
        return Lease(
            job_id=running.job.id,
            lease_id=running.lease_id,
            build_id=build.id,
            site=site.name,
            environment=environment.slug,
            ref=build.ref,
            commit=build.commit,
            clean=build.clean,
            timeout_s=limits.timeout_s,
            lease_s=limits.lease_s,
            output_bytes_max=limits.output_bytes_max,
            cache_bytes_max=limits.cache_bytes_max,
            root_entries=root.entries,
            files=root.files,
            tree=root.tree,
            limits=limits.sandbox,
        )

    async def folder(self, job_id: str, path: str) -> Folder | None:
        """Return what is in a folder of the job's commit, None where it has no such folder."""
        build = self._dispatcher.build_of(self._leases.held(job_id).job)
        return await asyncio.to_thread(self._sources.folder, build, path)

    async def source(
        self, job_id: str, folder: str, *, ignores_submodules: bool, bases: Sequence[str] = ()
    ) -> Source:
        """Return a folder of the job's commit; or what makes it of one of the trees `bases`, which
        the slot has, where that is less.

        Raises:
            BuildFailedError: `build.submodule_unavailable`; `build.limit_exceeded`, when it is
                larger than the disk that its build may take.
        """
        build = self._dispatcher.build_of(self._leases.held(job_id).job)
        return await asyncio.to_thread(
            self._source, build, folder, bases, ignores_submodules=ignores_submodules
        )

    def _source(
        self, build: Build, folder: str, bases: Sequence[str], *, ignores_submodules: bool
    ) -> Source:
        listing = self._sources.list_files(
            build,
            folder,
            ignores_submodules=ignores_submodules,
            disk_bytes_max=self._leases.limits.sandbox.disk_bytes_max,
        )
        head = SourceHead(listing.count, listing.size_bytes)
        files: Sequence[TreeFile] = listing.files
        removed = b""
        if not listing.is_grafted and (found := self._sources.folder(build, folder)) is not None:
            head = msgspec.structs.replace(head, tree=found.tree)
            few = listing.count // LEAST_SHARE
            if (least := self._least_changes(build, folder, bases, few)) is not None:
                base, changes = least
                files = changes.files
                removed = b"".join(path + b"\0" for path in changes.removed)
                head = msgspec.structs.replace(head, removed_bytes=len(removed), base=base)

        def write(out: BinaryIO) -> None:
            if removed:
                out.write(removed)
            self._sources.write_tar(build, files, out)

        return Source(head, write)

    def _least_changes(
        self, build: Build, folder: str, bases: Sequence[str], count_max: int
    ) -> tuple[int, Changes] | None:
        """Return the number of the tree that most of a folder is made of, and what makes it of
        that; None where each has more files to come, or to go, than `count_max`.
        """
        least = None
        for number, base in enumerate(bases):
            changes = self._sources.changes(build, folder, base, count_max=count_max)
            if changes is not None:
                least, count_max = (number, changes), changes.count - 1
        return least

    def variables(self, job_id: str, declared: Sequence[str]) -> Given:
        """Return the values of what the job's commit declares: for its slot alone.

        Raises:
            BuildFailedError: `build.variable_missing`, `build.variables_unreadable`.
        """
        running = self._leases.held(job_id)
        build = self._dispatcher.build_of(running.job)
        if self._variables is None:
            return given_to_build(BuildValues(missing=tuple(declared)))
        try:
            found = self._variables.for_build(
                self._records.reader(), build.site_id, build.env_id, declared
            )
        except SealBrokenError as error:
            log.exception("variables_unreadable", job_id=job_id)
            raise BuildFailedError(
                "build.variables_unreadable", "The server cannot open the values that are set."
            ) from error
        given = given_to_build(found)
        running.given.add(given.digest)
        return given

    async def find_cache(self, job_id: str, wanted: CacheRequest) -> CacheAnswer:
        """Say which cache the build begins with."""
        build = self._dispatcher.build_of(self._leases.held(job_id).job)
        if self._caches is None:
            return CacheAnswer("none is kept here")
        try:
            return await asyncio.to_thread(self._caches.find, build, wanted)
        except StorageError as error:
            return CacheAnswer(f"not used: {error}")

    def cache(self, job_id: str, digest: str) -> Callable[[BinaryIO], None]:
        """Return what writes the tar of a cache. Blocking: for a thread."""
        running = self._leases.held(job_id)
        build = self._dispatcher.build_of(running.job)
        assert self._caches is not None, "no cache was found without them"
        if self._caches.is_of_previews(build, digest):
            running.previews_only = True
        return functools.partial(self._caches.write_tar, build, digest)

    async def keep_cache(self, job_id: str, kept: CacheRequest, tar: Path) -> CacheAnswer:
        """Keep what the build leaves for the next one."""
        build = self._dispatcher.build_of(self._leases.held(job_id).job)
        if self._caches is None:
            return CacheAnswer("not kept: none is kept here")
        return await asyncio.to_thread(self._caches.keep, build, kept, tar)
