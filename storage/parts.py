"""Parts of a store: the files that are named by what is in them.

A part is a blob, a manifest or an envelope. Its name says what bytes it must have, so that any copy
from anywhere is as good as the first one, once it was held against the name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from storage.blobs import BlobKey, blob_key, is_executable
from storage.digest import DIGEST_BYTES, Digest
from storage.envelope import ENVELOPE_BYTES_MAX
from storage.layout import Layout
from storage.manifest import MANIFEST_BYTES_MAX


class PartKind(StrEnum):
    BLOB = "blob"
    TREE = "tree"
    ENVELOPE = "envelope"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a store by its name: 64 hexadecimal digits, and `.x` behind an executable's."""

    kind: PartKind
    name: str

    @classmethod
    def of_blob(cls, key: bytes) -> Part:
        name = key[:DIGEST_BYTES].hex()
        return cls(PartKind.BLOB, f"{name}.x" if is_executable(key) else name)

    @classmethod
    def of_tree(cls, digest: bytes) -> Part:
        return cls(PartKind.TREE, digest.hex())

    @classmethod
    def of_envelope(cls, sha256: str) -> Part:
        return cls(PartKind.ENVELOPE, sha256)

    @property
    def digest(self) -> Digest:
        """The BLAKE3 of its bytes; not of an envelope, whose name is a SHA-256."""
        return Digest.fromhex(self.name[: 2 * DIGEST_BYTES])

    @property
    def key(self) -> BlobKey:
        return blob_key(self.digest, executable=self.is_executable)

    @property
    def is_executable(self) -> bool:
        return self.name.endswith(".x")

    @property
    def size_bytes_max(self) -> int:
        """How large it may be; of a blob its row knows."""
        return ENVELOPE_BYTES_MAX if self.kind is PartKind.ENVELOPE else MANIFEST_BYTES_MAX

    def path(self, layout: Layout) -> str:
        if self.kind is PartKind.BLOB:
            return layout.blob(self.digest, executable=self.is_executable)
        if self.kind is PartKind.TREE:
            return layout.tree(self.digest)
        return layout.envelope(self.name)

    def names(self, data: bytes) -> bool:
        """Whether its name is that of these bytes."""
        if self.kind is PartKind.ENVELOPE:
            return hashlib.sha256(data).hexdigest() == self.name
        return Digest.of(data) == self.digest

    def __str__(self) -> str:
        if self.kind is PartKind.BLOB:
            return f"blob {self.digest}{' (executable)' if self.is_executable else ''}"
        if self.kind is PartKind.TREE:
            return f"manifest {self.digest}"
        return f"envelope {self.name}"
