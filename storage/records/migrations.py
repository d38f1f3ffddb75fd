"""The steps that make the database, in order; each runs once, in a transaction.

Columns keep to what PostgreSQL also has. Times are integers: milliseconds since 1970, UTC.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any, cast

from sqlite_utils import Database, Migrations

from storage.errors import RecordsError
from storage.records import audit_log as audit_lines

MIGRATIONS = Migrations("gitd")
_TABLE = MIGRATIONS.migrations_table


def applied(db: sqlite3.Connection) -> list[str]:
    """The steps that a database went through, in order.

    Its table says so, and not the index of that, where one flipped bit makes another step.
    """
    if not Database(cast("Any", db))[_TABLE].exists():
        return []
    query = f"""
        SELECT CAST(name AS TEXT) FROM {_TABLE} NOT INDEXED WHERE migration_set = ? ORDER BY id"""  # noqa: S608 - a constant
    return [name for (name,) in db.execute(query, (MIGRATIONS.name,))]


def apply(db: sqlite3.Connection) -> None:
    """Run the steps that a database did not go through yet.

    Raises:
        RecordsError: What says which these are is damaged: one would be run twice.
    """
    done = applied(db)
    if set(done) >= _known():
        return
    if done:
        (said,) = db.execute(f"PRAGMA integrity_check({_TABLE})").fetchall()[0]
        if said != "ok":
            raise RecordsError(
                f"the database is damaged where it says which steps of an update it went through"
                f" ({said}): restore a backup, or start the gitd of before the update"
            )
    MIGRATIONS.apply(Database(cast("Any", db)))


def unknown(names: list[str]) -> list[str]:
    """Those of the steps that this program does not know: a newer one made them."""
    return [name for name in names if name not in _known()]


@cache
def _known() -> frozenset[str]:
    return frozenset(step.name for step in MIGRATIONS.pending(Database(memory=True)))


def _run(db: Database, script: str) -> None:
    # Not executescript(): that would commit the migration's own transaction.
    for statement in script.split(";"):
        if statement.strip():
            db.conn.execute(statement)


@MIGRATIONS()
def sites(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE site(
          id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, default_branch TEXT NOT NULL,
          created_at BIGINT NOT NULL);
        CREATE TABLE branch_route(
          site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE, position INTEGER NOT NULL,
          pattern TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY(site_id, position));
        CREATE TABLE environment(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          slug TEXT NOT NULL, kind TEXT NOT NULL, branch TEXT, ephemeral INTEGER NOT NULL,
          status TEXT NOT NULL, hostname TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL,
          UNIQUE(site_id, slug));
        CREATE INDEX environment_branch ON environment(site_id, branch);
        CREATE TABLE api_key(
          id TEXT PRIMARY KEY, family TEXT NOT NULL, label TEXT NOT NULL,
          secret_sha256 BLOB NOT NULL UNIQUE, hint TEXT NOT NULL, scopes TEXT NOT NULL,
          site_id TEXT REFERENCES site(id) ON DELETE CASCADE,
          env_id TEXT REFERENCES environment(id) ON DELETE CASCADE,
          cidrs TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
          revoked_at BIGINT, last_used_at BIGINT);
        """,
    )


