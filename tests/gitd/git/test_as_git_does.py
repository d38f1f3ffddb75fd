"""Answers of upload-pack and receive-pack beside those of `git http-backend` itself (sections 4-7).

Both get the same bytes. What differs by intent (the agent, a few [DEV] errors) is left out.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

Git = Callable[..., Any]
_NUMBERS = re.findall(rb"\d+", subprocess.run(["git", "version"], capture_output=True).stdout)
VERSION = tuple(map(int, _NUMBERS[:2]))


@pytest.fixture
def ask(server: Any, bare: Path, raw: Any) -> Callable[..., tuple[bytes, bytes]]:
    """Send one request to ours and to git's own backend; return both bodies."""

    def ask(service: str, body: bytes | None = None, version: str = "") -> tuple[bytes, bytes]:
        theirs = raw.by_git(bare, service, body, version)
        if body is None:
            url = f"{server.url_of(bare)}/info/refs?service={service}"
            ours = server.client.get(url, headers={"Git-Protocol": version}).content
        else:
            ours = server.post(bare, service, body, Git_Protocol=version).content
        return ours, theirs

    return ask


@pytest.fixture(scope="module")
def rich_pair(
    tmp_path_factory: pytest.TempPathFactory,
    shared_server: Any,
    first_work: Path,
    git: Git,
    commit: Git,
    copied: Git,
) -> tuple[Path, Path]:
    """A clone, and what it pushed to: branches, tags of tags, tags of trees and blobs, symrefs,
    hidden refs; loose and packed.
    """
    bare = shared_server.create("rich.git")
    work = copied(first_work, tmp_path_factory.mktemp("rich") / "work", shared_server.url_of(bare))
    git("push", "-q", "origin", "main", cwd=work)
    for number in range(6):
        commit(work, f"c{number}", file=f"{number}\n" * 50)
        if number % 2:
            git("branch", f"b{number}", cwd=work)
            git("tag", "-a", "-m", "t", f"v{number}", cwd=work)
    git("tag", "-a", "-m", "tt", "vv", "v1", cwd=work)
    git("tag", "-a", "-m", "tree", "vtree", "HEAD^{tree}", cwd=work)
    git("tag", "vblob", "HEAD:file", cwd=work)
    git("push", "-q", "origin", "--all", cwd=work)
    git("push", "-q", "origin", "--tags", cwd=work)
    git("pack-refs", "--all", cwd=bare)
    git("symbolic-ref", "refs/heads/alias", "refs/heads/b1", cwd=bare)
    git("update-ref", "refs/hidden/x", "refs/heads/main", cwd=bare)
    git("update-ref", "refs/heads/b3", "refs/heads/b1", cwd=bare)
    git("config", "transfer.hideRefs", "refs/hidden", cwd=bare)
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    git("config", "uploadpack.allowRefInWant", "true", cwd=bare)
    git("remote", "remove", "origin", cwd=work)
    return work, bare


@pytest.fixture
def rich(
    rich_pair: tuple[Path, Path], server: Any, bare: Path, tmp_path: Path, copied: Git
) -> Path:
    """A copy of the rich clone; `bare` becomes one of what that pushed to."""
    work, pushed = rich_pair
    shutil.rmtree(bare)
    shutil.copytree(pushed, bare, symlinks=True)
    return copied(work, tmp_path / "work", server.url_of(bare))


def lines_of(raw: Any, body: bytes) -> list[Any]:
    """Take an advertisement apart: capabilities as a set, without the agent's name."""
    found: list[Any] = []
    for line in raw.unpkt(body):
        if line is None:
            found.append(None)
            continue
        text, _, capabilities = line.partition(b"\0")
        text = re.sub(rb"^agent=.*", b"agent", text)
        names = {c for c in capabilities.split() if not c.startswith(b"agent=")}
        found.append((text.rstrip(b"\n"), names) if capabilities else text.rstrip(b"\n"))
    return found


