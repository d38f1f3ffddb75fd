"""Blobs and trees: which contents the store holds, and which trees refer to them.

The `state` of a blob or a tree is 0 when it is live, 2 while it is being deleted, 3 when it was
found damaged. Only what is live counts as there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

LIVE = 0
DELETING = 2
CORRUPT = 3
_CHUNK_COUNT = 500  # keys in one statement

K = TypeVar("K", bound=bytes)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A tree as the records know it: digests as raw bytes.

    `blobs`: how many different ones it has; None where nobody can say.
    """

    digest: bytes
    sha256: bytes
    files: int
    size_bytes: int
    manifest_bytes: int
    blobs: int | None


class BlobsMissingError(Exception):
    """Some of a tree's blobs are not live; the change must not be committed."""


def live(db: sqlite3.Connection, keys: Iterable[K]) -> set[K]:
    """Return those of the keys that are live."""
    found: set[K] = set()
    for chunk in chunks(keys):
        rows = db.execute(
            f"SELECT key FROM blob WHERE state = 0 AND key IN ({marks(chunk)})",  # noqa: S608 - question marks
            chunk,
        )
        found.update(chain.from_iterable(rows))
    return found


def has_size(db: sqlite3.Connection, size_bytes: int) -> bool:
    """Whether a live blob is so long. All rows are read for it: 0.1 s where there are a million."""
    query = "SELECT 1 FROM blob NOT INDEXED WHERE size_bytes = ? AND state = 0"
    return db.execute(query, (size_bytes,)).fetchone() is not None


def publish(
    db: sqlite3.Connection, tree: TreeRow, keys: Sequence[bytes], placed: Mapping[K, int], at: int
) -> None:
    """Make the placed blobs live, and the tree with its references known.

    `keys`: all distinct blobs of the tree; `placed`: sizes of those put in place for it, whose
    contents were read at the time `at`.

    Raises:
        BlobsMissingError: Not all blobs are live now.
    """
    db.executemany(
        "INSERT INTO blob(key, size_bytes, state, verified_at) VALUES(?,?,0,?)"
        " ON CONFLICT(key) DO UPDATE SET state = 0, size_bytes = excluded.size_bytes,"
        " verified_at = excluded.verified_at WHERE blob.state <> 0",
        [(key, size_bytes, at) for key, size_bytes in sorted(placed.items())],
    )
    if not is_whole(db, tree.digest, len(keys)):
        _refer(db, tree, keys, at)


def is_whole(db: sqlite3.Connection, digest: bytes, blobs: int) -> bool:
    """Whether a tree is live, and all of its blobs, of which it has so many different ones."""
    row = db.execute("SELECT id FROM tree WHERE digest = ? AND state = 0", (digest,)).fetchone()
    return row is not None and _live_refs(db, row[0]) == blobs


def _refer(db: sqlite3.Connection, tree: TreeRow, keys: Sequence[bytes], at: int) -> None:
    """Make the tree known, with all its references. Some may be there: it was being forgotten."""
    row = db.execute(
        "INSERT INTO tree(digest, sha256, files, size_bytes, manifest_bytes, blobs, verified_at)"
        " VALUES(?,?,?,?,?,?,?) ON CONFLICT(digest) DO UPDATE"
        " SET state = 0, sha256 = excluded.sha256, files = excluded.files,"
        " size_bytes = excluded.size_bytes, manifest_bytes = excluded.manifest_bytes,"
        " blobs = excluded.blobs, verified_at = excluded.verified_at RETURNING id",
        (
            tree.digest,
            tree.sha256,
            tree.files,
            tree.size_bytes,
            tree.manifest_bytes,
            tree.blobs,
            at,
        ),
    ).fetchone()
    count = 0
    for chunk in chunks(sorted(keys)):
        count += db.execute(
            "INSERT INTO ref(blob_id, tree_id) SELECT id, ? FROM blob"  # noqa: S608 - question marks
            f" WHERE state = 0 AND key IN ({marks(chunk)}) ON CONFLICT DO NOTHING",
            (row[0], *chunk),
        ).rowcount
    if count != len(keys) and _live_refs(db, row[0]) != len(keys):
        raise BlobsMissingError


def _live_refs(db: sqlite3.Connection, tree_id: int) -> int:
    (count,) = db.execute(
        "SELECT COUNT(*) FROM ref JOIN blob ON blob.id = ref.blob_id"
        " WHERE ref.tree_id = ? AND blob.state = ?",
        (tree_id, LIVE),
    ).fetchone()
    return int(count)


