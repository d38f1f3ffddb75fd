"""`core.sharedRepository`: the same bits as git gives."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from storage.git.config import GitConfig
from storage.git.errors import RepositoryCorruptError
from storage.git.sharing import Sharing

WISHES = ["umask", "false", "group", "true", "1", "all", "world", "everybody", "2", "0660", "0640",
          "0666", "0600", "0"]  # fmt: skip


def sharing_of(text: str) -> Sharing:
    return Sharing.of(GitConfig.parse(f"[core]\nsharedRepository = {text}\n", "config"))


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("wish", WISHES)
def test_files_get_the_bits_that_git_gives(tmp_path: Path, wish: str, umask: int) -> None:
    bare = tmp_path / "a.git"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def git(*words: str, text: str = "") -> str:
        done = subprocess.run(
            ["git", *words], cwd=bare, env=environ, input=text, capture_output=True, text=True,
            check=True, umask=umask,
        )  # fmt: skip
        return done.stdout.strip()

    bare.mkdir()
    git("init", "-q", "--bare", ".")
    git("config", "core.sharedRepository", wish)
    oid = git("hash-object", "-w", "--stdin", text="x")
    git("update-ref", "refs/tags/deep/x", oid)
    ours = sharing_of(wish)
    for path, made_with in (
        (bare / "objects" / oid[:2] / oid[2:], 0o444),
        (bare / "objects" / oid[:2], 0o777),
        (bare / "refs/tags/deep/x", 0o666),
        (bare / "refs/tags/deep", 0o777),
    ):
        kind = stat.S_IFDIR if path.is_dir() else stat.S_IFREG
        mine = ours.mode_of(kind | (made_with & ~umask)) if ours.bits else made_with & ~umask
        assert oct(path.stat().st_mode & 0o7777) == oct(mine & 0o7777), path


@pytest.mark.parametrize("wish", ["0060", "0400"])
def test_a_wish_that_keeps_the_owner_out_is_refused(wish: str) -> None:
    with pytest.raises(RepositoryCorruptError, match="the owner needs rw"):
        sharing_of(wish)