@pytest.mark.parametrize(
    "version", ["", "version=1", "version=2", "version=99", "version=1:version=2"]
)
def test_4_and_6_the_upload_advertisement(rich: Path, ask: Any, raw: Any, version: str) -> None:
    ours, theirs = ask("git-upload-pack", None, version)
    ours_lines, theirs_lines = lines_of(raw, ours), lines_of(raw, theirs)
    # This version of git offers object-info always, later ones only by config, as we do.
    assert ours_lines == [line for line in theirs_lines if line != b"object-info"]


@pytest.mark.parametrize("version", ["", "version=1"])
def test_7_the_receive_advertisement(rich: Path, ask: Any, raw: Any, version: str) -> None:
    ours, theirs = ask("git-receive-pack", None, version)
    assert lines_of(raw, ours) == lines_of(raw, theirs)


def test_7_version_2_keeps_the_service_line(rich: Path, ask: Any) -> None:
    ours, _ = ask("git-receive-pack", None, "version=2")
    assert ours.startswith(b"001f# service=git-receive-pack\n0000")


def test_7_alternates_tips_are_offered_as_have(
    rich: Path, bare: Path, ask: Any, raw: Any, server: Any, git: Git, commit: Git
) -> None:
    other = server.create(f"alt-{bare.name}")
    extra = commit(rich, "only in the alternate")
    git("push", "-q", other, "HEAD:refs/heads/x", cwd=rich)
    (bare / "objects/info").mkdir(exist_ok=True)
    (bare / "objects/info/alternates").write_text(f"{other}/objects\n")
    ours, theirs = ask("git-receive-pack", None)
    assert f"{extra} .have".encode() in ours
    assert sorted(map(str, lines_of(raw, ours))) == sorted(map(str, lines_of(raw, theirs)))


def test_4_an_empty_repository_says_what_it_can(ask: Any, bare: Path, raw: Any) -> None:
    ours, _ = ask("git-upload-pack")
    assert b"0" * 40 + b" capabilities^{}\0" in ours
    ours, theirs = ask("git-receive-pack")
    assert lines_of(raw, ours) == lines_of(raw, theirs)


def v2(raw: Any, command: str, *lines: str, caps: tuple[str, ...] = ()) -> bytes:
    body = raw.pkt(f"command={command}\n") + b"".join(raw.pkt(cap) for cap in caps)
    if lines:
        body += b"0001" + b"".join(raw.pkt(f"{line}\n") for line in lines)
    return body + b"0000"


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("symrefs",),
        ("peel",),
        ("peel", "symrefs", "unborn"),
        ("peel", "symrefs", "ref-prefix refs/heads/"),
        ("ref-prefix refs/heads/b", "ref-prefix HEAD"),
        ("symrefs", "ref-prefix H"),
        ("ref-prefix refs/tags/v1",),
        ("ref-prefix refs/nothing",),
        ("ref-prefix refs/hidden/",),
        ("peel", "ref-prefix "),
        ("peel", *(f"ref-prefix refs/heads/b{n}" for n in range(20)), "ref-prefix refs/tags/v"),
        ("symrefs", *(f"ref-prefix refs/{'heads/'[:n]}" for n in range(7)), *["ref-prefix H"] * 12),
    ],
)
@pytest.mark.parametrize("state", ["usual", "detached", "unborn", "dangling"])
def test_6_ls_refs(
    rich: Path, bare: Path, ask: Any, raw: Any, git: Git, lines: tuple[str, ...], state: str
) -> None:
    if state == "detached":
        git("update-ref", "--no-deref", "HEAD", "refs/heads/b1", cwd=bare)
    elif state == "unborn":
        git("symbolic-ref", "HEAD", "refs/heads/unborn", cwd=bare)
    elif state == "dangling":
        (bare / "refs/heads/broken").write_text("12" * 20 + "\n")
        (bare / "refs/heads/worse").write_text("nonsense\n")
        (bare / "refs/heads/empty").write_text("")
    ours, theirs = ask("git-upload-pack", v2(raw, "ls-refs", *lines), "version=2")
    # git lists refs to nothing here, and a clone fails of it; we leave them out, as it does in v0.
    broken = re.compile(rb" refs/heads/(broken|worse|empty)")
    kept = [line for line in raw.unpkt(theirs) if line is None or not broken.search(line)]
    assert raw.unpkt(ours) == kept


