"""The build memo: which statement tells what equal inputs of a site gave.

A row goes with its statement, and counts only while the artifact can be deployed. What previews
alone may have had a hand in counts for previews alone.
"""

from __future__ import annotations

import sqlite3

from storage.model import Attestation
from storage.records import attestations
from storage.records.damage import DAMAGED_ARTIFACTS


def put(
    db: sqlite3.Connection,
    site_id: str,
    inputs: str,
    toolchain: str,
    envelope_sha256: str,
    *,
    previews_only: bool,
) -> None:
    """Remember what the inputs gave, instead of what they gave before."""
    db.execute(
        "INSERT INTO build_memo(site_id, inputs, toolchain, previews_only, envelope_sha256)"
        " VALUES(?, ?, ?, ?, ?) ON CONFLICT(site_id, inputs, toolchain, previews_only)"
        " DO UPDATE SET envelope_sha256 = excluded.envelope_sha256",
        (site_id, inputs, toolchain, int(previews_only), envelope_sha256),
    )


def find(
    db: sqlite3.Connection, site_id: str, inputs: str, toolchain: str, *, for_preview: bool
) -> Attestation | None:
    """The statement of the artifact that the inputs gave; None when it cannot be deployed.

    For a preview what counts everywhere comes before what counts for previews alone.
    """
    row = db.execute(
        "SELECT attestation.* FROM build_memo JOIN attestation"  # noqa: S608 - a constant
        " ON attestation.envelope_sha256 = build_memo.envelope_sha256"
        " JOIN artifact ON artifact.id = attestation.artifact_id"
        " WHERE build_memo.site_id = ? AND inputs = ? AND toolchain = ? AND previews_only <= ?"
        " AND revoked = 0 AND expired_at IS NULL AND dropped_at IS NULL"
        f" AND artifact.id NOT IN ({DAMAGED_ARTIFACTS}) ORDER BY previews_only LIMIT 1",
        (site_id, inputs, toolchain, int(for_preview)),
    ).fetchone()
    return None if row is None else attestations.read(row)
