"""The refs of a repository: HEAD, loose files and `packed-refs`, read as one sorted whole.

Names are bytes, as in git. Files are read again only when their stat data changed; a file or
directory touched just now (`storage.git.file_times`) is never trusted to be unchanged.
Source: gitrepository-layout(5); git's refs/files-backend.c and refs/packed-backend.c.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.git.errors import RefUpdateError
from storage.git.file_times import is_settled
from storage.git.object_formats import unhex

SYMREF_DEPTH_MAX = 5  # as git's
FILE_BYTES_MAX = 4096  # of a ref's own file
HEAD, HEADS = b"HEAD", b"refs/heads/"
_OID_LINE = re.compile(rb"([0-9a-f]{40})\s*")
_PACKED = re.compile(rb"^([0-9a-f]{40}) ([^\n]+)(?:\n\^([0-9a-f]{40}))?$", re.MULTILINE)
_PACKED_HEADER = b"# pack-refs with:"
_PACKED_LINE = re.compile(rb"[0-9a-f]{40} [^\n]+|\^[0-9a-f]{40}|#[^\n]*")
_BAD_NAME = re.compile(rb"\.\.|//|@\{|[\0-\x20\x7f~^:?*\[\\]|(?:^|/)\.|\.lock(?:/|$)|\.$|/$|^/|^@$")
NAME_COMPONENT_BYTES_MAX = 255 - len(".lock")

Stamp = tuple[int, int, int]


def is_valid_name(name: bytes) -> bool:
    """Say whether git would take this as a full name of a ref.

    Source: git-check-ref-format(1).
    """
    return bool(name) and _BAD_NAME.search(name) is None


def is_writable_name(name: bytes) -> bool:
    """Say whether a push may create a ref of this name: valid, and two levels below `refs/`."""
    return name.startswith(b"refs/") and name.count(b"/") > 1 and is_valid_name(name)


@dataclass(frozen=True, slots=True)
class RefSnapshot:
    """All refs at one moment.

    Attributes:
        values: name -> oid, ascending by name; broken and dangling refs are not in it.
        symrefs: name -> name that it points at, for symbolic refs below `refs/`.
        peeled: oid of an annotated tag -> what it names in the end, where `packed-refs` says so.
        unpeelable: oids of which `packed-refs` says that they are no annotated tags.
        head_target: the ref that HEAD points at, or None when HEAD is detached or broken.
        head: oid of HEAD, or None when its branch is unborn.
    """

    values: dict[bytes, bytes]
    symrefs: dict[bytes, bytes] = field(default_factory=dict)
    peeled: dict[bytes, bytes] = field(default_factory=dict)
    unpeelable: frozenset[bytes] = frozenset()
    head_target: bytes | None = None
    head: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Packed:
    values: dict[bytes, bytes]
    peeled: dict[bytes, bytes]
    unpeelable: frozenset[bytes]


_NONE_PACKED = _Packed({}, {}, frozenset())
_SnapshotKey = tuple[_Packed, bytes | None, dict[bytes, bytes]]


class RefStore:
    """Reads refs below one git directory. Safe from any thread."""

    def __init__(self, git_directory: Path) -> None:
        self.directory = git_directory
        self._root = os.fsencode(git_directory) + b"/"
        # Each pair is replaced as one, so that threads never see halves of two.
        self._packed: tuple[Stamp | None, _Packed] = (None, _NONE_PACKED)
        self._packed_turn = threading.Lock()  # many at once would each hold all refs meanwhile
        self._packed_read_ns = 0  # when the last reading of it began
        self._loose: dict[bytes, tuple[Stamp, bytes]] = {}
        self._joined: tuple[_SnapshotKey, RefSnapshot] | None = None

    def snapshot(self) -> RefSnapshot:
        """Return all refs as they are now; the same object as before if nothing changed."""
        # Loose before packed: a ref that `git pack-refs` moves meanwhile is then seen twice, where
        # the other order could miss it.
        loose = self._read_loose()
        packed = self._read_packed()
        head = self._read_file(HEAD)
        key = (packed, head, loose)
        joined = self._joined
        if joined is None or joined[0] != key:
            joined = self._joined = (key, _joined(loose, packed, head))
        return joined[1]

    def known_snapshot(self, count_max: int) -> RefSnapshot | None:
        """Return the snapshot that was made last, if it is of few refs and nothing changed since.

        The work is bounded by what was known then, however many refs there are by now.
        """
        joined = self._joined
        if joined is None or len(joined[1].values) > count_max:
            return None
        packed, head, loose = joined[0]
        is_known = (
            self._known_loose(count_max) == loose
            and self._is_known_packed(packed)
            and self._read_file(HEAD) == head
        )
        return joined[1] if is_known else None

    def _is_known_packed(self, packed: _Packed) -> bool:
        try:
            status = os.stat(self._root + b"packed-refs")  # noqa: PTH116 -- hot
        except FileNotFoundError:
            return packed is _NONE_PACKED
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        return self._packed[0] == stamp and self._packed[1] is packed

    def _known_loose(self, count_max: int) -> dict[bytes, bytes] | None:
        """Return the loose refs if all have been read before; None at the first that was not."""
        known = self._loose
        found: dict[bytes, bytes] = {}
        directories = [b"refs"]
        for directory in directories:
            if len(directories) > count_max:
                return None
            try:
                with os.scandir(self._root + directory) as entries:
                    for entry in entries:
                        name = directory + b"/" + entry.name
                        if entry.is_dir():
                            directories.append(name)
                            if len(directories) > count_max:
                                return None
                            continue
                        status = entry.stat()
                        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
                        earlier = known.get(name)
                        if earlier is None or earlier[0] != stamp:
                            return None
                        found[name] = earlier[1]
            except OSError:  # it goes at this moment
                return None
        return found

    @property
    def known_count(self) -> int | None:
        """How many refs there were when they were last read; None when they never were."""
        return len(self._joined[1].values) if self._joined is not None else None

    def loose_count(self) -> int:
        """Return how many refs have a file of their own."""
        return len(self._read_loose())

    def loose_values(self) -> dict[bytes, bytes]:
        """Return the refs that have a file of their own and are not symbolic: name -> oid."""
        found = {}
        for name, content in self._read_loose().items():
            oid = _OID_LINE.match(content)
            if oid and is_valid_name(name):
                found[name] = unhex(oid[1])
        return found

    def loose_value(self, name: bytes) -> bytes | None:
        """Return the oid in a ref's own file, or None."""
        oid = _OID_LINE.match(self._read_file(name) or b"")
        return unhex(oid[1]) if oid else None

    def resolve(self, name: bytes) -> bytes | None:
        """Return the oid that a ref (or HEAD) comes to, or None."""
        return self.resolve_symbolic(name)[1]

    def resolve_symbolic(self, name: bytes) -> tuple[bytes, bytes | None]:
        """Follow symbolic refs: the name at the end, and its oid or None."""
        for _ in range(SYMREF_DEPTH_MAX):
            content = self._read_file(name)
            if content is None:
                return name, self._read_packed().values.get(name)
            target = symref_target(content)
            if target is None:
                oid = _OID_LINE.match(content)
                return name, unhex(oid[1]) if oid else None
            if not is_valid_name(target):
                return name, None
            name = target
        return name, None

    def packed_value(self, name: bytes) -> bytes | None:
        """Return what `packed-refs` has for a name."""
        return self._read_packed().values.get(name)

    def packed(self) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """Return `packed-refs` as it is now: name -> oid, and oid of a tag -> what it names."""
        found = self._read_packed()
        return found.values, found.peeled

    def is_packed_whole(self) -> bool:
        """Say whether `packed-refs` begins as git writes it and ends with a line, if it is there.

        What is cut between two lines, or gone, cannot be told from what was written so.
        """
        try:
            with open(self._root + b"packed-refs", "rb") as file:  # noqa: PTH123
                if file.read(len(_PACKED_HEADER)) != _PACKED_HEADER:
                    return False
                file.seek(-1, os.SEEK_END)
                return file.read() == b"\n"
        except FileNotFoundError:
            return True

    def broken(self) -> Iterator[tuple[bytes, str]]:
        """Yield the refs that `snapshot` leaves out because they cannot be read, and why."""
        head = self._read_file(HEAD)
        for name, content in (*self._read_loose().items(), (HEAD, head or b"")):
            target = symref_target(content)
            if target is None and not _OID_LINE.fullmatch(content):
                yield name, "is neither an object's id nor another ref's name"
            elif target is not None and not is_valid_name(target):
                yield name, f"names '{show(target)}', which no ref can be"
            elif not is_valid_name(name):
                yield name, "has a name that no ref may have"
        yield from self._broken_packed()

    def _broken_packed(self) -> Iterator[tuple[bytes, str]]:
        try:
            with open(self._root + b"packed-refs", "rb") as file:  # noqa: PTH123
                for number, line in enumerate(file, 1):
                    if not _PACKED_LINE.fullmatch(line.rstrip(b"\n")):
                        yield b"packed-refs", f"line {number} is none of a ref"
        except FileNotFoundError:
            return

    # files

    def _read_file(self, name: bytes) -> bytes | None:
        try:
            return self._content(self._root + name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                return None
            raise RefUpdateError(f"cannot read '{show(name)}': {error.strerror}") from error

    def _content(self, path: bytes) -> bytes:
        """Read a ref's file. A link to another ref is a symbolic one (`core.preferSymlinkRefs`)."""
        try:
            return _beginning(path, os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        target = os.readlink(path)  # noqa: PTH115
        if target.startswith(b"refs/") and is_valid_name(target):
            return b"ref: " + target
        return _beginning(path)

    def _read_packed(self) -> _Packed:
        path = self._root + b"packed-refs"
        try:
            status = os.stat(path)  # noqa: PTH116 -- hot
        except FileNotFoundError:
            return _NONE_PACKED
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        known_stamp, known = self._packed
        if stamp == known_stamp:
            return known
        asked_ns = time.monotonic_ns()
        with self._packed_turn:
            # What somebody began to read since is as new as what would be read now.
            return self._packed[1] if self._packed_read_ns > asked_ns else self._read_packed_anew()

    def _read_packed_anew(self) -> _Packed:
        began_ns, now_ns = time.monotonic_ns(), time.time_ns()
        try:
            with open(self._root + b"packed-refs", "rb") as file:  # noqa: PTH123 -- hot
                status = os.fstat(file.fileno())
                packed = _parse_packed(file.read())
        except FileNotFoundError:
            packed, stamp = _NONE_PACKED, None
        else:
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if not is_settled(status.st_mtime_ns, now_ns):
                stamp = None
        known = self._packed[1]
        if packed == known:
            packed = known
        self._packed, self._packed_read_ns = (stamp, packed), began_ns
        return packed

    def _read_loose(self) -> dict[bytes, bytes]:
        now_ns = time.time_ns()
        known = self._loose
        found: dict[bytes, bytes] = {}
        fresh: dict[bytes, tuple[Stamp, bytes]] = {}
        directories = [b"refs"]
        while directories:
            directory = directories.pop()
            try:
                entries = list(os.scandir(self._root + directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                name = directory + b"/" + entry.name
                if entry.is_dir():
                    directories.append(name)
                elif not name.endswith(b".lock"):
                    self._read_loose_file(entry, name, known, now_ns, found, fresh)
        self._loose = fresh
        return found

    def _read_loose_file(
        self,
        entry: os.DirEntry[bytes],
        name: bytes,
        known: dict[bytes, tuple[Stamp, bytes]],
        now_ns: int,
        found: dict[bytes, bytes],
        fresh: dict[bytes, tuple[Stamp, bytes]],
    ) -> None:
        try:
            status = entry.stat()
        except FileNotFoundError:
            status = None
        if status is not None:
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            earlier = known.get(name)
            if earlier is not None and earlier[0] == stamp:
                found[name] = earlier[1]
                fresh[name] = earlier
                return
        content = self._read_file(name)
        if content is not None:
            found[name] = content
            if status is not None and is_settled(status.st_mtime_ns, now_ns):
                fresh[name] = (stamp, content)


def _beginning(path: bytes, flags: int = 0) -> bytes:
    """Read what a ref's file may have at most. Three calls of the system: it is hot."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        return os.read(descriptor, FILE_BYTES_MAX)
    finally:
        os.close(descriptor)


def show(name: bytes) -> str:
    """Return a name for people; what is not UTF-8 becomes a replacement sign."""
    return name.decode("utf-8", "replace")


def symref_target(content: bytes) -> bytes | None:
    """Return the name in `ref: <name>`, or None when it is no symbolic ref."""
    return content[4:].strip() if content.startswith(b"ref:") else None


def _parse_packed(content: bytes) -> _Packed:
    values: dict[bytes, bytes] = {}
    peeled: dict[bytes, bytes] = {}
    head = content[: content.find(b"\n") + 1] if content.startswith(b"#") else b""
    is_fully_peeled = b" fully-peeled" in head
    for oid, name, target in _PACKED.findall(content):
        values[name] = value = unhex(oid)
        if target:
            peeled[value] = unhex(target)
    unpeelable = frozenset(set(values.values()) - peeled.keys()) if is_fully_peeled else frozenset()
    return _Packed(values, peeled, unpeelable)


def _joined(loose: dict[bytes, bytes], packed: _Packed, head: bytes | None) -> RefSnapshot:
    values = dict(packed.values)
    symrefs: dict[bytes, bytes] = {}
    for name, content in loose.items():
        oid = _OID_LINE.match(content)
        if oid:
            values[name] = unhex(oid[1])
        elif target := symref_target(content):
            symrefs[name] = target
            values.pop(name, None)
        else:
            values.pop(name, None)  # broken
    for name in symrefs:
        oid_there = _follow(name, symrefs, values)
        if oid_there is not None:
            values[name] = oid_there
    head_target = symref_target(head) if head else None
    detached = _OID_LINE.match(head) if head and head_target is None else None
    head_oid = unhex(detached[1]) if detached else None
    if head_target is not None:
        head_oid = values.get(head_target)
    return RefSnapshot(
        values=_sorted_valid(values, loose),
        symrefs=symrefs,
        peeled=packed.peeled,
        unpeelable=packed.unpeelable,
        head_target=head_target,
        head=head_oid,
    )


def _follow(name: bytes, symrefs: dict[bytes, bytes], values: dict[bytes, bytes]) -> bytes | None:
    for _ in range(SYMREF_DEPTH_MAX):
        target = symrefs.get(name)
        if target is None:
            return values.get(name)
        name = target
    return None


def _sorted_valid(values: dict[bytes, bytes], loose: Iterable[bytes]) -> dict[bytes, bytes]:
    for name in loose:
        if not is_valid_name(name):
            values.pop(name, None)
    names = list(values)
    in_order = sorted(names)
    return values if names == in_order else {name: values[name] for name in in_order}
