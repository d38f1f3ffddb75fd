"""Configs: what the programs of each environment are given, version by version. Sealed.

Versions of one environment only grow; one that was forgotten is never given again.
"""

from __future__ import annotations

import sqlite3

from storage.model import EnvironmentConfig
from storage.records.statements import insert


def _config(row: sqlite3.Row) -> EnvironmentConfig:
    return EnvironmentConfig(
        env_id=row["env_id"],
        version=row["version"],
        digest=row["digest"],
        pin=row["pin"],
        sealed=row["sealed"],
        created_at=row["created_at"],
    )


def add(db: sqlite3.Connection, config: EnvironmentConfig) -> None:
    insert(
        db,
        "environment_config",
        {
            "env_id": config.env_id,
            "version": config.version,
            "digest": config.digest,
            "pin": config.pin,
            "sealed": config.sealed,
            "created_at": config.created_at,
        },
    )


def get(db: sqlite3.Connection, env_id: str, version: int) -> EnvironmentConfig | None:
    row = db.execute(
        "SELECT * FROM environment_config WHERE env_id = ? AND version = ?", (env_id, version)
    ).fetchone()
    return None if row is None else _config(row)


def newest(db: sqlite3.Connection, env_id: str) -> EnvironmentConfig | None:
    row = db.execute(
        "SELECT * FROM environment_config WHERE env_id = ? ORDER BY version DESC LIMIT 1",
        (env_id,),
    ).fetchone()
    return None if row is None else _config(row)


def has_any(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM environment_config LIMIT 1").fetchone() is not None


def prune(db: sqlite3.Connection, env_id: str, *, keep_count: int) -> None:
    """Forget all but the newest versions of an environment, and those that it still needs.

    Needed are the one of the current release, and those of deployments that are not over.
    """
    db.execute(
        "DELETE FROM environment_config WHERE env_id = :env AND version <= ("
        "SELECT MAX(version) FROM environment_config WHERE env_id = :env) - :keep"
        " AND version NOT IN (SELECT config_version FROM release WHERE env_id = :env"
        " AND is_current = 1 AND config_version IS NOT NULL)"
        " AND version NOT IN (SELECT config_version FROM deployment WHERE env_id = :env"
        " AND finished_at IS NULL AND config_version IS NOT NULL)",
        {"env": env_id, "keep": keep_count},
    )