def has_tree(db: sqlite3.Connection, digest: bytes) -> bool:
    return (
        db.execute("SELECT 1 FROM tree WHERE digest = ? AND state = 0", (digest,)).fetchone()
        is not None
    )


def tree(db: sqlite3.Connection, digest: bytes) -> TreeRow | None:
    """Return what the records say of a tree, whatever its state."""
    row = db.execute("SELECT * FROM tree WHERE digest = ?", (bytes(digest),)).fetchone()
    if row is None:
        return None
    return TreeRow(
        row["digest"],
        row["sha256"],
        row["files"],
        row["size_bytes"],
        row["manifest_bytes"],
        row["blobs"],
    )


def is_attested(db: sqlite3.Connection, envelope_sha256: str) -> bool:
    """Whether an envelope counts: as the provenance of an artifact, or as a release statement."""
    return (
        db.execute(
            "SELECT 1 FROM attestation WHERE envelope_sha256 = ?"
            " UNION SELECT 1 FROM release_statement WHERE envelope_sha256 = ?",
            (envelope_sha256, envelope_sha256),
        ).fetchone()
        is not None
    )


def known(db: sqlite3.Connection, keys: Iterable[K]) -> set[K]:
    """Return those of the keys that have a row, whatever its state."""
    return {
        key
        for key in keys
        if db.execute("SELECT 1 FROM blob WHERE key = ?", (bytes(key),)).fetchone()
    }


def deleting(db: sqlite3.Connection) -> list[bytes]:
    """Return the keys of blobs whose deletion was begun. What something refers to is not deleted,
    whatever its state says.
    """
    rows = db.execute(
        "SELECT key FROM blob WHERE state = ?"
        " AND NOT EXISTS(SELECT 1 FROM ref WHERE ref.blob_id = blob.id)",
        (DELETING,),
    )
    return [row[0] for row in rows]


def forget(db: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    """Drop the rows of blobs whose deletion was begun."""
    db.executemany(
        "DELETE FROM blob WHERE key = ? AND state = ?", [(key, DELETING) for key in keys]
    )


def each_live(db: sqlite3.Connection) -> list[tuple[bytes, int]]:
    """Return key and size of all live blobs."""
    rows = db.execute("SELECT key, size_bytes FROM blob WHERE state = ?", (LIVE,))
    return [(row[0], row[1]) for row in rows]


def size_of_live(db: sqlite3.Connection, key: bytes) -> int | None:
    """Return the size of a blob; None when it is not live."""
    row = db.execute(
        "SELECT size_bytes FROM blob WHERE key = ? AND state = ?", (bytes(key), LIVE)
    ).fetchone()
    return None if row is None else int(row[0])


def each_key(db: sqlite3.Connection) -> set[bytes]:
    """Return the keys of all blobs, whatever their state."""
    return {row[0] for row in db.execute("SELECT key FROM blob")}


def each_tree(db: sqlite3.Connection) -> list[bytes]:
    """Return the digests of all live trees."""
    return [row[0] for row in db.execute("SELECT digest FROM tree WHERE state = ?", (LIVE,))]


def each_known_tree(db: sqlite3.Connection) -> list[bytes]:
    """Return the digests of all trees, whatever their state."""
    return [row[0] for row in db.execute("SELECT digest FROM tree")]


def each_attestation(db: sqlite3.Connection) -> list[tuple[str, str | None]]:
    """Return the name of each envelope, and the digest that it is about in text form.

    None instead of the digest: the tree was forgotten, or the statement was revoked, and it stays
    as history.
    """
    rows = db.execute(
        "SELECT envelope_sha256,"
        " CASE WHEN dropped_at IS NULL AND revoked = 0 THEN digest END AS digest"
        " FROM attestation JOIN artifact ON artifact.id = attestation.artifact_id"
    )
    return [(row[0], row[1]) for row in rows]


def chunks(values: Iterable[V]) -> Iterator[list[V]]:
    """Yield the values in lists that fit into one statement."""
    rest = iter(values)
    while chunk := list(islice(rest, _CHUNK_COUNT)):
        yield chunk


def marks(chunk: Sequence[object]) -> str:
    """A question mark for each value."""
    return ",".join("?" * len(chunk))
