"""docs/git-server.md, section 8, row by row, with raw requests."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]
NONE = "0" * 40


@pytest.fixture(autouse=True)
def nothing_left_behind(bare: Path, git: Git) -> Any:
    yield
    assert not list((bare / "objects").rglob("tmp_*"))
    assert not list(bare.rglob("*.lock"))
    assert not list(bare.rglob("tmp_*"))
    done = git("fsck", "--full", "--connectivity-only", cwd=bare)
    assert "missing" not in done.text


@pytest.fixture
def tip(work: Path, head: Git) -> str:
    return head(work)


@pytest.fixture
def second(work: Path, commit: Git) -> str:
    return commit(work, "two")


def test_8_1_update_create_delete_force(wire: Any, tip: str, second: str, head: Git) -> None:
    update = wire.push((tip, second, "refs/heads/main"), pack=wire.pack(second, f"^{tip}"))
    assert update.refs == {"refs/heads/main": "ok"}
    assert update.report == ["unpack ok", "ok refs/heads/main"]
    create = wire.push((NONE, second, "refs/heads/new"), pack=wire.pack(second, f"^{second}"))
    assert create.refs == {"refs/heads/new": "ok"}
    force = wire.push((second, tip, "refs/heads/new"), pack=wire.pack(tip, f"^{tip}"))
    assert force.refs == {"refs/heads/new": "ok"}
    delete = wire.push((tip, NONE, "refs/heads/new"))
    assert delete.report == ["unpack ok", "ok refs/heads/new"]
    assert head(wire.bare, "main") == second


def test_8_2_a_create_without_any_pack_is_refused(wire: Any, tip: str) -> None:
    answer = wire.push((NONE, tip, "refs/heads/new"))
    assert answer.unpack == "eof before pack header was fully read"
    assert answer.refs == {"refs/heads/new": "unpacker error"}


def test_8_3_the_current_branch_is_not_deleted(wire: Any, tip: str, git: Git) -> None:
    answer = wire.push((tip, NONE, "refs/heads/main"))
    assert answer.refs == {"refs/heads/main": "deletion of the current branch prohibited"}
    assert "error: refusing to delete the current branch: refs/heads/main" in answer.words
    git("config", "receive.denyDeleteCurrent", "warn", cwd=wire.bare)
    answer = wire.push((tip, NONE, "refs/heads/main"))
    assert answer.refs == {"refs/heads/main": "ok"}
    assert "warning: deleting the current branch" in answer.words


def test_8_4_deleting_what_is_not_there_warns(wire: Any) -> None:
    answer = wire.push((NONE, NONE, "refs/heads/nope"))
    assert answer.refs == {"refs/heads/nope": "ok"}
    assert "warning: deleting a non-existent ref" in answer.words


def test_8_5_deleting_what_is_not_there_with_an_old_id_fails(wire: Any, tip: str) -> None:
    answer = wire.push((tip, NONE, "refs/heads/nope"))
    assert answer.refs["refs/heads/nope"] in ("reference does not exist", "failed to update ref")
    assert "unable to resolve reference" in answer.words


def test_8_6_deny_non_fast_forwards_is_for_branches(
    wire: Any, tip: str, second: str, git: Git
) -> None:
    git("config", "receive.denyNonFastForwards", "true", cwd=wire.bare)
    git("push", "-q", "origin", "main", "main:refs/tags/t", cwd=wire.work)
    empty = wire.pack(tip, f"^{tip}")
    answer = wire.push((second, tip, "refs/heads/main"), pack=empty)
    assert answer.refs == {"refs/heads/main": "non-fast-forward"}
    assert "error: denying non-fast-forward refs/heads/main (you should pull first)" in answer.words
    assert wire.push((second, tip, "refs/tags/t"), pack=empty).refs == {"refs/tags/t": "ok"}


def test_8_7_deny_deletes_is_for_branches(wire: Any, tip: str, git: Git) -> None:
    git("push", "-q", "origin", "main:new", "main:refs/tags/t", cwd=wire.work)
    git("config", "receive.denyDeletes", "true", cwd=wire.bare)
    answer = wire.push((tip, NONE, "refs/heads/new"), (tip, NONE, "refs/tags/t"))
    assert answer.refs == {"refs/heads/new": "deletion prohibited", "refs/tags/t": "ok"}
    assert "error: denying ref deletion for refs/heads/new" in answer.words


def test_8_8_a_stale_old_id_is_refused(wire: Any, tip: str, second: str, head: Git) -> None:
    answer = wire.push((second, second, "refs/heads/main"), pack=wire.pack(second, f"^{tip}"))
    assert answer.refs["refs/heads/main"] in (
        "incorrect old value provided",
        "failed to update ref",
    )
    assert f"is at {tip} but expected {second}" in answer.words
    assert head(wire.bare, "main") == tip


def test_8_9_a_create_of_what_exists_is_refused(wire: Any, tip: str, second: str) -> None:
    answer = wire.push((NONE, second, "refs/heads/main"), pack=wire.pack(second, f"^{tip}"))
    assert answer.refs["refs/heads/main"] == "reference already exists"


def test_8_10_one_bad_ref_stops_no_good_one(wire: Any, tip: str, second: str, head: Git) -> None:
    answer = wire.push(
        (second, second, "refs/heads/main"),
        (NONE, second, "refs/heads/good"),
        pack=wire.pack(second, f"^{tip}"),
    )
    assert answer.refs["refs/heads/main"] != "ok"
    assert answer.refs["refs/heads/good"] == "ok"
    assert head(wire.bare, "good") == second


def test_8_11_atomic_is_all_or_nothing(wire: Any, tip: str, second: str, git: Git) -> None:
    answer = wire.push(
        (second, second, "refs/heads/main"),
        (NONE, second, "refs/heads/good"),
        pack=wire.pack(second, f"^{tip}"),
        caps="report-status side-band-64k atomic",
    )
    assert set(answer.refs.values()) == {"atomic transaction failed"}
    assert f"is at {tip} but expected {second}" in answer.words
    git("config", "receive.denyDeletes", "true", cwd=wire.bare)
    answer = wire.push(
        (tip, NONE, "refs/heads/main"),
        (NONE, second, "refs/heads/good"),
        pack=wire.pack(second, f"^{tip}"),
        caps="report-status side-band-64k atomic",
    )
    assert answer.refs == {
        "refs/heads/main": "deletion prohibited",
        "refs/heads/good": "atomic push failure",
    }
    assert git("rev-parse", "-q", "--verify", "good", cwd=wire.bare, check=False).status == 1


def test_8_12_the_same_ref_twice_is_refused(wire: Any, tip: str, second: str, head: Git) -> None:
    answer = wire.push(
        (tip, second, "refs/heads/main"),
        (tip, second, "refs/heads/main"),
        pack=wire.pack(second, f"^{tip}"),
    )
    assert len(answer.report) == 3
    assert all(line.startswith("ng ") for line in answer.report[1:])
    assert head(wire.bare, "main") == tip


@pytest.mark.parametrize("packed", [False, True])
def test_8_13_a_branch_is_no_directory(wire: Any, tip: str, git: Git, *, packed: bool) -> None:
    git("push", "-q", "origin", "main:refs/heads/dir/leaf", cwd=wire.work)
    if packed:
        git("pack-refs", "--all", cwd=wire.bare)
    empty = wire.pack(tip, f"^{tip}")
    answer = wire.push((NONE, tip, "refs/heads/main/sub"), pack=empty)
    assert answer.refs == {"refs/heads/main/sub": "refname conflict"}
    assert "'refs/heads/main' exists; cannot create" in answer.words
    answer = wire.push((NONE, tip, "refs/heads/dir"), pack=empty)
    assert answer.refs == {"refs/heads/dir": "refname conflict"}


@pytest.mark.parametrize(
    "ref",
    [
        "HEAD", "foo/bar", "refs/../x", "refs/heads/a..b", "refs/heads/.x", "refs/heads/x.lock",
        "refs/heads/a b", "refs/heads/a~b", "refs/heads/a^b", "refs/heads/a:b", "refs/heads/a?b",
        "refs/heads/a*b", "refs/heads/a[b", "refs/heads/a\\b", "refs/heads/a@{b", "refs/heads//a",
        "refs/heads/a/", "refs/heads/a.", "refs/heads/a\x01b", "refs/foo", "refs/heads/x.lock/y",
    ],
)  # fmt: skip
def test_8_14_funny_names_are_refused(wire: Any, tip: str, ref: str) -> None:
    answer = wire.push((NONE, tip, ref), pack=wire.pack(tip, f"^{tip}"))
    assert answer.report == ["unpack ok", f"ng {ref} funny refname"]
    assert "funny ref" in answer.words


def test_8_14_a_one_level_name_may_be_deleted(wire: Any, tip: str) -> None:
    (wire.bare / "refs/foo").write_text(f"{tip}\n")
    assert wire.push((tip, NONE, "refs/foo")).refs == {"refs/foo": "ok"}


def test_8_15_hidden_refs_are_not_touched(wire: Any, tip: str, git: Git) -> None:
    git("config", "--add", "receive.hideRefs", "refs/hidden", cwd=wire.bare)
    git("config", "--add", "receive.hideRefs", "!refs/hidden/open", cwd=wire.bare)
    git("update-ref", "refs/hidden/old", tip, cwd=wire.bare)
    answer = wire.push(
        (NONE, tip, "refs/hidden/new"),
        (tip, NONE, "refs/hidden/old"),
        (NONE, tip, "refs/hidden/open/x"),
        pack=wire.pack(tip, f"^{tip}"),
    )
    assert answer.refs == {
        "refs/hidden/new": "deny updating a hidden ref",
        "refs/hidden/old": "deny deleting a hidden ref",
        "refs/hidden/open/x": "ok",
    }


def test_8_34_refs_for_a_proc_receive_hook_are_refused(wire: Any, tip: str, git: Git) -> None:
    """t5411 "no hook": none is run here, and as ordinary refs they would be where nobody looks."""
    for pattern in (
        "refs/for/",
        "d:refs/heads/gone",
        "m:refs/heads/main",
        "a!:refs",
        "x:refs/tags",
    ):
        git("config", "--add", "receive.procReceiveRefs", pattern, cwd=wire.bare)
    git("update-ref", "refs/heads/gone", tip, cwd=wire.bare)
    git("update-ref", "refs/heads/for", tip, cwd=wire.bare)
    updates = (
        (NONE, tip, "refs/for/main/topic"),
        (NONE, tip, "refs/for"),
        (NONE, tip, "refs/forest/x"),
        (tip, NONE, "refs/heads/gone"),
        (NONE, tip, "refs/heads/gone2"),
        (tip, NONE, "refs/heads/for"),
        (NONE, tip, "refs/tags/t"),
        (tip, tip, "refs/heads/main"),
    )
    pack = wire.pack(tip, f"^{tip}")
    caps = "report-status side-band-64k atomic"
    answer = wire.push(*updates, pack=pack, caps=caps)
    assert set(answer.refs.values()) == {"fail to run proc-receive hook"}
    assert 'error: cannot find hook "proc-receive"' in answer.words
    answer = wire.push(*updates, pack=pack)
    refused = {name for name, reason in answer.refs.items() if reason != "ok"}
    assert refused == {
        "refs/for/main/topic", "refs/for", "refs/heads/gone", "refs/heads/main",
    }  # fmt: skip
    assert {answer.refs[name] for name in refused} == {"fail to run proc-receive hook"}
    assert git("rev-parse", "--verify", "gone", cwd=wire.bare).out == tip


def test_8_16_a_branch_names_a_commit(wire: Any, tip: str, head: Git) -> None:
    tree = head(wire.work, "HEAD^{tree}")
    answer = wire.push(
        (NONE, tree, "refs/heads/tree"),
        (NONE, tree, "refs/tags/tree"),
        pack=wire.pack(tip, f"^{tip}"),
    )
    assert answer.refs == {
        "refs/heads/tree": "invalid new value provided",
        "refs/tags/tree": "ok",
    }
    assert f"trying to write non-commit object {tree} to branch" in answer.words


def test_8_19_missing_objects_refuse_only_their_refs(wire: Any, tip: str, git: Git) -> None:
    tree = git("rev-parse", "HEAD^{tree}", cwd=wire.work).out
    who = "Ada <a@b> 1700000000 +0000"
    no_tree = f"tree {'12' * 20}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    no_parent = f"tree {tree}\nparent {'34' * 20}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    good = f"tree {tree}\nparent {tip}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    names = [_oid("commit", data) for data in (no_tree, no_parent, good)]
    answer = wire.push(
        (NONE, names[0], "refs/heads/no-tree"),
        (NONE, names[1], "refs/heads/no-parent"),
        (NONE, names[2], "refs/heads/good"),
        (NONE, "56" * 20, "refs/heads/nothing"),
        pack=_pack(("commit", no_tree), ("commit", no_parent), ("commit", good)),
    )
    assert answer.unpack == "ok"
    assert answer.refs == {
        "refs/heads/no-tree": "missing necessary objects",
        "refs/heads/no-parent": "missing necessary objects",
        "refs/heads/good": "ok",
        "refs/heads/nothing": "missing necessary objects",
    }


def test_8_19_a_blob_that_is_missing_deep_down_is_noticed(wire: Any, tip: str) -> None:
    inner = b"100644 gone\0" + bytes.fromhex("ab" * 20)
    outer = b"40000 dir\0" + bytes.fromhex(_oid("tree", inner))
    who = "Ada <a@b> 1700000000 +0000"
    top = f"tree {_oid('tree', outer)}\nparent {tip}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    answer = wire.push(
        (NONE, _oid("commit", top), "refs/heads/x"),
        pack=_pack(("commit", top), ("tree", outer), ("tree", inner)),
    )
    assert answer.refs == {"refs/heads/x": "missing necessary objects"}


def test_8_19_an_existing_object_that_is_itself_incomplete_does_not_help(
    wire: Any, tip: str, git: Git
) -> None:
    """A stray tree in the store lacks its blob: existence is not completeness."""
    stray = b"100644 gone\0" + bytes.fromhex("cd" * 20)
    tree = git(
        "hash-object", "-t", "tree", "-w", "--stdin", "--literally", cwd=wire.bare, stdin=stray
    )
    who = "Ada <a@b> 1700000000 +0000"
    top = f"tree {tree.out}\nparent {tip}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    answer = wire.push((NONE, _oid("commit", top), "refs/heads/x"), pack=_pack(("commit", top)))
    assert answer.refs == {"refs/heads/x": "missing necessary objects"}
    first = f"tree {tree.out}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    then = f"tree {tree.out}\nparent {_oid('commit', first)}\nauthor {who}\ncommitter {who}\n\nx\n"
    answer = wire.push(
        (NONE, _oid("commit", then.encode()), "refs/heads/x"),
        pack=_pack(("commit", first), ("commit", then.encode())),
    )
    assert answer.refs == {"refs/heads/x": "missing necessary objects"}
    (wire.bare / "objects" / tree.out[:2] / tree.out[2:]).unlink()


def _damaged(pack: bytes, how: str) -> bytes:
    body = pack[:-20]
    match how:
        case "truncated":
            return pack[: len(pack) // 2]
        case "trailer":
            return body + bytes(20)
        case "no trailer":
            return body
        case "zlib":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        case "count up":
            body = body[:8] + struct.pack(">L", struct.unpack(">L", body[8:12])[0] + 1) + body[12:]
        case "count down":
            body = body[:8] + struct.pack(">L", struct.unpack(">L", body[8:12])[0] - 1) + body[12:]
        case "count huge":
            body = body[:8] + b"\xff\xff\xff\xff" + body[12:]
        case "garbage behind":
            return pack + b"garbage"
    return body + hashlib.sha1(body).digest()


@pytest.mark.parametrize(
    "how",
    ["truncated", "trailer", "no trailer", "zlib", "count up", "count down", "count huge",
     "garbage behind"],
)  # fmt: skip
def test_8_20_a_damaged_pack_changes_nothing(
    wire: Any, tip: str, second: str, head: Git, how: str
) -> None:
    pack = _damaged(wire.pack(second, f"^{tip}"), how)
    answer = wire.push((tip, second, "refs/heads/main"), pack=pack)
    assert answer.unpack != "ok"
    assert answer.refs == {"refs/heads/main": "unpacker error"}
    assert "fatal: " in answer.words
    assert head(wire.bare, "main") == tip


def test_8_21_what_is_no_pack_is_named(wire: Any, tip: str, second: str) -> None:
    answer = wire.push((tip, second, "refs/heads/main"), pack=b"KCAP" + bytes(100))
    assert answer.unpack == "protocol error (pack signature mismatch detected)"
    answer = wire.push((tip, second, "refs/heads/main"), pack=_pack(version=9))
    assert answer.unpack == "protocol error (pack version unsupported)"


def test_8_22_a_delta_without_its_base_is_refused(wire: Any, tip: str) -> None:
    delta = bytes([3, 3, 0x90, 3])
    entry = _entry(7, len(delta)) + bytes(20) + zlib.compress(delta)
    body = b"PACK" + struct.pack(">LL", 2, 1) + entry
    answer = wire.push((NONE, tip, "refs/heads/x"), pack=body + hashlib.sha1(body).digest())
    assert answer.unpack != "ok"
    assert "unresolved deltas" in answer.words


def test_8_23_a_thin_pack_is_completed(
    wire: Any, tip: str, work: Path, commit: Git, git: Git
) -> None:
    lines = [f"a line that has the number {number}\n" for number in range(2000)]
    base = commit(work, "base", long="".join(lines))
    git("push", "-q", "origin", "main", cwd=work)
    lines[7] = "changed\n"
    new = commit(work, "new", long="".join(lines))
    pack = wire.pack(new, f"^{base}", thin=True)
    answer = wire.push((base, new, "refs/heads/main"), pack=pack)
    assert answer.refs == {"refs/heads/main": "ok"}
    assert "Resolving deltas: 100% (" in answer.words
    assert "completed with " in answer.words
    for index in (wire.bare / "objects/pack").glob("*.idx"):
        git("verify-pack", index, cwd=wire.bare)


def test_8_25_a_declared_size_allocates_nothing(wire: Any, tip: str) -> None:
    content = bytes(1 << 20)
    body = b"PACK" + struct.pack(">LL", 2, 1) + _entry(3, 1 << 30) + zlib.compress(content)
    answer = wire.push((NONE, tip, "refs/tags/x"), pack=body + hashlib.sha1(body).digest())
    assert answer.unpack != "ok"
    body = b"PACK" + struct.pack(">LL", 2, 1) + _entry(3, 1 << 50) + zlib.compress(content)
    answer = wire.push((NONE, tip, "refs/tags/x"), pack=body + hashlib.sha1(body).digest())
    assert "at most" in answer.words


def test_8_25_delta_bombs_are_refused(wire: Any, tip: str) -> None:
    """Each delta copies its base 100 times: ten of them would make 10^24 bytes."""
    blob = b"x" * 10_000
    entries = [_entry(3, len(blob)) + zlib.compress(blob)]
    size = len(blob)
    for _ in range(10):
        copies = b"".join(_copy(0, min(size, 0xFFFFFF)) for _ in range(100))
        result = 100 * min(size, 0xFFFFFF)
        delta = _varint(size) + _varint(result) + copies
        entries.append(
            _entry(6, len(delta)) + bytes([len(entries[-1])]) * 0 + _distance(len(entries[-1]))
            + zlib.compress(delta)
        )  # fmt: skip
        size = result
    body = b"PACK" + struct.pack(">LL", 2, len(entries)) + b"".join(entries)
    answer = wire.push((NONE, tip, "refs/tags/x"), pack=body + hashlib.sha1(body).digest())
    assert answer.unpack != "ok"
    assert answer.refs == {"refs/tags/x": "unpacker error"}


def test_8_26_max_input_size(wire: Any, tip: str, work: Path, git: Git, head: Git) -> None:
    git("config", "receive.maxInputSize", "10k", cwd=wire.bare)
    (work / "big").write_bytes(os.urandom(100_000))
    git("add", "big", cwd=work)
    git("commit", "-q", "-m", "big", cwd=work)
    done = git("push", "origin", "main", cwd=work, check=False)
    assert "pack exceeds maximum allowed size" in done.err
    assert "remote unpack failed" in done.err
    assert head(wire.bare, "main") == tip


def test_8_27_fsck_by_config(wire: Any, tip: str, git: Git, head: Git) -> None:
    tree = head(wire.work, "HEAD^{tree}")
    bad = (
        f"tree {tree}\nparent {tip}\nauthor Ada 1700000000 +0000\n"
        "committer Ada <a@b> 1700000000 +0000\n\nx\n"
    ).encode()
    name = _oid("commit", bad)
    git("config", "transfer.fsckObjects", "true", cwd=wire.bare)
    answer = wire.push((NONE, name, "refs/heads/x"), pack=_pack(("commit", bad)))
    message = f"object {name}: missingEmail: invalid author/committer line - missing email"
    assert message in answer.words
    assert answer.unpack != "ok"
    git("config", "receive.fsck.missingEmail", "warn", cwd=wire.bare)
    answer = wire.push((NONE, name, "refs/heads/x"), pack=_pack(("commit", bad)))
    assert answer.refs == {"refs/heads/x": "ok"}
    assert f"warning: {message}" in answer.words
    git("config", "--unset", "receive.fsck.missingEmail", cwd=wire.bare)
    (wire.bare / "skip").write_text(f"# known\n{name}\n")
    git("config", "receive.fsck.skipList", "skip", cwd=wire.bare)
    git("update-ref", "-d", "refs/heads/x", cwd=wire.bare)
    answer = wire.push((NONE, name, "refs/heads/x"), pack=_pack(("commit", bad)))
    assert answer.refs == {"refs/heads/x": "ok"}
    git("update-ref", "-d", "refs/heads/x", cwd=wire.bare)


def test_8_27_dotgit_is_refused(wire: Any, tip: str, git: Git) -> None:
    git("config", "receive.fsckObjects", "true", cwd=wire.bare)
    blob = git("rev-parse", "HEAD:one", cwd=wire.work).out
    for name in (".git", ".GIT", "git~1", ".g\u200cit", "git~1 ", "a\\.git"):
        tree = b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob)
        answer = wire.push((NONE, _oid("tree", tree), "refs/tags/x"), pack=_pack(("tree", tree)))
        assert "hasDotgit: contains '.git'" in answer.words, name


def test_8_27_modules_that_would_run_code_are_refused(wire: Any, tip: str, git: Git) -> None:
    git("config", "receive.fsckObjects", "true", cwd=wire.bare)
    bad = b'[submodule "a"]\n\tpath = a\n\turl = -u./p\n'
    tree = b"100644 .gitmodules\0" + bytes.fromhex(_oid("blob", bad))
    command = (NONE, _oid("tree", tree), "refs/tags/x")
    pack = _pack(("tree", tree), ("blob", bad))
    answer = wire.push(command, pack=pack)
    message = f"object {_oid('blob', bad)}: gitmodulesUrl: disallowed submodule url: -u./p"
    assert message in answer.words
    assert answer.refs == {"refs/tags/x": "unpacker error"}
    git("config", "receive.fsck.gitmodulesUrl", "warn", cwd=wire.bare)
    answer = wire.push(command, pack=pack)
    assert f"warning: {message}" in answer.words
    assert answer.refs == {"refs/tags/x": "ok"}


def test_8_28_a_shallow_push_with_an_unknown_border_is_refused(
    wire: Any, tip: str, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git
) -> None:
    other = tmp_path / "unrelated"
    git("init", "-q", "-b", "main", other, cwd=tmp_path)
    for number in range(3):
        commit(other, f"u{number}")
    shallow = tmp_path / "shallow"
    git("clone", "-q", "--depth", "1", f"file://{other}", shallow, cwd=tmp_path)
    url = wire.server.url_of(wire.bare)
    done = git("push", url, "HEAD:refs/heads/x", cwd=shallow, check=False)
    assert "shallow update not allowed" in done.err
    git("config", "receive.shallowUpdate", "true", cwd=wire.bare)
    git("push", "-q", url, "HEAD:refs/heads/x", cwd=shallow)
    assert (wire.bare / "shallow").read_text().split() == [head(shallow)]
    assert head(wire.bare, "x") == head(shallow)


def test_8_30_push_options_reach_the_hooks(wire: Any, tip: str, git: Git) -> None:
    git("config", "receive.advertisePushOptions", "true", cwd=wire.bare)
    for hook in ("pre-receive", "post-receive"):
        _hook(
            wire.bare,
            hook,
            'echo "(set) $GIT_PUSH_OPTION_COUNT $GIT_PUSH_OPTION_0 $GIT_PUSH_OPTION_1"',
        )
    empty = wire.pack(tip, f"^{tip}")
    answer = wire.push(
        (NONE, tip, "refs/heads/a"), pack=empty, options=["one", "two words"],
        caps="report-status side-band-64k push-options",
    )  # fmt: skip
    assert answer.words.count("(set) 2 one two words") == 2
    answer = wire.push((NONE, tip, "refs/heads/b"), pack=empty)
    assert answer.words == "(set)   \n" * 2


def test_8_31_without_report_status_nothing_is_reported(wire: Any, tip: str, head: Git) -> None:
    empty = wire.pack(tip, f"^{tip}")
    answer = wire.push((NONE, tip, "refs/heads/a"), pack=empty, caps="side-band-64k")
    assert answer.raw == b"0000"
    answer = wire.push((NONE, tip, "refs/heads/b"), pack=empty, caps="agent=x")
    assert answer.raw == b""
    assert head(wire.bare, "b") == tip


def test_8_32_without_side_band_the_report_is_plain(wire: Any, tip: str) -> None:
    answer = wire.push(
        (NONE, tip, "refs/heads/a"), pack=wire.pack(tip, f"^{tip}"), caps="report-status"
    )
    assert answer.raw == b"000eunpack ok\n0014ok refs/heads/a\n0000"


def test_8_33_the_report_comes_before_post_receives_words(wire: Any, tip: str) -> None:
    _hook(wire.bare, "post-receive", "cat; echo after")
    answer = wire.push((NONE, tip, "refs/heads/a"), pack=wire.pack(tip, f"^{tip}"))
    assert answer.bands[0] == 1
    assert answer.bands[-1] == 2
    assert answer.words.endswith("after\n")
    assert f"{NONE} {tip} refs/heads/a" in answer.words
    assert answer.raw.endswith(b"0000")


@pytest.mark.parametrize(
    "line",
    ["garbage", "0000 1111 refs/heads/x", "x" * 40 + " " + "y" * 40 + " refs/heads/x",
     "0" * 40 + " " + "1" * 40],
)  # fmt: skip
def test_8_35_a_bad_command_is_refused(wire: Any, raw: Any, line: str) -> None:
    response = wire.server.post(
        wire.bare, "git-receive-pack", raw.pkt(line + "\0" + "report-status") + b"0000"
    )
    assert response.status_code == 400
    assert "protocol error" in response.text


def test_8_35_a_missing_flush_is_refused(wire: Any, raw: Any, tip: str) -> None:
    body = raw.pkt(f"{NONE} {tip} refs/heads/x\0report-status")
    assert wire.server.post(wire.bare, "git-receive-pack", body).status_code == 400


def test_8_35_another_object_format_is_refused(wire: Any, tip: str) -> None:
    answer = wire.push((NONE, tip, "refs/heads/x"), caps="report-status object-format=sha256")
    assert answer.status == 400


@pytest.mark.parametrize("body", [b"", b"0000"])
def test_8_36_a_probe_is_answered_with_nothing(wire: Any, body: bytes) -> None:
    response = wire.server.post(wire.bare, "git-receive-pack", body)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Type"] == "application/x-git-receive-pack-result"


def test_8_37_unknown_capabilities_are_ignored(wire: Any, tip: str) -> None:
    caps = "report-status side-band-64k quiet frobnicate session-id=x agent=y"
    answer = wire.push((NONE, tip, "refs/heads/a"), pack=wire.pack(tip, f"^{tip}"), caps=caps)
    assert answer.refs == {"refs/heads/a": "ok"}


def test_8_38_a_certificate_without_a_nonce_is_ignored(wire: Any, raw: Any, tip: str) -> None:
    body = (
        raw.pkt("push-cert\0report-status side-band-64k")
        + raw.pkt("certificate version 0.1\n")
        + raw.pkt(f"{NONE} {tip} refs/heads/a\n")
        + raw.pkt("push-cert-end\n")
        + b"0000"
    )
    response = wire.server.post(wire.bare, "git-receive-pack", body)
    assert response.status_code == 200
    assert b"refs/heads/a" not in response.content


def test_8_39_old_equals_new_is_fine(wire: Any, tip: str) -> None:
    answer = wire.push((tip, tip, "refs/heads/main"), pack=wire.pack(tip, f"^{tip}"))
    assert answer.refs == {"refs/heads/main": "ok"}


@pytest.mark.parametrize(
    "ref",
    ["refs/tags/v1", "refs/notes/commits", "refs/remotes/origin/x", "refs/heads/HEAD",
     "refs/heads/" + "/".join(["part" * 10] * 12), "refs/heads/\u00fc\u00f1\u00ef", "refs/x/y"],
)  # fmt: skip
def test_8_40_unusual_names_are_fine(wire: Any, tip: str, ref: str, head: Git) -> None:
    answer = wire.push((NONE, tip, ref), pack=wire.pack(tip, f"^{tip}"))
    assert answer.refs == {ref: "ok"}
    assert head(wire.bare, ref) == tip


def test_8_40_a_name_that_is_too_long_is_refused_cleanly(wire: Any, tip: str) -> None:
    for name in (
        "refs/heads/" + "x" * 256,
        "refs/heads/" + "x" * 251,
        "refs/heads/" + "y/" * 3000 + "z",
    ):
        answer = wire.push((NONE, tip, name), pack=wire.pack(tip, f"^{tip}"))
        assert answer.refs[name] != "ok"


def test_8_41_a_symref_and_its_target_must_agree(
    wire: Any, tip: str, second: str, git: Git, head: Git
) -> None:
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=wire.bare)
    pack = wire.pack(second, f"^{tip}")
    answer = wire.push((tip, second, "refs/heads/main"), (tip, tip, "refs/heads/alias"), pack=pack)
    assert set(answer.refs.values()) == {"inconsistent aliased update"}
    assert "refusing inconsistent update between symref" in answer.words
    answer = wire.push(
        (tip, second, "refs/heads/main"), (tip, second, "refs/heads/alias"), pack=pack
    )
    assert set(answer.refs.values()) == {"ok"}
    assert head(wire.bare, "refs/heads/alias") == second


def test_a_push_through_a_symref_moves_its_target(
    wire: Any, tip: str, second: str, git: Git, head: Git
) -> None:
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=wire.bare)
    wire.push((tip, second, "refs/heads/alias"), pack=wire.pack(second, f"^{tip}"))
    assert head(wire.bare, "refs/heads/main") == second
    assert git("symbolic-ref", "refs/heads/alias", cwd=wire.bare).out == "refs/heads/main"


def _hook(bare: Path, name: str, script: str) -> None:
    path = bare / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def _pack(*objects: tuple[str, bytes], version: int = 2) -> bytes:
    kinds = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
    out = b"PACK" + struct.pack(">LL", version, len(objects))
    for kind, data in objects:
        out += _entry(kinds[kind], len(data)) + zlib.compress(data)
    return out + hashlib.sha1(out).digest()


def _entry(kind: int, size: int) -> bytes:
    byte, size = (kind << 4) | (size & 15), size >> 4
    head = bytearray()
    while size:
        head.append(byte | 128)
        byte, size = size & 127, size >> 7
    head.append(byte)
    return bytes(head)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _distance(number: int) -> bytes:
    out = [number & 127]
    number >>= 7
    while number:
        number -= 1
        out.append(128 | number & 127)
        number >>= 7
    return bytes(reversed(out))


def _copy(offset: int, size: int) -> bytes:
    return bytes([0x80 | 0x70 | 0x01, offset]) + size.to_bytes(3, "little")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("skipList", "nowhere", "could not open object name list: nowhere"),
        ("unterminatedHeader", "warn", "Cannot demote unterminatedheader to warn"),
        ("missingEmail", "perhaps", "Unknown fsck message type: 'perhaps'"),
    ],
)
def test_8_27_checks_that_are_set_up_wrongly_let_nothing_in(
    wire: Any, tip: str, second: str, git: Git, key: str, value: str, words: str
) -> None:
    git("config", "receive.fsckObjects", "true", cwd=wire.bare)
    git("config", f"receive.fsck.{key}", value, cwd=wire.bare)
    command = (tip, second, "refs/heads/main")
    answer = wire.push(command, pack=wire.pack(second, f"^{tip}"))
    assert answer.unpack == words
    assert answer.refs == {"refs/heads/main": "unpacker error"}
    git("config", f"receive.fsck.{key}", "error", cwd=wire.bare)
    if key != "skipList":
        assert wire.push(command, pack=wire.pack(second, f"^{tip}")).refs[command[2]] == "ok"


@pytest.mark.parametrize("line", ["main", "x" * 40, "12 " * 20, "1234"])
def test_8_27_a_list_of_objects_to_skip_holds_nothing_else(
    wire: Any, tip: str, second: str, git: Git, line: str
) -> None:
    git("config", "receive.fsckObjects", "true", cwd=wire.bare)
    git("config", "receive.fsck.skipList", "skip", cwd=wire.bare)
    listed = wire.bare / "skip"
    listed.write_text(f"# known\n\n {tip.upper()} # old\n{line}\n")
    command = (tip, second, "refs/heads/main")
    answer = wire.push(command, pack=wire.pack(second, f"^{tip}"))
    assert answer.unpack == f"invalid object name: {line.strip()}"
    assert answer.refs == {"refs/heads/main": "unpacker error"}
    listed.write_text(f"# known\n\n {tip.upper()} # old\n")
    assert wire.push(command, pack=wire.pack(second, f"^{tip}")).refs[command[2]] == "ok"
