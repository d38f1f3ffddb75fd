"""Pushes that git's own client does not make, or makes seldom (docs/git-server.md, section 8).

Where git's own server has an answer, ours is held against it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import socket
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

Git = Callable[..., Any]
NONE = "0" * 40
CAPS = "report-status side-band-64k"


def hook(bare: Path, name: str, script: str) -> None:
    path = bare / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tip(work: Path, head: Git) -> str:
    return head(work)


@pytest.fixture
def beside(wire: Any, raw: Any, git: Git) -> Callable[[bytes], tuple[Any, Any]]:
    """Send a push to the repository as it is, and to git's own server; the same must be left."""

    def push(body: bytes) -> tuple[Any, Any]:
        ours, theirs = (wire.bare.with_name(f"{who}-{wire.bare.name}") for who in "ab")
        for copy in (ours, theirs):
            shutil.copytree(wire.bare, copy, symlinks=True)
        got = raw.parse_push_answer(wire.server.post(ours, "git-receive-pack", body))
        answer = Response(200, content=raw.by_git(theirs, "git-receive-pack", body))
        wanted = raw.parse_push_answer(answer)
        assert got.status == 200
        assert files(ours) == files(theirs)
        return got, wanted

    return push


def files(bare: Path) -> dict[str, bytes]:
    """Return what decides about refs, and what should have nothing to do with them."""
    found = [*(bare / "refs").rglob("*"), bare / "config", bare / "packed-refs", bare / "shallow"]
    return {str(path.relative_to(bare)): path.read_bytes() for path in found if path.is_file()}


# shallow pushers


@pytest.fixture
def elsewhere(tmp_path: Path, git: Git, commit: Git) -> Path:
    """A repository of its own, with some history."""
    path = tmp_path / "elsewhere"
    git("init", "-q", "-b", "main", path, cwd=tmp_path)
    for number in range(3):
        commit(path, f"u{number}")
    return path


