"""Artifacts, and the signed statements that say which build made them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from storage.model import Artifact, Attestation, Environment, SiteArtifact
from storage.records import vouching
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


def of_environment(
    db: sqlite3.Connection,
    environment: Environment,
    artifact_id: str,
    *,
    only_its_own: bool = False,
) -> SiteArtifact | None:
    """The artifact with the statement that the environment goes by, or None when no build of its
    site made it; `only_its_own`: when nothing on the environment itself ever had to do with it.

    Also one that has expired or was dropped, as long as a statement of it is kept.
    """
    found = vouching.best(db, environment, artifact_id, only_its_own=only_its_own)
    return None if found is None else _with_artifact(db, found)


def page(
    db: sqlite3.Connection,
    environment: Environment,
    *,
    only_its_own: bool = False,
    newest: str | None,
    last: str | None,
    limit_count: int,
) -> ArtifactPage:
    """The artifacts that can be deployed onto an environment by their newest build, as the list
    stood when `newest` was newest. `only_its_own`: as for `of_environment`.

    A first page has neither bound. An artifact that is built again between two pages keeps its
    place in the walk, so that nothing is missed or seen twice.
    """
    if newest is None:
        row = db.execute(
            "SELECT MAX(build_id) AS newest FROM attestation WHERE site_id = ?",
            (environment.site_id,),
        ).fetchone()
        newest = row["newest"]
    if newest is None:
        return ArtifactPage((), None, None, has_more=False)
    found = vouching.listed(
        db,
        environment,
        only_its_own=only_its_own,
        newest=newest,
        before=last,
        limit_count=limit_count + 1,
    )
    kept = found[:limit_count]
    shown = [
        of_environment(db, environment, made_by.artifact_id, only_its_own=only_its_own)
        for made_by in kept
    ]
    items = tuple(one for one in shown if one is not None)
    end = kept[-1].build_id if kept else None
    return ArtifactPage(items, newest, end, has_more=len(found) > limit_count)


def available(db: sqlite3.Connection, artifact_ids: Iterable[str]) -> set[str]:
    """Return those of the artifacts whose files are all there: kept, and whole."""
    found: set[str] = set()
    for chunk in chunks(set(artifact_ids)):
        rows = db.execute(
            "SELECT id FROM artifact WHERE expired_at IS NULL"  # noqa: S608 - question marks
            f" AND id IN ({marks(chunk)}) AND id NOT IN ({DAMAGED_ARTIFACTS})",
            chunk,
        )
        found.update(row[0] for row in rows)
    return found


def _with_artifact(db: sqlite3.Connection, found: vouching.Vouching) -> SiteArtifact:
    artifact = get(db, found.attestation.artifact_id)
    assert artifact is not None, "kept by a foreign key"
    return SiteArtifact(
        artifact,
        found.attestation,
        is_damaged=not is_whole(db, artifact.digest),
        is_trusted=found.is_trusted,
    )
