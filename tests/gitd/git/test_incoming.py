"""The objects of a push that is broken off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gitd.git.incoming import Incoming
from gitd.git.limits import GitLimits
from gitd.git.push_request import Wish
from gitd.git.workers import PackWorkers
from storage.git.repository import Repository
from tests.gitd.git.conftest import run_git


def test_nothing_is_taken_in_when_the_push_was_broken_off(tmp_path: Path) -> None:
    """The thread that moves refs may come to it only then: no ref may name what is gone."""
    run_git("init", "-q", "--bare", "r.git", cwd=tmp_path)
    repository = Repository(tmp_path / "r.git")
    workers = PackWorkers(1)
    incoming = Incoming(repository, Wish(), GitLimits(), workers, is_looked_at=False, is_kept=True)
    assert incoming.take_in() == set()
    incoming.add_blob(b"x")
    asyncio.run(incoming.tidy())
    with pytest.raises(OSError, match="broken off"):
        incoming.take_in()
    assert not list((repository.path / "objects").glob("tmp_*"))
