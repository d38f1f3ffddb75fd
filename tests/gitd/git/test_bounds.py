"""docs/git-server.md, section 10: large, slow, broken and hostile, each with a clear end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]
CHUNKED = ["-c", "http.postBuffer=65536", "-c", "http.version=HTTP/1.1"]


def test_a_hundred_thousand_refs_are_listed(
    server: Any, bare: Path, work: Path, git: Git, head: Git
) -> None:
    tip = head(work)
    lines = [f"{tip} refs/tags/t{number:06}\n" for number in range(100_000)]
    (bare / "packed-refs").write_text(
        "# pack-refs with: peeled fully-peeled sorted \n" + "".join(lines)
    )
    for version in ("0", "2"):
        listed = git(
            "-c", f"protocol.version={version}", "ls-remote", server.url_of(bare), cwd=work
        )
        assert len(listed.out.splitlines()) == 100_002


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.soak)])
def test_many_refs_in_one_push(work: Path, bare: Path, git: Git, head: Git, count: int) -> None:
    tip = head(work)
    lines = [f"create refs/heads/b{number} {tip}\n" for number in range(count)]
    git("update-ref", "--stdin", cwd=work, stdin="".join(lines).encode())
    start = time.monotonic()
    git("push", "-q", "--all", "origin", cwd=work)
    print(f"{count} refs in {time.monotonic() - start:.2f} s")
    assert len(git("for-each-ref", cwd=bare).out.splitlines()) == count + 1
    git("push", "-q", "--prune", "origin", "refs/heads/main:refs/heads/main",
        *(f":refs/heads/b{n}" for n in range(count)), cwd=work)  # fmt: skip
    assert git("for-each-ref", "--format=%(refname)", cwd=bare).out == "refs/heads/main"


def test_a_long_negotiation_ends(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    """2.6: the client's newest thousands of commits are unknown to the server; rounds of more than
    `http.postBuffer` come in chunks behind a probe."""
    clone = tmp_path / "clone"
    git("clone", "-q", server.url_of(bare), clone, cwd=tmp_path)
    stream = ["commit refs/heads/mine\ncommitter A <a@b> 4000000000 +0000\ndata 1\nx\n"]
    stream += [
        f"commit refs/heads/mine\ncommitter A <a@b> {4000000001 + n} +0000\ndata 1\nx\n"
        for n in range(5000)
    ]
    git("fast-import", "--quiet", cwd=clone, stdin="".join(stream).encode())
    new = commit(work, "theirs")
    git("push", "-q", "origin", "main", cwd=work)
    trace = {"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"}
    for version, more in (("0", []), ("2", []), ("0", CHUNKED), ("2", CHUNKED)):
        fresh = tmp_path / f"{version}-{len(more)}"
        shutil.copytree(clone, fresh)
        done = git("-c", f"protocol.version={version}", *more, "fetch", cwd=fresh, **trace)
        assert head(fresh, "origin/main") == new
        assert done.err.count("Send header: POST") >= 2
        assert ("Send header: Transfer-Encoding: chunked" in done.err) == bool(more)


def test_haves_of_another_history_do_not_cost_a_walk_each(
    server: Any, bare: Path, raw: Any, git: Git, head: Git
) -> None:
    """Every second have is unknown, and asks whether enough is common: it never is."""
    for name, count in (("wanted", 4000), ("other", 3000)):
        lines = [
            f"commit refs/heads/{name}\ncommitter A <{name}@x> {1700000000 + n} +0000\ndata 1\nx\n"
            for n in range(count)
        ]
        git("fast-import", "--quiet", cwd=bare, stdin="".join(lines).encode())
    caps = "multi_ack_detailed side-band-64k"
    body = raw.pkt(f"want {head(bare, 'wanted')} {caps}\n") + b"0000"
    for number, oid in enumerate(git("rev-list", "other", cwd=bare).out.split()):
        body += raw.pkt(f"have {oid}\n") + raw.pkt(f"have {number:040x}\n")
    body += b"0000"
    ours = server.post(bare, "git-upload-pack", body).content
    assert ours == raw.by_git(bare, "git-upload-pack", body)
    assert ours.count(b"common") == 3000


def test_fifty_thousand_wants_are_bounded_work(
    server: Any, bare: Path, work: Path, raw: Any, head: Git
) -> None:
    want = raw.pkt(f"want {head(work)}\n")
    body = raw.pkt("command=fetch\n") + b"0001" + want * 50_000 + raw.pkt("done\n") + b"0000"
    got = server.post(bare, "git-upload-pack", body, Git_Protocol="version=2")
    assert b"packfile" in got.content


def test_names_are_wanted_once_and_counted(
    server: Any, bare: Path, work: Path, raw: Any, git: Git
) -> None:
    """Each is looked for among those before it, and there may be as many as there are wants."""
    git("config", "uploadpack.allowRefInWant", "true", cwd=bare)
    lines = b"".join(raw.pkt(f"want-ref r{number}\n") for number in range(250_000))
    body = raw.pkt("command=fetch\n") + b"0001" + lines + b"0000"
    got = server.post(bare, "git-upload-pack", body, Git_Protocol="version=2")
    assert b"ERR upload-pack: too many " in got.content


def test_a_broken_object_is_an_error_and_not_half_a_pack(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git
) -> None:
    """A whole clone is the stored file, summed up while it is sent; another one is made here."""
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    for pack in (bare / "objects/pack").glob("*.pack"):
        listed = git("verify-pack", "-v", pack.with_suffix(".idx"), cwd=bare).out
        blob = next(line.split() for line in listed.splitlines() if " blob " in line)
        # In its place, as bits rot: the server has it mapped, which a file cut to nothing ends.
        # In the content of a blob: a commit may be in memory, as it was, and is sent from there.
        with pack.open("r+b") as file:
            file.seek(int(blob[4]) + int(blob[3]) // 2)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0xFF]))
    whole = git("clone", server.url_of(bare), "c", cwd=tmp_path, check=False)
    assert "remote: upload-pack: pack-" in whole.err
    assert ".pack is damaged" in whole.err
    assert f": only the server's operator can mend {bare.name}; 'gitd check'" in whole.err
    assert not (tmp_path / "c").exists()
    filtered = ("clone", "--filter=blob:limit=1k", server.url_of(bare), "c")
    words = f"remote: upload-pack: object {blob[0]} is damaged in pack-"
    assert words in git(*filtered, cwd=tmp_path, check=False).err
    assert not (tmp_path / "c").exists()


def test_a_damaged_entry_is_not_copied_to_who_fetches(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    """t5303 "corrupted entry data": its sum in the index is looked at before it is sent."""
    clone = tmp_path / "c"
    git("clone", "-q", server.url_of(bare), clone, cwd=tmp_path)
    commit(work, "more", noise=os.urandom(4000).hex())
    git("push", "-q", "origin", "main", cwd=work)
    blob = git("rev-parse", "main:noise", cwd=work).out
    (index,) = (
        path
        for path in (bare / "objects/pack").glob("*.idx")
        if blob in git("show-index", cwd=bare, stdin=path.read_bytes()).out
    )
    listed = git("verify-pack", "-v", index, cwd=bare).out
    (offset,) = (int(line.split()[4]) for line in listed.splitlines() if line.startswith(blob))
    with index.with_suffix(".pack").open("r+b") as file:
        file.seek(offset + 1000)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    done = git("fetch", "origin", cwd=clone, check=False)
    assert f"remote: upload-pack: object {blob} is damaged in {index.stem}.pack" in done.err
    assert f": only the server's operator can mend {bare.name}; 'gitd check'" in done.err
    assert done.status != 0


def test_what_is_whole_elsewhere_is_cloned_and_fetched(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    """As from git; a stored pack that is sent as it lies is known as damaged once it was sent."""
    commit(work, "more", noise=os.urandom(4000).hex())
    git("push", "-q", "origin", "main", cwd=work)
    git("repack", "-q", "-a", "-d", "-f", cwd=bare)
    blob = git("rev-parse", "main:noise", cwd=work).out
    (index,) = (bare / "objects/pack").glob("*.idx")
    listed = git("verify-pack", "-v", index, cwd=bare).out
    (offset,) = (int(line.split()[4]) for line in listed.splitlines() if line.startswith(blob))
    git("pack-objects", "objects/pack/pack", cwd=bare, stdin=f"{blob}\n".encode())
    with index.with_suffix(".pack").open("r+b") as file:
        file.seek(offset + 1000)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    for name in ("first", "second"):
        done = git("clone", "-q", server.url_of(bare), name, cwd=tmp_path, check=False)
    assert done.status == 0, done.err
    git("fsck", "--full", cwd=tmp_path / "second")
    assert git("rev-parse", "HEAD:noise", cwd=tmp_path / "second").out == blob


def test_a_branch_that_head_names_may_be_missing(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git
) -> None:
    git("symbolic-ref", "HEAD", "refs/heads/gone", cwd=bare)
    done = git("clone", server.url_of(bare), "c", cwd=tmp_path)
    assert "remote HEAD refers to nonexistent ref" in done.err


def test_a_branch_whose_commit_comes_back_is_seen_again(
    server: Any, bare: Path, work: Path, git: Git, head: Git
) -> None:
    packs = bare / "objects/pack"
    packs.rename(bare / "away")
    packs.mkdir()
    assert git("ls-remote", "origin", "main", cwd=work).out == ""
    packs.rmdir()
    (bare / "away").rename(packs)
    assert head(work) in git("ls-remote", "origin", "main", cwd=work).out


def test_pushes_and_fetches_go_on_during_gc(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def repack() -> None:
        while not stop.is_set():
            for words in (["gc", "-q"], ["repack", "-adq"]):
                git(*words, cwd=bare, check=False)

    thread = threading.Thread(target=repack)
    thread.start()
    try:
        for number in range(12):
            commit(work, f"n{number}")
            pushed = git("push", "-q", "origin", "main", cwd=work, check=False)
            if pushed.status:
                failures.append(pushed.err)
            cloned = git(
                "clone", "-q", server.url_of(bare), f"c{number}", cwd=tmp_path, check=False
            )
            if cloned.status:
                failures.append(cloned.err)
            else:
                git("fsck", "--full", cwd=tmp_path / f"c{number}")
    finally:
        stop.set()
        thread.join()
    assert failures == []


def test_a_repository_that_is_made_anew_is_seen_anew(
    server: Any, bare: Path, work: Path, git: Git, tmp_path: Path, commit: Git, head: Git
) -> None:
    git("clone", "-q", server.url_of(bare), "a", cwd=tmp_path)
    old = head(work)
    subprocess.run(["rm", "-rf", bare], check=True)
    git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    git("config", "http.receivepack", "true", cwd=bare)
    assert git("ls-remote", server.url_of(bare), cwd=work).out == ""
    git("push", "-q", "origin", "main", cwd=work)
    assert head(bare, "main") == old
    git("fsck", "--full", "--strict", cwd=bare)


def test_alternates_are_read_through(
    server: Any, bare: Path, name: str, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    fork = server.root / f"fork-{name}"
    git("clone", "-q", "--bare", "--shared", bare, fork, cwd=tmp_path)
    git("config", "http.receivepack", "true", cwd=fork)
    git("clone", "-q", server.url_of(fork), "a", cwd=tmp_path)
    assert head(tmp_path / "a") == head(work)
    new = commit(work, "two")
    git("push", "-q", server.url_of(fork), "main", cwd=work)
    assert head(fork, "main") == new
    git("fsck", "--full", "--strict", cwd=fork)


def test_a_server_that_is_killed_leaves_old_or_new(
    launch: Any, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    """kill -9 at many moments of a push; the next server goes on where it was."""
    root = tmp_path / "root"
    root.mkdir()
    server = launch(root)
    bare = server.create("a.git")
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    git("push", "-q", server.url_of(bare), "main", cwd=work)
    numbers = random.Random(11)
    outcomes = set()
    for number in (0, 2, 4, 6, 9):
        old = head(bare, "main")
        new = commit(work, f"n{number}", **{f"f{i}": os.urandom(600).hex() for i in range(150)})
        pushing = subprocess.Popen(
            ["git", "push", "-q", server.url_of(bare), "main"], cwd=work, stderr=subprocess.DEVNULL
        )
        time.sleep(0.01 + 0.008 * number + 0.004 * numbers.random())
        server.process.send_signal(signal.SIGKILL)
        pushing.wait(30)
        server = launch(root)
        now = head(bare, "main")
        assert now in (old, new)
        outcomes.add(now == new)
        git("fsck", "--full", "--strict", cwd=bare)
        for lock in bare.rglob("*.lock"):  # plain repositories may be somebody else's: by hand
            lock.unlink()
        git("push", "-q", server.url_of(bare), "main", cwd=work)
        assert head(bare, "main") == new
    print(f"outcomes: {outcomes}")
