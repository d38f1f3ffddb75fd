"""A job's log: what is said of the work comes after the state that says that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, UnixConnector, web

from hooks.builds.control import service as builder_service
from hooks.builds.wire import LEASE_HEADER, BatchLine, LogBatch
from storage.joblog import StateChange
from storage.model import ActorRef

ACTOR = ActorRef("api_key", "key_1", "tests")
AT = "2026-06-23T00:00:00.000Z"


@contextlib.asynccontextmanager
async def served(app: web.Application, socket: Path) -> AsyncIterator[ClientSession]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    async with ClientSession("http://control", connector=UnixConnector(str(socket))) as client:
        yield client
    await runner.cleanup()


@contextlib.contextmanager
def nothing_is_committed(world):
    """As on a slow disk: what is to be written down from here on waits for the end of this."""
    going_on = threading.Event()
    world.records.submit(lambda _: going_on.wait(20))
    try:
        yield
    finally:
        going_on.set()


async def post(client: ClientSession, path: str, body: msgspec.Struct, **headers: str) -> None:
    data = msgspec.json.encode(body)
    async with client.post(path, data=data, headers=headers) as answer:
        assert answer.status == 200


def order_of(world, job_id: str) -> list[str]:
    return [
        item.entry.status.value if isinstance(item.entry, StateChange) else item.entry.line
        for item in world.jobs.joblogs.read(job_id, 0)
    ]


@pytest.fixture
async def site(world, commit):
    made = await world.site()
    commit(world.repositories.path(made.id), {"index.html": b"hi"})
    return made


async def test_lines_of_a_build_come_after_its_start(world, site, tmp_path: Path) -> None:
    app = builder_service.make_app(world.builds, None, slots={"slot-0": os.geteuid()})
    environment = world.environment(site)
    job = (await world.pipeline.start_build(environment, ACTOR, ref="main")).value
    async with served(app, tmp_path / "s") as client:
        with nothing_is_committed(world):
            lease = await world.builds.lease("slot-0", 5)
            batch = LogBatch(0, (BatchLine("hello", AT, "build"),))
            headers = {LEASE_HEADER: lease.lease_id}
            posting = asyncio.create_task(post(client, f"/v1/jobs/{job.id}/log", batch, **headers))
            await asyncio.wait({posting}, timeout=0.2)  # long enough to come too early
        await posting
    assert order_of(world, job.id) == ["queued", "running", "hello"]
