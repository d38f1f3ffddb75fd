"""Renewing, suspending and resuming environments. Contract §5 "Environments"."""

from __future__ import annotations

import pytest

from hooks.builds.wire import Finish
from hooks.deploys.wire import Desired, RollFailure, Snapshot
from storage.records import previews

DAY_MS = 24 * 60 * 60 * 1000


async def desired(service, env_id: str) -> Desired:
    """What a site host that comes now is told of an environment."""
    async for message in service.rolls.desired():
        assert isinstance(message, Snapshot)
        return next(each for each in message.environments if each.env_id == env_id)
    raise AssertionError("nothing was told")


async def test_suspended_environment_is_to_serve_nothing_until_it_is_resumed(service, acme) -> None:
    release = await acme.release(b"one")
    env_id = await acme.env_id("production")
    heard = await service.post(f"{acme.production}/suspend")
    assert (heard.status, heard.data["status"]) == (200, "suspended")
    assert (await service.get(acme.production)).data["status"] == "suspended"
    told = await desired(service, env_id)
    assert (told.deployment_id, told.artifact, told.is_suspended) == (None, None, True)
    assert (await service.post(f"{acme.production}/suspend")).data["status"] == "suspended"
    releases = (await service.get(f"{acme.production}/releases")).data
    assert [(each["id"], each["current"]) for each in releases] == [(release["id"], True)]
    heard = await service.post(f"{acme.production}/resume")
    assert (heard.status, heard.data["status"]) == (200, "active")
    told = await desired(service, env_id)
    assert (told.deployment_id, told.is_suspended) == (release["deployment_id"], False)
    assert not told.release_command, "it ran when the release was new"
    assert (await service.post(f"{acme.production}/resume")).data["status"] == "active"


async def test_environment_stays_suspended_over_a_restart(service, acme) -> None:
    await acme.release(b"one")
    env_id = await acme.env_id("production")
    await service.post(f"{acme.production}/suspend")
    await service.restart()
    assert (await service.get(acme.production)).data["status"] == "suspended"
    assert (await desired(service, env_id)).is_suspended


async def test_suspending_cancels_the_work_that_waits(service, acme) -> None:
    job = (await service.post(f"{acme.production}/builds", {"deploy": True})).data
    await service.post(f"{acme.production}/suspend")
    assert (await service.get(job["links"]["self"])).data["status"] == "canceled"


async def test_deployment_resumes_and_a_build_alone_does_not(service, acme) -> None:
    release = await acme.release(b"one")
    await service.post(f"{acme.production}/suspend")
    await service.post(f"{acme.production}/builds", {"clean": True})
    await service.build()
    assert (await service.get(acme.production)).data["status"] == "suspended"
    body = {"artifact_id": release["artifact_id"]}
    assert (await service.post(f"{acme.production}/deployments", body)).status == 202
    assert (await service.get(acme.production)).data["status"] == "suspended"
    await service.serve(await acme.env_id("production"))
    assert (await service.get(acme.production)).data["status"] == "active"
    entry = (await service.get("/v1/audit-log?limit=2")).data[1]
    assert (entry["action"], entry["actor"]["label"]) == ("environment.resumed", "the owner")


async def test_failed_roll_leaves_an_environment_suspended(service, acme) -> None:
    release = await acme.release(b"one")
    env_id = await acme.env_id("production")
    await service.post(f"{acme.production}/suspend")
    body = {"artifact_id": release["artifact_id"]}
    job = (await service.post(f"{acme.production}/deployments", body)).data
    told = await desired(service, env_id)
    assert told.deployment_id == job["resource"]["id"], "the host is to roll it all the same"
    await service.serve(env_id, RollFailure("deployment.start_failed", "it crashed"))
    assert (await service.get(job["links"]["self"])).data["status"] == "failed"
    assert (await service.get(acme.production)).data["status"] == "suspended"
    told = await desired(service, env_id)
    assert (told.deployment_id, told.is_suspended) == (None, True)


async def test_renewed_preview_ends_later_and_so_does_one_that_is_resumed(service, acme) -> None:
    body = {"kind": "preview", "branch": "feature/x"}
    made = (await service.post(f"{acme.path}/environments", body)).data
    path, expires_at = f"{acme.path}/environments/feature-x", made["expires_at"]
    for verb in ("renew", "resume"):
        service.clock.now += DAY_MS
        heard = await service.post(f"{path}/{verb}")
        assert heard.status == 200
        assert heard.data["expires_at"] > expires_at
        expires_at = heard.data["expires_at"]
        seen = previews.get(service.records.reader(), made["id"])
        assert seen.used_at == service.clock.now
    service.clock.now += DAY_MS
    assert (await service.post(f"{path}/suspend")).data["expires_at"] == expires_at


async def test_production_and_staging_have_nothing_to_renew(service, acme) -> None:
    for path in (acme.production, acme.staging):
        heard = await service.post(f"{path}/renew")
        assert (heard.status, heard.code) == (409, "environment.permanent")


