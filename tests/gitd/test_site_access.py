"""Who may fetch from and push to a site: docs/git-server.md, section 9, by raw requests."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientResponse, ClientSession, web
from multidict import CIMultiDict

from gitd.addresses import TrustedProxies
from gitd.api_keys import mint
from gitd.auth import Authenticator, may_fetch
from gitd.git.push import SilentReceiver
from gitd.git.service import GitService
from gitd.log import ACTOR
from gitd.rate_limits import Kind, Rate, RateLimits, add_rate_headers
from gitd.scopes import expand_scopes
from gitd.site_git import SiteAccess
from hooks.branches import default_routes
from hooks.environments import first_environments
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from storage.artifacts import ArtifactStore
from storage.collect import Collector
from storage.layout import Layout
from storage.model import ActorRef, Site
from storage.records import api_keys, environments, sites
from storage.records.db import Records
from storage.repos import Repositories
from storage.retention import Retention
from storage.room import Room, RoomLimits

NOW = 1_780_000_000_000
READS, WRITES = 12, 2  # of a key, at once
FETCH, PUSH = "git-upload-pack", "git-receive-pack"


@dataclass
class Door:
    """The git endpoint of two sites, and a client on one connection."""

    records: Records
    client: ClientSession
    actors: list[str | None]
    limits: RateLimits
    repositories: Repositories

    def key(
        self,
        *scopes: str,
        site_id: str | None = None,
        env_id: str | None = None,
        cidrs: tuple[str, ...] = (),
    ) -> str:
        expanded = expand_scopes(scopes)
        secret, key = mint("tests", expanded, site_id=site_id, env_id=env_id, cidrs=cidrs, now=NOW)
        self.records.write(lambda db: api_keys.add(db, key))
        return secret.reveal()

    async def refs(
        self, service: str, authorization: str | None = None, site: str = "acme"
    ) -> ClientResponse:
        headers = {} if authorization is None else {"Authorization": authorization}
        url = f"/{site}.git/info/refs?service={service}"
        answer = await self.client.get(url, headers=headers)
        await answer.read()
        return answer

    async def post(
        self, service: str, headers: dict[str, str], site: str = "acme"
    ) -> ClientResponse:
        """Send the probe that git sends before a large body."""
        headers = {"Content-Type": f"application/x-{service}-request", **headers}
        answer = await self.client.post(f"/{site}.git/{service}", data=b"0000", headers=headers)
        await answer.read()
        return answer


def basic(password: str, user: str = "x") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    records = Records.open(tmp_path / "gitd.db")
    repositories = Repositories(tmp_path / "repos")
    for name in ("acme", "other"):
        site = Site(f"site_{name}", name, "main", NOW)
        records.write(lambda db, site=site: sites.add(db, site))
        repositories.create(site.id, "main")
    store = ArtifactStore.open(tmp_path / "store", records, group=None)
    room = Room(Layout(tmp_path / "store"), RoomLimits())
    collector = Collector(store, records, Retention())
    housekeeping = Housekeeping(collector, room, records, limits=HousekeepingLimits())
    rates = {Kind.READ: Rate(60, READS), Kind.WRITE: Rate(60, WRITES)}
    limits = RateLimits(rates, lambda: NOW / 1000)  # nothing comes back while tests are slow
    access = SiteAccess(
        records,
        repositories,
        Authenticator(records, lambda: NOW),
        TrustedProxies(("127.0.0.0/8",)),
        housekeeping=housekeeping,
        rate_limits=limits,
    )
    service = GitService(access, SilentReceiver())
    actors: list[str | None] = []

    async def noted(request: web.Request) -> web.StreamResponse:
        try:
            return await service.handler(request)
        finally:
            actors.append(request.get(ACTOR))

    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.+}", noted)
    app.on_response_prepare.append(add_rate_headers)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    async with ClientSession(f"http://{host}:{port}") as client:
        yield Door(records, client, actors, limits, repositories)
    await runner.cleanup()
    await service.close()
    records.close()


NOBODYS = (
    None,
    "Basic",
    "Basic !",
    "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    "Basic " + base64.b64encode(b"no colon").decode(),
    basic(""),
    basic("mfk_live_wrong"),
    basic("with:colon"),
    basic("gr\u00fc\u00dfe"),
    "Bearer nonsense",
    "Digest username=x",
)


@pytest.mark.parametrize("site", ["acme", "absent"])
@pytest.mark.parametrize("service", [FETCH, PUSH])
async def test_9_who_is_nobody_is_asked_to_log_in(door: Door, site: str, service: str) -> None:
    """Whether the site exists or not, and with wrong credentials as with none: a client forgets
    wrong ones only for a 401."""
    for authorization in NOBODYS:
        answer = await door.refs(service, authorization, site)
        assert answer.status == 401, authorization
        assert answer.headers["WWW-Authenticate"].startswith('Basic realm="gitd')
        assert answer.headers["Cache-Control"].startswith("no-cache")
        assert answer.content_type == "text/plain"
        more = {} if authorization is None else {"Authorization": authorization}
        posted = await door.post(service, more, site)
        assert posted.status == 401, authorization
        assert "WWW-Authenticate" in posted.headers


async def test_9_any_user_name_does_and_the_key_is_the_password(door: Door) -> None:
    secret = door.key("deployments:read", "deployments:write")
    for authorization in (
        basic(secret),
        basic(secret, user=""),
        basic(secret, user="gr\u00fc\u00dfe"),
        basic(secret).replace("Basic", "bAsIc"),
        f"Bearer {secret}",
    ):
        for service in (FETCH, PUSH):
            assert (await door.refs(service, authorization)).status == 200


async def test_9_each_request_of_a_connection_logs_in_by_itself(door: Door) -> None:
    allowed = basic(door.key("deployments:read"))
    seen = [(await door.refs(FETCH, who)).status for who in (None, allowed, None, allowed)]
    assert seen == [401, 200, 401, 200]


async def test_9_a_site_that_a_key_may_not_know_of_looks_like_none(door: Door) -> None:
    bound = basic(door.key("deployments:read", "deployments:write", site_id="site_acme"))
    for service in (FETCH, PUSH):
        assert (await door.refs(service, bound)).status == 200
        hidden = await door.refs(service, bound, "other")
        absent = await door.refs(service, bound, "wother")
        assert hidden.status == absent.status == 404
        assert (await hidden.text()) == (await absent.text()).replace("wother", "other")
        names = [{*answer.headers} - {"Date"} for answer in (hidden, absent)]
        assert names[0] == names[1]


async def test_9_a_key_that_may_read_may_not_push_and_is_told_so(door: Door) -> None:
    reader = basic(door.key("deployments:read"))
    assert (await door.refs(FETCH, reader)).status == 200
    answer = await door.refs(PUSH, reader)
    assert answer.status == 403
    assert answer.content_type == "text/plain"
    assert "lacks the scope deployments:write" in await answer.text()
    advised = "gitd key create --label NAME --site acme --scope deployments:write\n"
    assert advised in await answer.text()
    assert (await door.post(PUSH, {"Authorization": reader})).status == 403


@pytest.mark.parametrize(
    ("scopes", "site_id", "advice"),
    [
        (("deployments:write", "sites:read"), None, "gitd site create nosuch    (on the server"),
        (("deployments:write", "sites:write"), None, "mf sites create nosuch\n"),
        (("deployments:write", "sites:write"), "site_acme", "gitd site create nosuch"),
    ],
)
async def test_9_advice_about_a_site_that_is_not_there_is_for_this_key(
    door: Door, scopes: tuple[str, ...], site_id: str | None, advice: str
) -> None:
    answer = await door.refs(PUSH, basic(door.key(*scopes, site_id=site_id)), "nosuch")
    text = await answer.text()
    assert answer.status == 404
    assert advice in text
    assert ("mf sites create" in text) == ("sites:write" in scopes and site_id is None)
    assert "mf sites list" in text


async def test_9_a_client_cannot_speak_for_the_proxy_in_front(door: Door) -> None:
    """A proxy may add its line behind the client's own instead of appending to it."""
    secret = door.key("deployments:read", cidrs=("127.0.0.0/8", "192.0.2.0/24"))
    for lines, status in (
        (["192.0.2.1", "198.51.100.1"], 403),
        (["198.51.100.1", "192.0.2.1"], 200),
        (["nonsense"], 403),
    ):
        headers = CIMultiDict([("X-Forwarded-For", line) for line in lines])
        headers["Authorization"] = basic(secret)
        answer = await door.client.get(f"/acme.git/info/refs?service={FETCH}", headers=headers)
        assert answer.status == status, lines
        await answer.read()


