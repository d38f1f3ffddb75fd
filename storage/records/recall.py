"""What was read since the last commit: the same read again costs a look at a counter."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from storage.records.db import Records, mapped_errors

T = TypeVar("T")
ENTRIES_MAX = 10_000


class Recall:
    """Answers of reads, kept until anybody commits anything. Belongs to one thread.

    sqlite counts the commits of other connections, also those of other processes, and a reader
    writes nothing itself: an answer that is kept is the answer that the read would give now.

    Source: sqlite.org "PRAGMA data_version".
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._version = -1
        self._kept: dict[Hashable, object] = {}

    def get(self, key: Hashable, load: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `load` reads. `key` names the read, with all that it depends on."""
        db = self._records.reader()
        with mapped_errors():
            (version,) = db.execute("PRAGMA data_version").fetchone()
        if version != self._version or len(self._kept) >= ENTRIES_MAX:
            self._kept.clear()
            self._version = version
        if key in self._kept:
            return cast("T", self._kept[key])
        answer = load(db)
        self._kept[key] = answer
        return answer