def test_6_ls_refs_of_an_empty_repository(ask: Any, raw: Any) -> None:
    for lines in (("symrefs", "unborn", "ref-prefix HEAD"), ("symrefs",), ("unborn",)):
        ours, theirs = ask("git-upload-pack", v2(raw, "ls-refs", *lines), "version=2")
        assert ours == theirs


def objects_in(pack: bytes, bare: Path, tmp_path: Path, git: Git) -> set[str]:
    """Index a pack, thin or not, and list its objects."""
    if not pack:
        return set()
    copy = tmp_path / "copy.git"
    if not copy.exists():
        git("clone", "-q", "--mirror", f"file://{bare}", copy, cwd=tmp_path)
    for old in (copy / "objects/pack").glob("tmp-*"):
        old.unlink()
    target = copy / "objects/pack/tmp-x.pack"
    git("index-pack", "--fix-thin", "--stdin", target, cwd=copy, stdin=pack)
    listed = git("show-index", cwd=copy, stdin=target.with_suffix(".idx").read_bytes()).out
    return {line.split()[1] for line in listed.splitlines()}


def split_fetch(raw: Any, body: bytes) -> tuple[list[bytes | None], bytes]:
    """Split the answer of a v2 fetch: the lines before the pack, and the pack."""
    lines: list[bytes | None] = []
    pack = b""
    is_pack = False
    for line in raw.unpkt(body):
        if is_pack and line is not None:
            if line[0] == 1:
                pack += line[1:]
        else:
            lines.append(line)
            is_pack |= line == b"packfile\n"
    return lines, pack


