"""API keys over the API. Contract §2 "Authentication", "Scopes"; §5 "API keys"."""

from __future__ import annotations

import asyncio

import pytest

from gitd.auth import Authenticator
from gitd.scopes import PRESETS
from storage.ids import is_id
from storage.records import api_keys

KEYS = "/v1/api-keys"
DAY_MS = 24 * 60 * 60 * 1000


@pytest.fixture
def keeper(service) -> str:
    """The secret of a key that may do all, and make keys."""
    return service.key("*", "keys:write")


async def test_made_key_works_and_its_secret_is_shown_once(service, keeper) -> None:
    body = {"label": "ci", "preset": "deploy-bot", "family": "service"}
    made = await service.post(KEYS, body, secret=keeper)
    assert made.status == 201
    assert is_id(made.data["id"], "key")
    assert made.headers["Location"] == f"{KEYS}/{made.data['id']}"
    secret = made.data["secret"]
    assert secret.startswith("mfs_live_")
    assert (await service.get("/v1/sites", secret=secret)).status == 200
    shown = await service.get(f"{KEYS}/{made.data['id']}", secret=keeper)
    assert shown.data["label"] == "ci"
    assert shown.data["scopes"] == sorted(PRESETS["deploy-bot"])
    listed = await service.get(KEYS, secret=keeper)
    assert listed.data[0]["id"] == made.data["id"]
    for heard in (shown, listed):
        assert b'"secret"' not in heard.raw
        assert secret.encode() not in heard.raw


async def test_key_lives_90_days_unless_it_is_said_and_a_year_at_most(service) -> None:
    keeper = service.key("*", "keys:write", ttl_ms=365 * DAY_MS)
    body = {"label": "ci", "scopes": ["jobs:read"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    kept = api_keys.get(service.records.reader(), made["id"])
    assert kept.expires_at == service.clock.now + 90 * DAY_MS
    for ttl_s, status in ((365 * 86400, 201), (365 * 86400 + 1, 400), (0, 400), (-1, 400)):
        heard = await service.post(KEYS, {**body, "ttl_s": ttl_s}, secret=keeper)
        assert heard.status == status, ttl_s
        assert status == 201 or heard.body["error"]["param"] == "ttl_s"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["jobs:read"]}, "label"),
        ({"label": "ci"}, "scopes"),
        ({"label": "", "scopes": ["jobs:read"]}, "label"),
        ({"label": "ci", "scopes": ["jobs:raed"]}, "scopes"),
        ({"label": "ci", "preset": "root"}, "preset"),
        ({"label": "ci", "preset": "read-only", "family": "mine"}, "family"),
        ({"label": "ci", "preset": "read-only", "cidrs": ["10.0.0.1/8"]}, "cidrs"),
        ({"label": "ci", "preset": "read-only", "env_id": "production"}, "site_id"),
    ],
)
async def test_key_that_cannot_be_is_refused_and_names_the_field(
    service, keeper, body, param
) -> None:
    heard = await service.post(KEYS, body, secret=keeper)
    assert (heard.status, heard.code) == (400, "request.invalid")
    assert heard.body["error"]["param"] == param


async def test_keys_need_the_isolated_scope_that_no_star_covers(service, keeper) -> None:
    key = (await service.get(KEYS, secret=keeper)).data[0]["id"]
    for method, path in (
        ("GET", KEYS),
        ("POST", KEYS),
        ("GET", f"{KEYS}/{key}"),
        ("PATCH", f"{KEYS}/{key}"),
        ("DELETE", f"{KEYS}/{key}"),
        ("POST", f"{KEYS}/{key}/roll"),
    ):
        heard = await service.call(method, path, secret=service.key("*"))
        assert (heard.status, heard.code) == (403, "scope.insufficient")
        assert "keys:write" in heard.body["error"]["message"]


async def test_nobody_gives_away_a_scope_that_he_lacks(service, keeper) -> None:
    weak = service.key("keys:write", "deployments:read")
    strong = (await service.post(KEYS, {"label": "x", "scopes": ["*"]}, secret=keeper)).data["id"]
    for scopes in (["deployments:write"], ["*"], ["keys:write", "credentials:read"]):
        heard = await service.post(KEYS, {"label": "x", "scopes": scopes}, secret=weak)
        assert (heard.status, heard.code) == (403, "scope.insufficient"), scopes
    for method, path in (("PATCH", f"{KEYS}/{strong}"), ("POST", f"{KEYS}/{strong}/roll")):
        heard = await service.call(method, path, secret=weak)
        assert (heard.status, heard.code) == (403, "scope.insufficient"), path
    body = {"label": "x", "scopes": ["deployments:read", "keys:write"]}
    assert (await service.post(KEYS, body, secret=weak)).status == 201


