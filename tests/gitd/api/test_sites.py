"""Contract §5: sites, environments and branch routes, as far as a client needs them."""

from __future__ import annotations

import asyncio

import pytest


async def test_site_is_made_with_its_environments_routes_and_repository(service) -> None:
    heard = await service.post("/v1/sites", {"name": "acme-store"})
    assert heard.status == 201
    site = heard.data
    assert heard.headers["Location"] == f"/v1/sites/{site['id']}"
    assert site["git_url"] == f"{service.url}/acme-store.git"
    assert site["default_branch"] == "main"
    assert service.repositories.exists(site["id"])
    assert (await service.get(f"/v1/sites/{site['id']}")).data == site
    environments = (await service.get("/v1/sites/acme-store/environments")).data
    assert {e["slug"]: (e["kind"], e["branch"]) for e in environments} == {
        "production": ("production", "main"),
        "staging": ("staging", "staging"),
    }
    production = next(e for e in environments if e["slug"] == "production")
    assert production["preview_url"] == "http://acme-store.localhost:8081"
    assert production["status"] == "active"
    routes = (await service.get("/v1/sites/acme-store/branch-routes")).data["routes"]
    assert [(r["pattern"], r["target"]) for r in routes] == [
        ("main", "live"),
        ("staging", "staging"),
        ("*", "preview"),
    ]


async def test_site_whose_default_branch_is_staging_has_nothing_mapped_to_staging(service) -> None:
    """Its routes send that branch live: staging is not what it stands for."""
    body = {"name": "acme-store", "default_branch": "staging"}
    assert (await service.post("/v1/sites", body)).status == 201
    path = "/v1/sites/acme-store/environments"
    branches = {e["slug"]: e["branch"] for e in (await service.get(path)).data}
    assert branches == {"production": "staging", "staging": None}
    (found,) = (await service.get(f"{path}?branch=staging")).data
    assert found["slug"] == "production"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "Acme"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a--b"}, "name"),
        ({"name": "x" * 41}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "ok", "default_branch": "a..b"}, "default_branch"),
        ({"name": "ok", "default_branch": ""}, "default_branch"),
        ({"name": "ok", "default_branch": "😀\0"}, "default_branch"),
        ({}, "name"),
        (None, "name"),
    ],
)
async def test_site_that_cannot_be_names_the_field(service, body, param: str) -> None:
    heard = await service.post("/v1/sites", body)
    assert (heard.status, heard.code) == (400, "request.invalid")
    assert heard.body["error"]["param"] == param
    assert (await service.get("/v1/sites")).data == []
    assert list(service.repositories.root.glob("*")) == []


async def test_name_of_a_site_is_taken_once(service, acme) -> None:
    heard = await service.post("/v1/sites", {"name": "acme-store"})
    assert (heard.status, heard.code) == (409, "site.name_taken")


async def test_deleted_site_is_gone_with_what_it_had(service, acme) -> None:
    job = (await service.post(f"{acme.production}/builds")).data
    heard = await service.call("DELETE", acme.path)
    assert (heard.status, heard.data) == (200, {"id": acme.id, "deleted": True})
    for path in (acme.path, f"{acme.path}/environments", acme.production):
        assert (await service.get(path)).code == "site.not_found"
    assert not service.repositories.exists(acme.id)
    assert (await service.get(job["links"]["self"])).data["status"] == "canceled"
    assert (await service.call("DELETE", acme.path)).status == 404
    assert (await service.post("/v1/sites", {"name": "acme-store"})).status == 201


async def test_preview_is_made_found_by_branch_and_torn_down(service, acme) -> None:
    body = {"kind": "preview", "branch": "feature/checkout"}
    heard = await service.post(f"{acme.path}/environments", body)
    assert heard.status == 201
    preview = heard.data
    assert preview["slug"] == "feature-checkout"
    assert preview["ephemeral"] is True
    assert preview["expires_at"] > preview["created_at"]
    assert heard.headers["Location"] == f"{acme.path}/environments/feature-checkout"
    found = await service.get(f"{acme.path}/environments?branch=feature/checkout")
    assert [e["id"] for e in found.data] == [preview["id"]]
    assert (await service.get(f"{acme.path}/environments?branch=none")).data == []
    again = await service.post(f"{acme.path}/environments", body)
    assert (again.status, again.code) == (409, "environment.exists")
    gone = await service.call("DELETE", f"{acme.path}/environments/{preview['id']}")
    assert gone.data == {"id": preview["id"], "deleted": True}
    assert (await service.get(f"{acme.path}/environments/feature-checkout")).status == 404


