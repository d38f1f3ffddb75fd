"""What is used of aiohttp that it does not promise: it is all there in the version installed.

What another version may lack shows here by its name, and not in what visitors get.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

ROOT = Path(__file__).parents[1]
CONNECTION = (
    "_current_request",
    "_force_close",
    "_loop",
    "_manager",
    "_next_keepalive_close_time",
    "_task_handler",
    "_waiter",
)
USED = {
    "connection": CONNECTION,
    "server": ("_connections", "_kwargs", "_loop"),
    "session": ("_retry_connection",),
    "connector": ("_factory", "_loop"),
    "protocol": ("_drain_helper",),
    "response": ("_send_headers_immediately",),
}


async def _answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


@pytest.fixture
async def things():
    """One of each that our code takes into, just made."""
    loop = asyncio.get_running_loop()
    server = web.Server(_answer)
    async with aiohttp.TCPConnector() as connector, aiohttp.ClientSession() as session:
        yield {
            "connection": web.RequestHandler(server, loop=loop),
            "server": server,
            "session": session,
            "connector": connector,
            "protocol": BaseProtocol(loop),
            "response": web.StreamResponse(),
        }


@pytest.mark.parametrize(("thing", "name"), [(a, b) for a, names in USED.items() for b in names])
async def test_private_member_that_is_used_is_there(things, thing: str, name: str) -> None:
    assert hasattr(things[thing], name)


def test_no_other_private_member_is_used() -> None:
    named = {name for names in USED.values() for name in names}
    modules = [path for package in ("gitd", "hooks") for path in (ROOT / package).rglob("*.py")]
    foreign = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules
        if "aiohttp" in (text := path.read_text())
        for name in _foreign(ast.parse(text))
        if name not in named
    }
    assert foreign == set()


def _foreign(module: ast.Module) -> set[str]:
    """The private names that a module reads of objects, or sets on others', and makes nowhere."""
    return set(_taken(module)) - set(_made(module))


def _taken(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            yield node.attr


def _made(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