async def test_bound_key_sees_and_makes_only_keys_within_what_it_is_bound_to(
    service, acme, keeper
) -> None:
    other = (await service.post("/v1/sites", {"name": "other"})).data["id"]
    body = {"label": "x", "scopes": ["jobs:read"]}
    foreign = (await service.post(KEYS, {**body, "site_id": "other"}, secret=keeper)).data
    assert foreign["site_id"] == other
    bound = service.key("*", "keys:write", site_id=acme.id)
    own = (await service.post(KEYS, body, secret=bound)).data
    assert (own["site_id"], own["env_id"]) == (acme.id, None)
    narrow = await service.post(KEYS, {**body, "env_id": "staging"}, secret=bound)
    assert narrow.data["env_id"] == await acme.env_id("staging")
    seen = {key["id"] for key in (await service.get(KEYS, secret=bound)).data}
    assert {own["id"], narrow.data["id"]} < seen
    assert foreign["id"] not in seen
    heard = await service.post(KEYS, {**body, "site_id": "other"}, secret=bound)
    assert (heard.status, heard.code) == (404, "site.not_found")
    for method, part in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/roll")):
        heard = await service.call(method, f"{KEYS}/{foreign['id']}{part}", secret=bound)
        assert (heard.status, heard.code) == (404, "api_key.not_found")
    staging = narrow.data["env_id"]
    narrower = service.key("*", "keys:write", site_id=acme.id, env_id=staging)
    assert (await service.get(f"{KEYS}/{own['id']}", secret=narrower)).status == 404
    assert (await service.get(f"{KEYS}/{narrow.data['id']}", secret=narrower)).status == 200
    assert (await service.post(KEYS, body, secret=narrower)).data["env_id"] == staging
    heard = await service.post(KEYS, {**body, "env_id": "production"}, secret=narrower)
    assert (heard.status, heard.code) == (404, "environment.not_found")


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ({"site_id": ""}, "site.not_found"),
        ({"env_id": ""}, "request.invalid"),
        ({"site_id": "acme-store", "env_id": ""}, "environment.not_found"),
    ],
)
async def test_name_that_a_script_left_empty_makes_no_key_for_everything(
    service, acme, keeper, names, code
) -> None:
    body = {"label": "x", "scopes": ["deployments:write"], **names}
    assert (await service.post(KEYS, body, secret=keeper)).code == code


async def test_roll_gives_another_secret_and_both_work_until_the_grace_is_over(
    service, keeper
) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    rolled = await service.post(f"{KEYS}/{made['id']}/roll", {"grace_s": 60}, secret=keeper)
    assert rolled.status == 200
    old, new = made["secret"], rolled.data["secret"]
    assert old != new
    assert rolled.data["id"] == made["id"]
    assert rolled.data["expires_at"] == made["expires_at"]
    for secret in (old, new, old):
        assert (await service.get("/v1/sites", secret=secret)).status == 200
    service.clock.now += 60_000
    assert (await service.get("/v1/sites", secret=old)).status == 401
    assert (await service.get("/v1/sites", secret=new)).status == 200
    again = await service.post(f"{KEYS}/{made['id']}/roll", {"grace_s": 0}, secret=keeper)
    assert (await service.get("/v1/sites", secret=new)).status == 401
    assert (await service.get("/v1/sites", secret=again.data["secret"])).status == 200
    assert again.data["previous_secret_until"] is None


async def test_rolled_key_ends_with_both_its_secrets(service, keeper) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    rolled = (await service.post(f"{KEYS}/{made['id']}/roll", secret=keeper)).data
    assert (await service.call("DELETE", f"{KEYS}/{made['id']}", secret=keeper)).status == 200
    for secret in (made["secret"], rolled["secret"]):
        assert (await service.get("/v1/sites", secret=secret)).status == 401


async def test_expired_key_is_rolled_only_to_a_new_end(service, keeper) -> None:
    body = {"label": "ci", "scopes": ["sites:read"], "ttl_s": 60}
    made = (await service.post(KEYS, body, secret=keeper)).data
    service.clock.now += 60_000
    roll = f"{KEYS}/{made['id']}/roll"
    heard = await service.post(roll, secret=keeper)
    assert (heard.status, heard.body["error"]["param"]) == (400, "ttl_s")
    rolled = await service.post(roll, {"ttl_s": 60}, secret=keeper)
    assert (await service.get("/v1/sites", secret=rolled.data["secret"])).status == 200
    assert (await service.get("/v1/sites", secret=made["secret"])).status == 401


