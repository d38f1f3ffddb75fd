"""The index: rows of blobs, trees, references and statements, made again from what files say."""
# Constants and question marks are all that is put into statements.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from storage.blobs import blob_sizes
from storage.digest import Digest
from storage.manifest import Manifest
from storage.model import Artifact, Attestation
from storage.parts import Part
from storage.records import artifacts, damage
from storage.records.blobs import CORRUPT, DELETING, LIVE, TreeRow, chunks, marks
from storage.records.garbage import references

K = TypeVar("K", bound=bytes)


def reindex(db: sqlite3.Connection) -> None:
    """Make the database's own indexes again."""
    db.execute("REINDEX")


def wanted_trees(db: sqlite3.Connection) -> list[Digest]:
    """The trees that should be known: those of artifacts and caches that are kept, and those that
    have a row.
    """
    found = {
        Digest(row[0])
        for row in db.execute(
            "SELECT digest FROM tree WHERE state <> ? UNION SELECT tree_digest FROM build_cache",
            (DELETING,),
        )
    }
    kept = db.execute("SELECT digest FROM artifact WHERE dropped_at IS NULL")
    return sorted(found | {Digest.parse(row[0]) for row in kept})


def is_wanted(db: sqlite3.Connection, digest: Digest) -> bool:
    """As `wanted_trees`, of one."""
    row = db.execute(
        "SELECT 1 FROM tree WHERE digest = ? AND state <> ?"
        " UNION SELECT 1 FROM build_cache WHERE tree_digest = ?"
        " UNION SELECT 1 FROM artifact WHERE digest = ? AND dropped_at IS NULL",
        (bytes(digest), DELETING, bytes(digest), str(digest)),
    ).fetchone()
    return row is not None


def put_tree(
    db: sqlite3.Connection, tree: TreeRow, sizes: Mapping[K, int], whole: set[bytes], at: int
) -> bool:
    """Make the rows of a tree, its blobs and its references what its manifest says.

    `sizes` of all of its blobs; `whole` are those that were read and lie there. Others keep the
    state that they have, and are live when they have none: whoever condemns them looks again.

    Returns:
        Whether anything changed.
    """
    before = db.total_changes
    db.executemany(
        "INSERT INTO blob(key, size_bytes, state, verified_at) VALUES(?,?,?,?)"
        " ON CONFLICT(key) DO UPDATE SET size_bytes = excluded.size_bytes"
        " WHERE blob.size_bytes <> excluded.size_bytes",
        [(bytes(key), size, LIVE, at) for key, size in sizes.items()],
    )
    db.executemany(
        "UPDATE blob SET state = ?, verified_at = ? WHERE key = ? AND state <> ?",
        [(LIVE, at, bytes(key), LIVE) for key in whole],
    )
    # A deletion that broke off: what the tree refers to is not to be forgotten.
    db.executemany(
        "UPDATE blob SET state = ? WHERE key = ? AND state = ?",
        [(CORRUPT, bytes(key), DELETING) for key in sizes],
    )
    _put_facts(db, tree, at)
    _put_references(db, tree.digest, set(map(bytes, sizes)))
    return db.total_changes != before


def heal_tree(db: sqlite3.Connection, tree: TreeRow, sizes: Mapping[K, int], at: int) -> None:
    """A damaged tree is there again: its manifest lies in its place, durably, and was read.

    It refers to what the manifest says, whatever was lost of that. Blobs without a row count as
    damaged: whoever mends looks at their places first.
    """
    db.executemany(
        "INSERT INTO blob(key, size_bytes, state) VALUES(?,?,?) ON CONFLICT(key) DO UPDATE"
        " SET size_bytes = excluded.size_bytes, state = excluded.state WHERE blob.state = ?",
        [(bytes(key), size, CORRUPT, DELETING) for key, size in sizes.items()],
    )
    _put_facts(db, tree, at)
    _put_references(db, tree.digest, set(map(bytes, sizes)))
    damage.heal(db, Part.of_tree(tree.digest), at)


def miss_tree(db: sqlite3.Connection, digest: Digest) -> None:
    """See that a tree without a readable manifest has a row, so that it can be called damaged."""
    db.execute(
        "INSERT INTO tree(digest, sha256, files, size_bytes, manifest_bytes, state)"
        " SELECT ?, ?, files, size_bytes, 0, ? FROM artifact WHERE digest = ?"
        " ON CONFLICT(digest) DO NOTHING",
        (bytes(digest), b"", LIVE, str(digest)),
    )