def test_8_29_a_shallow_clone_makes_a_branch_of_what_is_there(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    """The client has nothing to send then but where its history ends."""
    commit(work, "two")
    git("push", "-q", "origin", "main", cwd=work)
    git("clone", "-q", "--depth", "1", server.url_of(bare), "c", cwd=tmp_path)
    git("push", "-q", "origin", "HEAD:refs/heads/new", cwd=tmp_path / "c")
    assert head(bare, "new") == head(work)
    assert not (bare / "shallow").exists()


def test_8_29_borders_of_another_history_are_nobodys_business(
    server: Any, bare: Path, work: Path, elsewhere: Path, git: Git, commit: Git, head: Git
) -> None:
    """A client names all borders that it has, those of what it fetched from others too."""
    git("fetch", "-q", "--depth", "1", f"file://{elsewhere}", "main:other", cwd=work)
    commit(work, "two")
    git("push", "-q", "origin", "main", cwd=work)
    assert head(bare, "main") == head(work)
    assert not (bare / "shallow").exists()


@pytest.mark.parametrize("may", [False, True])
def test_8_28_only_refs_that_need_a_border_are_refused_for_it(
    server: Any, bare: Path, work: Path, elsewhere: Path, git: Git, head: Git, commit: Git, *,
    may: bool,
) -> None:  # fmt: skip
    git("config", "receive.shallowUpdate", str(may).lower(), cwd=bare)
    git("fetch", "-q", "--depth", "1", f"file://{elsewhere}", "main:other", cwd=work)
    commit(work, "two")
    done = git("push", "origin", "main", "other", cwd=work, check=False)
    assert head(bare, "main") == head(work)
    if may:
        assert head(bare, "other") == head(elsewhere)
        assert (bare / "shallow").read_text().split() == [head(elsewhere)]
    else:
        assert "other -> other (shallow update not allowed)" in done.err
        assert not (bare / "shallow").exists()
    git("fsck", "--full", "--strict", cwd=bare)


@pytest.fixture
def two_borders(wire: Any, elsewhere: Path, raw: Any, git: Git, head: Git, commit: Git) -> Any:
    """A push of two refs, each with a border of its own: the body, and the borders."""
    git("config", "receive.shallowUpdate", "true", cwd=wire.bare)
    git("config", "receive.hideRefs", "refs/heads/hidden", cwd=wire.bare)
    git("fetch", "-q", "--depth", "1", f"file://{elsewhere}", "main:one", cwd=wire.work)
    git("reset", "-q", "--hard", "HEAD~2", cwd=elsewhere)
    for message in ("v1", "v2"):
        commit(elsewhere, message)
    git("fetch", "-q", "--depth", "1", f"file://{elsewhere}", "main:other", cwd=wire.work)
    git("tag", "-a", "-m", "t", "t", "other", cwd=wire.work)
    tips = [head(wire.work, "one"), head(wire.work, "t")]

    def made(one: str, caps: str = "") -> tuple[bytes, list[str]]:
        borders = [head(wire.work, "one"), head(wire.work, "other")]
        lines = [f"shallow {oid}" for oid in borders]
        lines.append(f"{NONE} {tips[0]} refs/heads/{one}\0{CAPS}{caps}")
        lines.append(f"{NONE} {tips[1]} refs/tags/t")
        return b"".join(map(raw.pkt, lines)) + b"0000" + wire.pack(*tips), borders

    return made


@pytest.mark.parametrize("declined", ["refs/heads/one", "*", "hidden"])
def test_8_28_a_border_of_a_refused_ref_is_none(
    wire: Any, beside: Callable[[bytes], tuple[Any, Any]], two_borders: Any, declined: str
) -> None:
    """What comes whole later would end there."""
    if declined != "hidden":
        hook(wire.bare, "update", f'case "$1" in {declined}) exit 1;; esac')
    got, wanted = beside(two_borders("hidden" if declined == "hidden" else "one")[0])
    assert got.refs == wanted.refs


@pytest.mark.parametrize("caps", ["", " atomic"])
def test_8_28_two_refs_have_borders_of_their_own(
    wire: Any, raw: Any, two_borders: Any, caps: str
) -> None:
    """git's own server takes one such ref in a push."""
    body, borders = two_borders("one", caps)
    got = raw.parse_push_answer(wire.server.post(wire.bare, "git-receive-pack", body))
    assert got.refs == {"refs/heads/one": "ok", "refs/tags/t": "ok"}
    assert (wire.bare / "shallow").read_text().split() == sorted(borders)


@pytest.mark.parametrize("caps", ["", " atomic"])
def test_8_28_a_history_that_ends_is_no_fast_forward(
    wire: Any, raw: Any, two_borders: Any, tip: str, git: Git, caps: str
) -> None:
    """Its border is known when that is asked, though it is not noted yet; nor is it later."""
    git("config", "receive.denyNonFastForwards", "true", cwd=wire.bare)
    body, borders = two_borders("main", caps)
    body = body.replace(f"{NONE} {borders[0]}".encode(), f"{tip} {borders[0]}".encode())
    got = raw.parse_push_answer(wire.server.post(wire.bare, "git-receive-pack", body))
    assert got.refs["refs/heads/main"] == "non-fast-forward"
    if caps:
        assert got.refs["refs/tags/t"] == "atomic push failure"
        assert not (wire.bare / "shallow").exists()
    else:
        assert got.refs["refs/tags/t"] == "ok"
        assert (wire.bare / "shallow").read_text().split() == [borders[1]]


@pytest.mark.parametrize("caps", ["", " atomic"])
def test_8_28_a_border_of_a_ref_that_somebody_else_moved_is_none(
    wire: Any, raw: Any, two_borders: Any, git: Git, caps: str
) -> None:
    """Who is too late learns that when the refs are locked: nothing may be noted before."""
    body, borders = two_borders("one", caps)
    git("push", "-q", "origin", "main:one", cwd=wire.work)
    got = raw.parse_push_answer(wire.server.post(wire.bare, "git-receive-pack", body))
    assert got.refs["refs/heads/one"] != "ok"
    if caps:
        assert got.refs["refs/tags/t"] != "ok"
        assert not (wire.bare / "shallow").exists()
    else:
        assert got.refs["refs/tags/t"] == "ok"
        assert (wire.bare / "shallow").read_text().split() == [borders[1]]


@pytest.mark.parametrize("caps", ["", " atomic"])
def test_8_28_a_border_that_cannot_be_noted_refuses_the_refs_that_need_it(
    wire: Any, raw: Any, two_borders: Any, git: Git, caps: str
) -> None:
    body, _ = two_borders("one", caps)
    (wire.bare / "shallow.lock").touch()  # as while a git process changes them
    got = raw.parse_push_answer(wire.server.post(wire.bare, "git-receive-pack", body))
    reason = "atomic transaction failed" if caps else "shallow error"
    assert got.refs == {"refs/heads/one": reason, "refs/tags/t": reason}
    assert not (wire.bare / "shallow").exists()
    assert "refs/tags/t" not in git("for-each-ref", cwd=wire.bare).out


@pytest.mark.parametrize("border", ["12" * 20, "HEAD^{tree}"])
def test_8_28_a_border_that_is_no_commit_here_is_none(
    wire: Any, tip: str, head: Git, border: str
) -> None:
    oid = head(wire.work, border)
    got = wire.push(
        (NONE, tip, "refs/heads/x"), pack=wire.pack(tip, f"^{tip}"), before=[f"shallow {oid}"]
    )
    assert got.refs == {"refs/heads/x": "ok"}
    assert not (wire.bare / "shallow").exists()


# packs


@pytest.mark.parametrize("checks", [False, True])
@pytest.mark.parametrize("copies", [2, 5000])
def test_8_20_an_object_may_come_twice(
    wire: Any, raw: Any, git: Git, tmp_path: Path, *, copies: int, checks: bool
) -> None:
    """It is kept once: the pack is cloned as it lies by who checks that."""
    git("config", "receive.fsckObjects", str(checks).lower(), cwd=wire.bare)
    blob = b"it comes more than once\n"
    pack = raw.make_pack(*[("blob", blob)] * copies)
    got = wire.push((NONE, raw.oid_of("blob", blob), "refs/tags/x"), pack=pack)
    assert (got.unpack, got.refs) == ("ok", {"refs/tags/x": "ok"})
    git("fsck", "--full", "--strict", cwd=wire.bare)
    url = wire.server.url_of(wire.bare)
    git("-c", "fetch.fsckObjects", "clone", "-q", "--mirror", url, "c", cwd=tmp_path)


def test_8_43_silence_while_a_pack_is_checked_is_bridged(wire: Any, raw: Any, git: Git) -> None:
    """It waits for the base of its delta here, until somebody opens that for writing."""
    git("config", "receive.keepAlive", "1", cwd=wire.bare)
    base = wire.bare / "objects/ab" / ("cd" * 19)
    base.parent.mkdir()
    os.mkfifo(base)
    delta = b"\5\3\3xyz"
    entry = raw.pack_entry(7, len(delta)) + b"\xab" + b"\xcd" * 19 + zlib.compress(delta)
    pack = b"PACK\0\0\0\2\0\0\0\1" + entry
    body = raw.pkt(f"{NONE} {'1' * 40} refs/tags/x\0{CAPS}") + b"0000" + pack
    body += hashlib.sha1(pack).digest()
    host, _, port = wire.server.url.removeprefix("http://").partition(":")
    head = (
        f"POST /{wire.bare.name}/git-receive-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head.encode() + b"\r\n" + body)
        try:
            heard = b""
            while b"0005\2" not in heard:
                piece = client.recv(4096)
                assert piece, "it ended in silence"
                heard += piece
        finally:
            base.open("wb").close()
        while piece := client.recv(4096):
            heard += piece
    assert b"ng refs/tags/x unpacker error" in heard


TIDIED = "somebody tidied up meanwhile: push again"


@pytest.mark.parametrize("left", ["nothing", "folders", "index", "pack"])
def test_8_45_objects_that_git_prune_took_away_move_no_ref(
    wire: Any, tip: str, commit: Git, git: Git, head: Git, left: str
) -> None:
    """`git prune --expire=now` removes quarantines too, file by file."""
    keep = {"nothing": "", "folders": "-type f", "index": "-name *.pack", "pack": "-name *.idx"}
    hook(wire.bare, "pre-receive", f"set -f; find $GIT_QUARANTINE_PATH {keep[left]} -delete")
    new = commit(wire.work, "two")
    commands = (tip, new, "refs/heads/main"), (NONE, new, "refs/tags/x")
    got = wire.push(*commands, pack=wire.pack(new, f"^{tip}"))
    assert {*got.refs.values()} == {"unable to migrate objects to permanent storage"}
    assert TIDIED in got.words
    assert head(wire.bare, "main") == tip
    (wire.bare / "hooks/pre-receive").unlink()
    git("fsck", "--full", "--strict", cwd=wire.bare)
    got = wire.push(*commands, pack=wire.pack(new, f"^{tip}"))
    assert {*got.refs.values()} == {"ok"}


# histories that lack something


def test_8_19_each_of_many_tips_is_judged_by_what_it_reaches_itself(
    wire: Any, raw: Any, tip: str, head: Git
) -> None:
    """Though what was found out for one is remembered for the others."""
    tree, who = head(wire.work, "HEAD^{tree}"), "A <a@b> 1 +0000"

    def commit_of(tree: str, *parents: str) -> bytes:
        lines = "".join(f"parent {parent}\n" for parent in parents)
        return f"tree {tree}\n{lines}author {who}\ncommitter {who}\n\nx\n".encode()

    objects, oids, wanted = [], [], {}
    broken, whole = "12" * 20, tip
    for number in range(30):
        both = commit_of(tree, broken), commit_of(tree, whole), commit_of(tree, whole, broken)
        broken, whole, joined = (raw.oid_of("commit", data) for data in both)
        objects += [("commit", data) for data in both]
        oids += [(f"broken{number}", broken), (f"whole{number}", whole), (f"join{number}", joined)]
    # Linked as a tree, and a whole commit all the same.
    objects.append(("commit", commit_of(whole, tip)))
    oids += [("odd", raw.oid_of("commit", objects[-1][1])), ("whole", whole)]
    for name, _ in oids:
        is_good = name.startswith("whole")
        wanted[f"refs/heads/{name}"] = "ok" if is_good else "missing necessary objects"
    commands = [(NONE, oid, f"refs/heads/{name}") for name, oid in oids]
    assert wire.push(*commands, pack=raw.make_pack(*objects)).refs == wanted


# push options


@pytest.mark.parametrize(
    ("option", "seen"),
    [(b"a\0b", b"a"), (b"\0", b""), (b"a\nb", b"a\nb"), (b"-=\x1b[0m", b"-=\x1b[0m"), (b"", b"")],
)
def test_8_30_hooks_get_odd_push_options_as_from_git(
    beside: Any, wire: Any, raw: Any, tip: str, git: Git, option: bytes, seen: bytes
) -> None:
    git("config", "receive.advertisePushOptions", "true", cwd=wire.bare)
    for name in ("pre-receive", "post-receive"):
        hook(wire.bare, name, 'printf "%s[%s]\\n" "$GIT_PUSH_OPTION_COUNT" "$GIT_PUSH_OPTION_0"')
    body = raw.pkt(f"{NONE} {tip} refs/heads/x\0{CAPS} push-options") + b"0000"
    body += raw.pkt(option) + b"0000" + wire.pack(tip, f"^{tip}")
    got, wanted = beside(body)
    assert got.report == wanted.report
    assert got.words == wanted.words == f"1[{seen.decode()}]\n" * 2


def test_8_30_options_are_heard_only_where_they_were_offered(
    beside: Any, wire: Any, raw: Any, tip: str
) -> None:
    body = raw.pkt(f"{NONE} {tip} refs/heads/x\0{CAPS} push-options") + b"0000"
    got, wanted = beside(body + raw.pkt("a") + b"0000" + wire.pack(tip, f"^{tip}"))
    assert got.report == wanted.report
    assert got.unpack == "protocol error (pack signature mismatch detected)"


def test_8_11_atomic_is_heard_only_where_it_was_offered(
    beside: Any, wire: Any, raw: Any, tip: str, git: Git
) -> None:
    git("config", "receive.advertiseAtomic", "false", cwd=wire.bare)
    body = raw.pkt(f"{NONE} {tip} refs/heads/good\0{CAPS} atomic")
    body += raw.pkt(f"{NONE} {tip} refs/heads/main") + b"0000" + wire.pack(tip, f"^{tip}")
    got, _ = beside(body)
    assert got.refs == {"refs/heads/good": "ok", "refs/heads/main": "reference already exists"}


# who pushes


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        (b"ada <eve@x>", "ada eve@x"),
        (b"<>", "anonymous"),
        (b"r\xc3\xa9mi", "r\u00e9mi"),
        (b"r\xe9mi", "r\ufffdmi"),
    ],
)
def test_8_42_a_name_breaks_no_reflog(
    wire: Any, tip: str, git: Git, user: bytes, shown: str
) -> None:
    git("config", "core.logAllRefUpdates", "true", cwd=wire.bare)
    got = wire.push(
        (NONE, tip, "refs/heads/x"),
        pack=wire.pack(tip, f"^{tip}"),
        X_Remote_User=user,
    )
    assert got.refs == {"refs/heads/x": "ok"}
    logged = git("reflog", "--format=%gn|%ge", "refs/heads/x", cwd=wire.bare).out
    assert logged == f"{shown}|{shown}@http.127.0.0.1"


