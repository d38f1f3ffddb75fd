"""The operator's own hooks, run as git runs them (docs/git-server.md, 8.42)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gitd.git.hook_config import hook_commands
from storage.git.config import GitConfig

Git = Callable[..., Any]


def hook(bare: Path, name: str, script: str) -> None:
    path = bare / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_8_17_pre_receive_sees_the_objects_in_quarantine_and_declines(
    work: Path, bare: Path, git: Git, commit: Git, head: Git
) -> None:
    before = head(bare, "main")
    new = commit(work, "two")
    hook(
        bare,
        "pre-receive",
        'read old new ref; git cat-file -t $new; echo "$old $new $ref"; pwd\n'
        'test -n "$GIT_QUARANTINE_PATH" && echo quarantined; git update-ref refs/heads/x $new\n'
        "echo to stderr >&2; exit 1",
    )
    done = git("push", "origin", "main", cwd=work, check=False)
    for line in (
        "commit",
        f"{before} {new} refs/heads/main",
        str(bare),
        "quarantined",
        "to stderr",
    ):
        assert f"remote: {line}" in done.err
    assert "ref updates forbidden inside quarantine environment" in done.err
    assert "main -> main (pre-receive hook declined)" in done.err
    assert head(bare, "main") == before
    assert git("cat-file", "-e", new, cwd=bare, check=False).status != 0
    assert not list((bare / "objects").rglob("tmp_*"))


def test_8_18_the_update_hook_declines_single_refs(
    work: Path, bare: Path, git: Git, head: Git
) -> None:
    hook(bare, "update", 'echo "$1 ${#2} $3"; test "$1" != refs/heads/bad')
    done = git("push", "origin", "main:good", "main:bad", cwd=work, check=False)
    assert f"remote: refs/heads/good 40 {head(work)}" in done.err
    assert "remote: error: hook declined to update refs/heads/bad" in done.err
    assert "main -> bad (hook declined)" in done.err
    assert head(bare, "good") == head(work)
    done = git("push", "--atomic", "origin", "main:good2", "main:bad", cwd=work, check=False)
    assert "main -> good2 (atomic push failure)" in done.err


@pytest.mark.parametrize(
    ("capabilities", "asked"),
    [
        ("", ["gone", "main", "bad", "new"]),
        (" atomic", ["main", "bad"]),
    ],
)
def test_8_18_the_update_hook_is_asked_in_gits_order(
    work: Path, bare: Path, wire: Any, head: Git, capabilities: str, asked: list[str]
) -> None:
    """Since 2.51 of deletions first; of refs that go together, of none behind a refused one."""
    tip, none = head(bare, "main"), "0" * 40
    git_ref = bare / "refs/heads/gone"
    git_ref.write_text(f"{tip}\n")
    hook(bare, "update", 'echo "asked $1"; test "$1" != refs/heads/bad')
    answer = wire.push(
        (tip, tip, "refs/heads/main"),
        (none, tip, "refs/heads/bad"),
        (tip, none, "refs/heads/gone"),
        (none, tip, "refs/heads/new"),
        pack=wire.pack(tip, f"^{tip}"),
        caps=f"report-status side-band-64k delete-refs{capabilities}",
    )
    lines = [line for line in answer.words.splitlines() if line.startswith("asked ")]
    assert lines == [f"asked refs/heads/{name}" for name in asked]
    assert git_ref.exists() is bool(capabilities)


def test_post_hooks_hear_of_what_landed_and_cannot_undo_it(
    work: Path, bare: Path, git: Git, head: Git
) -> None:
    hook(bare, "update", 'test "$1" != refs/heads/bad')
    hook(bare, "post-receive", "cat; exit 1")
    hook(bare, "post-update", 'echo "post-update $*"')
    done = git("push", "origin", "main:a", "main:bad", "main:b", cwd=work, check=False)
    zero, new = "0" * 40, head(work)
    assert f"remote: {zero} {new} refs/heads/a" in done.err
    assert f"remote: {zero} {new} refs/heads/b" in done.err
    assert "refs/heads/bad\n" not in done.err.replace("error: hook declined to update ", "@")
    assert "remote: post-update refs/heads/a refs/heads/b" in done.err
    assert head(bare, "b") == new


def test_hooks_know_who_pushes(server: Any, name: str, work: Path, git: Git) -> None:
    bare = server.create(f"other-{name}", push=False)
    hook(bare, "pre-receive", 'echo "$REMOTE_USER $GIT_COMMITTER_NAME $GIT_COMMITTER_EMAIL"')
    done = git(
        "-c", "http.extraHeader=X-Remote-User: ada", "push", server.url_of(bare), "main", cwd=work
    )
    assert "remote: ada ada ada@http.127.0.0.1" in done.err


def test_a_hooks_path_is_followed(work: Path, bare: Path, git: Git, tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h/pre-receive").write_text("#!/bin/sh\necho elsewhere\n")
    (tmp_path / "h/pre-receive").chmod(0o755)
    git("config", "core.hooksPath", tmp_path / "h", cwd=bare)
    assert "remote: elsewhere" in git("push", "origin", "main:x", cwd=work).err


def test_a_hook_that_does_not_read_and_talks_much_is_fine(work: Path, bare: Path, git: Git) -> None:
    hook(bare, "pre-receive", "yes word | head -c 300000")
    hook(bare, "post-receive", "exec <&-; echo done")
    refspecs = [f"main:refs/heads/b{number}" for number in range(300)]
    done = git("push", "origin", *refspecs, cwd=work)
    assert done.err.count("remote: word") > 50_000
    assert "remote: done" in done.err


def test_a_hook_that_cannot_run_declines(work: Path, bare: Path, git: Git) -> None:
    hook(bare, "pre-receive", "")
    (bare / "hooks/pre-receive").write_text("#!/nonexistent\n")
    done = git("push", "origin", "main:x", cwd=work, check=False)
    assert "pre-receive hook declined" in done.err


@pytest.mark.parametrize("is_executable", [True, False])
def test_only_executable_hooks_run(
    work: Path, bare: Path, git: Git, *, is_executable: bool
) -> None:
    hook(bare, "pre-receive", "exit 1")
    (bare / "hooks/pre-receive").chmod(0o755 if is_executable else 0o644)
    done = git("push", "origin", "main:x", cwd=work, check=False)
    assert (done.status == 0) is not is_executable


def test_the_operators_own_committer_stands_in_reflogs_and_hooks(
    tmp_path: Path, launch: Callable[..., Any], git: Git, commit: Git, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_NAME", "Git Room")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "git@example.org")
    served = tmp_path / "served"
    served.mkdir()
    server = launch(served)
    bare = server.create("one.git", core__logAllRefUpdates="true")
    hook(bare, "post-receive", 'echo "by $GIT_COMMITTER_NAME <$GIT_COMMITTER_EMAIL>"')
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    done = git("push", server.url_of(bare), "main", cwd=work)
    assert "remote: by Git Room <git@example.org>" in done.err
    entry = git("log", "-g", "-1", "--format=%gn <%ge>", "main", cwd=bare)
    assert entry.out == "Git Room <git@example.org>"


def test_8_4_hooks_hear_of_an_absent_ref_until_it_is_found_absent(
    work: Path, bare: Path, wire: Any, head: Git
) -> None:
    """As in git: pre-receive and update may refuse its deletion, later hooks hear only of deeds."""
    none = "0" * 40
    hook(bare, "pre-receive", 'while read old new ref; do echo "pre-receive $ref"; done')
    hook(bare, "update", 'echo "update $1"; test "$1" != refs/heads/kept')
    hook(bare, "post-receive", 'while read old new ref; do echo "post-receive $ref"; done')
    hook(bare, "post-update", 'echo "post-update $*"')
    tip = head(bare, "main")
    answer = wire.push(
        (none, none, "refs/heads/gone"),
        (none, none, "refs/heads/kept"),
        (none, tip, "refs/heads/b"),
        pack=wire.pack(tip, f"^{tip}"),
    )  # fmt: skip
    assert answer.refs == {
        "refs/heads/gone": "ok", "refs/heads/kept": "hook declined", "refs/heads/b": "ok",
    }  # fmt: skip
    for name in ("gone", "kept", "b"):
        assert f"pre-receive refs/heads/{name}\n" in answer.words
        assert f"update refs/heads/{name}\n" in answer.words
    assert "post-update refs/heads/b\n" in answer.words
    assert answer.words.count("post-receive") == 1


@pytest.mark.parametrize("is_bare", [True, False])
def test_8_3_a_branch_in_a_linked_work_tree_is_checked_out_too(
    server: Any, name: str, work: Path, tmp_path: Path, git: Git, commit: Git, head: Git, *,
    is_bare: bool,
) -> None:  # fmt: skip
    served = server.root / f"linked-{name}"
    git("clone", "-q", *(["--bare"] if is_bare else []), work, served, cwd=tmp_path)
    git("config", "http.receivepack", "true", cwd=served)
    git("worktree", "add", "-q", "-b", "linked", tmp_path / "tree", cwd=served)
    before = head(served, "linked")
    commit(work, "two")
    url = server.url_of(served)
    moved = git("push", url, "main:linked", cwd=work, check=False)
    assert "! [remote rejected] main -> linked (branch is currently checked out)" in moved.err
    gone = git("push", url, ":linked", cwd=work, check=False)
    assert "(deletion of the current branch prohibited)" in gone.err
    assert head(served, "linked") == before
    git("worktree", "remove", tmp_path / "tree", cwd=served)
    git("push", "-q", url, "main:linked", cwd=work)
    assert head(served, "linked") == head(work)


def test_a_hook_may_push_into_its_own_repository(
    server: Any, work: Path, bare: Path, git: Git, head: Git
) -> None:
    """From `update`, where the server once waited for itself."""
    clone = bare.parent / f"{bare.stem}-clone"
    git("clone", "-q", server.url_of(bare), clone, cwd=work)
    hook(
        bare,
        "update",
        f'test "$1" = refs/heads/echo && exit 0; unset $(git rev-parse --local-env-vars)\n'
        f"exec git -C {clone} push -q origin HEAD:refs/heads/echo",
    )
    git("push", "-q", "origin", "main:x", cwd=work)
    assert head(bare, "x") == head(bare, "echo") == head(work)


def test_a_push_does_not_wait_for_the_update_hook_of_another(
    work: Path, bare: Path, git: Git, head: Git, tmp_path: Path
) -> None:
    gate, told = tmp_path / "gate", tmp_path / "told"
    os.mkfifo(gate)
    os.mkfifo(told)
    hook(bare, "update", f'test "$1" = refs/heads/quick || {{ echo >{told}; read go <{gate}; }}')
    slow = subprocess.Popen(["git", "push", "-q", "origin", "main:slow"], cwd=work)
    assert told.read_text() == "\n"  # the hook runs
    git("push", "-q", "origin", "main:quick", cwd=work)
    assert head(bare, "quick") == head(work)
    assert slow.poll() is None
    gate.write_text("go\n")
    assert slow.wait(60) == 0
    assert head(bare, "slow") == head(work)


def test_what_another_push_did_during_an_update_hook_is_noticed(
    work: Path, bare: Path, git: Git, commit: Git, head: Git
) -> None:
    """The refs are held against their old values after the hook, under their locks."""
    git("push", "-q", "origin", "main:x", cwd=work)
    other = git("commit-tree", "-p", "main", "-m", "other", "main^{tree}", cwd=bare).out
    hook(bare, "update", f"git update-ref refs/heads/x {other}")
    commit(work, "two")
    done = git("push", "origin", "main:x", cwd=work, check=False)
    assert "main -> x (incorrect old value provided)" in done.err
    assert head(bare, "x") == other


def test_hooks_have_the_servers_environment_without_our_settings(
    launch: Any, tmp_path: Path, git: Git, commit: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SITE_COLOR": "blue",
        "GIT_TRACE_REDACT": "1",
        "GITD_GIT_REFS_MAX": "7",
        "FORGE_TOKEN": "secret",
        "CREDENTIALS_DIRECTORY": "/secret",
        "GIT_INDEX_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "root"
    root.mkdir()
    server = launch(root)
    monkeypatch.delenv("GIT_INDEX_FILE")
    bare = server.create("a.git")
    hook(bare, "post-receive", "env >told; cat >/dev/null")
    work = tmp_path / "w"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    git("push", "-q", server.url_of(bare), "main", cwd=work)
    told = dict(line.split("=", 1) for line in (bare / "told").read_text().splitlines())
    assert (told["SITE_COLOR"], told["GIT_TRACE_REDACT"], told["GIT_DIR"]) == ("blue", "1", ".")
    ours = ("GITD_", "FORGE_", "CREDENTIALS_", "GIT_INDEX_FILE")
    assert not [name for name in told if name.startswith(ours)]


def test_8_18_what_the_update_hook_tidies_up_takes_nothing_of_the_push(
    work: Path, bare: Path, git: Git, commit: Git, head: Git
) -> None:
    hook(bare, "update", "git repack -adq && ls objects/pack/*.keep; test $1 != refs/heads/bad")
    new = commit(work, "two")
    done = git("push", "origin", "main", "main:bad", cwd=work, check=False)
    assert "remote: objects/pack/pack-" in done.err
    assert "main -> bad (hook declined)" in done.err
    assert head(bare, "main") == new
    git("fsck", "--full", "--strict", cwd=bare)
    assert not list((bare / "objects").rglob("*.keep"))


def test_8_18_a_pack_that_its_owner_keeps_stays_kept(
    wire: Any, work: Path, bare: Path, commit: Git, head: Git
) -> None:
    hook(bare, "update", "exit 0")
    old, new = head(work), commit(work, "two")
    pack = wire.pack(new, f"^{old}")
    keep = bare / f"objects/pack/pack-{pack[-20:].hex()}.keep"
    keep.touch()
    answer = wire.push((old, new, "refs/heads/main"), pack=pack)
    assert answer.refs == {"refs/heads/main": "ok"}
    assert keep.with_suffix(".pack").exists()
    assert keep.exists()


def test_hooks_of_the_config_are_run_before_the_file(
    work: Path, bare: Path, git: Git, commit: Git, head: Git
) -> None:
    """As with git since 2.54: in the order of the config, and with all that a file is told."""
    new = commit(work, "two")
    before = head(bare, "main")
    for key, value in (
        ("hook.second.command", "echo second: $(cat); echo"),  # makes the section that is first
        ("hook.first.event", "pre-receive"),
        ("hook.first.command", "echo first: $(cut -c82-)"),
        ("hook.second.event", "pre-receive"),
        ("hook.off.event", "pre-receive"),
        ("hook.off.command", "echo never"),
        ("hook.off.enabled", "false"),
        ("hook.each.one.event", "update"),
        ("hook.each.one.command", "./hooks/each"),
        ("hook.after.event", "post-receive"),
        ("hook.after.command", "echo after: $GIT_DIR"),
    ):
        git("config", "--add", key, value, cwd=bare)
    hook(bare, "each", 'echo "each: $1 $2 $3"')
    hook(bare, "pre-receive", "echo file")
    said = git("push", "origin", "main", cwd=work).err
    told = [line.removeprefix("remote: ").rstrip() for line in said.splitlines()]
    lines = [line for line in told if line.startswith(("first", "second", "file", "each", "after"))]
    assert lines == [
        f"second: {before} {new} refs/heads/main",
        "first: refs/heads/main",
        "file",
        f"each: refs/heads/main {before} {new}",
        "after: .",
    ]
    assert "never" not in said


@pytest.mark.parametrize("failing", ["config", "file"])
def test_one_hook_that_declines_is_enough_and_all_are_asked(
    work: Path, bare: Path, git: Git, commit: Git, head: Git, failing: str
) -> None:
    before = head(bare, "main")
    commit(work, "two")
    git("config", "hook.a.event", "pre-receive", cwd=bare)
    git("config", "hook.a.command", f"echo asked; test {failing} = file", cwd=bare)
    hook(bare, "pre-receive", f"echo asked too; test {failing} = config")
    done = git("push", "origin", "main", cwd=work, check=False)
    assert "remote: asked " in done.err
    assert "remote: asked too" in done.err
    assert "main -> main (pre-receive hook declined)" in done.err
    assert head(bare, "main") == before


@pytest.mark.parametrize("event", ["pre-receive", "update"])
def test_a_hook_without_its_command_lets_nothing_in(
    work: Path, bare: Path, git: Git, commit: Git, head: Git, event: str
) -> None:
    before = head(bare, "main")
    commit(work, "two")
    git("config", "hook.a.event", event, cwd=bare)
    done = git("push", "origin", "main", cwd=work, check=False)
    assert "'hook.a.command' must be configured" in done.err
    assert "hook declined" in done.err
    assert head(bare, "main") == before


FIRST = '[hook "a"]\nevent = update\ncommand = x\n'


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ('[hook "a"]\nevent = update\ncommand = x\ncommand = y\n', ["y"]),
        ('[hook "a"]\nevent = update\nevent =\ncommand = x\n', []),
        ('[hook "a"]\nevent =\nevent = update\ncommand = x\n', ["x"]),
        (f"{FIRST}enabled = 0\n", []),
        (f"{FIRST}enabled = maybe\n", ["x"]),
        (f"{FIRST}enabled = no\nenabled = on\n", ["x"]),
        (f'{FIRST}[hook "update"]\nenabled = false\n', []),
        ('[hook "a"]\nevent = post-update\nevent = update\ncommand = x\n', ["x"]),
        ('[hook "a"]\nevent = pre-receive\n[hook]\njobs = 4\n', []),
        (f'{FIRST}[hook "b"]\nevent = update\ncommand = y\n', ["x", "y"]),
        (f'{FIRST}[hook "b"]\nevent = update\ncommand = y\n{FIRST}', ["y", "x"]),
    ],
)
def test_which_commands_a_config_names(text: str, commands: list[str]) -> None:
    assert hook_commands(GitConfig.parse(text, "config"), "update") == commands