@MIGRATIONS()
def pipeline(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE job(
          id TEXT PRIMARY KEY, type TEXT NOT NULL, status TEXT NOT NULL, progress INTEGER NOT NULL,
          resource_type TEXT NOT NULL, resource_id TEXT NOT NULL, site_id TEXT NOT NULL,
          env_id TEXT NOT NULL, result TEXT, error TEXT, version INTEGER NOT NULL,
          owner TEXT, attempts INTEGER NOT NULL, created_at BIGINT NOT NULL, started_at BIGINT,
          finished_at BIGINT);
        CREATE INDEX job_unfinished ON job(status, id) WHERE finished_at IS NULL;
        CREATE INDEX job_finished ON job(finished_at);
        CREATE INDEX job_site ON job(site_id, id);
        CREATE INDEX job_status ON job(status, id);
        CREATE INDEX job_env ON job(env_id, id);
        CREATE TABLE push(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          actor_type TEXT NOT NULL, actor_id TEXT NOT NULL, actor_label TEXT NOT NULL,
          updates TEXT NOT NULL, options TEXT NOT NULL, created_at BIGINT NOT NULL,
          landed_at BIGINT);
        CREATE INDEX push_open ON push(id) WHERE landed_at IS NULL;
        CREATE TABLE build(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL, env_id TEXT NOT NULL, job_id TEXT NOT NULL,
          ref TEXT, commit_id TEXT NOT NULL, status TEXT NOT NULL, clean INTEGER NOT NULL,
          deploys INTEGER NOT NULL, pushed INTEGER NOT NULL, cached INTEGER NOT NULL, profile TEXT,
          artifact_id TEXT, deployment_id TEXT, error TEXT, timings TEXT NOT NULL,
          actor_type TEXT NOT NULL, actor_id TEXT NOT NULL, actor_label TEXT NOT NULL,
          created_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT);
        CREATE INDEX build_env ON build(env_id, id);
        CREATE INDEX build_job ON build(job_id);
        CREATE TABLE artifact(
          id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, manifest_sha256 TEXT NOT NULL,
          files INTEGER NOT NULL, size_bytes BIGINT NOT NULL, created_at BIGINT NOT NULL);
        CREATE TABLE attestation(
          envelope_sha256 TEXT PRIMARY KEY, artifact_id TEXT NOT NULL REFERENCES artifact(id),
          site_id TEXT NOT NULL, build_id TEXT NOT NULL UNIQUE, key_id TEXT NOT NULL,
          signature TEXT NOT NULL, profile TEXT NOT NULL, ref TEXT, commit_id TEXT NOT NULL,
          created_at BIGINT NOT NULL);
        CREATE INDEX attestation_artifact ON attestation(site_id, artifact_id, build_id);
        CREATE INDEX attestation_site ON attestation(site_id, build_id);
        CREATE TABLE deployment(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL, env_id TEXT NOT NULL, job_id TEXT NOT NULL,
          artifact_id TEXT NOT NULL REFERENCES artifact(id), envelope_sha256 TEXT NOT NULL,
          trigger_kind TEXT NOT NULL, status TEXT NOT NULL, runs_release_command INTEGER NOT NULL,
          release_id TEXT, error TEXT, ref TEXT, commit_id TEXT,
          actor_type TEXT NOT NULL, actor_id TEXT NOT NULL, actor_label TEXT NOT NULL,
          created_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT);
        CREATE INDEX deployment_env ON deployment(env_id, id);
        CREATE INDEX deployment_job ON deployment(job_id);
        CREATE TABLE release(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL, env_id TEXT NOT NULL,
          deployment_id TEXT NOT NULL UNIQUE, artifact_id TEXT NOT NULL, ref TEXT, commit_id TEXT,
          actor_type TEXT NOT NULL, actor_id TEXT NOT NULL, actor_label TEXT NOT NULL,
          deployed_at BIGINT NOT NULL, is_current INTEGER NOT NULL);
        CREATE INDEX release_env ON release(env_id, id);
        CREATE UNIQUE INDEX release_current ON release(env_id) WHERE is_current = 1;
        CREATE TABLE idempotency(
          owner_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, request_sha256 BLOB NOT NULL,
          status INTEGER NOT NULL, resource_type TEXT NOT NULL, resource_id TEXT NOT NULL,
          created_at BIGINT NOT NULL, PRIMARY KEY(owner_id, idempotency_key));
        CREATE INDEX idempotency_age ON idempotency(created_at);
        """,
    )


@MIGRATIONS()
def blobs(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE blob(
          id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE CHECK(length(key) = 33),
          size_bytes BIGINT NOT NULL, state INTEGER NOT NULL DEFAULT 0, verified_at BIGINT);
        CREATE INDEX blob_state ON blob(state) WHERE state <> 0;
        CREATE TABLE tree(
          id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, sha256 BLOB NOT NULL,
          files INTEGER NOT NULL, size_bytes BIGINT NOT NULL, manifest_bytes INTEGER NOT NULL);
        CREATE TABLE ref(
          blob_id INTEGER NOT NULL REFERENCES blob(id),
          tree_id INTEGER NOT NULL REFERENCES tree(id),
          PRIMARY KEY(blob_id, tree_id)) WITHOUT ROWID;
        CREATE INDEX ref_tree ON ref(tree_id);
        """,
    )


