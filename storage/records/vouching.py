"""Which statement speaks for an artifact on an environment.

The id of an artifact covers its files alone. How they run stands in the statement, and whoever may
push to one preview can have a statement made for files that other environments have. So trust goes
before age: what an environment's own builds gave, or those for environments that are no previews,
comes before what previews alone say, however new that is.
"""
# The queries are made of constants and of names of ours.
# ruff: noqa: S608

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.model import Attestation, Environment, EnvironmentKind
from storage.records import attestations

# Of one artifact that are weighed: the newest of all; of those that builds gave whose word counts
# here, what these gave last; and so of those that were to be deployed where that counts.
STATEMENTS_MAX = 1000
# Of a site that are walked through for a page of a list, before those are looked up that can count.
WALKED_MAX = 300

_IS_KEPT = "EXISTS(SELECT 1 FROM artifact WHERE id = m.artifact_id AND expired_at IS NULL)"


@dataclass(frozen=True, slots=True)
class Vouching:
    """A statement as an environment sees it.

    `is_trusted`: a build for the environment gave it, or one for an environment that is no preview;
    or what the environment runs goes by it, or went on one that is no preview.
    """

    attestation: Attestation
    is_trusted: bool


@dataclass(frozen=True, slots=True)
class Affected:
    """An environment whose current release no statement vouches for that counts there."""

    site: str
    environment: str
    artifact_id: str
    release_id: str


def ranked(
    db: sqlite3.Connection,
    environment: Environment,
    artifact_id: str,
    *,
    only_its_own: bool = False,
    limit_count: int = STATEMENTS_MAX,
) -> list[Vouching]:
    """The statements about an artifact in the order in which the environment goes by them.

    Those that are trusted come first, and of these the ones that are not revoked; then what was
    given last. `only_its_own`: of those that its builds gave, or that were to be deployed on it.
    Of very many only some are weighed, but what previews say crowds out nothing that is trusted.
    """
    rows = db.execute(
        f"SELECT a.*, CASE WHEN {_is_its_own('a')} THEN 0 WHEN {trusted('a', ':env')} THEN 1"
        " ELSE 2 END AS distance,"
        f" COALESCE((SELECT MAX(b.id) {_given('a')}"
        "  AND (e.id = :env OR e.kind <> 'preview')), a.build_id) AS given_by"
        f" FROM ({_weighed()}) weighed"
        " CROSS JOIN attestation a ON a.envelope_sha256 = weighed.envelope_sha256"
        " WHERE a.site_id = :site AND a.artifact_id = :artifact"
        f" AND (:own = 0 OR {_is_known('a')})"
        " ORDER BY distance = 2, a.revoked, distance, given_by DESC LIMIT :limit",
        {
            **bound(environment, only_its_own=only_its_own),
            "artifact": artifact_id,
            "weighed": STATEMENTS_MAX,
            "limit": limit_count,
        },
    )
    return [Vouching(attestations.read(row), row["distance"] < 2) for row in rows]


def best(
    db: sqlite3.Connection,
    environment: Environment,
    artifact_id: str,
    *,
    only_its_own: bool = False,
) -> Vouching | None:
    """The statement that the environment goes by; None when it knows of none.

    One that is revoked only where there is no other, or none but what previews say.
    """
    found = ranked(db, environment, artifact_id, only_its_own=only_its_own, limit_count=1)
    return found[0] if found else None


def listed(
    db: sqlite3.Connection,
    environment: Environment,
    *,
    only_its_own: bool,
    newest: str,
    before: str | None,
    limit_count: int,
) -> list[Attestation]:
    """Of each artifact that is kept the newest statement, as of the build `newest`, by which it can
    be deployed onto the environment; those of before the build `before`, newest first.

    Where much lies between that does not count, as pushes to previews do on production, it is not
    walked through: there are fewer that builds gave nearby, or that were to be deployed there.
    """
    bounds: dict[str, str | int] = {
        **bound(environment, only_its_own=only_its_own),
        "newest": newest,
        "before": before or "build_~",
        "limit": limit_count,
        "end": "",
    }
    if only_its_own or environment.kind is not EnvironmentKind.PREVIEW:
        end = db.execute(
            "SELECT build_id FROM attestation WHERE site_id = :site AND build_id <= :newest"
            " AND build_id < :before ORDER BY build_id DESC LIMIT 1 OFFSET :walked",
            {**bounds, "walked": WALKED_MAX},
        ).fetchone()
        if end is not None:
            found = db.execute(_walk(), {**bounds, "end": end["build_id"]}).fetchall()
            if len(found) < limit_count:
                found = db.execute(_look_up(), bounds).fetchall()
            return [attestations.read(row) for row in found]
    return [attestations.read(row) for row in db.execute(_walk(), bounds)]


def affected(
    db: sqlite3.Connection, *, key_id: str = "", since: int | None = None
) -> list[Affected]:
    """The environments that trust no statement about their current release but revoked ones.

    As if `key_id` were revoked too, and its statements before the place `since` signed again.
    """
    rows = db.execute(
        "SELECT site.name AS site, environment.slug, release.artifact_id, release.id"
        " FROM release JOIN environment ON environment.id = release.env_id"
        " JOIN site ON site.id = environment.site_id"
        " WHERE release.is_current = 1 AND NOT EXISTS(SELECT 1 FROM attestation a"
        " WHERE a.site_id = release.site_id AND a.artifact_id = release.artifact_id"
        " AND a.revoked = 0 AND (a.key_id <> ? OR a.sequence < ?)"
        f" AND {trusted('a', 'environment.id')})"
        " ORDER BY site.name, environment.slug",
        (key_id, since or 0),
    )
    return [Affected(r["site"], r["slug"], r["artifact_id"], r["id"]) for r in rows]


