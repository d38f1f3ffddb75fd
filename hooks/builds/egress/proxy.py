"""The way out of a build: a proxy that tunnels to allowed hosts, and counts and tells what passed.

It runs in the slot's process and listens inside the sandbox's own network, which has no other way
out. `CONNECT` opens a tunnel; a request for an `http://` URL is passed on, one a connection. What
passes through a tunnel is encrypted and not looked at. Nothing of a request is kept or told but its
host and port: paths and headers may hold secrets.

Source: RFC 9110 sections 7.2 to 7.6 and 9.3.6; RFC 9112 section 3.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import structlog

from hooks.builds.egress.addresses import AddressInfo, LookUp, is_own, look_up
from hooks.builds.egress.allowlist import SETTING, Allowlist, split_port
from hooks.builds.wire import Egress
from storage.counted import counted
from storage.room import size_in_words

log = structlog.get_logger(__name__)

PORT: Final = 3128  # of the sandbox's loopback: usual for proxies
HEAD_BYTES_MAX = 16 * 1024
HEAD_TIMEOUT_S = 10.0  # from a connection's begin to the end of its request's head
RESOLVE_TIMEOUT_S = 15.0
RESOLVE_THREADS = 4
CONNECT_TIMEOUT_S = 10.0  # for each address of a host
CLOSE_TIMEOUT_S = 10.0  # for what is still to be sent
ADDRESSES_MAX = 4  # tried for one request
READ_BYTES = 64 * 1024
TOLD_MAX = 50  # hosts and refusals that are told one by one; the others in one line
OTHERS = "other hosts"

_TARGET = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")
# One that would be a line end to some servers, and begin another header, or another request.
_ODD = re.compile(rb"[\x00\r\n]|^[ \t]")
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
_OWN_HEADERS = frozenset({b"connection", b"host", b"keep-alive", b"te", b"upgrade"})


class RefusedError(Exception):
    """A request that is not served. `status` and the message are the answer to it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FailedError(RefusedError):
    """A request that is allowed, and that the world outside does not serve."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants: a tunnel, or else `head` passed on with so much of a body."""

    host: str
    port: int
    head: bytes | None = None
    body_bytes: int = 0

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Passed:
    """What passed between a build and one host and port."""

    connections: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


