"""The manifest of a backup: each file of it, with the digest of its contents.

    gitd-backup TAB 1 TAB blake3
    f TAB <mode> TAB <time> TAB <size> TAB <64 hex> TAB <path>    a file, by its place
    b TAB <size> TAB <64 hex>                  a blob of the store
    x TAB <size> TAB <64 hex>                  a blob that is executable
    facts TAB <JSON>                           what the backup is of
    blake3 TAB <64 hex>                        the digest of all lines before

Modes are octal, times nanoseconds since 1970, sizes bytes. The last line's digest is that of the
backup: whoever keeps it elsewhere knows a backup that was changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from blake3 import blake3

from storage.backup.places import TOP
from storage.digest import Digest
from storage.errors import BackupDamagedError

HEAD = b"gitd-backup\t1\tblake3\n"
# No mode has more than 0777: whoever writes the backup would make files set-uid by it.
_FILE = re.compile(rb"f\t(0[0-7]{3})\t([0-9]{1,20})\t([0-9]{1,15})\t([0-9a-f]{64})\t([^\t\n]+)\n")
_BLOB = re.compile(rb"([bx])\t([0-9]{1,15})\t([0-9a-f]{64})\n")
_END = re.compile(rb"blake3\t([0-9a-f]{64})\n")
_PART = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")
_PIECE_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16

Where = Literal["included", "left_out", "elsewhere", "none"]


class Facts(msgspec.Struct, frozen=True):
    """What a backup is of, as its manifest says it.

    Attributes:
        made_at: When its moment was, in milliseconds.
        gitd: The version that made it; `migrations` are the steps that its database went through.
        files, size_bytes: Of all of it, as if nothing were shared; `new_bytes` is what it added.
        signing_key, root_key, variables_key: Whether it has that private key. `elsewhere`: the
            server itself did not have it in a file.
        signing_key_id: The key that signed at that moment, where that is known.
        sealed: How many values and configs are sealed under the key of variables and secrets.
        late_pushes: How many pushes came while it was made: a restored server ends them.
        audit_head: `SEQUENCE:DIGEST` of the audit log's newest line, where it has one.
        damaged: How many parts of the store, which its records name, and how many job logs are left
            out, damaged.
    """

    name: str
    made_at: int
    gitd: str
    migrations: list[str]
    sites: int
    artifacts: int
    files: int
    size_bytes: int
    new_bytes: int
    signing_key: Where
    root_key: Where
    variables_key: Where
    signing_key_id: str | None
    sealed: int
    late_pushes: int
    audit_head: str | None = None
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file: its path below the data folder, and what it is."""

    path: str
    mode: int
    mtime_ns: int
    size_bytes: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob of the artifact store."""

    digest: Digest
    size_bytes: int
    is_executable: bool


Entry = FileEntry | BlobEntry


class ManifestWriter:
    """Writes a manifest, line by line. The caller makes the file durable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = blake3()
        self.files = 0
        self.size_bytes = 0
        self._write(HEAD)

    def add(self, entry: Entry) -> None:
        if isinstance(entry, BlobEntry):
            kind = "x" if entry.is_executable else "b"
            line = f"{kind}\t{entry.size_bytes}\t{entry.digest.hex()}\n"
        else:
            line = (
                f"f\t{entry.mode:04o}\t{entry.mtime_ns}\t{entry.size_bytes}"
                f"\t{entry.digest.hex()}\t{entry.path}\n"
            )
        self.files += 1
        self.size_bytes += entry.size_bytes
        self._write(line.encode())

    def finish(self, facts: Facts) -> Digest:
        """Write the end, and return the digest of the backup."""
        self._write(b"facts\t" + msgspec.json.encode(facts) + b"\n")
        digest = Digest(self._hasher.digest())
        self._file.write(b"blake3\t" + digest.hex().encode() + b"\n")
        return digest

    def _write(self, line: bytes) -> None:
        self._hasher.update(line)
        self._file.write(line)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that is what its digest says."""

    path: Path
    facts: Facts
    digest: Digest

    @classmethod
    def open(cls, path: Path) -> Manifest:
        """Read it through, and hold it against its own digest.

        Raises:
            BackupDamagedError: It is not whole, or was changed.
        """
        tail, facts = _end_of(path)
        hasher = blake3()
        left = path.stat().st_size - len(tail)
        with path.open("rb") as file:
            while piece := file.read(min(left, _PIECE_BYTES)):
                hasher.update(piece)
                left -= len(piece)
        found = _END.fullmatch(tail)
        if found is None or hasher.hexdigest().encode() != found[1]:
            raise _damaged(path, "it is not what its own digest says")
        return cls(path, facts, Digest(hasher.digest()))

    def entries(self) -> Iterator[Entry]:
        """Yield what the backup consists of, in the order in which it was written.

        Raises:
            BackupDamagedError: A line is none.
        """
        with self.path.open("rb") as file:
            if file.readline() != HEAD:
                raise _damaged(self.path, "it begins otherwise")
            for line in file:
                if line.startswith(b"facts\t"):
                    return
                yield self._entry(line)
        raise _damaged(self.path, "it ends early")

    def files(self) -> Iterator[FileEntry]:
        return (entry for entry in self.entries() if isinstance(entry, FileEntry))

    def _entry(self, line: bytes) -> Entry:
        if blob := _BLOB.fullmatch(line):
            return BlobEntry(Digest.fromhex(blob[3].decode()), int(blob[2]), blob[1] == b"x")
        found = _FILE.fullmatch(line)
        if found is None:
            raise _damaged(self.path, "one of its lines is none")
        path = found[5].decode("utf-8", "replace")
        if not is_safe(path) or path.split("/")[0] not in TOP:
            raise _damaged(self.path, f"it names a path that leads elsewhere: {path[:200]!r}")
        digest = Digest.fromhex(found[4].decode())
        return FileEntry(path, int(found[1], 8), int(found[2]), int(found[3]), digest)


def read_facts(path: Path) -> Facts:
    """Read what a backup is of, without reading all of its manifest.

    Raises:
        BackupDamagedError: It does not end like a manifest.
    """
    return _end_of(path)[1]


def is_safe(path: str) -> bool:
    """Whether it is a plain path, which leads nowhere but down."""
    parts = path.split("/")
    return all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts)


def _end_of(path: Path) -> tuple[bytes, Facts]:
    """The last line, and the facts in the one before."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        raise _damaged(path, "it is gone") from None
    if len(lines) < 2 or not lines[-2].startswith(b"facts\t"):
        raise _damaged(path, "it ends early")
    try:
        facts = msgspec.json.decode(lines[-2].removeprefix(b"facts\t"), type=Facts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, "its facts cannot be read") from error
    return lines[-1], facts


def _damaged(path: Path, why: str) -> BackupDamagedError:
    return BackupDamagedError(f"the manifest {path} is damaged: {why}")
