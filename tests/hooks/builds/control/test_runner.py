"""Control's side of builds, spoken to by a slot's own client over the real socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import subprocess
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from aiohttp import web

from hooks.builds.control.service import make_app
from hooks.builds.egress.registries import EgressRules
from hooks.builds.errors import BuildFailedError, ControlUnreachableError, LeaseLostError
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.limits import Limits
from hooks.builds.slot.control import Control
from hooks.builds.wire import (
    BatchLine,
    CacheRequest,
    Egress,
    Finish,
    Heartbeat,
    LogBatch,
)
from storage.errors import StorageFullError
from storage.joblog import LogLine
from storage.manifest import ENTRIES_MAX
from storage.model import ActorRef, JobStatus

ACTOR = ActorRef("api_key", "key_1", "tests")
SLOTS = ("slot-0", "slot-1")
SOON_S = 30.0


class Pool:
    """Slots of one control: their clients, and what they hold."""

    def __init__(self, world, site, uid: int) -> None:
        """`uid`: as which its slots run; there is one that runs as another."""
        self.world = world
        self.site = site
        self._clients = []
        rules = EgressRules(Egress(), with_registries=False, environ={})
        slots = {**dict.fromkeys(SLOTS, uid), "slot-of-another": os.geteuid() + 1}
        app = make_app(world.builds, rules, slots=slots)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self._runner.setup()
        self._socket = self.world.root / "b.sock"
        await web.UnixSite(self._runner, str(self._socket)).start()
        self.set_limits(lease_s=600.0)  # nobody is silent for too long by being slow
        self._reaping = asyncio.create_task(self.world.builds.reap())

    async def stop(self) -> None:
        self._reaping.cancel()
        for client in self._clients:
            await client.__aexit__()
        await self._runner.cleanup()

    def set_limits(self, **changes) -> None:
        leases = self.world.builds.leases
        leases.limits = replace(leases.limits, **changes)

    def expect_soon(self, job_id) -> None:
        """Let the slot that holds the job have half a second to be heard."""
        leases = self.world.builds.leases
        usual = leases.limits
        self.set_limits(lease_s=0.5)
        leases.renew(leases.held(job_id))
        leases.limits = usual

    async def ask_for_build(self, slug="production", **options) -> str:
        environment = self.world.environment(self.site, slug)
        made = await self.world.pipeline.start_build(environment, ACTOR, ref="main", **options)
        return made.value.id

    async def lease(self, slot="slot-0"):
        """What the slot gets: a leased job."""
        client = self.client(slot)
        lease = await client.lease(SOON_S, {})
        assert lease is not None
        return client.job(lease)

    def client(self, slot):
        client = Control(self._socket, slot)
        self._clients.append(client)
        return client

    def job(self, job_id):
        return self.world.jobs.get(job_id)

    def lines(self, job_id) -> list[str]:
        entries = [item.entry for item in self.world.jobs.joblogs.read(job_id)]
        return [entry.line for entry in entries if isinstance(entry, LogLine) and not entry.mark]

    async def until(self, job_id, status: JobStatus) -> None:
        async with asyncio.timeout(SOON_S):
            while (job := self.job(job_id)).status is not status:
                await self.world.jobs.wait_for_change(job, SOON_S)


@pytest.fixture
async def pool(world, commit) -> AsyncIterator[Pool]:
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    opened = Pool(world, site, os.geteuid())
    await opened.start()
    yield opened
    await opened.stop()


def done(slot="slot-0") -> Finish:
    return Finish(slot, "succeeded", profile="static", output="source", folder=".")


def log_lines(*texts: str) -> list[BatchLine]:
    return [BatchLine(text, "2026-06-23T00:00:00.000Z", "build") for text in texts]


async def test_cancel_is_told_at_once_to_the_slot_and_the_next_build_starts(pool) -> None:
    first, second = [await pool.ask_for_build(deploy=True, clean=True) for _ in range(2)]
    held = await pool.lease()
    assert held.lease.job_id == first
    beating = asyncio.create_task(held.heartbeat("build", 10, 300.0))
    following = asyncio.create_task(pool.lease("slot-1"))
    await pool.until(first, JobStatus.RUNNING)
    assert not await held.heartbeat("build", 10)
    await pool.world.pipeline.cancel_job(first)
    async with asyncio.timeout(SOON_S):
        assert await beating
        assert (await following).lease.job_id == second


@contextlib.contextmanager
def stopped_clock() -> Iterator[None]:
    """Let no timer of the loop go off: what happens then, something else than time brought about.

    What never happens is no reason to wait for ever: then the test fails.
    """
    loop, test, waited = asyncio.get_running_loop(), asyncio.current_task(), threading.Event()
    stopped_at = loop.time()

    def end() -> None:
        waited.set()
        loop.call_soon_threadsafe(test.cancel)

    bound = threading.Timer(SOON_S, end)
    bound.start()
    loop.time = lambda: stopped_at
    try:
        yield
    except asyncio.CancelledError:
        if waited.is_set():
            pytest.fail("nothing but time goes on here")
        raise
    finally:
        del loop.time
        bound.cancel()
        bound.join()


async def test_cancel_itself_ends_the_build_and_starts_the_next_one(pool) -> None:
    runner = pool.world.builds
    first, second = [await pool.ask_for_build(deploy=True, clean=True) for _ in range(2)]
    await pool.lease()
    await pool.until(first, JobStatus.RUNNING)
    holding = asyncio.create_task(runner.leases.hold(first, Heartbeat("slot-0", wait_s=300.0)))
    leasing = asyncio.create_task(runner.lease("slot-1", 300.0))
    await asyncio.sleep(0)  # both wait now
    assert pool.world.jobs.place(second).behind == pool.job(first).resource_id
    with stopped_clock():
        await pool.world.pipeline.cancel_job(first)
        assert (await holding).canceled
        assert (await leasing).job_id == second


async def test_heartbeat_is_answered_in_time_when_there_is_nothing_to_tell(pool) -> None:
    await pool.ask_for_build()
    held = await pool.lease()
    assert not await held.heartbeat("build", 10, 0.05)


async def test_heartbeat_that_tells_nothing_new_writes_nothing_down(pool) -> None:
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    await pool.until(job_id, JobStatus.RUNNING)
    statements = []
    pool.world.records.write(lambda db: db.set_trace_callback(statements.append))
    told = []
    for progress in (10, 10, 5, 60, 60, 150, 150):
        pool.world.builds.leases.held(job_id).progress_at = float("-inf")
        await held.heartbeat("build", progress)
        await pool.world.jobs.commit(lambda _: None)  # behind what it wrote down
        told.append(pool.job(job_id).progress)
    assert told == [10, 10, 10, 60, 60, 99, 99]
    assert len([each for each in statements if each.startswith("UPDATE job SET progress")]) == 3


async def test_slot_that_lost_its_lease_is_not_heard_any_more(pool) -> None:
    job_id = await pool.ask_for_build()
    hung = await pool.lease("slot-0")
    await hung.log(0, log_lines("of the first"))
    silent = asyncio.Event()
    pool.world.builds.watch_silence(lambda slot: slot == "slot-0" and silent.set())
    sending, go_on = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"of the first"
        sending.set()
        await go_on.wait()
        yield b", too late"

    # It is at it when it hangs, and goes on when it wakes up.
    uploading = asyncio.create_task(hung.send_output(chunks))
    await sending.wait()
    pool.expect_soon(job_id)
    holder = await pool.lease("slot-1")
    assert silent.is_set()
    assert holder.lease.job_id == job_id
    await holder.heartbeat("build", 0)

    async def output() -> AsyncIterator[bytes]:
        yield b"of the second"

    await holder.send_output(output)
    go_on.set()
    with pytest.raises(LeaseLostError):
        await uploading
    for call in (
        hung.heartbeat("build", 50),
        hung.log(1, log_lines("too late")),
        hung.finish(done("slot-1")),
        hung.send_output(output),
    ):
        with pytest.raises(LeaseLostError):
            await call
    await hung.give_back()
    assert pool.world.builds.output_path(job_id).read_bytes() == b"of the second"
    await holder.log(0, log_lines("of the second"))
    await holder.finish(done("slot-1"))
    assert pool.job(job_id).status is JobStatus.SUCCEEDED
    assert pool.lines(job_id) == [
        "of the first",
        "the builder was lost (fell silent)",
        "of the second",
    ]


async def test_process_speaks_for_the_slots_of_its_own_uid_alone(pool) -> None:
    """One that broke out of its sandbox gets no build of a neighbour, and changes none."""
    job_id = await pool.ask_for_build()
    theirs = await pool.world.builds.lease("slot-of-another", SOON_S)
    assert theirs is not None
    with pytest.raises(ControlUnreachableError, match="403"):
        await pool.lease("slot-of-another")
    job = pool.client("slot-of-another").job(theirs)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"of a neighbour"

    for call in (
        job.heartbeat("build", 50),
        job.variables(["TOKEN"]),
        job.folder("."),
        job.log(0, log_lines("of a neighbour")),
        job.send_output(chunks),
        job.finish(done("slot-of-another")),
    ):
        with pytest.raises(LeaseLostError, match="403"):
            await call
    await job.give_back()
    assert pool.world.builds.leases.check(job_id, theirs.lease_id) == "slot-of-another"
    assert "of a neighbour" not in pool.lines(job_id)


async def test_process_of_no_slot_is_not_heard_at_all(world) -> None:
    others = Pool(world, await world.site(), uid=os.geteuid() + 1)
    await others.start()
    connector = aiohttp.UnixConnector(str(world.root / "b.sock"))
    async with aiohttp.ClientSession("http://control", connector=connector) as session:
        for method, path in (
            ("POST", "/v1/lease"),
            ("GET", "/v1/jobs/job_held_by_nobody/egress"),
            ("GET", "/v1/nothing"),
        ):
            async with session.request(method, path) as response:
                assert response.status == 403, path
    await others.stop()


async def test_output_that_is_larger_than_it_may_be_is_refused_as_it_comes(pool) -> None:
    await pool.ask_for_build()
    held = await pool.lease()
    pool.set_limits(output_bytes_max=500_000, cache_bytes_max=500_000)

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(1_000_001)

    with pytest.raises(BuildFailedError, match=r"builders\.output_bytes_max") as caught:
        await held.send_output(chunks)
    assert caught.value.code == "build.output_too_large"
    said = await held.send_cache(CacheRequest("static", {}), chunks)
    assert said.startswith("not kept: ")
    async with asyncio.timeout(SOON_S):
        while list((pool.world.root / "tmp").iterdir()):
            await asyncio.sleep(0.01)


async def test_output_that_the_disk_has_no_room_for_is_refused_as_it_comes(pool) -> None:
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    room = pool.world.store.room
    limits = room.limits

    async def chunks() -> AsyncIterator[bytes]:
        yield b"there is room"
        room.limits = replace(limits, free_bytes_min=1 << 60)
        yield b", and now there is none" * 20_000

    with pytest.raises(BuildFailedError, match="no room") as caught:
        await held.send_output(chunks)
    assert caught.value.code == "store.no_space"
    room.limits = limits
    async with asyncio.timeout(SOON_S):
        while list((pool.world.root / "tmp").iterdir()):  # a try of before may still be ending
            await asyncio.sleep(0.01)
    await pool.until(job_id, JobStatus.RUNNING)  # it is the slot's to end it


async def test_output_of_a_build_that_comes_to_nothing_is_not_kept(pool) -> None:
    scratch = pool.world.root / "tmp"

    async def chunks() -> AsyncIterator[bytes]:
        yield b"an output"

    canceled = await pool.ask_for_build()
    await (await pool.lease()).send_output(chunks)
    assert [path.name for path in scratch.iterdir()] == [f"output-{canceled}.tar"]
    await pool.world.pipeline.cancel_job(canceled)
    assert list(scratch.iterdir()) == []
    lost = await pool.ask_for_build()
    await (await pool.lease()).send_output(chunks)
    again = await pool.lease()  # the slot was lost, and the build waits again
    assert list(scratch.iterdir()) == []
    await again.send_output(chunks)
    assert await pool.world.builds.lease("slot-0", 0) is None  # it was lost again
    assert pool.job(lost).error.code == "build.builder_lost"
    assert list(scratch.iterdir()) == []


async def test_output_that_cannot_be_removed_stops_no_work(pool) -> None:
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    pool.world.builds.output_path(job_id).mkdir()  # so that no file of this name can go
    await pool.world.pipeline.cancel_job(job_id)
    assert await held.heartbeat("build", 10)
    after = await pool.ask_for_build()
    assert (await pool.lease()).lease.job_id == after


def test_start_goes_on_past_an_output_that_cannot_be_removed(world) -> None:
    stuck, left = (world.root / "tmp" / f"output-job_{number}.tar" for number in (1, 2))
    stuck.mkdir()
    left.touch()
    world.reopen().builds.recover()
    assert (stuck.exists(), left.exists()) == (True, False)


async def test_folder_of_too_many_entries_is_told_the_slot_as_what_it_is(pool) -> None:
    repository = pool.world.repositories.path(pool.site.id)

    def git(*arguments: str, stdin: bytes = b"") -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        environ = {**os.environ, "GIT_DIR": str(repository)}
        done = subprocess.run(command, env=environ, input=stdin, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def tree(entries: Iterable[bytes]) -> str:
        return git("hash-object", "-t", "tree", "-w", "--stdin", stdin=b"".join(entries))

    blob = bytes.fromhex(git("hash-object", "-w", "--stdin"))
    flat = tree(b"100644 %06d\0%s" % (number, blob) for number in range(ENTRIES_MAX + 1))
    top = tree([b"40000 web\0" + bytes.fromhex(flat)])
    git("update-ref", "refs/heads/main", git("commit-tree", "-m", "flat", top))
    await pool.ask_for_build()
    held = await pool.lease()
    with pytest.raises(BuildFailedError, match="more than 200,000 files and folders") as caught:
        await held.folder("web")
    assert caught.value.code == "build.output_too_large"


async def test_time_that_the_server_itself_stood_still_is_held_against_nobody(pool) -> None:
    pool.set_limits(lease_s=1.5)
    await pool.ask_for_build()
    held = await pool.lease()
    time.sleep(2.2)
    assert not await held.heartbeat("build", 10)


async def test_slot_that_built_a_site_last_builds_it_again_where_it_waits_too(pool) -> None:
    await pool.ask_for_build(clean=True)
    job = await pool.lease("slot-1")
    await job.finish(done("slot-1"))
    other = asyncio.create_task(pool.lease("slot-0"))
    await asyncio.sleep(0.1)  # it waits first
    same = asyncio.create_task(pool.lease("slot-1"))
    await asyncio.sleep(0.1)
    await pool.ask_for_build("staging", clean=True)
    async with asyncio.timeout(SOON_S / 2):
        job = await same
    assert not other.done()
    await pool.ask_for_build(clean=True)
    async with asyncio.timeout(SOON_S / 2):
        await other  # the one that built it last is busy
    await job.give_back()


async def test_build_that_was_left_to_a_slot_which_goes_is_taken_by_another(world, pool) -> None:
    dispatcher, answers = world.builds.dispatcher, []
    await pool.ask_for_build(clean=True)
    assert await dispatcher.next("slot-1", 0)
    other = asyncio.create_task(dispatcher.next("slot-0", SOON_S))
    await asyncio.sleep(0)  # it is asked first
    last = asyncio.create_task(
        dispatcher.next("slot-1", SOON_S, is_gone=lambda: bool(answers and answers.pop(0)))
    )
    await asyncio.sleep(0)
    answers += [False, True, True]  # the other leaves it the build, and then it is gone
    await pool.ask_for_build("staging", clean=True)
    async with asyncio.timeout(SOON_S / 2):
        assert await other
    assert await last is None


async def test_lost_build_starts_again_once_and_then_fails_with_the_reason(pool) -> None:
    job_id = await pool.ask_for_build()
    for attempt in (1, 2):
        held = await pool.lease()  # which takes back what the slot held
        assert held.lease.job_id == job_id
        await held.log(0, log_lines("the same words"))
        await pool.until(job_id, JobStatus.RUNNING)
        assert pool.job(job_id).attempts == attempt
    pool.expect_soon(job_id)
    await pool.until(job_id, JobStatus.FAILED)
    error = pool.job(job_id).error
    assert error.code == "build.builder_lost"
    assert "lost 2 times" in error.message
    assert "fell silent" in error.message
    assert pool.lines(job_id) == [
        "the same words",
        "the builder was lost (started anew)",
        "the same words",
        "the builder was lost (fell silent)",
    ]


async def test_build_that_is_given_back_was_not_lost(pool) -> None:
    job_id = await pool.ask_for_build()
    for _ in range(3):
        held = await pool.lease()
        assert held.lease.job_id == job_id
        await held.give_back()
    assert pool.job(job_id).status is JobStatus.QUEUED
    assert (pool.job(job_id).attempts, pool.job(job_id).losses) == (3, 0)
    await (await pool.lease()).finish(done())
    assert pool.job(job_id).status is JobStatus.SUCCEEDED


async def test_slot_that_asks_while_its_output_is_being_kept_takes_nothing_back(pool) -> None:
    """It did not hear that control has the outcome, or was started anew."""
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    await pool.until(job_id, JobStatus.RUNNING)
    loop, may_keep = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    keeping = loop.run_in_executor(None, may_keep.wait)
    finishing = asyncio.create_task(held.finish(done()))
    async with asyncio.timeout(SOON_S / 2):
        while pool.world.builds.leases.held(job_id).finishing is None:
            await asyncio.sleep(0.01)
    try:
        assert await pool.world.builds.lease("slot-0", 0) is None
        await held.give_back()
    finally:
        may_keep.set()
    await keeping
    await finishing
    job = pool.job(job_id)
    assert (job.status, job.attempts, job.losses) == (JobStatus.SUCCEEDED, 1, 0)
    assert pool.lines(job_id) == []


async def test_build_whose_slot_does_not_end_it_in_time_fails(pool) -> None:
    pool.set_limits(timeout_s=0, overtime_s=600.0)
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    assert not await held.heartbeat("build", 10, 1.2), "its slot has a while to end it"
    await held.give_back()
    pool.set_limits(overtime_s=0.0)
    held = await pool.lease()
    with pytest.raises(LeaseLostError):
        await held.heartbeat("build", 10, 300.0)
    error = pool.job(job_id).error
    assert error.code == "build.timed_out"
    assert error.message.startswith("time: the build took longer than 0 s (builders.timeout_s)")


async def test_stop_of_the_server_with_its_slots_queues_their_builds_again(pool) -> None:
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    beating = asyncio.create_task(held.heartbeat("build", 10, 300.0))
    await pool.until(job_id, JobStatus.RUNNING)
    await pool.world.builds.close(ends_slots=True)
    assert pool.job(job_id).status is JobStatus.QUEUED
    assert pool.job(job_id).losses == 0
    with pytest.raises(LeaseLostError):
        await beating


async def test_stop_of_the_server_leaves_builds_to_slots_that_go_on(pool) -> None:
    job_id = await pool.ask_for_build()
    held = await pool.lease()
    beating = asyncio.create_task(held.heartbeat("build", 10, 300.0))
    await pool.until(job_id, JobStatus.RUNNING)
    assert not await held.heartbeat("build", 10)
    await pool.world.builds.close()
    async with asyncio.timeout(SOON_S):
        assert not await beating
    again = pool.world.reopen()
    again.builds.recover()
    assert again.builds.leases.check(job_id, held.lease.lease_id) == "slot-0"
    await again.builds.finish(job_id, done())
    assert again.jobs.get(job_id).status is JobStatus.SUCCEEDED
    again.records.close()


async def test_start_of_a_job_that_is_over_holds_no_lane_and_no_slot(pool) -> None:
    """Its end may be written down just before its start is."""
    first, second = [await pool.ask_for_build(deploy=True, clean=True) for _ in range(2)]
    records = pool.world.records
    records.write(lambda db: pool.world.jobs.changes_in(db).cancel(first))  # and nobody is told
    asking = [asyncio.create_task(pool.lease(slot)) for slot in SLOTS]
    async with asyncio.timeout(SOON_S / 2):
        held = {job.lease.job_id: job for job in await asyncio.gather(*asking)}
    assert set(held) == {first, second}, "who waited for the lane has it"
    assert pool.world.builds.leases.find(first) is None
    assert await held[first].heartbeat("build", 10)


async def test_lease_that_its_slot_did_not_wait_for_is_anothers_at_once(pool) -> None:
    """It left while it was looked whether there is room for what it would send."""
    pool.world.housekeeping.limits = replace(pool.world.housekeeping.limits, site_bytes_max=1 << 40)
    loop, may_look = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    job_id = await pool.ask_for_build()
    looking = loop.run_in_executor(None, may_look.wait)
    gone = pool.client("slot-0")
    leasing = asyncio.create_task(gone.lease(SOON_S, {}))
    async with asyncio.timeout(SOON_S / 2):
        while pool.world.builds.leases.find(job_id) is None:
            await asyncio.sleep(0.01)
    leasing.cancel()
    await gone.__aexit__()
    await asyncio.sleep(0.1)  # its end of the connection is closed, and is seen here
    may_look.set()
    await looking
    async with asyncio.timeout(SOON_S / 2):
        held = await pool.lease("slot-1")
    assert held.lease.job_id == job_id
    assert (pool.job(job_id).losses, pool.lines(job_id)) == (0, ["the builder was stopped"])


async def test_build_that_is_canceled_before_its_lease_is_answered_is_not_leased(pool) -> None:
    """As above: meanwhile it is over, and there is nothing to lease."""
    pool.world.housekeeping.limits = replace(pool.world.housekeeping.limits, site_bytes_max=1 << 40)
    loop, may_look = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    job_id = await pool.ask_for_build()
    looking = loop.run_in_executor(None, may_look.wait)
    leasing = asyncio.create_task(pool.world.builds.lease("slot-0", SOON_S))
    async with asyncio.timeout(SOON_S / 2):
        while pool.world.builds.leases.find(job_id) is None:
            await asyncio.sleep(0.01)
    try:
        await pool.world.pipeline.cancel_job(job_id)
    finally:
        may_look.set()
    await looking
    assert await leasing is None
    assert pool.job(job_id).status is JobStatus.CANCELED


async def test_build_whose_start_could_not_be_written_down_waits_again_when_its_slot_goes(
    pool,
) -> None:
    job_id = await pool.ask_for_build()
    records = pool.world.records
    refuse = (
        "CREATE TEMP TRIGGER refuse BEFORE UPDATE ON job WHEN NEW.status = 'running'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    records.write(lambda db: db.execute(refuse).close())
    held = await pool.lease()
    await held.log(0, log_lines("it is built"))
    assert pool.job(job_id).status is JobStatus.QUEUED
    assert pool.world.jobs.place(job_id) is None
    records.write(lambda db: db.execute("DROP TRIGGER refuse").close())
    await held.give_back()
    again = await pool.lease("slot-1")
    assert again.lease.job_id == job_id
    await again.finish(done("slot-1"))
    assert pool.job(job_id).status is JobStatus.SUCCEEDED


async def test_failure_that_cannot_be_written_down_is_told_without_its_message(pool) -> None:
    """Its job ran for ever."""
    job_id = await pool.ask_for_build()
    await pool.lease()
    course, running = pool.world.builds.course, pool.world.builds.leases.held(job_id)

    async def keep() -> None:
        raise BuildFailedError("build.output_invalid", os.fsdecode(b"th\xe8me is no text"))

    await course.end(running, keep())
    job = pool.job(job_id)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.internal")
    assert pool.lines(job_id) == [job.error.message]
    assert job.error.message.endswith(f"at job {job_id}.")


async def test_end_of_a_job_is_written_down_when_the_disk_has_room_again(pool) -> None:
    job_id = await pool.ask_for_build()
    full = [StorageFullError("the database: the disk is full")]

    def change(changes) -> None:
        if full:
            raise full.pop()
        changes.fail(job_id, None)

    await pool.world.builds.course.write_down(change)
    assert pool.job(job_id).status is JobStatus.FAILED


async def test_slots_are_found_silent_though_nothing_can_be_written_down(pool) -> None:
    job_ids = [await pool.ask_for_build(slug, clean=True) for slug in ("production", "staging")]
    for slot in SLOTS:
        await pool.lease(slot)
    for job_id in job_ids:
        await pool.until(job_id, JobStatus.RUNNING)
    silent, both = set(), asyncio.Event()

    def note(slot: str) -> None:
        silent.add(slot)
        if silent == set(SLOTS):
            both.set()

    pool.world.builds.watch_silence(note)
    records = pool.world.records
    refuse = "CREATE TEMP TRIGGER full BEFORE UPDATE ON job BEGIN SELECT RAISE(ABORT, 'full'); END"
    records.write(lambda db: db.execute(refuse).close())
    for held, lease_s in zip(pool.world.builds.leases, (0.0, 2.0), strict=True):
        held.deadline = asyncio.get_running_loop().time() + lease_s
    async with asyncio.timeout(SOON_S):
        await both.wait()
    assert [pool.job(job_id).status for job_id in job_ids] == [JobStatus.RUNNING] * 2
    records.write(lambda db: db.execute("DROP TRIGGER full").close())
    for job_id in job_ids:
        await pool.until(job_id, JobStatus.QUEUED)


async def test_log_that_cannot_be_written_stops_no_work(pool) -> None:
    job_id = await pool.ask_for_build()
    path = pool.world.jobs.joblogs.path(job_id)
    path.unlink()
    path.mkdir()
    held = await pool.lease()
    await held.finish(done())
    assert pool.job(job_id).status is JobStatus.SUCCEEDED
    path.rmdir()


async def test_cache_that_a_build_leaves_comes_to_the_next(
    pool, commit, packed, unpacked, tmp_path
) -> None:
    wanted = CacheRequest("static", {"package-lock.json": "sha256:1"})

    async def chunks() -> AsyncIterator[bytes]:
        yield packed({"home/.cache/a": b"left"})

    await pool.ask_for_build()
    first = await pool.lease()
    assert (await first.find_cache(wanted)).digest is None
    assert (await first.send_cache(wanted, chunks)).startswith("kept: ")
    await first.finish(done())
    commit(pool.world.repositories.path(pool.site.id), {"index.html": b"two"})
    await pool.ask_for_build("staging")
    held = await pool.lease()
    found = await held.find_cache(wanted)
    assert found.is_hit
    with DiskAllowance(tmp_path, Limits()).spool() as out:
        assert await held.fetch_cache(found.digest, out)
        assert unpacked(out.content().read())["home/.cache/a"] == b"left"
        assert not await held.fetch_cache("blake3:" + "0" * 64, out)


async def test_end_of_a_build_brings_its_last_lines_once(pool) -> None:
    job_id = await pool.ask_for_build()
    job = await pool.lease()
    await job.log(0, log_lines("one", "two"))
    last = LogBatch(1, tuple(log_lines("two", "three")))
    await job.finish(msgspec.structs.replace(done(), log=last))
    assert pool.lines(job_id)[:3] == ["one", "two", "three"]
    assert pool.job(job_id).status is JobStatus.SUCCEEDED


async def test_last_lines_of_a_build_come_after_its_start(pool) -> None:
    job_id = await pool.ask_for_build()
    may_write = threading.Event()
    pool.world.records.submit(lambda _: may_write.wait(SOON_S))
    job = await pool.lease()
    last = LogBatch(0, tuple(log_lines("one")))
    finishing = asyncio.create_task(job.finish(msgspec.structs.replace(done(), log=last)))
    async with asyncio.timeout(SOON_S / 2):
        while pool.world.builds.leases.held(job_id).finishing is None:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    may_write.set()
    await finishing
    entries = [item.entry for item in pool.world.jobs.joblogs.read(job_id)]
    said = [each.line if isinstance(each, LogLine) else each.status for each in entries]
    states = [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED]
    assert [each for each in said if each in ("one", *states)] == [*states[:2], "one", states[2]]


async def test_contents_that_a_push_did_not_change_are_not_read_again(pool, commit) -> None:
    repository = pool.world.repositories.path(pool.site.id)
    blob = hashlib.sha1(b"blob 8\0the same", usedforsecurity=False).hexdigest()
    for number in (1, 2):
        commit(repository, {"same.txt": b"the same", "index.html": b"%d" % number})
        if number == 2:  # git's own object is gone: the store has what was in it
            (repository / "objects" / blob[:2] / blob[2:]).unlink()
        job_id = await pool.ask_for_build(clean=True)
        await (await pool.lease()).finish(done())
        assert pool.job(job_id).status is JobStatus.SUCCEEDED


async def source_for(pool, job_id, *bases):
    """What a slot gets that has the trees `bases`: its head, what goes first, and the files."""
    supplies = pool.world.builds.supplies
    source = await supplies.source(job_id, ".", ignores_submodules=False, bases=bases)
    out = io.BytesIO()
    source.write(out)
    start = source.head.removed_bytes or 0
    with tarfile.open(fileobj=io.BytesIO(out.getvalue()[start:]), mode="r:") as tar:
        files = {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}
    return source.head, out.getvalue()[:start], files


async def test_slot_that_has_another_tree_gets_what_makes_the_commit_of_it(pool, commit) -> None:
    repository = pool.world.repositories.path(pool.site.id)
    many = {f"{number}.html": b"%d" % number for number in range(20)}
    commit(repository, many)
    job_id = await pool.ask_for_build(clean=True)
    job = await pool.lease()
    whole, removed, files = await source_for(pool, job_id)
    assert (whole.files, whole.size_bytes, removed) == (20, 30, b"")
    assert (whole.removed_bytes, files) == (None, many)
    assert whole.tree == job.lease.tree
    await job.finish(done())

    changed = {**many, "1.html": b"another", "new/page.html": b"new"}
    del changed["2.html"]
    commit(repository, changed)
    job_id = await pool.ask_for_build(clean=True)
    job = await pool.lease()
    head, removed, files = await source_for(pool, job_id, whole.tree)
    assert sorted(removed.split(b"\0")) == [b"", b"1.html", b"2.html"]
    assert files == {"1.html": b"another", "new/page.html": b"new"}
    assert (head.files, head.size_bytes, head.tree) == (20, 38, job.lease.tree)
    for unknown in ("ab" * 20, head.tree[::-1]):
        head, removed, files = await source_for(pool, job_id, unknown)
        assert (head.removed_bytes, removed, files) == (None, b"", changed)
    await job.finish(done())

    commit(repository, {path: content * 2 for path, content in many.items()})
    job_id = await pool.ask_for_build(clean=True)
    await pool.lease()
    head, removed, files = await source_for(pool, job_id, whole.tree)
    assert (head.removed_bytes, len(files)) == (None, 20)  # too much is another


async def test_slot_that_has_much_more_gets_the_commit_whole(pool, commit) -> None:
    repository = pool.world.repositories.path(pool.site.id)
    few = {f"{number}.html": b"%d" % number for number in range(20)}
    bases = []
    for gone in (5, 6):
        commit(repository, {**few, **{f"gone/{number}.html": b"" for number in range(gone)}})
        await pool.ask_for_build(clean=True)
        job = await pool.lease()
        bases.append(job.lease.tree)
        await job.finish(done())
    commit(repository, few)
    job_id = await pool.ask_for_build(clean=True)
    await pool.lease()
    heads = [(await source_for(pool, job_id, base))[0] for base in bases]
    assert [head.removed_bytes is None for head in heads] == [False, True]


async def test_slot_that_has_several_trees_gets_what_makes_the_commit_of_the_nearest(
    pool, commit
) -> None:
    repository = pool.world.repositories.path(pool.site.id)
    many = {f"{number}.html": b"%d" % number for number in range(20)}
    steps = [
        {f"other/{number}.html": b"" for number in range(20)},  # too much is another
        {**many, "1.html": b"another", "2.html": b"another"},
        {**many, "1.html": b"another"},
        many,
    ]
    trees = []
    for files in steps:
        commit(repository, files)
        job_id = await pool.ask_for_build(clean=True)
        job = await pool.lease()
        trees.append(job.lease.tree)
        if files is not many:
            await job.finish(done())
    found = [(await source_for(pool, job_id, *bases))[0] for bases in (trees[:3], trees[:1])]
    assert [(head.removed_bytes, head.base) for head in found] == [(len(b"1.html\0"), 2), (None, 0)]
