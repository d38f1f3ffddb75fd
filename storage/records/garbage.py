"""What nothing refers to: trees that no artifact and no cache asks for, blobs that no tree has.

Whatever changes something here looks again, in its own transaction, at what it was told: it may be
in use by now.
"""
# Constants and question marks are all that is put into statements.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from storage.digest import KEY_BYTES, Digest, split
from storage.records.blobs import CORRUPT, DELETING, LIVE, chunks, marks

# As artifacts name their trees. PostgreSQL would say encode(tree.digest, 'hex').
TREE_NAME = "'blake3:' || lower(hex(tree.digest))"
_UNKEPT = (
    f"NOT EXISTS(SELECT 1 FROM artifact WHERE artifact.digest = {TREE_NAME}"
    " AND artifact.dropped_at IS NULL)"
    " AND NOT EXISTS(SELECT 1 FROM build_cache WHERE build_cache.tree_digest = tree.digest)"
)
_UNREFERRED = "NOT EXISTS(SELECT 1 FROM ref WHERE ref.blob_id = blob.id)"


@dataclass(frozen=True, slots=True)
class Usage:
    """How many live blobs there are, and how large they are together."""

    blobs: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BlobRow:
    key: bytes
    size_bytes: int


def usage(db: sqlite3.Connection) -> Usage:
    row = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM blob WHERE state = ?", (LIVE,)
    ).fetchone()
    return Usage(row[0], row[1])


def site_bytes(db: sqlite3.Connection, site_id: str) -> int:
    """The size of all contents that a site's artifacts have, each content counted once."""
    row = db.execute(
        "SELECT COALESCE(SUM(size_bytes), 0) FROM blob WHERE id IN (SELECT ref.blob_id FROM ref"
        " JOIN tree ON tree.id = ref.tree_id"
        f" WHERE {TREE_NAME} IN (SELECT artifact.digest FROM attestation"
        " JOIN artifact ON artifact.id = attestation.artifact_id WHERE attestation.site_id = ?"
        " AND artifact.expired_at IS NULL AND artifact.dropped_at IS NULL))",
        (site_id,),
    ).fetchone()
    return int(row[0])


# -- trees ----------------------------------------------------------------------------------------


def unkept_trees(db: sqlite3.Connection) -> list[Digest]:
    """The trees, live or damaged, that no artifact and no cache asks for."""
    rows = db.execute(
        f"SELECT digest FROM tree WHERE state <> ? AND {_UNKEPT} ORDER BY id",
        (DELETING,),
    )
    return [Digest(row[0]) for row in rows]


def kept_trees(db: sqlite3.Connection) -> list[Digest]:
    """The live trees that an artifact or a cache asks for."""
    rows = db.execute(f"SELECT digest FROM tree WHERE state = ? AND NOT ({_UNKEPT})", (LIVE,))
    return [Digest(row[0]) for row in rows]


def uncertain_artifacts(db: sqlite3.Connection) -> list[str]:
    """The artifacts that are kept, and of which the records may not know all blobs: their tree has
    no row, one that says that it is being deleted, or is damaged and has lost references.
    """
    rows = db.execute(
        "SELECT id FROM artifact WHERE dropped_at IS NULL AND digest NOT IN"
        f" (SELECT {TREE_NAME} FROM tree WHERE state = ? OR (state = ? AND blobs ="
        "  (SELECT COUNT(*) FROM ref WHERE ref.tree_id = tree.id))) ORDER BY id",
        (LIVE, CORRUPT),
    )
    return [row[0] for row in rows]


def condemn_trees(db: sqlite3.Connection, digests: Iterable[bytes]) -> None:
    """From here on the trees count as absent, those that something asks for by now excepted."""
    db.executemany(
        f"UPDATE tree SET state = ? WHERE digest = ? AND state <> ? AND {_UNKEPT}",
        [(DELETING, bytes(digest), DELETING) for digest in digests],
    )


def condemned_trees(db: sqlite3.Connection) -> list[Digest]:
    rows = db.execute("SELECT digest FROM tree WHERE state = ? ORDER BY id", (DELETING,))
    return [Digest(row[0]) for row in rows]


def release_refs(
    db: sqlite3.Connection, digest: bytes, *, limit_count: int
) -> tuple[int, list[int]]:
    """Remove some references of a condemned tree.

    Returns:
        How many, 0 when there are no more; and the ids of the blobs that nothing refers to now.
    """
    rows = db.execute(
        "DELETE FROM ref WHERE (blob_id, tree_id) IN (SELECT ref.blob_id, ref.tree_id FROM ref"
        " JOIN tree ON tree.id = ref.tree_id WHERE tree.digest = ? AND tree.state = ? LIMIT ?)"
        " RETURNING blob_id",
        (bytes(digest), DELETING, limit_count),
    ).fetchall()
    released = [row[0] for row in rows]
    return len(released), [blob_id for c in chunks(released) for blob_id in _unreferred(db, c)]


