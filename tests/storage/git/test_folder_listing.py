"""Folders that did not change are not read again, and what changed in them is seen."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from storage.git.file_times import COARSE_NS, RACY_NS
from storage.git.folder_listing import FolderListing
from storage.git.repository import Repository
from tests.gitd.git.conftest import run_git

SECOND_NS = 1_000_000_000
_listed: list[bytes] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.scandir" and _listed is not None and isinstance(arguments[0], bytes):
        _listed.append(arguments[0])


sys.addaudithook(_note)


def listed_by_reading(repository: Repository) -> list[str]:
    """Which folders of refs one reading of them lists."""
    global _listed  # noqa: PLW0603 - an audit hook stays
    _listed = []
    repository.refs.snapshot()
    found, _listed = sorted(os.fsdecode(path).split(".git/")[1] for path in _listed), None
    return found


def age(*folders: Path) -> None:
    then_ns = time.time_ns() - 10 * SECOND_NS
    for folder in folders:
        os.utime(folder, ns=(then_ns, then_ns))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", path, cwd=tmp_path)
    tree = run_git("mktree", cwd=path).out
    commit = run_git("commit-tree", tree, "-m", "one", cwd=path).out
    run_git("update-ref", "refs/heads/main", commit, cwd=path)
    run_git("update-ref", "refs/heads/deep/er", commit, cwd=path)
    age(path / "refs", path / "refs/heads", path / "refs/heads/deep", path / "refs/tags")
    return path


def names(repository: Repository) -> set[str]:
    return {name.decode() for name in repository.refs.snapshot().values}


def refs_as_git_sees_them(bare: Path) -> set[str]:
    return set(run_git("for-each-ref", "--format=%(refname)", cwd=bare).out.split())


def test_only_folders_that_changed_are_listed_again(bare: Path) -> None:
    repository = Repository(bare)
    assert len(listed_by_reading(repository)) == 4
    assert listed_by_reading(repository) == []
    run_git("update-ref", "refs/heads/deep/est", "refs/heads/main", cwd=bare)
    assert listed_by_reading(repository) == ["refs/heads/deep"]


@pytest.mark.parametrize(
    "change",
    [
        ("update-ref", "refs/heads/new", "refs/heads/main"),
        ("update-ref", "refs/heads/a/b/c", "refs/heads/main"),
        ("update-ref", "refs/notes/x", "refs/heads/main"),
        ("update-ref", "-d", "refs/heads/deep/er"),
        ("branch", "-m", "deep/er", "deeper"),
        ("pack-refs", "--all"),
        ("symbolic-ref", "refs/heads/also", "refs/heads/main"),
    ],
)
def test_what_git_changes_in_a_folder_that_was_listed_is_seen(
    bare: Path, change: tuple[str, ...]
) -> None:
    repository = Repository(bare)
    assert names(repository) == refs_as_git_sees_them(bare)
    assert listed_by_reading(repository) == []
    run_git(*change, cwd=bare)
    assert repository.refs.known_snapshot(100) is None
    assert names(repository) == refs_as_git_sees_them(bare)


def test_a_second_change_in_a_whole_second_is_seen(bare: Path) -> None:
    """As on a filesystem that keeps whole seconds: the folder's time stays, a ref comes."""
    heads = bare / "refs/heads"
    for number in range(20):
        # Old enough for a clock of nanoseconds, and too young for one of seconds.
        then_ns = (time.time_ns() - 2 * RACY_NS) // SECOND_NS * SECOND_NS
        os.utime(heads, ns=(then_ns, then_ns))
        repository = Repository(bare)
        repository.refs.snapshot()
        is_in_time = time.time_ns() - then_ns < COARSE_NS
        (heads / f"b{number}").write_text((heads / "main").read_text())
        os.utime(heads, ns=(then_ns, then_ns))
        if is_in_time:
            break
    assert names(repository) == refs_as_git_sees_them(bare)


def test_what_a_link_leads_to_may_be_a_folder_today_and_a_file_tomorrow(bare: Path) -> None:
    elsewhere = bare.parent / "elsewhere"
    elsewhere.mkdir()
    (bare / "refs/heads/there").symlink_to(elsewhere)
    age(bare / "refs/heads")
    repository = Repository(bare)
    assert "refs/heads/there" not in names(repository)
    elsewhere.rmdir()
    elsewhere.write_text((bare / "refs/heads/main").read_text())
    assert "refs/heads/there" in names(repository)


def test_loose_objects_that_come_are_seen(bare: Path) -> None:
    run_git("repack", "-q", "-a", "-d", cwd=bare)
    age(bare / "objects")
    repository = Repository(bare)
    assert repository.objects.loose_directories() == frozenset()
    oid = run_git("hash-object", "-w", "--stdin", cwd=bare, stdin=b"new").out
    assert repository.objects.loose_directories() == frozenset({int(oid[:2], 16)})


def test_a_listing_of_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(NotADirectoryError):
        FolderListing.of(os.fsencode(file))
    with pytest.raises(FileNotFoundError):
        FolderListing.of(os.fsencode(tmp_path / "none"))
