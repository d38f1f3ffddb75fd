"""The builders' socket: what slots ask of control, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec
from aiohttp import web

from hooks.builds.control.leases import LeaseLostError
from hooks.builds.control.runner import BuildRunner
from hooks.builds.egress.registries import EgressRules
from hooks.builds.errors import BuildFailedError, BuildOverError
from hooks.builds.sources.files import failure_of
from hooks.builds.wire import (
    BASES_COUNT_MAX,
    LEASE_HEADER,
    SOURCE_HEADER,
    BuildError,
    CacheRequest,
    Declared,
    Facts,
    Finish,
    Heartbeat,
    LeaseRequest,
    LogBatch,
)
from hooks.peers import only_from, peer_uid
from storage.errors import StorageError
from storage.files import FULL

T = TypeVar("T")
BODY_BYTES_MAX = 16 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
TREE_ID = re.compile("[0-9a-f]{40}")
JobHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    runner: BuildRunner, rules: EgressRules, *, slots: Mapping[str, int]
) -> web.Application:
    """The application behind `builders.sock`, for the processes that run as a slot's uid.

    A process may speak for the slots of its own uid alone: a build that broke out of its sandbox
    holds nothing of its neighbours.
    """
    service = _BuilderService(runner, rules, slots)
    uids = frozenset(slots.values())
    app = web.Application(middlewares=[only_from(uids)], client_max_size=BODY_BYTES_MAX)
    app.router.add_post("/v1/lease", service.lease)
    app.router.add_get("/v1/jobs/{job_id}/folder", service.held(service.folder))
    app.router.add_get("/v1/jobs/{job_id}/source", service.held(service.source))
    app.router.add_get("/v1/jobs/{job_id}/egress", service.held(service.egress))
    app.router.add_post("/v1/jobs/{job_id}/variables", service.held(service.variables))
    app.router.add_post("/v1/jobs/{job_id}/log", service.held(service.log))
    app.router.add_post("/v1/jobs/{job_id}/heartbeat", service.held(service.heartbeat))
    app.router.add_post("/v1/jobs/{job_id}/cache", service.held(service.find_cache))
    app.router.add_get("/v1/jobs/{job_id}/cache", service.held(service.read_cache))
    app.router.add_put("/v1/jobs/{job_id}/cache", service.held(service.keep_cache))
    app.router.add_put("/v1/jobs/{job_id}/output", service.held(service.output))
    app.router.add_post("/v1/jobs/{job_id}/finish", service.held(service.finish))
    app.router.add_post("/v1/jobs/{job_id}/give-back", service.held(service.give_back))
    return app


class _BuilderService:
    def __init__(self, runner: BuildRunner, rules: EgressRules, slots: Mapping[str, int]) -> None:
        self._runner = runner
        self._rules = rules
        self._slots = slots

    def held(self, handle: JobHandler) -> JobHandler:
        """Wrap a call about a job: only the process that holds its lease may make it.

        A slot that hung and lost its lease still has its uid, perhaps its name: not the lease.
        """

        async def handler(request: web.Request) -> web.StreamResponse:
            lease_id = request.headers.get(LEASE_HEADER, "")
            try:
                slot = self._runner.leases.check(request.match_info["job_id"], lease_id)
                if slot is not None:
                    self._check_slot(request, slot)
                return await handle(request)
            except LeaseLostError:
                raise web.HTTPGone(text="the lease is lost\n") from None

        return handler

    def _check_slot(self, request: web.Request, slot: str) -> None:
        if self._slots.get(slot) != peer_uid(request):
            raise web.HTTPForbidden(text=f"{slot} is not a slot of this process\n")

    async def lease(self, request: web.Request) -> web.Response:
        asked = await _body(request, LeaseRequest)
        self._check_slot(request, asked.slot)
        lease = await self._runner.lease(
            asked.slot,
            asked.wait_s,
            toolchain=asked.toolchain,
            is_gone=lambda: request.transport is None,
        )
        if lease is None:
            if self._runner.leases.is_closing:  # not 204: the slot would ask again at once
                raise web.HTTPServiceUnavailable
            return web.Response(status=204)
        if request.transport is None:  # the slot left while it waited: the job is not its
            await self._runner.give_back(lease.job_id)
        return _json(lease)

    async def folder(self, request: web.Request) -> web.Response:
        path = request.query.get("path", ".")
        try:
            found = await self._runner.supplies.folder(request.match_info["job_id"], path)
        except StorageError as error:
            failure = failure_of(error)
            return _json(BuildError(failure.code, str(failure)), status=422)
        if found is None:
            raise web.HTTPNotFound(text="no such folder\n")
        return _json(found)

    async def source(self, request: web.Request) -> web.StreamResponse:
        try:
            source = await self._runner.supplies.source(
                request.match_info["job_id"],
                request.query.get("folder", "."),
                ignores_submodules=request.query.get("submodules") == "ignore",
                bases=_tree_ids(request.query.getall("base", [])),
            )
        except BuildFailedError as error:
            return _json(BuildError(error.code, str(error)), status=422)
        except BuildOverError:
            raise LeaseLostError from None
        headers = {
            "Content-Type": "application/x-tar",
            SOURCE_HEADER: msgspec.json.encode(source.head).decode(),
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await _stream_from_thread(source.write, response)
        return response

    async def egress(self, _: web.Request) -> web.Response:
        return _json(await self._rules.current())

    async def variables(self, request: web.Request) -> web.Response:
        declared = await _body(request, Declared)
        try:
            given = self._runner.supplies.variables(request.match_info["job_id"], declared.names)
        except BuildFailedError as error:
            return _json(BuildError(error.code, str(error)), status=422)
        return _json(given)

    async def log(self, request: web.Request) -> web.Response:
        job_id, batch = request.match_info["job_id"], await _body(request, LogBatch)
        await self._runner.started(job_id)
        self._runner.take_log(job_id, batch)
        return _json({})

    async def heartbeat(self, request: web.Request) -> web.Response:
        beat = await _body(request, Heartbeat)
        return _json(await self._runner.leases.hold(request.match_info["job_id"], beat))

    async def find_cache(self, request: web.Request) -> web.Response:
        wanted = await _body(request, CacheRequest)
        return _json(await self._runner.supplies.find_cache(request.match_info["job_id"], wanted))

    async def read_cache(self, request: web.Request) -> web.StreamResponse:
        write = self._runner.supplies.cache(
            request.match_info["job_id"], request.query.get("digest", "")
        )
        response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        await response.prepare(request)
        await _stream_from_thread(write, response)
        return response

    async def keep_cache(self, request: web.Request) -> web.Response:
        """Take a tar in for the next build."""
        job_id = request.match_info["job_id"]
        try:
            key = msgspec.json.decode(request.query.get("key", "{}"), type=Facts)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        kept = CacheRequest(request.query.get("profile", "")[:64], key)
        async with self._received(request, self._runner.leases.limits.cache_bytes_max) as tar:
            return _json(await self._runner.supplies.keep_cache(job_id, kept, tar))

    async def output(self, request: web.Request) -> web.Response:
        """Keep the tar beside, whole or not at all: `finish` reads it."""
        job_id, lease_id = request.match_info["job_id"], request.headers.get(LEASE_HEADER, "")
        async with self._received(request, self._runner.leases.limits.output_bytes_max) as tar:
            self._runner.leases.check(job_id, lease_id)  # it may have been lost on the way
            tar.rename(self._runner.output_path(job_id))
        return _json({})

    @contextlib.asynccontextmanager
    async def _received(self, request: web.Request, size_bytes_max: int) -> AsyncIterator[Path]:
        """Take in the tar of a tree of so many bytes; what is not moved elsewhere is removed."""
        path = self._runner.output_path(request.match_info["job_id"])
        size_max = size_bytes_max * 2  # tar's own headers and padding
        received = 0
        fd, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".part", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(fd, "wb") as out:
                async for chunk in request.content.iter_chunked(CHUNK_BYTES):
                    received += len(chunk)
                    if received > size_max:
                        raise web.HTTPRequestEntityTooLarge(max_size=size_max, actual_size=received)
                    if not self._runner.dispatcher.has_room():
                        raise web.HTTPInsufficientStorage
                    await asyncio.to_thread(out.write, chunk)
            yield partial
        except OSError as error:
            if error.errno in FULL:
                raise web.HTTPInsufficientStorage from error
            raise
        finally:
            partial.unlink(missing_ok=True)

    async def finish(self, request: web.Request) -> web.Response:
        outcome = await _body(request, Finish)
        await self._runner.finish(request.match_info["job_id"], outcome)
        return _json({})

    async def give_back(self, request: web.Request) -> web.Response:
        await self._runner.give_back(request.match_info["job_id"])
        return _json({})


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error


def _tree_ids(texts: Sequence[str]) -> Sequence[str]:
    """Return what a slot named, as far as it is looked at; nothing, where one is no id."""
    return texts[:BASES_COUNT_MAX] if all(map(TREE_ID.fullmatch, texts)) else ()


def _json(value: object, *, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")


async def _stream_from_thread(
    write: Callable[[BinaryIO], None], response: web.StreamResponse
) -> None:
    """Send what `write` writes, from a thread: each piece while the next one is made."""
    sending = _Sending(response, asyncio.get_running_loop())

    def produce() -> None:
        write(cast("BinaryIO", sending))
        sending.wait()

    producing = asyncio.ensure_future(asyncio.to_thread(produce))
    try:
        await asyncio.shield(producing)
        await response.write_eof()
    finally:
        sending.end()
        await asyncio.wait([producing])


class _Sending(io.RawIOBase):
    """A file that is written to in a thread, in large pieces, and sent as a response's body."""

    def __init__(self, response: web.StreamResponse, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._response = response
        self._loop = loop
        self._sent: Future[None] | None = None
        self._is_over = False

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        """Send a piece, once the one before it is sent. Raises what that raised."""
        self.wait()
        self._sent = asyncio.run_coroutine_threadsafe(self._response.write(piece), self._loop)
        return len(piece)

    def wait(self) -> None:
        """Return when all is sent that was written."""
        if self._is_over:
            raise BrokenPipeError
        if self._sent is not None:
            self._sent.result()

    def end(self) -> None:
        """Let no more be written. In the loop's thread."""
        self._is_over = True
        if self._sent is not None:
            self._sent.cancel()
