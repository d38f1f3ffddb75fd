"""The build memo's rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from storage.records.db import Records
from storage.records.migrations import MIGRATIONS


def test_what_a_version_remembered_that_knew_nothing_of_caches_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    with closing(sqlite3.connect(path)) as db:
        MIGRATIONS.apply(Database(db), stop_before="build_memo_of_previews")
        db.execute("INSERT INTO build_memo VALUES('site_a', 'inputs', 'toolchain', 'envelope')")
        db.commit()
    with Records.open(path) as records:
        assert records.reader().execute("SELECT * FROM build_memo").fetchall() == []