@pytest.mark.parametrize(
    "template",
    [
        "want {tip}; done",
        "want {tip}; want {v1}; done; ofs-delta",
        "want {tip}; have {b1}; done; ofs-delta",
        "want {tip}; have {b1}; ofs-delta; thin-pack; done; no-progress",
        "want {tip}; have {b1}",
        "want {tip}; have {unknown}",
        "want {tip}; have {unknown}; have {b3}; have {b1}",
        "want {tip}; have {b1}; wait-for-done",
        "have {b1}; have {unknown}; wait-for-done",
        "want {tip}; done; include-tag; ofs-delta",
        "want {vv}; done",
        "want {vtree}; done",
        "want {vblob}; done",
        "want {tip}; deepen 1; done",
        "want {tip}; deepen 3; done",
        "want {tip}; shallow {b3}; deepen 2; done",
        "want {tip}; shallow {b3}; have {b3}; deepen 5; done",
        "want {tip}; shallow {b3}; have {b5}; deepen 2147483647; done",
        "want {tip}; shallow {b3}; have {b5}; deepen 1; deepen-relative; done",
        "want {tip}; shallow {b5}; have {b5}; done",
        "want {tip}; deepen-not v1; done",
        "want {tip}; filter blob:none; done",
        "want {tip}; filter blob:limit=60; done",
        "want {tip}; filter tree:0; done",
        "want {tip}; filter tree:1; done",
        "want {tip}; filter tree:2; done",
        "want {tip}; filter object:type=commit; done",
        "want {tip}; filter object:type=tree; done",
        "want {tip}; filter object:type=blob; done",
        "want {tip}; filter combine:blob:none+tree:1; done",
        "want {tip}; have {b3}; filter blob:none; done",
        "want {blob}; filter blob:none; done",
        "want {tree}; done",
        "want {tree}; filter tree:0; done",
        "want-ref refs/heads/b3; done",
        "want-ref refs/heads/b3; want {v1}; have {b1}; done",
    ],
)
def test_6_fetch(
    rich: Path, bare: Path, ask: Any, raw: Any, git: Git, head: Git, tmp_path: Path, template: str
) -> None:
    names = {name: head(rich, name) for name in ("b1", "b3", "b5", "v1", "vv", "vtree", "vblob")}
    names |= {"tip": head(rich), "unknown": "ab" * 20}
    names |= {"blob": head(rich, "HEAD:file"), "tree": head(rich, "HEAD^{tree}")}
    body = v2(raw, "fetch", *template.format(**names).split("; "))
    ours, theirs = ask("git-upload-pack", body, "version=2")
    ours_lines, ours_pack = split_fetch(raw, ours)
    theirs_lines, theirs_pack = split_fetch(raw, theirs)
    assert ours_lines == theirs_lines
    ours_objects = objects_in(ours_pack, bare, tmp_path, git)
    theirs_objects = objects_in(theirs_pack, bare, tmp_path, git)
    assert theirs_objects - ours_objects == set()
    if "have" not in template:
        assert ours_objects == theirs_objects


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (["command=nope\n"], "invalid command 'nope'"),
        (["command=ls-refs\n", "frobnicate\n"], "unknown capability 'frobnicate'"),
        (["command=ls-refs\n", "command=fetch\n"],
         "command 'fetch' requested after already requesting command 'ls-refs'"),
        (["agent=x\n"], "no command requested"),
        (["command=ls-refs\n", "object-format=sha256\n"],
         "mismatched object format: server sha1; client sha256"),
        (["command=ls-refs\n", "object-format=md5\n"], "unknown object format 'md5'"),
        (["command=ls-refs\n", None, "nonsense\n"], "unexpected line: 'nonsense'"),
        (["command=fetch\n", None, "nonsense\n"], "unexpected line: 'nonsense'"),
        (["command=fetch\n", None, "want 123\n"], "upload-pack: protocol error"),
        (["command=fetch\n", None, "want " + "1" * 40 + "\n", "done\n"],
         "upload-pack: not our ref " + "1" * 40),
        (["command=fetch\n", None, "want-ref refs/heads/none\n", "done\n"],
         "unknown ref refs/heads/none"),
        (["command=fetch\n", None, "filter nonsense\n"], "invalid filter-spec 'nonsense'"),
        (["command=fetch\n", None, "deepen 1\n", "deepen-since 5\n"], "cannot be used together"),
        (["command=fetch\n", None, "deepen -1\n"], "Invalid deepen"),
        (["command=fetch\n", None, "deepen-not nope\n"], "deepen-not is not a ref: nope"),
        (["command=fetch\n", None, "sideband-all\n"], "unexpected line"),
        (["command=fetch\n", None, "packfile-uris https\n"], "unexpected line"),
        (["command=fetch\n", None, *["want-ref refs/heads/main\n"] * 2],
         "duplicate want-ref refs/heads/main"),
        (["command=fetch\n", None, "want-ref refs/hidden/x\n"], "unknown ref refs/hidden/x"),
        (["command=fetch\n", None, "filter sparse:oid=x\n"], "filter 'sparse' not supported"),
        (["command=object-info\n"], "invalid command 'object-info'"),
        (["command=fetch\n", None, *["filter blob:none\n"] * 2],
         "multiple filter-specs cannot be combined"),
    ],
)  # fmt: skip
def test_6_errors_are_said_in_the_protocol(
    rich: Path, bare: Path, server: Any, raw: Any, body: list[str | None], message: str
) -> None:
    data = b"".join(b"0001" if line is None else raw.pkt(line) for line in body) + b"0000"
    got = server.post(bare, "git-upload-pack", data, Git_Protocol="version=2")
    assert got.status_code == 200
    (line,) = raw.unpkt(got.content)
    assert line.startswith(b"ERR ")
    assert message in line.decode()


