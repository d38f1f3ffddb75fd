"""A medium that forgets a bit of the database: it is said, or it changes nothing of the index.

What other tables say can change unseen: a name is as good a name with another letter.
"""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import pytest

from storage.check import check_store
from storage.errors import StorageError
from storage.records import integrity
from storage.records.db import Records

INDEX = {
    "blob": "SELECT key, size_bytes, state FROM blob ORDER BY key",
    "tree": "SELECT digest, sha256, files, size_bytes, manifest_bytes, state FROM tree"
    " ORDER BY digest",
    "ref": "SELECT key, digest FROM ref JOIN blob ON blob.id = blob_id"
    " JOIN tree ON tree.id = tree_id ORDER BY key, digest",
    "attestation": "SELECT envelope_sha256, artifact_id FROM attestation ORDER BY envelope_sha256",
    "artifact": "SELECT id, digest, manifest_sha256, files, size_bytes FROM artifact ORDER BY id",
}


def dump(database: Path) -> object:
    """What the index says; what stands in the way where it cannot be read."""
    db = sqlite3.connect(database)
    try:
        return [db.execute(query).fetchall() for query in INDEX.values()]
    except sqlite3.Error as error:
        return str(error)
    finally:
        db.close()


def said_of(shop: Path) -> list[str]:
    """What a check says: never an error that is not for people."""
    try:
        with Records.open(shop / "gitd.db") as records:
            said = integrity.faults(records.reader())
            return said or list(check_store(shop / "store", records).problems)
    except StorageError as error:
        return [str(error)]


def pages_of(database: Path) -> list[tuple[str, int, int]]:
    """All pages, with the tables and indexes that they are of: name, offset, size."""
    db = sqlite3.connect(database)
    pages = db.execute("SELECT name, pgoffset, pgsize FROM dbstat").fetchall()
    db.close()
    return pages


def flip(
    database: Path, good: bytes, pages: list[tuple[str, int, int]], pick: random.Random
) -> str:
    """Write the database as it was good, but for a bit in one of the pages; say which."""
    name, offset, size = pick.choice(pages)
    used = [at for at in range(offset, offset + size) if good[at]]
    at, bit = pick.choice(used), pick.randrange(8)
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    database.write_bytes(bad)
    return f"{name}: bit {bit} at {at}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [12, pytest.param(3000, marks=pytest.mark.soak)])
def test_flipped_bit_in_any_page_is_said_or_changes_nothing(shop, count: int) -> None:
    seed = int(os.environ.get("CRASH_SEED", "0"))
    pick = random.Random(seed)
    for number in range(3):
        tree = {f"f{number}-{n}": b"%d" % (n * number) for n in range(40)}
        shop.pin(shop.ingest(tree))
    shop.records.close()
    database = shop.folder / "gitd.db"
    assert said_of(shop.folder) == []
    good, before = database.read_bytes(), dump(database)
    pages = pages_of(database)
    counts = {"said": 0, "the same": 0}
    for _ in range(count):
        where = flip(database, good, pages, pick)
        said = said_of(shop.folder)
        if said:
            counts["said"] += 1
        else:
            counts["the same"] += 1
            assert dump(database) == before, f"{where}, seed {seed}"
    print(counts)
    assert counts["said"]
