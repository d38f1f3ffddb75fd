"""The product's end of a push, in process: access, accept, landed, the way back to the user."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gitd.git import (
    GitLimits,
    GitService,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    Opened,
    Push,
    PushRefusedError,
    RefOutcome,
    Remote,
    Service,
)
from gitd.git.tally import FetchOutcome, PushOutcome
from storage.repos import Repositories
from tests.gitd.git.conftest import left_of_pushes

Git = Callable[..., Any]


@dataclass
class Access:
    """ada may all, bob may read, nobody else may know."""

    repositories: Repositories

    async def open(self, request: web.Request, path: str, service: Service, /) -> Opened:
        header = request.headers.get("Authorization", "")
        user = base64.b64decode(header[6:]).decode().split(":")[0] if header else None
        if user not in ("ada", "bob"):
            raise NotAuthenticatedError("log in\n")
        if path != "acme.git":
            raise NotFoundError
        if service is Service.RECEIVE_PACK and user != "ada":
            raise NotAllowedError("you may read acme, and not push to it\n")
        return Opened(
            self.repositories.path("acme"), actor=f"actor {user}", remote_user=user, path=path,
            is_ours=True,
        )  # fmt: skip


@dataclass
class Receiver:
    """Remembers what it heard; refuses what it is told to."""

    refusal: str | None = None
    fault: Exception | None = None
    refused_refs: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    wait_s: float = 0
    pushes: list[Push] = field(default_factory=list)
    moves: list[Sequence[RefOutcome]] = field(default_factory=list)
    outcomes: list[Sequence[RefOutcome]] = field(default_factory=list)
    broken: list[Push] = field(default_factory=list)
    was_gone: list[bool] = field(default_factory=list)
    failure: Exception | None = None

    async def accept(self, push: Push, /) -> Mapping[str, str]:
        self.pushes.append(push)
        if self.refusal is not None:
            raise PushRefusedError(self.refusal)
        if self.fault is not None:
            raise self.fault
        return self.refused_refs

    async def broken_off(self, push: Push, /) -> None:
        self.broken.append(push)

    def moved(self, push: Push, outcomes: Sequence[RefOutcome], /) -> None:
        self.moves.append(outcomes)

    async def landed(self, push: Push, outcomes: Sequence[RefOutcome], remote: Remote, /) -> None:
        self.outcomes.append(outcomes)
        for word in self.words:
            await remote.say(word)
            await asyncio.sleep(self.wait_s)
        self.was_gone.append(remote.is_gone)
        if self.failure is not None:
            raise self.failure


@dataclass
class Room:
    url: str
    bare: Path
    receiver: Receiver
    service: GitService
    work: Path
    git: Git

    def url_for(self, user: str, path: str = "acme.git") -> str:
        return f"{self.url.replace('//', f'//{user}:x@')}/{path}"

    async def push(self, *arguments: str, user: str = "ada", check: bool = True) -> Any:
        return await asyncio.to_thread(
            self.git, "push", self.url_for(user), *arguments, cwd=self.work, check=check
        )


@pytest.fixture
async def room(tmp_path: Path, git: Git, commit: Git) -> AsyncIterator[Room]:
    # The clients of these tests wait in threads too: they must not take all of the server's.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    repositories = Repositories(tmp_path / "repos")
    bare = repositories.create("acme", "main")
    receiver = Receiver()
    service = GitService(Access(repositories), receiver, replace(GitLimits(), keepalive_s=0.1))
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.+}", service.handler)
    runner = web.AppRunner(app, access_log=None, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    host, port = runner.addresses[0]
    yield Room(f"http://{host}:{port}", bare, receiver, service, work, git)
    await runner.cleanup()
    await service.close()


async def test_a_push_is_told_as_it_was_made(room: Room, head: Git) -> None:
    await room.push("-o", "nowait", "-o", "two words", "--progress", "main", "main:refs/tags/v1")
    (push,) = room.receiver.pushes
    assert push.actor == "actor ada"
    assert push.path == "acme.git"
    assert push.repository == room.bare
    assert push.options == ("nowait", "two words")
    assert not push.is_quiet
    assert push.remote_addr == "127.0.0.1"
    assert push.agent.startswith("git/")
    assert [(u.name, u.old, u.new) for u in push.updates] == [
        ("refs/heads/main", "0" * 40, head(room.work)),
        ("refs/tags/v1", "0" * 40, head(room.work)),
    ]
    assert not push.updates[0].is_delete
    ((first, second),) = room.receiver.outcomes
    assert first.is_ok
    assert second.is_ok
    assert room.receiver.moves == room.receiver.outcomes


async def test_1_5_and_1_17_the_room_by_itself_serves_no_files(room: Room) -> None:
    for file in ("info/refs", "HEAD", "objects/info/packs"):
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{room.url_for('ada')}/{file}")
        assert answer.status_code == 403
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.text == "Dumb HTTP is not supported; use git >= 1.6.6\n"


async def test_git_says_quiet_without_a_terminal_too(room: Room) -> None:
    """What the wire cannot tell apart: `--quiet`, and a push from a script."""
    await room.push("--quiet", "main")
    await room.push("main:other")
    await room.push("--progress", "main:third")
    assert [push.is_quiet for push in room.receiver.pushes] == [True, True, False]


@pytest.mark.parametrize("has_commit", [False, True])
async def test_a_border_that_a_power_cut_left_ends_no_history(
    room: Room, tmp_path: Path, git: Git, commit: Git, head: Git, *, has_commit: bool
) -> None:
    """It was noted for a push whose refs never moved."""
    for message in ("two", "three", "four"):
        commit(room.work, message)
    if has_commit:
        git("push", "-q", room.bare, "main~2:refs/heads/x", cwd=room.work)
        git("update-ref", "-d", "refs/heads/x", cwd=room.bare)
    (room.bare / "shallow").write_text(f"{head(room.work, 'main~2')}\n")
    await room.push("main")
    git("clone", "-q", room.bare, "c", cwd=tmp_path)
    assert git("rev-list", "--count", "HEAD", cwd=tmp_path / "c").out == "4"
    assert not (room.bare / "shallow").exists()


async def test_borders_that_cannot_be_forgotten_refuse_no_push(room: Room) -> None:
    (room.bare / "shallow").write_text(f"{'1' * 40}\n")
    (room.bare / "shallow.lock").mkdir()  # so that none can be made
    with capture_logs() as said:
        await room.push("main")
    assert [line["event"] for line in said] == ["shallow_borders_not_forgotten"]


async def test_words_reach_the_user_line_by_line(room: Room) -> None:
    room.receiver.words = ["building", "live at http://acme.localhost"]
    done = await room.push("main")
    assert "remote: building" in done.err
    assert "remote: live at http://acme.localhost" in done.err
    assert done.status == 0


async def test_silence_is_bridged_by_keepalives(room: Room) -> None:
    room.receiver.words, room.receiver.wait_s = ["before", "after"], 0.5
    done = await asyncio.to_thread(
        room.git, "push", room.url_for("ada"), "main", cwd=room.work, GIT_TRACE_CURL="1"
    )
    assert "remote: after" in done.err
    assert done.err.count("0005.") >= 3


async def test_a_repository_may_want_no_keepalives(room: Room) -> None:
    """`receive.keepAlive = 0`, where the server's own setting would send some."""
    with (room.bare / "config").open("a") as config:
        config.write("[receive]\n\tkeepAlive = 0\n")
    room.receiver.words, room.receiver.wait_s = ["before", "after"], 0.3
    done = await asyncio.to_thread(
        room.git, "push", room.url_for("ada"), "main", cwd=room.work, GIT_TRACE_CURL="1"
    )
    assert "remote: after" in done.err
    assert "0005." not in done.err


