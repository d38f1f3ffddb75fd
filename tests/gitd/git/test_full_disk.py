"""docs/git-server.md, section 10: a disk that has no room in the middle of a push, and then has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Git = Callable[..., Any]
MB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounts a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "none", place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, left_bytes: int) -> Path:
    """Leave so much room and no more."""
    path = disk / "somebody's"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left_bytes)
    return path


def files(bare: Path) -> set[str]:
    return {str(path.relative_to(bare)) for path in bare.rglob("*") if path.is_file()}


@pytest.mark.root
@pytest.mark.parametrize(
    ("left_bytes", "size_bytes"),
    [(2 * MB, 8 * MB), (0, 100_000), (4096, 100_000), (0, 10), (300_000, 290_000)],
    ids=["large spool", "no room", "a block", "no room for little", "no room for its index"],
)
def test_a_push_onto_a_full_disk_is_refused_and_leaves_nothing(
    launch: Any,
    disk: Path,
    tmp_path: Path,
    git: Git,
    commit: Git,
    head: Git,
    left_bytes: int,
    size_bytes: int,
) -> None:
    log = tmp_path / "log"
    root = disk / "root"
    root.mkdir()
    server = launch(root, log=log)
    bare = server.create("a.git", core__logAllRefUpdates="true")
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    old = commit(work, "one")
    git("push", "-q", server.url_of(bare), "main", cwd=work)
    before = files(bare)
    (work / "data").write_bytes(os.urandom(size_bytes))
    new = commit(work, "two", other="x")

    filler = fill(disk, left_bytes)
    refused = git("push", server.url_of(bare), "main", cwd=work, check=False)
    assert refused.status == 1, refused.text
    assert "No space left on device" in refused.err
    assert "[remote rejected] main -> main" in refused.err
    assert head(bare, "main") == old
    # As with git: where only the ref found no room, its objects are there, whole and of no use.
    left = files(bare) - before
    assert before <= files(bare)
    assert {Path(name).suffix for name in left if "gitd-links" not in name} in (
        set(),
        {".pack", ".idx"},
    )
    git("fsck", "--full", cwd=bare)
    # What is there is served all the same, and a push that needs no room goes on needing none.
    git("clone", "-q", server.url_of(bare), "served", cwd=tmp_path)

    filler.unlink()
    git("push", "-q", server.url_of(bare), "main", cwd=work)
    assert head(bare, "main") == new
    git("fsck", "--full", "--strict", cwd=bare)
    assert log.read_text() == ""