# command lines


def test_8_35_every_line_may_name_capabilities_and_ends_at_its_nul(
    beside: Any, wire: Any, raw: Any, tip: str
) -> None:
    body = raw.pkt(f"{NONE} {tip} refs/heads/a") + raw.pkt(f"{NONE} {tip} refs/heads/b\0{CAPS}")
    body += raw.pkt(f"{NONE} {tip} refs/heads/c\0 quiet\n") + b"0000"
    got, wanted = beside(body + wire.pack(tip, f"^{tip}"))
    assert got.report == wanted.report
    assert got.refs == dict.fromkeys(("refs/heads/a", "refs/heads/b", "refs/heads/c"), "ok")


@pytest.mark.parametrize("between", ["\n", "\r", "\t", "\x7f", "\x1b", " "])
def test_8_14_names_that_would_forge_a_line_are_refused(
    beside: Any, wire: Any, raw: Any, tip: str, between: str
) -> None:
    body = raw.pkt(f"{NONE} {tip} refs/heads/a{between}b\0{CAPS}") + b"0000"
    got, _ = beside(body + wire.pack(tip, f"^{tip}"))
    assert got.raw.count(b"funny refname") == 1


def test_8_5_a_deletion_names_what_it_deletes(wire: Any, tip: str, git: Git, head: Git) -> None:
    """git's server deletes whatever is there when no old id is named; its client names one."""
    git("push", "-q", "origin", "main:other", cwd=wire.work)
    got = wire.push((NONE, NONE, "refs/heads/other"))
    assert got.refs == {"refs/heads/other": "reference already exists"}
    assert head(wire.bare, "other") == tip


