"""Which signing keys the audit log knows of, so that a change of them that a crash kept from it is
noted later: keys are files, and no transaction has both.
"""

from __future__ import annotations

import sqlite3

from storage.model import Action
from storage.records.statements import insert
from storage.trust import Keyring


def changes(db: sqlite3.Connection, keyring: Keyring) -> list[tuple[Action, str]] | None:
    """Return what became of which key since the keys were noted last, and note them as they are;
    None when they never were. The caller writes it into the audit log, in the same transaction.
    """
    before = dict(db.execute("SELECT key_id, state FROM noted_key").fetchall())
    now = {name: key.state for name, key in keyring.keys.items()}
    if now != before:
        db.execute("DELETE FROM noted_key")
        for name, state in now.items():
            insert(db, "noted_key", {"key_id": name, "state": state})
    if not before:
        return None
    new = [name for name, state in now.items() if state == "active" and name not in before]
    revoked = [
        name for name, state in now.items() if state == "revoked" and before.get(name) != state
    ]
    return [
        *((Action.SIGNING_KEY_ROTATED, name) for name in new),
        *((Action.SIGNING_KEY_REVOKED, name) for name in revoked),
    ]
