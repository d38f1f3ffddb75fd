"""Custom domains. Contract §5: "custom domains on production"; scopes `domains:*` of §2."""

from __future__ import annotations

import asyncio

import pytest

from storage.ids import is_id


async def added(service, environment: str, hostname: str, **more) -> dict:
    heard = await service.post(f"{environment}/domains", {"hostname": hostname}, **more)
    assert heard.status == 201, heard.raw
    return heard.data


async def test_domain_is_added_shown_listed_and_removed(service, acme) -> None:
    secret, key = service.minted("domains:write", label="ci")
    heard = await service.post(
        f"{acme.production}/domains", {"hostname": "WWW.Example.COM."}, secret=secret
    )
    assert heard.status == 201
    shown = dict(heard.data)
    assert is_id(shown.pop("id"), "dom")
    shown.pop("created_at")
    assert shown == {
        "site_id": acme.id,
        "env_id": await acme.env_id("production"),
        "hostname": "www.example.com",
        "url": "http://www.example.com",
        "status": "active",
        "dns": {
            "cname": "acme-store.sites.forge.example",
            "addresses": ["203.0.113.7", "2001:db8::7"],
        },
        "actor": {"type": "api_key", "id": key.id, "label": "ci"},
    }
    reader = service.key("domains:read")
    for path in (
        heard.headers["Location"],
        f"{acme.production}/domains/www.example.com",
        f"{acme.production}/domains/WWW.example.com.",
    ):
        assert (await service.get(path, secret=reader)).data == heard.data
    assert (await service.get(f"{acme.production}/domains", secret=reader)).data == [heard.data]
    assert (await service.get(acme.production)).data["domains"] == ["www.example.com"]
    gone = await service.call("DELETE", f"{acme.production}/domains/Www.Example.com", secret=secret)
    assert gone.data == {"id": heard.data["id"], "deleted": True}
    assert (await service.get(f"{acme.production}/domains")).data == []
    assert (await service.get(acme.production)).data["domains"] == []
    for method in ("GET", "DELETE"):
        heard = await service.call(method, f"{acme.production}/domains/{gone.data['id']}")
        assert (heard.status, heard.code) == (404, "domain.not_found")


async def test_staging_has_domains_and_previews_have_none(service, acme) -> None:
    await added(service, acme.staging, "next.example.com")
    await service.post(f"{acme.path}/environments", {"kind": "preview", "branch": "topic"})
    preview = f"{acme.path}/environments/topic"
    heard = await service.post(f"{preview}/domains", {"hostname": "topic.example.com"})
    assert (heard.status, heard.code) == (409, "domain.not_for_previews")
    assert (await service.get(f"{preview}/domains")).data == []
    listed = await service.get(f"{acme.path}/environments")
    assert {each["slug"]: each["domains"] for each in listed.data} == {
        "production": [],
        "staging": ["next.example.com"],
        "topic": [],
    }


async def test_capabilities_have_their_number(service, acme) -> None:
    heard = await service.get(f"{acme.path}/capabilities")
    assert heard.data["features"]["custom_domains"] is True
    assert heard.data["limits"]["domains"] == 100


async def test_list_is_paged_newest_first(service, acme) -> None:
    names = [f"shop-{number}.example.com" for number in range(5)]
    for name in names:
        await added(service, acme.production, name)
    await added(service, acme.staging, "next.example.com")
    listed = await service.every(f"{acme.production}/domains", limit=2)
    assert [each["hostname"] for each in listed] == names[::-1]
    page = await service.get(f"{acme.production}/domains?limit=2")
    cursor = page.body["pagination"]["next_cursor"]
    heard = await service.get(f"{acme.staging}/domains?cursor={cursor}")
    assert (heard.status, heard.code) == (400, "pagination.cursor_invalid")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"hostname": 1},
        {"hostname": ""},
        {"hostname": "localhost"},
        {"hostname": "https://example.com"},
        {"hostname": "example.com:443"},
        {"hostname": "*.example.com"},
        {"hostname": "127.0.0.1"},
        {"hostname": "a" * 64 + ".com"},
        {"hostname": "a." * 600 + "com"},
        {"hostname": "xn--a.example"},
        {"hostname": "www.example.com\u0000"},
    ],
)
async def test_what_is_no_host_name_is_400_and_names_the_field(service, acme, body) -> None:
    heard = await service.post(f"{acme.production}/domains", body)
    assert (heard.status, heard.code) == (400, "request.invalid")
    assert heard.body["error"]["param"] == "hostname"


async def test_names_of_the_server_are_refused(service, acme) -> None:
    for name in ("other.sites.forge.example", "forge.example", "Api.FORGE.example."):
        heard = await service.post(f"{acme.production}/domains", {"hostname": name})
        assert (heard.status, heard.code) == (409, "domain.reserved"), name


