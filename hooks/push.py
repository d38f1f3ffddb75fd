"""A push, from its refs to the work that they ask for.

The push is recorded before its refs move and ended in the transaction that queues its builds: a
crash between the two is found at the next start, and what the refs ask for is done then.

Source: contract §5 "Branch routes", §6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from hooks import branches, default_branch
from hooks.environments import add_preview, remove_environment
from hooks.errors import PipelineError
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.key_reach import KeyReach
from hooks.previews import PreviewLimits
from hooks.queueing import BuildOrder, queue_build
from storage.errors import RecordConflictError, StorageError
from storage.ids import new_id
from storage.model import (
    Action,
    ActorRef,
    Build,
    Environment,
    EnvironmentKind,
    PushPolicy,
    PushRecord,
    RefMove,
    RouteTarget,
    Site,
)
from storage.records import environments, previews, pushes, sites
from storage.repos import Repositories

log = structlog.get_logger(__name__)

CLEAN: Final = frozenset({"clean", "rebuild"})
"""Push options, of one meaning: use and keep nothing of earlier builds."""
BEYOND_KEY: Final = "it goes to another environment by now than the one this key is bound to"


@dataclass(frozen=True, slots=True)
class Building:
    """The ref's branch has an environment: a build was queued for it, to be deployed.

    `is_new_build`: else one of the same commit was queued or running, and serves for both.
    """

    ref: str
    environment: Environment
    build: Build
    is_new_environment: bool
    is_new_build: bool


@dataclass(frozen=True, slots=True)
class MadeDefault:
    """The ref's branch is the site's default one from now on, for the first push was of it."""

    ref: str


@dataclass(frozen=True, slots=True)
class TornDown:
    """The ref's branch has no preview any more: it is deleted, or it goes elsewhere by now."""

    ref: str
    environment: Environment
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """The ref is gone, and that is all. `stays_on` still has what the branch deployed."""

    ref: str
    stays_on: Environment | None = None


@dataclass(frozen=True, slots=True)
class NotDeployed:
    """The ref is kept, and that is all: `why` is a clause for people."""

    ref: str
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The ref has moved, and gitd could not act on it: a fault of its own, which its log tells."""

    ref: str


Effect = MadeDefault | Building | TornDown | Deleted | NotDeployed | Failed


@dataclass(frozen=True, slots=True)
class PushRules:
    """What holds for all sites. A site and an environment may have a policy of their own."""

    when_pushed_again: PushPolicy = PushPolicy.OVERRIDE
    previews: PreviewLimits = field(default_factory=PreviewLimits)


@dataclass(frozen=True, slots=True)
class _Landing:
    push: PushRecord
    rules: PushRules
    reach: KeyReach


class PushHooks:
    """What happens around a push to a site's repository."""

    def __init__(
        self,
        jobs: Jobs,
        repositories: Repositories,
        rules: PushRules | None = None,
    ) -> None:
        self._jobs = jobs
        self._repositories = repositories
        self._heads = default_branch.Heads(jobs.records, repositories)
        self._rules = rules or PushRules()

    async def begin(
        self, site_id: str, actor: ActorRef, moves: Sequence[RefMove], options: Sequence[str]
    ) -> PushRecord:
        """Record that the push is about to move refs. Durable when it returns."""
        push = PushRecord(
            id=new_id("push"),
            site_id=site_id,
            actor=actor,
            moves=tuple(moves),
            options=tuple(options),
            created_at=self._jobs.clock(),
            landed_at=None,
        )

        def change(changes: JobChanges) -> None:
            pushes.add(changes.db, push)
            changes.note(Action.PUSH_RECEIVED, push.id, site_id=site_id, actor=actor)

        await self._jobs.commit(change)
        return push

    def land(self, push: PushRecord, moved: Iterable[RefMove]) -> Awaitable[list[Effect]]:
        """End the push: queue what the refs that did move ask for. A second call does nothing.

        Routes may have changed since the push was let in: one by a key that is bound to an
        environment acts on no other for that.
        It has its place in the order of all changes when this returns; durable when awaited.

        Raises:
            StorageError: The records failed; the push stays open, for `recover`.
        """
        landed = tuple(moved)

        def change(changes: JobChanges) -> list[Effect]:
            before = sites.find(changes.db, push.site_id)
            if before is None or not pushes.land(changes.db, push.id, changes.now):
                return []
            landing = _Landing(push, self._rules, KeyReach.of(changes.db, push.actor))
            site = default_branch.settle(changes, before, landed, push.actor)
            effects: list[Effect] = []
            if site.default_branch != before.default_branch:
                effects = [MadeDefault(f"{branches.HEADS}{site.default_branch}")]
            for move in landed:
                effects += _effects_apart(changes, site, landing, move)
            return effects

        return self._with_head(push.site_id, self._jobs.submit(change))

    async def _with_head(self, site_id: str, landing: Awaitable[list[Effect]]) -> list[Effect]:
        effects = await landing
        if any(isinstance(effect, MadeDefault) for effect in effects):
            await self._heads.follow(site_id)
        return effects

    async def recover(self) -> None:
        """After a start: end the pushes that a crash left open, by what their refs are now.

        One that cannot be ended is left for the next start, and logged: the others go on.
        """
        for push in pushes.open_ones(self._jobs.records.reader()):
            try:
                tips = await asyncio.to_thread(self._repositories.branches, push.site_id)
                moved = [move for move in push.moves if _has_moved(move, tips)]
                effects = await self.land(push, moved)
            except (StorageError, PipelineError):
                log.exception("push_not_recovered", push_id=push.id)
            else:
                log.info("push_recovered", push_id=push.id, refs=len(moved), effects=len(effects))


