"""An ingest: one tree on its way in, from its source into the staging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from storage.blobs import BlobKey, Staging, blob_key
from storage.digest import Digest
from storage.errors import StoreChangedError, TreeInvalidError
from storage.long_write import LONG_BYTES_MIN
from storage.records import blobs as rows
from storage.records.db import Records
from storage.room import Room
from storage.source import Draft, Limits, SourceEntry, SourceFile
from storage.source_helper import SourceHelper, source_helper

# So many files in a row were known, but for a few: the rest is likely to be, and a second process
# pays that only reads.
HELPED_COUNT_MIN = 1024
_FEW = 8  # less than one of so many
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
        self._pending: dict[BlobKey, bytes | SourceFile] = {}  # or what has them still
        self._pending_bytes = 0
        self._known_count = 0  # files in a row
        self._is_asking = False  # for a helper
        self._helper: SourceHelper | None = None

    def stage(self, tree: Iterable[SourceEntry]) -> None:
        """Read the tree; write those of its contents that the store does not have.

        Files of a known digest are not looked up here: `missing_keys` names those to stage, which
        has to be asked behind the gate anyway.
        """
        try:
            for entry in tree:
                self.draft.admit(entry)
                if not isinstance(entry, SourceFile):
                    continue
                if entry.digest is not None:
                    key = blob_key(entry.digest, executable=entry.executable)
                    self.files.setdefault(key, entry)
                    self.draft.add_file(entry, entry.digest)
                elif self._is_given(entry):
                    self.draft.hold_name(entry)
                else:
                    self.draft.add_file(entry, self._read(entry))
            if self._helper is not None:
                self._take(self._helper.rest())
        finally:
            if self._helper is not None:
                self._helper.stop()
        self._stage_pending()

    def live_keys(self, digest: Digest) -> set[BlobKey]:
        """Return those of its blobs that are live; `digest` is that of its manifest."""
        reader = self._records.reader()
        if rows.is_whole(reader, digest, len(self.files)):
            return set(self.files)
        return rows.live(reader, self.files)

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

    def _is_given(self, entry: SourceFile) -> bool:
        """Whether the helper reads this one. A core for it is looked for once with each chunk."""
        if self._known_count < HELPED_COUNT_MIN or entry.place is None:
            return False
        if self._helper is None and not self._is_asking:
            return False
        if self._helper is not None and self._helper.is_busy:
            self._take(self._helper.answers())
            if self._helper.is_busy:
                return False
        place = entry.place()
        if place is None:
            return False
        if self._helper is None:
            self._is_asking = False
            self._helper = source_helper(place)
        return self._helper is not None and self._helper.give(entry, place)

    def _take(self, answers: Iterable[tuple[SourceFile, Digest | None]]) -> None:
        """Go on with what the helper answered; what it did not read is read here."""
        for entry, answer in answers:
            digest = answer
            if digest is None:
                digest = self._read(entry)
            else:
                self._await(blob_key(digest, executable=entry.executable), entry, entry)
            self.draft.add_file(entry, digest)

    def _read(self, entry: SourceFile) -> Digest:
        contents = entry.read()
        if not isinstance(contents, bytes):
            return self._stage_pieces(entry, contents)
        if len(contents) != entry.size_bytes:
            raise TreeInvalidError(entry.path, "changed while it was read")
        digest = Digest.of(contents)
        self._await(blob_key(digest, executable=entry.executable), entry, contents)
        return digest

    def _await(self, key: BlobKey, entry: SourceFile, held: bytes | SourceFile) -> None:
        """Look a blob up with the next chunk, and stage it then if need be."""
        self.files.setdefault(key, entry)
        if key in self.staging.blobs or key in self._pending:
            return
        self._pending[key] = held
        if isinstance(held, bytes):
            self._pending_bytes += len(held)
        if len(self._pending) >= _CHUNK_COUNT or self._pending_bytes >= _CHUNK_BYTES:
            self._stage_pending()

    def _stage_pieces(self, entry: SourceFile, pieces: Iterator[bytes]) -> Digest:
        """Write a large file while it is read; what it is comes out at its end.

        One that can be read again and may be known is read to its end first, and not written where
        it is. What cannot stays here, known or not: what is known may be collected yet.
        """
        if entry.is_repeatable and self._may_be_here(entry.size_bytes):
            digest = _digest_of(entry, pieces)
            key = blob_key(digest, executable=entry.executable)
            if self._is_here(key):
                self.files.setdefault(key, entry)
                return digest
            again = entry.read()
            assert not isinstance(again, bytes), "it is as large as it was"
            pieces = again
        with self._room.claimed(entry.size_bytes, 1):
            digest = self.staging.add_pieces(
                pieces, path=entry.path, size_bytes=entry.size_bytes, executable=entry.executable
            )
        self.files.setdefault(blob_key(digest, executable=entry.executable), entry)
        return digest

    def _may_be_here(self, size_bytes: int) -> bool:
        """Whether some content of this length is here, as far as it takes less to know than to read
        the file.
        """
        if size_bytes < LONG_BYTES_MIN:
            return True
        if any(blob.size_bytes == size_bytes for blob in self.staging.blobs.values()):
            return True
        return rows.has_size(self._records.reader(), size_bytes)

    def _is_here(self, key: BlobKey) -> bool:
        return key in self.staging.blobs or bool(rows.live(self._records.reader(), [key]))

    def _stage_pending(self) -> None:
        live = rows.live(self._records.reader(), self._pending)
        missing = [key for key in self._pending if key not in live]
        few = len(missing) * _FEW < len(self._pending)
        self._known_count = self._known_count + len(self._pending) if few else 0
        self._is_asking = True
        size_bytes = sum(self.files[key].size_bytes for key in missing)
        with self._room.claimed(size_bytes, len(missing)):
            for key in missing:
                held = self._pending[key]
                contents = held if isinstance(held, bytes) else _read_again(held, key)
                self.staging.add(key, contents)
        self._pending.clear()
        self._pending_bytes = 0


def _digest_of(entry: SourceFile, pieces: Iterator[bytes]) -> Digest:
    """Read a large file to its end.

    Raises:
        TreeInvalidError: It is not as long as it was.
    """
    hasher = blake3()
    count = 0
    for piece in pieces:
        count += len(piece)
        if count > entry.size_bytes:
            break
        hasher.update(piece)
    if count != entry.size_bytes:
        raise TreeInvalidError(entry.path, "changed while it was read")
    return Digest(hasher.digest())


def _read_again(entry: SourceFile, key: BlobKey) -> bytes:
    """Read a small file, of which only the digest is here.

    Raises:
        TreeInvalidError: It has other contents by now.
    """
    contents = entry.read()
    assert isinstance(contents, bytes), "none is given that is not read at once"
    if blob_key(Digest.of(contents), executable=entry.executable) != key:
        raise TreeInvalidError(entry.path, "changed while it was read")
    return contents
