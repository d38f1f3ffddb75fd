"""storage.git.bitmap against the bitmaps that the system's git writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from storage.git.bitmap import reaches_all
from storage.git.repository import Repository

IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


def git(*arguments: str, cwd: Path, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env={**os.environ, **IDENTITY},
        input=stdin,
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.strip()


def test_a_bitmap_tells_exactly_when_all_is_reached(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "r.git", cwd=tmp_path)
    bare = tmp_path / "r.git"
    stream = []
    for number in range(400):
        branch = "side" if number % 5 == 4 else "main"
        content = f"{number} " * (number % 37)
        stream.append(
            f"commit refs/heads/{branch}\n"
            f"committer A <a@b> {1700000000 + number} +0000\ndata 1\nx\n"
            f"M 100644 inline d{number % 7}/f{number % 11}\ndata {len(content)}\n{content}\n"
        )
    git("fast-import", "--quiet", cwd=bare, stdin="".join(stream))
    git("tag", "-a", "-m", "t", "v1", "main", cwd=bare)
    git("repack", "-q", "-a", "-d", "-b", cwd=bare)
    repository = Repository(bare)
    (pack,) = repository.objects.packs()
    assert pack.path.with_suffix(".bitmap").exists()
    tips = {
        name: bytes.fromhex(git("rev-parse", name, cwd=bare)) for name in ("main", "side", "v1")
    }
    expected = {
        ("main", "side", "v1"): True,
        ("side", "v1"): True,
        ("main", "side"): False,
        ("main", "v1"): False,
        ("v1",): False,
        (): False,
    }
    for names, is_all in expected.items():
        wants = [tips[name] for name in names]
        assert reaches_all(repository.objects, pack, wants) is is_all, names
    assert not reaches_all(repository.objects, pack, [*tips.values(), bytes(20)])


def test_a_damaged_bitmap_tells_nothing(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "r.git", cwd=tmp_path)
    bare = tmp_path / "r.git"
    git(
        "fast-import", "--quiet", cwd=bare,
        stdin="commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 1\nx\n",
    )  # fmt: skip
    git("repack", "-q", "-a", "-d", "-b", cwd=bare)
    repository = Repository(bare)
    (pack,) = repository.objects.packs()
    tip = bytes.fromhex(git("rev-parse", "main", cwd=bare))
    bitmap = pack.path.with_suffix(".bitmap")
    whole = bitmap.read_bytes()
    assert reaches_all(repository.objects, pack, [tip])
    bitmap.chmod(0o644)
    for damaged in (b"", whole[:40], whole[: len(whole) // 2], b"X" + whole[1:]):
        bitmap.write_bytes(damaged)
        assert not reaches_all(repository.objects, pack, [tip])
    bitmap.unlink()
    assert not reaches_all(repository.objects, pack, [tip])