@MIGRATIONS()
def build_caches(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE build_cache(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          profile TEXT NOT NULL, cache_key TEXT NOT NULL,
          tree_digest BLOB NOT NULL REFERENCES tree(digest), files INTEGER NOT NULL,
          size_bytes BIGINT NOT NULL, created_at BIGINT NOT NULL, used_at BIGINT NOT NULL,
          UNIQUE(site_id, profile, cache_key));
        CREATE INDEX build_cache_tree ON build_cache(tree_digest);
        CREATE INDEX build_cache_used ON build_cache(used_at);
        """,
    )


@MIGRATIONS()
def queue(db: Database) -> None:
    _run(
        db,
        """
        ALTER TABLE job ADD COLUMN lease_id TEXT;
        ALTER TABLE job ADD COLUMN losses INTEGER NOT NULL DEFAULT 0;
        """,
    )


@MIGRATIONS()
def collection(db: Database) -> None:
    # Of an artifact: when the collector took it from the lists, and when it forgot its tree. Of a
    # tree: 2 while it is being forgotten, as of a blob.
    _run(
        db,
        """
        ALTER TABLE artifact ADD COLUMN expired_at BIGINT;
        ALTER TABLE artifact ADD COLUMN dropped_at BIGINT;
        ALTER TABLE tree ADD COLUMN state INTEGER NOT NULL DEFAULT 0;
        CREATE INDEX tree_state ON tree(state) WHERE state <> 0;
        CREATE TABLE artifact_pin(
          site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          artifact_id TEXT NOT NULL REFERENCES artifact(id),
          actor_type TEXT NOT NULL, actor_id TEXT NOT NULL, actor_label TEXT NOT NULL,
          created_at BIGINT NOT NULL, PRIMARY KEY(site_id, artifact_id));
        CREATE INDEX artifact_pin_of ON artifact_pin(artifact_id);
        CREATE TABLE collection(
          id INTEGER PRIMARY KEY CHECK(id = 1), began_at BIGINT NOT NULL, thorough_at BIGINT);
        CREATE INDEX attestation_of ON attestation(artifact_id);
        CREATE INDEX deployment_artifact ON deployment(artifact_id);
        CREATE INDEX deployment_open ON deployment(env_id, id) WHERE finished_at IS NULL;
        """,
    )


@MIGRATIONS()
def attestation_order(db: Database) -> None:
    _run(
        db,
        """
        ALTER TABLE attestation ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;
        ALTER TABLE attestation ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0;
        UPDATE attestation SET sequence = counted.number FROM
          (SELECT envelope_sha256 AS name, ROW_NUMBER() OVER (ORDER BY created_at, build_id)
           AS number FROM attestation) AS counted
          WHERE counted.name = attestation.envelope_sha256;
        CREATE UNIQUE INDEX attestation_sequence ON attestation(sequence);
        CREATE INDEX attestation_key ON attestation(key_id, sequence);
        """,
    )


@MIGRATIONS()
def push_policies(db: Database) -> None:
    _run(
        db,
        """
        ALTER TABLE site ADD COLUMN when_pushed_again TEXT;
        ALTER TABLE environment ADD COLUMN when_pushed_again TEXT;
        CREATE INDEX build_unfinished ON build(env_id, id) WHERE finished_at IS NULL;
        CREATE TABLE build_asker(
          actor_id TEXT NOT NULL, build_id TEXT NOT NULL REFERENCES build(id) ON DELETE CASCADE,
          PRIMARY KEY(actor_id, build_id));
        """,
    )


@MIGRATIONS()
def superseded_builds(db: Database) -> None:
    _run(db, "ALTER TABLE build ADD COLUMN superseded_by TEXT")


@MIGRATIONS()
def release_statements(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE release_statement(
          envelope_sha256 TEXT PRIMARY KEY, env_id TEXT NOT NULL, sequence BIGINT NOT NULL,
          deployment_id TEXT NOT NULL, key_id TEXT NOT NULL, provenance_sha256 TEXT NOT NULL,
          envelope TEXT NOT NULL, issued_at BIGINT NOT NULL, UNIQUE(env_id, sequence));
        CREATE INDEX release_statement_of ON release_statement(deployment_id, sequence);
        """,
    )