async def test_a_refused_push_moves_nothing_and_says_why(room: Room, git: Git) -> None:
    room.receiver.refusal = "the site is suspended"
    done = await room.push("main", "main:other", check=False)
    assert done.err.count("! [remote rejected]") == 2
    assert "(the site is suspended)" in done.err
    assert git("for-each-ref", cwd=room.bare).out == ""
    assert not list((room.bare / "objects/pack").iterdir())
    assert {outcome.reason for outcome in room.receiver.outcomes[0]} == {"the site is suspended"}
    assert room.receiver.moves == []


async def test_a_receiver_that_fails_to_judge_hears_that_nothing_moved(
    room: Room, git: Git
) -> None:
    room.receiver.fault = RuntimeError("broken on purpose")
    done = await room.push("main", check=False)
    assert "main -> main (the server failed)" in done.err
    assert "remote: error: the server failed before it had moved the refs" in done.err
    assert "broken on purpose" not in done.err
    assert git("for-each-ref", cwd=room.bare).out == ""
    assert not list((room.bare / "objects/pack").iterdir())
    assert room.receiver.moves == []
    assert [outcome.reason for outcome in room.receiver.outcomes[0]] == ["the server failed"]


async def test_a_ref_that_cannot_be_read_once_the_hook_was_asked_refuses_the_push(
    room: Room, git: Git
) -> None:
    hook = room.bare / "hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        f"#!{sys.executable}\nimport os, stat\nos.mknod('refs/heads/odd', stat.S_IFSOCK | 0o600)\n"
    )
    hook.chmod(0o755)
    done = await room.push("main", check=False)
    assert "main -> main (failed to update ref)" in done.err
    assert "remote: error: cannot read 'refs/heads/odd'" in done.err
    assert room.receiver.moves == []
    assert [outcome.is_ok for outcome in room.receiver.outcomes[0]] == [False]
    (room.bare / "refs/heads/odd").unlink()
    assert git("for-each-ref", cwd=room.bare).out == ""


