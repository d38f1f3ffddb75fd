"""Pushes to a site that do not just succeed one behind the other. Contract §6."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from gitd.addresses import TrustedProxies
from gitd.api_keys import mint
from gitd.auth import Authenticator
from gitd.git.service import GitService
from gitd.rate_limits import Kind, Rate, RateLimits
from gitd.scopes import expand_scopes
from gitd.site_git import SiteAccess, SiteReceiver
from hooks.follow import Addresses, PushNarrator
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from hooks.jobs import Jobs
from hooks.push import PushHooks
from hooks.sites import Sites
from storage.artifacts import ArtifactStore
from storage.collect import Collector
from storage.joblog import JobLogs
from storage.layout import Layout
from storage.model import Action, ApiKey, Build, JobStatus, Site
from storage.records import api_keys, audit_log, builds, environments, pushes
from storage.records.db import Records
from storage.repos import Repositories
from storage.retention import Retention
from storage.room import Room, RoomLimits

ZERO = "0" * 40
PUSHES_AT_ONCE = 3  # by one key
REFUSED_COUNT = 2000  # refs: the report says why of each, and is larger than all buffers
POST = "application/x-git-receive-pack-request"


needs_strace = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode,
    reason="strace cannot trace here",
)


@dataclass
class Receiving:
    """A site that takes pushes, in this process, and what its production was asked to build."""

    url: str
    site: Site
    bare: Path
    records: Records
    receiver: SiteReceiver
    secret: str
    key_id: str

    def head(self) -> dict[str, str]:
        password = base64.b64encode(f"x:{self.secret}".encode()).decode()
        return {"Authorization": f"Basic {password}", "Content-Type": POST}

    @property
    def path(self) -> str:
        return f"/{self.site.name}.git/git-receive-pack"

    def request(self, body: bytes) -> bytes:
        """A push as it goes over the wire."""
        lines = [f"{name}: {value}" for name, value in self.head().items()]
        lines = [f"POST {self.path} HTTP/1.1", "Host: x", "Connection: close", *lines]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    async def connect(self, client: socket.socket) -> None:
        client.setblocking(False)
        port = int(self.url.rpartition(":")[2])
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))

    def builds(self) -> list[Build]:
        """Oldest first."""
        reader = self.records.reader()
        environment = environments.find(reader, self.site.id, "production")
        assert environment is not None
        page = builds.page(reader, environment.id, before=None, limit_count=10)
        return list(reversed(page.items))


@pytest.fixture
async def receiving(tmp_path: Path) -> AsyncIterator[Receiving]:
    records = Records.open(tmp_path / "gitd.db")
    repositories = Repositories(tmp_path / "repos")
    jobs = Jobs(records, JobLogs(tmp_path / "joblogs"))
    site = (await Sites(jobs, repositories).create("acme")).value
    store = ArtifactStore.open(tmp_path / "store", records, group=None)
    room = Room(Layout(tmp_path / "store"), RoomLimits())
    collector = Collector(store, records, Retention())
    rates = {Kind.READ: Rate(100, 100), Kind.WRITE: Rate(1, PUSHES_AT_ONCE)}
    limits = RateLimits(rates, lambda: 0.0)  # nothing comes back while tests are slow
    access = SiteAccess(
        records,
        repositories,
        Authenticator(records),
        TrustedProxies(),
        housekeeping=Housekeeping(collector, room, records, limits=HousekeepingLimits()),
        rate_limits=limits,
    )
    addresses = Addresses(of_environment=lambda env: f"http://{env.hostname}", server="http://x")
    receiver = SiteReceiver(records, PushHooks(jobs, repositories), PushNarrator(jobs, addresses))
    service = GitService(access, receiver)
    secret, key = mint("tests", expand_scopes(["deployments:write"]))
    records.write(lambda db: api_keys.add(db, key))
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.+}", service.handler)
    # Whoever leaves ends his request, as a stop of the server does.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of its connections too
    await web.SockSite(runner, listener).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    bare = repositories.path(site.id)
    yield Receiving(url, site, bare, records, receiver, secret.reveal(), key.id)
    await runner.cleanup()
    await service.close()
    records.close()


def commits(work: Path) -> tuple[str, str]:
    """Two commits, the second on the first, in a repository of their own."""
    environ = {**os.environ, "GIT_DIR": str(work), "GIT_CONFIG_GLOBAL": "/dev/null"}
    for who in ("AUTHOR", "COMMITTER"):
        environ |= {f"GIT_{who}_NAME": "A", f"GIT_{who}_EMAIL": "a@example.com"}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], env=environ, input=b"", capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    git("init", "-q", "--bare")
    tree = git("mktree")
    first = git("commit-tree", tree, "-m", "first")
    return first, git("commit-tree", tree, "-m", "second", "-p", first)


def pack(work: Path, *revisions: str) -> bytes:
    done = subprocess.run(
        ["git", "-C", str(work), "pack-objects", "--stdout", "-q", "--revs"],
        input="".join(f"{revision}\n" for revision in revisions).encode(),
        capture_output=True,
        check=True,
    )
    return done.stdout


def push(*commands: tuple[str, str, str], objects: bytes, more: str = "") -> bytes:
    capabilities = f"report-status side-band-64k quiet{more}"
    lines = [f"{old} {new} {ref}" for old, new, ref in commands]
    lines[0] += f"\0{capabilities}"
    packets = [b"%04x%b" % (len(line) + 4, line.encode()) for line in lines]
    return b"".join(packets) + b"0000" + objects


async def test_push_whose_report_is_read_slowly_keeps_its_place_before_a_newer_one(
    receiving: Receiving, tmp_path: Path
) -> None:
    """Else its build would be the newer one, and the old commit go live."""
    work = tmp_path / "work.git"
    first, second = await asyncio.to_thread(commits, work)
    refused = [(ZERO, first, f"refs/heads/..{n}{'x' * 200}") for n in range(REFUSED_COUNT)]
    body = push((ZERO, first, "refs/heads/main"), *refused, objects=pack(work, first))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await receiving.connect(slow)
            await loop.sock_sendall(slow, receiving.request(body))
            while not (receiving.bare / "refs/heads/main").exists():
                await asyncio.sleep(0.01)
            newer = push(
                (first, second, "refs/heads/main"), objects=pack(work, second, f"^{first}")
            )
            async with (
                ClientSession(receiving.url) as client,
                client.post(receiving.path, data=newer, headers=receiving.head()) as answer,
            ):
                assert b"ok refs/heads/main" in await answer.read()
            assert len(receiving.receiver._begun) == 1, "the report is still on its way"
            old, new = receiving.builds()
    assert (old.commit, new.commit) == (first, second)
    assert (old.status, old.superseded_by) == (JobStatus.CANCELED, new.id)
    assert new.status is JobStatus.QUEUED


async def test_push_stands_in_the_audit_log_with_what_it_set_off_and_where_it_came_from(
    receiving: Receiving, tmp_path: Path
) -> None:
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    body = push(
        (ZERO, first, "refs/heads/main"),
        (ZERO, first, "refs/heads/topic"),
        objects=await asyncio.to_thread(pack, tmp_path / "work.git", first),
    )
    async with (
        ClientSession(receiving.url) as client,
        client.post(receiving.path, data=body, headers=receiving.head()) as answer,
    ):
        assert b"ok refs/heads/main" in await answer.read()
    reader, site_id = receiving.records.reader(), receiving.site.id
    page = audit_log.page(reader, site_id=site_id, env_id=None, before=None, limit_count=4)
    assert [entry.action for entry in reversed(page.items)] == [
        Action.PUSH_RECEIVED,
        Action.BUILD_QUEUED,
        Action.ENVIRONMENT_CREATED,
        Action.BUILD_QUEUED,
    ]
    assert {(entry.actor.label, entry.address) for entry in page.items} == {("tests", "127.0.0.1")}


@contextlib.contextmanager
def released(fifo: Path) -> Iterator[None]:
    """Whatever becomes of a test, no thread waits for the other end of its pipe for ever."""
    try:
        yield
    finally:
        os.close(os.open(fifo, os.O_RDWR))


async def test_push_that_is_broken_off_leaves_nothing_open(
    receiving: Receiving, tmp_path: Path
) -> None:
    """Else the next start would take it for one that a crash broke off, and build it."""
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    objects = await asyncio.to_thread(pack, tmp_path / "work.git", first)
    # The check of the pack waits for whoever writes this list.
    skip_list = receiving.bare / "skip"
    os.mkfifo(skip_list)
    with (receiving.bare / "config").open("a") as config:
        config.write('[receive]\n\tfsckObjects = true\n[receive "fsck"]\n\tskipList = skip\n')
    with released(skip_list):
        async with asyncio.timeout(60):
            with socket.socket() as client:
                await receiving.connect(client)
                body = push((ZERO, first, "refs/heads/main"), objects=objects)
                request = receiving.request(body)
                await asyncio.get_running_loop().sock_sendall(client, request)
                while not receiving.receiver._begun:
                    await asyncio.sleep(0.01)
                assert pushes.open_ones(receiving.records.reader())
            while pushes.open_ones(receiving.records.reader()):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(skip_list.write_bytes, b"")
            while list((receiving.bare / "objects/pack").iterdir()):
                await asyncio.sleep(0.01)
    assert not receiving.receiver._begun
    assert not list((receiving.bare / "refs/heads").iterdir())
    assert receiving.builds() == []


async def test_push_whose_key_is_revoked_before_its_last_byte_moves_nothing(
    receiving: Receiving, tmp_path: Path
) -> None:
    work = tmp_path / "work.git"
    first, _ = await asyncio.to_thread(commits, work)
    body = push((ZERO, first, "refs/heads/main"), objects=pack(work, first))
    held_back = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:-1]
        await held_back.wait()
        yield body[-1:]

    async def revoke() -> None:
        while _key(receiving).last_used_at is None:
            await asyncio.sleep(0.01)  # until it was let in
        receiving.records.write(lambda db: api_keys.revoke(db, receiving.key_id, 1))
        held_back.set()

    async with asyncio.timeout(60), ClientSession(receiving.url) as client:
        revoking = asyncio.create_task(revoke())
        async with client.post(receiving.path, data=slowly(), headers=receiving.head()) as answer:
            said = await answer.read()
        await revoking
    assert b"ng refs/heads/main this key is not good any more" in said
    assert not (receiving.bare / "refs/heads/main").exists()
    assert receiving.builds() == []


async def test_push_that_others_of_its_key_overtook_is_refused_when_they_were_too_many(
    receiving: Receiving, tmp_path: Path
) -> None:
    """It was let in when there was a token for it. One more is not let in, whatever it sends."""
    work = tmp_path / "work.git"
    first, _ = await asyncio.to_thread(commits, work)
    objects = await asyncio.to_thread(pack, work, first)
    body = push((ZERO, first, "refs/heads/late"), objects=objects)
    held_back = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:-1]
        await held_back.wait()
        yield body[-1:]

    async with asyncio.timeout(60), ClientSession(receiving.url) as client:
        late = asyncio.create_task(
            client.post(receiving.path, data=slowly(), headers=receiving.head())
        )
        while _key(receiving).last_used_at is None:
            await asyncio.sleep(0.01)  # until it was let in
        for number in range(PUSHES_AT_ONCE):
            said = await pushed(receiving, (ZERO, first, f"refs/heads/n{number}"), objects=objects)
            assert f"ok refs/heads/n{number}".encode() in said
        held_back.set()
        said = await (await late).read()
        assert b"ng refs/heads/late too many pushes by this key: try again in 60 s" in said
        refused = await client.post(receiving.path, data=body, headers=receiving.head())
        assert (refused.status, refused.headers["Retry-After"]) == (429, "60")
    assert not (receiving.bare / "refs/heads/late").exists()
    assert not pushes.open_ones(receiving.records.reader())


async def test_push_beside_a_ref_that_cannot_be_read_is_refused_and_leaves_nothing_open(
    receiving: Receiving, tmp_path: Path
) -> None:
    """Left open, it would end with the next start, and no look at previews would be taken."""
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    objects = await asyncio.to_thread(pack, tmp_path / "work.git", first)
    await pushed(receiving, (ZERO, first, "refs/heads/topic"), objects=objects)
    os.mknod(receiving.bare / "refs/heads/odd", stat.S_IFSOCK | 0o600)
    said = await pushed(receiving, (first, ZERO, "refs/heads/topic"), objects=b"")
    assert b"ng refs/heads/topic failed to update ref" in said
    assert b"error: cannot read 'refs/heads/odd': No such device or address" in said
    assert not pushes.open_ones(receiving.records.reader())
    assert (receiving.bare / "refs/heads/topic").exists()
    preview = environments.preview_of(receiving.records.reader(), receiving.site.id, "topic")
    assert preview is not None


async def test_push_that_fails_behind_its_refs_is_acted_on(
    receiving: Receiving, tmp_path: Path
) -> None:
    """A ref that has moved is one that has moved, whatever failed then."""
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    objects = await asyncio.to_thread(pack, tmp_path / "work.git", first)
    await pushed(receiving, (ZERO, first, "refs/heads/topic"), objects=objects)
    (receiving.bare / "logs").symlink_to("logs")  # what reflogs there are cannot be removed
    said = await pushed(receiving, (first, ZERO, "refs/heads/topic"), objects=b"")
    assert b"ok refs/heads/topic" in said
    assert b"error: Too many levels of symbolic links" in said
    assert not pushes.open_ones(receiving.records.reader())
    assert environments.preview_of(receiving.records.reader(), receiving.site.id, "topic") is None


@needs_strace
async def test_push_whose_refs_could_not_be_synced_is_no_success_and_is_acted_on(
    receiving: Receiving, tmp_path: Path
) -> None:
    """Told `ok`, it could be gone after a power cut, and nobody would push it again."""
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    objects = await asyncio.to_thread(pack, tmp_path / "work.git", first)
    with no_sync_of(receiving.bare / "refs/heads"):
        said = await pushed(receiving, (ZERO, first, "refs/heads/main"), objects=objects)
    assert b"ng refs/heads/main moved, but a power cut may undo it" in said
    assert b"error: cannot sync the refs: Input/output error" in said
    assert (receiving.bare / "refs/heads/main").read_text().strip() == first
    assert [build.commit for build in receiving.builds()] == [first]
    assert not pushes.open_ones(receiving.records.reader())


@needs_strace
async def test_atomic_push_that_is_refused_on_a_bad_disk_is_not_told_of_as_moved(
    receiving: Receiving, tmp_path: Path
) -> None:
    """A build would be of a ref that is not there."""
    first, _ = await asyncio.to_thread(commits, tmp_path / "work.git")
    objects = await asyncio.to_thread(pack, tmp_path / "work.git", first)
    names = ["new/x", "main", "zz/y"]
    await pushed(receiving, (ZERO, first, "refs/heads/seen"), objects=objects)
    built = len(receiving.builds())
    (receiving.bare / "refs/heads/main.lock").touch()  # somebody is at it
    wishes = [(ZERO, first, f"refs/heads/{name}") for name in names]
    with no_sync_of(receiving.bare / "refs/heads"):
        said = await pushed(receiving, *wishes, objects=objects, more=" atomic")
    for name in names:
        assert b"ng refs/heads/%b atomic transaction failed" % name.encode() in said
    assert len(receiving.builds()) == built
    assert not pushes.open_ones(receiving.records.reader())


@contextlib.contextmanager
def no_sync_of(folder: Path) -> Iterator[None]:
    """Let the disk fail whenever this process syncs that folder."""
    inject = ("-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", folder, *inject)
    tracing = subprocess.Popen([*strace, f"--attach={os.getpid()}"])
    while not all(map(is_traced, Path("/proc/self/task").iterdir())):  # this thread is the first
        assert tracing.poll() is None
        time.sleep(0.01)
    try:
        yield
    finally:
        tracing.terminate()
        tracing.wait()


def is_traced(thread: Path) -> bool:
    try:
        return "TracerPid:\t0\n" not in (thread / "status").read_text()
    except OSError:
        return True  # it is gone


async def pushed(
    receiving: Receiving, *commands: tuple[str, str, str], objects: bytes, more: str = ""
) -> bytes:
    """Push, and return what was answered. `more`: capabilities that are asked for."""
    body = push(*commands, objects=objects, more=more)
    async with (
        asyncio.timeout(60),
        ClientSession(receiving.url) as client,
        client.post(receiving.path, data=body, headers=receiving.head()) as answer,
    ):
        return await answer.read()


def _key(receiving: Receiving) -> ApiKey:
    key = api_keys.get(receiving.records.reader(), receiving.key_id)
    assert key is not None
    return key