async def test_2_5_a_probe_is_asked_to_log_in_before_a_large_body_comes(door: Door) -> None:
    """Git repeats the probe with a password; the body itself it could not send again."""
    pusher = basic(door.key("deployments:read", "deployments:write"))
    for service in (FETCH, PUSH):
        assert (await door.post(service, {})).status == 401
        answer = await door.post(service, {"Authorization": pusher})
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.content_type == f"application/x-{service}-result"


async def test_9_the_list_of_a_sites_refs_is_no_file(door: Door) -> None:
    """An old client would take a page for an empty repository, and say that all went well."""
    reader = basic(door.key("deployments:read"))
    answer = await door.client.get("/acme.git/info/refs", headers={"Authorization": reader})
    assert answer.status == 403
    assert answer.content_type == "text/plain"


async def test_9_the_log_of_requests_names_the_key(door: Door) -> None:
    """Of one that was refused too: it was somebody's."""
    secret = door.key("jobs:read")
    (key,) = api_keys.every(door.records.reader())
    assert (await door.refs(FETCH, basic(secret))).status == 403
    assert (await door.refs(FETCH)).status == 401
    assert door.actors == [key.id, None]


async def test_9_requests_of_a_key_are_counted_and_one_too_many_is_told_when_to_come_again(
    door: Door,
) -> None:
    """Probes and lists of refs read; what a push takes stands to the key once it is here."""
    pusher, other = (basic(door.key("deployments:read", "deployments:write")) for _ in "ab")
    for left in reversed(range(READS)):
        answer = await door.refs(PUSH, pusher)
        assert (answer.status, answer.headers["X-RateLimit-Remaining"]) == (200, str(left))
    (key_id,) = {*door.actors}
    assert key_id is not None
    assert "requests (read)" in await (await door.refs(FETCH, pusher)).text()
    for _ in range(WRITES):
        door.limits.take(key_id, Kind.WRITE)
    refused = await door.refs(PUSH, pusher)
    assert (refused.status, refused.content_type) == (429, "text/plain")
    assert await refused.text() == (
        "This API key has made too many requests (write): try again in 1 s.\n"
    )
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["X-RateLimit-Limit"] == str(WRITES)
    assert (await door.post(PUSH, {"Authorization": pusher})).status == 429
    assert (await door.refs(FETCH, pusher, "absent")).status == 429, "what it may know or not"
    assert (await door.refs(PUSH, other)).status == 200


