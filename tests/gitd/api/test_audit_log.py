"""The audit log. Contract §5 "Audit log"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3

from hooks.log_retention import LogLimits, LogRetention
from storage.audit_chain import check_lines, in_order
from storage.ids import is_id
from storage.model import Action

ROOT = Path(__file__).parents[3]
LOG = "/v1/audit-log"


async def actions(service, **more) -> list[str]:
    return [entry["action"] for entry in await service.every(LOG, **more)]


async def test_change_has_who_what_when_from_where_and_its_request(service) -> None:
    secret, key = service.minted("*", label="ci")
    made = await service.post("/v1/sites", {"name": "shop"}, secret=secret)
    entry = (await service.get(LOG)).data[0]
    assert is_id(entry.pop("id"), "evt")
    place = [entry.pop(name) for name in ("sequence", "previous", "digest")]
    assert place[:2] == [1, f"blake3:{'0' * 64}"]
    assert entry == {
        "created_at": made.data["created_at"],
        "actor": {"type": "api_key", "id": key.id, "label": "ci"},
        "action": "site.created",
        "target": made.data["id"],
        "site_id": made.data["id"],
        "env_id": None,
        "address": "127.0.0.1",
        "request_id": made.body["request_id"],
    }


async def test_digest_of_a_line_is_found_by_the_recipe_of_the_docs(service) -> None:
    """By whoever checks an export with other means than ours."""
    await service.post("/v1/sites", {"name": "shop"}, secret=service.minted("*", label="Zoë")[0])
    (line,) = (await service.get(LOG)).data
    digest = line.pop("digest")
    text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert "Zoë" in text
    assert digest == f"blake3:{blake3(text.encode()).hexdigest()}"


async def test_every_kind_of_change_stands_in_it(service, acme) -> None:
    service.secret = service.key("*", "keys:write", "credentials:write", "credentials:read")
    preview = f"{acme.path}/environments/topic"
    keys = "/v1/api-keys"
    value = {"value": "abcdefgh"}
    await service.post(f"{acme.path}/environments", {"kind": "preview", "branch": "topic"})
    key = (await service.post(keys, {"label": "x", "scopes": ["jobs:read"]})).data["id"]
    job = (await service.post(f"{acme.production}/builds")).data["id"]
    routes = {"routes": [{"pattern": "*", "target": "preview"}]}
    for method, path, body in (
        ("PATCH", acme.path, {"when_pushed_again": "all"}),
        ("PATCH", acme.production, {"when_pushed_again": "all"}),
        ("PUT", f"{acme.path}/branch-routes", routes),
        ("PUT", f"{acme.path}/variables/A", value),
        ("DELETE", f"{acme.path}/variables/A", None),
        ("PUT", f"{acme.staging}/secrets/B", value),
        ("DELETE", f"{acme.staging}/secrets/B", None),
        ("POST", f"/v1/jobs/{job}/cancel", None),
        ("POST", f"{preview}/renew", None),
        ("POST", f"{preview}/suspend", None),
        ("POST", f"{preview}/resume", None),
        ("DELETE", preview, None),
        ("PATCH", f"{keys}/{key}", {"label": "y"}),
        ("POST", f"{keys}/{key}/roll", None),
        ("DELETE", f"{keys}/{key}", None),
    ):
        heard = await service.call(method, path, body)
        assert heard.status == 200, heard.raw
    release = await acme.release(b"one")
    pin = f"{acme.production}/artifacts/{release['artifact_id']}/pin"
    for method in ("PUT", "DELETE"):
        assert (await service.call(method, pin)).status == 200
    await service.call("DELETE", acme.path)
    assert (await actions(service))[::-1] == [
        "site.created",
        "environment.created",
        "api_key.created",
        "build.queued",
        "site.changed",
        "environment.changed",
        "routes.replaced",
        "variable.set",
        "variable.deleted",
        "secret.set",
        "secret.deleted",
        "job.canceled",
        "environment.renewed",
        "environment.suspended",
        "environment.resumed",
        "environment.deleted",
        "api_key.changed",
        "api_key.rolled",
        "api_key.revoked",
        "build.queued",
        "deployment.queued",
        "release.made",
        "artifact.pinned",
        "artifact.unpinned",
        "environment.deleted",
        "environment.deleted",
        "site.deleted",
    ]
    assert b"abcdefgh" not in (await service.get(f"{LOG}?limit=100")).raw
    exported = check_lines(in_order(await service.every(LOG)))
    assert (exported.count, exported.faults) == (27, [])


async def test_work_that_a_suspension_ends_is_canceled(service, acme) -> None:
    job = (await service.post(f"{acme.production}/builds")).data["id"]
    await service.post(f"{acme.production}/suspend")
    entries = {entry["action"]: entry["target"] for entry in await service.every(LOG)}
    assert entries["job.canceled"] == job


def test_every_action_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert [action for action in Action if f"`{action}`" not in page] == []


async def test_what_a_build_queues_is_its_askers_and_of_no_request(service, acme) -> None:
    await acme.release(b"one")
    by_action = {entry["action"]: entry for entry in (await service.get(LOG)).data}
    asked, followed = by_action["build.queued"], by_action["release.made"]
    assert asked["actor"] == followed["actor"]
    assert asked["request_id"] is not None
    assert (followed["address"], followed["request_id"]) == (None, None)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/sites", {"name": "acme-store"}),
        ("POST", "{env}/builds", {"ref": "nowhere"}),
        ("POST", "{env}/promote", {"to_env": "staging"}),
        ("DELETE", "{env}", None),
        ("POST", "{env}/renew", None),
    ],
)
async def test_what_is_refused_is_no_change(service, acme, method, path, body) -> None:
    before = await actions(service)
    heard = await service.call(method, path.replace("{env}", acme.production), body)
    assert heard.status >= 400
    assert await actions(service) == before


async def test_repeated_request_stands_in_it_once(service) -> None:
    headers = {"Idempotency-Key": "one"}
    for _ in range(3):
        await service.post("/v1/sites", {"name": "shop"}, headers=headers)
    assert await actions(service) == ["site.created"]


async def test_bound_key_sees_what_was_changed_there(service, acme) -> None:
    await service.post("/v1/sites", {"name": "other"})
    await service.post(f"{acme.staging}/suspend")
    ours = service.key("sites:admin", site_id=acme.id)
    assert await actions(service, secret=ours) == ["environment.suspended", "site.created"]
    staging = await acme.env_id("staging")
    narrow = service.key("sites:admin", site_id=acme.id, env_id=staging)
    assert await actions(service, secret=narrow) == ["environment.suspended"]
    seen = check_lines(in_order(await service.every(LOG, secret=narrow)), is_partial=True)
    assert (seen.count, seen.faults) == (1, [])
    heard = await service.get(LOG, secret=service.key("sites:write"))
    assert (heard.status, heard.code) == (403, "scope.insufficient")


async def test_old_lines_are_forgotten(service) -> None:
    await service.post("/v1/sites", {"name": "old"})
    service.clock.now += 10_000
    await service.post("/v1/sites", {"name": "new"})
    for age_s, gone in ((0, 0), (5, 1)):
        hours = iter(range(100))
        kept = LogRetention(
            service.jobs,
            LogLimits(audit_age_s_max=age_s),
            monotonic=lambda hours=hours: 3600.0 * next(hours),
        )
        assert [kept.forget() for _ in range(26)] == [0] * 24 + [gone, 0]
    assert len(await actions(service)) == 1


async def test_clock_that_is_ahead_for_a_while_takes_no_line(service) -> None:
    await service.post("/v1/sites", {"name": "new"})
    hours = iter(range(100))
    kept = LogRetention(service.jobs, LogLimits(), monotonic=lambda: 3600.0 * next(hours))
    assert {kept.forget() for _ in range(30)} == {0}
    service.clock.now += 366 * 24 * 3600 * 1000
    assert {kept.forget() for _ in range(20)} == {0}
    service.clock.now -= 366 * 24 * 3600 * 1000
    assert {kept.forget() for _ in range(30)} == {0}
    assert len(await actions(service)) == 1
