"""The names of environments: custom domains come, go and move while sites are served."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tests.hooks.deploys.conftest import WAIT_S

SHOP = "shop.example"


def page(text: str) -> dict[str, str]:
    return {"index.html": text}


def state_of(host, env: str) -> dict:
    path = host.directory / "environments" / env / "state.json"
    return json.loads(path.read_text())


async def until_named(host, env: str, names: list[str]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(FileNotFoundError):
                if state_of(host, env)["hostnames"] == names:
                    return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "spelling", [SHOP, "SHOP.Example", "shop.example.", "shop.example:8081", "Shop.Example.:80"]
)
async def test_visitors_come_by_a_custom_domain_however_they_spell_it(
    shelf, control, host, visitor, wanted, spelling
):
    roll = wanted(pin=shelf.put(page("shop")), hostnames=("env-1.localhost", SHOP))
    await control.roll(roll)
    assert await visitor.text(host=spelling) == "shop"
    assert await visitor.text(host="env-1.localhost") == "shop"
    assert (await visitor.ask(host=f"www.{SHOP}")).status == 404


async def test_suspended_environment_says_so_by_all_its_names(
    shelf, control, host, visitor, wanted
):
    names = ("env-1.localhost", SHOP)
    await control.roll(wanted(pin=shelf.put(page("shop")), hostnames=names))
    control.want(wanted(hostnames=names, is_suspended=True))
    for name in names:
        await visitor.until(503, host=name)
        assert "suspended" in await visitor.text(host=name)


async def test_name_that_moved_while_its_former_owner_rolled_leads_there_after_a_crash(
    shelf, control, host, visitor, wanted
):
    """The roll takes its time, and what is written only after it would be the old owner's."""
    old, new = "env_9", "env_0"  # what is read last at a start had the name then
    both = {"env": old, "hostnames": ("env-9.localhost", SHOP)}
    await control.roll(wanted(pin=shelf.put(page("old owner")), **both))
    await control.roll(wanted(pin=shelf.put(page("new owner")), env=new))
    pin = shelf.put_web("import time\ntime.sleep(300)")
    rolling = control.want(wanted(pin=pin, **both))
    async with asyncio.timeout(WAIT_S):
        while not any("unpack" in line.stage for line in control.lines[rolling.deployment_id]):
            await asyncio.sleep(0.01)
    deployment = control.desired[new]
    control.want(
        wanted(env=old, pin=pin, deployment=rolling.deployment_id, hostnames=("env-9.localhost",))
    )
    await until_named(host, old, ["env-9.localhost"])
    control.want(
        wanted(
            env=new,
            pin=deployment.artifact,
            deployment=deployment.deployment_id,
            hostnames=("env-0.localhost", SHOP),
        )
    )
    await until_named(host, new, ["env-0.localhost", SHOP])
    assert await visitor.text(host=SHOP) == "new owner"
    assert all(one.deployment_id != rolling.deployment_id for one in control.reports)
    host.kill()
    await control.stop()
    host.start()
    assert await visitor.text(host="env-9.localhost") == "old owner"
    assert await visitor.text(host=SHOP) == "new owner"


async def test_release_that_goes_live_later_has_the_names_that_came_meanwhile(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put_web(
        "import http.server, os, time\n"
        "while not os.path.exists('/data/go'): time.sleep(0.01)\n"
        "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ['PORT']))\n"
    )
    rolling = control.want(wanted(pin=pin))
    async with asyncio.timeout(WAIT_S):
        while not (host.directory / "environments/env_1/data").exists():
            await asyncio.sleep(0.01)
    names = ("env-1.localhost", SHOP)
    control.want(wanted(pin=pin, deployment=rolling.deployment_id, hostnames=names))
    await until_named(host, "env_1", list(names))
    (host.directory / "environments/env_1/data/go").touch()
    assert (await control.reported(rolling.deployment_id)).status == "serving"
    state = state_of(host, "env_1")
    assert state["hostnames"] == list(names)
    assert state["served"]["deployment_id"] == rolling.deployment_id
    assert state["kept"][-1]["folder"] == "000001-" + pin.digest[7:15]
    assert (await visitor.ask(host=SHOP)).status == 200


async def test_name_that_two_had_when_the_host_was_killed_is_nobodys_until_control_says(
    shelf, control, host, visitor, wanted
):
    for env in ("env_1", "env_2"):
        await control.roll(wanted(env=env, pin=shelf.put(page(env))))
    host.kill()
    await control.stop()
    for env in ("env_1", "env_2"):
        state = state_of(host, env)
        state["hostnames"].append(SHOP)
        path = host.directory / "environments" / env / "state.json"
        path.write_text(json.dumps(state))
    host.start()
    assert await visitor.text(host="env-1.localhost") == "env_1"
    assert await visitor.text(host="env-2.localhost") == "env_2"
    assert (await visitor.ask(host=SHOP)).status == 404
    deployment = control.desired["env_1"]
    control.want(
        wanted(
            pin=deployment.artifact,
            deployment=deployment.deployment_id,
            hostnames=("env-1.localhost", SHOP),
        )
    )
    await control.start()
    await visitor.until("env_1", host=SHOP)
    await until_named(host, "env_2", ["env-2.localhost"])


async def test_front_is_told_which_names_are_served_also_without_control(
    shelf, control, host, visitor, wanted
):
    names = ("env-1.localhost", SHOP)
    tree = {"index.html": "shop", "served.html": "a page of the shop's own"}
    await control.roll(wanted(pin=shelf.put(tree), hostnames=names))
    control.want(wanted(env="env_2", hostnames=("env-2.localhost", "soon.example")))
    here = f"127.0.0.1:{host.port}"
    for by in (here, "localhost:8081", "[::1]:8081", "203.0.113.7"):
        await visitor.until(200, "/served?domain=soon.example", host=by)
    await control.stop()
    for name, status in (
        (SHOP, 200),
        ("SHOP.example.", 200),
        ("env-1.localhost", 200),
        ("www.shop.example", 404),
        ("example", 404),
        ("127.0.0.1", 404),
        ("", 404),
        ("%00", 404),
        ("a" * 5000, 404),
        (f"x&domain={SHOP}", 404),
    ):
        answer = await visitor.ask(f"/served?domain={name}", host=here)
        assert (answer.status, answer.headers["Cache-Control"]) == (status, "no-store"), name
    assert (await visitor.ask("/served", host=here)).status == 404
    assert (await visitor.ask(f"/served?domain={SHOP}", host=here, method="HEAD")).status == 200
    assert (await visitor.ask(f"/served?domain={SHOP}", host=here, method="POST")).status == 404
    assert (await visitor.ask(f"/other?domain={SHOP}", host=here)).status == 404
    assert (await visitor.ask(f"/served?domain={SHOP}", host="unknown.example")).status == 404
    assert await visitor.text(f"/served?domain={SHOP}", host=SHOP) == "a page of the shop's own"