async def test_single_refs_are_refused(room: Room, git: Git) -> None:
    room.receiver.refused_refs = {"refs/heads/other": "not this one"}
    done = await room.push("main", "main:other", check=False)
    assert "main -> other (not this one)" in done.err
    assert git("for-each-ref", "--format=%(refname)", cwd=room.bare).out == "refs/heads/main"
    room.receiver.refused_refs = {"refs/heads/y": "nor this"}
    done = await room.push("--atomic", "main:x", "main:y", check=False)
    assert "atomic push failure" in done.err
    assert git("for-each-ref", "--format=%(refname)", cwd=room.bare).out == "refs/heads/main"


async def test_a_client_that_leaves_stops_nothing(room: Room, git: Git, head: Git) -> None:
    room.receiver.words, room.receiver.wait_s = ["a", "b", "c", "d", "e", "f"], 0.2
    process = await asyncio.create_subprocess_exec(
        "git", "push", room.url_for("ada"), "main", cwd=room.work,
        stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    await process.stderr.readuntil(b"remote: b")
    os.killpg(process.pid, signal.SIGKILL)
    await process.communicate()
    async with asyncio.timeout(20):
        while not room.receiver.was_gone:
            await asyncio.sleep(0.05)
    assert room.receiver.was_gone == [True]
    assert head(room.bare, "main") == head(room.work)


async def test_a_handler_that_is_canceled_still_lands(room: Room, head: Git) -> None:
    """The server stops while a push is concluded: its receiver hears of it all the same."""
    room.receiver.words, room.receiver.wait_s = ["a", "b"], 0.2
    pushing = asyncio.create_task(room.push("main", check=False))
    while not room.receiver.outcomes:
        await asyncio.sleep(0.01)
    await room.service.close()
    assert room.receiver.was_gone
    await pushing


async def test_9_logging_in(room: Room, tmp_path: Path, git: Git) -> None:
    anonymous = await asyncio.to_thread(
        git, "ls-remote", f"{room.url}/acme.git", cwd=tmp_path, check=False
    )
    assert "could not read Username" in anonymous.err
    hidden = await asyncio.to_thread(
        git, "ls-remote", f"{room.url}/absent.git", cwd=tmp_path, check=False
    )
    assert "could not read Username" in hidden.err
    wrong = await asyncio.to_thread(
        git, "ls-remote", room.url_for("eve"), cwd=tmp_path, check=False
    )
    assert "Authentication failed" in wrong.err
    absent = await asyncio.to_thread(
        git, "ls-remote", room.url_for("ada", "absent.git"), cwd=tmp_path, check=False
    )
    assert "not found" in absent.err


async def test_9_reading_is_not_pushing(room: Room, tmp_path: Path, git: Git) -> None:
    await room.push("main")
    await asyncio.to_thread(git, "clone", "-q", room.url_for("bob"), "c", cwd=tmp_path)
    done = await room.push("main:x", user="bob", check=False)
    assert "remote: you may read acme, and not push to it" in done.err
    assert "403" in done.err


async def test_9_a_large_push_logs_in_before_its_body(room: Room, head: Git, commit: Git) -> None:
    (room.work / "big").write_bytes(os.urandom(3 << 20))
    commit(room.work, "big", x="x")
    await room.push("main")
    assert head(room.bare, "main") == head(room.work)


async def test_a_receiver_that_fails_leaves_a_whole_answer(room: Room, head: Git) -> None:
    """The refs have moved: git says so, and no more than that something failed behind them."""
    room.receiver.words, room.receiver.failure = ["building"], RuntimeError("broken on purpose")
    done = await room.push("main")
    assert "remote: building" in done.err
    assert "remote: error: the server failed after it had moved the refs" in done.err
    assert "hung up" not in done.err
    assert "new branch" in done.err
    assert done.status == 0
    assert head(room.bare, "main") == head(room.work)


async def test_locks_of_a_dead_process_are_forgotten(room: Room, head: Git) -> None:
    (room.bare / "refs/heads/main.lock").touch()
    (room.bare / "packed-refs.lock").touch()
    (room.bare / "objects/tmp_objdir-incoming-dead/pack").mkdir(parents=True)
    (room.bare / "objects/pack/tmp_pack_dead").touch()
    (room.bare / "objects/pack/tmp_idx_dead").touch()
    await room.push("main")
    assert head(room.bare, "main") == head(room.work)
    assert not list(room.bare.rglob("*.lock"))
    assert not list((room.bare / "objects").rglob("tmp_*"))


async def test_pushes_at_once_to_one_branch_have_one_winner(
    room: Room, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    await room.push("main")
    clones = []
    for number in range(6):
        clone = tmp_path / f"c{number}"
        await asyncio.to_thread(git, "clone", "-q", room.url_for("ada"), clone, cwd=tmp_path)
        await asyncio.to_thread(commit, clone, f"from-{number}")
        clones.append(clone)
    done = await asyncio.gather(
        *(asyncio.to_thread(git, "push", "origin", "main", cwd=clone, check=False)
          for clone in clones)
    )  # fmt: skip
    winners = [clone for clone, one in zip(clones, done, strict=True) if one.status == 0]
    assert len(winners) == 1
    assert head(room.bare, "main") == head(winners[0])
    done = await asyncio.gather(
        *(asyncio.to_thread(git, "push", "origin", f"main:b{n}", cwd=clone, check=False)
          for n, clone in enumerate(clones))
    )  # fmt: skip
    assert [one.status for one in done] == [0] * 6
    git("fsck", "--full", "--strict", cwd=room.bare)


async def test_many_pushes_leave_few_packs(room: Room, git: Git, commit: Git, head: Git) -> None:
    """Small packs are joined behind the pushes' backs, and nothing is lost."""
    for number in range(40):
        await asyncio.to_thread(commit, room.work, f"n{number}", file=f"{number}\n" * 20)
        await room.push("-q", "main", f"main:b{number}", f"main:refs/tags/t{number}")
    packs = room.bare / "objects/pack"
    async with asyncio.timeout(20):
        # What is being joined is no pack yet, and may be on its way when there are few.
        while len(list(packs.glob("*.pack"))) > 17 or left_of_pushes(room.bare):
            await asyncio.sleep(0.05)
    git("fsck", "--full", "--strict", cwd=room.bare)
    assert head(room.bare, "main") == head(room.work)
    assert len(git("for-each-ref", cwd=room.bare).out.splitlines()) == 81
    assert len(list((room.bare / "refs/tags").iterdir())) < 40
    await asyncio.to_thread(
        git, "clone", "-q", "--mirror", room.url_for("ada"), "m", cwd=room.work.parent
    )
    git("fsck", "--full", "--strict", cwd=room.work.parent / "m")


async def test_pushes_are_counted_by_how_they_ended(room: Room, commit: Git) -> None:
    counted = room.service.tally.pushes
    await room.push("main")
    assert counted == {PushOutcome.LANDED: 1}
    await room.push("main")  # up to date: git asks for nothing
    assert counted == {PushOutcome.LANDED: 1}
    commit(room.work, "two")
    room.receiver.refused_refs = {"refs/heads/no": "not this one"}
    await room.push("main", "main:no", check=False)
    assert counted == {PushOutcome.LANDED: 1, PushOutcome.PARTLY: 1}
    await room.push("main:no", check=False)
    room.receiver.refusal = "not now"
    await room.push("main:more", check=False)
    assert counted[PushOutcome.REFUSED] == 2
    room.receiver.refusal, room.receiver.fault = None, RuntimeError("a mistake of ours")
    await room.push("main:more", check=False)
    assert counted[PushOutcome.FAILED] == 1
    assert counted.total() == 5


async def test_push_whose_client_leaves_is_counted_as_broken_off(room: Room, head: Git) -> None:
    new = head(room.work)
    line = f"{'0' * 40} {new} refs/heads/main\0 report-status".encode()
    body = b"%04x%b0000PACK" % (len(line) + 4, line)
    host, port = room.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /acme.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Basic YWRhOng=\r\nContent-Length: 100000\r\n"
        b"Content-Type: application/x-git-receive-pack-request\r\n\r\n" + body
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    async with asyncio.timeout(10):
        while not room.service.tally.pushes:
            await asyncio.sleep(0.01)
    assert room.service.tally.pushes == {PushOutcome.BROKEN_OFF: 1}


async def test_packs_of_fetches_are_counted(room: Room, tmp_path: Path, commit: Git) -> None:
    await room.push("main")
    counted = room.service.tally.fetches
    clone = tmp_path / "clone"
    await asyncio.to_thread(room.git, "clone", "-q", room.url_for("ada"), clone, cwd=tmp_path)
    assert counted == {FetchOutcome.SENT: 1}
    await asyncio.to_thread(room.git, "fetch", "-q", cwd=clone)  # there is nothing to send
    assert counted == {FetchOutcome.SENT: 1}
    noise = os.urandom(4000).hex()
    commit(room.work, "more", noise=noise)
    await room.push("main")
    (path,) = (
        path
        for path in (room.bare / "objects").rglob("*")
        if path.is_file() and path.suffix != ".idx" and path.stat().st_size > 4000
    )
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2000)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    await asyncio.to_thread(room.git, "fetch", "-q", cwd=clone, check=False)
    assert counted == {FetchOutcome.SENT: 1, FetchOutcome.FAILED: 1}
