"""Ports that others join, or take over while their process runs on: with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
from collections.abc import Collection
from typing import Self

import pytest

from hooks.builds.sandbox.namespace import Init
from hooks.deploys.processes import listeners as kernel
from hooks.deploys.processes import port_watch
from hooks.deploys.processes.port_watch import PortWatch, Watched

PROGRAM = """
import socket, sys
held = []
for line in sys.stdin:
    if line == "close\\n":
        held.pop().close()
        print("closed", flush=True)
        continue
    port, _, v6only = line.partition(" ")
    held.append(socket.socket(socket.AF_INET6 if v6only else socket.AF_INET))
    if v6only:
        held[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    else:
        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held[-1].bind(("::" if v6only else "127.0.0.1", int(port)))
    held[-1].listen()
    print(held[-1].getsockname()[1], flush=True)
"""


class Program:
    """A program that listens where it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, line: object) -> str:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def listen(self, port: int = 0) -> int:
        return int(self.say(port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


@pytest.fixture
def programs():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Program()) for _ in range(2)]


class Watch:
    """A watch over ports of programs, and of which it told that others listen there."""

    def __init__(self) -> None:
        self._ports = PortWatch()
        self.looked: list[set[int]] = []
        self.told: list[object] = []

    def over(self, port: int, program: Program, name: object = None) -> Watched:
        init = Init(program.process.pid, None)

        def is_own(inodes: Collection[int]) -> bool:
            self.looked.append(set(inodes))
            return init.holds(inodes)

        return self._ports.watch(
            port, is_own=is_own, on_stranger=lambda: self.told.append(name or port)
        )

    def forget(self, watched: Watched) -> None:
        self._ports.forget(watched)

    async def look(self) -> list[object]:
        """Look once; return of which it told by now."""
        await self._ports.look()
        return self.told


@pytest.fixture
def watch():
    return Watch()


async def test_own_sockets_may_be_many_and_come_and_go_and_the_first_foreign_one_is_told(
    programs, watch
):
    own, other = programs
    port = own.listen()
    watch.over(port, own)
    for _ in range(3):
        await watch.look()
    assert len(watch.looked) == 1  # whose they are is found out once
    own.listen(port)
    await watch.look()
    own.say("close")
    assert await watch.look() == []
    assert len(watch.looked) == 2
    other.listen(port)
    assert await watch.look() == [port]
    assert await watch.look() == [port]


async def test_port_that_its_process_let_go_and_another_took_is_told(programs, watch):
    own, other = programs
    port = own.listen()
    watched = watch.over(port, own)
    await watch.look()
    own.say("close")
    assert await watch.look() == []  # nobody can be robbed there
    other.listen(port)
    watch.forget(watched)
    assert await watch.look() == []
    watch.over(port, own)
    assert await watch.look() == [port]


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
@pytest.mark.parametrize("way", ["asked", "read"])
async def test_who_listens_there_for_ipv6_alone_ends_no_process(programs, watch, way, monkeypatch):
    def asked_in_vain():
        raise OSError("the kernel answers no other way")

    if way == "read":
        monkeypatch.setattr(kernel, "_asked", asked_in_vain)
    own, other = programs
    port = own.listen()
    assert int(other.say(f"{port} v6only")) == port
    watch.over(port, own)
    await watch.look()
    own.say("close")
    assert await watch.look() == []
    own.listen(port)
    other.listen(port)
    assert await watch.look() == [port]


async def test_each_of_two_processes_that_have_one_port_is_looked_at_until_its_own_end(
    programs, watch
):
    first, second = programs
    port = first.listen()
    watch.over(port, first, "first")
    ended = watch.over(port, first, "second")
    watch.over(port, first, "third")
    watch.forget(ended)
    watch.forget(ended)
    assert await watch.look() == []
    second.listen(port)
    assert sorted(await watch.look()) == ["first", "third"]


@pytest.mark.parametrize("lasts", [False, True])
async def test_sockets_that_come_and_go_for_ever_hold_up_no_look(monkeypatch, lasts):
    fresh = itertools.count(100)
    lasting = {1, 2} if lasts else {1}
    monkeypatch.setattr(port_watch, "listeners", lambda _: {80: {*lasting, next(fresh)}})
    told = []
    ports = PortWatch()
    ports.watch(80, is_own=lambda inodes: set(inodes) == {1}, on_stranger=lambda: told.append(80))
    for _ in range(2):
        async with asyncio.timeout(20):
            await ports.look()
    assert told == ([80] if lasts else [])
