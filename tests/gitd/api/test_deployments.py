"""Contract §4, "The deployments API", from the outside."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from hooks.builds.wire import BuildError
from hooks.deploys.wire import RollFailure
from storage.digest import Digest
from storage.envelope import IN_TOTO_TYPE, unseal
from storage.ids import artifact_id
from storage.records import attestations

JOB = re.compile(r"job_[0-7][0-9A-HJKMNP-TV-Z]{25}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def test_build_answers_202_with_its_job_and_location(service, acme) -> None:
    heard = await service.post(f"{acme.production}/builds", {"ref": "main"})
    assert heard.status == 202
    job = heard.data
    assert JOB.fullmatch(job["id"])
    assert heard.headers["Location"] == f"/v1/jobs/{job['id']}"
    env_id = await acme.env_id("production")
    assert job == {
        "id": job["id"],
        "type": "build.run",
        "status": "queued",
        "progress": 0,
        "created_at": job["created_at"],
        "resource": {
            "type": "build",
            "id": job["resource"]["id"],
            "site_id": acme.id,
            "env_id": env_id,
        },
        "result": None,
        "error": None,
        "queue_position": 1,
        "links": {
            "self": f"/v1/jobs/{job['id']}",
            "stream": f"/v1/jobs/{job['id']}/stream",
        },
    }
    assert TIME.fullmatch(job["created_at"])


async def test_build_defaults_to_the_mapped_branch_and_deploys_nothing(service, acme) -> None:
    heard = await service.post(f"{acme.production}/builds")
    await service.build("hello")
    job = (await service.get(heard.headers["Location"])).data
    assert (job["status"], job["progress"]) == ("succeeded", 100)
    assert set(job["result"]) == {"artifact_id", "build_id"}
    build = (await service.get(f"{acme.production}/builds/{job['resource']['id']}")).data
    assert build["ref"] == "refs/heads/main"
    assert build["commit"] == acme.commit
    assert build["status"] == "succeeded"
    assert build["artifact_id"] == job["result"]["artifact_id"]
    assert build["profile"] == "static"
    assert build["actor"]["label"] == "the owner"
    assert (await service.get(f"{acme.production}/deployments")).data == []
    log = await service.get(build["links"]["log"])
    assert log.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"hello\n" in log.raw


async def test_build_takes_branch_tag_full_name_or_commit(service, acme) -> None:
    for ref in ("main", "refs/heads/main", acme.commit, acme.commit[:10]):
        heard = await service.post(f"{acme.staging}/builds", {"ref": ref, "clean": True})
        build = await service.get(f"{acme.staging}/builds/{heard.data['resource']['id']}")
        assert (build.data["commit"], build.data["clean"]) == (acme.commit, True)
    missing = await service.post(f"{acme.staging}/builds", {"ref": "nowhere"})
    assert (missing.status, missing.code) == (404, "ref.not_found")


async def test_failed_build_tells_code_and_exit_status_on_job_and_build(service, acme) -> None:
    heard = await service.post(f"{acme.production}/builds")
    await service.build(error=BuildError("build.command_failed", "make ended with 2", 2))
    job = (await service.get(heard.headers["Location"])).data
    assert job["status"] == "failed"
    error = {"code": "build.command_failed", "message": "make ended with 2", "exit_status": 2}
    assert job["error"] == error
    build = (await service.get(f"{acme.production}/builds/{job['resource']['id']}")).data
    assert build["error"] == error


async def test_build_with_deploy_names_the_deployment_in_its_result(service, acme) -> None:
    heard = await service.post(f"{acme.production}/builds", {"deploy": True})
    await service.build()
    await service.serve(await acme.env_id("production"))
    result = (await service.get(heard.headers["Location"])).data["result"]
    shown = await service.get(f"{acme.production}/deployments/{result['deployment_id']}")
    assert shown.data["status"] == "succeeded"
    assert shown.data["trigger"] == "deploy"
    rolled = await service.get(f"/v1/jobs/{result['deployment_job_id']}")
    assert (rolled.data["type"], rolled.data["status"]) == ("deployment.roll", "succeeded")
    assert rolled.data["resource"]["id"] == result["deployment_id"]
    (release,) = (await service.get(f"{acme.production}/releases")).data
    assert release["id"] == shown.data["release_id"]


async def test_artifact_is_listed_for_every_environment_and_deploys_onto_it(service, acme) -> None:
    await service.post(f"{acme.staging}/builds", {"ref": "main"})
    await service.build()
    (artifact,) = (await service.get(f"{acme.production}/artifacts")).data
    assert artifact["digest"].startswith("blake3:")
    assert artifact["id"] == artifact_id(Digest.parse(artifact["digest"]))
    assert artifact["files"] == 1
    assert artifact["size"] == 3
    assert artifact["commit"] == acme.commit
    heard = await service.post(f"{acme.production}/deployments", {"artifact_id": artifact["id"]})
    assert heard.status == 202
    assert heard.data["type"] == "deployment.roll"
    await service.serve(await acme.env_id("production"))
    job = (await service.get(heard.headers["Location"])).data
    assert set(job["result"]) == {"deployment_id", "release_id"}
    (release,) = (await service.get(f"{acme.production}/releases")).data
    assert release["id"] == job["result"]["release_id"]
    assert release["artifact_id"] == artifact["id"]
    assert release["current"] is True
    assert set(release["actor"]) == {"type", "id", "label"}
    assert TIME.fullmatch(release["deployed_at"])


async def test_manifest_and_provenance_let_anyone_verify_offline(service, acme) -> None:
    await service.post(f"{acme.production}/builds")
    await service.build()
    (artifact,) = (await service.get(f"{acme.production}/artifacts")).data
    manifest = await service.get(artifact["links"]["manifest"])
    assert str(Digest.of(manifest.raw)) == artifact["digest"]
    provenance = await service.get(artifact["links"]["provenance"])
    opened = unseal(
        provenance.raw,
        payload_type=IN_TOTO_TYPE,
        public_key=service.reader.keyring().provenance_key,
    )
    assert artifact["key_id"] in opened.key_ids
    shown = await service.get(artifact["links"]["self"])
    assert shown.data == artifact


async def test_manifest_that_the_store_lost_is_our_fault_and_says_so(service, acme) -> None:
    await service.post(f"{acme.production}/builds")
    await service.build()
    (artifact,) = (await service.get(f"{acme.production}/artifacts")).data
    for path in (service.root / "store" / "trees").rglob("*"):
        if path.is_file():
            path.unlink()
    heard = await service.get(artifact["links"]["manifest"])
    assert (heard.status, heard.code) == (500, "artifact.missing")


async def test_unknown_artifact_is_404(service, acme) -> None:
    unknown = "art_00000000000000000000000000"
    heard = await service.post(f"{acme.production}/deployments", {"artifact_id": unknown})
    assert (heard.status, heard.code) == (404, "artifact.not_found")
    for part in ("", "/manifest", "/provenance"):
        heard = await service.get(f"{acme.production}/artifacts/{unknown}{part}")
        assert (heard.status, heard.code) == (404, "artifact.not_found")


async def test_artifact_of_another_site_cannot_be_deployed(service, acme) -> None:
    await service.post(f"{acme.production}/builds")
    await service.build()
    (artifact,) = (await service.get(f"{acme.production}/artifacts")).data
    await service.post("/v1/sites", {"name": "other"})
    heard = await service.post(
        "/v1/sites/other/environments/production/deployments", {"artifact_id": artifact["id"]}
    )
    assert (heard.status, heard.code) == (404, "artifact.not_found")


async def test_rollback_by_deployment_brings_the_release_before_it_back(service, acme) -> None:
    first = await acme.release(b"one")
    second = await acme.release(b"two")
    heard = await service.post(f"{acme.production}/deployments/{second['deployment_id']}/rollback")
    assert (heard.status, heard.data["type"]) == (202, "deployment.roll")
    await service.serve(await acme.env_id("production"))
    releases = (await service.get(f"{acme.production}/releases")).data
    assert [r["current"] for r in releases] == [True, False, False]
    assert [r["trigger"] for r in releases] == ["rollback", "deploy", "deploy"]
    assert releases[0]["artifact_id"] == first["artifact_id"]
    rolled = await service.get(f"{acme.production}/deployments/{releases[0]['deployment_id']}")
    assert rolled.data["trigger"] == "rollback"
    assert len((await service.get(f"{acme.production}/builds")).data) == 2


async def test_rollback_by_release_id_brings_that_very_release_back(service, acme) -> None:
    first = await acme.release(b"one")
    await acme.release(b"two")
    third = await acme.release(b"three")
    heard = await service.post(f"{acme.production}/deployments/{first['id']}/rollback")
    assert heard.status == 202
    await service.serve(await acme.env_id("production"))
    now = (await service.get(f"{acme.production}/releases")).data[0]
    assert now["artifact_id"] == first["artifact_id"]
    assert now["id"] not in (first["id"], third["id"])


async def test_rollback_refusals_have_their_codes(service, acme) -> None:
    first = await acme.release(b"one")
    deployments = f"{acme.production}/deployments"
    heard = await service.post(f"{deployments}/{first['deployment_id']}/rollback")
    assert (heard.status, heard.code) == (409, "release.no_previous")
    heard = await service.post(f"{deployments}/{first['id']}/rollback")
    assert (heard.status, heard.code) == (409, "release.already_current")
    heard = await service.post(f"{deployments}/dep_00000000000000000000000000/rollback")
    assert (heard.status, heard.code) == (404, "deployment.not_found")
    heard = await service.post(f"{deployments}/rel_00000000000000000000000000/rollback")
    assert (heard.status, heard.code) == (404, "release.not_found")
    heard = await service.post(f"{acme.staging}/deployments/{first['id']}/rollback")
    assert (heard.status, heard.code) == (404, "release.not_found")


async def test_promotion_by_kind_slug_and_id_rolls_the_running_artifact(service, acme) -> None:
    running = await acme.release(b"one", "staging")
    preview = await service.post(
        f"{acme.path}/environments", {"kind": "preview", "branch": "feature/checkout"}
    )
    targets = {
        "production": await acme.env_id("production"),
        "feature-checkout": preview.data["id"],
        preview.data["id"]: preview.data["id"],
    }
    for to_env, env_id in targets.items():
        heard = await service.post(f"{acme.staging}/promote", {"to_env": to_env})
        assert heard.status == 202, heard.raw
        assert heard.data["resource"]["env_id"] == env_id
        await service.serve(env_id)
    release = (await service.get(f"{acme.production}/releases")).data[0]
    assert release["artifact_id"] == running["artifact_id"]
    assert (await service.get(f"{acme.production}/builds")).data == []


async def test_promotion_refusals_have_their_codes(service, acme) -> None:
    promote = f"{acme.staging}/promote"
    heard = await service.post(promote, {"to_env": "production"})
    assert (heard.status, heard.code) == (409, "environment.nothing_running")
    await acme.release(b"one", "staging")
    heard = await service.post(promote, {"to_env": "nowhere"})
    assert (heard.status, heard.code) == (404, "environment.not_found")
    for branch in ("one", "two"):
        body = {"kind": "preview", "branch": branch}
        await service.post(f"{acme.path}/environments", body)
    heard = await service.post(promote, {"to_env": "preview"})
    assert (heard.status, heard.code) == (400, "environment.ambiguous")
    assert heard.body["error"]["param"] == "to_env"
    assert "one, two" in heard.body["error"]["message"]
    heard = await service.post(promote, {"to_env": "staging"})
    assert (heard.status, heard.code) == (400, "request.invalid")


async def test_restart_rolls_what_runs_once_more_and_a_retry_is_that_same_restart(
    service, acme
) -> None:
    """Contract §2 "Idempotency": also while it rolls, and after something newer has."""
    await acme.release(b"one")
    second = await acme.release(b"two")
    with_key = {"headers": {"Idempotency-Key": "k1"}}
    first = await service.post(f"{acme.production}/restart", **with_key)
    assert (first.status, first.data["type"]) == (202, "deployment.roll")
    retried = await service.post(f"{acme.production}/restart", **with_key)
    assert (retried.status, retried.data["id"]) == (202, first.data["id"])
    await service.serve(await acme.env_id("production"))
    release = (await service.get(f"{acme.production}/releases")).data[0]
    assert (release["artifact_id"], release["trigger"]) == (second["artifact_id"], "deploy")
    assert release["id"] != second["id"]
    await acme.release(b"three")
    retried = await service.post(f"{acme.production}/restart", **with_key)
    assert (retried.status, retried.data["id"]) == (202, first.data["id"])
    assert retried.data["status"] == "succeeded"
    assert len((await service.get(f"{acme.production}/deployments")).data) == 4


async def test_restart_takes_nothing_newer_away(service, acme) -> None:
    """What runs by now would be rolled behind it, or in its place."""
    heard = await service.post(f"{acme.production}/restart")
    assert (heard.status, heard.code) == (409, "environment.nothing_running")
    release = await acme.release(b"one")
    body = {"artifact_id": release["artifact_id"]}
    rolling = (await service.post(f"{acme.production}/deployments", body)).data
    heard = await service.post(f"{acme.production}/restart")
    assert (heard.status, heard.code) == (409, "deployment.under_way")
    assert rolling["id"] in heard.body["error"]["message"]
    await service.serve(await acme.env_id("production"))
    service.commit(acme.id, {"index.html": b"two"})
    await service.post(f"{acme.production}/builds", {"deploy": True})  # not on its way there yet
    assert (await service.post(f"{acme.production}/restart")).status == 202


async def test_failed_roll_leaves_the_prior_release_current(service, acme) -> None:
    first = await acme.release(b"one")
    service.commit(acme.id, {"index.html": b"two"})
    await service.post(f"{acme.production}/builds", {"deploy": True})
    await service.build()
    failure = RollFailure("deployment.health_check_failed", "no answer in 30 s")
    await service.serve(await acme.env_id("production"), failure)
    deployment = (await service.get(f"{acme.production}/deployments")).data[0]
    assert deployment["status"] == "failed"
    assert deployment["error"]["code"] == "deployment.health_check_failed"
    assert deployment["release_id"] is None
    (current,) = [
        r for r in (await service.get(f"{acme.production}/releases")).data if r["current"]
    ]
    assert current["id"] == first["id"]


async def test_things_of_another_environment_are_404(service, acme) -> None:
    release = await acme.release(b"one")
    build = (await service.get(f"{acme.production}/builds")).data[0]
    heard = await service.get(f"{acme.staging}/builds/{build['id']}")
    assert (heard.status, heard.code) == (404, "build.not_found")
    heard = await service.get(f"{acme.staging}/builds/{build['id']}/log")
    assert (heard.status, heard.code) == (404, "build.not_found")
    heard = await service.get(f"{acme.staging}/deployments/{release['deployment_id']}")
    assert (heard.status, heard.code) == (404, "deployment.not_found")


async def test_log_with_follow_ends_with_the_build(service, acme) -> None:
    heard = await service.post(f"{acme.production}/builds")
    log = f"{acme.production}/builds/{heard.data['resource']['id']}/log?follow=1"
    following = asyncio.create_task(service.get(log))
    await asyncio.sleep(0.05)
    assert not following.done()
    await service.build("first", "second")
    text = (await asyncio.wait_for(following, 20)).raw.decode()
    assert "first\nsecond\n" in text


async def test_artifact_whose_key_was_revoked_is_listed_as_such_and_not_deployed(acme) -> None:
    await acme.release(b"one")
    first = (await acme.service.get(f"{acme.production}/releases")).data[0]
    await acme.release(b"two")
    (key_id,) = acme.service.reader.keyring().keys
    acme.service.records.write(lambda db: attestations.revoke(db, {key_id}))
    listed = (await acme.service.get(f"{acme.production}/artifacts")).data
    assert [item["status"] for item in listed] == ["revoked", "revoked"]
    for path, body in (
        ("/deployments", {"artifact_id": first["artifact_id"]}),
        (f"/deployments/{first['id']}/rollback", {}),
        ("/promote", {"to_env": "staging"}),
    ):
        heard = await acme.service.post(f"{acme.production}{path}", body)
        assert (heard.status, heard.code) == (409, "artifact.revoked"), path
    acme.service.records.write(lambda db: attestations.revoke(db, set()))
    listed = (await acme.service.get(f"{acme.production}/artifacts")).data
    assert {item["status"] for item in listed} == {"ready"}


async def test_release_is_available_exactly_where_a_rollback_to_it_is_taken(acme) -> None:
    service = acme.service
    first = await acme.release(b"one")
    await acme.release(b"two")
    made = {"kind": "preview", "branch": "topic"}
    preview = (await service.post(f"{acme.path}/environments", made)).data["slug"]

    async def built(where: str, content: bytes) -> None:
        service.commit(acme.id, {"index.html": content})
        body = {"ref": "main", "clean": True}
        assert (await service.post(f"{where}/builds", body)).status == 202
        await service.build()

    async def expect(*, is_taken: bool) -> None:
        listed = (await service.get(f"{acme.production}/releases")).data
        assert [item["available"] for item in listed if item["id"] == first["id"]] == [is_taken]
        heard = await service.post(f"{acme.production}/deployments/{first['id']}/rollback")
        assert heard.status == (202 if is_taken else 409)
        assert is_taken or heard.code == "artifact.revoked"

    (key_id,) = service.reader.keyring().keys
    service.records.write(lambda db: attestations.revoke(db, {key_id}))
    await expect(is_taken=False)
    await built(f"{acme.path}/environments/{preview}", b"one")  # whose word does not count there
    await expect(is_taken=False)
    await built(acme.production, b"one")
    await expect(is_taken=True)


async def test_artifact_says_nothing_of_another_site_that_made_the_same(
    service, acme, clock
) -> None:
    await service.post(f"{acme.production}/builds")
    await service.build()
    (first,) = (await service.get(f"{acme.production}/artifacts")).data
    clock.now += 60_000
    other = (await service.post("/v1/sites", {"name": "other"})).data
    service.commit(other["id"], {"index.html": b"one"})
    production = "/v1/sites/other/environments/production"
    await service.post(f"{production}/builds")
    await service.build()
    bound = service.key("deployments:read", site_id=other["id"])
    (second,) = (await service.get(f"{production}/artifacts", secret=bound)).data
    build = await service.get(f"{production}/builds/{second['build_id']}", secret=bound)
    assert second["id"] == first["id"]
    assert second["created_at"] >= build.data["created_at"] > first["created_at"]
    assert (await service.get(f"{acme.production}/artifacts")).data == [first]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("builds", {"ref": "main"}),
        ("deployments", {"artifact_id": "art_00000000000000000000000000"}),
        ("promote", {"to_env": "production"}),
        ("restart", {}),
        ("deployments/dep_0/rollback", {}),
    ],
)
async def test_work_for_an_environment_that_goes_before_its_body_comes_is_404(
    service, acme, path: str, body: dict[str, str]
) -> None:
    """What is queued for it then, nobody would cancel: it would wait for ever."""
    made = {"kind": "preview", "branch": "topic"}
    preview = (await service.post(f"{acme.path}/environments", made)).data["slug"]
    where = f"{acme.path}/environments/{preview}"
    data = json.dumps(body).encode()
    head = (
        f"POST {where}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*service.socket.getsockname())
    writer.write(head.encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    assert (await service.call("DELETE", where)).status == 200
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404")
    assert b'"environment.not_found"' in answer
    assert (await service.get("/v1/jobs")).data == []
