"""The borders of a shallow repository: one file, written whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from storage.git.repository import Repository
from storage.git.shallow import forget_unreached_borders
from tests.crashing import needs_strace
from tests.gitd.git.conftest import run_git
from tests.storage.git.conftest import MadeRepository

ONE, TWO = b"\x11" * 20, b"\x22" * 20
CALLS = re.compile(r"(fsync|rename)\((.*)\) += 0")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    run_git("init", "-q", "--bare", "-b", "main", tmp_path / "r.git", cwd=tmp_path)
    return tmp_path / "r.git"


def test_borders_are_added_and_none_is_lost(bare: Path) -> None:
    repository = Repository(bare)
    assert not repository.is_shallow
    for oids in ([TWO], [ONE], [ONE, TWO]):
        repository.extend_shallow(oids)
    assert repository.shallow() == {ONE, TWO}
    assert (bare / "shallow").read_text() == f"{ONE.hex()}\n{TWO.hex()}\n"
    assert not (bare / "shallow.lock").exists()


def test_borders_are_dropped_and_the_file_with_the_last_one(bare: Path) -> None:
    repository = Repository(bare)
    repository.extend_shallow([ONE, TWO])
    repository.keep_shallow([ONE])
    assert (bare / "shallow").read_text() == f"{ONE.hex()}\n"
    repository.keep_shallow([TWO])
    assert not (bare / "shallow").exists()
    assert not (bare / "shallow.lock").exists()


@pytest.fixture
def bordered(made: MadeRepository) -> tuple[MadeRepository, bytes]:
    """With a border that a branch reaches, one that none does, and one that is nowhere."""
    tree = made.tree()
    border, other = made.commit(tree, ONE), made.commit(tree, TWO)
    tip = made.commit(tree, border, time=1)
    made.push(tip, other, shallow=[border, other])
    made.point("main", tip)
    made.repository.extend_shallow([border, other, ONE])
    return made, border


def test_borders_that_no_ref_reaches_are_forgotten(bordered: tuple[MadeRepository, bytes]) -> None:
    made, border = bordered
    assert forget_unreached_borders(made.repository) == 2
    assert made.repository.shallow() == {border}
    assert forget_unreached_borders(made.repository) == 0


@pytest.mark.parametrize("damage", ["ref", "packed-refs", "commit", "reflog"])
def test_no_border_is_forgotten_where_not_all_that_reaches_one_can_be_followed(
    bordered: tuple[MadeRepository, bytes], damage: str
) -> None:
    made, _ = bordered
    if damage == "ref":
        (made.path / "refs/heads/x").write_text("\0\0\0")
    elif damage == "packed-refs":
        (made.path / "packed-refs").write_text(f"{TWO.hex()} refs/hea")
    elif damage == "reflog":  # not followed here; git's `gc` does, and fails where a commit lacks
        (made.path / "logs").mkdir()
    else:
        made.point("x", TWO)
    before = made.repository.shallow()
    assert forget_unreached_borders(made.repository) == 0
    assert made.repository.shallow() == before


def test_borders_that_another_process_is_changing_are_left_alone(bare: Path) -> None:
    (bare / "shallow.lock").touch()
    with pytest.raises(FileExistsError):
        Repository(bare).extend_shallow([ONE])
    assert (bare / "shallow.lock").exists()
    assert not (bare / "shallow").exists()


@needs_strace
def test_borders_are_on_disk_before_they_count_and_when_it_returns(bare: Path) -> None:
    """A push may end its history there only if no power cut forgets that it does."""
    code = (
        "import sys; from pathlib import Path; from storage.git.repository import Repository\n"
        "Repository(Path(sys.argv[1])).extend_shallow([bytes.fromhex(sys.argv[2])])"
    )
    trace = bare.parent / "trace"
    traced = ("strace", "-f", "-y", "-qq", "--seccomp-bpf", "-e", "trace=fsync,rename", "-o", trace)
    program = (sys.executable, "-c", code, bare, ONE.hex())
    subprocess.run([*map(str, (*traced, *program))], check=True)
    called = [
        (call, text.replace(str(bare), "")) for call, text in CALLS.findall(trace.read_text())
    ]
    (synced, lock), renamed, (synced_too, directory) = called
    assert synced == synced_too == "fsync"
    assert lock.endswith("</shallow.lock>")
    assert renamed == ("rename", '"/shallow.lock", "/shallow"')
    assert directory.endswith("<>")
