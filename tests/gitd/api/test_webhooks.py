"""Webhooks. Contract §5 "Webhooks"."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json

import pytest
from aiohttp import web

from gitd.api.webhook_bodies import render
from hooks.builds.wire import BuildError
from hooks.log_retention import LogLimits, LogRetention
from hooks.webhooks import PAUSES_S, Messenger, signature
from storage.ids import is_id
from storage.model import EventType
from storage.records import webhooks
from storage.sealing import Vault

HOOKS = "/v1/webhooks"


class Receiver:
    """Takes what it is sent, or answers with the statuses that it is given first."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.news = asyncio.Condition()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/hook"

    async def _take(self, request: web.Request) -> web.Response:
        async with self.news:
            self.heard.append((dict(request.headers), await request.read()))
            self.news.notify_all()
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def count(self, wanted: int) -> list[dict]:
        """The bodies, when so many have come."""
        async with asyncio.timeout(20), self.news:
            await self.news.wait_for(lambda: len(self.heard) >= wanted)
        return [json.loads(body) for _, body in self.heard]


@pytest.fixture
async def receiver():
    made = Receiver()
    await made.start()
    yield made
    await made.runner.cleanup()


@contextlib.asynccontextmanager
async def sending(messenger: Messenger):
    task = asyncio.create_task(messenger.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def made(service, receiver, **body) -> dict:
    heard = await service.post(HOOKS, {"url": receiver.url, **body})
    assert heard.status == 201, heard.raw
    return heard.data


async def until_over(service, webhook: dict, count: int) -> list[dict]:
    """Its deliveries, oldest first, once so many are over."""
    async with asyncio.timeout(20):
        while True:
            listed = (await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data
            if sum(each["next_attempt_at"] is None for each in listed) >= count:
                return listed[::-1]
            await asyncio.sleep(0.01)


async def until_tried(service, webhook: dict, count: int = 1) -> dict:
    """Its one delivery, once it is written down that it was tried so often."""
    async with asyncio.timeout(20):
        while True:
            listed = (await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data
            if listed and listed[0]["attempts"] >= count:
                (seen,) = listed
                return seen
            await asyncio.sleep(0.01)


async def test_turn_that_fails_ends_no_sending(service, acme, receiver) -> None:
    await made(service, receiver)
    async with sending(service.messenger):
        right, asked = service.jobs.clock, asyncio.Event()

        def fail() -> int:
            asked.set()
            raise ArithmeticError

        service.jobs.clock = fail
        service.messenger.hurry()
        await asyncio.wait_for(asked.wait(), 20)
        await asyncio.sleep(0.01)
        service.jobs.clock = right
        await acme.release(b"one")
        assert await receiver.count(1)


async def test_turn_that_failed_is_taken_again_though_nothing_new_comes(
    service, acme, receiver
) -> None:
    await made(service, receiver)
    await acme.release(b"one")
    right, asked = service.jobs.clock, asyncio.Event()

    def fail() -> int:
        asked.set()
        raise ArithmeticError

    service.jobs.clock = fail
    async with sending(service.messenger):
        await asyncio.wait_for(asked.wait(), 20)
        service.jobs.clock = right
        assert await receiver.count(1)


async def test_build_and_roll_are_told_signed_with_the_secret_that_was_shown(
    service, acme, receiver
) -> None:
    webhook = await made(service, receiver)
    async with sending(service.messenger):
        release = await acme.release(b"one")
        bodies = await receiver.count(4)
        deliveries = await until_over(service, webhook, 4)
    assert webhook["secret"].startswith("whsec_")
    for headers, body in receiver.heard:
        t, _, v1 = headers["Forge-Signature"].partition(",")
        signed = f"{t.removeprefix('t=')}.".encode() + body
        mac = hmac.new(webhook["secret"].encode(), signed, hashlib.sha256).hexdigest()
        assert v1 == f"v1={mac}"
        assert int(t.removeprefix("t=")) == service.clock.now // 1000
        assert headers["Content-Type"] == "application/json"
    by_type = {body["type"]: body for body in bodies}
    assert by_type.keys() == {"build.succeeded", "site.deployed", "job.succeeded"}
    build = by_type["build.succeeded"]
    assert set(build) == {"id", "type", "created_at", "api_version", "data", "request_id"}
    assert is_id(build["id"], "evt")
    assert build["api_version"] == "2026-06-23"
    assert build["data"] == (await service.get(f"{acme.production}/builds")).data[0]
    assert by_type["site.deployed"]["data"]["release_id"] == release["id"]
    jobs = [body["data"] for body in bodies if body["type"] == "job.succeeded"]
    assert {job["type"] for job in jobs} == {"build.run", "deployment.roll"}
    assert len({body["id"] for body in bodies}) == 4
    assert {each["status"] for each in deliveries} == {"succeeded"}
    assert {each["event_id"] for each in deliveries} == {body["id"] for body in bodies}


async def test_failed_build_and_roll_are_told_and_what_is_canceled_is_not(
    service, acme, receiver
) -> None:
    await made(service, receiver, events=["build.failed", "deployment.failed", "site.deployed"])
    job = (await service.post(f"{acme.production}/builds", {"clean": True})).data
    await service.post(f"/v1/jobs/{job['id']}/cancel")
    await service.post(f"{acme.production}/builds", {"deploy": True})
    async with sending(service.messenger):
        await service.build(error=BuildError("build.command_failed", "no", 3))
        bodies = await receiver.count(1)
    assert [body["type"] for body in bodies] == ["build.failed"]
    assert bodies[0]["data"]["error"]["exit_status"] == 3


async def test_secret_is_shown_once_and_rolled(service, acme, receiver) -> None:
    webhook = await made(service, receiver, events=["job.succeeded"])
    for path in (HOOKS, f"{HOOKS}/{webhook['id']}"):
        heard = await service.get(path)
        assert b'"secret"' not in heard.raw
        assert webhook["secret"].encode() not in heard.raw
    rolled = (await service.post(f"{HOOKS}/{webhook['id']}/roll")).data
    assert rolled["secret"] != webhook["secret"]
    async with sending(service.messenger):
        await service.post(f"{acme.production}/builds")
        await service.build()
        await receiver.count(1)
    headers, body = receiver.heard[0]
    at_s = service.clock.now // 1000
    assert headers["Forge-Signature"] == signature(rolled["secret"], at_s, body)


async def test_what_is_not_taken_is_tried_again_later(service, acme, receiver) -> None:
    receiver.answers = [500, 302]
    webhook = await made(service, receiver, events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    async with sending(service.messenger):
        await service.build()
        for number in range(3):
            seen = await until_tried(service, webhook, number + 1)
            if number < 2:
                assert (seen["status"], seen["attempts"]) == ("queued", number + 1)
                assert seen["response_status"] == (500, 302)[number]
                service.clock.now += 1000 * PAUSES_S[number]
                service.messenger.hurry()
        (done,) = await until_over(service, webhook, 1)
    assert (done["status"], done["attempts"], done["error"]) == ("succeeded", 3, None)
    assert len({body for _, body in receiver.heard}) == 1


async def test_delivery_whose_outcome_cannot_be_noted_is_sent_once(
    service, acme, receiver, monkeypatch
) -> None:
    """A disk that is full takes no note for hours, and receivers would hear of it each minute."""
    monkeypatch.setattr("hooks.webhooks.LOOK_EVERY_S", 0.01)
    webhook = await made(service, receiver, events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    refuse = (
        "CREATE TRIGGER full BEFORE UPDATE ON webhook_delivery"
        " BEGIN SELECT RAISE(ABORT, 'there is no room'); END"
    )
    service.records.write(lambda db: db.execute(refuse))
    async with sending(service.messenger):
        await service.build()
        await receiver.count(1)
        await asyncio.sleep(0.5)
        service.records.write(lambda db: db.execute("DROP TRIGGER full"))
        (done,) = await until_over(service, webhook, 1)
    assert (done["status"], done["attempts"]) == ("succeeded", 1)
    assert len(receiver.heard) == 1


async def test_delivery_is_not_put_off_for_ever_when_the_clock_is_set_back(
    service, acme, receiver
) -> None:
    receiver.answers = [500]
    webhook = await made(service, receiver, events=["build.succeeded"])
    async with sending(service.messenger):
        service.clock.now += 24 * 3600 * 1000
        await service.post(f"{acme.production}/builds")
        await service.build()
        await until_tried(service, webhook)
        service.clock.now -= 24 * 3600 * 1000
        service.messenger.hurry()
        (done,) = await until_over(service, webhook, 1)
    assert (done["status"], done["attempts"]) == ("succeeded", 2)


async def test_event_of_before_a_crash_is_told_after_it(service, acme, receiver) -> None:
    await made(service, receiver, events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    await service.build()
    await service.restart()
    async with sending(service.messenger):
        (body,) = await receiver.count(1)
    assert body["type"] == "build.succeeded"


async def test_delivery_is_sent_again_when_that_is_asked_for(service, acme, receiver) -> None:
    webhook = await made(service, receiver, events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    async with sending(service.messenger):
        await service.build()
        (first,) = await until_over(service, webhook, 1)
        path = f"{HOOKS}/{webhook['id']}/deliveries/{first['id']}/redeliver"
        again = await service.post(path)
        assert again.status == 201
        await until_over(service, webhook, 2)
    assert again.data["id"] != first["id"]
    assert again.data["event_id"] == first["event_id"]
    (_, one), (_, two) = receiver.heard
    assert one == two
    missing = path.replace(first["id"], "whd_00000000000000000000000000")
    assert (await service.post(missing)).code == "delivery.not_found"


async def test_webhook_of_a_site_hears_of_no_other_and_one_that_is_off_of_nothing(
    service, acme, receiver
) -> None:
    await service.post("/v1/sites", {"name": "other"})
    other = await made(service, receiver, site_id="other")
    off = await made(service, receiver)
    heard = await service.call("PATCH", f"{HOOKS}/{off['id']}", {"enabled": False})
    assert heard.data["enabled"] is False
    ours = await made(service, receiver, site_id="acme-store", events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    async with sending(service.messenger):
        await service.build()
        await until_over(service, ours, 1)
    for webhook in (other, off):
        assert (await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data == []


async def test_site_that_a_script_left_empty_makes_no_webhook_of_all_sites(
    service, acme, receiver
) -> None:
    heard = await service.post(HOOKS, {"url": receiver.url, "site_id": ""})
    assert heard.code == "site.not_found"


async def test_webhook_that_is_turned_off_gives_up_what_waits(service, acme, receiver) -> None:
    receiver.answers = [500]
    webhook = await made(service, receiver, events=["build.succeeded"])
    await service.post(f"{acme.production}/builds")
    async with sending(service.messenger):
        await service.build()
        await receiver.count(1)
        await service.call("PATCH", f"{HOOKS}/{webhook['id']}", {"enabled": False})
        (seen,) = await until_over(service, webhook, 1)
        assert (seen["status"], seen["error"]) == ("failed", "The webhook was turned off.")
        service.clock.now += 1000 * PAUSES_S[0]
        service.messenger.hurry()
        await asyncio.sleep(0.1)
    assert len(receiver.heard) == 1


async def test_webhook_that_hangs_holds_up_no_other(service, acme, receiver) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has had enough
        writer.close()

    hangs = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = hangs.sockets[0].getsockname()[1]
    for number in range(3):
        await made(service, receiver, url=f"http://127.0.0.1:{port}/{number}")
    await made(service, receiver)
    for _ in range(5):
        await service.post(f"{acme.production}/builds", {"clean": True})
    async with sending(service.messenger):
        for _ in range(5):
            await service.build()
        await receiver.count(10)
    hangs.close()
    await hangs.wait_closed()


async def test_deliveries_are_forgotten_when_they_were_over_for_long(
    service, acme, receiver
) -> None:
    webhook = await made(service, receiver, events=["build.succeeded"])
    day_ms = 24 * 3600 * 1000

    async def left() -> int:
        hours = iter(range(100))
        kept = LogRetention(service.jobs, LogLimits(), monotonic=lambda: 3600.0 * next(hours))
        for _ in range(26):
            kept.forget()
        return len((await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data)

    await service.post(f"{acme.production}/builds")
    async with sending(service.messenger):
        await service.build()
        await until_over(service, webhook, 1)
    service.clock.now += 29 * day_ms
    assert await left() == 1
    service.clock.now += 2 * day_ms
    assert await left() == 0


async def test_event_that_cannot_be_told_holds_up_no_other(
    service, acme, receiver, tmp_path
) -> None:
    await made(service, receiver, events=["build.succeeded"])
    for _ in range(2):
        await service.post(f"{acme.production}/builds", {"clean": True})
        await service.build()
    first, second = webhooks.events(service.records.reader(), 10)

    def failing(db, event, *more):
        if event.id == first.id:
            raise KeyError("a mistake of ours")
        return render(db, event, *more)

    vault = Vault.open(tmp_path / "keys", may_create=False)
    async with sending(Messenger(service.jobs, vault, failing, may_be_private=True)):
        (body,) = await receiver.count(1)
    assert body["id"] == second.id
    assert webhooks.events(service.records.reader(), 10) == []


async def test_nothing_is_noted_where_nobody_listens(service, acme) -> None:
    await acme.release(b"one")
    assert webhooks.events(service.records.reader(), 10) == []


async def test_private_addresses_are_refused_unless_they_are_allowed(
    service, acme, receiver, tmp_path
) -> None:
    vault = Vault.open(tmp_path / "keys", may_create=False)
    strict = Messenger(service.jobs, vault, render, may_be_private=False)
    port = receiver.url.split(":")[2]
    urls = [receiver.url, f"http://localhost:{port}", "http://[::ffff:127.0.0.1]:1/"]
    hooks = [await made(service, receiver, url=url, events=["build.succeeded"]) for url in urls]
    await service.post(f"{acme.production}/builds")
    await service.build()
    async with sending(strict):
        async with asyncio.timeout(20):
            for webhook in hooks:
                seen: list[dict] = []
                while not seen or not seen[0]["attempts"]:
                    await asyncio.sleep(0.01)
                    seen = (await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data
                assert "public address" in seen[0]["error"], webhook["url"]
    assert receiver.heard == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://%"}, "url"),
        ({"url": "https://me:secret@example.com/"}, "url"),
        ({"url": "https://example.com:x/"}, "url"),
        ({"url": "https://example.com/ x"}, "url"),
        ({"url": "https://example.com/" + "x" * 2048}, "url"),
        ({"url": "https://example.com/", "events": []}, "events"),
        ({"url": "https://example.com/", "events": ["site.created"]}, "events[0]"),
        ({"url": "https://example.com/", "secret": "x"}, "secret"),
    ],
)
async def test_webhook_that_cannot_be_names_the_field(service, body, param) -> None:
    heard = await service.post(HOOKS, body)
    assert (heard.status, heard.code) == (400, "request.invalid")
    assert heard.body["error"]["param"].startswith(param)


async def test_keys_see_the_webhooks_of_their_site_and_need_their_scopes(
    service, acme, receiver
) -> None:
    everywhere = await made(service, receiver)
    bound = service.key("webhooks:write", site_id=acme.id)
    heard = await service.post(HOOKS, {"url": receiver.url}, secret=bound)
    assert heard.data["site_id"] == acme.id
    assert [each["id"] for each in (await service.get(HOOKS, secret=bound)).data] == [
        heard.data["id"]
    ]
    for method, part in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/deliveries")):
        path = f"{HOOKS}/{everywhere['id']}{part}"
        assert (await service.call(method, path, secret=bound)).code == "webhook.not_found"
    narrow = service.key("webhooks:write", site_id=acme.id, env_id=await acme.env_id("staging"))
    assert (await service.get(HOOKS, secret=narrow)).code == "permission.key_bound"
    reader = service.key("webhooks:read")
    assert (await service.get(HOOKS, secret=reader)).status == 200
    heard = await service.post(HOOKS, {"url": receiver.url}, secret=reader)
    assert (heard.status, heard.code) == (403, "scope.insufficient")


async def test_deleted_webhook_is_told_nothing_more(service, acme, receiver) -> None:
    webhook = await made(service, receiver)
    await service.post(f"{acme.production}/builds")
    await service.build()
    path = f"{HOOKS}/{webhook['id']}"
    heard = await service.call("DELETE", path)
    assert heard.data == {"id": webhook["id"], "deleted": True}
    assert (await service.get(path)).code == "webhook.not_found"
    async with sending(service.messenger):
        await asyncio.sleep(0.2)
    assert receiver.heard == []


async def test_webhook_whose_secret_does_not_open_says_what_to_do(service, acme, receiver) -> None:
    webhook = await made(service, receiver, events=["build.succeeded"])
    row = webhooks.get(service.records.reader(), webhook["id"])
    service.records.write(
        lambda db: db.execute("UPDATE webhook SET sealed = ? WHERE id = ?", (b"x" * 60, row.id))
    )
    await service.post(f"{acme.production}/builds")
    await service.build()
    async with sending(service.messenger), asyncio.timeout(20):
        seen: list[dict] = []
        while not seen or not seen[0]["attempts"]:
            await asyncio.sleep(0.01)
            seen = (await service.get(f"{HOOKS}/{webhook['id']}/deliveries")).data
    assert "roll it" in seen[0]["error"]


def test_events_are_those_of_the_contract() -> None:
    assert {event.value for event in EventType} == {
        "site.deployed",
        "deployment.failed",
        "build.succeeded",
        "build.failed",
        "job.succeeded",
        "job.failed",
    }
