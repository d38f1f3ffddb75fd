"""Orders to roll what ran before: by the statement that it was rolled with, while that counts."""

from __future__ import annotations

import sqlite3

from hooks.errors import RefusedError
from hooks.queueing import DeploymentOrder
from storage.model import ActorRef, Attestation, Environment, Release, Trigger
from storage.records import attestations, deployments


def again(
    db: sqlite3.Connection,
    release: Release,
    target: Environment,
    trigger: Trigger,
    actor: ActorRef,
    *,
    config_version: int | None = None,
) -> DeploymentOrder:
    """The order to roll what `release` ran; where its statement was revoked, by another one.

    Raises:
        RefusedError: `artifact.revoked`: there is no other.
    """
    return DeploymentOrder(
        target,
        release.artifact_id,
        statement_of(db, release),
        trigger,
        actor,
        release.ref,
        release.commit,
        config_version,
    )


def statement_of(db: sqlite3.Connection, release: Release) -> str:
    """The envelope of the statement to roll `release` by; raises as `again` does."""
    deployment = deployments.get(db, release.deployment_id)
    assert deployment is not None, "a release has its deployment"
    made_by = attestations.by_envelope(db, deployment.envelope_sha256)
    if made_by is None or not made_by.is_revoked:
        return deployment.envelope_sha256
    made_by = attestations.best(db, release.site_id, release.artifact_id) or made_by
    refuse_revoked(made_by)
    return made_by.envelope_sha256


def refuse_revoked(made_by: Attestation) -> None:
    """Raises RefusedError `artifact.revoked` for a statement that proves nothing any more."""
    if made_by.is_revoked:
        raise RefusedError(
            "artifact.revoked",
            f"The key that vouched for {made_by.artifact_id} was revoked: build its commit "
            f"{made_by.commit[:12]} again, or have the server's operator vouch for it.",
        )
