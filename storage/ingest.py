"""An ingest: one tree on its way in, from its source into the staging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storage.blobs import BlobKey, Staging, blob_key
from storage.digest import Digest
from storage.errors import StoreChangedError, TreeInvalidError
from storage.records import blobs as rows
from storage.records.db import Records
from storage.room import Room
from storage.source import Draft, Limits, SourceEntry, SourceFile

_CHUNK_COUNT = 512  # files looked up at once
_CHUNK_BYTES = 32 << 20  # contents kept in memory at once


class Ingest:
    """One tree on its way in.

    Attributes:
        files: The distinct blobs of the tree, each with one file that it can be read from again.
    """

    def __init__(self, records: Records, staging: Staging, room: Room, limits: Limits) -> None:
        self.staging = staging
        self.draft = Draft(limits)
        self.files: dict[BlobKey, SourceFile] = {}
        self._records = records
        self._room = room
        self._pending: dict[BlobKey, bytes] = {}
        self._pending_bytes = 0

    def stage(self, tree: Iterable[SourceEntry]) -> None:
        """Read the tree; write those of its contents that the store does not have.

        Files of a known digest are not looked up here: `missing_keys` names those to stage, which
        has to be asked behind the gate anyway.
        """
        for entry in tree:
            self.draft.admit(entry)
            if not isinstance(entry, SourceFile):
                continue
            if entry.digest is None:
                self.draft.add_file(entry, self._read(entry))
            else:
                self.files.setdefault(blob_key(entry.digest, executable=entry.executable), entry)
                self.draft.add_file(entry, entry.digest)
        self._stage_pending()

    def live_keys(self) -> set[BlobKey]:
        return rows.live(self._records.reader(), self.files)

    def missing_keys(self, live: set[BlobKey]) -> list[BlobKey]:
        """Return what is neither in the store any more nor staged."""
        return [key for key in self.files if key not in live and key not in self.staging.blobs]

    def stage_again(self, keys: list[BlobKey]) -> None:
        for key in keys:
            entry = self.files[key]
            if not entry.is_repeatable:
                raise StoreChangedError("blobs were collected while a stream was taken in")
            if blob_key(self._read(entry), executable=entry.executable) != key:
                raise TreeInvalidError(entry.path, "changed while it was read")
        self._stage_pending()

    def _read(self, entry: SourceFile) -> Digest:
        contents = entry.read()
        if not isinstance(contents, bytes):
            return self._stage_pieces(entry, contents)
        if len(contents) != entry.size_bytes:
            raise TreeInvalidError(entry.path, "changed while it was read")
        digest = Digest.of(contents)
        key = blob_key(digest, executable=entry.executable)
        self.files.setdefault(key, entry)
        if key not in self.staging.blobs and key not in self._pending:
            self._pending[key] = contents
            self._pending_bytes += len(contents)
            if len(self._pending) >= _CHUNK_COUNT or self._pending_bytes >= _CHUNK_BYTES:
                self._stage_pending()
        return digest

    def _stage_pieces(self, entry: SourceFile, pieces: Iterator[bytes]) -> Digest:
        """Write a large file while it is read; what it is comes out at its end.

        What cannot be read again stays here, known or not: what is known may be collected yet.
        """
        is_known = self._is_live if entry.is_repeatable else None
        with self._room.claimed(entry.size_bytes, 1):
            digest = self.staging.add_pieces(
                pieces,
                path=entry.path,
                size_bytes=entry.size_bytes,
                executable=entry.executable,
                is_known=is_known,
            )
        self.files.setdefault(blob_key(digest, executable=entry.executable), entry)
        return digest

    def _is_live(self, key: BlobKey) -> bool:
        return bool(rows.live(self._records.reader(), [key]))

    def _stage_pending(self) -> None:
        live = rows.live(self._records.reader(), self._pending)
        missing = {key: data for key, data in self._pending.items() if key not in live}
        with self._room.claimed(sum(map(len, missing.values())), len(missing)):
            for key, contents in missing.items():
                self.staging.add(key, contents)
        self._pending.clear()
        self._pending_bytes = 0
