"""Reads that are kept are never old."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.model import Site
from storage.records import recall, sites
from storage.records.db import Records
from storage.records.recall import Recall


@pytest.fixture
def records(tmp_path: Path):
    opened = Records.open(tmp_path / "gitd.db")
    yield opened
    opened.close()


class Counted:
    """A read that knows how often it was made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def __call__(self, db: sqlite3.Connection) -> Site | None:
        self.count += 1
        return sites.find(db, self.name)


def add(records: Records, name: str) -> None:
    records.write(lambda db: sites.add(db, Site(f"site_{name}", name, "main", 0)))


def test_same_read_is_made_once_until_something_is_committed(records) -> None:
    kept, read = Recall(records), Counted("a")
    assert [kept.get("a", read) for _ in range(3)] == [None] * 3
    assert read.count == 1
    add(records, "a")
    assert kept.get("a", read).name == "a"
    assert kept.get("a", read).name == "a"
    assert read.count == 2


def test_every_write_that_returned_is_seen(records) -> None:
    kept = Recall(records)
    for number in range(200):
        name = f"s{number}"
        assert kept.get(name, Counted(name)) is None
        add(records, name)
        assert kept.get(name, Counted(name)) is not None


def test_commit_of_another_process_is_seen(records, tmp_path: Path) -> None:
    kept, read = Recall(records), Counted("a")
    assert kept.get("a", read) is None
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
        'db.execute("INSERT INTO site(id, name, default_branch, created_at)'
        " VALUES('site_a', 'a', 'main', 0)\"); db.commit()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "gitd.db")], check=True)
    time.sleep(recall.LOOK_EVERY_S)
    assert kept.get("a", read).name == "a"


def test_what_is_kept_has_a_bound(records) -> None:
    kept = Recall(records)
    for number in range(recall.ENTRIES_MAX + 5):
        kept.get(number, lambda _: None)
        kept._looked_at = 0.0
    assert len(kept._kept) <= recall.ENTRIES_MAX