async def test_9_a_key_of_one_environment_pushes_to_a_list_of_its_own_branches(
    door: Door, tmp_path: Path
) -> None:
    """What it is not bound to does not exist: no name, and no tip."""
    bare = door.repositories.path("site_acme")
    tips = {}
    for name in ("main", "staging", "topic"):
        command = ["git", "-C", str(bare), "-c", "user.name=A", "-c", "user.email=a@example.com"]
        tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
        made = [*command, "commit-tree", tree, "-m", name]
        subprocess.run([*command, "mktree"], input=b"", check=True, capture_output=True)
        tips[name] = subprocess.run(made, check=True, capture_output=True).stdout.decode().strip()
        subprocess.run([*command, "update-ref", f"refs/heads/{name}", tips[name]], check=True)
    subprocess.run([*command, "tag", "v1", tips["topic"]], check=True)
    site = Site("site_acme", "acme", "main", NOW)
    first = first_environments(site, NOW)
    for made_env in first:
        door.records.write(lambda db, made=made_env: environments.add(db, made))
    routes = default_routes("main")
    door.records.write(lambda db: sites.replace_routes(db, site.id, routes))
    whole = await (await door.refs(PUSH, basic(door.key("deployments:write")))).text()
    assert all(f"{tip} refs/heads/{name}" in whole for name, tip in tips.items())
    for made_env, branch in zip(first, ("main", "staging"), strict=True):
        key = door.key("deployments:write", site_id=site.id, env_id=made_env.id)
        for _ in range(2):
            seen = await (await door.refs(PUSH, basic(key))).text()
            assert f"{tips[branch]} refs/heads/{branch}\0" in seen
            assert [tip for tip in tips.values() if tip in seen] == [tips[branch]]
            assert "refs/tags" not in seen