def test_6_arguments_end_with_a_flush(rich: Path, bare: Path, server: Any, raw: Any) -> None:
    body = raw.pkt("command=fetch\n") + b"0001" + raw.pkt("done\n") + b"0001"
    got = server.post(bare, "git-upload-pack", body, Git_Protocol="version=2")
    assert b"ERR expected flush after fetch arguments" in got.content


@pytest.mark.parametrize("command", ["ls-refs", "fetch"])
def test_6_line_ends_and_options_of_the_server_change_nothing(
    rich: Path, ask: Any, raw: Any, head: Git, command: str
) -> None:
    lines = {"ls-refs": ["peel", "symrefs"], "fetch": [f"want {head(rich)}", "no-progress", "done"]}
    caps = ("agent=x", "server-option=a=b", "server-option=c", "object-format=sha1\n")
    plain, _ = ask("git-upload-pack", v2(raw, command, *lines[command]), "version=2")
    body = b"".join(map(raw.pkt, (f"command={command}", *caps))) + b"0001"
    body += b"".join(map(raw.pkt, lines[command])) + b"0000"
    ours, theirs = ask("git-upload-pack", body, "version=2")
    assert ours == plain
    assert ours[:9] == theirs[:9]


def test_6_how_deep_a_filter_by_depth_may_be_is_the_operators(
    rich: Path, bare: Path, server: Any, raw: Any, git: Git, head: Git
) -> None:
    git("config", "uploadpackfilter.tree.maxDepth", "2", cwd=bare)
    for depth, says in ((2, b"packfile"), (3, b"ERR tree filter allows max depth 2, but got 3")):
        body = v2(raw, "fetch", f"want {head(rich)}", f"filter tree:{depth}", "done")
        got = server.post(bare, "git-upload-pack", body, Git_Protocol="version=2")
        assert got.content[4:].startswith(says)


@pytest.mark.parametrize(
    "tail",
    [b"zzzz", b"0003", b"fff1" + b"x" * 65521, b"ffff", b"00ffshort", b"12", b"-001", b"0x12"],
)
@pytest.mark.parametrize("version", ["", "version=2"])
def test_10_bad_pkt_lines_are_errors_and_not_hangs(
    rich: Path, bare: Path, server: Any, raw: Any, tail: bytes, version: str
) -> None:
    start = raw.pkt("command=fetch\n") if version else b""
    got = server.post(bare, "git-upload-pack", start + tail, Git_Protocol=version)
    assert got.status_code == 400 or b"ERR " in got.content
    got = server.post(bare, "git-receive-pack", tail)
    assert got.status_code == 400


def v0(raw: Any, caps: str, wants: list[str], *lines: str) -> bytes:
    body = b""
    for number, line in enumerate(wants):
        body += raw.pkt(f"{line} {caps}\n" if number == 0 else f"{line}\n")
    body += b"0000"
    return body + b"".join(b"0000" if line == "--" else raw.pkt(f"{line}\n") for line in lines)


DETAILED = "multi_ack_detailed side-band-64k ofs-delta thin-pack no-progress"


