"""Environments of a site. Source: contract §5."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, created
from gitd.api.paging import LIMIT_DEFAULT, Cursor, Limit, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from gitd.api.sites import BranchText, PolicyBody
from hooks.deploys.wire import Running
from hooks.follow import Addresses
from hooks.hostnames import served_names
from hooks.sites import Sites
from storage.model import Environment, EnvironmentKind
from storage.records import domains, environments, previews

CANCEL = "deployments:write"


class EnvironmentsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    branch: BranchText | None = None
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None


class EnvironmentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    branch: BranchText
    ephemeral: bool = True


def _require_power(call: Call[Any, Any]) -> None:
    """Who may make previews may end them, and not what lives as long as its site: that wants more.

    Raises:
        ScopeInsufficientError: The key has neither all of environments, nor deploys.
    """
    is_preview = call.environment.kind is EnvironmentKind.PREVIEW
    if not is_preview and not call.actor.may("environments:admin"):
        call.actor.require("deployments:write")


class Environments:
    def __init__(
        self,
        sites: Sites,
        addresses: Addresses,
        running: Callable[[str], Running | None],
    ) -> None:
        self._sites = sites
        self._addresses = addresses
        self._running = running

    async def list(self, call: Call[EnvironmentsQuery, NoBody]) -> ListReply:
        query = call.query
        name = list_name("environments", call.site.id, query.branch, call.actor.env_id)
        (before,) = read_cursor(query.cursor, name)
        page = environments.page(
            call.db,
            call.site.id,
            branch=query.branch,
            only=call.actor.env_id,
            before=before,
            limit_count=query.limit,
        )
        cursor = next_cursor(name, page)
        return ListReply(self._answers(call.db, page.items), cursor)

    async def create(self, call: Call[NoQuery, EnvironmentBody]) -> Reply:
        made = await self._sites.create_environment(
            call.site,
            call.body.kind,
            call.body.branch,
            ephemeral=call.body.ephemeral,
            claim=call.claim,
        )
        return created(
            self._answer(call.db, made.value),
            answers.environment_path(call.site, made.value),
            replayed=made.replayed,
        )

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        return Reply(self._answer(call.db, call.environment))

    async def change(self, call: Call[NoQuery, PolicyBody]) -> Reply:
        policy = call.body.when_pushed_again
        if policy is msgspec.UNSET:
            return Reply(self._answer(call.db, call.environment))
        await self._sites.set_push_policy(call.environment, policy)
        changed = replace(call.environment, when_pushed_again=policy)
        return Reply(self._answer(call.db, changed))

    async def renew(self, call: Call[NoQuery, NoBody]) -> Reply:
        row = await self._sites.renew_environment(call.environment)
        return Reply(self._answer(call.db, row))

    async def suspend(self, call: Call[NoQuery, NoBody]) -> Reply:
        """Raises ScopeInsufficientError: as `_require_power`, or work would be canceled."""
        _require_power(call)
        may_cancel = partial(call.actor.require, CANCEL)
        row = await self._sites.suspend_environment(call.environment, may_cancel)
        return Reply(self._answer(call.db, row))

    async def resume(self, call: Call[NoQuery, NoBody]) -> Reply:
        _require_power(call)
        row = await self._sites.resume_environment(call.environment, call.actor.ref)
        return Reply(self._answer(call.db, row))

    async def delete(self, call: Call[NoQuery, NoBody]) -> Reply:
        await self._sites.delete_environment(call.environment)
        return Reply(answers.Deleted(call.environment.id))

    def _answer(self, db: sqlite3.Connection, row: Environment) -> answers.Environment:
        return self._answers(db, [row])[0]

    def _answers(
        self, db: sqlite3.Connection, rows: Sequence[Environment]
    ) -> Sequence[answers.Environment]:
        expires_at = self._sites.preview_limits.expires_at
        found = previews.among(db, [row.id for row in rows])
        ends = {env_id: expires_at(preview) for env_id, preview in found.items()}
        custom = domains.of_environments(db, [row.id for row in rows])
        names = served_names(self._addresses.platform, custom)
        return [
            answers.environment(
                self._addresses,
                row,
                domains=names.get(row.id, []),
                expires_at=ends.get(row.id),
                running=self._running(row.id),
            )
            for row in rows
        ]
