"""`gitd gc` beside a server: it waits for its turn, and leaves the store to whom it belongs."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from gitd.__main__ import cli
from gitd.collecting import CollectionReport, collect
from gitd.config import Config
from gitd.control import Control
from gitd.layout import DataFolder
from storage.artifacts import ArtifactStore
from storage.digest import Digest
from storage.gate import locked
from storage.layout import Layout
from storage.records.db import Records
from tests.waiting import wait_for


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A data folder whose store a group may read."""
    made = DataFolder(tmp_path / "data")
    made.prepare()
    Control(made, Config(), None).close()
    with Records.open(made.database) as records:
        ArtifactStore.open(made.store, records, group=os.getgid())
    return made


def leftover_in(folder: DataFolder) -> Path:
    path = Path(Layout(folder.store).blob(Digest.of(b"left"), executable=False))
    path.write_bytes(b"left")
    return path


def test_command_leaves_the_store_to_its_group(folder: DataFolder) -> None:
    """The site host reads it by that group, and would serve nothing any more."""
    before = folder.store.stat()
    assert stat.S_IMODE(before.st_mode) == 0o750
    for command in (["gc"], ["gc", "--dry-run"], ["check", "--repair"], ["check", "--deep"]):
        done = CliRunner().invoke(cli, [*command, "--data", str(folder.root)])
        assert done.exit_code == 0, done.output
        after = folder.store.stat()
        assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid), command


def test_command_looks_at_every_file_and_a_dry_run_removes_none(folder: DataFolder) -> None:
    path = leftover_in(folder)
    assert collect(folder, Config(), is_dry_run=True, is_forced=False).dry_run
    assert path.exists()
    assert collect(folder, Config(), is_dry_run=False, is_forced=False).leftovers == 1
    assert not path.exists()


def test_command_waits_for_a_collector_that_is_at_work(folder: DataFolder) -> None:
    leftover_in(folder)
    lock = Layout(folder.store).collector
    reports: list[CollectionReport] = []
    command = threading.Thread(
        target=lambda: reports.append(collect(folder, Config(), is_dry_run=False, is_forced=False))
    )
    with locked(lock, fcntl.LOCK_EX):
        command.start()
        wait_for(lambda: not command.is_alive() or opened(lock) >= 2)
        assert command.is_alive()
        assert reports == []
    command.join()
    assert [report.leftovers for report in reports] == [1]


def opened(path: Path) -> int:
    """How often this process has a file open."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += fd.readlink() == path
        except FileNotFoundError:
            continue  # that of the listing itself
    return count