class EgressProxy:
    """The proxy of one build. `say` takes a line for the build's log when something is refused.

    What it holds in memory is bounded by the number of connections, each with four buffers of at
    most 128 KiB: a side that does not read stops the other one.
    """

    def __init__(
        self,
        egress: Egress,
        say: Callable[[str], None],
        *,
        look_up: LookUp = look_up,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self._egress = egress
        self._look_up = look_up
        self._connect_timeout_s = connect_timeout_s
        self._allowlist = Allowlist(egress.allow)
        self._say = say
        self._passed: dict[str, Passed] = {}
        self._total = Passed()
        self._problems: dict[str, int] = {}
        self._used_up: str | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._resolvers = ThreadPoolExecutor(RESOLVE_THREADS, "resolve")
        self._server: asyncio.Server | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Take `listener`, in place of an earlier one, and answer what comes in until `close`."""
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_server(
            self._on_connection, sock=listener, limit=READ_BYTES, start_serving=False
        )
        await self._server.start_serving()

    async def close(self) -> None:
        """End every tunnel. What passed can still be told. May be called again."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    @property
    def problems(self) -> list[str]:
        """What was refused or failed, each once, as `refused evil.example:443 (not in ...)`."""
        return list(self._problems)

    @property
    def total(self) -> Passed:
        return self._total

    def summary(self) -> list[str]:
        """Return lines for the build's log: each host with its bytes, each problem that repeats."""
        lines = [
            f"egress: {target}: {counted(passed.connections, 'connection')},"
            f" {size_in_words(passed.up_bytes)} up, {size_in_words(passed.down_bytes)} down"
            for target, passed in sorted(self._passed.items())
        ]
        lines += [
            f"egress: {problem}, {count} times in all"
            for problem, count in self._problems.items()
            if count > 1
        ]
        return lines

    # -- one connection -------------------------------------------------------------------------

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve_one(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with _closing(writer):
                try:
                    await self._answer(reader, writer)
                except RefusedError as error:
                    writer.write(_refusal(error))
        except (OSError, EOFError):
            pass  # a side went away, or was silent for too long
        except Exception:  # the ring of a request: logged once
            log.exception("egress_broke")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > self._egress.connections_max:
            limit = f"builders.egress_connections_max = {self._egress.connections_max}"
            raise self._told("a connection", RefusedError(503, f"more than {limit} at once"))
        request = await _read_request(reader, min(HEAD_TIMEOUT_S, self._egress.idle_s))
        try:
            upstream = await self._open(request)
        except RefusedError as error:
            raise self._told(request.target, error) from None
        passed = self._passed_with(request.target)
        passed.connections += 1
        self._total.connections += 1
        async with _closing(upstream[1]):
            if request.head is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                up_bytes = None
            else:
                self._count(passed, up=len(request.head))
                upstream[1].write(request.head)
                up_bytes = request.body_bytes  # what follows may be for another host
            await self._join((reader, writer), upstream, passed, up_bytes=up_bytes)

    async def _open(self, request: Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the host, if it is allowed, at the very address that was judged."""
        if self._used_up is not None:
            raise RefusedError(403, self._used_up)
        problem = "no address"
        for family, kind, protocol, _, address in await self._addresses(request):
            connection = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(self._connect_timeout_s):
                    await loop.sock_connect(connection, address)
                return await asyncio.open_connection(sock=connection, limit=READ_BYTES)
            except (OSError, TimeoutError) as error:
                connection.close()
                problem = os.strerror(error.errno) if error.errno else "no answer in time"
            except BaseException:
                connection.close()
                raise
        raise FailedError(502, f"cannot connect: {problem}")

    async def _addresses(self, request: Request) -> list[AddressInfo]:
        reach = self._allowlist.reach_of(request.host, request.port)
        if reach is None:
            raise RefusedError(403, self._not_listed(request))
        found = await self._resolve(request.host, request.port)
        allowed = [
            info
            for info in found
            if self._allowlist.may_connect(
                ip_address(info[4][0]), request.port, reach, is_own=is_own(info[4])
            )
        ]
        if not allowed:
            address = found[0][4][0]
            raise RefusedError(403, f"it resolves to {address}: not public, nor in {SETTING}")
        return allowed[:ADDRESSES_MAX]

    def _not_listed(self, request: Request) -> str:
        ports = self._allowlist.ports_of(request.host)
        if not ports:
            return f"not in {SETTING}"
        return f"only port {ports[0]} of it is allowed; port {request.port} is not in {SETTING}"

    async def _resolve(self, host: str, port: int) -> list[AddressInfo]:
        loop = asyncio.get_running_loop()
        looking = loop.run_in_executor(self._resolvers, self._look_up, host, port)
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                return await looking
        except socket.gaierror as error:
            raise FailedError(502, f"cannot resolve its name: {error.strerror}") from error
        except UnicodeError as error:  # a part of it is empty, or too long
            raise FailedError(502, "cannot resolve its name: it is none") from error
        except TimeoutError as error:
            raise FailedError(504, "its name was not resolved in time") from error

    # -- what passes ----------------------------------------------------------------------------

    async def _join(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        passed: Passed,
        *,
        up_bytes: int | None,
    ) -> None:
        """Pass bytes both ways until both sides have ended.

        `up_bytes`: how many of the client's, if not all.

        Raises:
            OSError: A side broke, or (TimeoutError) nothing moved for too long.
        """
        loop = asyncio.get_running_loop()
        idle_s = self._egress.idle_s

        async def send_up() -> None:
            left = up_bytes
            while chunk := await client[0].read(READ_BYTES if left is None else left):
                idle.reschedule(loop.time() + idle_s)
                self._count(passed, up=len(chunk))
                left = None if left is None else left - len(chunk)
                upstream[1].write(chunk)
                await upstream[1].drain()
            if up_bytes is None:
                upstream[1].write_eof()

        async def send_down() -> None:
            while chunk := await upstream[0].read(READ_BYTES):
                idle.reschedule(loop.time() + idle_s)
                self._count(passed, down=len(chunk))
                client[1].write(chunk)
                await client[1].drain()
            client[1].write_eof()

        pumps: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(idle_s) as idle:
                pumps += [loop.create_task(send_up()), loop.create_task(send_down())]
                await asyncio.gather(*pumps)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _count(self, passed: Passed, *, up: int = 0, down: int = 0) -> None:
        """Add to what passed.

        Raises:
            ConnectionAbortedError: It is more than the build may; nothing passes any more.
        """
        for each in (passed, self._total):
            each.up_bytes += up
            each.down_bytes += down
        limits = self._egress
        for name, used, limit in (
            ("up", self._total.up_bytes, limits.up_bytes_max),
            ("down", self._total.down_bytes, limits.down_bytes_max),
        ):
            if used > limit:
                if self._used_up is None:
                    self._used_up = f"more than builders.egress_{name}_bytes_max = {limit} bytes"
                    self._say(f"egress: ended all connections ({self._used_up})")
                raise ConnectionAbortedError

    def _passed_with(self, target: str) -> Passed:
        if target not in self._passed and len(self._passed) >= TOLD_MAX:
            target = OTHERS
        return self._passed.setdefault(target, Passed())

    def _told(self, target: str, error: RefusedError) -> RefusedError:
        """Tell of a problem, when it is a new one, and return it."""
        verb = "failed" if isinstance(error, FailedError) else "refused"
        problem = f"{verb} {target} ({error})"
        if problem not in self._problems and len(self._problems) >= TOLD_MAX:
            problem = f"{verb} {OTHERS}"
        if problem not in self._problems:
            self._say(f"egress: {problem}")
        self._problems[problem] = self._problems.get(problem, 0) + 1
        return error


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection at the end: what was written is sent, unless it ends by an error.

    Without that a side which does not read would hold it open beyond the build.
    """
    try:
        yield
        writer.close()
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await writer.wait_closed()
    except BaseException:
        writer.transport.abort()
        raise


async def _read_request(reader: asyncio.StreamReader, timeout_s: float) -> Request:
    """Read the head of a request, which has so long to come, however it trickles in."""
    try:
        async with asyncio.timeout(timeout_s):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        head = b""
    except TimeoutError:
        raise RefusedError(408, "the request did not come in time") from None
    if not 0 < len(head) <= HEAD_BYTES_MAX:
        raise RefusedError(431, f"the request's head is larger than {HEAD_BYTES_MAX} bytes")
    return parse_request(head)


def parse_request(head: bytes) -> Request:
    """Read the head of a request to a proxy, with its empty line.

    Raises:
        RefusedError: It is none.
    """
    line, *headers = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if any(_ODD.search(each) for each in (line, *headers)):
        raise RefusedError(400, "the request's head has bytes in it that may be no part of one")
    method, _, rest = line.partition(b" ")
    target, _, version = rest.partition(b" ")
    if version not in _VERSIONS or not method.isalpha():
        raise RefusedError(400, "this is a proxy: it takes CONNECT, and requests for http:// URLs")
    try:
        if method == b"CONNECT":
            return _to(*split_port(target.decode("ascii")))
        url = urlsplit(target.decode("ascii"))
        if url.scheme.lower() != "http" or not url.netloc:
            raise RefusedError(400, "a proxy takes CONNECT, and requests for http:// URLs")
        request = _to(*split_port(url.netloc.rpartition("@")[2], 80))
    except ValueError as error:  # not ASCII, or without a port
        raise RefusedError(400, "the request names no host and port") from error
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    authority = request.target.removesuffix(":80")
    kept = [header for header in headers if _is_passed_on(header)]
    first = [
        b"%b %b HTTP/1.1" % (method, path.encode("ascii")),
        b"Host: %b" % authority.encode("ascii"),
        b"Connection: close",
    ]
    passed_on = b"\r\n".join([*first, *kept, b"", b""])
    return Request(request.host, request.port, passed_on, _body_bytes(headers))


def _body_bytes(headers: list[bytes]) -> int:
    """How long the request says that its body is.

    Raises:
        RefusedError: It does not say, or not clearly.
    """
    lengths = set()
    for header in headers:
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"transfer-encoding":
            raise RefusedError(411, "a body needs its length in Content-Length")
        if name.strip().lower() == b"content-length":
            lengths.add(value.strip())
    if len(lengths) > 1 or not all(each.isdigit() and len(each) < 16 for each in lengths):
        raise RefusedError(400, "the length of the body is not clear")
    return int(lengths.pop()) if lengths else 0


def _to(host: str, port: int) -> Request:
    host = host.lower().removesuffix(".")
    if not _TARGET.fullmatch(host):
        raise ValueError(host)
    return Request(host, port)


def _is_passed_on(header: bytes) -> bool:
    """Headers between a client and its proxy stay there: its password for the proxy among them."""
    name = header.partition(b":")[0].strip().lower()
    return name not in _OWN_HEADERS and not name.startswith(b"proxy-")


def _refusal(error: RefusedError) -> bytes:
    """The answer; clients of CONNECT show only its first line, so the reason stands there too."""
    body = f"gitd: {error}\n".encode()
    head = f"HTTP/1.1 {error.status} {error}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return head.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
