"""Control, as a builder slot sees it: HTTP on a Unix socket, repeated until it answers.

A call that fails is repeated while the lease may still be held. When control stays away for longer
than that, or says that the lease is lost, `LeaseLostError` ends the build. One call that keeps
failing while others are answered ends it too, after `GIVE_UP_LEASES`: `ControlUnreachableError`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
import msgspec

from hooks.builds.errors import BuildFailedError, ControlUnreachableError, LeaseLostError
from hooks.builds.sandbox.disk_allowance import Spool
from hooks.builds.sources.tree import OUTPUT_TOO_LARGE
from hooks.builds.sources.unpacking import Unpacking
from hooks.builds.wire import (
    LEASE_HEADER,
    SOURCE_HEADER,
    BatchLine,
    BuildError,
    CacheAnswer,
    CacheRequest,
    Declared,
    Egress,
    Finish,
    Folder,
    Given,
    Heartbeat,
    HeartbeatAnswer,
    Lease,
    LeaseRequest,
    LogBatch,
    SourceHead,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 2.0  # of the small calls
EGRESS_TIMEOUT_S = 60.0  # control may have to ask the machine's package clients first
CACHE_TIMEOUT_S = 300.0  # the build goes on without what takes longer
FINISH_TIMEOUT_S = 600.0  # control packs, signs and stores meanwhile
LEASE_SLACK_S = 10.0  # how much longer than asked for an empty lease may take
RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.5
GIVE_UP_LEASES = 6  # how many leases long one call may keep failing while others are answered
READ_BYTES = 1 << 20

_NOT_FOUND = 404
_GONE = 410
_TOO_LARGE = 413
_NO_ROOM = 507
_UNPROCESSABLE = 422
_NO_CONTENT = 204


class Control:
    """The connection of one slot. Use it as a context manager, in one event loop."""

    def __init__(self, socket: Path, slot: str) -> None:
        self._slot = slot
        self._session = aiohttp.ClientSession(
            base_url="http://control",
            connector=aiohttp.UnixConnector(str(socket)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def lease(self, wait_s: float, toolchain: Mapping[str, str]) -> Lease | None:
        """Wait up to `wait_s` for a build, and return None when there was none.

        Raises:
            ControlUnreachableError: Nobody answers, or not sensibly.
        """
        request = LeaseRequest(self._slot, wait_s, dict(toolchain))
        timeout = aiohttp.ClientTimeout(total=wait_s + LEASE_SLACK_S)
        try:
            async with self._session.post(
                "/v1/lease", data=msgspec.json.encode(request), headers=_JSON, timeout=timeout
            ) as response:
                response.raise_for_status()
                if response.status == _NO_CONTENT:
                    return None
                return msgspec.json.decode(await response.read(), type=Lease)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise ControlUnreachableError(f"no lease: {error!r}") from error

    def job(self, lease: Lease) -> LeasedJob:
        return LeasedJob(self._session, self._slot, lease)


class LeasedJob:
    """The calls about one leased job.

    Each raises `LeaseLostError` once the lease is lost, and `ControlUnreachableError` when it keeps
    failing although the lease holds.
    """

    def __init__(self, session: aiohttp.ClientSession, slot: str, lease: Lease) -> None:
        self.lease = lease
        self._session = session
        self._slot = slot
        self._path = f"/v1/jobs/{lease.job_id}"
        self._headers = {LEASE_HEADER: lease.lease_id}
        self._heard_at = _now()

    async def heartbeat(self, phase: str, progress: int, wait_s: float = 0) -> bool:
        """Keep the lease, and return whether the job was canceled: at once, or after `wait_s`."""
        beat = Heartbeat(self._slot, phase, progress, wait_s)
        timeout_s = wait_s + ANSWER_TIMEOUT_S
        answer = await self._post("heartbeat", beat, HeartbeatAnswer, timeout_s=timeout_s)
        return answer.canceled

    async def egress(self) -> Egress:
        """Return what the build command may reach."""

        async def fetch() -> Egress:
            path, timeout = f"{self._path}/egress", aiohttp.ClientTimeout(total=EGRESS_TIMEOUT_S)
            async with self._session.get(path, headers=self._headers, timeout=timeout) as response:
                _check(response)
                return msgspec.json.decode(await response.read(), type=Egress)

        return await self._repeat(fetch)

    async def variables(self, names: Sequence[str]) -> Given:
        """Return the values that the commit declares.

        Raises:
            BuildFailedError: `build.variable_missing`, `build.variables_unreadable`.
        """
        return await self._post("variables", Declared(tuple(names)), Given)

    async def log(self, first: int, lines: Sequence[BatchLine]) -> None:
        await self._post("log", LogBatch(first, tuple(lines)), dict)

    async def finish(self, outcome: Finish) -> None:
        """Tell the end. Control has taken it, and kept the output, when this returns."""
        await self._post("finish", outcome, dict, timeout_s=FINISH_TIMEOUT_S)

    async def give_back(self) -> None:
        """Let another slot have the build. Tried once: without it the lease ends by silence."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            path = f"{self._path}/give-back"
            async with self._session.post(path, headers=self._headers, timeout=timeout):
                pass

    async def folder(self, path: str) -> Folder | None:
        """Return what is in a folder of the commit, None where it has no such folder.

        Raises:
            BuildFailedError: `build.source_unreadable`, `build.output_too_large`.
        """

        async def ask() -> Folder | None:
            async with self._session.get(
                f"{self._path}/folder",
                params={"path": path},
                headers=self._headers,
                timeout=_timeout(ANSWER_TIMEOUT_S),
            ) as response:
                if response.status == _NOT_FOUND:
                    return None
                await _check_build(response)
                _check(response)
                return msgspec.json.decode(await response.read(), type=Folder)

        return await self._repeat(ask)

    async def fetch_source(
        self,
        folder: str,
        into: Unpacking,
        *,
        bases: Sequence[str] = (),
        ignores_submodules: bool = False,
    ) -> None:
        """Hand a folder of the commit on as it comes; each try begins `into` anew.

        `bases`: trees of which `into` can begin with one, once.

        Raises:
            BuildFailedError: What `Supplies.source` raises.
            UnpackingEndedError: `into` wants no more.
        """
        wanted = [("folder", folder), *([("submodules", "ignore")] if ignores_submodules else [])]
        once = [("base", base) for base in bases]

        async def fetch() -> None:
            async with self._session.get(
                f"{self._path}/source", params=[*wanted, *once], headers=self._headers
            ) as response:
                await _check_build(response)
                _check(response)
                head = msgspec.json.decode(
                    response.headers.get(SOURCE_HEADER, "{}"), type=SourceHead
                )
                once.clear()
                await into.begin(head)
                async for chunk in response.content.iter_any():
                    await into.write(chunk)

        await self._repeat(fetch)

    async def find_cache(self, wanted: CacheRequest) -> CacheAnswer:
        """Ask which cache the build begins with."""
        return await self._post("cache", wanted, CacheAnswer)

    async def fetch_cache(self, digest: str, out: Spool) -> bool:
        """Write a cache as a tar to `out`. False without it.

        Raises:
            BuildFailedError: What `Spool.write` raises.
        """
        try:
            async with self._session.get(
                f"{self._path}/cache",
                params={"digest": digest},
                headers=self._headers,
                timeout=_timeout(CACHE_TIMEOUT_S),
            ) as response:
                response.raise_for_status()
                async for chunk in response.content.iter_chunked(READ_BYTES):
                    await asyncio.to_thread(out.write, chunk)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
        return True

    async def send_cache(
        self, kept: CacheRequest, chunks: Callable[[], AsyncIterator[bytes]]
    ) -> str:
        """Send a tar of what the next build begins with; what became of it."""
        key = msgspec.json.encode(kept.key, order="sorted").decode()
        try:
            async with self._session.put(
                f"{self._path}/cache",
                params={"profile": kept.profile, "key": key},
                data=chunks(),
                headers=self._headers,
                timeout=_timeout(CACHE_TIMEOUT_S),
            ) as response:
                response.raise_for_status()
                return msgspec.json.decode(await response.read(), type=CacheAnswer).said
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return f"not kept: {type(error).__name__}"

    async def send_output(self, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        """Send a tar; `chunks` gives it, from its start, as often as it is called.

        Raises:
            BuildFailedError: As `chunks` does.
        """
        failures: list[BuildFailedError] = []

        async def watched() -> AsyncIterator[bytes]:
            try:
                async for chunk in chunks():
                    yield chunk
            except BuildFailedError as error:
                failures.append(error)
                raise

        async def send() -> None:
            try:
                async with self._session.put(
                    f"{self._path}/output", data=watched(), headers=self._headers
                ) as response:
                    _check(response)
            except aiohttp.ClientError:
                if failures:  # the connection broke because there was nothing more to send
                    raise failures[0] from None
                raise

        await self._repeat(send)

    async def _post(
        self,
        call: str,
        body: msgspec.Struct,
        answer: type[T],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> T:
        timeout = _timeout(timeout_s)
        data = msgspec.json.encode(body)

        async def post() -> T:
            async with self._session.post(
                f"{self._path}/{call}", data=data, headers=_JSON | self._headers, timeout=timeout
            ) as response:
                await _check_build(response)
                _check(response)
                return msgspec.json.decode(await response.read(), type=answer)

        return await self._repeat(post)

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        pause_s = RETRY_FIRST_S
        failing_since: float | None = None
        while True:
            try:
                answer = await call()
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                now = _now()
                failing_since = now if failing_since is None else failing_since
                if now - max(self._heard_at, failing_since) > self.lease.lease_s:
                    raise LeaseLostError(f"control is away: {error!r}") from error
                if now - failing_since > GIVE_UP_LEASES * self.lease.lease_s:
                    raise ControlUnreachableError(f"control keeps failing: {error!r}") from error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
            else:
                self._heard_at = _now()
                return answer


_JSON = {"Content-Type": "application/json"}


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)


async def _check_build(response: aiohttp.ClientResponse) -> None:
    """Raise what control says of the commit itself."""
    if response.status == _UNPROCESSABLE:
        fault = msgspec.json.decode(await response.read(), type=BuildError)
        raise BuildFailedError(fault.code, fault.message)


def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == _GONE:
        raise LeaseLostError("control says that the lease is lost")
    if response.status == _TOO_LARGE:
        raise BuildFailedError(
            OUTPUT_TOO_LARGE,
            "output: it is larger than the server takes (builders.output_bytes_max).",
        )
    if response.status == _NO_ROOM:
        raise BuildFailedError("store.no_space", "The server's disk has no room for the output.")
    if 400 <= response.status < 500:
        raise LeaseLostError(f"control refuses {response.url.path}: {response.status}")
    response.raise_for_status()


def _now() -> float:
    return asyncio.get_running_loop().time()
