"""Deployments, promotions, rollbacks, and the releases that they left. Source: contract §4."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, accepted
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from hooks.errors import NotFoundError
from hooks.orders import can_run_again
from hooks.pipeline import Pipeline
from storage.records import deployments, releases

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Target = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=255, description="An id, a slug, or a kind."),
]


class DeploymentBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    artifact_id: Name


class PromotionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to_env: Target


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    config: Annotated[
        Literal["then", "now"],
        msgspec.Meta(description="What its programs are given: as in that release, or as set now."),
    ] = "then"


class Deployments:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def start(self, call: Call[NoQuery, DeploymentBody]) -> Reply:
        return accepted(
            await self._pipeline.start_deployment(
                call.environment,
                call.body.artifact_id,
                call.actor.ref,
                only_env=call.actor.env_id,
                claim=call.claim,
            )
        )

    async def roll_back(self, call: Call[NoQuery, RollbackBody]) -> Reply:
        return accepted(
            await self._pipeline.start_rollback(
                call.environment,
                call.named("deployment"),
                call.actor.ref,
                with_its_config=call.body.config == "then",
                claim=call.claim,
            )
        )

    async def restart(self, call: Call[NoQuery, NoBody]) -> Reply:
        return accepted(
            await self._pipeline.start_restart(call.environment, call.actor.ref, claim=call.claim)
        )

    async def promote(self, call: Call[NoQuery, PromotionBody]) -> Reply:
        return accepted(
            await self._pipeline.start_promotion(
                call.environment,
                call.body.to_env,
                call.actor.ref,
                only_env=call.actor.env_id,
                claim=call.claim,
            )
        )

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("deployments", call.environment.id)
        (before,) = read_cursor(call.query.cursor, name)
        page = deployments.page(
            call.db, call.environment.id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        return ListReply([answers.deployment(d) for d in page.items], cursor)

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        deployment = deployments.get(call.db, call.named("deployment"))
        if deployment is None or deployment.env_id != call.environment.id:
            raise NotFoundError("deployment", call.named("deployment"))
        return Reply(answers.deployment(deployment))

    async def list_releases(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("releases", call.environment.id)
        (before,) = read_cursor(call.query.cursor, name)
        page = releases.page(
            call.db, call.environment.id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        available = can_run_again(call.db, call.environment, page.items)
        triggers = deployments.triggers(call.db, [row.deployment_id for row in page.items])
        items = [
            answers.release(
                release, triggers[release.deployment_id], is_available=release.id in available
            )
            for release in page.items
        ]
        return ListReply(items, cursor)
