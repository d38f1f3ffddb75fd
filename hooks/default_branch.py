"""The default branch of a site: what goes live, and what a clone checks out.

It is said when the site is made, or by the first push, or changed later. The records say which it
is; HEAD of the repository follows them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from hooks import branches
from hooks.environments import map_branches
from hooks.errors import RefusedError
from hooks.job_changes import JobChanges
from hooks.key_reach import KeyReach
from storage.errors import StorageError
from storage.model import Action, ActorRef, BranchRoute, RefMove, RouteTarget, Site
from storage.records import environments, sites
from storage.records.db import Records
from storage.repos import Repositories

log = structlog.get_logger(__name__)

USUAL: Final = "main"  # of a site for which nobody said another
OF_OLDER_GIT: Final = "master"  # what `git init` calls it, unless told otherwise


def said_by(site: Site, moves: Sequence[RefMove]) -> str | None:
    """The branch which the first push makes the default one, if any.

    It is `master` alone: a branch of any other name may be one that nobody wants to see live.
    """
    made = {branches.branch_of(move.ref) for move in moves if not move.is_delete}
    is_meant = site.is_default_open and OF_OLDER_GIT in made and site.default_branch not in made
    return OF_OLDER_GIT if is_meant else None


def settle(changes: JobChanges, site: Site, moves: Sequence[RefMove], actor: ActorRef) -> Site:
    """Let the first push that makes a branch say which is the default one; it stays then.

    `actor`: whose push it is.
    """
    if not site.is_default_open or not any(
        branches.branch_of(move.ref) is not None and not move.is_delete for move in moves
    ):
        return site
    said = said_by(site, moves)
    if said is not None and _may_go_live(changes.db, site, said, actor):
        return change(changes, site, said)
    sites.set_default_branch(changes.db, site.id, site.default_branch)
    return replace(site, is_default_open=False)


def _may_go_live(db: sqlite3.Connection, site: Site, branch: str, actor: ActorRef) -> bool:
    """Whether the first push may take its branch from preview to production.

    Who made a preview for it has chosen. A key that is bound to an environment chooses for no
    other.
    """
    is_chosen = environments.preview_of(db, site.id, branch) is not None
    return KeyReach.of(db, actor).is_everywhere and not is_chosen


def change(changes: JobChanges, site: Site, branch: str) -> Site:
    """Make `branch` the default one, in the caller's transaction. What goes by its name follows:
    its branch route, and the branches that production and staging stand for.

    Raises:
        RefusedError: `site.branch_routed_elsewhere`: the one before goes live, and by a route of
            its own this one would not.
    """
    changed = replace(site, default_branch=branch, is_default_open=False)
    before = sites.routes(changes.db, site.id)
    routes = moved_routes(before, site.default_branch, branch)
    target = branches.target_of(routes, branch)
    was_live = branches.target_of(before, site.default_branch) is RouteTarget.LIVE
    if was_live and target is not RouteTarget.LIVE:
        raise RefusedError(
            "site.branch_routed_elsewhere",
            f"By the branch routes, the target of {branch!r} is {target.value}: it would not go "
            f"live, and {site.default_branch!r} would go on to. Change the routes first.",
        )
    sites.set_default_branch(changes.db, site.id, branch)
    sites.replace_routes(changes.db, site.id, routes)
    map_branches(changes, changed, routes)
    changes.note(Action.SITE_CHANGED, site.id, site_id=site.id)
    return changed


def moved_routes(routes: Sequence[BranchRoute], old: str, new: str) -> tuple[BranchRoute, ...]:
    """The routes with that of the branch `old` for `new`; as they are where `new` has its own."""
    if any(route.pattern == new for route in routes):
        return tuple(routes)
    return tuple(replace(r, pattern=new) if r.pattern == old else r for r in routes)


def goes_live_as_default(routes: Sequence[BranchRoute], old: str, new: str) -> bool:
    """Whether pushes to `new` would go live, were it the default branch and not `old`."""
    return branches.target_of(moved_routes(routes, old, new), new) is RouteTarget.LIVE


class Heads:
    """Lets HEAD of each repository name the default branch that the records say."""

    def __init__(self, records: Records, repositories: Repositories) -> None:
        self._records = records
        self._repositories = repositories

    async def follow(self, site_id: str) -> None:
        """Do it for one site. What fails is logged: the next start does it."""
        await asyncio.to_thread(self._follow, site_id)

    async def recover(self) -> None:
        """After a start: do it for every site, since a crash can come in between."""
        await asyncio.to_thread(self._follow_all)

    def _follow_all(self) -> None:
        for site in sites.every(self._records.reader()):
            self._follow(site.id)

    def _follow(self, site_id: str) -> None:
        try:
            self._repositories.point_head(site_id, lambda: self._default_branch(site_id))
        except StorageError:
            log.exception("head_not_moved", site_id=site_id)

    def _default_branch(self, site_id: str) -> str | None:
        site = sites.find(self._records.reader(), site_id)
        return None if site is None else site.default_branch