async def test_repeated_request_makes_one_key_and_never_shows_its_secret_again(
    service, keeper
) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    headers = {"Idempotency-Key": "one"}
    several = [service.post(KEYS, body, secret=keeper, headers=headers) for _ in range(8)]
    heard = await asyncio.gather(*several)
    assert {answer.status for answer in heard} == {201}
    assert len({answer.data["id"] for answer in heard}) == 1
    secrets = [answer.data["secret"] for answer in heard if answer.data["secret"]]
    assert len(secrets) == 1
    replayed = [answer for answer in heard if "Idempotent-Replayed" in answer.headers]
    assert len(replayed) == 7
    roll, headers = f"{KEYS}/{heard[0].data['id']}/roll", {"Idempotency-Key": "two"}
    first = await service.post(roll, secret=keeper, headers=headers)
    second = await service.post(roll, secret=keeper, headers=headers)
    assert (first.data["hint"], second.data["secret"]) == (second.data["hint"], None)
    assert (await service.get("/v1/sites", secret=first.data["secret"])).status == 200


async def test_changed_label_and_networks_count_at_once(service, keeper) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    path = f"{KEYS}/{made['id']}"
    heard = await service.call("PATCH", path, {"cidrs": ["192.0.2.0/24"]}, secret=keeper)
    assert (heard.data["cidrs"], heard.data["label"]) == (["192.0.2.0/24"], "ci")
    assert (await service.get("/v1/sites", secret=made["secret"])).status == 403
    heard = await service.call("PATCH", path, {"label": "cd", "cidrs": []}, secret=keeper)
    assert (heard.data["cidrs"], heard.data["label"]) == ([], "cd")
    assert (await service.get("/v1/sites", secret=made["secret"])).status == 200
    heard = await service.call("PATCH", path, {"scopes": ["*"]}, secret=keeper)
    assert (heard.status, heard.body["error"]["param"]) == (400, "scopes")


async def test_deleted_key_is_gone(service, keeper) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    path = f"{KEYS}/{made['id']}"
    heard = await service.call("DELETE", path, secret=keeper)
    assert (heard.status, heard.data) == (200, {"id": made["id"], "deleted": True})
    assert (await service.get("/v1/sites", secret=made["secret"])).status == 401
    for method, where in (("GET", path), ("DELETE", path), ("POST", f"{path}/roll")):
        heard = await service.call(method, where, secret=keeper)
        assert (heard.status, heard.code) == (404, "api_key.not_found")
    assert made["id"] not in [key["id"] for key in (await service.get(KEYS, secret=keeper)).data]


async def test_pages_of_keys_are_exact_while_keys_come_and_go(service, keeper) -> None:
    body = {"label": "ci", "scopes": ["sites:read"]}
    made = [(await service.post(KEYS, body, secret=keeper)).data["id"] for _ in range(7)]
    first = await service.get(f"{KEYS}?limit=3", secret=keeper)
    assert [key["id"] for key in first.data] == made[:3:-1]
    await service.post(KEYS, body, secret=keeper)
    await service.call("DELETE", f"{KEYS}/{made[4]}", secret=keeper)
    cursor = first.body["pagination"]["next_cursor"]
    rest = await service.get(f"{KEYS}?limit=4&cursor={cursor}", secret=keeper)
    assert [key["id"] for key in rest.data] == made[3::-1]


async def test_old_secret_of_a_rolled_key_touches_no_key(service, keeper) -> None:
    """Whoever stole it would roll once more, at once, and its owner would be out."""
    body = {"label": "ops", "scopes": ["*", "keys:write"]}
    made = (await service.post(KEYS, body, secret=keeper)).data
    path = f"{KEYS}/{made['id']}"
    old, new = made["secret"], (await service.post(f"{path}/roll", secret=made["secret"])).data
    for method, where, said in (
        ("POST", f"{path}/roll", {"grace_s": 0}),
        ("PATCH", path, {"label": "mine"}),
        ("DELETE", path, None),
        ("POST", KEYS, {"label": "x", "scopes": ["sites:read"]}),
    ):
        heard = await service.call(method, where, said, secret=old)
        assert (heard.status, heard.code) == (403, "permission.secret_rolled"), where
    assert (await service.get(path, secret=old)).status == 200, "else it works until its end"
    assert (await service.post(f"{path}/roll", secret=new["secret"])).status == 200


