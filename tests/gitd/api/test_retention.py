"""What is listed can be deployed; what has expired says so. From the outside."""

from __future__ import annotations

import json

import pytest

from storage.collect import Collector, Order
from storage.retention import DAY_MS, Retention

KEEP = Retention(releases=2, branch_artifacts=0, recent_ms=0, grace_ms=DAY_MS)


def collect(service, retention: Retention = KEEP) -> None:
    collector = Collector(service.store, service.records, retention, clock=service.clock)
    collector.run(Order(is_hurried=True))


@pytest.fixture
async def history(acme):
    """Three releases of production, the oldest first."""
    return [await acme.release(b"%d" % n) for n in range(3)]


async def test_releases_out_of_the_window_stay_as_history_and_say_so(
    service, acme, history
) -> None:
    collect(service)
    listed = (await service.get(f"{acme.production}/releases")).data
    assert [r["id"] for r in listed] == [r["id"] for r in reversed(history)]
    assert [r["available"] for r in listed] == [True, True, False]
    artifacts = (await service.get(f"{acme.production}/artifacts")).data
    assert [a["id"] for a in artifacts] == [r["artifact_id"] for r in listed[:2]]
    assert [(a["status"], a["pinned"]) for a in artifacts] == [("ready", False)] * 2


@pytest.mark.parametrize("days", [0, 2])
async def test_rollback_out_of_the_window_is_refused_and_names_the_commit(
    service, acme, history, clock, days: int
) -> None:
    collect(service)
    clock.now += days * DAY_MS
    collect(service)
    for named in (history[0]["id"], history[1]["deployment_id"]):
        heard = await service.post(f"{acme.production}/deployments/{named}/rollback")
        assert (heard.status, heard.code) == (409, "release.unavailable")
        assert history[0]["commit"] in heard.body["error"]["message"]
    heard = await service.post(f"{acme.production}/deployments/{history[1]['id']}/rollback")
    assert heard.status == 202


async def test_expired_artifact_is_refused_until_it_is_pinned(service, acme, history) -> None:
    collect(service)
    expired = history[0]["artifact_id"]
    path = f"{acme.production}/artifacts/{expired}"
    shown = (await service.get(path)).data
    assert (shown["status"], shown["pinned"]) == ("expired", False)
    heard = await service.post(f"{acme.production}/deployments", {"artifact_id": expired})
    assert (heard.status, heard.code) == (409, "artifact.expired")
    assert "pin it" in heard.body["error"]["message"]
    for _ in range(2):
        pinned = await service.call("PUT", f"{path}/pin")
        assert (pinned.status, pinned.data["status"], pinned.data["pinned"]) == (200, "ready", True)
    collect(service)
    assert expired in [a["id"] for a in (await service.get(f"{acme.production}/artifacts")).data]
    assert (await service.get(path)).data["pinned"]
    heard = await service.post(f"{acme.production}/deployments/{history[0]['id']}/rollback")
    assert heard.status == 202
    await service.serve(await acme.env_id("production"))
    for _ in range(2):
        unpinned = await service.call("DELETE", f"{path}/pin")
        assert (unpinned.status, unpinned.data["pinned"]) == (200, False)
    collect(service)
    assert (await service.get(path)).data["status"] == "ready"  # it runs again


async def test_dropped_artifact_stays_known_and_cannot_be_pinned(
    service, acme, history, clock
) -> None:
    collect(service)
    clock.now += 2 * DAY_MS
    collect(service)
    path = f"{acme.production}/artifacts/{history[0]['artifact_id']}"
    assert (await service.get(path)).data["status"] == "expired"
    for method, what in (("PUT", "/pin"), ("GET", "/manifest"), ("GET", "/export")):
        heard = await service.call(method, path + what)
        assert (heard.status, heard.code) == (409, "artifact.expired")
    statement = await service.get(f"{path}/provenance")
    assert (statement.status, "payload" in json.loads(statement.raw)) == (200, True)


async def test_artifact_that_never_ran_is_not_known_any_more_when_it_is_dropped(
    service, acme, clock
) -> None:
    await service.post(f"{acme.production}/builds")
    await service.build()
    (made,) = (await service.get(f"{acme.production}/artifacts")).data
    await acme.release(b"newer")
    collect(service, Retention(releases=0, branch_artifacts=0, recent_ms=0, grace_ms=0))
    heard = await service.get(f"{acme.production}/artifacts/{made['id']}")
    assert (heard.status, heard.code) == (404, "artifact.not_found")
    (_, build) = (await service.get(f"{acme.production}/builds")).data
    assert build["artifact_id"] == made["id"]


async def test_artifact_that_was_dropped_comes_back_when_it_is_built_again(
    service, acme, history, clock
) -> None:
    collect(service)
    clock.now += 2 * DAY_MS
    collect(service)
    again = await acme.release(b"0")
    assert again["artifact_id"] == history[0]["artifact_id"]
    listed = (await service.get(f"{acme.production}/releases")).data
    assert [r["available"] for r in listed] == [True, True, True, True]
    heard = await service.post(f"{acme.production}/deployments/{history[0]['id']}/rollback")
    assert heard.status == 202


async def test_what_is_queued_is_deployable_whatever_the_collector_does(
    service, acme, history
) -> None:
    collect(service)
    heard = await service.post(f"{acme.production}/deployments/{history[1]['id']}/rollback")
    collect(service, Retention(releases=1, branch_artifacts=0, recent_ms=0, grace_ms=0))
    await service.serve(await acme.env_id("production"))
    job = await service.get(heard.headers["Location"])
    assert job.data["status"] == "succeeded"
    assert (await service.get(f"{acme.production}/artifacts")).data


async def test_pins_need_a_key_of_the_whole_site_that_may_write(service, acme, history) -> None:
    path = f"{acme.production}/artifacts/{history[0]['artifact_id']}/pin"
    reader = service.key("deployments:read")
    bound = service.key(
        "deployments:write", site_id=acme.id, env_id=await acme.env_id("production")
    )
    for method in ("PUT", "DELETE"):
        heard = await service.call(method, path, secret=reader)
        assert (heard.status, heard.code) == (403, "scope.insufficient")
        heard = await service.call(method, path, secret=bound)
        assert (heard.status, heard.code) == (403, "permission.key_bound")
    heard = await service.call("PUT", f"{acme.production}/artifacts/art_absent/pin")
    assert (heard.status, heard.code) == (404, "artifact.not_found")
