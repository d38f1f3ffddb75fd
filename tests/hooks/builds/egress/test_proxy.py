"""The proxy of a build, as a client of it meets it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from hooks.builds.egress.addresses import is_own, look_up
from hooks.builds.egress.allowlist import SETTING
from hooks.builds.egress.proxy import (
    ADDRESSES_MAX,
    HEAD_BYTES_MAX,
    HEAD_TIMEOUT_S,
    TOLD_MAX,
    EgressProxy,
    RefusedError,
    parse_request,
)
from hooks.builds.wire import AllowedHost, Egress


class World:
    """A server outside: it sends back what it gets, in capitals, until the client ends."""

    def __init__(self):
        self.heard = b""
        self.connected = asyncio.Event()
        self.gone = asyncio.Event()
        self.connections = 0
        self.writers = []

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer):
        self.connections += 1
        self.writers.append(writer)
        self.connected.set()
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data.upper())
                await writer.drain()
        except ConnectionError:
            pass
        self.gone.set()
        writer.close()

    def stop(self):
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()


@pytest.fixture
async def world():
    world = World()
    await world.start()
    yield world
    world.stop()


class Proxied:
    """A running proxy, what it said, and its clients."""

    def __init__(self, egress, **rest):
        self.said = []
        self.proxy = EgressProxy(egress, self.said.append, **rest)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.listener = listener
        self._writers = []

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def ask(self, request):
        """Send a request, and return the connection and the head of the answer."""
        reader, writer = await self.connect()
        writer.write(request)
        return reader, writer, await reader.readuntil(b"\r\n\r\n")

    async def tunnel(self, target):
        reader, writer, head = await self.ask(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        return reader, writer, head.partition(b"\r\n")[0].decode()

    async def close(self):
        for writer in self._writers:
            writer.transport.abort()
        await self.proxy.close()


@asynccontextmanager
async def proxied(*allow, limits=None, **rest):
    """A proxy that allows these, given as (host, port) or (host, port, reach)."""
    hosts = tuple(AllowedHost(host, port, SETTING, *reach) for host, port, *reach in allow)
    running = Proxied(Egress(allow=hosts, **(limits or {})), **rest)
    await running.proxy.serve(running.listener)
    try:
        async with asyncio.timeout(20):
            yield running
    finally:
        await running.close()


def here(port):
    return ("127.0.0.1/32", port)


# -- tunnels --------------------------------------------------------------------------------------


async def test_tunnel_to_an_allowed_host_passes_bytes_both_ways_and_counts_them(world):
    async with proxied(here(world.port)) as at:
        reader, writer, answer = await at.tunnel(f"127.0.0.1:{world.port}")
        assert answer == "HTTP/1.1 200 Connection established"
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        writer.write_eof()
        assert await reader.read() == b""
        await world.gone.wait()
    assert at.proxy.summary() == [f"egress: 127.0.0.1:{world.port}: 1 connection, 5 B up, 5 B down"]
    assert at.said == []


async def test_bytes_sent_right_behind_the_request_are_not_lost(world):
    async with proxied(here(world.port)) as at:
        request = f"CONNECT 127.0.0.1:{world.port} HTTP/1.1\r\n\r\nearly".encode()
        reader, _, _ = await at.ask(request)
        assert await reader.readexactly(5) == b"EARLY"


async def test_large_streams_pass_whole_when_the_client_reads_late(world):
    data = bytes(range(256)) * (16 << 10)  # 4 MiB: more than all buffers on the way
    async with proxied(here(world.port)) as at:
        reader, writer, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        sending = asyncio.ensure_future(send(writer, data))
        await world.connected.wait()
        assert await reader.read() == data.upper()
        await sending
    assert (at.proxy.total.up_bytes, at.proxy.total.down_bytes) == (len(data), len(data))


async def send(writer, data):
    writer.write(data)
    await writer.drain()
    writer.write_eof()


async def test_client_that_goes_away_ends_the_tunnel(world):
    async with proxied(here(world.port)) as at:
        _, writer, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        writer.transport.abort()
        await world.gone.wait()


async def test_host_that_goes_away_ends_the_tunnel(world):
    async with proxied(here(world.port)) as at:
        reader, _, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        await world.connected.wait()
        world.stop()
        assert await ended(reader)


async def ended(reader):
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_closing_the_proxy_ends_its_tunnels_and_keeps_the_figures(world):
    async with proxied(here(world.port)) as at:
        reader, writer, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        writer.write(b"x")
        await reader.readexactly(1)
        await at.proxy.close()
        assert await ended(reader)
        await world.gone.wait()
        with pytest.raises(OSError):
            await at.connect()
        assert at.proxy.total.up_bytes == 1


async def test_tunnel_in_which_nothing_moves_is_closed(world):
    async with proxied(here(world.port), limits={"idle_s": 0.5}) as at:
        reader, _, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        assert await ended(reader)
        await world.gone.wait()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_tunnel_in_which_something_moves_stays_however_long_it_takes(way):
    heard = []

    async def serve(reader, writer):
        if way == "down":
            for _ in range(8):
                writer.write(b"x")
                await asyncio.sleep(0.2)
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with proxied(here(port), limits={"idle_s": 0.8}) as at:
        reader, writer, _ = await at.tunnel(f"127.0.0.1:{port}")
        if way == "up":
            for _ in range(8):
                writer.write(b"x")
                await asyncio.sleep(0.2)
        writer.write_eof()
        assert len(await reader.read()) + len(heard[0]) == 8
    server.close()


async def test_sides_that_do_not_read_hold_nothing_open_when_the_proxy_closes():
    """Neither the world, with the build's bytes unsent, nor the build."""
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    async with proxied(here(port)) as at:
        _, writer, _ = await at.tunnel(f"127.0.0.1:{port}")
        taken.setblocking(False)
        deaf, _ = await asyncio.get_running_loop().sock_accept(taken)
        writer.write(b"x" * (32 << 20))
        sent = -1
        while sent < at.proxy.total.up_bytes or sent == 0:  # until the kernel's buffers are full
            sent = at.proxy.total.up_bytes
            await asyncio.sleep(0.2)
        await at.proxy.close()
        assert open_connections(port) == 0
    deaf.close()
    taken.close()


