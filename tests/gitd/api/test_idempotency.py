"""Contract §2 "Idempotency": the same key never runs the work twice."""

from __future__ import annotations

import asyncio

import pytest

from hooks.builds.wire import BuildError
from hooks.webhooks import Told, delivery_of
from storage.model import EventType
from storage.records import webhooks

DAY_MS = 24 * 60 * 60 * 1000


def with_key(key: str = "k1") -> dict[str, dict[str, str]]:
    return {"headers": {"Idempotency-Key": key}}


async def test_hundred_parallel_requests_with_one_key_make_one_job(service, acme) -> None:
    builds = f"{acme.production}/builds"
    heard = await asyncio.gather(
        *(service.post(builds, {"ref": "main"}, **with_key()) for _ in range(100))
    )
    assert {h.status for h in heard} == {202}
    assert len({h.data["id"] for h in heard}) == 1
    assert sum("Idempotent-Replayed" not in h.headers for h in heard) == 1
    assert len((await service.get("/v1/jobs")).data) == 1


async def test_replay_shows_the_job_as_it_is_now_even_a_failed_one(service, acme) -> None:
    builds = f"{acme.production}/builds"
    first = await service.post(builds, **with_key())
    assert "Idempotent-Replayed" not in first.headers
    await service.build(error=BuildError("build.command_failed", "make ended with 2", 2))
    again = await service.post(builds, **with_key())
    assert again.status == 202
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert (again.data["id"], again.data["status"]) == (first.data["id"], "failed")
    assert again.body["request_id"] != first.body["request_id"]


async def test_key_with_another_request_is_400(service, acme) -> None:
    builds = f"{acme.production}/builds"
    await service.post(builds, {"ref": "main"}, **with_key())
    for path, body in (
        (builds, {"ref": "main", "clean": True}),
        (builds, {"ref": "staging"}),
        (builds, None),
        (f"{acme.staging}/builds", {"ref": "main"}),
        ("/v1/sites", {"name": "other"}),
        (f"{acme.path}/environments", {"kind": "preview", "branch": "x"}),
    ):
        heard = await service.post(path, body, **with_key())
        assert heard.status == 400, (path, body)
        assert heard.code == "idempotency.key_reused"
    assert len((await service.get("/v1/jobs")).data) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"ref": "main", "clean": False, "deploy": False},
        {"deploy": False, "clean": False, "ref": "main"},
        {"ref": "main", "clean": False},
    ],
)
async def test_same_request_spelled_otherwise_is_the_same(service, acme, body) -> None:
    first = await service.post(f"{acme.production}/builds", {"ref": "main"}, **with_key())
    by_id = f"/v1/sites/{acme.id}/environments/{await acme.env_id('production')}/builds"
    again = await service.post(by_id, body, **with_key())
    assert again.data["id"] == first.data["id"]
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_keys_of_two_owners_have_nothing_to_do_with_each_other(service, acme) -> None:
    body = {"clean": True}  # never taken for a build that is on its way
    first = await service.post(f"{acme.production}/builds", body, **with_key())
    other = service.key("deployments:write")
    second = await service.post(f"{acme.production}/builds", body, secret=other, **with_key())
    assert first.data["id"] != second.data["id"]


async def test_key_is_kept_across_a_restart_and_for_24_hours(service, acme, clock) -> None:
    builds, body = f"{acme.production}/builds", {"clean": True}
    first = await service.post(builds, body, **with_key())
    await service.restart()
    clock.now += DAY_MS - 1
    assert (await service.post(builds, body, **with_key())).data["id"] == first.data["id"]
    clock.now += 1
    fresh = await service.post(builds, body, **with_key())
    assert fresh.data["id"] != first.data["id"]
    assert "Idempotent-Replayed" not in fresh.headers


async def test_race_across_a_restart_makes_one_job(service, acme) -> None:
    builds = f"{acme.production}/builds"
    await asyncio.gather(*(service.post(builds, **with_key()) for _ in range(10)))
    await service.restart()
    await asyncio.gather(*(service.post(builds, **with_key()) for _ in range(10)))
    assert len((await service.get("/v1/jobs")).data) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "a\tb"])
async def test_key_that_cannot_be_one_is_400(service, acme, key: str) -> None:
    heard = await service.post(f"{acme.production}/builds", **with_key(key))
    assert (heard.status, heard.code) == (400, "idempotency.key_invalid")
    assert (await service.get("/v1/jobs")).data == []


async def test_key_of_255_characters_is_fine(service, acme) -> None:
    assert (await service.post(f"{acme.production}/builds", **with_key("x" * 255))).status == 202


async def test_refusal_is_not_kept(service, acme) -> None:
    promote = f"{acme.staging}/promote"
    heard = await service.post(promote, {"to_env": "production"}, **with_key())
    assert heard.status == 409
    await acme.release(b"one", "staging")
    heard = await service.post(promote, {"to_env": "production"}, **with_key())
    assert heard.status == 202


async def test_every_creating_post_takes_a_key(service, acme) -> None:
    release = await acme.release(b"one")
    second = await acme.release(b"two")
    await acme.release(b"three", "staging")
    service.secret, key = service.minted("*", "keys:write")
    hooks = "/v1/webhooks"
    hook = {"url": "http://127.0.0.1:1/"}
    webhook = (await service.post(hooks, hook)).data["id"]
    sent = delivery_of(webhook, Told("evt_1", EventType.JOB_FAILED, b"{}"), service.clock.now)
    service.records.write(lambda db: webhooks.add_delivery(db, sent))
    posts = (
        (hooks, hook),
        (f"{hooks}/{webhook}/roll", None),
        (f"{hooks}/{webhook}/deliveries/{sent.id}/redeliver", None),
        ("/v1/api-keys", {"label": "ci", "scopes": ["jobs:read"]}),
        (f"/v1/api-keys/{key.id}/roll", None),
        ("/v1/sites", {"name": "other"}),
        (f"{acme.path}/environments", {"kind": "preview", "branch": "x"}),
        (f"{acme.production}/domains", {"hostname": "www.example.com"}),
        (f"{acme.production}/builds", None),
        (f"{acme.production}/deployments", {"artifact_id": release["artifact_id"]}),
        (f"{acme.production}/deployments/{second['deployment_id']}/rollback", None),
        (f"{acme.staging}/restart", None),
        (f"{acme.staging}/promote", {"to_env": "production"}),
    )
    for number, (path, body) in enumerate(posts):
        first = await service.post(path, body, **with_key(f"key {number}"))
        again = await service.post(path, body, **with_key(f"key {number}"))
        assert first.status in (200, 201, 202), first.raw
        assert again.status == first.status
        assert again.data["id"] == first.data["id"]
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.headers.get("Location") == first.headers.get("Location")
    creating = {e.path for e in service.api.endpoints if e.is_creating}
    assert len(creating) == len(posts)