async def test_nobody_gives_away_a_later_end_than_his_own(service) -> None:
    secret, key = service.minted("*", "keys:write", ttl_ms=3600_000)
    body = {"label": "x", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=secret)).data
    kept = api_keys.get(service.records.reader(), made["id"])
    assert (kept.expires_at, made["created_by"]) == (key.expires_at, key.id)
    later = service.minted("sites:read")[1].id
    for path, said in (
        (KEYS, {**body, "ttl_s": 3601}),
        (f"{KEYS}/{key.id}/roll", {"ttl_s": 3601}),
        (f"{KEYS}/{later}/roll", {}),
    ):
        heard = await service.post(path, said, secret=secret)
        assert (heard.status, heard.code) == (403, "permission.beyond_key"), path
    rolled = await service.post(f"{KEYS}/{later}/roll", {"ttl_s": 3600}, secret=secret)
    assert rolled.status == 200


async def test_nobody_gives_away_more_networks_than_his_own(service) -> None:
    secret, key = service.minted("*", "keys:write", cidrs=["127.0.0.0/8", "::1/128"])
    body = {"label": "x", "scopes": ["sites:read"]}
    made = (await service.post(KEYS, body, secret=secret)).data
    assert made["cidrs"] == ["127.0.0.0/8", "::1/128"]
    own, wide = f"{KEYS}/{key.id}", service.minted("sites:read")[1].id
    for method, path, said in (
        ("POST", KEYS, {**body, "cidrs": ["127.0.0.1/32", "192.0.2.0/24"]}),
        ("POST", KEYS, {**body, "cidrs": ["0.0.0.0/0"]}),
        ("PATCH", own, {"cidrs": []}),
        ("PATCH", own, {"cidrs": ["126.0.0.0/7"]}),
        ("POST", f"{KEYS}/{wide}/roll", {}),
    ):
        heard = await service.call(method, path, said, secret=secret)
        assert (heard.status, heard.code) == (403, "permission.beyond_key"), (path, said)
    heard = await service.call("PATCH", own, {"cidrs": ["127.0.0.0/16"]}, secret=secret)
    assert heard.data["cidrs"] == ["127.0.0.0/16"]


async def test_what_a_key_made_is_revoked_with_it_if_that_is_asked_for(service, keeper) -> None:
    body = {"label": "x", "scopes": ["sites:read", "keys:write"]}
    first = (await service.post(KEYS, body, secret=keeper)).data
    second = (await service.post(KEYS, body, secret=first["secret"])).data
    third = (await service.post(KEYS, body, secret=second["secret"])).data
    beside = (await service.post(KEYS, body, secret=keeper)).data
    assert [key["created_by"] for key in (second, third)] == [first["id"], second["id"]]
    path = f"{KEYS}/{second['id']}"
    assert (await service.call("DELETE", path, secret=keeper)).status == 200
    assert (await service.get(KEYS, secret=third["secret"])).status == 200
    path = f"{KEYS}/{first['id']}?with_made=true"
    assert (await service.call("DELETE", path, secret=keeper)).status == 200
    for key, status in ((first, 401), (third, 401), (beside, 200)):
        assert (await service.get(KEYS, secret=key["secret"])).status == status


async def test_keys_that_come_from_one_are_bounded_and_share_its_rate(service, monkeypatch) -> None:
    monkeypatch.setattr("gitd.api.api_keys.MADE_COUNT_MAX", 3)
    body = {"label": "x", "scopes": ["sites:read", "keys:write"]}
    secret, key = service.minted("*", "keys:write")
    made = []
    for _ in range(3):
        made.append((await service.post(KEYS, body, secret=secret)).data)
        secret = made[-1]["secret"]
    heard = await service.post(KEYS, body, secret=secret)
    assert (heard.status, heard.code) == (409, "api_key.too_many")
    granted = Authenticator(service.records, service.clock).grant(secret)
    assert granted.counted_as == key.id
    assert (await service.call("DELETE", f"{KEYS}/{made[0]['id']}", secret=secret)).status == 200
    assert (await service.post(KEYS, body, secret=secret)).status == 201


async def test_keys_that_are_over_do_not_count_among_those_that_one_made(
    service, monkeypatch
) -> None:
    monkeypatch.setattr("gitd.api.api_keys.MADE_COUNT_MAX", 3)
    secret, _ = service.minted("*", "keys:write")
    body = {"label": "ci", "scopes": ["sites:read"], "ttl_s": 3600}
    for _ in range(5):
        assert (await service.post(KEYS, body, secret=secret)).status == 201
        service.clock.now += 2 * 3600 * 1000
