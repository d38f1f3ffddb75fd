"""Who listens on a port, as the kernel's tables have it, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import pytest

from hooks.builds.sandbox.namespace import Init
from hooks.deploys.processes import health
from hooks.deploys.processes import listeners as kernel
from hooks.deploys.processes.elsewhere import addresses
from hooks.deploys.processes.health import HealthCheck, wait_until_healthy
from hooks.deploys.processes.listeners import listeners
from tests.ports import free_port

ANY_HOST = HealthCheck(None, host="env-1.localhost")


@pytest.fixture
def listen():
    """Listens on an address of this machine, and gives the socket."""
    with contextlib.ExitStack() as stack:

        def start(address, port=0, *options):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = stack.enter_context(socket.socket(family))
            for option in options:
                made.setsockopt(*option, 1)
            try:
                made.bind((address, port))
            except OSError:
                pytest.skip("this machine has no IPv6")
            made.listen()
            return made

        yield start


V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
SHARED = (socket.SOL_SOCKET, socket.SO_REUSEPORT)


def inode(listening: socket.socket) -> int:
    return os.fstat(listening.fileno()).st_ino


def asked_for_nothing_more():
    raise OSError("the kernel answers no other way")


@pytest.fixture(params=["asked", "asked of Linux before 4.3", "read"])
def way(request, monkeypatch):
    """Each way of knowing who listens."""
    if request.param == "read":
        monkeypatch.setattr(kernel, "_asked", asked_for_nothing_more)
    elif request.param != "asked":
        monkeypatch.setattr(kernel, "_ATTRIBUTE_V6ONLY", 0xFFFF)
    return request.param


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"]
)
async def test_whatever_a_visitor_can_reach_is_found_and_judged(listen, address, way):
    listening = listen(address)
    port = listening.getsockname()[1]
    assert listeners({port}) == {port: {inode(listening)}}
    seen = []

    def is_own(inodes):
        seen.append(set(inodes))
        return len(seen) > 1

    assert await wait_until_healthy(port, ANY_HOST, timeout_s=10, is_own=is_own) is None
    assert seen == [{inode(listening)}] * 2


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"])
async def test_who_listens_for_ipv6_alone_beside_a_process_is_no_stranger(listen, address, way):
    own = listen(address)
    port = own.getsockname()[1]
    stranger = listen("::", port, V6ONLY)
    assert stranger.getsockname()[1] == port
    assert listeners({port}) == {port: {inode(own)}}
    is_own = Init(os.getpid(), None).holds
    assert await wait_until_healthy(port, ANY_HOST, timeout_s=10, is_own=is_own) is None
    own.close()
    assert listeners({port}) == {}  # it gets no visitor who comes to 127.0.0.1


def test_who_only_bound_all_addresses_is_not_taken_for_who_listens_on_them(listen, way):
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("0.0.0.0", 0))
        port = bound.getsockname()[1]
        listen("::", port, V6ONLY)
        assert listeners({port}) == {}


def test_a_socket_of_ipv4_gets_the_visitors_before_one_of_both(listen, monkeypatch):
    own = listen("0.0.0.0", 0, SHARED)
    port = own.getsockname()[1]
    both = listen("::", port, SHARED)
    assert listeners({port}) == {port: {inode(own), inode(both)}}
    monkeypatch.setattr(kernel, "_asked", asked_for_nothing_more)
    assert listeners({port}) == {port: {inode(own)}}  # which of them it is cannot be known
    own.settimeout(20)
    both.setblocking(False)
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", port)):
            own.accept()[0].close()
    with pytest.raises(BlockingIOError):
        both.accept()


async def test_who_answers_and_listens_no_more_is_not_taken_for_the_process():
    server = None

    async def answer_once(reader, writer):
        server.close()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    judged = []
    check = HealthCheck("/up", host="a.localhost")
    is_own = lambda inodes: judged.append(inodes) or True  # noqa: E731
    assert await wait_until_healthy(port, check, timeout_s=0.5, is_own=is_own) is not None
    assert judged == []


async def test_a_number_of_thousands_of_digits_is_no_status():
    statuses = iter([b"2" + b"0" * 5000, b"200"])

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %b OK\r\n\r\n" % next(statuses))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        check = HealthCheck("/up", host="a.localhost")
        assert await wait_until_healthy(port, check, timeout_s=60, is_own=lambda _: True) is None
    assert next(statuses, None) is None, "the first was taken for one"


@pytest.mark.parametrize(
    ("try_timeout_s", "said"),
    [
        (health.TRY_TIMEOUT_S, "it answered GET /up with status 503"),
        (
            0.5,
            "it did not answer GET /up in time; before that, it answered GET /up with status 503",
        ),
    ],
)
async def test_what_it_answered_last_is_said_where_it_answers_no_more(
    monkeypatch, try_timeout_s, said
):
    """The last try is cut short by the end of the time: that is no silence."""
    monkeypatch.setattr(health, "TRY_TIMEOUT_S", try_timeout_s)
    statuses = iter([b"500", b"503"])
    is_over = asyncio.Event()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if status := next(statuses, None):
            writer.write(b"HTTP/1.1 %b No\r\n\r\n" % status)
        else:
            await is_over.wait()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        check = HealthCheck("/up", host="a.localhost")
        trouble = await wait_until_healthy(port, check, timeout_s=2.5, is_own=lambda _: True)
        is_over.set()
    assert trouble == said


async def test_who_listens_and_never_answers_is_not_said_to_listen_nowhere(listen):
    port = free_port()
    check = HealthCheck("/up", host="a.localhost")
    waiting = asyncio.ensure_future(
        wait_until_healthy(port, check, timeout_s=2, is_own=lambda _: True)
    )
    await asyncio.sleep(0.1)
    listen("127.0.0.1", port)
    assert await waiting == "it did not answer GET /up in time"


async def test_a_process_holds_its_own_sockets_and_never_none(listen):
    init = Init(os.getpid(), None)
    own = inode(listen("127.0.0.1"))
    assert init.holds({own})
    assert not init.holds({own, 1})
    assert not init.holds(())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "127.0.0.1",
            "your program listens on 127.0.0.1:{other}, not on port {port} ($PORT): let it take",
        ),
        (
            "0.0.0.0",
            "your program listens on 0.0.0.0:{other}, not on port {port} ($PORT): let it take",
        ),
        ("::1", "your program listens on [::1]:{other}, not on port {port} ($PORT): let it take"),
    ],
)
async def test_who_listens_elsewhere_is_told_where_and_not_waited_for(listen, address, said):
    own = listen(address)
    strange = listen("127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port, other = unused.getsockname()[1], own.getsockname()[1]
        began_at = time.monotonic()
        trouble = await wait_until_healthy(
            port,
            ANY_HOST,
            timeout_s=9,
            is_own=lambda _: True,
            those_held=lambda inodes: frozenset({inode(own)}.intersection(inodes)),
            gives_up=True,
        )
    assert trouble.startswith(said.format(port=port, other=other))
    assert str(strange.getsockname()[1]) not in trouble
    assert 3 <= time.monotonic() - began_at < 9


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_where_a_program_listens_is_found(listen, address, way):
    own = listen(address)
    listen(address)
    found = addresses(lambda inodes: frozenset({inode(own)}.intersection(inodes)))
    assert found == [(address, own.getsockname()[1])]


def test_where_a_program_listens_is_not_known_if_the_kernel_does_not_say(listen, monkeypatch):
    own = listen("127.0.0.1")
    monkeypatch.setattr(kernel, "_asked", asked_for_nothing_more)
    monkeypatch.setattr(kernel, "_read", asked_for_nothing_more)
    assert addresses(lambda inodes: frozenset({inode(own)}.intersection(inodes))) == []


async def test_who_listens_for_ipv6_alone_is_told_so(listen):
    own = listen("::1")
    port = own.getsockname()[1]
    init = Init(os.getpid(), None)
    trouble = await wait_until_healthy(
        port, ANY_HOST, timeout_s=1, is_own=init.holds, those_held=init.those_held
    )
    assert trouble.startswith(f"your program listens on [::1]:{port} alone")


async def test_who_opens_another_port_first_is_waited_for(listen):
    first = listen("127.0.0.1")
    port = free_port()
    waiting = asyncio.ensure_future(
        wait_until_healthy(
            port,
            ANY_HOST,
            timeout_s=9,
            is_own=lambda _: True,
            those_held=lambda inodes: frozenset({inode(first)}.intersection(inodes)),
            gives_up=True,
        )
    )
    await asyncio.sleep(2)
    listen("127.0.0.1", port)
    assert await waiting is None
