"""Orders to roll what ran before: by the statement that it was rolled with, while that counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from hooks.errors import RefusedError
from hooks.queueing import DeploymentOrder
from storage.model import (
    ActorRef,
    Attestation,
    Deployment,
    Environment,
    EnvironmentKind,
    Release,
    Trigger,
)
from storage.records import artifacts, attestations, deployments, releases, vouching


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
        RefusedError: `artifact.revoked`: there is no other that the target trusts.
    """
    return DeploymentOrder(
        target,
        release.artifact_id,
        statement_of(db, release, target),
        trigger,
        actor,
        release.ref,
        release.commit,
        config_version,
    )


def statement_of(db: sqlite3.Connection, release: Release, target: Environment) -> str:
    """The envelope of the statement to roll `release` by; raises as `again` does."""
    deployment = deployments.get(db, release.deployment_id)
    assert deployment is not None, "a release has its deployment"
    return standing(db, deployment, target)


def standing(db: sqlite3.Connection, deployment: Deployment, target: Environment) -> str:
    """The envelope of the statement to go by on `target` for what a deployment rolled: its own,
    whoever made that, since it was named; else, where that was revoked, one that is trusted there.
    """
    made_by = attestations.by_envelope(db, deployment.envelope_sha256)
    if made_by is None or not made_by.is_revoked:
        return deployment.envelope_sha256
    other = vouching.best(db, target, deployment.artifact_id)
    if other is not None and other.is_trusted:
        made_by = other.attestation
    refuse_revoked(made_by)
    return made_by.envelope_sha256


def can_run_again(
    db: sqlite3.Connection, environment: Environment, ran: Iterable[Release]
) -> set[str]:
    """The ids of those releases of an environment that can be rolled back to: what they ran is kept
    and whole, and there is a statement to roll it by. Their config may be gone: then with another.
    """
    asked = tuple(ran)
    there = artifacts.available(db, [release.artifact_id for release in asked])
    in_doubt = releases.by_revoked_statements(db, [release.id for release in asked])
    return {
        release.id
        for release in asked
        if release.artifact_id in there
        and (release.id not in in_doubt or _has_statement(db, release, environment))
    }


def _has_statement(db: sqlite3.Connection, release: Release, target: Environment) -> bool:
    try:
        statement_of(db, release, target)
    except RefusedError:
        return False
    return True


def refuse_previews_word(environment: Environment, made_by: Attestation) -> None:
    """Raises RefusedError `artifact.previews_only` where an environment is to run what previews
    alone say how to run: whoever may push to a preview could mean production by it.
    """
    if environment.kind is not EnvironmentKind.PREVIEW:
        raise RefusedError(
            "artifact.previews_only",
            f"Only previews built {made_by.artifact_id}: promote the preview that runs it, or "
            f"build its commit {made_by.commit[:12]} for {environment.slug}.",
        )


def refuse_revoked(made_by: Attestation) -> None:
    """Raises RefusedError `artifact.revoked` for a statement that proves nothing any more."""
    if made_by.is_revoked:
        raise RefusedError(
            "artifact.revoked",
            f"The key that vouched for {made_by.artifact_id} was revoked: build its commit "
            f"{made_by.commit[:12]} again, or have the server's operator vouch for it.",
        )
