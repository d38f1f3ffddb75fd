"""Known files: what the contents in a site's repository are in the store, by git's ids of them.

A push is packed without reading again what it did not change. The store still says whether it has
the contents: what it lacks is read after all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from storage.digest import Digest

COUNT_MAX: Final = 50_000
"""Files remembered, some 300 bytes each: those used last."""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """The contents of a file that is no pointer of LFS."""

    digest: Digest
    size_bytes: int


class KnownFiles:
    """Of all sites, each by itself: equal ids in two repositories need not be equal contents for
    whoever can make two of one SHA-1. From any thread; forgotten at the end of the process.
    """

    def __init__(self, count_max: int = COUNT_MAX) -> None:
        self._count_max = count_max
        self._files: OrderedDict[tuple[str, str], KnownFile] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, site_id: str, oid: str) -> KnownFile | None:
        with self._lock:
            found = self._files.get((site_id, oid))
            if found is not None:
                self._files.move_to_end((site_id, oid))
            return found

    def learn(self, site_id: str, files: Mapping[str, KnownFile]) -> None:
        """Remember files by git's ids."""
        with self._lock:
            for oid, file in files.items():
                self._files[site_id, oid] = file
                self._files.move_to_end((site_id, oid))
            while len(self._files) > self._count_max:
                self._files.popitem(last=False)
