"""Proofs: whether files are what a build of this server made, without the server.

The same rules as the site host goes by, on an archive (`storage.proof_archive`), on what was
unpacked of one, or on a release folder beside its proof. Whom to believe is for the caller to say:
see `Beliefs`.

`mf` uses this module and what it imports: nothing of that knows the records, or writes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from storage.envelope import ENVELOPE_BYTES_MAX, IN_TOTO_TYPE, unseal
from storage.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    ReleaseInvalidError,
    SignatureInvalidError,
    TreeInvalidError,
)
from storage.files import mapped_errors, open_regular, read_bounded, read_up_to
from storage.ids import ArtifactId, artifact_id
from storage.links import escaping_link
from storage.manifest import MANIFEST_BYTES_MAX, FileEntry, Manifest
from storage.proof_archive import (
    FORMAT_LINE,
    FORMAT_NAME,
    MANIFEST_NAME,
    PROOF_SUFFIX,
    blob_name,
    public_keys,
)
from storage.provenance import Provenance, parse_provenance
from storage.release_statement import ReleaseStatement, parse_release
from storage.source import SourceDirectory, SourceFile
from storage.tar import scan_tar
from storage.trust import Keyring, check_succession, keyring_of, load_keyring
from storage.unpacked import verify_tree

STATEMENTS_BYTES_MAX = 64 << 20
"""Of all statements, keys and generations together."""
_PIECE_BYTES = 1 << 20
_ENVELOPE = re.compile(r"(provenance|releases)/([0-9a-f]{64})\.dsse\.json")
_GENERATION = re.compile(r"trust/root\.([1-9][0-9]{0,4})\.json")
_KEY = re.compile(r"keys/[0-9a-f]{64}\.pem")
_BLOB = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{62}(\.x)?")


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What the caller knows that does not come from the proof.

    A proof brings the generations of trust that there were when it was made, or fewer: a key that
    was revoked since is good by them.

    Attributes:
        root_key_ids: The root keys that trust begins with; None believes the proof's own.
        min_generation: How many generations there are at least.
        known: Generations from elsewhere. The proof's must be among them, or go on from them; the
            newest of all counts.
    """

    root_key_ids: frozenset[str] | None = None
    min_generation: int = 1
    known: Keyring | None = None

    @classmethod
    def read(
        cls, root_key_ids: frozenset[str] | None, min_generation: int, trust: Path | None
    ) -> Beliefs:
        """`trust`: a folder of generations to know, if there is one.

        Raises:
            SignatureInvalidError: They do not hold.
        """
        known = load_keyring(trust, root_key_ids=root_key_ids) if trust is not None else None
        return cls(root_key_ids, min_generation, known)

    @property
    def is_pinned(self) -> bool:
        return self.root_key_ids is not None or self.known is not None

    def newest(self, keyring: Keyring) -> Keyring:
        """Return the generation to go by, of a proof that ends with `keyring`.

        Raises:
            SignatureInvalidError: It ends too early, or is of other generations.
        """
        if self.known is not None:
            older, keyring = sorted((keyring, self.known), key=lambda one: one.version)
            check_succession(older.seen, keyring)
        if keyring.version < self.min_generation:
            raise SignatureInvalidError(
                f"trust: the proof ends with generation {keyring.version}, and there are"
                f" {self.min_generation}: what was revoked in newer ones is not known"
            )
        return keyring


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement that holds, and the key that vouches for it."""

    provenance: Provenance
    key_id: str


@dataclass(frozen=True, slots=True)
class Released:
    """A release statement that holds, and the key that vouches for it."""

    release: ReleaseStatement
    key_id: str


@dataclass(frozen=True, slots=True)
class Proven:
    """What was found to be so.

    Attributes:
        keyring: The newest generation of trust in the proof, or that the caller knew.
        is_pinned: The root keys are those that the caller named, or knew.
        provenance: One or more; the newest build last.
        releases: By environment and sequence.
    """

    manifest: Manifest
    keyring: Keyring
    is_pinned: bool
    provenance: tuple[Signed, ...]
    releases: tuple[Released, ...]

    @property
    def artifact_id(self) -> ArtifactId:
        return artifact_id(self.manifest.digest)


def verify_archive(stream: BinaryIO, beliefs: Beliefs) -> Proven:
    """Check an archive with its files, in one pass.

    Raises:
        SignatureInvalidError: The keys, a signature or a statement does not hold.
        ArtifactCorruptError: A file, or the archive itself, is not what it must be.
        ArtifactMissingError: Something is not in it.
    """
    return _collected(_of_tar(stream)).proven(beliefs, with_files=True)


def verify_unpacked(folder: Path, beliefs: Beliefs) -> Proven:
    """Check the folder that an archive was unpacked to. Raises as `verify_archive`."""
    with mapped_errors(f"read {folder}"):
        return _collected(_of_folder(folder)).proven(beliefs, with_files=True)


def verify_release_folder(folder: Path, proof: BinaryIO, beliefs: Beliefs) -> Proven:
    """Hold a release folder against a proof, with or without files in it.

    Raises:
        StorageError: As `verify_archive` and `storage.materialise.verify_tree`.
    """
    proven = _collected(_of_tar(proof)).proven(beliefs, with_files=False)
    verify_tree(folder, proven.manifest)
    return proven


def verify_bare(folder: Path, manifest: Path) -> tuple[ArtifactId, Manifest]:
    """Hold a folder against a manifest alone, and return whose it is; no signature is checked.

    Raises:
        StorageError: As `storage.materialise.verify_tree`, or the manifest is none.
    """
    with mapped_errors(f"read {manifest}"):
        found = Manifest.parse(read_bounded(manifest, size_bytes_max=MANIFEST_BYTES_MAX))
    verify_tree(folder, found)
    return artifact_id(found.digest), found


def proof_beside(folder: Path) -> Path:
    """Where the site host puts the proof of a release folder."""
    return folder.with_name(f"{folder.name}{PROOF_SUFFIX}")


def is_unpacked(folder: Path) -> bool:
    """Say whether an archive was unpacked here, and not a release."""
    try:
        fd = open_regular(folder / FORMAT_NAME)
    except OSError:
        return False
    try:
        return read_up_to(fd, len(FORMAT_LINE)) == FORMAT_LINE
    finally:
        os.close(fd)


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a proof: `pieces` are its bytes, to be taken before the next member."""

    name: str
    size_bytes: int
    pieces: Iterator[bytes]


