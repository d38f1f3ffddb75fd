"""Whole packs sent without a walk: never more than what is reachable, and never less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]


def objects_of(path: Path, git: Git) -> set[str]:
    listed = git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=path).out
    return set(listed.split())


def reachable(path: Path, git: Git) -> set[str]:
    return {
        line.split()[0] for line in git("rev-list", "--objects", "--all", cwd=path).out.splitlines()
    }


def clone(server: Any, bare: Path, target: Path, git: Git) -> set[str]:
    git("clone", "-q", "--mirror", server.url_of(bare), target, cwd=target.parent)
    git("fsck", "--full", "--strict", cwd=target)
    return objects_of(target, git)


def test_a_clone_of_some_pushes_has_all_of_them(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    for number in range(4):
        commit(work, f"n{number}", file=f"{number}\n" * 30)
        git("tag", "-a", "-m", "t", f"v{number}", cwd=work)
        git("push", "-q", "--follow-tags", "origin", "main", cwd=work)
    assert len(list((bare / "objects/info/gitd-links").iterdir())) == 5
    assert clone(server, bare, tmp_path / "a", git) == reachable(bare, git)


def test_what_a_forced_push_left_behind_is_not_sent(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    secret = commit(work, "secret")
    git("push", "-q", "origin", "main", cwd=work)
    git("reset", "-q", "--hard", "HEAD~1", cwd=work)
    commit(work, "public")
    git("push", "-q", "--force", "origin", "main", cwd=work)
    got = clone(server, bare, tmp_path / "a", git)
    assert secret in objects_of(bare, git)
    assert secret not in got
    assert got == reachable(bare, git)


def test_what_a_deleted_branch_left_behind_is_not_sent(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    git("checkout", "-q", "-b", "side", cwd=work)
    secret = commit(work, "secret")
    git("push", "-q", "origin", "side", cwd=work)
    assert secret in clone(server, bare, tmp_path / "a", git)
    git("push", "-q", "origin", ":side", cwd=work)
    assert secret not in clone(server, bare, tmp_path / "b", git)


def test_one_branch_brings_only_its_own(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, commit: Git
) -> None:
    git("checkout", "-q", "-b", "side", cwd=work)
    other = commit(work, "other")
    git("push", "-q", "origin", "side", cwd=work)
    git("clone", "-q", "--bare", "--single-branch", "--branch", "main", server.url_of(bare), "a",
        cwd=tmp_path)  # fmt: skip
    assert other not in objects_of(tmp_path / "a", git)


@pytest.mark.parametrize("how", ["torn", "empty", "other"])
def test_a_damaged_record_is_no_record(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git, how: str
) -> None:
    (record,) = (bare / "objects/info/gitd-links").iterdir()
    data = record.read_bytes()
    record.write_bytes({"torn": data[:30], "empty": b"", "other": b"x" * len(data)}[how])
    assert clone(server, bare, tmp_path / "a", git) == reachable(bare, git)


def test_a_repeated_clone_of_a_packed_repository_is_the_stored_file(
    server: Any, bare: Path, work: Path, tmp_path: Path, git: Git
) -> None:
    git("gc", "-q", cwd=bare)
    (stored,) = (bare / "objects/pack").glob("*.pack")
    for name in ("a", "b"):
        clone(server, bare, tmp_path / name, git)
        (received,) = (tmp_path / name / "objects/pack").glob("*.pack")
        assert received.read_bytes() == stored.read_bytes()
