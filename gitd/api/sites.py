"""Sites and their branch routes. Source: contract §5."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, created
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from hooks.follow import Addresses
from hooks.sites import Sites as AllSites
from storage.model import BranchRoute, PushPolicy
from storage.records import sites

NameText = Annotated[str, msgspec.Meta(max_length=255, description="A label of a host name.")]
BranchText = Annotated[str, msgspec.Meta(max_length=255)]


class SiteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: NameText
    """Without `default_branch` it is `main`, unless the first push is of `master`."""

    default_branch: BranchText | msgspec.UnsetType = msgspec.UNSET


class PolicyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`when_pushed_again`: null goes back to the wider setting; what is absent stays."""

    when_pushed_again: PushPolicy | msgspec.UnsetType | None = msgspec.UNSET


class SiteChangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`when_pushed_again`: null goes back to the server's setting; what is absent stays."""

    default_branch: BranchText | msgspec.UnsetType = msgspec.UNSET
    when_pushed_again: PushPolicy | msgspec.UnsetType | None = msgspec.UNSET


class RoutesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    routes: list[answers.Route]


class Sites:
    def __init__(self, sites: AllSites, addresses: Addresses) -> None:
        self._sites = sites
        self._addresses = addresses

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("sites", call.actor.site_id)
        (before,) = read_cursor(call.query.cursor, name)
        page = sites.page(
            call.db, only=call.actor.site_id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        return ListReply([answers.site(self._addresses, site) for site in page.items], cursor)

    async def create(self, call: Call[NoQuery, SiteBody]) -> Reply:
        branch = call.body.default_branch
        chosen = None if branch is msgspec.UNSET else branch
        made = await self._sites.create(call.body.name, chosen, claim=call.claim)
        return created(
            answers.site(self._addresses, made.value),
            f"/v1/sites/{made.value.id}",
            replayed=made.replayed,
        )

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        return Reply(answers.site(self._addresses, call.site))

    async def change(self, call: Call[NoQuery, SiteChangeBody]) -> Reply:
        branch, policy = call.body.default_branch, call.body.when_pushed_again
        changed = call.site
        if branch is not msgspec.UNSET:
            await self._sites.set_default_branch(call.site, branch)
            changed = replace(changed, default_branch=branch)
        if policy is not msgspec.UNSET:
            await self._sites.set_push_policy(call.site, policy)
            changed = replace(changed, when_pushed_again=policy)
        return Reply(answers.site(self._addresses, changed))

    async def delete(self, call: Call[NoQuery, NoBody]) -> Reply:
        await self._sites.delete(call.site)
        return Reply(answers.Deleted(call.site.id))

    async def show_routes(self, call: Call[NoQuery, NoBody]) -> Reply:
        return _routes(sites.routes(call.db, call.site.id))

    async def replace_routes(self, call: Call[NoQuery, RoutesBody]) -> Reply:
        wanted = tuple(BranchRoute(route.pattern, route.target) for route in call.body.routes)
        await self._sites.replace_routes(call.site, wanted)
        return _routes(wanted)


def _routes(routes: tuple[BranchRoute, ...]) -> Reply:
    return Reply(answers.Routes([answers.Route(r.pattern, r.target) for r in routes]))
