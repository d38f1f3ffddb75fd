"""Who listens on a port, as the kernel's tables have it, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from hooks.builds.namespace import Init
from hooks.deploys import listeners as kernel
from hooks.deploys.health import HealthCheck, wait_until_healthy
from hooks.deploys.listeners import listeners

ANY_HOST = HealthCheck(None, host="env-1.localhost")


@pytest.fixture
def listen():
    """Listens on an address of this machine, and gives the socket."""
    with contextlib.ExitStack() as stack:

        def start(address):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = stack.enter_context(socket.socket(family))
            try:
                made.bind((address, 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
            made.listen()
            return made

        yield start


def inode(listening: socket.socket) -> int:
    return os.fstat(listening.fileno()).st_ino


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"]
)
async def test_whatever_a_visitor_can_reach_is_found_and_judged(listen, address):
    listening = listen(address)
    port = listening.getsockname()[1]
    assert listeners()[port] == {inode(listening)}
    assert (port, inode(listening)) in list(
        kernel._read()
    )  # as where the kernel answers no other way
    seen = []

    def is_own(inodes):
        seen.append(set(inodes))
        return len(seen) > 1

    assert await wait_until_healthy(port, ANY_HOST, timeout_s=10, is_own=is_own) is None
    assert seen == [{inode(listening)}] * 2


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


async def test_a_process_holds_its_own_sockets_and_never_none(listen):
    init = Init(os.getpid(), None)
    own = inode(listen("127.0.0.1"))
    assert init.holds({own})
    assert not init.holds({own, 1})
    assert not init.holds(())
