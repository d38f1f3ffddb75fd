"""Children of control, as real processes: builders that look for a socket which never comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gitd.children import Children, ChildSpec

UID = 61690


@pytest.fixture
def spec(tmp_path: Path) -> ChildSpec:
    (tmp_path / "scratch").mkdir()
    socket, scratch = str(tmp_path / "no.sock"), str(tmp_path / "scratch")
    user = ("--uid", str(UID), "--gid", str(UID)) if os.geteuid() == 0 else ()
    arguments = ("builder", "--socket", socket, "--scratch", scratch, *user)
    return ChildSpec("host", arguments, survives=True)


@contextlib.asynccontextmanager
async def kept(children: Children) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(children.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def noted_pid(note: Path) -> int:
    async with asyncio.timeout(20):
        while not note.exists():
            await asyncio.sleep(0.02)
    return int(json.loads(note.read_text())["pid"])


async def test_child_that_cannot_be_noted_is_noted_as_soon_as_it_can(spec, tmp_path) -> None:
    in_the_way = tmp_path / "host.new"
    in_the_way.mkdir()
    async with kept(Children([spec], run_folder=tmp_path)) as keeping:
        await asyncio.sleep(0.5)
        assert not keeping.done()
        in_the_way.rmdir()
        pid = await noted_pid(tmp_path / "host.json")
        try:
            assert b"no.sock" in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert Children([spec], run_folder=tmp_path).has_survivor()
        finally:
            os.kill(pid, signal.SIGKILL)
    assert not Children([spec], run_folder=tmp_path).has_survivor()


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[]",
        b'{"pid": "x", "born": 1}',
        b'{"pid": 1e30}',
        b'{"pid": 1, "born": 1, "arguments": ["\xff"]}',
    ],
)
def test_note_that_is_damaged_names_no_survivor(spec, tmp_path, note: bytes) -> None:
    (tmp_path / "host.json").write_bytes(note)
    assert not Children([spec], run_folder=tmp_path).has_survivor()
