"""Artifacts, and the signed statements that say which build made them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from storage.model import Artifact, Attestation, SiteArtifact
from storage.records import attestations
from storage.records.blobs import chunks, marks
from storage.records.damage import DAMAGED_ARTIFACTS, is_whole
from storage.records.statements import insert


@dataclass(frozen=True, slots=True)
class ArtifactPage:
    """`newest` and `last` place the next page: builds newer than `newest` stay out of it."""

    items: tuple[SiteArtifact, ...]
    newest: str | None
    last: str | None
    has_more: bool


def _artifact(row: sqlite3.Row) -> Artifact:
    return Artifact(
        row["id"],
        row["digest"],
        row["manifest_sha256"],
        row["files"],
        row["size_bytes"],
        row["created_at"],
        row["expired_at"],
        row["dropped_at"],
    )


def add(db: sqlite3.Connection, artifact: Artifact) -> None:
    """Keep the artifact. One that is known already stays as it is; if it had expired or been
    dropped, it is back: the caller has put its tree in the store in this very transaction.
    """
    db.execute(
        "INSERT INTO artifact(id, digest, manifest_sha256, files, size_bytes, created_at)"
        " VALUES(?,?,?,?,?,?) ON CONFLICT(id) DO UPDATE"
        " SET expired_at = NULL, dropped_at = NULL",
        (
            artifact.id,
            artifact.digest,
            artifact.manifest_sha256,
            artifact.files,
            artifact.size_bytes,
            artifact.created_at,
        ),
    )


def get(db: sqlite3.Connection, artifact_id: str) -> Artifact | None:
    row = db.execute("SELECT * FROM artifact WHERE id = ?", (artifact_id,)).fetchone()
    return None if row is None else _artifact(row)


def has_profile(db: sqlite3.Connection, site_id: str, profile: str) -> bool:
    """Whether a build of the site with this profile gave an artifact that is known still."""
    row = db.execute(
        "SELECT 1 FROM attestation WHERE site_id = ? AND profile = ? LIMIT 1", (site_id, profile)
    ).fetchone()
    return row is not None


def attest(db: sqlite3.Connection, attestation: Attestation) -> None:
    """Add a statement as the newest: its `sequence` is given here."""
    row = db.execute("SELECT COALESCE(MAX(sequence), 0) AS newest FROM attestation").fetchone()
    insert(
        db,
        "attestation",
        {
            "envelope_sha256": attestation.envelope_sha256,
            "artifact_id": attestation.artifact_id,
            "site_id": attestation.site_id,
            "build_id": attestation.build_id,
            "key_id": attestation.key_id,
            "signature": attestation.signature,
            "profile": attestation.profile,
            "ref": attestation.ref,
            "commit_id": attestation.commit,
            "created_at": attestation.created_at,
            "sequence": row["newest"] + 1,
            "revoked": int(attestation.is_revoked),
            "verified_at": attestation.created_at,
        },
    )


def of_site(db: sqlite3.Connection, site_id: str, artifact_id: str) -> SiteArtifact | None:
    """The artifact with the statement of this site to go by, or None when no build here made it.

    Also one that has expired or was dropped, as long as a statement of it is kept.
    """
    made_by = attestations.best(db, site_id, artifact_id)
    return None if made_by is None else _with_artifact(db, made_by)


def page(
    db: sqlite3.Connection,
    site_id: str,
    *,
    newest: str | None,
    last: str | None,
    limit_count: int,
) -> ArtifactPage:
    """The site's artifacts that can be deployed by their newest build, as the list stood when
    `newest` was newest.

    A first page has neither bound. An artifact that is built again between two pages keeps its
    place in the walk, so that nothing is missed or seen twice.
    """
    if newest is None:
        row = db.execute(
            "SELECT MAX(build_id) AS newest FROM attestation WHERE site_id = ?", (site_id,)
        ).fetchone()
        newest = row["newest"]
    if newest is None:
        return ArtifactPage((), None, None, has_more=False)
    rows = db.execute(
        "SELECT * FROM attestation a WHERE site_id = ? AND build_id <= ? AND build_id < ?"
        " AND NOT EXISTS(SELECT 1 FROM attestation b WHERE b.site_id = a.site_id"
        " AND b.artifact_id = a.artifact_id AND b.build_id > a.build_id AND b.build_id <= ?)"
        " AND EXISTS(SELECT 1 FROM artifact WHERE id = a.artifact_id AND expired_at IS NULL)"
        " ORDER BY build_id DESC LIMIT ?",
        (site_id, newest, last or "build_~", newest, limit_count + 1),
    ).fetchall()
    kept = [attestations.read(row) for row in rows[:limit_count]]
    items = tuple(_with_artifact(db, _best(db, made_by)) for made_by in kept)
    end = kept[-1].build_id if kept else None
    return ArtifactPage(items, newest, end, has_more=len(rows) > limit_count)


def available(db: sqlite3.Connection, site_id: str, artifact_ids: Iterable[str]) -> set[str]:
    """Return those of the artifacts that a site can deploy: kept, whole, and vouched for."""
    found: set[str] = set()
    for chunk in chunks(set(artifact_ids)):
        rows = db.execute(
            "SELECT id FROM artifact WHERE expired_at IS NULL"  # noqa: S608 - question marks
            f" AND id IN ({marks(chunk)}) AND id NOT IN ({DAMAGED_ARTIFACTS})"
            " AND EXISTS(SELECT 1 FROM attestation"
            " WHERE artifact_id = artifact.id AND site_id = ? AND revoked = 0)",
            (*chunk, site_id),
        )
        found.update(row[0] for row in rows)
    return found


def _best(db: sqlite3.Connection, made_by: Attestation) -> Attestation:
    """The statement to go by of an artifact: another one when this is revoked."""
    if not made_by.is_revoked:
        return made_by
    return attestations.best(db, made_by.site_id, made_by.artifact_id) or made_by


def _with_artifact(db: sqlite3.Connection, attestation: Attestation) -> SiteArtifact:
    artifact = get(db, attestation.artifact_id)
    assert artifact is not None, "kept by a foreign key"
    return SiteArtifact(artifact, attestation, is_damaged=not is_whole(db, artifact.digest))