async def test_production_and_staging_stay(service, acme) -> None:
    for path in (acme.production, acme.staging):
        assert (await service.get(path)).data["expires_at"] is None
        heard = await service.call("DELETE", path)
        assert (heard.status, heard.code) == (409, "environment.permanent")
    heard = await service.post(
        f"{acme.path}/environments", {"kind": "production", "branch": "main"}
    )
    assert (heard.status, heard.body["error"]["param"]) == (400, "kind")


async def test_environment_of_another_site_is_not_found_by_id(service, acme) -> None:
    env_id = await acme.env_id("production")
    await service.post("/v1/sites", {"name": "other"})
    heard = await service.get(f"/v1/sites/other/environments/{env_id}")
    assert (heard.status, heard.code) == (404, "environment.not_found")


async def test_branch_routes_are_replaced_as_a_whole_in_order(service, acme) -> None:
    routes = f"{acme.path}/branch-routes"
    wanted = [
        {"pattern": "release/*", "target": "live"},
        {"pattern": "wip/*", "target": "ignore"},
        {"pattern": "*", "target": "preview"},
    ]
    heard = await service.call("PUT", routes, {"routes": wanted})
    assert (heard.status, heard.data) == (200, {"routes": wanted})
    assert (await service.get(routes)).data == {"routes": wanted}
    refused = [
        *(([*wanted, {"pattern": p, "target": "live"}], "routes[3].pattern") for p in ("", "a..b")),
        (wanted * 40, "routes"),
    ]
    for wrong, param in refused:
        heard = await service.call("PUT", routes, {"routes": wrong})
        assert (heard.status, heard.code) == (400, "request.invalid")
        assert heard.body["error"]["param"] == param
    assert (await service.get(routes)).data == {"routes": wanted}


async def test_push_policy_is_set_for_a_site_or_an_environment_and_unset_again(
    service, acme
) -> None:
    for path in (acme.path, acme.production):
        assert (await service.get(path)).data["when_pushed_again"] is None
        for policy in ("wait", "all", "override", None):
            body = {"when_pushed_again": policy}
            changed = await service.call("PATCH", path, body)
            assert (changed.status, changed.data["when_pushed_again"]) == (200, policy)
            assert (await service.get(path)).data == changed.data
    await service.call("PATCH", acme.path, {"when_pushed_again": "all"})
    same = await service.call("PATCH", acme.path, {})
    assert (same.status, same.data["when_pushed_again"]) == (200, "all")
    assert (await service.get(acme.staging)).data["when_pushed_again"] is None
    heard = await service.call("PATCH", acme.path, {"when_pushed_again": "never"})
    assert (heard.status, heard.body["error"]["param"]) == (400, "when_pushed_again")
    heard = await service.call("PATCH", acme.path, {"name": "other"})
    assert (heard.status, heard.body["error"]["param"]) == (400, "name")


async def test_hundred_requests_for_one_build_at_once_are_one_job(service, acme) -> None:
    heard = await asyncio.gather(*(service.post(f"{acme.production}/builds") for _ in range(100)))
    assert {h.status for h in heard} == {202}
    assert len({h.data["id"] for h in heard}) == 1
    assert len((await service.get("/v1/jobs")).data) == 1


async def test_capabilities_say_what_the_site_and_the_key_can_do(service, acme) -> None:
    reader = service.key("sites:write", "jobs:read")
    heard = await service.get(f"{acme.path}/capabilities", secret=reader)
    assert heard.status == 200
    assert heard.data["site_id"] == acme.id
    assert heard.data["scopes"] == ["jobs:read", "sites:read", "sites:write"]
    assert heard.data["features"]["rollback"] is True
    assert heard.data["features"]["custom_domains"] is True
    assert "static" in heard.data["profiles"]
    assert heard.data["environment_kinds"] == ["production", "staging", "preview"]
    assert heard.data["route_targets"] == ["live", "staging", "preview", "ignore"]
    assert heard.data["limits"]["page_items"] == 100
    assert heard.data["features"]["build_cache"] is False
    heard = await service.get(f"{acme.path}/capabilities", secret=service.key("jobs:read"))
    assert (heard.status, heard.code) == (403, "scope.insufficient")


async def test_capabilities_say_that_builds_keep_what_the_next_ones_need(service, acme) -> None:
    service.has_build_cache = True
    await service.restart()
    heard = await service.get(f"{acme.path}/capabilities")
    assert heard.data["features"]["build_cache"] is True
