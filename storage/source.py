"""A source: the entries of a tree that is offered for ingest, and what may be in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from storage.digest import Digest
from storage.errors import TreeBytesError, TreeInvalidError, TreeTooLargeError
from storage.links import escaping_link
from storage.manifest import (
    DEPTH_MAX,
    ENTRIES_MAX,
    FILES_MAX,
    MANIFEST_BYTES_MAX,
    PATH,
    PATH_BYTES_MAX,
    TARGET,
    DirectoryEntry,
    Entry,
    FileEntry,
    LinkEntry,
    Manifest,
)

WHOLE_BYTES_MAX = 1 << 20  # larger files ought to be given in pieces
_UNREAD = FileEntry(b"", executable=False, size_bytes=0, digest=Digest.of(b""))


# Tuples: a tree may have two hundred thousand, and a frozen dataclass takes longer to make.


class SourceDirectory(NamedTuple):
    """A directory. Those that something lies in need not be given."""

    path: bytes


class Place(NamedTuple):
    """Where another process finds the contents of a file.

    Attributes:
        whole: What is open as `fd`; the same object for all that lies in it.
        fd: A folder, or a file that has the contents in it.
        path: Below that folder; empty for that file.
        offset: Where they begin.
        facts: As `storage.beneath.facts_of`; empty where nobody writes to it any more.
    """

    whole: object
    fd: int
    path: bytes
    offset: int
    facts: bytes


class SourceFile(NamedTuple):
    """A file.

    Attributes:
        path: Relative to the root, parts joined by `/`, neither `.` nor `..` in it.
        size_bytes: Its exact length.
        executable: Whether anybody may execute it.
        read: Gives the contents: all of them, or in pieces, in order. Called before the next
            entry is asked for.
        is_repeatable: Whether `read` may be called again, later, for the same contents.
        digest: Of the contents, where it is known: they are read only if the store lacks them.
        place: Says where they lie, for another process to read them; None where it must not. Only
            what is repeatable has one. Called before the next entry is asked for.
    """

    path: bytes
    size_bytes: int
    executable: bool
    read: Callable[[], bytes | Iterator[bytes]]
    is_repeatable: bool = True
    digest: Digest | None = None
    place: Callable[[], Place | None] | None = None


class SourceLink(NamedTuple):
    """A symbolic link."""

    path: bytes
    target: bytes


SourceEntry = SourceDirectory | SourceFile | SourceLink


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one tree. The manifest's own bounds hold besides.

    Attributes:
        size_bytes_max: Of all files together.
        file_bytes_max: Of one file.
        files_max: How many files.
    """

    size_bytes_max: int = 4 << 30
    file_bytes_max: int = 4 << 30
    files_max: int = FILES_MAX


class Draft:
    """The manifest of a source in the making: admits entries before their contents are read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files_max = min(limits.files_max, FILES_MAX)
        self._entries: dict[bytes, Entry] = {}
        self._files = 0
        self._size_bytes = 0
        self._line_bytes = 0
        self._parent = b""  # known as a directory, like those above it

    def admit(self, entry: SourceEntry) -> None:
        """Check the name of an entry and what is known of it so far.

        Raises:
            TreeInvalidError: Its name or target may not be, or the name stands twice.
            TreeTooLargeError: The tree goes beyond the limits with it; `TreeBytesError` by the
                bytes of all files.
        """
        path = entry.path
        check_path(path)
        known = self._entries.get(path)
        if isinstance(entry, SourceFile):
            if known is not None:
                raise TreeInvalidError(path, "stands twice")
            self._count(entry)
            self._add_parents(path)
            return
        if isinstance(entry, SourceLink):
            _check_target(entry)
        if known is not None and not (
            isinstance(entry, SourceDirectory) and isinstance(known, DirectoryEntry)
        ):
            raise TreeInvalidError(path, "stands twice")
        self._add_parents(path)
        if isinstance(entry, SourceDirectory):
            self._add(DirectoryEntry(path))
        else:
            self._add(LinkEntry(path, entry.target))

    def hold_name(self, entry: SourceFile) -> None:
        """Let nothing else have the name of an admitted file that is added later."""
        self._entries[entry.path] = _UNREAD

    def add_file(self, entry: SourceFile, digest: Digest) -> None:
        """Add an admitted file whose contents were read."""
        self._add(FileEntry(entry.path, entry.executable, entry.size_bytes, digest))

    def manifest(self) -> Manifest:
        """Return the manifest of all that was added.

        Raises:
            TreeInvalidError: There is no file in it, or a link leads out of it.
        """
        if not self._files:
            raise TreeInvalidError(b"", "there are no files")
        if link := escaping_link(self._entries.values()):
            raise TreeInvalidError(link.path, "the link leads out of the tree")
        return Manifest.of_tree(self._entries.values())

    def _count(self, entry: SourceFile) -> None:
        limits = self._limits
        self._files += 1
        self._size_bytes += entry.size_bytes
        if entry.size_bytes > limits.file_bytes_max:
            raise TreeTooLargeError(
                entry.path, f"the file is larger than {limits.file_bytes_max} bytes"
            )
        if self._size_bytes > limits.size_bytes_max:
            raise TreeBytesError(
                b"", f"the files are larger than {limits.size_bytes_max} bytes together"
            )
        if self._files > self._files_max:
            raise TreeTooLargeError(b"", f"there are more than {limits.files_max} files")

    def _add_parents(self, path: bytes) -> None:
        nearest = parent = path.rpartition(b"/")[0]
        if nearest == self._parent:
            return
        missing = []
        while parent:
            known = self._entries.get(parent)
            if isinstance(known, DirectoryEntry):
                break
            if known is not None:
                raise TreeInvalidError(path, "lies below what is no directory")
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in missing:
            self._add(DirectoryEntry(parent))
        self._parent = nearest

    def _add(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        # A line is at most this much longer than its path and target.
        self._line_bytes += len(entry.path) + 90
        if isinstance(entry, LinkEntry):
            self._line_bytes += len(entry.target)
        if len(self._entries) > ENTRIES_MAX or self._line_bytes > MANIFEST_BYTES_MAX:
            raise TreeTooLargeError(b"", "there are too many entries")


def check_path(path: bytes) -> None:
    """Check a path as it would stand in a manifest.

    Raises:
        TreeInvalidError: It is not relative and plain, or too long, or not UTF-8 without
            control bytes.
    """
    if not PATH.fullmatch(path) or len(path) > PATH_BYTES_MAX:
        raise TreeInvalidError(path, f"the name is empty, too long or below {DEPTH_MAX} others")
    may_have_dots = path.startswith(b".") or b"/." in path
    if may_have_dots and any(part in (b".", b"..") for part in path.split(b"/")):
        raise TreeInvalidError(path, "the name has . or .. in it")
    if not path.isascii() and not _is_utf8(path):
        raise TreeInvalidError(path, "the name is not UTF-8")


def _check_target(link: SourceLink) -> None:
    if not TARGET.fullmatch(link.target) or not _is_utf8(link.target):
        raise TreeInvalidError(link.path, "the link's target has control bytes or is not UTF-8")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
