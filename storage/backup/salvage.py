"""Salvage: what is damaged on a server and still whole in the earlier backups of it.

The server counts such a part as absent. A new backup has it all the same: the good content is in
the pool, and may be the last one that there is. Without it the rule that removes old backups would
remove the only copy. Whatever is taken over is read first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from storage.backup.destination import Destination
from storage.backup.manifest import Manifest
from storage.backup.places import STORE, Places
from storage.backup.pool import Kept, Pool, matches
from storage.digest import Digest
from storage.envelope import ENVELOPE_BYTES_MAX
from storage.errors import BackupDamagedError
from storage.files import read_bounded
from storage.layout import Layout
from storage.parts import Part, PartKind
from storage.records import release_statements
from storage.records.damage import Damage

_STATEMENTS = f"{STORE}/attest/"


class Salvage:
    """Looks for damaged parts where a good copy may be, for each once. Belongs to one backup."""

    def __init__(self, places: Places, destination: Destination, pool: Pool) -> None:
        self._places = places
        self._layout = Layout(places.store)
        self._destination = destination
        self._pool = pool
        self._looked: dict[Part, Kept | None] = {}
        self._statements: dict[str, set[Digest]] | None = None

    def of(self, db: sqlite3.Connection, damaged: Iterable[Damage]) -> dict[Part, Kept]:
        """What the pool has of what is damaged, each content read and held against its name.

        Raises:
            OSError: The system refused to write a statement that the records have.
        """
        found: dict[Part, Kept] = {}
        for one in damaged:
            if one.part not in self._looked:
                self._looked[one.part] = self._look(db, one)
            kept = self._looked[one.part]
            if kept is not None:
                found[one.part] = kept
        return found

    def path(self, part: Part) -> str:
        """The place of a part below the data folder, as manifests name it."""
        return os.path.relpath(part.path(self._layout), self._places.root)

    def _look(self, db: sqlite3.Connection, damaged: Damage) -> Kept | None:
        part = damaged.part
        if part.kind is PartKind.ENVELOPE:
            return self._statement(db, part)
        path = Path(self._destination.content(part.digest))
        size_bytes = damaged.size_bytes
        if size_bytes is None:
            with contextlib.suppress(OSError):
                size_bytes = path.lstat().st_size
        if size_bytes is None or not matches(path, size_bytes=size_bytes, digest=part.digest):
            return None
        return Kept(part.digest, size_bytes)

    def _statement(self, db: sqlite3.Connection, part: Part) -> Kept | None:
        """Its name is a SHA-256, by which the pool knows nothing: the manifests know its place."""
        text = release_statements.envelope(db, part.name)
        if text is not None and part.names(text.encode()):
            return self._pool.add_bytes(text.encode())
        for digest in self._earlier(self.path(part)):
            content = self._destination.content(digest)
            with contextlib.suppress(OSError):
                data = read_bounded(content, size_bytes_max=ENVELOPE_BYTES_MAX)
                if part.names(data) and Digest.of(data) == digest:
                    return Kept(digest, len(data))
        return None

    def _earlier(self, path: str) -> set[Digest]:
        """What the earlier backups have in a place of a statement."""
        if self._statements is None:
            self._statements = {}
            for name in self._destination.names():
                with contextlib.suppress(BackupDamagedError):
                    for entry in Manifest.open(self._destination.manifest(name)).files():
                        if entry.path.startswith(_STATEMENTS):
                            self._statements.setdefault(entry.path, set()).add(entry.digest)
        return self._statements.get(path, set())
