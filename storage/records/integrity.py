"""The integrity of the records: the database's own, and that what one row says of others is so.

Rows of jobs, builds, deployments, releases and artifacts are never deleted; the history refers to
them for good. Foreign keys guard some of that, and these queries the rest.
"""

from __future__ import annotations

import sqlite3

from storage.counted import counted
from storage.digest import Digest
from storage.errors import DigestInvalidError, RecordsError
from storage.ids import artifact_id
from storage.records.db import mapped_errors

FAULTS_MAX = 20  # of one kind: a lost page takes many rows with it
_KINDS = {"INTEGER": "integer", "BIGINT": "integer", "TEXT": "text", "BLOB": "blob"}
# What is wrong, and how it is found.
_CHECKS: dict[str, str] = {
    "build {}: its job {} is gone": """
        SELECT id, job_id FROM build WHERE job_id NOT IN (SELECT id FROM job)""",
    "deployment {}: its job {} is gone": """
        SELECT id, job_id FROM deployment WHERE job_id NOT IN (SELECT id FROM job)""",
    "build {}: the artifact {} that it gave is unknown": """
        SELECT id, artifact_id FROM build WHERE artifact_id IS NOT NULL
        AND artifact_id NOT IN (SELECT id FROM artifact)""",
    "build {}: is {}, and its job is {}": """
        SELECT build.id, build.status, job.status FROM build JOIN job ON job.id = build.job_id
        WHERE (build.finished_at IS NULL) <> (job.finished_at IS NULL)""",
    "deployment {}: is {}, and its job is {}": """
        SELECT deployment.id, deployment.status, job.status FROM deployment
        JOIN job ON job.id = deployment.job_id
        WHERE (deployment.finished_at IS NULL) <> (job.finished_at IS NULL)""",
    "release {}: the deployment {} that made it is gone, or says otherwise": """
        SELECT id, deployment_id FROM release WHERE NOT EXISTS(
          SELECT 1 FROM deployment WHERE deployment.id = release.deployment_id
          AND deployment.release_id = release.id AND deployment.env_id = release.env_id
          AND deployment.artifact_id = release.artifact_id)""",
    "deployment {}: the release {} that it made is gone": """
        SELECT id, release_id FROM deployment WHERE release_id IS NOT NULL
        AND release_id NOT IN (SELECT id FROM release)""",
    "environment {}/{}: has releases, and none is current": """
        SELECT site.name, environment.slug FROM environment
        JOIN site ON site.id = environment.site_id
        WHERE EXISTS(SELECT 1 FROM release WHERE release.env_id = environment.id)
        AND NOT EXISTS(SELECT 1 FROM release
          WHERE release.env_id = environment.id AND release.is_current = 1)""",
    "environment {}/{}: runs {}, which was dropped": """
        SELECT site.name, environment.slug, release.artifact_id FROM release
        JOIN environment ON environment.id = release.env_id
        JOIN site ON site.id = environment.site_id
        JOIN artifact ON artifact.id = release.artifact_id
        WHERE release.is_current = 1 AND artifact.dropped_at IS NOT NULL""",
    "environment {}/{}: runs by the statement {}, which the records do not know": """
        SELECT site.name, environment.slug, deployment.envelope_sha256 FROM release
        JOIN environment ON environment.id = release.env_id
        JOIN site ON site.id = environment.site_id
        JOIN deployment ON deployment.id = release.deployment_id
        WHERE release.is_current = 1 AND NOT EXISTS(SELECT 1 FROM attestation
          WHERE attestation.envelope_sha256 = deployment.envelope_sha256
          AND attestation.artifact_id = release.artifact_id)""",
    "site {}: the artifact {} is pinned, and not kept": """
        SELECT site.name, artifact_pin.artifact_id FROM artifact_pin
        JOIN site ON site.id = artifact_pin.site_id
        JOIN artifact ON artifact.id = artifact_pin.artifact_id
        WHERE artifact.expired_at IS NOT NULL""",
    "artifact {}: is kept, and no statement says who built it": """
        SELECT id FROM artifact WHERE dropped_at IS NULL
        AND id NOT IN (SELECT artifact_id FROM attestation)""",
    "artifact {}: the store knows no tree {}": """
        SELECT artifact.id, artifact.digest FROM artifact WHERE dropped_at IS NULL
        AND digest NOT IN (SELECT 'blake3:' || lower(hex(tree.digest)) FROM tree)""",
}


