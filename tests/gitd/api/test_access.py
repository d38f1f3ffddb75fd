"""Who may what: contract §2 "Authentication", "Scopes", "404 before 403"."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict

from storage.records import api_keys, recall
from storage.records.db import Records


async def test_request_without_a_good_key_is_401_with_a_challenge(service, acme) -> None:
    for headers, code in (
        ({}, "authentication.required"),
        ({"Authorization": "Basic eDp5"}, "authentication.required"),
        ({"Authorization": "Bearer"}, "authentication.required"),
        ({"Authorization": "Bearer nonsense"}, "authentication.invalid_key"),
        ({"Authorization": f"Bearer {service.secret}x"}, "authentication.invalid_key"),
    ):
        heard = await service.get(acme.path, secret="", headers=headers)
        assert (heard.status, heard.code) == (401, code)
        assert heard.headers["WWW-Authenticate"].startswith("Bearer")
    heard = await service.get(
        acme.path, secret="", headers={"Authorization": f"bearer {service.secret}"}
    )
    assert heard.status == 200


async def test_secret_in_a_query_or_cookie_is_no_key(service, acme) -> None:
    heard = await service.get(f"{acme.path}?token={service.secret}", secret="")
    assert heard.status == 401
    heard = await service.get(acme.path, secret="", headers={"Cookie": f"token={service.secret}"})
    assert heard.status == 401


async def test_revoked_and_expired_keys_stop_at_once(service, acme, clock) -> None:
    secret, key = service.minted("*")
    assert (await service.get(acme.path, secret=secret)).status == 200
    service.records.write(lambda db: api_keys.revoke(db, key.id, clock()))
    heard = await service.get(acme.path, secret=secret)
    assert (heard.status, heard.code) == (401, "authentication.invalid_key")
    short = service.key("*", ttl_ms=1000)
    for _ in range(3):  # the same answer, kept
        assert (await service.get(acme.path, secret=short)).status == 200
    clock.now += 1000
    heard = await service.get(acme.path, secret=short)
    assert (heard.status, heard.code) == (401, "authentication.invalid_key")


async def test_key_that_another_process_revoked_stops_whatever_was_kept(
    service, acme, clock, monkeypatch
) -> None:
    """Nobody may see the commit that revokes the key, and keep what others still let it have."""
    now_s = 1000.0
    monkeypatch.setattr(recall, "time", SimpleNamespace(monotonic=lambda: now_s))
    secret, key = service.minted("*")

    async def status(path: str) -> int:
        return (await service.get(path, secret=secret)).status

    assert await status(acme.path) == 200
    service.records.write(lambda _: None)  # after the note of the first use
    assert await status(acme.path) == 200
    now_s += 1
    assert await status(acme.path) == 200  # kept: nobody asks whose key it is
    now_s += recall.LOOK_EVERY_S * 0.6
    assert await status("/v1/sites") == 200  # not kept
    other = Records.open(service.root / "gitd.db")
    other.write(lambda db: api_keys.revoke(db, key.id, clock()))
    other.close()
    now_s += recall.LOOK_EVERY_S * 0.6
    await status(acme.path)
    now_s += recall.LOOK_EVERY_S
    assert await status(acme.path) == 401


async def test_key_of_other_networks_is_403(service, acme) -> None:
    secret = service.key("*", cidrs=["192.0.2.0/24"])
    heard = await service.get(acme.path, secret=secret, headers={"X-Forwarded-For": "192.0.2.1"})
    assert (heard.status, heard.code) == (403, "permission.address_refused")


async def test_forwarded_address_counts_from_a_trusted_proxy(service, acme) -> None:
    secret = service.key("*", cidrs=["192.0.2.0/24"])
    await service.stop()
    service.proxies = ("127.0.0.0/8",)
    await service.start()
    heard = await service.get(acme.path, secret=secret, headers={"X-Forwarded-For": "192.0.2.1"})
    assert heard.status == 200
    heard = await service.get(acme.path, secret=secret, headers={"X-Forwarded-For": "198.51.100.1"})
    assert heard.status == 403


async def test_client_cannot_speak_for_the_proxy_in_front(service, acme) -> None:
    """Neither by a line of its own before the proxy's, nor where the proxy's is no address."""
    secret = service.key("*", cidrs=["127.0.0.0/8", "192.0.2.0/24"])
    await service.stop()
    service.proxies = ("127.0.0.0/8",)
    await service.start()
    for lines, status in (
        (["192.0.2.1", "198.51.100.1"], 403),
        (["198.51.100.1", "192.0.2.1"], 200),
        (["192.0.2.1:4711"], 200),
        (["nonsense"], 403),
    ):
        headers = CIMultiDict([("X-Forwarded-For", line) for line in lines])
        headers["Authorization"] = f"Bearer {secret}"
        async with service.client.get(acme.path, headers=headers) as answer:
            assert answer.status == status, lines


# Every endpoint, the scope that it needs, and one that is not enough. Source: contract §3, §4.
@pytest.mark.parametrize(
    ("method", "path", "enough", "not_enough"),
    [
        ("GET", "/v1/sites", "sites:read", "environments:admin"),
        ("POST", "/v1/sites", "sites:write", "sites:read"),
        ("GET", "/v1/sites/acme-store", "sites:read", "deployments:admin"),
        ("PATCH", "/v1/sites/acme-store", "sites:write", "sites:read"),
        ("DELETE", "/v1/sites/acme-store", "sites:admin", "sites:write"),
        ("GET", "/v1/sites/acme-store/branch-routes", "sites:read", "jobs:read"),
        ("PUT", "/v1/sites/acme-store/branch-routes", "sites:write", "sites:read"),
        ("GET", "{site}/environments", "environments:read", "sites:admin"),
        ("POST", "{site}/environments", "environments:write", "environments:read"),
        ("GET", "{env}", "environments:read", "deployments:admin"),
        ("PATCH", "{env}", "environments:write", "environments:read"),
        ("DELETE", "{env}", "environments:write", "environments:read"),
        ("GET", "{env}/domains", "domains:read", "environments:admin"),
        ("POST", "{env}/domains", "domains:write", "domains:read"),
        ("GET", "{env}/domains/x", "domains:read", "environments:admin"),
        ("DELETE", "{env}/domains/x", "domains:write", "domains:read"),
        ("POST", "{env}/builds", "deployments:write", "deployments:read"),
        ("GET", "{env}/builds", "deployments:read", "jobs:read"),
        ("GET", "{env}/builds/x", "deployments:read", "jobs:read"),
        ("GET", "{env}/builds/x/log", "deployments:read", "jobs:read"),
        ("GET", "{env}/logs", "observability:read", "deployments:read"),
        ("GET", "{env}/logs/stream", "observability:read", "deployments:read"),
        ("GET", "{env}/artifacts", "deployments:read", "jobs:read"),
        ("GET", "{env}/artifacts/x", "deployments:read", "jobs:read"),
        ("GET", "{env}/artifacts/x/manifest", "deployments:read", "jobs:read"),
        ("GET", "{env}/artifacts/x/provenance", "deployments:read", "jobs:read"),
        ("POST", "{env}/deployments", "deployments:write", "deployments:read"),
        ("GET", "{env}/deployments", "deployments:read", "jobs:read"),
        ("GET", "{env}/deployments/x", "deployments:read", "jobs:read"),
        ("POST", "{env}/deployments/x/rollback", "deployments:write", "deployments:read"),
        ("POST", "{env}/restart", "deployments:write", "deployments:read"),
        ("POST", "{env}/promote", "deployments:write", "deployments:read"),
        ("GET", "{env}/releases", "deployments:read", "jobs:read"),
        ("GET", "/v1/jobs", "jobs:read", "deployments:admin"),
        ("POST", "/v1/jobs/{job}/cancel", "deployments:write", "jobs:read"),
    ],
)
async def test_endpoint_needs_its_scope_and_names_it(
    service, acme, method, path, enough, not_enough
) -> None:
    job = (await service.post(f"{acme.production}/builds")).data["id"]
    path = path.replace("{site}", acme.path).replace("{env}", acme.production)
    path = path.replace("{job}", job)
    heard = await service.call(method, path, secret=service.key(not_enough))
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    assert enough in heard.body["error"]["message"]
    heard = await service.call(method, path, secret=service.key(enough))
    assert heard.status not in (401, 403), heard.raw


async def test_refused_request_changes_nothing(service, acme) -> None:
    reader = service.key("sites:read", "environments:read", "deployments:read")
    assert (await service.call("DELETE", acme.path, secret=reader)).status == 403
    assert (await service.post(f"{acme.production}/builds", secret=reader)).status == 403
    assert (await service.get(f"{acme.production}/builds")).data == []
    assert (await service.get(acme.path)).status == 200


async def test_answer_that_is_kept_is_given_to_nobody_who_may_not_have_it(service, acme) -> None:
    for _ in range(3):
        assert (await service.get(acme.path)).status == 200
    heard = await service.get(acme.path, secret=service.key("jobs:read"))
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    assert (await service.get(acme.path, secret=f"{service.secret[:-1]}?")).status == 401
    assert (await service.get(acme.path, secret="")).status == 401


async def test_nothing_of_a_request_is_looked_at_before_its_job(service, acme) -> None:
    job = (await service.post(f"{acme.production}/builds")).data["id"]
    other = (await service.post("/v1/sites", {"name": "other"})).data
    blind = service.key("*", site_id=other["id"])
    weak = service.key("webhooks:read")
    kind = {"Content-Type": "application/json"}
    for secret, status in ((blind, 404), (weak, 403)):
        for data, headers in ((b"{", kind), (b"x", {}), (b" " * 70_000, kind), (b'{"x": 1}', kind)):
            heard = await service.post(
                f"/v1/jobs/{job}/cancel", secret=secret, data=data, headers=headers
            )
            assert heard.status == status, (status, data[:10])
        for path in (f"/v1/jobs/{job}?x=1", f"/v1/jobs/{job}/stream?x=1"):
            assert (await service.get(path, secret=secret)).status == status, path
    assert (await service.get(f"/v1/jobs/{job}")).data["status"] == "queued"


async def test_body_is_not_looked_at_before_the_scope(service, acme) -> None:
    reader = service.key("deployments:read")
    heard = await service.post(f"{acme.production}/builds", {"reff": 1}, secret=reader)
    assert heard.status == 403


async def test_what_the_constraint_hides_is_the_same_404_as_what_is_not(service, acme) -> None:
    other = (await service.post("/v1/sites", {"name": "other"})).data
    weak = service.key("webhooks:read", site_id=other["id"])
    said = []
    for name in ("acme-store", acme.id, "nowhere"):
        for part in ("", "/environments", "/environments/production/builds"):
            heard = await service.get(f"/v1/sites/{name}{part}", secret=weak)
            assert heard.status == 404
            error = heard.body["error"]
            said.append((error["type"], error["code"], error["message"].replace(name, "NAME")))
    assert len(set(said)) == 1
    heard = await service.get("/v1/sites/other", secret=weak)
    assert (heard.status, heard.code) == (403, "scope.insufficient")


async def test_key_of_a_site_sees_nothing_of_another(service, acme) -> None:
    other = (await service.post("/v1/sites", {"name": "other"})).data
    job = (await service.post(f"{acme.production}/builds")).data
    bound = service.key("*", site_id=other["id"])
    assert [s["name"] for s in (await service.get("/v1/sites", secret=bound)).data] == ["other"]
    assert (await service.get("/v1/jobs", secret=bound)).data == []
    for path in (job["links"]["self"], job["links"]["stream"]):
        heard = await service.get(path, secret=bound)
        assert (heard.status, heard.code) == (404, "job.not_found")
    heard = await service.post(f"{job['links']['self']}/cancel", secret=bound)
    assert (heard.status, heard.code) == (404, "job.not_found")
    heard = await service.post("/v1/sites", {"name": "third"}, secret=bound)
    assert (heard.status, heard.code) == (403, "permission.key_bound")


async def test_key_of_an_environment_sees_nothing_of_another(service, acme) -> None:
    await acme.release(b"one")
    staging = await acme.env_id("staging")
    bound = service.key("*", site_id=acme.id, env_id=staging)
    listed = await service.get(f"{acme.path}/environments", secret=bound)
    assert [e["slug"] for e in listed.data] == ["staging"]
    for part in ("", "/builds", "/releases", "/artifacts", "/deployments"):
        heard = await service.get(f"{acme.production}{part}", secret=bound)
        assert (heard.status, heard.code) == (404, "environment.not_found")
    assert (await service.get("/v1/jobs", secret=bound)).data == []
    await acme.release(b"two", "staging")
    heard = await service.post(f"{acme.staging}/promote", {"to_env": "production"}, secret=bound)
    assert (heard.status, heard.code) == (404, "environment.not_found")
    for branch in ("secret-one", "secret-two"):
        body = {"kind": "preview", "branch": branch}
        assert (await service.post(f"{acme.path}/environments", body)).status == 201
    heard = await service.post(f"{acme.staging}/promote", {"to_env": "preview"}, secret=bound)
    assert (heard.status, heard.code) == (404, "environment.not_found")
    assert b"secret" not in heard.raw
    for method, path in (
        ("DELETE", acme.path),
        ("PUT", f"{acme.path}/branch-routes"),
        ("POST", f"{acme.path}/environments"),
    ):
        heard = await service.call(method, path, secret=bound)
        assert (heard.status, heard.code) == (403, "permission.key_bound")


async def test_key_of_an_environment_builds_no_branch_of_another(service, acme) -> None:
    """Its files and the id of its commit would be in what the key may read."""
    tip = acme.commit
    service.commit(acme.id, {"index.html": b"of staging"}, "staging")
    (service.repositories.path(acme.id) / "refs" / "tags" / "v1").write_text(f"{tip}\n")
    bound = service.key("*", site_id=acme.id, env_id=await acme.env_id("staging"))
    for ref in ("main", "refs/heads/main", "HEAD", "v1", tip[:12]):
        heard = await service.post(f"{acme.staging}/builds", {"ref": ref}, secret=bound)
        assert (heard.status, heard.code) == (404, "ref.not_found"), ref
        assert tip not in heard.raw.decode()
        assert (await service.post(f"{acme.staging}/builds", {"ref": ref})).status == 202
    for ref in ("staging", "refs/heads/staging", tip):
        heard = await service.post(f"{acme.staging}/builds", {"ref": ref}, secret=bound)
        assert heard.status == 202, ref
    assert (await service.post(f"{acme.staging}/builds", secret=bound)).status == 202


async def test_key_of_an_environment_of_many_branches_builds_no_tag(service, acme) -> None:
    """Where a pattern leads there, no branch is its own."""
    (service.repositories.path(acme.id) / "refs" / "tags" / "v1").write_text(f"{acme.commit}\n")
    routes = [{"pattern": "main", "target": "live"}, {"pattern": "release/*", "target": "staging"}]
    await service.call("PUT", f"{acme.path}/branch-routes", {"routes": routes})
    assert (await service.get(acme.staging)).data["branch"] is None
    service.commit(acme.id, {"index.html": b"of staging"}, "release/1")
    bound = service.key("*", site_id=acme.id, env_id=await acme.env_id("staging"))
    for ref in ("v1", "refs/tags/v1", "main"):
        heard = await service.post(f"{acme.staging}/builds", {"ref": ref}, secret=bound)
        assert (heard.status, heard.code) == (404, "ref.not_found"), ref
    heard = await service.post(f"{acme.staging}/builds", {"ref": "release/1"}, secret=bound)
    assert heard.status == 202


async def test_deployments_key_reads_the_jobs_that_it_made_and_no_others(service, acme) -> None:
    mine = service.key("deployments:write")
    own = (await service.post(f"{acme.production}/builds", secret=mine)).data
    others = (await service.post(f"{acme.production}/builds", {"clean": True})).data
    assert (await service.get(own["links"]["self"], secret=mine)).status == 200
    heard = await service.get(others["links"]["self"], secret=mine)
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    assert "jobs:read" in heard.body["error"]["message"]


async def test_key_reads_the_job_of_a_build_that_another_asked_for_first(service, acme) -> None:
    first = (await service.post(f"{acme.production}/builds", {"deploy": True})).data
    too = service.key("deployments:write")
    asked = await service.post(f"{acme.production}/builds", {"deploy": True}, secret=too)
    assert (asked.status, asked.data["id"]) == (202, first["id"])
    assert "Idempotent-Replayed" not in asked.headers
    await service.build()
    done = await service.get(first["links"]["self"], secret=too)
    deployment = done.data["result"]["deployment_id"]
    path = f"{acme.production}/deployments/{deployment}"
    roll = (await service.get(path, secret=too)).data["job_id"]
    assert (await service.get(f"/v1/jobs/{roll}", secret=too)).status == 200
    stranger = service.key("deployments:write")
    for job_id in (first["id"], roll):
        assert (await service.get(f"/v1/jobs/{job_id}", secret=stranger)).status == 403


async def test_actor_of_what_a_key_did_is_the_key(service, acme) -> None:
    secret, key = service.minted("deployments:write", label="ci")
    heard = await service.post(f"{acme.production}/builds", secret=secret)
    build = await service.get(f"{acme.production}/builds/{heard.data['resource']['id']}")
    assert build.data["actor"] == {"type": "api_key", "id": key.id, "label": "ci"}


async def test_key_of_a_deleted_site_is_gone_with_it(service, acme) -> None:
    secret = service.key("*", site_id=acme.id)
    assert (await service.call("DELETE", acme.path, secret=secret)).status == 200
    assert (await service.get("/v1/sites", secret=secret)).status == 401


async def test_key_that_is_revoked_before_its_body_is_whole_does_nothing(service) -> None:
    secret, key = service.minted("*")
    body = b'{"name": "mine"}'
    head = (
        f"POST /v1/sites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*service.socket.getsockname())
    writer.write(head.encode() + body[:-1])
    async with asyncio.timeout(20):
        while api_keys.get(service.records.reader(), key.id).last_used_at is None:
            await asyncio.sleep(0.01)  # until it was let in
        service.records.write(lambda db: api_keys.revoke(db, key.id, service.clock.now))
        writer.write(body[-1:])
        answer = await reader.readuntil(b"}")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401")
    assert (await service.get("/v1/sites")).data == []


async def test_body_that_does_not_come_is_not_waited_for(service) -> None:
    service.body_timeout_s = 0.05
    await service.restart()
    head = (
        f"POST /v1/sites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.secret}\r\n"
        "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(*service.socket.getsockname())
    writer.write(head.encode() + b"{")
    answer = await asyncio.wait_for(reader.readuntil(b'"request.timed_out"'), 20)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408")


async def test_key_of_an_environment_reads_and_deploys_no_artifact_of_another(
    service, acme
) -> None:
    release = await acme.release(b"one")
    bound = service.key("*", site_id=acme.id, env_id=await acme.env_id("staging"))
    assert (await service.get(f"{acme.staging}/artifacts", secret=bound)).data == []
    path = f"{acme.staging}/artifacts/{release['artifact_id']}"
    for part in ("", "/manifest", "/provenance", "/export"):
        heard = await service.get(f"{path}{part}", secret=bound)
        assert (heard.status, heard.code) == (404, "artifact.not_found"), part
        assert (await service.get(f"{path}{part}")).status == 200, part
    body = {"artifact_id": release["artifact_id"]}
    heard = await service.post(f"{acme.staging}/deployments", body, secret=bound)
    assert (heard.status, heard.code) == (404, "artifact.not_found")
    assert (await service.post(f"{acme.staging}/deployments", body)).status == 202
    assert (await service.get(path, secret=bound)).status == 200
