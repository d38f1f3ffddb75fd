"""The layout of an artifact store: which bytes lie where. Paths only, no effects.

    FORMAT                        "cas-store 1", then the store's own id
    gate  turnstile               locks between those who publish and those who collect
    collector                     lock of the one who collects
    reserve                       room that is given up when the disk is full
    blobs/<2 hex>/<62 hex>[.x]    contents of files, by BLAKE3; .x when executable
    trees/<2 hex>/<62 hex>        manifests, by BLAKE3
    attest/<2 hex>/<64 hex>.dsse.json   signed statements, by SHA-256 of the file
    trust/root.<N>.json           which keys are trusted, generation by generation
    tmp/<lease>/                  what is being written
    quarantine/                   damaged files, as they were found

Blobs and manifests lie apart: contents that look like a manifest can never be read as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.digest import DIGEST_BYTES, Digest

FORMAT_LINE = b"cas-store 1\n"
SHARDS = tuple(f"{number:02x}" for number in range(256))
SHARDED = ("blobs", "trees", "attest")
BLOB_MODE = 0o444
EXECUTABLE_MODE = 0o555
_ENDINGS = {b"f": "", b"x": ".x"}
STATEMENT_MODE = 0o444


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def format(self) -> Path:
        return self.root / "FORMAT"

    @property
    def gate(self) -> Path:
        return self.root / "gate"

    @property
    def turnstile(self) -> Path:
        return self.root / "turnstile"

    @property
    def collector(self) -> Path:
        return self.root / "collector"

    @property
    def reserve(self) -> Path:
        return self.root / "reserve"

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def blob(self, digest: Digest, *, executable: bool) -> str:
        name = digest.hex()
        return f"{self.root}/blobs/{name[:2]}/{name[2:]}{'.x' if executable else ''}"

    def blob_folder(self, shard: int) -> str:
        """Where the blobs lie whose digest begins with that byte."""
        return f"{self.root}/blobs/{SHARDS[shard]}"

    def tree(self, digest: Digest) -> str:
        name = digest.hex()
        return f"{self.root}/trees/{name[:2]}/{name[2:]}"

    def envelope(self, sha256: str) -> str:
        return f"{self.root}/attest/{sha256[:2]}/{sha256}.dsse.json"


def blob_name(key: bytes) -> str:
    """The name of the blob with a key in the folder of its shard."""
    return key[1:DIGEST_BYTES].hex() + _ENDINGS[key[DIGEST_BYTES:]]


def blob_mode(*, executable: bool) -> int:
    return EXECUTABLE_MODE if executable else BLOB_MODE


def blob_mtime(digest: bytes) -> int:
    """Return the time, in seconds, that every copy of a blob bears: it follows from its digest.

    (Or from its key, which begins with that.)

    Equal trees look equal to `stat`, unequal contents of one size do not (so that a cache or a
    `.pyc` which goes by time and size is right), and a write by accident shows.
    """
    return 1_000_000_000 + (int.from_bytes(digest[:4], "big") & 0x1FFFFFFF)