@MIGRATIONS()
def build_memo(db: Database) -> None:
    # `inputs` and `toolchain` are digests. Signed again, a statement has another name.
    _run(
        db,
        """
        CREATE TABLE build_memo(
          site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          inputs TEXT NOT NULL, toolchain TEXT NOT NULL,
          envelope_sha256 TEXT NOT NULL REFERENCES attestation(envelope_sha256)
            ON DELETE CASCADE ON UPDATE CASCADE,
          PRIMARY KEY(site_id, inputs, toolchain));
        CREATE INDEX build_memo_of ON build_memo(envelope_sha256);
        """,
    )


@MIGRATIONS()
def variables(db: Database) -> None:
    # Without an environment: the site's default. Two indexes, for NULLs never equal each other.
    _run(
        db,
        """
        CREATE TABLE variable(
          site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          env_id TEXT REFERENCES environment(id) ON DELETE CASCADE,
          name TEXT NOT NULL, is_secret INTEGER NOT NULL, used_in TEXT NOT NULL,
          sealed BLOB NOT NULL, updated_at BIGINT NOT NULL);
        CREATE UNIQUE INDEX variable_of_site ON variable(site_id, name) WHERE env_id IS NULL;
        CREATE UNIQUE INDEX variable_of_environment ON variable(env_id, name)
          WHERE env_id IS NOT NULL;
        """,
    )