def bound(environment: Environment, *, only_its_own: bool) -> dict[str, str | int]:
    """What the conditions of this module are bound to."""
    return {
        "env": environment.id,
        "site": environment.site_id,
        "preview": int(environment.kind is EnvironmentKind.PREVIEW),
        "own": int(only_its_own),
    }


def counts(alias: str) -> str:
    """The condition that a statement can be deployed by onto an environment: see `bound`.

    On a preview also by what only another preview's build said.
    """
    return f"(:preview = 1 OR {trusted(alias, ':env')}) AND (:own = 0 OR {_is_known(alias)})"


def trusted(alias: str, env: str) -> str:
    """The condition that an environment trusts a statement: see `Vouching`."""
    return (
        f"(EXISTS(SELECT 1 {_given(alias)} AND (e.id = {env} OR e.kind <> 'preview'))"
        f" OR EXISTS(SELECT 1 {_deployed(alias)} AND d.release_id IS NOT NULL"
        "  AND e.kind <> 'preview')"
        f" OR EXISTS({_runs(alias, env)}))"
    )


def _walk() -> str:
    """The query of `listed` that looks at each statement, from the newest to that after `end`."""
    return (
        "SELECT * FROM attestation m"
        " WHERE m.site_id = :site AND m.build_id <= :newest AND m.build_id < :before"
        " AND m.build_id > :end"
        # By CASE, so that only what counts looks for what is newer, and no further than to the
        # next that counts: each statement is weighed twice at most.
        f" AND CASE WHEN {counts('m')} THEN"
        " NOT EXISTS(SELECT 1 FROM attestation n INDEXED BY attestation_artifact"
        "  WHERE n.site_id = m.site_id"
        "  AND n.artifact_id = m.artifact_id AND n.build_id > m.build_id"
        f"  AND n.build_id <= :newest AND {counts('n')}) ELSE 0 END"
        f" AND {_IS_KEPT} ORDER BY m.build_id DESC LIMIT :limit"
    )


def _look_up() -> str:
    """The query of `listed` that looks at what can count alone: not for what counts everywhere."""
    nearby = " UNION ".join(
        f"SELECT near.envelope_sha256 FROM environment e CROSS JOIN {table} near"
        " ON near.env_id = e.id WHERE e.site_id = :site"
        " AND (e.id = :env OR :own = 0 AND e.kind <> 'preview')"
        for table in ("build", "deployment")
    )
    return (
        # The other columns are those of the row that has the maximum.
        "SELECT * FROM (SELECT a.*, MAX(a.build_id)"
        f" FROM ({nearby}) near CROSS JOIN attestation a"
        "  ON a.envelope_sha256 = near.envelope_sha256"
        f" WHERE a.site_id = :site AND a.build_id <= :newest AND {counts('a')}"
        " GROUP BY a.artifact_id) m"
        f" WHERE m.build_id < :before AND {_IS_KEPT} ORDER BY m.build_id DESC LIMIT :limit"
    )


def _weighed() -> str:
    """The statements to weigh, see `STATEMENTS_MAX`. By indexes: the rest is not looked at."""
    return (
        "SELECT * FROM (SELECT envelope_sha256 FROM attestation"
        "  WHERE site_id = :site AND artifact_id = :artifact ORDER BY build_id DESC LIMIT :weighed)"
        f" UNION {_near('build')} UNION {_near('deployment')}"
    )


def _near(table: str) -> str:
    """The statements of builds or deployments by which they can be trusted here, or known."""
    return (
        f"SELECT * FROM (SELECT near.envelope_sha256 FROM environment e CROSS JOIN {table} near"
        "  ON near.env_id = e.id AND near.artifact_id = :artifact"
        "  WHERE e.site_id = :site AND (e.id = :env OR e.kind <> 'preview')"
        "  GROUP BY near.envelope_sha256 ORDER BY MAX(near.id) DESC LIMIT :weighed)"
    )


def _is_its_own(alias: str) -> str:
    """That the environment's own builds gave it, or that it runs by it.

    Environments that are no previews are one in this: what was built for staging goes live.
    """
    return (
        f"(EXISTS(SELECT 1 {_given(alias)}"
        "  AND (e.id = :env OR :preview = 0 AND e.kind <> 'preview'))"
        f" OR EXISTS({_runs(alias, ':env')}))"
    )


def _is_known(alias: str) -> str:
    """That whoever knows of nothing but the environment knows of it."""
    return (
        f"(EXISTS(SELECT 1 {_given(alias)} AND e.id = :env)"
        f" OR EXISTS(SELECT 1 {_deployed(alias)} AND e.id = :env))"
    )


def _given(alias: str) -> str:
    """The builds that gave a statement: the one that made it, and those that found it made."""
    return (
        "FROM build b JOIN environment e ON e.id = b.env_id"
        f" WHERE b.envelope_sha256 = {alias}.envelope_sha256"
    )


def _deployed(alias: str) -> str:
    return (
        "FROM deployment d JOIN environment e ON e.id = d.env_id"
        f" WHERE d.envelope_sha256 = {alias}.envelope_sha256"
    )


def _runs(alias: str, env: str) -> str:
    return (
        "SELECT 1 FROM release r JOIN deployment d ON d.id = r.deployment_id"
        f" WHERE r.env_id = {env} AND r.is_current = 1"
        f" AND d.envelope_sha256 = {alias}.envelope_sha256"
    )
