"""The blobs of a tree where the store has them, held against its manifest."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator

from storage.blob_reading import suspects
from storage.blobs import BlobKey, entry_key
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.files import mapped_errors, open_regular
from storage.layout import Layout
from storage.manifest import Entry, FileEntry
from storage.second_reader import SecondReader, second_reader
from storage.unpacked import expect_read


class StoredBlobs:
    """Blobs that are read while their caller does something else, where there is a second reader;
    else when it wants to know.
    """

    def __init__(self, layout: Layout, second: SecondReader | None) -> None:
        self._layout = layout
        self._second = second
        self._wanted: dict[BlobKey, FileEntry] = {}

    def begin(self, entries: Collection[Entry]) -> None:
        """Begin to read the blobs of those that are files, each once. Called once."""
        files = (entry for entry in entries if isinstance(entry, FileEntry))
        self._wanted = {entry_key(entry): entry for entry in files}
        if self._second is not None:
            self._second.begin(self._sizes())

    def verify(self) -> None:
        """Wait until they are read.

        Raises:
            ArtifactMissingError: A blob is not in the store.
            ArtifactCorruptError: A blob is not what its entry says; `path` names the entry.
            StorageIoError: The system refused.
        """
        found: Iterable[bytes] | None = None
        if self._second is not None:
            found = self._second.result()
        if found is None:
            found = suspects(self._layout, self._sizes(), reads=True)
        with mapped_errors("verify the blobs of a tree"):
            for key in found:
                entry = self._wanted[BlobKey(key)]
                source = open_blob(self._layout, entry)
                try:
                    expect_read(source, entry)
                finally:
                    os.close(source)

    def _sizes(self) -> Iterator[tuple[bytes, int]]:
        return ((key, entry.size_bytes) for key, entry in self._wanted.items())


@contextlib.contextmanager
def reading_blobs(layout: Layout, entries: Collection[Entry]) -> Iterator[StoredBlobs]:
    """Give what reads the blobs of some of the entries, or of all."""
    sizes = [entry.size_bytes for entry in entries if isinstance(entry, FileEntry)]
    with second_reader(layout, files=len(sizes), size_bytes=sum(sizes)) as second:
        yield StoredBlobs(layout, second)


def verify_blobs(layout: Layout, entries: Collection[Entry]) -> None:
    """Hold the blobs of a tree, as the store has them, against its entries.

    Raises:
        As `StoredBlobs.verify`.
    """
    blobs = StoredBlobs(layout, None)
    blobs.begin(entries)
    blobs.verify()


def open_blob(layout: Layout, entry: FileEntry) -> int:
    """Open the blob of a file for reading.

    Raises:
        ArtifactMissingError, ArtifactCorruptError: As `StoredBlobs.verify`.
        OSError: The system refused.
    """
    path = layout.blob(entry.digest, executable=entry.executable)
    try:
        return open_regular(path)
    except FileNotFoundError as error:
        raise ArtifactMissingError(
            f"{os.fsdecode(entry.path)!r}: its blob {entry.digest} is not in the store"
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL):
            raise ArtifactCorruptError(entry.path, "its blob is no regular file") from error
        raise
