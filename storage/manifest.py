"""A manifest: the sorted list of what is in a tree. Its BLAKE3 is the artifact's digest.

One header line, then one line per entry, in the order of the paths' bytes; a directory stands
before what it holds, and is listed even when it holds nothing:

    cas-tree TAB 1 TAB blake3
    <path> TAB d TAB - TAB -
    <path> TAB f TAB <size> TAB <64 lower hex>       a file; x instead of f when executable
    <path> TAB l TAB <len(target)> TAB <target>      a symbolic link

A tree has exactly one manifest: no spelling of it is free, so equal trees have equal digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, Protocol

from storage.digest import KEY_BYTES, Digest, split
from storage.errors import ManifestInvalidError

HEADER = b"cas-tree\t1\tblake3\n"
ENTRIES_MAX = 200_000
FILES_MAX = 100_000
MANIFEST_BYTES_MAX = 64 << 20
PATH_BYTES_MAX = 4095
NAME_BYTES_MAX = 255
NAME = rb"[^\x00-\x1f\x7f/]{1,%d}" % NAME_BYTES_MAX
DEPTH_MAX = 64
PATH = re.compile(rb"%s(?:/%s){0,%d}" % (NAME, NAME, DEPTH_MAX - 1))
TARGET = re.compile(rb"[^\x00-\x1f\x7f]{1,4095}")
_LINE = re.compile(
    rb"(%s)\t(?:(d)\t-\t-|([fx])\t(0|[1-9][0-9]{0,14})\t([0-9a-f]{64})"
    rb"|(l)\t([1-9][0-9]{0,3})\t(%s))" % (PATH.pattern, TARGET.pattern)
)
# The lines of files, by what makes a key of their digest, in hexadecimal. Neither names nor links
# have tabs.
_FILE_LINES = tuple(
    (kind.hex().encode(), re.compile(rb"\t" + kind + rb"\t\d+\t(.{64})\n")) for kind in (b"f", b"x")
)
_path = attrgetter("path")
_FILE_SIZE = re.compile(rb"\t[fx]\t(\d+)\t.{64}\n")


class TreeName(Protocol):
    """Something that knows by which digests statements name a tree: `sha256` in hexadecimal."""

    @property
    def digest(self) -> Digest: ...

    @property
    def sha256(self) -> str: ...


class DirectoryEntry(NamedTuple):
    path: bytes


class FileEntry(NamedTuple):
    path: bytes
    executable: bool
    size_bytes: int
    digest: Digest


class LinkEntry(NamedTuple):
    path: bytes
    target: bytes


Entry = DirectoryEntry | FileEntry | LinkEntry


@dataclass(frozen=True, slots=True)
class Manifest:
    """A valid manifest: its exact bytes and what they say.

    Attributes:
        data: The bytes that the digests are of.
        digest: BLAKE3 of `data`: the digest of the artifact.
        sha256: SHA-256 of `data` in hexadecimal, for tools that do not know BLAKE3.
        entries: In the order of the paths' bytes; paths are relative, without `.` and `..`.
        files: How many entries are files.
        size_bytes: The files' sizes together.
    """

    data: bytes
    digest: Digest
    sha256: str
    entries: tuple[Entry, ...]
    files: int
    size_bytes: int

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read a manifest; trust nothing in it.

        A manifest without any file is valid; whether one may be stored is the ingest's policy.

        Raises:
            ManifestInvalidError: Any byte of it is not as `encode` would have written it.
        """
        entries = _parse(data)
        if encode(entries) != data:
            raise ManifestInvalidError("not in canonical form")
        return cls._of_parsed(data, entries)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """Make the manifest of a tree; the entries may come in any order.

        Raises:
            ManifestInvalidError: The entries do not form a tree.
        """
        data = encode(sorted(entries, key=_path))
        return cls._of_parsed(data, _parse(data))

    @classmethod
    def of_tree(cls, entries: Iterable[Entry]) -> Manifest:
        """Make the manifest of entries that are known to form a tree, such as a draft's.

        The same manifest as `of` makes, without reading again what was written.
        """
        ordered = tuple(sorted(entries, key=_path))
        return cls._of_parsed(encode(ordered), ordered)

    @classmethod
    def _of_parsed(cls, data: bytes, entries: tuple[Entry, ...]) -> Manifest:
        files = [entry for entry in entries if type(entry) is FileEntry]
        if len(files) > FILES_MAX:
            raise ManifestInvalidError("too many files")
        return cls(
            data=data,
            digest=Digest.of(data),
            sha256=hashlib.sha256(data).hexdigest(),
            entries=entries,
            files=len(files),
            size_bytes=sum(entry.size_bytes for entry in files),
        )