def _of_tar(stream: BinaryIO) -> Iterator[_Member]:
    top = None
    for entry in scan_tar(stream):
        if isinstance(entry, SourceDirectory):
            continue
        first, _, name = os.fsdecode(entry.path).partition("/")
        if not isinstance(entry, SourceFile) or not name or first != (top or first):
            raise ArtifactCorruptError(entry.path, "is nothing that a proof has")
        top = first
        read = entry.read()
        pieces = iter((read,)) if isinstance(read, bytes) else read
        yield _Member(name, entry.size_bytes, pieces)


def _of_folder(folder: Path) -> Iterator[_Member]:
    for parent, _, names in os.walk(folder):
        for file_name in names:
            path = Path(parent, file_name)
            name = path.relative_to(folder).as_posix()
            try:
                fd = open_regular(path)
            except OSError as error:
                raise ArtifactCorruptError(os.fsencode(name), str(error.strerror)) from error
            try:
                yield _Member(name, os.fstat(fd).st_size, _pieces(fd))
            finally:
                os.close(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, _PIECE_BYTES):
        yield data


class _Collected:
    """The members of a proof, each known by its name; blobs by their digest and length."""

    def __init__(self) -> None:
        self.small: dict[str, bytes] = {}
        self.blobs: dict[str, int] = {}
        self._small_bytes = 0

    def take(self, member: _Member) -> None:
        if _BLOB.fullmatch(member.name):
            self._take_blob(member)
        else:
            self._take_small(member)

    def _take_blob(self, member: _Member) -> None:
        hasher = blake3()
        count = 0
        for data in member.pieces:
            hasher.update(data)
            count += len(data)
        named = member.name.removeprefix("blobs/").replace("/", "").removesuffix(".x")
        if hasher.hexdigest() != named or count != member.size_bytes:
            raise ArtifactCorruptError(member.name.encode(), "its bytes are not what it is named")
        self._once(member.name)
        self.blobs[member.name] = count

    def _take_small(self, member: _Member) -> None:
        size_bytes_max = _bound(member.name)
        if member.size_bytes > size_bytes_max:
            raise ArtifactCorruptError(member.name.encode(), "is longer than it may be")
        self._once(member.name)
        data = self.small[member.name] = b"".join(member.pieces)
        self._small_bytes += len(data)
        if self._small_bytes > MANIFEST_BYTES_MAX + STATEMENTS_BYTES_MAX:
            raise ArtifactCorruptError(b"", "the proof has too many statements")

    def _once(self, name: str) -> None:
        if name in self.small or name in self.blobs:
            raise ArtifactCorruptError(name.encode(), "stands twice")

    # -- checking --------------------------------------------------------------------------------

    def proven(self, beliefs: Beliefs, *, with_files: bool) -> Proven:
        if self.small.get(FORMAT_NAME) != FORMAT_LINE:
            raise ArtifactCorruptError(b"", "this is no proof of a format that is known here")
        keyring = beliefs.newest(self._keyring(beliefs.root_key_ids))
        manifest = self._manifest()
        provenance = self._provenance(keyring, manifest)
        releases = self._releases(keyring, manifest, provenance)
        if with_files:
            self._check_files(manifest)
        by_build = sorted(provenance.values(), key=lambda one: one.provenance.build_id)
        return Proven(manifest, keyring, beliefs.is_pinned, tuple(by_build), releases)

    def _keyring(self, root_key_ids: frozenset[str] | None) -> Keyring:
        names = [name for name in self.small if _GENERATION.fullmatch(name)]
        expected = [f"trust/root.{number}.json" for number in range(1, len(names) + 1)]
        if set(names) != set(expected):
            raise SignatureInvalidError("trust: a generation is missing")
        trust = [self.small[name] for name in expected]
        keyring = keyring_of(trust, root_key_ids=root_key_ids)
        keys = {name: data for name, data in self.small.items() if _KEY.fullmatch(name)}
        if keys != public_keys(trust):
            raise SignatureInvalidError("the keys are not those that are trusted")
        return keyring

    def _manifest(self) -> Manifest:
        data = self.small.get(MANIFEST_NAME)
        if data is None:
            raise ArtifactMissingError("the proof has no manifest")
        manifest = Manifest.parse(data)
        if link := escaping_link(manifest.entries):
            raise ArtifactCorruptError(link.path, "the link leads out of the tree")
        return manifest

    def _provenance(self, keyring: Keyring, manifest: Manifest) -> dict[str, Signed]:
        """What holds, by the SHA-256 of the envelopes."""
        found = {}
        for name, data in self._envelopes("provenance").items():
            opened = unseal(data, payload_type=IN_TOTO_TYPE, public_key=keyring.provenance_key)
            said = parse_provenance(opened.body, manifest)
            key_id = keyring.authorize(opened.key_ids, builder=said.builder, site=said.site)
            found[name] = Signed(said, key_id)
        if not found:
            raise ArtifactMissingError("the proof has no provenance")
        return found

    def _releases(
        self, keyring: Keyring, manifest: Manifest, provenance: Mapping[str, Signed]
    ) -> tuple[Released, ...]:
        found = []
        for data in self._envelopes("releases").values():
            opened = unseal(data, payload_type=IN_TOTO_TYPE, public_key=keyring.release_key)
            said = parse_release(
                opened.body, digest=manifest.digest, manifest_sha256=manifest.sha256
            )
            key_id = keyring.authorize_release(opened.key_ids, site=said.site, is_new=False)
            built = provenance.get(said.provenance_sha256)
            if built is None:
                raise ReleaseInvalidError("a release goes by a provenance that is not here")
            if said.site != built.provenance.site:
                raise ReleaseInvalidError(
                    f"a release of {said.site} goes by a provenance of {built.provenance.site}"
                )
            found.append(Released(said, key_id))
        return tuple(sorted(found, key=lambda one: (one.release.env_id, one.release.sequence)))

    def _envelopes(self, folder: str) -> dict[str, bytes]:
        """The envelopes of a kind by the SHA-256 of their files, which is their name."""
        found = {}
        for name, data in self.small.items():
            match = _ENVELOPE.fullmatch(name)
            if match is not None and match[1] == folder:
                if hashlib.sha256(data).hexdigest() != match[2]:
                    raise SignatureInvalidError(f"{name} is not what it is named")
                found[match[2]] = data
        return found

    def _check_files(self, manifest: Manifest) -> None:
        wanted = {
            blob_name(entry): entry for entry in manifest.entries if isinstance(entry, FileEntry)
        }
        for name, entry in wanted.items():
            if name not in self.blobs:
                raise ArtifactMissingError(f"{os.fsdecode(entry.path)!r} is not in the proof")
            if self.blobs[name] != entry.size_bytes:
                raise ArtifactCorruptError(entry.path, "its size is not what the manifest says")
        if extra := self.blobs.keys() - wanted.keys():
            raise ArtifactCorruptError(min(extra).encode(), "is not in the manifest")


def _collected(members: Iterator[_Member]) -> _Collected:
    found = _Collected()
    try:
        for member in members:
            found.take(member)
    except TreeInvalidError as error:
        raise ArtifactCorruptError(b"", f"the archive is no proof: {error}") from error
    return found


def _bound(name: str) -> int:
    """How long a file of a proof may be; refuses what is none."""
    if name == FORMAT_NAME:
        return len(FORMAT_LINE)
    if name == MANIFEST_NAME:
        return MANIFEST_BYTES_MAX
    if _ENVELOPE.fullmatch(name) or _GENERATION.fullmatch(name) or _KEY.fullmatch(name):
        return ENVELOPE_BYTES_MAX
    raise ArtifactCorruptError(os.fsencode(name), "is nothing that a proof has")
