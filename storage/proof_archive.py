"""A proof as an archive: everything that shows that files are what a build made, in one tar.

    <artifact id>/FORMAT                       "gitd-proof 1"
    <artifact id>/trust/root.<N>.json          the trusted keys, generation by generation
    <artifact id>/keys/<64 hex>.pem            the public keys in the newest, for other tools
    <artifact id>/manifest                     the list of files; its BLAKE3 is the artifact
    <artifact id>/provenance/<64 hex>.dsse.json    envelopes, by the SHA-256 of the file
    <artifact id>/releases/<64 hex>.dsse.json
    <artifact id>/blobs/<2 hex>/<62 hex>[.x]   contents of files, as in the store

Uncompressed, in this order, with nothing in it that depends on when or by whom it was written:
equal proofs are equal archives. Without the blobs it is the proof of a folder that has the files.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3

from storage.errors import ArtifactCorruptError
from storage.files import open_regular
from storage.ids import artifact_id
from storage.layout import BLOB_MODE, EXECUTABLE_MODE, Layout
from storage.manifest import FileEntry, Manifest
from storage.signing import public_pem
from storage.trust import keyring_of

FORMAT_LINE = b"gitd-proof 1\n"
PROOF_SUFFIX = ".proof"
"""Behind the name of a release folder: the proof of what is in it, without the files."""
FORMAT_NAME = "FORMAT"
MANIFEST_NAME = "manifest"
_BLOCK_BYTES = 512
_PIECE_BYTES = 1 << 20
_USTAR_BYTES_MAX = (1 << 33) - 1  # what its octal digits can say


@dataclass(frozen=True, slots=True)
class ProofParts:
    """What a proof is made of, but for the files.

    Attributes:
        trust: The generations, the first one first.
        provenance: Envelopes; so are `releases`, which may be none.
    """

    manifest: Manifest
    trust: tuple[bytes, ...]
    provenance: tuple[bytes, ...]
    releases: tuple[bytes, ...] = ()


def write_proof(parts: ProofParts, *, files: Layout | None) -> Iterator[bytes]:
    """Give the archive piece by piece. `files`: the store that has the blobs; None leaves them out.

    Raises:
        ArtifactCorruptError: While iterating: a blob is not what the manifest says.
        OSError: While iterating: a blob cannot be read.
    """
    top = artifact_id(parts.manifest.digest)
    for name, data in _statements(parts).items():
        yield _header(f"{top}/{name}", len(data), BLOB_MODE)
        yield data + _padding(len(data))
    for entry in _blobs(parts.manifest) if files is not None else ():
        assert files is not None, "asked for above"
        mode = EXECUTABLE_MODE if entry.executable else BLOB_MODE
        yield _header(f"{top}/{blob_name(entry)}", entry.size_bytes, mode)
        yield from _contents(files, entry)
        yield _padding(entry.size_bytes)
    yield bytes(2 * _BLOCK_BYTES)


def proof_bytes(parts: ProofParts, *, with_files: bool) -> int:
    """Return how long the archive is."""
    top = artifact_id(parts.manifest.digest)
    sizes = [(name, len(data)) for name, data in _statements(parts).items()]
    if with_files:
        sizes += [(blob_name(entry), entry.size_bytes) for entry in _blobs(parts.manifest)]
    total = 2 * _BLOCK_BYTES
    for name, size_bytes in sizes:
        total += len(_header(f"{top}/{name}", size_bytes, BLOB_MODE))
        total += size_bytes + len(_padding(size_bytes))
    return total


def blob_name(entry: FileEntry) -> str:
    name = entry.digest.hex()
    return f"blobs/{name[:2]}/{name[2:]}{'.x' if entry.executable else ''}"


def public_keys(trust: Iterable[bytes]) -> dict[str, bytes]:
    """The public keys of the newest generation as files: PEM by name."""
    return dict(_public_keys(tuple(trust)))


@lru_cache(4)  # each roll writes a proof, and these hardly ever change
def _public_keys(trust: tuple[bytes, ...]) -> dict[str, bytes]:
    keyring = keyring_of(trust, root_key_ids=None)
    publics = {**keyring.roots, **{name: key.public for name, key in keyring.keys.items()}}
    return {
        f"keys/{name.removeprefix('ed25519:')}.pem": public_pem(publics[name])
        for name in sorted(publics)
    }


def _statements(parts: ProofParts) -> Mapping[str, bytes]:
    generations = {f"trust/root.{n}.json": data for n, data in enumerate(parts.trust, start=1)}
    return {
        FORMAT_NAME: FORMAT_LINE,
        **generations,
        **public_keys(parts.trust),
        MANIFEST_NAME: parts.manifest.data,
        **_envelopes("provenance", parts.provenance),
        **_envelopes("releases", parts.releases),
    }


def _envelopes(folder: str, envelopes: Iterable[bytes]) -> dict[str, bytes]:
    named = {hashlib.sha256(data).hexdigest(): data for data in envelopes}
    return {f"{folder}/{name}.dsse.json": named[name] for name in sorted(named)}


def _blobs(manifest: Manifest) -> list[FileEntry]:
    """The files of a tree, each content once, in the order of their names."""
    files = {blob_name(entry): entry for entry in manifest.entries if isinstance(entry, FileEntry)}
    return [files[name] for name in sorted(files)]


def _header(name: str, size_bytes: int, mode: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, mode
    is_large = size_bytes > _USTAR_BYTES_MAX
    return member.tobuf(tarfile.PAX_FORMAT if is_large else tarfile.USTAR_FORMAT)


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % _BLOCK_BYTES)


def _contents(files: Layout, entry: FileEntry) -> Iterator[bytes]:
    """The bytes of a blob, held against its digest on their way."""
    hasher = blake3()
    left = entry.size_bytes
    fd = open_regular(files.blob(entry.digest, executable=entry.executable))
    try:
        while left and (data := os.read(fd, min(left, _PIECE_BYTES))):
            hasher.update(data)
            left -= len(data)
            yield data
    finally:
        os.close(fd)
    if left or hasher.digest() != entry.digest:
        raise ArtifactCorruptError(entry.path, "its bytes are not what the manifest says")
