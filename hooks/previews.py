"""Previews come to their end: with their branch, or when nobody has used them for long.

The push that deletes a branch takes its preview down (`hooks.push`). Nothing depends on that: now
and then is looked which branches there are, whoever deleted them and whatever came between.
Production and staging are none of this: they live as long as their site.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import structlog

from hooks.environments import remove_environment
from hooks.jobs import JobChanges, Jobs
from storage.errors import StorageError
from storage.git.errors import RepositoryError
from storage.model import Environment
from storage.records import previews, pushes
from storage.records.db import mapped_errors
from storage.records.previews import Preview
from storage.repos import Repositories

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 60.0
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """How long previews stay, and how many.

    Attributes:
        idle_s_max: After this time without a push, a build or a roll an ephemeral one is removed.
            0 is without an end.
        count_max: Of one site; a branch beyond that gets none. 0 is without bound.
    """

    idle_s_max: int = 30 * 24 * 3600
    count_max: int = 100

    def expires_at(self, preview: Preview) -> int | None:
        """When it is removed unless it is used until then; None when that is left to people."""
        if not self.idle_s_max or not preview.environment.ephemeral:
            return None
        return preview.used_at + 1000 * self.idle_s_max

    def crowd(self, count: int) -> str | None:
        """Say why a site with so many gets no other one; None when it does."""
        if not self.count_max or count < self.count_max:
            return None
        return (
            f"the site has {count} previews, as many as it may: delete branches or previews that "
            "are done"
        )


class PreviewKeeper:
    """Removes previews whose time has come. Belongs to one event loop."""

    def __init__(self, jobs: Jobs, repositories: Repositories, limits: PreviewLimits) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._repositories = repositories
        self._limits = limits

    async def keep(self) -> None:
        """Look now and every minute, for ever."""
        while True:
            try:
                await self.look()
            except StorageError:
                log.exception("previews_not_looked_at")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> list[Environment]:
        """Remove the previews whose branch is gone, or that nobody used; return them."""
        removed = []
        over: list[tuple[Preview, str | None]]
        for site_id, found in groupby(await self._every(), lambda each: each.environment.site_id):
            of_site = list(found)
            last_push = await asyncio.to_thread(self._last_push, site_id)
            over = [(preview, None) for preview in self._idle(of_site)]
            if last_push is not None:
                orphans = await asyncio.to_thread(self._without_branch, site_id, of_site)
                over += [(preview, last_push) for preview in orphans]
            for preview, after in over:
                if await self._remove(preview, after):
                    removed.append(preview.environment)
        return removed

    async def _every(self) -> list[Preview]:
        with mapped_errors():
            return await asyncio.to_thread(lambda: previews.every(self._records.reader()))

    def _last_push(self, site_id: str) -> str | None:
        """The newest push of all; None while one of this site moves its refs."""
        with mapped_errors():
            reader = self._records.reader()
            return None if pushes.has_open(reader, site_id) else pushes.newest_id(reader) or ""

    def _without_branch(self, site_id: str, of_site: Iterable[Preview]) -> list[Preview]:
        """Those whose branch was there once and is not. A repository that cannot be read, whose
        refs are damaged, or that has no branch at all, says nothing: rather is one kept too long.
        """
        try:
            tips = self._repositories.branches(site_id)
            gone = [e for e in of_site if e.had_branch and e.environment.branch not in tips]
            if not gone or not tips or self._repositories.has_broken_refs(site_id):
                return []
        except (RepositoryError, OSError) as error:
            log.warning("branches_not_read", site_id=site_id, reason=str(error))
            return []
        return gone

    def _idle(self, of_site: Iterable[Preview]) -> list[Preview]:
        now = self._jobs.clock()
        return [
            each
            for each in of_site
            if (expires_at := self._limits.expires_at(each)) is not None and expires_at <= now
        ]

    async def _remove(self, seen: Preview, last_push: str | None) -> bool:
        """Remove it, unless anything happened to it since it was seen; say whether it was.

        `last_push`: the one before its branch was looked for, and not found. A later one may have
        brought that back. None: it goes for being idle.
        """
        environment = seen.environment

        def change(changes: JobChanges) -> bool:
            if previews.get(changes.db, environment.id) != seen:
                return False
            if last_push is not None and pushes.has_newer(
                changes.db, environment.site_id, last_push
            ):
                return False
            remove_environment(changes, environment)
            return True

        is_removed = await self._jobs.commit(change)
        if is_removed:
            log.info(
                "preview_removed",
                site_id=environment.site_id,
                env_id=environment.id,
                branch=environment.branch,
                why="idle" if last_push is None else "branch_gone",
                idle_days=(self._jobs.clock() - seen.used_at) // DAY_MS,
            )
        return is_removed
