"""What control does not know of is kept for as long as both ran side by side, and no shorter."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hooks.deploys.host.control import ControlLine
from hooks.deploys.host.rollout_tools import RolloutTools
from hooks.deploys.host.state import HostFolder
from hooks.deploys.host.unclaimed import KEPT_S, LOOK_EVERY_S, Unclaimed

ENV = "env_A"
HOUR_S = int(LOOK_EVERY_S)
WAIT_S = 20


class Watch:
    """An environment with data, and who looks after it, by a clock that tests put forward."""

    def __init__(self, root: Path, line: ControlLine, tools: RolloutTools) -> None:
        folder = HostFolder(root)
        self.now_s = 1000.0
        self.forgotten: list[str] = []
        self.folder = folder
        self.note = folder.environment(ENV).path / "unclaimed"
        data = folder.environment(ENV).data
        data.mkdir(parents=True)
        (data / "visitors").write_bytes(b"5")
        self.unclaimed = Unclaimed(
            folder,
            tools=tools,
            line=line,
            forget=self.forgotten.append,
            is_leaving=lambda _: False,
            clock_s=lambda: self.now_s,
        )

    async def looked(self) -> None:
        looking = self.unclaimed._looking
        assert looking is not None
        await asyncio.wait_for(looking, WAIT_S)

    async def connected(self, *named: str) -> None:
        self.unclaimed.hear_all(named)
        await self.looked()

    async def pinged(self, later_s: float) -> None:
        self.now_s += later_s
        self.unclaimed.look_again()
        await self.looked()

    def noted_s(self) -> int:
        return int(self.note.read_text())


@pytest.fixture
async def watch(control, tools, tmp_path):
    line = ControlLine(control.path)
    following = asyncio.create_task(line.follow(lambda _: None))
    made = Watch(tmp_path / "host", line, tools)
    yield made
    await made.unclaimed.close()
    following.cancel()


async def test_an_outage_of_control_counts_for_nothing(watch) -> None:
    await watch.connected(ENV)
    watch.now_s += KEPT_S + 1
    await watch.connected()
    assert (watch.forgotten, watch.noted_s()) == ([], 0)
    await watch.pinged(HOUR_S)
    assert watch.noted_s() == HOUR_S
    watch.now_s += KEPT_S + 1
    await watch.connected()
    assert (watch.forgotten, watch.noted_s()) == ([], HOUR_S)


async def test_what_is_found_for_the_first_time_counts_from_then_on(watch) -> None:
    await watch.connected(ENV)
    watch.unclaimed.hear_removed(ENV)
    await watch.pinged(HOUR_S)
    assert watch.noted_s() == 0
    await watch.pinged(HOUR_S)
    assert watch.noted_s() == HOUR_S


async def test_a_clock_that_jumps_counts_as_one_span(watch) -> None:
    await watch.connected()
    await watch.pinged(KEPT_S + 1)
    assert (watch.forgotten, watch.noted_s()) == ([], HOUR_S)


async def test_it_goes_once_both_ran_for_long_enough(watch) -> None:
    await watch.connected()
    for _ in range(KEPT_S // HOUR_S - 1):
        await watch.pinged(HOUR_S)
    assert watch.forgotten == []
    await watch.pinged(HOUR_S)
    assert watch.forgotten == [ENV]


async def test_control_in_trouble_is_asked_again_without_a_ping(watch, control) -> None:
    control.gone.add(ENV)
    control.fail_gone = 2
    watch.unclaimed.hear_all([])
    async with asyncio.timeout(WAIT_S):
        while not watch.forgotten:
            await asyncio.sleep(0.01)
    assert control.fail_gone == 0


async def test_a_look_that_failed_counts_for_nothing(watch, control) -> None:
    await watch.connected()
    control.fail_gone = 1_000_000
    watch.now_s += HOUR_S
    watch.unclaimed.look_again()
    async with asyncio.timeout(WAIT_S):
        while control.fail_gone == 1_000_000:
            await asyncio.sleep(0.01)
    assert watch.noted_s() == 0
    control.fail_gone = 0
    await watch.looked()
    assert watch.noted_s() == HOUR_S


async def test_one_in_trouble_keeps_none_of_the_others(watch, control) -> None:
    troubled = watch.folder.environment("env_0")
    for folder in (troubled, watch.folder.environment("env_Z")):
        folder.data.mkdir(parents=True)
        (folder.data / "visitors").write_bytes(b"5")
    (troubled.path / "unclaimed").mkdir()
    control.gone.add("env_Z")
    await watch.connected()
    assert (watch.forgotten, watch.noted_s()) == (["env_Z"], 0)
    await watch.pinged(HOUR_S)
    assert watch.noted_s() == HOUR_S
