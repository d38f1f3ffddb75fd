"""Contract §3: jobs, their long polls, streams and cancels."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import ClientPayloadError, ClientSession

from hooks.builds.control.leases import PROGRESS_EVERY_S
from hooks.builds.wire import BatchLine, Finish, Heartbeat, LogBatch
from hooks.jobs import REMOVED, QueuePlace
from storage.records import api_keys

AT = "2026-06-23T00:00:00.000Z"
DONE = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")


def events_of(raw: bytes) -> list[dict[str, str]]:
    """The events of a stream, comments left out. Source: HTML Standard §9.2.6."""
    events = []
    for block in raw.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and line[0] != ":")
        if fields:
            events.append(fields)
    return events


async def started(service, acme) -> dict:
    return (await service.post(f"{acme.production}/builds")).data


async def test_job_moves_from_queued_to_running_to_succeeded(service, acme) -> None:
    job = await started(service, acme)
    path = job["links"]["self"]
    assert job["status"] == "queued"
    lease = await service.builds.lease("slot-0", 5)
    await service.until(path, status="running")
    await asyncio.sleep(PROGRESS_EVERY_S)
    service.builds.leases.heartbeat(lease.job_id, Heartbeat("slot-0", "build", 40))
    await service.until(path, progress=40)
    await service.builds.finish(lease.job_id, DONE)
    done = (await service.get(path)).data
    assert (done["status"], done["progress"]) == ("succeeded", 100)
    assert done["error"] is None


async def test_job_has_an_etag_and_answers_304_while_it_stays_the_same(service, acme) -> None:
    path = (await started(service, acme))["links"]["self"]
    etag = (await service.get(path)).headers["ETag"]
    for tag in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        heard = await service.get(path, headers={"If-None-Match": tag})
        assert (heard.status, heard.raw) == (304, b"")
        assert heard.headers["ETag"] == etag
        assert heard.headers["X-Request-Id"]
    await service.build()
    heard = await service.get(path, headers={"If-None-Match": etag})
    assert heard.status == 200
    assert heard.headers["ETag"] != etag


async def test_wait_answers_as_soon_as_the_job_changes(service, acme) -> None:
    path = (await started(service, acme))["links"]["self"]
    etag = (await service.get(path)).headers["ETag"]
    waiting = asyncio.create_task(service.get(f"{path}?wait=60", headers={"If-None-Match": etag}))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    lease = await service.builds.lease("slot-0", 5)
    heard = await asyncio.wait_for(waiting, 20)
    assert (heard.status, heard.data["status"]) == (200, "running")
    waiting = asyncio.create_task(service.get(f"{path}?wait=60"))
    await asyncio.sleep(0.05)
    await service.builds.finish(lease.job_id, DONE)
    assert (await asyncio.wait_for(waiting, 20)).data["status"] == "succeeded"


async def test_wait_with_an_old_etag_or_a_final_job_answers_at_once(service, acme) -> None:
    path = (await started(service, acme))["links"]["self"]
    etag = (await service.get(path)).headers["ETag"]
    await service.builds.lease("slot-0", 5)
    await service.until(path, status="running")
    began = time.monotonic()
    heard = await service.get(f"{path}?wait=60", headers={"If-None-Match": etag})
    assert heard.data["status"] == "running"
    await service.post(f"{path}/cancel")
    assert (await service.get(f"{path}?wait=60")).data["status"] == "canceled"
    assert time.monotonic() - began < 30


async def test_wait_that_nothing_ends_answers_what_is(service, acme) -> None:
    path = (await started(service, acme))["links"]["self"]
    heard = await service.get(f"{path}?wait=0.1")
    assert (heard.status, heard.data["status"]) == (200, "queued")
    etag = heard.headers["ETag"]
    heard = await service.get(f"{path}?wait=0.1", headers={"If-None-Match": etag})
    assert heard.status == 304
    for wait in ("-1", "61", "x", "inf", "nan"):
        heard = await service.get(f"{path}?wait={wait}")
        assert (heard.status, heard.body["error"]["param"]) == (400, "wait"), wait


async def test_stream_tells_every_state_and_line_in_order_and_closes(service, acme) -> None:
    job = await started(service, acme)
    await service.build("one", "two")
    heard = await service.get(job["links"]["stream"])
    assert heard.status == 200
    assert heard.headers["Content-Type"] == "text/event-stream"
    assert heard.headers["Cache-Control"] == "no-store"
    events = events_of(heard.raw)
    assert events[-1]["event"] == "end"
    states = [json.loads(e["data"]) for e in events if e["event"] == "job"]
    assert [s["status"] for s in states] == ["queued", "running", "succeeded"]
    assert states[-1] == (await service.get(job["links"]["self"])).data
    lines = [json.loads(e["data"]) for e in events if e["event"] == "log"]
    assert [x["line"] for x in lines if x["stage"] == "build"][:2] == ["one", "two"]
    assert all(set(x) == {"line", "at", "stage"} for x in lines if "mark" not in x)
    marks = [(x["stage"], x["mark"], "seconds" in x) for x in lines if "mark" in x]
    assert marks == [("pack", "begin", False), ("pack", "end", True)]
    ids = [e["id"] for e in events]
    assert len(ids) == len(set(ids)) == len(events)


async def test_stream_resumes_behind_any_event_without_a_gap_or_a_repeat(service, acme) -> None:
    job = await started(service, acme)
    await service.build(*(f"line {n}" for n in range(20)))
    path = job["links"]["stream"]
    whole = events_of((await service.get(path)).raw)
    for at, event in enumerate(whole[:-1]):
        by_header = await service.get(path, headers={"Last-Event-ID": event["id"]})
        assert events_of(by_header.raw) == whole[at + 1 :]
    by_query = await service.get(f"{path}?last_event_id={whole[3]['id']}")
    assert events_of(by_query.raw) == whole[4:]
    over = await service.get(path, headers={"Last-Event-ID": whole[-1]["id"]})
    assert (over.status, over.raw) == (204, b"")


async def test_stream_refuses_ids_that_are_none_of_its_own(service, acme) -> None:
    job = await started(service, acme)
    await service.build("one")
    for wrong in ("7", "nonsense", "-1", "1e3", "٣", "9" * 30, "999999", "x.end"):
        heard = await service.get(f"{job['links']['stream']}?last_event_id={wrong}")
        assert (heard.status, heard.code) == (400, "stream.position_invalid"), wrong


async def test_stream_follows_while_the_job_goes_on(service, acme) -> None:
    job = await started(service, acme)
    seen: list[dict[str, str]] = []

    async def listen(url: str, headers: dict[str, str]) -> None:
        sent = {"Authorization": f"Bearer {service.secret}", **headers}
        async with service.client.get(url, headers=sent) as answer:
            block = b""
            async for line in answer.content:
                block += line
                if line == b"\n":
                    seen.extend(events_of(block))
                    block = b""

    listener = asyncio.create_task(listen(job["links"]["stream"], {}))
    lease = await service.builds.lease("slot-0", 5)
    for number in range(5):
        line = BatchLine(f"line {number}", AT, "build")
        service.builds.take_log(lease.job_id, LogBatch(number, (line,)))
        await asyncio.sleep(0.02)
        if number == 2:  # the connection breaks, and is taken up again
            async with asyncio.timeout(20):
                while not seen:
                    await asyncio.sleep(0.01)
            listener.cancel()
            last = seen[-1]["id"]
            listener = asyncio.create_task(listen(job["links"]["stream"], {"Last-Event-ID": last}))
    await service.builds.finish(lease.job_id, DONE)
    await asyncio.wait_for(listener, 20)
    whole = events_of((await service.get(job["links"]["stream"])).raw)
    assert seen == whole


async def test_stream_survives_a_restart_of_the_server(service, acme) -> None:
    job = await started(service, acme)
    lease = await service.builds.lease("slot-0", 5)
    service.builds.take_log(lease.job_id, LogBatch(0, (BatchLine("before", AT, "build"),)))
    sent = {"Authorization": f"Bearer {service.secret}"}
    async with ClientSession(service.url) as client:
        first = await client.get(job["links"]["stream"], headers=sent)
        begun = await asyncio.wait_for(first.content.readuntil(b"\n\n"), 20)
        await service.restart()
        early = events_of(begun + await asyncio.wait_for(first.read(), 20))
    assert early[-1]["event"] != "end"
    service.builds.recover()
    await service.builds.finish(lease.job_id, DONE)
    rest = await service.get(job["links"]["stream"], headers={"Last-Event-ID": early[-1]["id"]})
    whole = events_of((await service.get(job["links"]["stream"])).raw)
    assert early + events_of(rest.raw) == whole


async def test_silent_stream_sends_heartbeats(service, acme) -> None:
    await service.stop()
    service.heartbeat_s = 0.05
    await service.start()
    job = await started(service, acme)
    sent = {"Authorization": f"Bearer {service.secret}"}
    async with service.client.get(job["links"]["stream"], headers=sent) as answer:
        comments = 0
        async for line in answer.content:
            comments += line.startswith(b":")
            if comments == 3:
                break


@pytest.mark.parametrize("places_differ", [False, True])
async def test_stream_of_a_job_that_keeps_its_place_lives_while_others_move(
    service, acme, *, places_differ: bool
) -> None:
    """What wakes its listener is no word to the client: it is told how many jobs are before it,
    and not what else is known of its place."""
    await service.stop()
    service.heartbeat_s = 0.1
    await service.start()
    job = await started(service, acme)
    moves = 0
    service.jobs.place_by(lambda _: QueuePlace(0, f"build_{moves}" if places_differ else None))

    async def others_move() -> None:
        nonlocal moves
        while True:
            moves += 1
            service.jobs.moved([job["id"]])
            await asyncio.sleep(0.01)

    moving = asyncio.create_task(others_move())
    sent = {"Authorization": f"Bearer {service.secret}"}
    async with (
        asyncio.timeout(20),
        service.client.get(job["links"]["stream"], headers=sent) as answer,
    ):
        comments = 0
        async for line in answer.content:
            comments += line.startswith(b":")
            if comments == 3:
                break
    moving.cancel()


async def test_stop_of_the_server_waits_for_no_stream_and_no_poll(service, acme) -> None:
    job = await started(service, acme)
    sent = {"Authorization": f"Bearer {service.secret}"}
    stream = await service.client.get(job["links"]["stream"], headers=sent)
    polling = asyncio.create_task(service.get(f"{job['links']['self']}?wait=60"))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await service.runner.cleanup()
    assert time.monotonic() - began < 30
    assert (await polling).data["status"] == "queued"
    assert (await stream.read()).startswith(b"id: ")


async def test_client_that_leaves_its_stream_is_forgotten(service, acme) -> None:
    await service.stop()
    service.heartbeat_s = 0.02
    await service.start()
    job = await started(service, acme)
    sent = {"Authorization": f"Bearer {service.secret}"}
    for _ in range(5):
        answer = await service.client.get(job["links"]["stream"], headers=sent)
        await answer.content.readline()
        answer.close()
    async with asyncio.timeout(20):
        while service.api.open_ends._tasks:
            await asyncio.sleep(0.01)


async def test_cancel_ends_a_queued_or_running_job_for_good(service, acme) -> None:
    queued = await started(service, acme)
    heard = await service.post(f"{queued['links']['self']}/cancel")
    assert (heard.status, heard.data["status"]) == (200, "canceled")
    running = await started(service, acme)
    lease = await service.builds.lease("slot-0", 5)
    assert lease.job_id == running["id"]
    await service.post(f"{running['links']['self']}/cancel")
    assert service.builds.leases.heartbeat(lease.job_id, Heartbeat("slot-0")).canceled
    await service.builds.finish(lease.job_id, DONE)
    for job in (queued, running):
        assert (await service.get(job["links"]["self"])).data["status"] == "canceled"
        build = f"{acme.production}/builds/{job['resource']['id']}"
        assert (await service.get(build)).data["status"] == "canceled"
        assert events_of((await service.get(job["links"]["stream"])).raw)[-1]["event"] == "end"


async def test_cancel_of_a_job_that_is_over_leaves_it_as_it_is(service, acme) -> None:
    job = await started(service, acme)
    await service.build()
    heard = await service.post(f"{job['links']['self']}/cancel")
    assert (heard.status, heard.data["status"]) == (200, "succeeded")
    heard = await service.post("/v1/jobs/job_00000000000000000000000000/cancel")
    assert (heard.status, heard.code) == (404, "job.not_found")


async def test_place_in_the_queue_is_told_by_the_job_its_list_its_wait_and_its_stream(
    service, acme
) -> None:
    def body(number: int) -> dict[str, object]:
        return {"ref": "main", "clean": True, "deploy": bool(number)}

    made = [(await service.post(f"{acme.production}/builds", body(n))).data for n in range(3)]
    assert [job["queue_position"] for job in made] == [1, 2, 3]
    listed = (await service.get("/v1/jobs")).data
    assert [job["queue_position"] for job in listed] == [3, 2, 1]
    last = made[2]["links"]["self"]
    before = await service.get(last)
    streaming = asyncio.create_task(service.get(f"{last}/stream"))
    waiting = asyncio.create_task(
        service.get(f"{last}?wait=30", headers={"If-None-Match": before.headers["ETag"]})
    )
    await service.build()
    moved = await waiting
    assert (moved.status, moved.data["queue_position"], moved.data["status"]) == (200, 2, "queued")
    assert moved.headers["ETag"] != before.headers["ETag"]
    assert (await service.get("/v1/jobs")).data[0]["queue_position"] == 2
    await service.build()
    await service.build()
    done = (await service.get(last)).data
    assert (done["status"], done["queue_position"]) == ("succeeded", None)
    events = events_of((await streaming).raw)
    places = [json.loads(e["data"])["queue_position"] for e in events if e["event"] == "job"]
    moves = [place for place in places if place is not None]
    assert moves[-1] == 1
    assert moves == sorted(set(moves), reverse=True), "each once"
    assert [int(e["id"]) for e in events[:-1]] == sorted(int(e["id"]) for e in events[:-1])


async def test_stream_says_where_a_queued_job_stands_with_its_state(service, acme) -> None:
    job = await started(service, acme)
    sent = {"Authorization": f"Bearer {service.secret}"}
    async with service.client.get(job["links"]["stream"], headers=sent) as answer:
        (event,) = events_of(await answer.content.readuntil(b"\n\n"))
    assert json.loads(event["data"]) == job
    assert job["queue_position"] == 1


async def test_log_as_text_resumes_at_any_byte_without_a_gap_or_a_repeat(service, acme) -> None:
    job = await started(service, acme)
    path = f"{acme.production}/builds/{job['resource']['id']}/log"
    empty = await service.get(path)
    assert (empty.raw, empty.headers["X-Log-Next-Offset"]) == (b"", "0")
    assert empty.headers["X-Log-Complete"] == "false"
    await service.build("one", "zw\u00f6lf", "", "three")
    whole = await service.get(path)
    assert whole.raw.startswith("one\nzw\u00f6lf\n\nthree\n".encode())
    size = len(whole.raw)
    for offset in range(size + 1):
        for query in (f"offset={offset}", f"offset={offset}&follow=1"):
            rest = await service.get(f"{path}?{query}")
            assert (rest.status, rest.raw) == (200, whole.raw[offset:]), query
            assert rest.headers["X-Log-Offset"] == str(offset)
    assert rest.headers.get("X-Log-Next-Offset") is None, "of what goes on nobody knows"
    assert whole.headers["X-Log-Next-Offset"] == str(size)
    assert whole.headers["X-Log-Complete"] == "true"
    heard = await service.get(f"{path}?offset={size + 1}")
    assert (heard.status, heard.code) == (400, "log.offset_invalid")
    heard = await service.get(f"{path}?offset=-1")
    assert (heard.status, heard.body["error"]["param"]) == (400, "offset")
    head = await service.call("HEAD", f"{path}?offset=3")
    assert head.headers["Content-Length"] == str(size - 3)


@pytest.mark.parametrize("ended_by", ["server", "revocation", "expiry"])
async def test_log_that_is_followed_to_no_end_does_not_look_whole(
    service, acme, clock, ended_by: str
) -> None:
    """A log whose job goes on is not closed as one that is complete."""
    await service.stop()
    service.heartbeat_s = 0.05
    await service.start()
    job = await started(service, acme)
    lease = await service.builds.lease("slot-0", 5)
    service.builds.take_log(lease.job_id, LogBatch(0, (BatchLine("one", AT, "build"),)))
    secret, key = service.minted("deployments:read", ttl_ms=60_000)
    path = f"{acme.production}/builds/{job['resource']['id']}/log?follow=1"
    headers = {"Authorization": f"Bearer {secret}"}
    async with ClientSession(service.url) as client, client.get(path, headers=headers) as answer:
        assert await answer.content.readexactly(4) == b"one\n"
        if ended_by == "server":
            await service.stop()
        elif ended_by == "revocation":
            service.records.write(lambda db: api_keys.revoke(db, key.id, clock()))
        else:
            clock.now += 60_000
        with pytest.raises(ClientPayloadError):
            await asyncio.wait_for(answer.read(), 20)
    if ended_by == "server":
        await service.start()


@pytest.mark.parametrize("ended_by", ["revocation", "expiry"])
async def test_key_that_ends_takes_its_streams_and_long_polls_with_it(
    service, acme, clock, ended_by: str
) -> None:
    await service.stop()
    service.heartbeat_s = 0.05
    await service.start()
    job = await started(service, acme)
    secret, key = service.minted("jobs:read", ttl_ms=60_000)
    sent = {"Authorization": f"Bearer {secret}"}
    path = job["links"]["self"]
    etag = (await service.get(path)).headers["ETag"]
    async with service.client.get(f"{path}/stream", headers=sent) as answer:
        begun = await answer.content.readuntil(b"\n\n")
        polling = asyncio.create_task(
            service.get(f"{path}?wait=60", secret=secret, headers={"If-None-Match": etag})
        )
        while len(service.jobs._waiting.get(job["id"], ())) < 2:
            await asyncio.sleep(0.01)
        if ended_by == "revocation":
            service.records.write(lambda db: api_keys.revoke(db, key.id, clock()))
        else:
            clock.now += 60_000
        rest = await asyncio.wait_for(answer.read(), 20)
    lease = await service.builds.lease("slot-0", 5)
    assert lease is not None
    heard = await asyncio.wait_for(polling, 20)
    assert (heard.status, heard.code) == (401, "authentication.invalid_key")
    events = events_of(begun + rest)
    assert [event["event"] for event in events] == ["job"] * len(events)
    again = await service.get(f"{path}/stream", secret=secret)
    assert (again.status, again.code) == (401, "authentication.invalid_key")


async def test_text_that_was_broken_off_goes_on_after_a_restart_of_the_server(
    service, acme
) -> None:
    job = await started(service, acme)
    path = f"{acme.production}/builds/{job['resource']['id']}/log"
    lease = await service.builds.lease("slot-0", 5)

    def say(first: int, *lines: str) -> None:
        batch = LogBatch(first, tuple(BatchLine(line, AT, "build") for line in lines))
        service.builds.take_log(lease.job_id, batch)

    say(0, "one", "two")
    headers = {"Authorization": f"Bearer {service.secret}"}
    async with service.client.get(f"{path}?follow=1", headers=headers) as answer:
        got = await answer.content.readexactly(8)
        await service.stop()
    assert got == b"one\ntwo\n"
    await service.start()
    service.builds.recover()
    say(2, "three")
    following = asyncio.create_task(service.get(f"{path}?follow=1&offset={len(got)}"))
    say(3, "four")
    await service.builds.finish(lease.job_id, DONE)
    rest = (await following).raw.decode().splitlines()
    assert rest[:3] == ["gitd was restarted; waiting for the builder", "three", "four"]


async def test_log_that_is_not_kept_any_more_says_so(service, acme) -> None:
    job = await started(service, acme)
    await service.build("one")
    service.jobs.joblogs.remove(job["id"])
    path = f"{acme.production}/builds/{job['resource']['id']}/log"
    for query in ("", "?follow=1"):
        assert (await service.get(path + query)).raw.decode() == f"{REMOVED}\n"
    events = events_of((await service.get(job["links"]["stream"])).raw)
    assert [event["event"] for event in events] == ["log", "job", "end"]
    assert json.loads(events[1]["data"])["status"] == "succeeded"