@MIGRATIONS()
def environment_configs(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE environment_config(
          env_id TEXT NOT NULL REFERENCES environment(id) ON DELETE CASCADE,
          version BIGINT NOT NULL, digest TEXT NOT NULL, pin TEXT NOT NULL, sealed BLOB NOT NULL,
          created_at BIGINT NOT NULL, PRIMARY KEY(env_id, version));
        ALTER TABLE deployment ADD COLUMN config_version BIGINT;
        ALTER TABLE release ADD COLUMN config_version BIGINT;
        """,
    )


@MIGRATIONS()
def scrub(db: Database) -> None:
    # When a part was last read; null for never. The state of a damaged tree is 3, as of a blob.
    _run(
        db,
        """
        ALTER TABLE tree ADD COLUMN verified_at BIGINT;
        ALTER TABLE attestation ADD COLUMN verified_at BIGINT;
        CREATE INDEX blob_verified ON blob(verified_at) WHERE state = 0;
        CREATE INDEX tree_verified ON tree(verified_at) WHERE state = 0;
        CREATE INDEX attestation_verified ON attestation(verified_at);
        CREATE TABLE damage(
          kind TEXT NOT NULL, name TEXT NOT NULL, why TEXT NOT NULL, found_at BIGINT NOT NULL,
          PRIMARY KEY(kind, name));
        CREATE TABLE scrub(
          id INTEGER PRIMARY KEY CHECK(id = 1), read_at BIGINT NOT NULL, parts BIGINT NOT NULL,
          size_bytes BIGINT NOT NULL, found BIGINT NOT NULL, mended BIGINT NOT NULL);
        """,
    )


@MIGRATIONS()
def build_memo_of_previews(db: Database) -> None:
    # What was remembered before does not tell which caches it was made with: it is built again.
    _run(
        db,
        """
        DROP TABLE build_memo;
        CREATE TABLE build_memo(
          site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          inputs TEXT NOT NULL, toolchain TEXT NOT NULL, previews_only INTEGER NOT NULL,
          envelope_sha256 TEXT NOT NULL REFERENCES attestation(envelope_sha256)
            ON DELETE CASCADE ON UPDATE CASCADE,
          PRIMARY KEY(site_id, inputs, toolchain, previews_only));
        CREATE INDEX build_memo_of ON build_memo(envelope_sha256);
        """,
    )


@MIGRATIONS()
def tree_blobs(db: Database) -> None:
    # How many different blobs a tree has; null where nobody can say. A damaged manifest cannot be
    # asked whether its references are all there.
    _run(
        db,
        """
        ALTER TABLE tree ADD COLUMN blobs INTEGER;
        UPDATE tree SET blobs = (SELECT COUNT(*) FROM ref WHERE ref.tree_id = tree.id)
          WHERE manifest_bytes > 0;
        """,
    )


@MIGRATIONS()
def damaged_tree_blobs(db: Database) -> None:
    # The step before took the references of damaged trees for all that there had been: nobody can
    # say that of a manifest that was damaged already.
    _run(db, "UPDATE tree SET blobs = NULL WHERE state = 3")


@MIGRATIONS()
def unsecured(db: Database) -> None:
    # What was found damaged and could not be put into quarantine.
    _run(
        db,
        """
        CREATE TABLE unsecured(
          kind TEXT NOT NULL, name TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY(kind, name));
        """,
    )


@MIGRATIONS()
def statements_of_builds(db: Database) -> None:
    # The statement that a build gave, made by it or found. What was found before, and not deployed,
    # is not known any more.
    _run(
        db,
        """
        ALTER TABLE build ADD COLUMN envelope_sha256 TEXT;
        UPDATE build SET envelope_sha256 = COALESCE(
          (SELECT attestation.envelope_sha256 FROM attestation WHERE build_id = build.id),
          (SELECT deployment.envelope_sha256 FROM deployment
           WHERE deployment.id = build.deployment_id));
        CREATE INDEX build_gave ON build(envelope_sha256);
        """,
    )


@MIGRATIONS()
def believable_sequences(db: Database) -> None:
    # A sequence that no statement can have: no host took them, and they left none to come after.
    _run(db, "DELETE FROM release_statement WHERE sequence > 9007199254740991")


@MIGRATIONS()
def vouching(db: Database) -> None:
    # What vouches for an artifact is found without looking at all that was ever done with it.
    # Builds that were canceled while their output was kept did not say what they gave.
    _run(
        db,
        """
        UPDATE build SET envelope_sha256 = made.envelope_sha256, artifact_id = made.artifact_id
          FROM attestation AS made WHERE made.build_id = build.id
          AND (build.envelope_sha256 IS NULL OR build.artifact_id IS NULL);
        CREATE INDEX build_artifact ON build(artifact_id, env_id);
        CREATE INDEX deployment_goes_by ON deployment(envelope_sha256);
        DROP INDEX deployment_artifact;
        CREATE INDEX deployment_artifact ON deployment(artifact_id, env_id);
        """,
    )


@MIGRATIONS()
def rolled_keys(db: Database) -> None:
    _run(
        db,
        """
        ALTER TABLE api_key ADD COLUMN previous_sha256 BLOB;
        ALTER TABLE api_key ADD COLUMN previous_until BIGINT;
        CREATE UNIQUE INDEX api_key_previous ON api_key(previous_sha256);
        """,
    )


@MIGRATIONS()
def renewed_previews(db: Database) -> None:
    _run(db, "ALTER TABLE environment ADD COLUMN renewed_at BIGINT")


@MIGRATIONS()
def audit_log(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE audit_log(
          id TEXT PRIMARY KEY, created_at BIGINT NOT NULL, actor_type TEXT NOT NULL,
          actor_id TEXT NOT NULL, actor_label TEXT NOT NULL, action TEXT NOT NULL,
          target TEXT NOT NULL, site_id TEXT, env_id TEXT, address TEXT, request_id TEXT);
        CREATE INDEX audit_log_site ON audit_log(site_id, id);
        CREATE INDEX audit_log_env ON audit_log(env_id, id);
        CREATE INDEX audit_log_age ON audit_log(created_at);
        """,
    )


