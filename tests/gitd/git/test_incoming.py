"""The objects of a push that is broken off, or tidied away by somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gitd.git.incoming import Incoming
from gitd.git.limits import GitLimits
from gitd.git.push_request import Wish
from gitd.git.workers import PackWorkers
from storage.git.ingest import (
    SPOOL_NAME,
    TIDIED_UP,
    IngestTask,
    discard_quarantine,
    ingest,
    make_quarantine,
    migrate_quarantine,
)
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


@pytest.mark.parametrize("has_spool", [False, True])
def test_quarantine_that_git_prune_took_away_is_told_as_that(
    tmp_path: Path, *, has_spool: bool
) -> None:
    run_git("init", "-q", "--bare", "r.git", cwd=tmp_path)
    repository = Repository(tmp_path / "r.git")
    quarantine = make_quarantine(repository.path)
    if has_spool:
        (quarantine / "pack" / SPOOL_NAME).write_bytes(b"PACK")
    else:
        discard_quarantine(quarantine)
    task = IngestTask(repository=str(repository.path), quarantine=str(quarantine), tips=[])
    error = ingest(task).error
    assert error is not None
    assert (TIDIED_UP in error) is not has_spool
    with pytest.raises(FileNotFoundError):
        migrate_quarantine(quarantine, repository.sharing, has_pack=True)
    assert migrate_quarantine(quarantine, repository.sharing, has_pack=False).indexes == []
