"""Artifacts that can be deployed onto an environment. Source: contract §4."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply
from gitd.api.envelope import answer_headers
from gitd.api.paging import PageQuery, list_name, read_cursor, write_cursor
from gitd.api.reading import NoBody, NoQuery
from hooks import named
from hooks.errors import RefusedError
from hooks.pipeline import Pipeline
from storage.errors import ArtifactMissingError
from storage.model import SiteArtifact
from storage.records import artifacts, retention

MANIFEST_TYPE = "application/vnd.cas-tree.v1"
ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"


class Artifacts:
    """`manifest_bytes` reads a manifest by its digest, `envelope_bytes` a signed statement by its
    SHA-256 in hexadecimal. Both block, and raise an ArtifactError or FileNotFoundError.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        manifest_bytes: Callable[[str], bytes],
        envelope_bytes: Callable[[str], bytes],
    ) -> None:
        self._pipeline = pipeline
        self._manifest_bytes = manifest_bytes
        self._envelope_bytes = envelope_bytes

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("artifacts", call.site.id)
        newest, last = read_cursor(call.query.cursor, name, 2)
        page = artifacts.page(
            call.db,
            call.environment,
            only_its_own=call.actor.env_id is not None,
            newest=newest,
            last=last,
            limit_count=call.query.limit,
        )
        cursor = None
        if page.has_more:
            cursor = write_cursor(name, page.newest or "", page.last or "")
        pinned = retention.pinned(call.db, call.site.id, [f.artifact.id for f in page.items])
        items = [
            answers.artifact(
                call.site, call.environment, found, is_pinned=found.artifact.id in pinned
            )
            for found in page.items
        ]
        return ListReply(items, cursor)

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        """Also of one that has expired, as long as something of it is known."""
        found = _named(call)
        is_pinned = retention.is_pinned(call.db, call.site.id, found.artifact.id)
        return Reply(answers.artifact(call.site, call.environment, found, is_pinned=is_pinned))

    async def pin(self, call: Call[NoQuery, NoBody]) -> Reply:
        found = await self._pipeline.pin_artifact(
            call.environment,
            call.named("artifact"),
            call.actor.ref,
            only_env=call.actor.env_id,
        )
        return Reply(answers.artifact(call.site, call.environment, found, is_pinned=True))

    async def unpin(self, call: Call[NoQuery, NoBody]) -> Reply:
        found = await self._pipeline.unpin_artifact(
            call.environment, call.named("artifact"), only_env=call.actor.env_id
        )
        return Reply(answers.artifact(call.site, call.environment, found, is_pinned=False))

    async def manifest(self, call: Call[NoQuery, NoBody]) -> web.Response:
        """The list of files whose digest is the artifact's."""
        artifact = _named(call).artifact
        if artifact.dropped_at is not None:
            raise RefusedError(
                "artifact.expired", f"{artifact.id} is not kept any more, and so is its manifest."
            )
        data = await asyncio.to_thread(_read, self._manifest_bytes, artifact.digest)
        return _raw(call, data, MANIFEST_TYPE)

    async def provenance(self, call: Call[NoQuery, NoBody]) -> web.Response:
        """The signed statement, byte for byte: a DSSE envelope."""
        attestation = _named(call).attestation
        data = await asyncio.to_thread(_read, self._envelope_bytes, attestation.envelope_sha256)
        return _raw(call, data, ENVELOPE_TYPE)


def _read(read: Callable[[str], bytes], name: str) -> bytes:
    try:
        return read(name)
    except FileNotFoundError as error:
        raise ArtifactMissingError(f"{name} is not in the store") from error


def _named(call: Call[NoQuery, NoBody]) -> SiteArtifact:
    return named.artifact(call.db, call.environment, call.named("artifact"), call.actor.env_id)


def _raw(call: Call[NoQuery, NoBody], data: bytes, content_type: str) -> web.Response:
    headers = answer_headers(call.request_id, version=call.version, content_type=content_type)
    return web.Response(body=data, headers=headers)
