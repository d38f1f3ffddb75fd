"""Variables and secrets over HTTP: who may, what is shown, and what never is."""

from __future__ import annotations

import json

import pytest

VALUE = 'canary-$x \'"\\ {"a": [1]}\n\u00e9\U0001f511'


@pytest.fixture
async def keeper(service, acme):
    """A key that may set and see credentials, and nothing else."""
    service.secret = service.key("credentials:read", "credentials:write")
    return service


async def test_secret_is_write_only(keeper, acme) -> None:
    for where in (acme.path, acme.production):
        made = await keeper.call("PUT", f"{where}/secrets/NPM_TOKEN", {"value": VALUE})
        listed = await keeper.get(f"{where}/secrets")
        scope = "site" if where == acme.path else "environment"
        assert made.status == 200, made.raw
        assert made.data == {
            "name": "NPM_TOKEN",
            "used_in": "build",
            "scope": scope,
            "updated_at": "2026-05-28T20:26:40.000Z",
            "jobs": [],
        }
        assert listed.data == [made.data]
        assert b"canary" not in made.raw + listed.raw
        assert (await keeper.get(f"{where}/variables")).data == []
        assert (await keeper.get(f"{where}/secrets/NPM_TOKEN")).status == 405


async def test_variable_comes_back_byte_for_byte(keeper, acme) -> None:
    path = f"{acme.production}/variables/API_URL"
    assert (await keeper.call("PUT", path, {"value": VALUE})).data["value"] == VALUE
    assert (await keeper.get(f"{acme.production}/variables")).data[0]["value"] == VALUE
    assert (await keeper.call("DELETE", path)).data == {
        "id": "API_URL",
        "jobs": [],
        "deleted": True,
    }
    assert (await keeper.get(f"{acme.production}/variables")).data == []
    again = await keeper.call("DELETE", path)
    assert (again.status, again.code) == (404, "variable.not_found")


@pytest.mark.parametrize("kind", ["variables", "secrets"])
async def test_several_are_set_in_one_change(keeper, acme, kind) -> None:
    values = {"B": VALUE, "A": f"{VALUE}, too"}
    for where in (acme.path, acme.production):
        made = await keeper.call(
            "PATCH", f"{where}/{kind}?roll=false", {"values": values, "used_in": "both"}
        )
        assert made.status == 200, made.raw
        assert made.data["jobs"] == []
        listed = (await keeper.get(f"{where}/{kind}")).data
        assert [each["name"] for each in made.data[kind]] == ["B", "A"]
        assert sorted(made.data[kind], key=lambda each: each["name"]) == listed
        shown = {each["name"]: each.get("value") for each in listed}
        assert shown == (values if kind == "variables" else {"A": None, "B": None})
        assert {each["used_in"] for each in listed} == {"both"}
    lines = await keeper.every("/v1/audit-log", secret=keeper.key("sites:admin"))
    assert [each["target"] for each in lines if each["action"].endswith(".set")] == [*"ABAB"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"values": {"A": VALUE, "PATH": VALUE}}, 400, "values"),
        ({"values": {"A": VALUE, "B": "canary\0"}}, 400, "values"),
        ({"values": {"A": VALUE, "B": 1}}, 400, "values[...]"),
        ({"values": {"A": VALUE, "B": None}}, 400, "values[...]"),
        ({"values": {"A": VALUE, "OTHER": VALUE}}, 409, None),
        ({"values": {f"A{number}": "x" * 9 for number in range(101)}}, 409, None),
        ({"values": {}}, 400, "values"),
        ({}, 400, "values"),
    ],
)
async def test_of_several_either_all_are_set_or_none(keeper, acme, body, status, param) -> None:
    await keeper.call("PUT", f"{acme.path}/secrets/OTHER", {"value": VALUE})
    heard = await keeper.call("PATCH", f"{acme.path}/variables", body)
    assert (heard.status, heard.body["error"].get("param")) == (status, param)
    assert "canary" not in json.dumps(heard.body["error"]["message"])
    assert (await keeper.get(f"{acme.path}/variables")).data == []


async def test_environment_lists_what_holds_there(keeper, acme) -> None:
    await keeper.call("PUT", f"{acme.path}/variables/A", {"value": "of the site"})
    await keeper.call("PUT", f"{acme.path}/variables/B", {"value": "of the site"})
    await keeper.call("PUT", f"{acme.production}/variables/B", {"value": "its own"})
    listed = await keeper.every(f"{acme.production}/variables", limit=1)
    assert [(v["name"], v["value"], v["scope"]) for v in listed] == [
        ("A", "of the site", "site"),
        ("B", "its own", "environment"),
    ]


async def test_use_is_said_once_and_kept_until_another_is_said(keeper, acme) -> None:
    path = f"{acme.path}/secrets/TOKEN"
    used = [
        (await keeper.call("PUT", path, {"value": VALUE, **more})).data["used_in"]
        for more in ({}, {"used_in": "run"}, {}, {"used_in": "both"})
    ]
    assert used == ["build", "run", "run", "both"]
    brief = await keeper.call("PUT", f"{acme.path}/secrets/PIN", {"value": "1", "used_in": "run"})
    assert brief.status == 200, "what only runs is given it may be short"
    for wrong in (f"{path}?roll=perhaps", f"{path}?rol=false"):
        assert (await keeper.call("PUT", wrong, {"value": VALUE})).status == 400


@pytest.mark.parametrize("scopes", [("*",), ("sites:admin", "environments:admin"), ()])
async def test_only_credential_scopes_open_it(service, acme, scopes) -> None:
    secret = service.key(*scopes) if scopes else service.key("credentials:write")
    read = await service.get(f"{acme.path}/secrets", secret=secret)
    assert (read.status, read.code) == (403, "scope.insufficient")
    written = await service.call("PUT", f"{acme.path}/secrets/T", {"value": VALUE}, secret=secret)
    assert written.status == (403 if scopes else 200)


async def test_key_of_one_environment_sets_that_one_alone(service, acme) -> None:
    bound = service.key(
        "credentials:read",
        "credentials:write",
        site_id=acme.id,
        env_id=await acme.env_id("staging"),
    )
    answers = [
        await service.call("PUT", f"{where}/secrets/T", {"value": VALUE}, secret=bound)
        for where in (acme.staging, acme.production, acme.path)
    ]
    assert [heard.status for heard in answers] == [200, 404, 403]


@pytest.mark.parametrize(
    ("name", "body", "param"),
    [
        ("PATH", {"value": VALUE}, "name"),
        ("A-B", {"value": VALUE}, "name"),
        ("T", {"value": "canary\0"}, "value"),
        ("T", {"value": "short"}, "value"),
        ("T", {"value": "canary" * 6000}, "value"),
        ("T", {"value": VALUE, "usedin": "canary"}, "usedin"),
        ("T", {}, "value"),
    ],
)
async def test_fault_names_the_field_and_not_the_value(keeper, acme, name, body, param) -> None:
    heard = await keeper.call("PUT", f"{acme.path}/secrets/{name}", body)
    assert (heard.status, heard.body["error"]["param"]) == (400, param)
    assert "canary" not in json.dumps(heard.body["error"]["message"])


async def test_other_kind_is_refused(keeper, acme) -> None:
    await keeper.call("PUT", f"{acme.path}/secrets/T", {"value": VALUE})
    heard = await keeper.call("PUT", f"{acme.path}/variables/T", {"value": VALUE})
    assert (heard.status, heard.code) == (409, "variable.other_kind")