def add_statements(db: sqlite3.Connection, found: Iterable[tuple[Artifact, Attestation]]) -> int:
    """Know statements of provenance again, in the order of their builds; say how many.

    Only those of builds that the records know to have given that artifact: an envelope that was
    left by a crash proves nothing that ever counted.
    """
    count = 0
    for artifact, attestation in sorted(found, key=lambda item: item[1].build_id):
        site_id = site_of_lost(
            db, attestation.build_id, artifact_id=artifact.id, commit=attestation.commit
        )
        if site_id is None:
            continue
        if artifacts.get(db, artifact.id) is None:
            artifacts.add(db, artifact)
        artifacts.attest(db, replace(attestation, site_id=site_id))
        count += 1
    return count


def lost_artifacts(db: sqlite3.Connection, artifact_ids: Iterable[str]) -> set[str]:
    """Those of the artifacts that builds gave, and that have no row: it was lost."""
    found: set[str] = set()
    for chunk in chunks(artifact_ids):
        rows = db.execute(
            f"SELECT DISTINCT artifact_id FROM build WHERE artifact_id IN ({marks(chunk)})"
            " AND artifact_id NOT IN (SELECT id FROM artifact)",
            chunk,
        )
        found.update(row[0] for row in rows)
    return found


def site_of_lost(
    db: sqlite3.Connection, build_id: str, *, artifact_id: str, commit: str
) -> str | None:
    """The site of a build that gave this artifact from this commit, and whose statement is not
    known, though the artifact was not dropped: it was lost. None when it was not.
    """
    row = db.execute(
        "SELECT site_id FROM build WHERE id = ? AND artifact_id = ? AND commit_id = ?"
        " AND cached = 0 AND NOT EXISTS(SELECT 1 FROM attestation WHERE build_id = build.id)"
        " AND NOT EXISTS(SELECT 1 FROM artifact WHERE artifact.id = build.artifact_id"
        "  AND artifact.dropped_at IS NOT NULL)",
        (build_id, artifact_id, commit),
    ).fetchone()
    return None if row is None else str(row["site_id"])


def row_of(manifest: Manifest) -> TreeRow:
    """What the records say of a tree."""
    return TreeRow(
        digest=manifest.digest,
        sha256=bytes.fromhex(manifest.sha256),
        files=manifest.files,
        size_bytes=manifest.size_bytes,
        manifest_bytes=len(manifest.data),
        blobs=len(blob_sizes(manifest)),
    )


def _put_facts(db: sqlite3.Connection, tree: TreeRow, at: int) -> None:
    """Make the rows of a tree, and of its artifact, say what its manifest does: it is live."""
    facts = (tree.sha256, tree.files, tree.size_bytes, tree.manifest_bytes, tree.blobs)
    db.execute(
        "INSERT INTO tree(digest, sha256, files, size_bytes, manifest_bytes, blobs, state,"
        " verified_at) VALUES(?,?,?,?,?,?,?,?) ON CONFLICT(digest) DO UPDATE"
        " SET sha256 = excluded.sha256, files = excluded.files, size_bytes = excluded.size_bytes,"
        " manifest_bytes = excluded.manifest_bytes, blobs = excluded.blobs, state = excluded.state"
        " WHERE (tree.sha256, tree.files, tree.size_bytes, tree.manifest_bytes, tree.state)"
        " <> (?,?,?,?,?) OR tree.blobs IS NULL OR tree.blobs <> ?",
        (bytes(tree.digest), *facts, LIVE, at, *facts[:-1], LIVE, tree.blobs),
    )
    names = (tree.files, tree.size_bytes, tree.sha256.hex())
    db.execute(
        "UPDATE artifact SET files = ?, size_bytes = ?, manifest_sha256 = ?"
        " WHERE digest = ? AND (files, size_bytes, manifest_sha256) <> (?,?,?)",
        (*names, str(Digest(tree.digest)), *names),
    )


def _put_references(db: sqlite3.Connection, digest: bytes, keys: set[bytes]) -> None:
    known = references(db, digest)
    (tree_id,) = db.execute("SELECT id FROM tree WHERE digest = ?", (bytes(digest),)).fetchone()
    for chunk in chunks(known - keys):
        db.execute(
            "DELETE FROM ref WHERE tree_id = ? AND blob_id IN"
            f" (SELECT id FROM blob WHERE key IN ({marks(chunk)}))",
            (tree_id, *chunk),
        )
    for chunk in chunks(keys - known):
        db.execute(
            "INSERT INTO ref(blob_id, tree_id) SELECT id, ? FROM blob WHERE key IN"
            f" ({marks(chunk)}) ON CONFLICT DO NOTHING",
            (tree_id, *chunk),
        )