def forgettable_trees(db: sqlite3.Connection, digests: Iterable[bytes]) -> list[Digest]:
    """Those of the trees that are still condemned and have no references any more."""
    return [
        Digest(digest)
        for digest in digests
        if db.execute(
            "SELECT 1 FROM tree WHERE digest = ? AND state = ?"
            " AND NOT EXISTS(SELECT 1 FROM ref WHERE ref.tree_id = tree.id)",
            (bytes(digest), DELETING),
        ).fetchone()
    ]


def forget_trees(db: sqlite3.Connection, digests: Iterable[bytes]) -> None:
    """Drop the rows of condemned trees."""
    db.executemany(
        "DELETE FROM tree WHERE digest = ? AND state = ?",
        [(bytes(digest), DELETING) for digest in digests],
    )


def references(db: sqlite3.Connection, digest: bytes) -> set[bytes]:
    """The keys of the blobs that a tree refers to, whatever their state."""
    source = (
        " FROM tree JOIN ref ON ref.tree_id = tree.id"
        " JOIN blob ON blob.id = ref.blob_id WHERE tree.digest = ?"
    )
    # Joined by the database: a row for each takes several times as long.
    joined, count, strange = db.execute(
        "SELECT CAST(group_concat(blob.key, '') AS BLOB), COUNT(*),"
        " COUNT(*) FILTER (WHERE typeof(blob.key) <> 'blob')" + source,
        (bytes(digest),),
    ).fetchone()
    if strange or len(joined or b"") != count * KEY_BYTES:  # damaged: what would be joined is lost
        return {row[0] for row in db.execute("SELECT blob.key" + source, (bytes(digest),))}
    return set(split(joined or b"", KEY_BYTES))


# -- blobs ----------------------------------------------------------------------------------------


def unreferred_blobs(db: sqlite3.Connection) -> list[int]:
    """The ids of all blobs that no tree refers to: the whole mark."""
    rows = db.execute(f"SELECT id FROM blob WHERE state <> ? AND {_UNREFERRED}", (DELETING,))
    return [row[0] for row in rows]


def condemn_blobs(db: sqlite3.Connection, blob_ids: Sequence[int]) -> list[BlobRow]:
    """Begin the deletion of those that nothing refers to still; from here on they are absent."""
    rows = db.execute(
        f"UPDATE blob SET state = ? WHERE id IN ({marks(blob_ids)})"
        f" AND state <> ? AND {_UNREFERRED} RETURNING key, size_bytes",
        (DELETING, *blob_ids, DELETING),
    ).fetchall()
    return [BlobRow(row[0], row[1]) for row in rows]


def freed_blobs(db: sqlite3.Connection, digests: Iterable[bytes]) -> Usage:
    """The blobs that only these trees refer to: what goes with them. Changes nothing."""
    counts: Counter[int] = Counter()
    for digest in digests:
        counts.update(
            row[0]
            for row in db.execute(
                "SELECT ref.blob_id FROM ref JOIN tree ON tree.id = ref.tree_id"
                " WHERE tree.digest = ?",
                (bytes(digest),),
            )
        )
    blobs = size_bytes = 0
    for chunk in chunks(counts):
        rows = db.execute(
            "SELECT blob.id, blob.size_bytes, COUNT(*) FROM blob JOIN ref ON ref.blob_id = blob.id"
            f" WHERE blob.id IN ({marks(chunk)}) AND blob.state = 0"
            " GROUP BY blob.id, blob.size_bytes",
            chunk,
        )
        for blob_id, size, count in rows:
            if count == counts[blob_id]:
                blobs += 1
                size_bytes += size
    return Usage(blobs, size_bytes)


def size_of(db: sqlite3.Connection, blob_ids: Iterable[int]) -> int:
    """The size of some blobs together."""
    total = 0
    for chunk in chunks(blob_ids):
        (size,) = db.execute(
            f"SELECT COALESCE(SUM(size_bytes), 0) FROM blob WHERE id IN ({marks(chunk)})",
            chunk,
        ).fetchone()
        total += size
    return total


def _unreferred(db: sqlite3.Connection, blob_ids: Sequence[int]) -> list[int]:
    rows = db.execute(
        f"SELECT id FROM blob WHERE id IN ({marks(blob_ids)}) AND state <> ? AND {_UNREFERRED}",
        (*blob_ids, DELETING),
    )
    return [row[0] for row in rows]


# -- files without a row --------------------------------------------------------------------------


def blob_keys_of_shard(db: sqlite3.Connection, shard: bytes) -> set[bytes]:
    """The keys, whatever their state, that begin with the byte `shard`."""
    rows = db.execute("SELECT key FROM blob WHERE key >= ? AND key < ?", _range(shard))
    return {row[0] for row in rows}


def trees_of_shard(db: sqlite3.Connection, shard: bytes) -> set[bytes]:
    """The digests of trees, whatever their state, that begin with the byte `shard`."""
    rows = db.execute("SELECT digest FROM tree WHERE digest >= ? AND digest < ?", _range(shard))
    return {row[0] for row in rows}


def _range(shard: bytes) -> tuple[bytes, bytes]:
    after = bytes([shard[0] + 1]) if shard[0] < 255 else b"\xff" * 64
    return shard, after
