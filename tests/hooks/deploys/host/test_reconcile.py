"""Environments that a host forgets by itself, since control says that they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from hooks.deploys.host.control import ControlLine
from hooks.deploys.host.reconcile import Reconciler
from hooks.deploys.host.state import EnvironmentState, HostFolder
from hooks.deploys.web.router import Router
from hooks.deploys.wire import Snapshot

ENV = "env_A"
WAIT_S = 20


@pytest.fixture
def host(tmp_path: Path) -> HostFolder:
    folder = HostFolder(tmp_path / "host")
    environment = folder.environment(ENV)
    environment.data.mkdir(parents=True)
    (environment.data / "visitors").write_bytes(b"5")
    return folder


@pytest.fixture
async def reconciler(host, control, tools) -> AsyncIterator[Reconciler]:
    control.gone.add(ENV)
    line = ControlLine(control.path)
    following = asyncio.create_task(line.follow(lambda _: None))
    made = Reconciler(host, tools=tools, router=Router(), line=line)
    yield made
    await made.close()
    following.cancel()
    await asyncio.wait({following})


@pytest.fixture
def said(host) -> list[tuple[str, bool]]:
    """What is logged from now on, and whether the environment's folder was there then."""
    found: list[tuple[str, bool]] = []

    def note(_logger: object, _method: str, event: dict[str, str]) -> None:
        found.append((event["event"], host.environment(ENV).path.exists()))
        raise structlog.DropEvent

    structlog.configure(processors=[note], cache_logger_on_first_use=False)
    return found


async def until_one_of(events: set[str], said: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """What was said of them, once something was."""
    async with asyncio.timeout(WAIT_S):
        while not (found := [one for one in said if one[0] in events]):
            await asyncio.sleep(0.01)
    return found


ENDS = {"environment_forgotten", "environment_not_removed"}


@pytest.mark.parametrize("is_known", [False, True], ids=["half removed", "served"])
async def test_environment_is_said_to_be_forgotten_once_it_is_gone(
    host, reconciler, said, is_known
) -> None:
    if is_known:
        folder = host.environment(ENV)
        folder.write(EnvironmentState(ENV, "acme-store", "production", "production", ()))
        reconciler.resume()
    reconciler.take(Snapshot(()))
    assert await until_one_of(ENDS, said) == [("environment_forgotten", False)]


async def test_environment_that_cannot_be_removed_is_not_said_to_be_forgotten(
    host, reconciler, said
) -> None:
    (host.environment(ENV).path / "state.json").mkdir()
    reconciler.take(Snapshot(()))
    assert await until_one_of(ENDS, said) == [("environment_not_removed", True)]