def faults(db: sqlite3.Connection) -> list[str]:
    """Return a sentence for each thing that is wrong.

    What is found of the database itself comes alone: what the rows say means nothing then.
    """
    try:
        with mapped_errors():
            return _torn(db) or _strange_kinds(db) or _strange_texts(db) or _broken_rows(db)
    except RecordsError as error:
        return [f"database: {error}"]


def torn(db: sqlite3.Connection, table: str) -> str | None:
    """Say what is wrong with a table or its indexes as such; None when nothing is."""
    try:
        with mapped_errors():
            found = db.execute(f"PRAGMA integrity_check({table})").fetchall()[0][0]
    except RecordsError as error:
        return str(error)
    return None if found == "ok" else str(found)


def _torn(db: sqlite3.Connection) -> list[str]:
    found = [row[0] for row in db.execute(f"PRAGMA integrity_check({FAULTS_MAX})")]
    return [f"database: {text}" for text in found if text != "ok"]


def _broken_rows(db: sqlite3.Connection) -> list[str]:
    """What rows say of others that is not so."""
    broken = [
        f"database: a row of {row[0]} refers to a row of {row[2]} that is not there"
        for row in db.execute("PRAGMA foreign_key_check")
    ]
    said = _bounded(broken)
    for sentence, query in _CHECKS.items():
        said += _bounded([sentence.format(*row) for row in db.execute(query)])
    return said + _bounded(_other_facts(db)) + _bounded(_foreign_ids(db))


def _strange_kinds(db: sqlite3.Connection) -> list[str]:
    """Tables with values of another kind than their columns are declared to have.

    The database does not mind; whoever reads them does.
    """
    said = []
    for table, declared in _columns(db):
        kinds = [(name, _KINDS[kind]) for name, kind in declared if kind in _KINDS]
        wrong = " OR ".join(f"typeof(\"{name}\") NOT IN ('{kind}', 'null')" for name, kind in kinds)
        if not wrong:
            continue
        query = f'SELECT COUNT(*) FROM "{table}" WHERE {wrong}'  # noqa: S608 - its own names
        (count,) = db.execute(query).fetchone()
        if count:
            rows = f"a row of {table} has" if count == 1 else f"{count} rows of {table} have"
            said.append(f"database: {rows} values of a kind that cannot be there")
    return said


def _strange_texts(db: sqlite3.Connection) -> list[str]:
    """Columns with texts that are none: bytes that are no UTF-8, which nobody can read."""
    said = []
    for table, declared in _columns(db):
        for name in (name for name, kind in declared if kind == "TEXT"):
            query = f'SELECT CAST("{name}" AS BLOB) FROM "{table}"'  # noqa: S608 - its own names
            count = sum(not _is_text(row[0]) for row in db.execute(query))
            if count:
                rows = f"a row of {table} has" if count == 1 else f"{count} rows of {table} have"
                said.append(f"database: {rows} bytes that are no text as {name}")
    return said


def _is_text(data: bytes | None) -> bool:
    try:
        (data or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _columns(db: sqlite3.Connection) -> list[tuple[str, list[tuple[str, str]]]]:
    """The tables, each with its columns: their names, and what they are declared to have."""
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    query = "SELECT name, type FROM pragma_table_info(?)"
    return [(table, db.execute(query, (table,)).fetchall()) for (table,) in tables]


def _other_facts(db: sqlite3.Connection) -> list[str]:
    """Artifacts that are said to hold something else than their trees."""
    rows = db.execute(
        "SELECT artifact.id, artifact.files, artifact.size_bytes FROM tree JOIN artifact"
        " ON artifact.digest = 'blake3:' || lower(hex(tree.digest))"
        " WHERE artifact.files <> tree.files OR artifact.size_bytes <> tree.size_bytes"
        " OR artifact.manifest_sha256 <> lower(hex(tree.sha256))"
    )
    return [
        f"artifact {row['id']}: its row, {counted(row['files'], 'file')} and"
        f" {counted(row['size_bytes'], 'byte')}, says otherwise than its tree's"
        for row in rows
    ]


def _foreign_ids(db: sqlite3.Connection) -> list[str]:
    """Artifacts whose id is not that of their digest."""
    said = []
    for row in db.execute("SELECT id, digest FROM artifact"):
        try:
            is_own = artifact_id(Digest.parse(row["digest"])) == row["id"]
        except DigestInvalidError:
            is_own = False
        if not is_own:
            said.append(f"artifact {row['id']}: has the digest {row['digest']}, which is another's")
    return said


def _bounded(said: list[str]) -> list[str]:
    more = len(said) - FAULTS_MAX
    return said if more <= 0 else [*said[:FAULTS_MAX], f"and {more} more like the one before"]