@pytest.mark.parametrize(
    "caps",
    [
        DETAILED,
        f"{DETAILED} no-done",
        "multi_ack side-band ofs-delta",
        "ofs-delta",
        "side-band-64k include-tag no-progress",
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        "want {tip} | done",
        "want {tip}; want {v1} | done",
        "want {tip} | have {b1}; --",
        "want {tip} | have {unknown}; --",
        "want {tip} | have {b1}; have {unknown}; --",
        "want {tip} | have {b1}; have {b3}; --",
        "want {tip} | have {b1}; done",
        "want {tip} | have {b1}; have {b5}; done",
        "want {tip} | have {unknown}; done",
        "want {tip}; deepen 2 | done",
        "want {tip}; deepen 2 |",
        "want {tip}; shallow {b3}; deepen 2 | have {b3}; done",
    ],
)
def test_5_version_0(
    rich: Path,
    bare: Path,
    ask: Any,
    raw: Any,
    git: Git,
    head: Git,
    tmp_path: Path,
    template: str,
    caps: str,
) -> None:
    names = {name: head(rich, name) for name in ("b1", "b3", "b5", "v1")}
    names |= {"tip": head(rich), "unknown": "ab" * 20}
    wants, _, lines = template.format(**names).partition("|")
    body = v0(raw, caps, wants.strip().split("; "), *filter(None, lines.strip().split("; ")))
    ours, theirs = ask("git-upload-pack", body)
    ours_lines, ours_pack = split_v0(raw, ours, caps)
    theirs_lines, theirs_pack = split_v0(raw, theirs, caps)
    strip = [[line and line.rstrip(b"\n") for line in one] for one in (ours_lines, theirs_lines)]
    assert strip[0] == strip[1]
    ours_objects = objects_in(ours_pack, bare, tmp_path, git)
    assert objects_in(theirs_pack, bare, tmp_path, git) - ours_objects == set()


def split_v0(raw: Any, body: bytes, caps: str) -> tuple[list[bytes | None], bytes]:
    if "side-band" not in caps:
        at = body.find(b"PACK")
        return (raw.unpkt(body if at < 0 else body[:at]), b"" if at < 0 else body[at:])
    lines, pack = [], b""
    for line in raw.unpkt(body):
        if line and line[0] == 1:
            pack += line[1:]
        elif line is None or line[0] != 2:
            lines.append(line)
    return lines, pack


def test_5_a_want_that_is_not_advertised_must_be_reachable(
    rich: Path, bare: Path, ask: Any, raw: Any, git: Git, head: Git
) -> None:
    reachable = head(rich, "main~2")
    ours, _ = ask("git-upload-pack", v0(raw, "no-progress", [f"want {reachable}"], "done"))
    assert b"PACK" in ours
    tree = head(bare, "main^{tree}")
    hidden = git("commit-tree", "-m", "hidden", tree, cwd=bare).out
    git("update-ref", "refs/hidden/y", hidden, cwd=bare)
    ours, _ = ask("git-upload-pack", v0(raw, "no-progress", [f"want {hidden}"], "done"))
    assert ours[4:] == b"ERR upload-pack: not our ref " + hidden.encode()


@pytest.mark.parametrize("line", ["deepen -1", "garbage", "filter blob:none", "deepen 0"])
def test_5_wrong_lines_are_errors(
    rich: Path, bare: Path, server: Any, raw: Any, head: Git, line: str
) -> None:
    body = v0(raw, "side-band-64k", [f"want {head(rich)}", line], "done")
    got = server.post(bare, "git-upload-pack", body)
    assert b"ERR " in got.content


def test_6_object_info_where_it_is_offered(
    rich: Path, bare: Path, ask: Any, raw: Any, git: Git, head: Git
) -> None:
    git("config", "transfer.advertiseObjectInfo", "true", cwd=bare)
    some = [f"oid {oid}" for oid in (head(rich), head(rich, "HEAD:file"), "ab" * 20)]
    body = v2(raw, "object-info", "size", *some)
    ours, theirs = ask("git-upload-pack", body, "version=2")
    assert ours == theirs


def test_the_empty_tree_is_there_without_a_file(
    server: Any, bare: Path, tmp_path: Path, git: Git, head: Git
) -> None:
    """git knows it by heart, and so lets commits point at it that nobody ever stored."""
    empty = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    first = git("commit-tree", "-m", "one", empty, cwd=bare).out
    git("update-ref", "refs/heads/main", first, cwd=bare)
    assert not (bare / "objects" / empty[:2]).exists()
    for version in ("0", "2"):
        protocol = f"protocol.version={version}"
        clone = tmp_path / version
        git("-c", protocol, "clone", "-q", server.url_of(bare), clone, cwd=tmp_path)
        assert head(clone) == first
        second = git("commit-tree", "-p", first, "-m", version, empty, cwd=clone).out
        git("-c", protocol, "push", "-q", "origin", f"{second}:refs/heads/b{version}", cwd=clone)
        assert head(bare, f"b{version}") == second