def open_connections(port):
    """How many of this process's sockets are connected to `port` here."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            duplicate = os.dup(int(entry.name))
            try:
                with socket.socket(fileno=duplicate) as peer:
                    found += peer.getpeername() == ("127.0.0.1", port)
                    duplicate = peer.detach()
            finally:
                os.close(duplicate)
    return found


# -- what is refused ------------------------------------------------------------------------------


async def test_host_that_is_not_listed_is_refused_with_the_setting_that_allows_it(world):
    async with proxied(here(world.port)) as at:
        reader, _, answer = await at.tunnel("evil.example:443")
        assert answer == "HTTP/1.1 403 not in builders.egress_allow"
        assert b"not in builders.egress_allow" in await reader.read()
        await at.tunnel("evil.example:443")
    assert at.said == ["egress: refused evil.example:443 (not in builders.egress_allow)"]
    assert at.proxy.problems == ["refused evil.example:443 (not in builders.egress_allow)"]
    assert at.proxy.summary() == [
        "egress: refused evil.example:443 (not in builders.egress_allow), 2 times in all"
    ]


async def test_other_port_of_a_listed_host_is_refused_with_the_port_that_is(world):
    async with proxied(("registry.example", 443)) as at:
        _, _, answer = await at.tunnel("registry.example:22")
    assert answer == (
        "HTTP/1.1 403 only port 443 of it is allowed; port 22 is not in builders.egress_allow"
    )


async def test_listed_name_that_resolves_to_this_machine_is_refused(world):
    async with proxied(("localhost", world.port)) as at:
        _, _, answer = await at.tunnel(f"localhost:{world.port}")
    assert answer.startswith("HTTP/1.1 403 it resolves to ")
    assert answer.endswith(": not public, nor in builders.egress_allow")
    assert world.connections == 0


def own_address():
    """An address of this machine that others could reach it by; None without any."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return asking.getsockname()[0]