async def test_name_of_another_site_is_taken_and_nobody_is_told_whose(service, acme) -> None:
    other = (await service.post("/v1/sites", {"name": "victim"})).data
    path = "/v1/sites/victim/environments/production"
    domain = await added(service, path, "shop.example.com")
    for spelling in (
        "shop.example.com",
        "SHOP.Example.com",
        "shop.example.com.",
        "shop。example.com",
    ):
        for secret in (service.secret, service.key("*", site_id=acme.id)):
            heard = await service.post(
                f"{acme.production}/domains", {"hostname": spelling}, secret=secret
            )
            assert (heard.status, heard.code) == (409, "domain.taken"), spelling
            for told in ("victim", other["id"], domain["id"], domain["env_id"]):
                assert told.encode() not in heard.raw
    for method in ("GET", "DELETE"):
        for name in (domain["id"], domain["hostname"]):
            heard = await service.call(method, f"{acme.production}/domains/{name}")
            assert (heard.status, heard.code) == (404, "domain.not_found")
    assert (await service.get(f"{path}/domains")).data == [domain]


async def test_key_of_an_environment_is_told_nothing_of_the_others(service, acme) -> None:
    domain = await added(service, acme.production, "shop.example.com")
    staging = await acme.env_id("staging")
    bound = service.key("*", site_id=acme.id, env_id=staging)
    heard = await service.get(f"{acme.production}/domains", secret=bound)
    assert (heard.status, heard.code) == (404, "environment.not_found")
    body = {"hostname": "shop.example.com"}
    heard = await service.post(f"{acme.staging}/domains", body, secret=bound)
    assert (heard.status, heard.code) == (409, "domain.taken")
    assert b"production" not in heard.raw
    heard = await service.post(f"{acme.staging}/domains", body)
    assert "production" in heard.body["error"]["message"]
    heard = await service.call("DELETE", f"{acme.staging}/domains/{domain['id']}", secret=bound)
    assert (heard.status, heard.code) == (404, "domain.not_found")
    await added(service, acme.staging, "next.example.com", secret=bound)


async def test_same_name_again_is_a_conflict_and_with_its_key_the_first_answer(
    service, acme
) -> None:
    once = {"Idempotency-Key": "one"}
    first = await added(service, acme.production, "shop.example.com", headers=once)
    path, body = f"{acme.production}/domains", {"hostname": "shop.example.com"}
    heard = await service.post(path, body)
    assert (heard.status, heard.code) == (409, "domain.exists")
    assert first["id"] in heard.body["error"]["message"]
    asked = (service.post(path, body, headers=once) for _ in range(20))
    for heard in await asyncio.gather(*asked):
        assert (heard.status, heard.data) == (201, first)
        assert heard.headers["Idempotent-Replayed"] == "true"
    heard = await service.post(f"{acme.staging}/domains", body, headers=once)
    assert (heard.status, heard.code) == (400, "idempotency.key_reused")


async def test_domains_outlive_a_restart_and_go_with_their_site(service, acme) -> None:
    domain = await added(service, acme.production, "shop.example.com")
    await service.restart()
    assert (await service.get(f"{acme.production}/domains")).data == [domain]
    assert (await service.call("DELETE", acme.path)).status == 200
    await service.post("/v1/sites", {"name": "other"})
    await added(service, "/v1/sites/other/environments/production", "shop.example.com")


async def test_changes_stand_in_the_audit_log_by_name(service, acme) -> None:
    for _ in range(2):
        await added(service, acme.production, "Shop.example.com")
        await service.call("DELETE", f"{acme.production}/domains/shop.example.com")
    await added(service, acme.production, "shop.example.com")
    await service.call("DELETE", acme.path)
    log = [
        (entry["action"], entry["target"], entry["site_id"])
        for entry in await service.every("/v1/audit-log")
        if entry["action"].startswith("domain.")
    ]
    assert log == [
        (action, "shop.example.com", acme.id)
        for _ in range(3)
        for action in ("domain.removed", "domain.added")
    ]


async def test_refused_name_is_no_change(service, acme) -> None:
    before = len(await service.every("/v1/audit-log"))
    await service.post(f"{acme.production}/domains", {"hostname": "x.forge.example"})
    assert len(await service.every("/v1/audit-log")) == before


async def test_openapi_has_them(service) -> None:
    paths = (await service.get("/v1/openapi.json")).body["paths"]
    assert set(paths["/v1/sites/{site}/environments/{env}/domains"]) == {"get", "post"}
    assert set(paths["/v1/sites/{site}/environments/{env}/domains/{domain}"]) == {"get", "delete"}