def encode(entries: Iterable[Entry]) -> bytes:
    """Write entries that stand in order as the bytes of a manifest."""
    return HEADER + b"".join([_line(entry) for entry in entries])


def _line(entry: Entry) -> bytes:
    if isinstance(entry, FileEntry):
        kind = b"x" if entry.executable else b"f"
        return b"%s\t%s\t%d\t%s\n" % (
            entry.path,
            kind,
            entry.size_bytes,
            entry.digest.hex().encode(),
        )
    if isinstance(entry, LinkEntry):
        return b"%s\tl\t%d\t%s\n" % (entry.path, len(entry.target), entry.target)
    return b"%s\td\t-\t-\n" % entry.path


def _parse(data: bytes) -> tuple[Entry, ...]:
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestInvalidError("too long")
    if not data.startswith(HEADER) or not data.endswith(b"\n"):
        raise ManifestInvalidError("no header, or cut short")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestInvalidError("not UTF-8") from error
    lines = data[len(HEADER) : -1].split(b"\n") if len(data) > len(HEADER) else []
    if len(lines) > ENTRIES_MAX:
        raise ManifestInvalidError("too many entries")
    return tuple(_parse_lines(lines))


def _parse_lines(lines: list[bytes]) -> list[Entry]:
    entries: list[Entry] = []
    directories = {b""}
    previous = b""
    match_line = _LINE.fullmatch
    from_hex = Digest.fromhex
    for number, line in enumerate(lines, 2):
        match = match_line(line)
        if match is None:
            raise ManifestInvalidError(f"line {number} is malformed")
        path, is_directory, kind, size, digest, _, target_bytes, target = match.groups()
        if path <= previous or len(path) > PATH_BYTES_MAX:
            raise ManifestInvalidError(f"line {number} is out of order, or its path too long")
        previous = path
        parent, _, name = path.rpartition(b"/")
        # The parent must be a directory already seen: nothing hangs below a file or a link.
        if parent not in directories or name in (b".", b".."):
            raise ManifestInvalidError(f"line {number} has no parent, or is no name")
        if kind:
            entries.append(
                FileEntry(path, kind == b"x", int(size), from_hex(digest.decode("ascii")))
            )
        elif is_directory:
            directories.add(path)
            entries.append(DirectoryEntry(path))
        elif int(target_bytes) == len(target):
            entries.append(LinkEntry(path, target))
        else:
            raise ManifestInvalidError(f"line {number} has a wrong length")
    return entries


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """What a manifest says of its tree as a whole. `keys` are those of its blobs, as the records
    have them.
    """

    digest: Digest
    sha256: str
    files: int
    size_bytes: int
    manifest_bytes: int
    keys: frozenset[bytes]


def read_facts(data: bytes) -> TreeFacts:
    """Read what a manifest says as a whole, in a fraction of the time that `Manifest.parse` takes.

    For bytes that are what their digest says, and so were parsed when they were taken in.
    """
    sizes = _FILE_SIZE.findall(data)
    return TreeFacts(
        digest=Digest.of(data),
        sha256=hashlib.sha256(data).hexdigest(),
        files=len(sizes),
        size_bytes=sum(map(int, sizes)),
        manifest_bytes=len(data),
        keys=frozenset(blob_keys(data)),
    )


def blob_keys(data: bytes) -> set[bytes]:
    """The keys of the blobs that a manifest names, as the records have them.

    For bytes that are what their digest says, and so were parsed when they were taken in: there may
    be thousands of manifests to go through.
    """
    keys: set[bytes] = set()
    for kind, line in _FILE_LINES:
        if digests := line.findall(data):
            names = bytes.fromhex((kind.join(digests) + kind).decode())
            keys.update(split(names, KEY_BYTES))
    return keys