def _has_moved(move: RefMove, tips: dict[str, str]) -> bool:
    branch = branches.branch_of(move.ref)
    if branch is None:
        return False
    tip = tips.get(branch)
    return tip is None if move.is_delete else tip == move.new


def _effects_apart(
    changes: JobChanges, site: Site, landing: _Landing, move: RefMove
) -> list[Effect]:
    """Act on one ref by itself: when that fails, the push's other refs do not suffer."""
    try:
        with changes.apart():
            return _effects(changes, site, landing, move)
    except Exception as error:  # the ring of a ref
        if isinstance(error, StorageError) and not isinstance(error, RecordConflictError):
            raise  # no fault of the ref's: a full disk, for instance, which a repeat may not meet
        log.exception("ref_not_handled", site_id=site.id, ref=move.ref)
        return [Failed(move.ref)]


def _effects(changes: JobChanges, site: Site, landing: _Landing, move: RefMove) -> list[Effect]:
    branch = branches.branch_of(move.ref)
    if branch is None:
        what = Deleted(move.ref) if move.is_delete else None
        return [what or NotDeployed(move.ref, "only branches are deployed")]
    routes = sites.routes(changes.db, site.id)
    target = branches.target_of(routes, branch)
    preview = environments.preview_of(changes.db, site.id, branch)
    permanent = _permanent(changes, site, target)
    gone: list[Effect] = []
    if (
        preview is not None
        and (move.is_delete or target is not RouteTarget.PREVIEW)
        and landing.reach.has(preview)
    ):
        remove_environment(changes, preview)
        gone = [TornDown(move.ref, preview, move.is_delete)]
    if move.is_delete:
        return gone or [Deleted(move.ref, permanent if landing.reach.has(permanent) else None)]
    if move.old == move.new:
        return [*gone, NotDeployed(move.ref, "nothing changed")]
    if target is RouteTarget.IGNORE:
        why = f"{branches.reason_to_ignore(routes, branch)}: mf routes show --site {site.name}"
        return [*gone, NotDeployed(move.ref, why)]
    environment, is_new = permanent or preview, False
    if not landing.reach.has(environment):
        return [*gone, NotDeployed(move.ref, BEYOND_KEY)]
    if environment is None:
        crowd = landing.rules.previews.crowd(previews.count_of(changes.db, site.id))
        if crowd is not None:
            return [*gone, NotDeployed(move.ref, crowd)]
        environment, is_new = add_preview(changes, site, branch), True
    clean = not CLEAN.isdisjoint(landing.push.options)
    order = BuildOrder(
        environment, move.ref, move.new, landing.push.actor, clean=clean, deploys=True, pushed=True
    )
    policy = (
        environment.when_pushed_again or site.when_pushed_again or landing.rules.when_pushed_again
    )
    queued = queue_build(changes, order, policy)
    return [*gone, Building(move.ref, environment, queued.build, is_new, queued.is_new)]


def _permanent(changes: JobChanges, site: Site, target: RouteTarget) -> Environment | None:
    """The production or staging that a target stands for."""
    kinds = {
        RouteTarget.LIVE: EnvironmentKind.PRODUCTION,
        RouteTarget.STAGING: EnvironmentKind.STAGING,
    }
    if target not in kinds:
        return None
    (environment,) = environments.of_kind(changes.db, site.id, kinds[target])
    return environment