# symbolic refs


@pytest.mark.parametrize("target", ["refs/heads/circle", "config", "../outside", "objects/x"])
@pytest.mark.parametrize("is_delete", [False, True])
def test_8_41_a_symref_to_what_is_no_ref_is_not_written_through(
    wire: Any, tip: str, target: str, *, is_delete: bool
) -> None:
    (wire.bare / "refs/heads/alias").write_text(f"ref: {target}\n")
    (wire.bare / "refs/heads/circle").write_text("ref: refs/heads/alias\n")
    old, new = (tip, NONE) if is_delete else (NONE, tip)
    before = files(wire.bare)
    got = wire.push((old, new, "refs/heads/alias"), pack=wire.pack(tip, f"^{tip}"))
    assert got.refs["refs/heads/alias"] != "ok"
    assert files(wire.bare) == before
    assert not (wire.bare.parent / "outside").exists()


def test_8_41_a_deleted_symref_takes_what_it_names_with_it(
    beside: Any, wire: Any, raw: Any, tip: str, git: Git
) -> None:
    """Also the current branch: only its own name protects it, as with git."""
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=wire.bare)
    got, wanted = beside(raw.pkt(f"{tip} {NONE} refs/heads/alias\0{CAPS}") + b"0000")
    assert got.report == wanted.report == ["unpack ok", "ok refs/heads/alias"]


