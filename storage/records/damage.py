"""Damage: which parts of the store were found not to be what they must be, and whom that hurts.

A damaged blob or tree has the state 3, and counts as absent: whoever takes its contents in again
mends it. What is written beside says why and since when.
"""
# Constants and question marks are all that is put into statements.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from storage.digest import Digest
from storage.parts import Part, PartKind
from storage.records import unsecured
from storage.records.blobs import CORRUPT, LIVE, is_attested
from storage.records.garbage import TREE_NAME

# The artifacts with a damaged blob or manifest. There are few such, and indexes of states but 0.
DAMAGED_ARTIFACTS = (
    "SELECT id FROM artifact WHERE digest IN ("
    f"SELECT {TREE_NAME} FROM tree WHERE tree.state <> 0 AND tree.state = 3"
    f" UNION SELECT {TREE_NAME} FROM blob JOIN ref ON ref.blob_id = blob.id"
    " JOIN tree ON tree.id = ref.tree_id WHERE blob.state <> 0 AND blob.state = 3)"
)


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged part. `size_bytes` is that of a blob; `found_at` is None where nobody wrote it."""

    part: Part
    size_bytes: int | None
    why: str
    found_at: int | None


@dataclass(frozen=True, slots=True)
class Hurt:
    """An artifact that a damaged part belongs to, and what that means.

    Attributes:
        sites: The names of those that built it.
        running: The environments whose current release it is, as `site/environment`.
        releases: How many releases could not be brought back.
        commits: Of which commits it was built, newest first, as `site commit`.
    """

    artifact_id: str
    sites: tuple[str, ...]
    running: tuple[str, ...]
    releases: int
    commits: tuple[str, ...]


def note(db: sqlite3.Connection, part: Part, why: str, at: int) -> None:
    """From here on the part counts as absent."""
    if part.kind is PartKind.BLOB:
        db.execute(
            "UPDATE blob SET state = ? WHERE key = ? AND state = ?",
            (CORRUPT, bytes(part.key), LIVE),
        )
    elif part.kind is PartKind.TREE:
        db.execute(
            "UPDATE tree SET state = ? WHERE digest = ? AND state = ?",
            (CORRUPT, bytes(part.digest), LIVE),
        )
    else:  # what equal inputs gave is proven by it no more
        db.execute("DELETE FROM build_memo WHERE envelope_sha256 = ?", (part.name,))
    db.execute(
        "INSERT INTO damage(kind, name, why, found_at) VALUES(?,?,?,?) ON CONFLICT(kind, name)"
        " DO UPDATE SET why = excluded.why",
        (part.kind.value, part.name, why, at),
    )
    unsecured.forget(db, [part])


def explain(db: sqlite3.Connection, part: Part, more: str) -> None:
    """Say more of why a part is damaged still; done again it changes nothing."""
    db.execute(
        "UPDATE damage SET why = why || '; ' || ? WHERE kind = ? AND name = ?"
        " AND instr(why, ?) = 0",
        (more, part.kind.value, part.name, more),
    )


def heal(db: sqlite3.Connection, part: Part, at: int) -> None:
    """The part is there again: its file lies in its place, durably, and was read."""
    if part.kind is PartKind.BLOB:
        db.execute(
            "UPDATE blob SET state = ?, verified_at = ? WHERE key = ? AND state = ?",
            (LIVE, at, bytes(part.key), CORRUPT),
        )
    elif part.kind is PartKind.TREE:
        db.execute(
            "UPDATE tree SET state = ?, verified_at = ? WHERE digest = ? AND state = ?",
            (LIVE, at, bytes(part.digest), CORRUPT),
        )
    _forget(db, [part])


def every(db: sqlite3.Connection) -> list[Damage]:
    """All damage there is, by kind and name."""
    written = {
        Part(PartKind(row["kind"]), row["name"]): (row["why"], row["found_at"])
        for row in db.execute("SELECT * FROM damage")
    }
    found: dict[Part, int | None] = {}
    for row in db.execute("SELECT key, size_bytes FROM blob WHERE state = ?", (CORRUPT,)):
        found[Part.of_blob(row["key"])] = row["size_bytes"]
    for row in db.execute("SELECT digest FROM tree WHERE state = ?", (CORRUPT,)):
        found[Part.of_tree(row["digest"])] = None
    for part in written:
        if part.kind is PartKind.ENVELOPE and is_attested(db, part.name):
            found[part] = None
    unknown = ("was found damaged", None)
    return [
        Damage(part, size_bytes, *written.get(part, unknown))
        for part, size_bytes in sorted(found.items(), key=lambda item: (item[0].kind, item[0].name))
    ]


def is_damaged(db: sqlite3.Connection, part: Part) -> bool:
    if part.kind is PartKind.BLOB:
        found = db.execute(
            "SELECT 1 FROM blob WHERE key = ? AND state = ?", (bytes(part.key), CORRUPT)
        )
    elif part.kind is PartKind.TREE:
        found = db.execute(
            "SELECT 1 FROM tree WHERE digest = ? AND state = ?", (bytes(part.digest), CORRUPT)
        )
    else:
        found = db.execute(
            "SELECT 1 FROM damage WHERE kind = ? AND name = ?", (part.kind.value, part.name)
        )
    is_written = found.fetchone() is not None
    return is_written and (part.kind is not PartKind.ENVELOPE or is_attested(db, part.name))


def tidy(db: sqlite3.Connection) -> None:
    """Forget what is no damage any more: it was mended by whoever took it in again, or is gone."""
    damaged = {damage.part for damage in every(db)}
    rows = db.execute("SELECT kind, name FROM damage").fetchall()
    _forget(db, {Part(PartKind(row["kind"]), row["name"]) for row in rows} - damaged)


def is_whole(db: sqlite3.Connection, digest: str) -> bool:
    """Whether nothing of the artifact with that digest was found damaged."""
    row = db.execute(
        f"SELECT 1 FROM artifact WHERE digest = ? AND id IN ({DAMAGED_ARTIFACTS})", (digest,)
    ).fetchone()
    return row is None


def trees_of(db: sqlite3.Connection, part: Part) -> list[Digest]:
    """The trees that a blob or a manifest belongs to, whatever their state."""
    if part.kind is PartKind.TREE:
        return [part.digest]
    if part.kind is PartKind.ENVELOPE:
        return [Digest.parse(digest) for digest in _digests_of(db, part.name)]
    rows = db.execute(
        "SELECT tree.digest FROM blob JOIN ref ON ref.blob_id = blob.id"
        " JOIN tree ON tree.id = ref.tree_id WHERE blob.key = ? ORDER BY tree.id",
        (bytes(part.key),),
    )
    return [Digest(row[0]) for row in rows]


def hurt(db: sqlite3.Connection, digest: Digest) -> Hurt | None:
    """What it means that a tree is damaged; None when no artifact that is kept has it."""
    row = db.execute(
        "SELECT id FROM artifact WHERE digest = ? AND dropped_at IS NULL", (str(digest),)
    ).fetchone()
    if row is None:
        return None
    built = db.execute(
        "SELECT site.name, attestation.commit_id FROM attestation"
        " JOIN site ON site.id = attestation.site_id WHERE attestation.artifact_id = ?"
        " ORDER BY attestation.sequence DESC",
        (row["id"],),
    ).fetchall()
    running = db.execute(
        "SELECT site.name || '/' || environment.slug AS name FROM release"
        " JOIN environment ON environment.id = release.env_id"
        " JOIN site ON site.id = environment.site_id"
        " WHERE release.artifact_id = ? AND release.is_current = 1 ORDER BY name",
        (row["id"],),
    ).fetchall()
    (releases,) = db.execute(
        "SELECT COUNT(*) FROM release WHERE artifact_id = ?", (row["id"],)
    ).fetchone()
    return Hurt(
        artifact_id=row["id"],
        sites=tuple(sorted({one["name"] for one in built})),
        running=tuple(one["name"] for one in running),
        releases=releases,
        commits=tuple(dict.fromkeys(f"{one['name']} {one['commit_id']}" for one in built)),
    )


def caches_of(db: sqlite3.Connection, digest: Digest) -> list[str]:
    """The sites whose build caches have a tree, by name."""
    rows = db.execute(
        "SELECT DISTINCT site.name FROM build_cache JOIN site ON site.id = build_cache.site_id"
        " WHERE tree_digest = ? ORDER BY site.name",
        (bytes(digest),),
    )
    return [row[0] for row in rows]


def drop_caches(db: sqlite3.Connection) -> int:
    """Let the build caches go that are damaged: the next build makes them anew. Say how many."""
    return db.execute(
        "DELETE FROM build_cache WHERE tree_digest IN (SELECT digest FROM tree WHERE state = 3"
        " OR id IN (SELECT ref.tree_id FROM blob JOIN ref ON ref.blob_id = blob.id"
        " WHERE blob.state = 3))"
    ).rowcount


def _digests_of(db: sqlite3.Connection, envelope_sha256: str) -> list[str]:
    rows = db.execute(
        "SELECT artifact.digest FROM attestation JOIN artifact"
        " ON artifact.id = attestation.artifact_id WHERE attestation.envelope_sha256 = ?"
        " UNION SELECT artifact.digest FROM release_statement JOIN deployment"
        " ON deployment.id = release_statement.deployment_id"
        " JOIN artifact ON artifact.id = deployment.artifact_id"
        " WHERE release_statement.envelope_sha256 = ?",
        (envelope_sha256, envelope_sha256),
    )
    return [row[0] for row in rows]


def _forget(db: sqlite3.Connection, parts: Iterable[Part]) -> None:
    db.executemany(
        "DELETE FROM damage WHERE kind = ? AND name = ?",
        [(part.kind.value, part.name) for part in parts],
    )
