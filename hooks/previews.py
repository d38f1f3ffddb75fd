"""Previews come to their end: with their branch, or when nobody has used them for long.

The push that deletes a branch takes its preview down (`hooks.push`). Nothing depends on that: now
and then is looked which branches there are, whoever deleted them and whatever came between. A clock
that is wrong for a while, a restored backup or a lost file must not take what is in use: so a
preview goes only after it was due in every look for some time.
Production and staging are none of this: they live as long as their site.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

import structlog

from hooks.background import for_ever
from hooks.clock import rfc3339
from hooks.environments import remove_environment
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from storage.counted import counted
from storage.git.errors import RepositoryError
from storage.model import Environment
from storage.records import previews, pushes
from storage.records.db import mapped_errors
from storage.records.previews import Preview
from storage.repos import Repositories

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 60.0
STEP_S_MAX = 2 * LOOK_EVERY_S  # that one look adds to a grace, however long ago the last one was
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
        """When it is due unless it is used until then, so that it goes at the earliest; None when
        that is left to people.
        """
        if not self.idle_s_max or not preview.environment.ephemeral:
            return None
        return preview.used_at + 1000 * self.idle_s_max

    def crowd(self, count: int) -> str | None:
        """Say why a site with so many gets no other one; None when it does."""
        if not self.count_max or count < self.count_max:
            return None
        return (
            f"the site has {counted(count, 'preview')}, as many as it may: delete branches or "
            "previews that are done"
        )


@dataclass(frozen=True, slots=True)
class Graces:
    """For how long a preview has to be due, in every look of this process, before it goes.

    Attributes:
        idle_s: One that nobody used: time to set a clock right, or to use what was restored.
        branch_gone_s: One without its branch: time to bring back a repository's lost refs.
    """

    idle_s: float = 24 * 3600
    branch_gone_s: float = 3600


class Why(StrEnum):
    """Why a preview is due."""

    IDLE = "idle"
    BRANCH_GONE = "branch_gone"


@dataclass(frozen=True, slots=True)
class _Due:
    """`last_push`: the one before its branch was looked for, and not found. A later one may have
    brought that back. None: it is due for being idle.
    """

    preview: Preview
    why: Why
    last_push: str | None = None

    @property
    def key(self) -> _Key:
        """Another once anybody used it."""
        return self.preview.environment.id, self.preview.used_at, self.why


_Key = tuple[str, int, Why]


class PreviewKeeper:
    """Removes previews whose time has come. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        repositories: Repositories,
        limits: PreviewLimits,
        graces: Graces | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._repositories = repositories
        self._limits = limits
        graces = graces or Graces()
        self._graces_s = {Why.IDLE: graces.idle_s, Why.BRANCH_GONE: graces.branch_gone_s}
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._due_s: dict[_Key, float] = {}  # for how long, in every look until now

    async def keep(self) -> None:
        """Look now and every minute, for ever."""
        await for_ever(self._turn, failed="previews_not_looked_at", pause_s=LOOK_EVERY_S)

    async def _turn(self) -> None:
        await self.look()
        await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> list[Environment]:
        """Remove the previews that have been due for long enough, and return them.

        Due are those whose branch is gone, or that nobody used.
        """
        due = [
            each
            for site_id, found in groupby(await self._every(), lambda it: it.environment.site_id)
            for each in await self._due(site_id, list(found))
        ]
        return [each.preview.environment for each in self._overdue(due) if await self._remove(each)]

    async def _due(self, site_id: str, of_site: list[Preview]) -> list[_Due]:
        last_push = await asyncio.to_thread(self._last_push, site_id)
        due = [_Due(preview, Why.IDLE) for preview in self._idle(of_site)]
        if last_push is not None:
            orphans = await asyncio.to_thread(self._without_branch, site_id, of_site)
            due += [_Due(preview, Why.BRANCH_GONE, last_push) for preview in orphans]
        return due

    def _overdue(self, due: list[_Due]) -> list[_Due]:
        """Note what this look found due, and forget what it did not; return what goes now.

        Time counts as this process spent it looking: neither what passed before its start, nor
        while it was stopped, nor any leap of the wall clock.
        """
        now = self._monotonic()
        step_s = min(now - self._looked_at, STEP_S_MAX)
        before, self._due_s, self._looked_at = self._due_s, {}, now
        for each in due:
            known_s = before.get(each.key)
            self._due_s[each.key] = 0.0 if known_s is None else known_s + step_s
            if known_s is None:
                self._warn(each)
        return [each for each in due if self._due_s[each.key] >= self._graces_s[each.why]]

    def _warn(self, due: _Due) -> None:
        environment, now = due.preview.environment, self._jobs.clock()
        log.warning(
            "preview_due",
            site_id=environment.site_id,
            env_id=environment.id,
            branch=environment.branch,
            why=due.why.value,
            goes_at=rfc3339(now + round(1000 * self._graces_s[due.why])),
            idle_days=(now - due.preview.used_at) // DAY_MS,
        )

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

    async def _remove(self, due: _Due) -> bool:
        """Remove it, unless anything happened to it since it was seen; say whether it was."""
        seen, last_push = due.preview, due.last_push
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
                why=due.why.value,
                idle_days=(self._jobs.clock() - seen.used_at) // DAY_MS,
            )
        return is_removed
