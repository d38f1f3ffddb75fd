"""Runs once before a new release takes over; when it fails, the release before goes on serving."""

import os
import sqlite3
from pathlib import Path

path = Path(os.environ["DATA_DIR"], "guests.db")
with sqlite3.connect(path, timeout=10) as database:
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE IF NOT EXISTS guests (count INTEGER NOT NULL)")
    database.execute("INSERT INTO guests SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM guests)")
print(f"{path} is ready")
