"""Trees: the files of a commit, walked, looked up and written as a tar."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from storage import tar
from storage.errors import TreeTooLargeError
from storage.git.errors import PackOutgrownError, RepositoryCorruptError
from storage.git.object_formats import (
    MODE_LINK,
    MODE_PROGRAM,
    MODE_SUBMODULE,
    MODE_TREE,
    TREE,
    TREE_ENTRY,
)
from storage.git.object_formats import tree_entries as parse_tree
from storage.git.repository import Repository
from storage.manifest import ENTRIES_MAX

TREE_DEPTH_MAX = 256
LINK_BYTES_MAX = 4095
CHECK_EVERY_S = 0.25
_WHOLE_BYTES_MAX = 256 << 10
_ENTRY_BYTES_MIN = len(b"40000 a\0") + 20


class EntryKind(StrEnum):
    FILE = "file"
    DIR = "dir"
    LINK = "link"
    SUBMODULE = "submodule"


_KINDS = {
    MODE_TREE: EntryKind.DIR,
    MODE_LINK: EntryKind.LINK,
    MODE_SUBMODULE: EntryKind.SUBMODULE,
}


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of some repository, by its id."""

    repository: Repository
    oid: bytes


@dataclass(frozen=True, slots=True)
class RootEntry:
    name: str
    kind: EntryKind


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a commit: its tree's id, 40 hex digits, and its names in git's order."""

    oid: str
    entries: tuple[RootEntry, ...]


# A tuple: a commit may have two hundred thousand, and a frozen dataclass takes longer to make.
class TreeFile(NamedTuple):
    """One file, link or submodule of a commit.

    Attributes:
        path: relative to the folder walked, `/` between; bytes that are not UTF-8 are escaped
            (`os.fsencode` gives them back).
        oid: the object's id, 40 hex digits; equal content has an equal one.
    """

    path: str
    kind: EntryKind
    is_executable: bool
    oid: str
    repository: Repository

    @property
    def size(self) -> int:
        """Bytes, looked up; of a link, the length of its target; of a submodule, 0."""
        if self.kind is EntryKind.SUBMODULE:
            return 0
        return self.repository.objects.kind_and_size(bytes.fromhex(self.oid))[1]

    def read(self) -> bytes:
        """Return the whole content (a link's target; nothing for a submodule)."""
        if self.kind is EntryKind.SUBMODULE:
            return b""
        return self.repository.objects.get(bytes.fromhex(self.oid))[1]

    def read_small(self, bytes_max: int) -> bytes | None:
        """Return the content of a file; None when it, or what it is stored as, is larger."""
        try:
            return self.repository.objects.get(bytes.fromhex(self.oid), bytes_max)[1]
        except PackOutgrownError:
            return None

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of at most some 256 KiB where its stored form allows."""
        if self.kind is not EntryKind.SUBMODULE:
            yield from self.repository.objects.stream(bytes.fromhex(self.oid))


class Visits:
    """Counts what walks of trees visit, by path: nine trees can have more paths than any machine
    could walk in a year. What no artifact could hold ends a walk. Several walks may share one.
    """

    def __init__(
        self, check: Callable[[], None] | None = None, *, check_every_s: float = CHECK_EVERY_S
    ) -> None:
        """`check` is called now and then; what it raises ends the walk."""
        self._count = 0
        self._check = check
        self._check_every_s = check_every_s
        self._check_at = time.monotonic() + check_every_s

    def add(self, count: int = 0) -> None:
        """Count so many files and folders.

        Raises:
            TreeTooLargeError: There are more than an artifact may have. Or what `check` raises.
        """
        self._count += count
        if self._count > ENTRIES_MAX:
            raise _too_large()
        if self._check is not None and (now := time.monotonic()) >= self._check_at:
            self._check_at = now + self._check_every_s
            self._check()


def find_tree(top: Tree, folder: str) -> Tree | None:
    """Return the tree of a folder, None where there is no such folder."""
    if not PurePosixPath(folder).parts:
        return top
    found = _find(top, folder)
    if found is None or _kind(found[0]) is not EntryKind.DIR:
        return None
    return Tree(top.repository, found[1])


def list_names(tree: Tree) -> tuple[RootEntry, ...]:
    """Return the names in a folder, in git's order.

    What is no UTF-8 in them is replaced: they are told to others, and none of those is looked for.
    """
    return tuple(
        RootEntry(name.decode(errors="replace"), _kind(mode)) for mode, name, _ in _entries(tree)
    )


def read_file(top: Tree, path: str, size_bytes_max: int) -> bytes | None:
    """Return a regular file's content; None when there is no such file, or it is larger."""
    found = _find(top, path)
    if found is None or _kind(found[0]) is not EntryKind.FILE:
        return None
    if top.repository.objects.kind_and_size(found[1])[1] > size_bytes_max:
        return None
    return top.repository.objects.get(found[1])[1]


def walk(top: Tree, grafts: Mapping[str, Tree], visits: Visits) -> Iterator[TreeFile]:
    """Yield every file, link and submodule, depth first, in git's order.

    `grafts`: the trees of submodules, by their paths; what is in them is yielded in their place.

    Raises:
        RepositoryCorruptError: an object is missing, or a name could not be a file's.
        TreeTooLargeError: there are too many files and folders, or too many inside one another.
    """
    for tree, path, mode, oid in _walk(top, grafts, visits):
        yield _file(tree, path, mode, oid)


def _file(tree: Tree, path: bytes, mode: bytes, oid: bytes) -> TreeFile:
    kind = _kind(mode)
    file = TreeFile(
        path=os.fsdecode(path),
        kind=kind,
        is_executable=mode == MODE_PROGRAM,
        oid=oid.hex(),
        repository=tree.repository,
    )
    if kind is EntryKind.LINK and file.size > LINK_BYTES_MAX:
        raise RepositoryCorruptError("a symbolic link's target is too long")
    return file


@dataclass(frozen=True, slots=True)
class Listed:
    """What lies in one folder of a commit: its files, links and submodules, and its folders, by
    their paths.
    """

    files: tuple[TreeFile, ...]
    folders: tuple[tuple[str, Tree], ...]


def list_folder(tree: Tree, path: str) -> Listed:
    """Return what lies in the folder `path`, whose tree this is. The empty path is the top.

    Raises:
        RepositoryCorruptError, TreeTooLargeError: see `walk`.
    """
    prefix = os.fsencode(path) + b"/" if path else b""
    if prefix.count(b"/") >= TREE_DEPTH_MAX:
        raise _too_deep(prefix)
    files, folders = [], []
    for mode, name, oid in _entries(tree):
        if _kind(mode) is EntryKind.DIR:
            folders.append((os.fsdecode(prefix + name), Tree(tree.repository, oid)))
        else:
            files.append(_file(tree, prefix + name, mode, oid))
    return Listed(tuple(files), tuple(folders))


@dataclass(frozen=True, slots=True)
class Changes:
    """What makes one folder of another: `removed` is to go first, with the folders that are empty
    then; `files` are to come. What changed is in both.
    """

    removed: tuple[bytes, ...]
    files: tuple[TreeFile, ...]

    @property
    def count(self) -> int:
        """How many files are to come, or names to go: of whichever there are more."""
        return max(len(self.files), len(self.removed))


def changes(
    old: Tree, new: Tree, visits: Visits, *, count_max: int | None = None
) -> Changes | None:
    """Compare two trees; folders that are equal are not looked into. None once more than
    `count_max` files have to come, or names to go.

    Raises:
        RepositoryCorruptError, TreeTooLargeError: see `walk`.
    """
    removed: list[bytes] = []
    files: list[TreeFile] = []
    most = math.inf if count_max is None else count_max
    pairs: list[tuple[bytes, Tree | None, Tree | None]] = [(b"", old, new)]
    while pairs:
        prefix, before, after = pairs.pop()
        if prefix.count(b"/") >= TREE_DEPTH_MAX:
            raise _too_deep(prefix)
        if max(len(files), len(removed)) > most:
            return None
        was = set() if before is None else set(_visited(before, visits))
        now = set() if after is None else set(_visited(after, visits))
        gone = {name: (mode, oid) for mode, name, oid in was - now}
        for mode, name, oid in sorted(now - was, key=_name):
            path = prefix + name
            if mode != MODE_TREE:
                files.append(_file(new, path, mode, oid))
                continue
            other = gone.pop(name) if gone.get(name, (None,))[0] == MODE_TREE else None
            below = None if other is None else Tree(old.repository, other[1])
            pairs.append((path + b"/", below, Tree(new.repository, oid)))
        for name, (mode, oid) in gone.items():
            if mode == MODE_TREE:
                pairs.append((prefix + name + b"/", Tree(old.repository, oid), None))
            else:
                removed.append(prefix + name)
    if max(len(files), len(removed)) > most:
        return None
    return Changes(tuple(removed), tuple(files))


def _name(entry: tuple[bytes, bytes, bytes]) -> bytes:
    return entry[1]


def find_submodules(top: Tree, visits: Visits) -> Iterator[tuple[str, str]]:
    """Yield the path and the commit of each submodule; reads trees alone.

    Raises:
        RepositoryCorruptError, TreeTooLargeError: see `walk`.
    """
    for _, path, mode, oid in _walk(top, {}, visits):
        if _kind(mode) is EntryKind.SUBMODULE:
            yield os.fsdecode(path), oid.hex()


def write_tar(files: Iterable[TreeFile], out: BinaryIO, *, time: int) -> None:
    """Write files, in the order of a walk, as an uncompressed pax tar; reads one at a time.

    Modes are 0644 and 0755, times `time`, owners 0; a submodule is an empty directory.
    """
    directories = {b""}
    pieces = (piece for file in files for piece in _tar_pieces(file, directories, time))
    out.writelines(tar.chunks(pieces))


def _walk(
    top: Tree, grafts: Mapping[str, Tree], visits: Visits
) -> Iterator[tuple[Tree, bytes, bytes, bytes]]:
    """Yield the tree, the path, the mode and the id of every entry that is no folder."""
    stack = [(top, b"", _visited(top, visits))]
    while stack:
        tree, prefix, entries = stack[-1]
        for mode, name, oid in entries:
            path = prefix + name
            below = None
            if mode == MODE_TREE:
                below = Tree(tree.repository, oid)
            elif grafts and mode == MODE_SUBMODULE:
                below = grafts.get(os.fsdecode(path))
            if below is None:
                yield tree, path, mode, oid
                continue
            if len(stack) == TREE_DEPTH_MAX:
                raise _too_deep(path)
            stack.append((below, path + b"/", _visited(below, visits)))
            break
        else:
            stack.pop()


def _find(top: Tree, path: str) -> tuple[bytes, bytes] | None:
    """Return the mode and the id of what a path names."""
    tree = top
    found: tuple[bytes, bytes] | None = None
    for part in PurePosixPath(path).parts:
        if found is not None:
            if _kind(found[0]) is not EntryKind.DIR:
                return None
            tree = Tree(top.repository, found[1])
        name = os.fsencode(part)
        found = next(((mode, oid) for mode, entry, oid in _entries(tree) if entry == name), None)
        if found is None:
            return None
    return found


def _visited(tree: Tree, visits: Visits) -> Iterator[tuple[bytes, bytes, bytes]]:
    entries = _entries(tree)
    visits.add(len(entries))
    return iter(entries)


def _entries(tree: Tree) -> list[tuple[bytes, bytes, bytes]]:
    data = tree.repository.objects.get_typed(tree.oid, TREE)
    may_be_many = len(data) > ENTRIES_MAX * _ENTRY_BYTES_MIN
    if may_be_many and sum(1 for _ in TREE_ENTRY.finditer(data)) > ENTRIES_MAX:
        raise _too_large()  # before each becomes some hundreds of bytes in memory
    entries = parse_tree(data)
    for _, name, _ in entries:
        # A name with a slash or of dots would leave the folder that it is written into.
        if b"/" in name or name in (b".", b"..") or name.lower() == b".git":
            raise RepositoryCorruptError(f"tree {tree.oid.hex()} has an entry of a forbidden name")
    return entries


def _too_large() -> TreeTooLargeError:
    return TreeTooLargeError(b"", f"there are more than {ENTRIES_MAX:,} files and folders")


def _too_deep(path: bytes) -> TreeTooLargeError:
    return TreeTooLargeError(path, f"lies below more than {TREE_DEPTH_MAX} folders")


def _kind(mode: bytes) -> EntryKind:
    return _KINDS.get(mode, EntryKind.FILE)


def _tar_pieces(file: TreeFile, directories: set[bytes], time: int) -> Iterator[bytes]:
    path = os.fsencode(file.path)
    folder = path.rpartition(b"/")[0]
    if folder not in directories:
        for parent in _folders(folder):
            if parent not in directories:
                directories.add(parent)
                yield tar.encode_header(parent, tar.DIRECTORY, 0o755, time=time)
    if file.kind is EntryKind.SUBMODULE:
        yield tar.encode_header(path, tar.DIRECTORY, 0o755, time=time)
    elif file.kind is EntryKind.LINK:
        yield tar.encode_header(path, tar.LINK, 0o777, target=file.read(), time=time)
    else:
        content = file.read_small(_WHOLE_BYTES_MAX)
        size_bytes = file.size if content is None else len(content)
        mode = 0o755 if file.is_executable else 0o644
        yield tar.encode_header(path, tar.FILE, mode, size_bytes=size_bytes, time=time)
        if content is None:
            yield from file.chunks()
        else:
            yield content
        yield bytes(-size_bytes % tar.BLOCK_BYTES)


def _folders(path: bytes) -> list[bytes]:
    """The folders on the way to a path, and itself, the outermost first."""
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts) + 1)]
