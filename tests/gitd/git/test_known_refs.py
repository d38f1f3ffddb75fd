"""What the event loop answers by itself: only what is known of the refs as they are this moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gitd.git.access import Service
from gitd.git.advertisement import RefViews
from storage.git.file_times import COARSE_NS
from storage.git.repository import Repository, RepositoryCache
from tests.gitd.git.conftest import run_git

FEW = 4


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository with two refs, one of them an annotated tag."""
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    stream = (
        "commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 1\nx\n"
        "tag v1\nfrom refs/heads/main\ntagger A <a@b> 1700000000 +0000\ndata 1\nx\n"
    )
    run_git("fast-import", "--quiet", cwd=bare, stdin=stream.encode())
    settle(bare)
    return bare


def settle(bare: Path) -> None:
    """Let all files be older than what is looked at twice."""
    then = time.time_ns() - 5 * COARSE_NS
    for path in (bare, *bare.rglob("*")):
        os.utime(path, ns=(then, then))


def known(views: RefViews, repository: Repository, service: Service) -> tuple[bytes, ...] | None:
    return views.known_advertisement(repository, service, 0, refs_max=FEW)


@pytest.mark.parametrize("service", list(Service))
@pytest.mark.parametrize("is_packed", [False, True])
def test_only_what_is_remembered_of_these_very_refs_is_known(
    bare: Path, service: Service, *, is_packed: bool
) -> None:
    if is_packed:
        run_git("pack-refs", "--all", cwd=bare)
        settle(bare)
    views, repository = RefViews(), Repository(bare)
    assert known(views, repository, service) is None
    repository.refs.snapshot()
    assert known(views, repository, service) is None
    made = views.refs_advertisement(repository, service, 0)
    assert b"refs/tags/v1" in made[0]
    assert known(views, repository, service) == made

    run_git("update-ref", "refs/heads/new", "main", cwd=bare)
    assert known(views, repository, service) is None
    settle(bare)
    made = views.refs_advertisement(repository, service, 0)
    assert known(views, repository, service) == made

    run_git("pack-refs", "--all", "--prune", cwd=bare)
    assert known(views, repository, service) is None
    settle(bare)
    assert views.refs_advertisement(repository, service, 0) == made
    assert known(views, repository, service) == made

    run_git("symbolic-ref", "HEAD", "refs/heads/new", cwd=bare)
    assert known(views, repository, service) is None


@pytest.mark.parametrize("service", list(Service))
def test_many_refs_and_borders_are_never_known(bare: Path, service: Service) -> None:
    views, repository = RefViews(), Repository(bare)
    made = views.refs_advertisement(repository, service, 0)
    tip = run_git("rev-parse", "main", cwd=bare).out
    (bare / "shallow").write_text(f"{tip}\n")
    assert known(views, repository, service) is None
    (bare / "shallow").unlink()
    assert known(views, repository, service) == made
    for number in range(FEW):
        run_git("update-ref", f"refs/heads/n{number}", "main", cwd=bare)
    settle(bare)
    made = views.refs_advertisement(repository, service, 0)
    assert known(views, repository, service) is None
    assert views.known_advertisement(repository, service, 0, refs_max=FEW + 2) == made


def test_the_repository_that_is_asked_for_most_stays_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.git" for number in range(3)]
    for path in paths:
        run_git("init", "-q", "--bare", path, cwd=tmp_path)
    settle(tmp_path)
    cache = RepositoryCache(2)
    opened = [cache.open(path) for path in paths[:2]]
    assert cache.current(paths[0]) is opened[0]
    cache.open(paths[2])
    assert cache.current(paths[0]) is opened[0]
    assert cache.current(paths[1]) is None
