"""A cache of reads that every commit empties: the same read again costs next to nothing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

from storage.records.db import Records, mapped_errors
from storage.records.statements import data_version

T = TypeVar("T")
ENTRIES_MAX = 10_000
LOOK_EVERY_S = 0.005


class Freshness:
    """Says whether anybody has committed anything. Belongs to one thread.

    What this process committed is seen at once: every look after a `write` that returned sees it.
    What another process committed, such as a local command, is seen within `LOOK_EVERY_S`: sqlite
    counts the commits of others, and that is how often the count is looked at.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self._commits = -1
        self._version = -1
        self._looked_at = 0.0

    def version(self) -> int:
        """Return what is another number after every commit."""
        commits, now = self.records.commits, time.monotonic()
        if commits != self._commits or now - self._looked_at >= LOOK_EVERY_S:
            with mapped_errors():
                version = data_version(self.records.reader())
            self._commits, self._version, self._looked_at = commits, version, now
        return self._version


class Recall:
    """Answers of reads, kept until anybody commits anything. Belongs to one thread.

    `freshness` may be shared: several of them look once.
    """

    def __init__(
        self,
        records: Records,
        *,
        entries_max: int = ENTRIES_MAX,
        freshness: Freshness | None = None,
    ) -> None:
        self._records = records
        self._entries_max = entries_max
        self._freshness = freshness or Freshness(records)
        self._kept: dict[Hashable, object] = {}
        self._version = -1

    def get(self, key: Hashable, load: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `load` reads. `key` names the read, with all that it depends on."""
        self._forget_what_is_old()
        if key in self._kept:
            return cast("T", self._kept[key])
        answer = load(self._records.reader())
        self._kept[key] = answer
        return answer

    def peek(self, key: Hashable) -> object | None:
        """Return what was kept under `key`, or None."""
        self._forget_what_is_old()
        return self._kept.get(key)

    def keep(self, key: Hashable, answer: object) -> None:
        """Keep an answer that was read, without a pause, since `peek` found none."""
        self._kept[key] = answer

    def _forget_what_is_old(self) -> None:
        version = self._freshness.version()
        if version != self._version or len(self._kept) >= self._entries_max:
            self._kept.clear()
            self._version = version
