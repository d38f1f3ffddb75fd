"""New records without waiting for each migration: most tests begin with some."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from storage.records.db import Records


def open_records(path: Path) -> Records:
    """Open the records there; new ones are a copy of what `Records.open` made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(_new())
    return Records.open(path)


@cache
def _new() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gitd.db")
        Records.open(path).close()
        return path.read_bytes()