# pushes at once

NAMES = ("a", "a/b", "a/b/c", "x", "x/y")
CLIENTS, ROUNDS = 6, 6


def test_8_44_pushes_of_all_kinds_at_once_leave_refs_that_agree(
    wire: Any, raw: Any, tip: str, git: Git, commit: Git
) -> None:
    """Of one repository, through this server and git's own, with names that cannot all be."""
    git("config", "core.logAllRefUpdates", "true", cwd=wire.bare)
    two = commit(wire.work, "two")
    git("push", "-q", "origin", "main", cwd=wire.work)
    empty = wire.pack(tip, f"^{tip}")

    def client(number: int) -> list[Any]:
        numbers = random.Random(number)
        return [one_push(number, numbers) for _ in range(ROUNDS)]

    def one_push(number: int, numbers: random.Random) -> Any:
        moves = [(NONE, tip), (NONE, two), (tip, two), (two, tip), (tip, NONE), (two, NONE)]
        names = numbers.sample(NAMES, numbers.randint(1, 3))
        commands = [(*numbers.choice(moves), f"refs/heads/{name}") for name in names]
        caps = CAPS + numbers.choice(["", " atomic"])
        lines = [" ".join(command) for command in commands]
        body = raw.pkt(f"{lines[0]}\0{caps}") + b"".join(map(raw.pkt, lines[1:])) + b"0000"
        if any(new != NONE for _, new, _ in commands):
            body += empty
        if number % 3 == 2:
            content = raw.by_git(wire.bare, "git-receive-pack", body)
            return raw.parse_push_answer(Response(200, content=content))
        answer = raw.parse_push_answer(wire.server.post(wire.bare, "git-receive-pack", body))
        if "atomic" in caps:
            assert len({reason == "ok" for reason in answer.refs.values()}) == 1
        return answer

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = [answer for some in clients.map(client, range(CLIENTS)) for answer in some]
    assert {answer.status for answer in answers} == {200}
    assert all(answer.unpack == "ok" for answer in answers)
    git("fsck", "--full", "--strict", cwd=wire.bare)
    names = git("for-each-ref", "--format=%(refname)", cwd=wire.bare).out.splitlines()
    assert not any(other.startswith(f"{name}/") for name in names for other in names)
    for name in names:
        log = wire.bare / "logs" / name
        moves = [line.split()[:2] for line in log.read_text().splitlines()] if log.exists() else []
        assert all(before[1] == after[0] for before, after in itertools.pairwise(moves))
    left = [*wire.bare.rglob("*.lock"), *(wire.bare / "objects").glob("tmp_*")]
    assert left == []
