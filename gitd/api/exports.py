"""Exports: an artifact with all that proves it, as one archive. Source: contract §4."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import structlog
from aiohttp import hdrs, web

from gitd.api.endpoint import Call
from gitd.api.envelope import answer_headers
from gitd.api.reading import NoBody, NoQuery
from hooks import named
from hooks.errors import RefusedError
from storage.digest import Digest
from storage.errors import StorageError
from storage.export import Export
from storage.records import release_statements, vouching
from storage.records.release_statements import IssuedStatement

TAR_TYPE = "application/x-tar"
STATEMENTS_MAX = 20  # of each kind: the newest
PIECE_BYTES = 256 * 1024

log = structlog.get_logger(__name__)

# Opens an export of a digest, with provenance by its names and release statements. Blocks.
OpenExport = Callable[
    [Digest, Sequence[str], Sequence[IssuedStatement]], AbstractContextManager[Export]
]


class Exports:
    def __init__(self, open_export: OpenExport) -> None:
        self._open_export = open_export

    async def show(self, call: Call[NoQuery, NoBody]) -> web.StreamResponse:
        """The artifact's files and statements; the releases are those of the environment."""
        only_env = call.actor.env_id
        found = named.artifact(call.db, call.environment, call.named("artifact"), only_env)
        artifact = found.artifact
        if artifact.dropped_at is not None:
            raise RefusedError("artifact.expired", f"{artifact.id} is not kept any more.")
        if found.attestation.is_revoked:
            raise RefusedError(
                "artifact.revoked", f"The key that vouched for {artifact.id} was revoked."
            )
        provenance = vouching.ranked(
            call.db,
            call.environment,
            artifact.id,
            only_its_own=only_env is not None,
            limit_count=STATEMENTS_MAX,
        )
        names = [
            one.attestation.envelope_sha256
            for one in provenance
            if one.is_trusted is found.is_trusted and not one.attestation.is_revoked
        ]
        releases = [
            one
            for one in release_statements.of_artifact(
                call.db, call.environment.id, artifact.id, limit_count=STATEMENTS_MAX
            )
            if one.provenance_sha256 in names
        ]
        opened = self._open_export(Digest.parse(artifact.digest), names, releases)
        with contextlib.ExitStack() as stack:
            export = await asyncio.to_thread(stack.enter_context, opened)
            return await _send(call, artifact.id, export)


async def _send(call: Call[NoQuery, NoBody], name: str, export: Export) -> web.StreamResponse:
    headers = answer_headers(call.request_id, version=call.version, content_type=TAR_TYPE)
    headers[hdrs.CONTENT_LENGTH] = str(export.size_bytes)
    headers[hdrs.CONTENT_DISPOSITION] = f'attachment; filename="{name}.tar"'
    response = web.StreamResponse(headers=headers)
    await response.prepare(call.request)
    if call.request.method == hdrs.METH_HEAD:
        return response
    try:
        while piece := await asyncio.to_thread(_next_piece, export.pieces):
            await response.write(piece)
    except (StorageError, OSError) as error:
        if not isinstance(error, ConnectionError):
            log.error("export_broken", artifact_id=name, reason=str(error))  # noqa: TRY400 - a fact
        # Too late for an answer: the connection ends before the length that was promised.
        raise ConnectionResetError(f"the export of {name} was cut short") from error
    return response


def _next_piece(pieces: Iterator[bytes]) -> bytes:
    """Read on until there is enough to send; the archive of a site has thousands of small files."""
    parts, size_bytes = [], 0
    for piece in pieces:
        parts.append(piece)
        size_bytes += len(piece)
        if size_bytes >= PIECE_BYTES:
            break
    return b"".join(parts)
