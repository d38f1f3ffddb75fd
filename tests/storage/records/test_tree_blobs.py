"""How many blobs each tree has, where an earlier version did not write it down."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage.digest import Digest
from storage.records import garbage
from storage.records.blobs import CORRUPT, LIVE
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS


@pytest.mark.parametrize("before", ["tree_blobs", "damaged_tree_blobs"])
def test_manifest_that_was_damaged_at_an_update_has_as_many_blobs_as_nobody_knows(
    tmp_path: Path, before: str
) -> None:
    path = tmp_path / "gitd.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        MIGRATIONS.apply(Database(db), stop_before=before)
        db.execute("INSERT INTO blob(key, size_bytes) VALUES(?, 1)", (Digest.of(b"") + b"f",))
        for number, state in enumerate((LIVE, CORRUPT), start=1):
            digest = Digest.of(b"%d" % number)
            db.execute(
                "INSERT INTO artifact(id, digest, manifest_sha256, files, size_bytes, created_at)"
                " VALUES(?, ?, '', 1, 1, 0)",
                (f"art_{number}", str(digest)),
            )
            db.execute(
                "INSERT INTO tree(digest, sha256, files, size_bytes, manifest_bytes, state)"
                " VALUES(?, x'', 1, 1, 99, ?)",
                (bytes(digest), state),
            )
            db.execute("INSERT INTO ref(blob_id, tree_id) VALUES(1, ?)", (number,))
        if before == "damaged_tree_blobs":  # as the step before left it
            db.execute("UPDATE tree SET blobs = 1")
    with Records.open(path) as records:
        db = records.reader()
        found = dict(db.execute("SELECT state, blobs FROM tree").fetchall())
        assert found == {LIVE: 1, CORRUPT: None}
        assert garbage.uncertain_artifacts(db) == ["art_2"]
