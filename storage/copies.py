"""Copies: where the contents of a damaged part may lie once more.

A source is asked what is lacking and offers what it has. Nobody believes it: what is offered counts
only once it was held against its name. So a source may guess, and errs on the side of offering.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from storage.blobs import entry_key
from storage.digest import Digest
from storage.envelope import ENVELOPE_BYTES_MAX
from storage.errors import ArtifactMissingError, StorageError, TreeError
from storage.files import open_regular
from storage.layout import Layout
from storage.manifest import MANIFEST_BYTES_MAX, FileEntry
from storage.parts import Part, PartKind
from storage.proof_archive import MANIFEST_NAME, PROOF_SUFFIX
from storage.reader import read_manifest
from storage.records import damage, release_statements
from storage.records.db import Records
from storage.source import SourceFile
from storage.tar import scan_tar

Lacking = Mapping[Part, int | None]
"""What is damaged, and the sizes of blobs. It shrinks while a source is asked."""

_PIECE_BYTES = 1 << 20
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/([0-9a-f]{62}(?:\.x)?)")
_ENVELOPE = re.compile(r"(?:provenance|releases)/([0-9a-f]{64})\.dsse\.json")


@dataclass(frozen=True, slots=True)
class Offer:
    """Bytes that may be those of a part; `source` says for people where they are from.

    `pieces` are read once, before the next offer is asked for. Getting one raises
    ArtifactMissingError when the copy cannot be read.
    """

    part: Part
    source: str
    size_bytes: int
    pieces: Iterator[bytes]

    @classmethod
    def of_file(cls, part: Part, path: str, source: str, size_bytes: int | None) -> Offer:
        """Offer a file. `size_bytes`: that of a blob; a statement may be as long as those are."""
        bound = size_bytes if part.kind is PartKind.BLOB else part.size_bytes_max
        assert bound is not None, "a blob's size is known"
        return cls(part, source, size_bytes or 0, _pieces(path, bound))

    @classmethod
    def of_bytes(cls, part: Part, source: str, data: bytes) -> Offer:
        return cls(part, source, len(data), iter((data,)))


Source = Callable[[Lacking], Iterator[Offer]]


def twins(layout: Layout) -> Source:
    """The same contents once more in the store, as an executable or as none."""

    def source(lacking: Lacking) -> Iterator[Offer]:
        for part, size_bytes in list(lacking.items()):
            if part.kind is PartKind.BLOB:
                path = layout.blob(part.digest, executable=not part.is_executable)
                yield Offer.of_file(part, path, "the same content in the store", size_bytes)

    return source


def issued_statements(records: Records) -> Source:
    """The release statements that the records have."""

    def source(lacking: Lacking) -> Iterator[Offer]:
        for part in list(lacking):
            if part.kind is PartKind.ENVELOPE:
                text = release_statements.envelope(records.reader(), part.name)
                if text is not None:
                    yield Offer.of_bytes(part, "the records", text.encode())

    return source


def release_folders(
    layout: Layout, records: Records, folders: Callable[[], Mapping[Digest, Iterable[Path]]]
) -> Source:
    """The release folders of a site host, and the proofs beside them.

    `folders`: where artifacts lie unpacked, by their digests.
    """

    def source(lacking: Lacking) -> Iterator[Offer]:
        unpacked = folders()
        places: dict[Digest, dict[bytes, list[str]]] = {}
        for part, size_bytes in list(lacking.items()):
            for digest in damage.trees_of(records.reader(), part):
                for folder in unpacked.get(digest, ()):
                    if part.kind is not PartKind.BLOB:
                        yield from _of_proof(folder.with_name(folder.name + PROOF_SUFFIX), lacking)
                        continue
                    if digest not in places:
                        places[digest] = _places(layout, digest)
                    for name in places[digest].get(part.key, ()):
                        where = f"the release folder {folder}"
                        yield Offer.of_file(part, f"{folder}/{name}", where, size_bytes)

    # Manifests first: where the files of a tree lie stands in them.
    def in_order(lacking: Lacking) -> Iterator[Offer]:
        yield from source({p: size for p, size in lacking.items() if p.kind is not PartKind.BLOB})
        yield from source({p: size for p, size in lacking.items() if p.kind is PartKind.BLOB})

    return in_order


def anything_at(path: Path) -> Source:
    """What somebody brings: an exported archive, or a folder with whatever in it, such as an
    unpacked archive, a checkout, or a copy of a store.
    """

    def source(lacking: Lacking) -> Iterator[Offer]:
        if path.is_dir():
            yield from _of_folder(path, lacking)
        else:
            yield from _of_archive(path, str(path), lacking)

    return source


def _places(layout: Layout, digest: Digest) -> dict[bytes, list[str]]:
    """Where in a tree the contents lie, by the keys of blobs; nowhere, if the manifest is lost."""
    found: dict[bytes, list[str]] = {}
    with contextlib.suppress(StorageError):
        for entry in read_manifest(layout, digest).entries:
            if isinstance(entry, FileEntry):
                found.setdefault(entry_key(entry), []).append(os.fsdecode(entry.path))
    return found


def _of_proof(path: Path, lacking: Lacking) -> Iterator[Offer]:
    try:
        yield from _of_archive(path, f"the proof {path}", lacking)
    except (ArtifactMissingError, TreeError):
        return  # there is none, or it is damaged too: what came before is as good as ever


def _of_archive(path: Path, source: str, lacking: Lacking) -> Iterator[Offer]:
    """Raises ArtifactMissingError when the file cannot be read; TreeInvalidError: it is no tar."""
    with _reading(path), os.fdopen(open_regular(path), "rb") as stream:
        for entry in scan_tar(stream):
            if isinstance(entry, SourceFile):
                yield from _of_member(entry, source, lacking)


def _of_member(entry: SourceFile, source: str, lacking: Lacking) -> Iterator[Offer]:
    name = os.fsdecode(entry.path).partition("/")[2]
    if blob := _BLOB.fullmatch(name):
        part = _lacking_of(Part(PartKind.BLOB, blob[1] + blob[2]), lacking)
        if part is not None and lacking[part] == entry.size_bytes:
            data = entry.read()
            pieces = iter((data,)) if isinstance(data, bytes) else data
            yield Offer(part, source, entry.size_bytes, pieces)
        return
    is_manifest = name == MANIFEST_NAME
    if (is_manifest or _ENVELOPE.fullmatch(name)) and entry.size_bytes <= MANIFEST_BYTES_MAX:
        data = entry.read()
        whole = data if isinstance(data, bytes) else b"".join(data)
        yield from _of_statement(whole, source, lacking)


def _lacking_of(part: Part, lacking: Lacking) -> Part | None:
    """Which of a content's two parts is lacking: that one first, if both are."""
    twin = part.name.removesuffix(".x") if part.is_executable else f"{part.name}.x"
    return next((p for p in (part, Part(PartKind.BLOB, twin)) if p in lacking), None)


