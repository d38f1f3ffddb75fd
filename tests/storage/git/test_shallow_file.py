"""The borders of a shallow repository: one file, written whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from storage.git.repository import Repository
from tests.crashing import needs_strace
from tests.gitd.git.conftest import run_git

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