@pytest.mark.parametrize(
    ("there", "wishes"),
    [
        ("", "+bt +bt/1"),
        ("", "+bt/1 +bt"),
        ("", "+a/b +a +a/b/c"),
        ("x", "-x +x/a"),
        ("x/a", "-x/a +x"),
        ("x/a x/b", "-x/a +x"),
        ("x", "+x/a +other"),
    ],
)
def test_8_names_in_each_others_way(
    wire: Any, git: Git, head: Git, raw: Any, there: str, wishes: str
) -> None:
    """What becomes of refs that cannot all stand beside each other, and in which words."""
    # git lets the longest name in since then, not the first, and says it otherwise.
    is_newer = VERSION >= (2, 51) and not there
    tip, none = head(wire.work), "0" * 40
    for name in there.split():
        git("update-ref", f"refs/heads/{name}", tip, cwd=wire.bare)
    empty = wire.pack(tip, f"^{tip}")
    for more, caps in itertools.product((0, 24), ("", "atomic")):
        ours, theirs = (
            wire.bare.with_name(f"{more}-{caps}-{who}-{wire.bare.name}") for who in "ab"
        )
        shutil.copytree(wire.bare, ours)
        shutil.copytree(wire.bare, theirs)
        commands = [
            (*{"+": (none, tip), "-": (tip, none)}[wish[0]], f"refs/heads/{wish[1:]}")
            for wish in [*wishes.split(), *(f"+many/{n}" for n in range(more))]
        ]
        with_caps = f"report-status side-band-64k {caps}"
        got = replace(wire, bare=ours).push(*commands, pack=empty, caps=with_caps)
        if is_newer and not caps:
            words = [got.refs[f"refs/heads/{wish[1:]}"] for wish in wishes.split()]
            assert [word == "ok" for word in words] == [True, *(False for _ in words[1:])]
            continue
        lines = [" ".join(command) for command in commands]
        lines[0] += f"\0{with_caps}"
        body = b"".join(map(raw.pkt, lines)) + b"0000" + empty
        answer = Response(200, content=raw.by_git(theirs, "git-receive-pack", body))
        wanted = raw.parse_push_answer(answer)
        if caps:
            assert got.report == wanted.report
        else:  # the reason behind `ng` differs from version to version of git
            assert [line.split()[:2] for line in got.report] == [
                line.split()[:2] for line in wanted.report
            ]
        assert is_newer or got.words == wanted.words
        git("fsck", cwd=ours)
        assert git("for-each-ref", cwd=ours).out == git("for-each-ref", cwd=theirs).out


def test_7_a_shallow_repository_names_its_borders(
    rich: Path, bare: Path, ask: Any, raw: Any, head: Git
) -> None:
    (bare / "shallow").write_text(f"{head(rich)}\n")
    ours, theirs = ask("git-receive-pack", None)
    assert f"shallow {head(rich)}".encode() in ours
    assert lines_of(raw, ours) == lines_of(raw, theirs)


def test_4_head_may_be_a_link(rich: Path, bare: Path, ask: Any, raw: Any) -> None:
    """As `core.preferSymlinkRefs` has git make it, and also where nothing is at its end."""
    (bare / "HEAD").unlink()
    for target in ("refs/heads/main", "refs/heads/unborn"):
        (bare / "HEAD").symlink_to(target)
        for body in (None, v2(raw, "ls-refs", "symrefs", "unborn")):
            ours, theirs = ask("git-upload-pack", body, "version=2" if body else "")
            assert lines_of(raw, ours) == lines_of(raw, theirs)
        (bare / "HEAD").unlink()