@MIGRATIONS()
def webhooks(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE webhook(
          id TEXT PRIMARY KEY, url TEXT NOT NULL, events TEXT NOT NULL,
          site_id TEXT REFERENCES site(id) ON DELETE CASCADE, enabled INTEGER NOT NULL,
          sealed BLOB NOT NULL, created_at BIGINT NOT NULL);
        CREATE INDEX webhook_site ON webhook(site_id, id);
        CREATE TABLE webhook_event(
          id TEXT PRIMARY KEY, job_id TEXT NOT NULL, created_at BIGINT NOT NULL, request_id TEXT);
        CREATE TABLE webhook_delivery(
          id TEXT PRIMARY KEY,
          webhook_id TEXT NOT NULL REFERENCES webhook(id) ON DELETE CASCADE,
          event_id TEXT NOT NULL, event_type TEXT NOT NULL, body BLOB NOT NULL,
          status TEXT NOT NULL, attempts INTEGER NOT NULL, next_at BIGINT, http_status INTEGER,
          error TEXT, created_at BIGINT NOT NULL, attempted_at BIGINT);
        CREATE INDEX webhook_delivery_webhook ON webhook_delivery(webhook_id, id);
        CREATE INDEX webhook_delivery_due ON webhook_delivery(next_at, webhook_id)
          WHERE next_at IS NOT NULL;
        CREATE INDEX webhook_delivery_next ON webhook_delivery(webhook_id, next_at, id)
          WHERE next_at IS NOT NULL;
        """,
    )


@MIGRATIONS()
def makers_of_keys(db: Database) -> None:
    # The keys that were there before count as made on the server: nobody wrote down who made them.
    _run(
        db,
        """
        ALTER TABLE api_key ADD COLUMN created_by TEXT;
        CREATE INDEX api_key_created_by ON api_key(created_by);
        """,
    )


@MIGRATIONS()
def configs_due(db: Database) -> None:
    _run(db, "ALTER TABLE environment ADD COLUMN config_is_due INTEGER NOT NULL DEFAULT 0")


@MIGRATIONS()
def domains(db: Database) -> None:
    _run(
        db,
        """
        CREATE TABLE domain(
          id TEXT PRIMARY KEY, site_id TEXT NOT NULL REFERENCES site(id) ON DELETE CASCADE,
          env_id TEXT NOT NULL REFERENCES environment(id) ON DELETE CASCADE,
          hostname TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL, actor_type TEXT NOT NULL,
          actor_id TEXT NOT NULL, actor_label TEXT NOT NULL);
        CREATE INDEX domain_env ON domain(env_id, id);
        CREATE INDEX domain_site ON domain(site_id);
        """,
    )


@MIGRATIONS()
def chained_audit_log(db: Database) -> None:
    # A text, which sqlite would take, is no sequence: nothing could be added behind it.
    _run(
        db,
        """
        ALTER TABLE audit_log ADD COLUMN sequence BIGINT
          CHECK(sequence = CAST(sequence AS BIGINT));
        ALTER TABLE audit_log ADD COLUMN previous BLOB;
        ALTER TABLE audit_log ADD COLUMN digest BLOB;
        CREATE UNIQUE INDEX audit_log_sequence ON audit_log(sequence);
        CREATE TABLE audit_anchor(sequence BIGINT PRIMARY KEY, digest BLOB NOT NULL);
        CREATE TABLE audit_head(sequence BIGINT PRIMARY KEY, digest BLOB NOT NULL);
        CREATE TABLE noted_key(key_id TEXT PRIMARY KEY, state TEXT NOT NULL)
        """,
    )
    audit_lines.chain(db.conn)


@MIGRATIONS()
def open_default_branches(db: Database) -> None:
    _run(db, "ALTER TABLE site ADD COLUMN default_is_open INTEGER NOT NULL DEFAULT 0")