@pytest.mark.parametrize("verb", ["renew", "suspend", "resume"])
async def test_they_need_environments_write_and_an_environment(service, acme, verb) -> None:
    heard = await service.post(f"{acme.staging}/{verb}", secret=service.key("environments:read"))
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    heard = await service.post(f"{acme.path}/environments/nowhere/{verb}")
    assert (heard.status, heard.code) == (404, "environment.not_found")


async def test_what_lives_as_long_as_its_site_is_not_suspended_by_who_makes_previews(
    service, acme
) -> None:
    made = {"kind": "preview", "branch": "feature/x"}
    assert (await service.post(f"{acme.path}/environments", made)).status == 201
    preview = f"{acme.path}/environments/feature-x"
    weak = service.key("environments:write")
    for verb in ("suspend", "resume"):
        heard = await service.post(f"{acme.production}/{verb}", secret=weak)
        assert (heard.status, heard.code) == (403, "scope.insufficient")
        assert (await service.post(f"{preview}/{verb}", secret=weak)).status == 200
        for more in ("environments:admin", "deployments:write"):
            strong = service.key("environments:write", more)
            assert (await service.post(f"{acme.staging}/{verb}", secret=strong)).status == 200


async def test_work_is_canceled_only_by_who_may_cancel_it(service, acme) -> None:
    job = (await service.post(f"{acme.production}/builds", {"deploy": True})).data
    heard = await service.post(
        f"{acme.production}/suspend", secret=service.key("environments:admin")
    )
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    assert "deployments:write" in heard.body["error"]["message"]
    assert (await service.get(acme.production)).data["status"] == "active"
    assert (await service.get(job["links"]["self"])).data["status"] == "queued"


@pytest.mark.parametrize("is_changed", [False, True])
async def test_what_was_changed_while_suspended_is_given_when_it_is_resumed(
    service, acme, is_changed
) -> None:
    """A secret was rotated because it had leaked: what comes back has the new one."""
    await _web_release(service, acme)
    await service.post(f"{acme.production}/suspend")
    may = service.key("credentials:write")
    if is_changed:
        path, value = f"{acme.production}/secrets/TOKEN", {"value": "another", "used_in": "run"}
        heard = await service.call("PUT", path, value, secret=may)
        assert (heard.status, heard.data["jobs"]) == (200, [])
    assert (await service.post(f"{acme.production}/suspend")).status == 200
    assert (await service.post(f"{acme.production}/resume")).status == 200
    triggers = [each["trigger"] for each in await service.every(f"{acme.production}/deployments")]
    assert triggers == (["config"] if is_changed else []) + triggers[-1:]
    assert (await service.post(f"{acme.production}/resume")).status == 200
    assert len(await service.every(f"{acme.production}/deployments")) == len(triggers)


async def test_what_is_changed_while_a_roll_resumes_is_given_by_another_roll(service, acme) -> None:
    """The roll had settled what its program is given; the old secret would have run for ever."""
    first = await _web_release(service, acme)
    await service.post(f"{acme.production}/suspend")
    may = service.key("credentials:write")
    path = f"{acme.production}/secrets/TOKEN"
    await service.call("PUT", path, {"value": "before", "used_in": "run"}, secret=may)
    service.clock.now += 1000
    await service.post(f"{acme.production}/deployments", {"artifact_id": first["artifact_id"]})
    service.clock.now += 1000
    await service.call("PUT", path, {"value": "leaked no more", "used_in": "run"}, secret=may)
    await service.serve(await acme.env_id("production"))
    triggers = [each["trigger"] for each in await service.every(f"{acme.production}/deployments")]
    assert triggers[:2] == ["config", "deploy"]


async def test_roll_that_resumes_is_the_only_one_where_it_was_given_all(service, acme) -> None:
    first = await _web_release(service, acme)
    await service.post(f"{acme.production}/suspend")
    may = service.key("credentials:write")
    path = f"{acme.production}/secrets/TOKEN"
    await service.call("PUT", path, {"value": "before", "used_in": "run"}, secret=may)
    service.clock.now += 1000
    await service.post(f"{acme.production}/deployments", {"artifact_id": first["artifact_id"]})
    await service.serve(await acme.env_id("production"))
    triggers = [each["trigger"] for each in await service.every(f"{acme.production}/deployments")]
    assert triggers[0] == "deploy"


async def _web_release(service, acme):
    """A release of production with a program, so that it matters what that is given."""
    service.commit(acme.id, {"server.js": b"", "managed.toml": b'[run]\nweb = "node server.js"'})
    await service.post(f"{acme.production}/builds", {"ref": "main", "deploy": True})
    lease = await service.builds.lease("slot-0", 5)
    ended = Finish("slot-0", "succeeded", profile="node", output="source", folder=".")
    await service.builds.finish(lease.job_id, ended)
    await service.serve(await acme.env_id("production"))
    return (await service.get(f"{acme.production}/releases")).data[0]
