"""The store's reader: verifies artifacts and trusts nothing, not even who wrote the store."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage import materialise, trust
from storage.digest import Digest
from storage.envelope import ENVELOPE_BYTES_MAX, IN_TOTO_TYPE, unseal
from storage.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    ReleaseElsewhereError,
    ReleaseExpiredError,
    ReleaseInvalidError,
    ReleaseReplayedError,
    SignatureInvalidError,
    StoreUnusableError,
)
from storage.files import mapped, read_bounded
from storage.layout import FORMAT_LINE, Layout
from storage.links import escaping_link
from storage.manifest import MANIFEST_BYTES_MAX, Manifest, TreeName
from storage.proof_archive import ProofParts
from storage.provenance import Provenance, parse_provenance
from storage.release_statement import ReleaseStatement, parse_release
from storage.stored_blobs import StoredBlobs, reading_blobs, verify_blobs
from storage.trust import Keyring
from storage.trust_memory import TrustMemory

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class VerifiedArtifact:
    """An artifact whose manifest and signature hold; its files are not read yet.

    Attributes:
        key_id: The trusted key that vouches for it.
        trust_version: The generation of trust that it was checked against.
    """

    digest: Digest
    manifest: Manifest
    provenance: Provenance
    envelope_sha256: str
    key_id: str
    trust_version: int

    @property
    def manifest_sha256(self) -> str:
        return self.manifest.sha256


@dataclass(frozen=True, slots=True)
class Vouched:
    """A tree that a trusted key vouches for, known by its digests alone."""

    digest: Digest
    manifest_sha256: str
    provenance: Provenance
    envelope_sha256: str
    key_id: str
    trust_version: int


class StoreReader:
    """The site host's side of a store: no records, no writing to it. Any thread may use it.

    `root_key_ids` pins the root keys that trust begins with; None believes the store's own.
    `memory` keeps the newest generation of trust beyond this process, where there is one.
    """

    def __init__(
        self,
        root: Path,
        *,
        root_key_ids: frozenset[str] | None = None,
        memory: TrustMemory | None = None,
    ) -> None:
        self.layout = Layout(root)
        self._root_key_ids = root_key_ids
        self._memory = memory
        self._keyring: tuple[object, Keyring] | None = None
        self._loading = threading.Lock()

    def keyring(self) -> Keyring:
        """Return the newest generation of trusted keys; read again when the folder changed.

        Raises:
            SignatureInvalidError: There is none, they do not hold, or they are not those, or what
                followed on those, that were seen before.
        """
        with self._loading:
            seen = _state(self.layout.trust)
            if self._keyring is None or self._keyring[0] != seen:
                keyring = trust.load_keyring(self.layout.trust, root_key_ids=self._root_key_ids)
                if self._keyring is not None:
                    trust.check_succession(self._keyring[1].seen, keyring)
                if self._memory is not None:
                    self._memory.take(keyring)
                self._keyring = (seen, keyring)
            return self._keyring[1]

    def verify(
        self,
        digest: Digest,
        envelope_sha256: str,
        *,
        site: str | None = None,
        manifest: Manifest | None = None,
    ) -> VerifiedArtifact:
        """Check the manifest and who vouches for it. Takes under a millisecond for small trees.

        `envelope_sha256`: which statement of provenance to go by, in hexadecimal.
        `manifest`: that of this digest, when the caller has just read it from this store.
        `site`: the statement must be for this site.

        Raises:
            ArtifactMissingError: The manifest or the envelope is not there.
            ArtifactCorruptError: The manifest is not what its digest says, or is none.
            SignatureInvalidError: The envelope does not hold, is about another artifact or site,
                or its key may not vouch for it.
            StoreUnusableError: The folder is no store of a known format.
        """
        self._check_format()
        if manifest is None or manifest.digest != digest:
            manifest = self.manifest(digest)
        return self.vouched(manifest, envelope_sha256, site=site)

    def vouched(
        self, manifest: Manifest, envelope_sha256: str, *, site: str | None = None
    ) -> VerifiedArtifact:
        """Check who vouches for a manifest that was read from this store. As `verify`."""
        found = self.vouch(manifest, envelope_sha256, site=site)
        return VerifiedArtifact(
            manifest.digest,
            manifest,
            found.provenance,
            envelope_sha256,
            found.key_id,
            found.trust_version,
        )

    def vouch(self, tree: TreeName, envelope_sha256: str, *, site: str | None = None) -> Vouched:
        """Check who vouches for a tree that is known by its digests. Raises as `verify`."""
        keyring = self.keyring()
        opened = unseal(
            self.envelope(envelope_sha256),
            payload_type=IN_TOTO_TYPE,
            public_key=keyring.provenance_key,
        )
        provenance = parse_provenance(opened.body, tree)
        key_id = keyring.authorize(opened.key_ids, builder=provenance.builder, site=provenance.site)
        if site is not None and provenance.site != site:
            raise SignatureInvalidError(f"the artifact was built for another site than {site}")
        return Vouched(
            tree.digest, tree.sha256, provenance, envelope_sha256, key_id, keyring.version
        )

    def verify_blobs(self, verified: VerifiedArtifact) -> None:
        """Read every file of the artifact in the store. See `storage.stored_blobs`."""
        verify_blobs(self.layout, verified.manifest.entries)

    @contextlib.contextmanager
    def reading_blobs(self, verified: VerifiedArtifact) -> Iterator[StoredBlobs]:
        """As `verify_blobs`, beside what the caller does: `verify` of what it gives ends it."""
        entries = verified.manifest.entries
        with reading_blobs(self.layout, entries) as blobs:
            blobs.begin(entries)
            yield blobs

    def verify_release(
        self,
        data: bytes,
        verified: VerifiedArtifact | Vouched,
        *,
        env_id: str,
        above: int | None,
        now_ms: int,
    ) -> ReleaseStatement:
        """Check an envelope that says that a verified artifact may run on an environment.

        `above`: the sequence that the environment went by before; None when it went by this very
        statement.

        Raises:
            ReleaseInvalidError: It does not hold, or is about another artifact or site; a leaf of
                it: about another environment, by a retired key, not new enough, or expired.
            SignatureInvalidError: The trusted keys do not hold.
        """
        keyring = self.keyring()
        digest, manifest_sha256 = verified.digest, verified.manifest_sha256
        try:
            opened = unseal(data, payload_type=IN_TOTO_TYPE, public_key=keyring.release_key)
        except SignatureInvalidError as error:
            raise ReleaseInvalidError(f"the release statement: {error}") from error
        said = parse_release(opened.body, digest=digest, manifest_sha256=manifest_sha256)
        keyring.authorize_release(opened.key_ids, site=said.site, is_new=above is not None)
        if (said.site, said.provenance_sha256) != (
            verified.provenance.site,
            verified.envelope_sha256,
        ):
            raise ReleaseInvalidError("the release statement goes by another provenance")
        if said.env_id != env_id:
            raise ReleaseElsewhereError(
                f"the release statement is for {said.environment} ({said.env_id}), not for {env_id}"
            )
        if above is not None and said.sequence <= above:
            raise ReleaseReplayedError(
                f"the release statement has the sequence {said.sequence}, and the environment went"
                f" by {above} before"
            )
        if said.is_over(now_ms):
            raise ReleaseExpiredError(f"the release statement held until {said.expires_at}")
        return said

    def materialise(
        self, verified: VerifiedArtifact, dest: Path, *, beside: Path | None = None
    ) -> None:
        """Unpack the artifact as the new folder `dest`; not durable. See `storage.materialise`.

        The store has the bytes durably: a site host verifies each folder again before it uses it
        after a start, and has no reason to wait for the disk before it switches.
        """
        materialise.materialise(self.layout, verified.manifest, dest, durable=False, beside=beside)

    def proof(
        self, manifest: Manifest, provenance: Sequence[str], releases: Sequence[bytes]
    ) -> ProofParts:
        """Gather what proves a tree: its statements by their names, and releases as they are.

        Raises:
            ArtifactMissingError: An envelope is not there.
            SignatureInvalidError: An envelope, or the trusted keys, are not what they must be.
        """
        return ProofParts(
            manifest,
            tuple(trust.read_generations(self.layout.trust)),
            tuple(self.envelope(name) for name in provenance),
            tuple(releases),
        )

    def manifest(self, digest: Digest) -> Manifest:
        """Read a manifest and hold it against its digest; who vouches for it is not asked.

        Raises:
            ArtifactMissingError: It is not there.
            ArtifactCorruptError: It is not what its digest says, or is none.
        """
        return read_manifest(self.layout, digest)

    def envelope(self, sha256: str) -> bytes:
        """Read the file of an envelope and hold it against its name; signatures are not checked.

        Raises:
            ArtifactMissingError: It is not there.
            SignatureInvalidError: It is not what its name says.
        """
        if not _SHA256.fullmatch(sha256):
            raise SignatureInvalidError("not the name of an envelope")
        try:
            data = read_bounded(self.layout.envelope(sha256), size_bytes_max=ENVELOPE_BYTES_MAX)
        except FileNotFoundError as error:
            raise ArtifactMissingError(f"the envelope {sha256} is not in the store") from error
        except OSError as error:
            raise mapped(error, f"read the envelope {sha256}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SignatureInvalidError(f"the envelope is not what {sha256} names")
        return data

    def _check_format(self) -> None:
        path = self.layout.format
        try:
            data = read_bounded(path, size_bytes_max=4096)
        except OSError as error:
            raise StoreUnusableError(f"{path}: {error.strerror}") from error
        if not data.startswith(FORMAT_LINE):
            raise StoreUnusableError(f"{path} names a format that this program does not know")


def read_manifest(layout: Layout, digest: Digest) -> Manifest:
    """As `StoreReader.manifest`."""
    manifest = Manifest.parse(read_manifest_bytes(layout, digest))
    if link := escaping_link(manifest.entries):
        raise ArtifactCorruptError(link.path, "the link leads out of the tree")
    return manifest


def read_manifest_bytes(layout: Layout, digest: Digest) -> bytes:
    """Read the bytes of a manifest and hold them against its digest.

    Raises:
        ArtifactMissingError: It is not there.
        ArtifactCorruptError: It is not what its digest says.
    """
    try:
        data = read_bounded(layout.tree(digest), size_bytes_max=MANIFEST_BYTES_MAX)
    except FileNotFoundError as error:
        raise ArtifactMissingError(f"the manifest {digest} is not in the store") from error
    except OSError as error:
        raise mapped(error, f"read the manifest {digest}") from error
    if Digest.of(data) != digest:
        raise ArtifactCorruptError(b"", f"the manifest is not what {digest} names")
    return data


def _state(folder: Path) -> object:
    """Return what changes whenever a file of the folder is added, removed or written."""
    try:
        return sorted(
            (path.name, (status := path.stat()).st_ino, status.st_size, status.st_ctime_ns)
            for path in folder.iterdir()
        )
    except OSError as error:
        raise SignatureInvalidError(f"trust: {error}") from error