async def test_9_refused_push_of_a_key_of_one_environment_tells_of_no_object(door: Door) -> None:
    """Whether a commit is here or not: a ref of another environment is refused by its name."""
    bare = door.repositories.path("site_acme")
    command = ["git", "-C", str(bare), "-c", "user.name=A", "-c", "user.email=a@example.com"]
    made = subprocess.run([*command, "mktree"], input=b"", check=True, capture_output=True)
    made = subprocess.run(
        [*command, "commit-tree", made.stdout.decode().strip(), "-m", "main"],
        check=True,
        capture_output=True,
    )
    known, absent = made.stdout.decode().strip(), "ab" * 20
    subprocess.run([*command, "update-ref", "refs/heads/main", known], check=True)
    site = Site("site_acme", "acme", "main", NOW)
    _, staging = first_environments(site, NOW)
    door.records.write(lambda db: environments.add(db, staging))
    door.records.write(lambda db: sites.replace_routes(db, site.id, default_routes("main")))
    key = door.key("deployments:write", site_id=site.id, env_id=staging.id)
    for name in (b"refs/heads/main", b"refs/heads/topic", b"refs/tags/v1"):
        told = [await _report(door, key, name, new) for new in (known, absent)]
        assert told[0] == told[1]
        assert b"ng " + name + b" this ref is not one for this key\n" in told[0]
    refs = subprocess.run([*command, "for-each-ref"], check=True, capture_output=True)
    assert refs.stdout.decode().split() == [known, "commit", "refs/heads/main"]
    absent_there = await _report(door, key, b"refs/heads/staging", absent)
    assert b"missing necessary objects" in absent_there, "of its own ref it is told what it lacks"
    assert b"ok refs/heads/staging" in await _report(door, key, b"refs/heads/staging", known)


async def _report(door: Door, key: str, name: bytes, new: str) -> bytes:
    """Push a ref with an empty pack, and return git's report."""
    line = b"%s %s %s\0report-status" % (b"0" * 40, new.encode(), name)
    pack = b"PACK\0\0\0\2\0\0\0\0"
    body = b"%04x%s0000%s%s" % (len(line) + 4, line, pack, hashlib.sha1(pack).digest())
    headers = {"Content-Type": f"application/x-{PUSH}-request", "Authorization": basic(key)}
    answer = await door.client.post(f"/acme.git/{PUSH}", data=body, headers=headers)
    return await answer.read()


async def test_9_a_key_of_one_environment_fetches_no_repository(door: Door) -> None:
    """That has the commits of all environments, and what it is not bound to does not exist."""
    staging = first_environments(Site("site_acme", "acme", "main", NOW), NOW)[1]
    door.records.write(lambda db: environments.add(db, staging))
    secret = door.key("deployments:write", site_id="site_acme", env_id=staging.id)
    heard = await door.refs(FETCH, basic(secret))
    assert (heard.status, "bound to an environment" in await heard.text()) == (403, True)
    assert (await door.post(FETCH, {"Authorization": basic(secret)})).status == 403
    assert (await door.refs(PUSH, basic(secret))).status == 200
    (key,) = api_keys.every(door.records.reader())
    assert not may_fetch(door.records, ActorRef("api_key", key.id, "x"), "site_acme", now=NOW)