def _of_statement(data: bytes, source: str, lacking: Lacking) -> Iterator[Offer]:
    parts = [Part.of_tree(Digest.of(data))]
    if len(data) <= ENVELOPE_BYTES_MAX:
        parts.append(Part.of_envelope(hashlib.sha256(data).hexdigest()))
    for part in parts:
        if part in lacking:
            yield Offer.of_bytes(part, source, data)


def _of_folder(folder: Path, lacking: Lacking) -> Iterator[Offer]:
    """Look at every file that could be it by its size."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = f"{parent}/{name}"
            try:
                yield from _of_loose_file(path, lacking)
            except (OSError, ArtifactMissingError):
                continue  # not there any more, not readable, no file


def _of_loose_file(path: str, lacking: Lacking) -> Iterator[Offer]:
    size_bytes = os.lstat(path).st_size
    if size_bytes in lacking.values():
        hasher = blake3()
        for piece in _pieces(path, size_bytes):
            hasher.update(piece)
        plain = Part(PartKind.BLOB, hasher.hexdigest())
        for part in (plain, Part(PartKind.BLOB, f"{plain.name}.x")):
            if part in lacking:
                yield Offer.of_file(part, path, path, size_bytes)
    wants_statements = any(part.kind is not PartKind.BLOB for part in lacking)
    if wants_statements and size_bytes <= MANIFEST_BYTES_MAX:
        data = b"".join(_pieces(path, MANIFEST_BYTES_MAX))
        yield from _of_statement(data, path, lacking)


def _pieces(path: str, size_bytes_max: int) -> Iterator[bytes]:
    """The bytes of a regular file, and not many more than it may have."""
    with _reading(path):
        fd = open_regular(path)
        try:
            left = size_bytes_max + 1
            while left > 0 and (data := os.read(fd, min(left, _PIECE_BYTES))):
                left -= len(data)
                yield data
        finally:
            os.close(fd)


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn what the system says of a copy into what it means: there is none to be had here."""
    try:
        yield
    except OSError as error:
        raise ArtifactMissingError(f"{path}: {error.strerror}") from error