async def test_address_of_this_machine_is_as_near_as_its_loopback():
    """Where it is public, a listed name could lead to what only a firewall keeps from the world."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but its loopback's")
    with socket.create_server((address, 0)) as listening:
        port = listening.getsockname()[1]
        listening.settimeout(0)
        name = ("registry.example", port, "private")
        async with proxied(name, look_up=lambda _, port: look_up(address, port)) as at:
            _, _, answer = await at.tunnel(f"registry.example:{port}")
        assert answer.startswith(f"HTTP/1.1 403 it resolves to {address}: not public")
        with pytest.raises(BlockingIOError):
            listening.accept()
        async with proxied((f"{address}/32", port)) as at:
            _, _, answer = await at.tunnel(f"{address}:{port}")
        assert answer == "HTTP/1.1 200 Connection established", "it is listed by itself"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53", "::1"])
def test_own_addresses_are_known(address):
    assert is_own((address, 443))


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "169.254.169.254"])
def test_addresses_of_others_are_none_of_ones_own(address):
    assert not is_own((address, 443))


def test_address_that_cannot_be_looked_into_counts_as_ones_own():
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
        with contextlib.suppress(OSError):  # too many open files
            while True:
                held.callback(os.close, os.dup(0))
        assert is_own(("192.0.2.7", 443))
    assert not is_own(("192.0.2.7", 443))


@pytest.mark.parametrize("literal", ["2130706433", "0x7f000001", "127.1", "017700000001"])
async def test_address_in_disguise_is_judged_as_what_it_is(world, literal):
    async with proxied((literal, world.port), here(1)) as at:
        _, _, answer = await at.tunnel(f"{literal}:{world.port}")
    assert "not public" in answer
    assert world.connections == 0


async def test_name_is_resolved_once_and_the_judged_address_is_connected_to(world):
    """A name that answers with a public address first and a private one then gains nothing."""
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return look_up("192.0.2.1" if len(asked) == 1 else "127.0.0.1", port)

    async with proxied(("rebind.example", world.port), look_up=rebinding) as at:
        _, _, first = await at.tunnel(f"rebind.example:{world.port}")
        _, _, second = await at.tunnel(f"rebind.example:{world.port}")
    assert "192.0.2.1" in first
    assert "127.0.0.1" in second
    assert (len(asked), world.connections) == (2, 0)


async def test_of_several_addresses_only_those_that_pass_are_tried(world):
    def both(_, port):
        return [*look_up("169.254.169.254", port), *look_up("127.0.0.1", port)]

    allowed = ("two.example", world.port, "loopback")
    async with proxied(allowed, look_up=both) as at:
        _, _, answer = await at.tunnel(f"two.example:{world.port}")
        assert answer == "HTTP/1.1 200 Connection established"
        await world.connected.wait()


async def test_of_many_addresses_only_the_first_few_are_tried(world):
    def closed(count):
        def found(_, port):
            numbers = [*range(2, 2 + count), 1]
            return [each for n in numbers for each in look_up(f"127.0.0.{n}", port)]

        return found

    for count, status in ((ADDRESSES_MAX - 1, 200), (ADDRESSES_MAX, 502)):
        allowed = ("many.example", world.port, "loopback")
        async with proxied(allowed, look_up=closed(count)) as at:
            _, _, answer = await at.tunnel(f"many.example:{world.port}")
            assert answer.startswith(f"HTTP/1.1 {status} ")
    assert world.connections == 1


async def test_name_that_does_not_resolve_is_told(world):
    def nowhere(host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with proxied(("gone.example", 443), look_up=nowhere) as at:
        _, _, answer = await at.tunnel("gone.example:443")
    assert answer == "HTTP/1.1 502 cannot resolve its name: Name or service not known"


@pytest.mark.parametrize("host", ["a..example", f"{'a' * 64}.example"])
async def test_name_that_is_none_is_told(host):
    async with proxied(("*.example", 443)) as at:
        _, _, answer = await at.tunnel(f"{host}:443")
    assert answer == "HTTP/1.1 502 cannot resolve its name: it is none"


async def test_host_that_does_not_answer_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with proxied(here(port)) as at:
        _, _, answer = await at.tunnel(f"127.0.0.1:{port}")
    assert answer == "HTTP/1.1 502 cannot connect: Connection refused"
    assert at.said == [f"egress: failed 127.0.0.1:{port} (cannot connect: Connection refused)"]


async def test_host_that_is_silent_is_told():
    with socket.socket() as deaf, contextlib.ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        for _ in range(3):  # whoever comes after those that it has room for gets no answer
            early = waiting.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(("127.0.0.1", port))
        async with proxied(here(port), connect_timeout_s=0.2) as at:
            _, _, answer = await at.tunnel(f"127.0.0.1:{port}")
    assert answer == "HTTP/1.1 502 cannot connect: no answer in time"


async def test_no_more_connections_than_allowed_are_served_at_once(world):
    async with proxied(here(world.port), limits={"connections_max": 2}) as at:
        for _ in range(2):
            assert (await at.tunnel(f"127.0.0.1:{world.port}"))[2].startswith("HTTP/1.1 200")
        reader, _ = await at.connect()
        answer = await reader.readline()
    assert answer == b"HTTP/1.1 503 more than builders.egress_connections_max = 2 at once\r\n"
    assert "egress_connections_max" in at.said[0]


async def test_request_that_does_not_come_to_its_end_is_answered_in_time(world):
    """Also one that is never silent."""
    async with proxied(here(world.port), limits={"idle_s": 0.3, "connections_max": 1}) as at:
        reader, writer = await at.connect()

        async def trickle():
            writer.write(b"CONNECT ")
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(HEAD_TIMEOUT_S / 2):
            answer = await quietly(reader.readline())
        trickling.cancel()
        assert answer == b"HTTP/1.1 408 the request did not come in time\r\n"
        _, _, answer = await at.tunnel(f"127.0.0.1:{world.port}")
    assert answer.startswith("HTTP/1.1 200"), "it makes room for others"


@pytest.mark.parametrize("way", ["up", "down"])
async def test_build_that_sends_or_gets_too_much_is_cut_off(world, way):
    limits = {f"{way}_bytes_max": 1000}
    async with proxied(here(world.port), limits=limits) as at:
        reader, writer, _ = await at.tunnel(f"127.0.0.1:{world.port}")
        writer.write(b"x" * 1001)
        assert len(await quietly(reader.read())) <= 1000
        _, _, answer = await at.tunnel(f"127.0.0.1:{world.port}")
        assert answer == f"HTTP/1.1 403 more than builders.egress_{way}_bytes_max = 1000 bytes"
        if way == "up":
            assert world.heard == b""
    assert at.said[0] == (
        f"egress: ended all connections (more than builders.egress_{way}_bytes_max = 1000 bytes)"
    )


@pytest.mark.parametrize("way", ["up", "down"])
async def test_what_passes_to_all_hosts_counts_together(world, way):
    hosts = (here(world.port), ("localhost", world.port, "loopback"))
    async with proxied(*hosts, limits={f"{way}_bytes_max": 1000}) as at:
        for host, count in (("127.0.0.1", 600), ("localhost", 400), ("localhost", 1)):
            reader, writer, _ = await at.tunnel(f"{host}:{world.port}")
            writer.write(b"x" * count)
            writer.write_eof()
            assert len(await quietly(reader.read())) == (count if count > 1 else 0), host
        assert getattr(at.proxy.total, f"{way}_bytes") == 1001


async def quietly(reading):
    try:
        return await reading
    except ConnectionError:
        return b""


async def test_many_refused_hosts_are_told_up_to_a_bound():
    async with proxied() as at:
        for number in range(60):
            await at.tunnel(f"h{number}.example:443")
    assert len(at.said) == 51
    assert at.said[-1] == "egress: refused other hosts"
    assert at.proxy.summary() == ["egress: refused other hosts, 10 times in all"]


async def test_figures_of_many_hosts_are_told_up_to_a_bound(world):
    hosts = [f"h{number:02}.example" for number in range(TOLD_MAX + 10)]
    allowed = [(host, world.port, "loopback") for host in hosts]
    async with proxied(*allowed, look_up=lambda _, port: look_up("127.0.0.1", port)) as at:
        for host in hosts:
            _, _, answer = await at.tunnel(f"{host}:{world.port}")
            assert answer.startswith("HTTP/1.1 200 "), host
        await at.proxy.close()
        summary = at.proxy.summary()
        assert len(summary) == TOLD_MAX + 1
        assert summary[-1] == "egress: other hosts: 10 connections, 0 B up, 0 B down"
        assert at.proxy.total.connections == TOLD_MAX + 10


# -- requests -------------------------------------------------------------------------------------


async def test_request_for_an_http_url_of_an_allowed_host_is_passed_on(world):
    async with proxied(here(world.port)) as at:
        await at.ask(
            f"GET http://u:p@127.0.0.1:{world.port}/simple/?a=b HTTP/1.1\r\n"
            "Host: evil.example\r\nProxy-Authorization: Basic c2VjcmV0\r\n"
            "Proxy-Connection: keep-alive\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n"
            "TE: trailers\r\nUpgrade: h2c\r\nAccept: x\r\n\r\n".encode()
        )
        assert world.heard == (
            f"GET /simple/?a=b HTTP/1.1\r\nHost: 127.0.0.1:{world.port}\r\nConnection: close\r\n"
            "Accept: x\r\n\r\n".encode()
        )
        assert at.proxy.total.up_bytes == len(world.heard), "heads count as well"
    assert "secret" not in str(at.said) + str(at.proxy.summary())


async def test_body_is_passed_on_and_nothing_that_follows_it(world):
    """A second request on the connection might be for another host, with a password for it."""
    async with proxied(here(world.port)) as at:
        request = (
            f"POST http://127.0.0.1:{world.port}/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"
            f"GET http://other.example/ HTTP/1.1\r\nAuthorization: Basic c2VjcmV0\r\n\r\n"
        )
        reader, writer, _ = await at.ask(request.encode())
        assert await reader.readexactly(4) == b"BODY"
        writer.write_eof()
        world.stop()
        assert await ended(reader)
    assert world.heard.endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Transfer-Encoding: chunked", 411),
        ("Content-Length: 1\r\nContent-Length: 2", 400),
        ("Content-Length: -1", 400),
        ("Content-Length: x", 400),
        pytest.param(f"Content-Length: {'9' * 5000}", 400, id="more digits than int takes"),
    ],
)
async def test_body_of_unclear_length_is_refused(world, header, status):
    async with proxied(here(world.port)) as at:
        request = f"POST http://127.0.0.1:{world.port}/ HTTP/1.1\r\n{header}\r\n\r\n"
        _, _, head = await at.ask(request.encode())
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert world.connections == 0


async def test_request_for_an_http_url_of_another_host_is_refused():
    async with proxied(("registry.example", 443)) as at:
        _, _, head = await at.ask(b"GET http://registry.example/ HTTP/1.1\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 only port 443 of it is allowed; port 80 is not in ")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET https://registry.example/ HTTP/1.1\r\n\r\n", 400),
        (b"GET ftp://registry.example/ HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT registry.example HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT registry.example:443\r\n\r\n", 400),
        (b"CONNECT registry.example:443 HTTP/2\r\n\r\n", 400),
        (b"CONNECT user@registry.example:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT registry.example:443:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT registry.example:99999 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT r\xc3\xa9g.example:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT reg\x00.example:443 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT [fe80::1%25eth0]:443 HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET http://registry.example:443/ HTTP/1.1\r\nA: b\nHost: evil.example\r\n\r\n", 400),
        (b"GET http://registry.example:443/ HTTP/1.1\r\nA: b\rHost: evil.example\r\n\r\n", 400),
        (b"GET http://registry.example:443/ HTTP/1.1\r\nA: b\0\r\n\r\n", 400),
        (b"GET http://registry.example:443/ HTTP/1.1\r\nA: b\r\n Content-Length: 1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"CONNECT registry.example:443 HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES_MAX, 431),
        (b"CONNECT registry.example:443 HTTP/1.1\r\nX: " + b"x" * 9 * HEAD_BYTES_MAX, 431),
    ],
)
async def test_what_is_no_request_to_a_proxy_is_refused(request_head, status):
    async with proxied(("registry.example", 443)) as at:
        tail = b"" if request_head.endswith(b"\r\n\r\n") else b"\r\n\r\n"
        _, _, head = await at.ask(request_head + tail)
    assert head.startswith(b"HTTP/1.1 %d " % status)


def test_target_is_read_in_lower_case_without_its_last_dot():
    request = parse_request(b"CONNECT Registry.Example.:443 HTTP/1.1\r\n\r\n")
    assert (request.host, request.port, request.head) == ("registry.example", 443, None)
    assert parse_request(b"CONNECT [FD00::1]:443 HTTP/1.0\r\n\r\n").target == "[fd00::1]:443"


def test_http_url_without_port_and_path_means_80_and_the_root():
    request = parse_request(b"GET http://registry.example HTTP/1.1\r\n\r\n")
    assert (request.host, request.port) == ("registry.example", 80)
    assert request.head == b"GET / HTTP/1.1\r\nHost: registry.example\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "line",
    [b"GET http://a.example/ HTTP/1.1 x", b"GET  HTTP/1.1", b"G:T http://a.example/ HTTP/1.1"],
)
def test_odd_request_line_is_refused(line):
    with pytest.raises(RefusedError):
        parse_request(line + b"\r\n\r\n")


def test_limits_travel_on_the_wire_as_they_are():
    egress = Egress(allow=(AllowedHost("a.example", 443, "pip", "private"),), idle_s=3)
    assert msgspec.json.decode(msgspec.json.encode(egress), type=Egress) == egress
