"""Change refs: locked as git locks them, checked against their old values, durable at the end.

Every ref is locked by `<ref>.lock` beside it, so that git processes and this one exclude each
other. A few changes are written as loose files; deletions, and many changes at once, by rewriting
`packed-refs` in one go.
Source: git's refs/files-backend.c; gitrepository-layout(5).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.git.errors import RefUpdateError, RepositoryCorruptError
from storage.git.object_formats import NULL_OID
from storage.git.refs import NAME_COMPONENT_BYTES_MAX, show
from storage.git.repository import Repository

LOCK_TIMEOUT_S = 0.1  # git's core.filesRefLockTimeout
PACKED_LOCK_TIMEOUT_S = 1.0  # git's core.packedRefsTimeout
LOOSE_COUNT_MAX = 24  # more changes than this are written into packed-refs together
PATH_BYTES_MAX = 4096 - len("logs/") - len(".lock") - 1
PACKED_HEADER = b"# pack-refs with: peeled fully-peeled sorted \n"
QUARANTINE_PREFIX = "tmp_objdir-incoming-"  # git's own name for it
_LOGGED = (b"refs/heads/", b"refs/remotes/", b"refs/notes/")

STALE = "incorrect old value provided"
EXISTS = "reference already exists"
ABSENT = "reference does not exist"
CONFLICT = "refname conflict"
ATOMIC = "atomic transaction failed"


@dataclass(frozen=True, slots=True)
class RefChange:
    """One wish: `old` is what the ref must be now, `new` what it becomes; NULL_OID is absence."""

    name: bytes
    old: bytes
    new: bytes


@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """What a reflog line says beside the ids: `who` is `Name <email>`."""

    who: bytes
    message: bytes


@dataclass(slots=True)
class _Held:
    change: RefChange
    name: bytes  # behind symbolic refs
    lock: bytes
    current: bytes = NULL_OID
    error: RefUpdateError | None = None
    made: list[bytes] = field(default_factory=list)


def change_refs(
    repository: Repository,
    changes: Sequence[RefChange],
    *,
    is_atomic: bool = False,
    log: ReflogEntry | None = None,
    sync_first: Iterable[Path] = (),
) -> list[RefUpdateError | None]:
    """Apply changes, each by itself or all or none. Durable when it returns.

    `sync_first`: directories that must be durable before any ref points at what is in them.

    Returns for each change None, or why it was not made; with `is_atomic` one error lets all fail
    for the reason `atomic transaction failed`, and only its words tell which it was. A process
    that dies in between leaves each ref old or new, and perhaps a `.lock` that `forget_locks`
    removes.
    """
    return _Transaction(repository, log, sync_first).run(changes, is_atomic=is_atomic)


class _Transaction:
    def __init__(
        self, repository: Repository, log: ReflogEntry | None, sync_first: Iterable[Path]
    ) -> None:
        self._sync_first = sync_first
        self._repository = repository
        self._refs = repository.refs
        self._log = log
        self._root = os.fsencode(repository.path) + b"/"
        self._directories: set[bytes] = set()
        snapshot = self._refs.snapshot()
        self._existing = snapshot.values
        self._head_target = snapshot.head_target
        self._names = list(self._existing)

    def run(self, changes: Sequence[RefChange], *, is_atomic: bool) -> list[RefUpdateError | None]:
        held: list[_Held] = []
        try:
            gone = {change.name for change in changes if change.new == NULL_OID}
            held.extend(self._hold(change, gone) for change in changes)
            if is_atomic:
                _fail_together(held)
            self._commit([one for one in held if one.error is None], is_atomic=is_atomic)
        finally:
            for one in held:
                self._let_go(one)
        return [one.error for one in held]

    # prepare

    def _hold(self, change: RefChange, gone: set[bytes]) -> _Held:
        name, _ = self._refs.resolve_symbolic(change.name)
        one = _Held(change, name, self._root + name + b".lock")
        try:
            self._require_short(name)
            if change.new != NULL_OID:
                self._require_no_conflict(change, name, gone)
            self._lock(one)
            one.current = self._refs.resolve(name) or NULL_OID
            _require_old(change, one.current)
        except RefUpdateError as error:
            one.error = error
        except OSError as error:
            one.error = RefUpdateError(f"cannot lock ref '{show(change.name)}': {error.strerror}")
        return one

    def _require_short(self, name: bytes) -> None:
        is_long = len(self._root) + len(name) > PATH_BYTES_MAX
        if is_long or any(len(part) > NAME_COMPONENT_BYTES_MAX for part in name.split(b"/")):
            raise RefUpdateError(f"cannot lock ref '{show(name)}': File name too long")

    def _require_no_conflict(self, change: RefChange, name: bytes, gone: set[bytes]) -> None:
        if change.old != NULL_OID:
            return
        parts = name.split(b"/")
        others = [b"/".join(parts[:count]) for count in range(2, len(parts))]
        found = next((o for o in others if o in self._existing and o not in gone), None)
        if found is None:
            names, prefix = self._names, name + b"/"
            at = bisect_left(names, prefix)
            while at < len(names) and names[at].startswith(prefix):
                if names[at] not in gone:
                    found = names[at]
                    break
                at += 1
        if found is not None:
            raise RefUpdateError(
                f"cannot lock ref '{show(name)}': '{show(found)}' exists; "
                f"cannot create '{show(name)}'",
                reason=CONFLICT,
            )

    def _lock(self, one: _Held) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        directory = os.path.dirname(one.lock)  # noqa: PTH120
        while True:
            try:
                self._make_directory(directory)
                _create(one.lock)
                one.made.append(one.lock)
                return
            except FileNotFoundError:  # its directory was cleaned away between the two calls
                pass
            except (FileExistsError, NotADirectoryError) as error:
                if os.path.lexists(directory) and not os.path.isdir(directory):  # noqa: PTH112
                    raise RefUpdateError(
                        f"cannot lock ref '{show(one.name)}': a leading part of it is a ref",
                        reason=CONFLICT,
                    ) from error
                if time.monotonic() > deadline:
                    raise RefUpdateError(
                        f"cannot lock ref '{show(one.name)}': Unable to create "
                        f"'{show(one.lock)}': File exists."
                    ) from error
            time.sleep(0.005)

    def _make_directory(self, directory: bytes) -> None:
        if os.path.isdir(directory):  # noqa: PTH112
            return
        os.makedirs(directory, exist_ok=True)  # noqa: PTH103
        while len(directory) > len(self._root):
            directory = os.path.dirname(directory)  # noqa: PTH120
            self._directories.add(directory + b"/")

    # commit

    def _commit(self, held: list[_Held], *, is_atomic: bool) -> None:
        is_batch = len(held) > LOOSE_COUNT_MAX
        packed = [one for one in held if is_batch or one.change.new == NULL_OID]
        loose = [] if is_batch else [one for one in held if one.change.new != NULL_OID]
        for one in loose:
            self._write_lock(one)
        if is_atomic and _fail_together(held):
            return
        # After the locks: one commit of the file system's journal then makes both durable.
        for place in self._sync_first:
            _sync_directory(os.fsencode(place))
        if packed:
            self._commit_packed(packed)
        for one in loose:
            if one.error is None:
                self._commit_loose(one)
        for one in held:
            if one.error is None:
                self._write_reflog(one)
        for directory in self._directories:
            with contextlib.suppress(FileNotFoundError):  # emptied and removed since
                _sync_directory(directory)

    def _commit_packed(self, held: list[_Held]) -> None:
        path = self._root + b"packed-refs"
        try:
            _lock_waiting(path + b".lock", PACKED_LOCK_TIMEOUT_S)
        except OSError as error:
            for one in held:
                one.error = RefUpdateError(f"cannot lock packed-refs: {error.strerror}")
            return
        try:
            values, peeled = self._refs.packed()
            values = dict(values)
            before = len(values)
            is_changed = False
            for one in held:
                if one.change.new == NULL_OID:
                    is_changed |= values.pop(one.name, None) is not None
                else:
                    values[one.name] = one.change.new
                    is_changed = True
            if is_changed or len(values) != before:
                write_packed_refs(self._repository, path + b".lock", values, peeled)
                os.rename(path + b".lock", path)  # noqa: PTH104
                self._directories.add(self._root)
        except OSError as error:
            for one in held:
                one.error = RefUpdateError(f"cannot write packed-refs: {error.strerror}")
            return
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + b".lock")  # noqa: PTH108
        for one in held:
            loose = self._root + one.name
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                os.unlink(loose)  # noqa: PTH108
                self._directories.add(os.path.dirname(loose))  # noqa: PTH120

    def _write_lock(self, one: _Held) -> None:
        if one.current == one.change.new:
            return
        try:
            with open(one.lock, "wb") as file:  # noqa: PTH123
                file.write(one.change.new.hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            one.error = RefUpdateError(f"cannot update '{show(one.name)}': {error.strerror}")

    def _commit_loose(self, one: _Held) -> None:
        path = self._root + one.name
        if one.current == one.change.new:
            return
        try:
            try:
                os.rename(one.lock, path)  # noqa: PTH104
            except IsADirectoryError:
                _remove_empty_tree(path)
                os.rename(one.lock, path)  # noqa: PTH104
            one.made.clear()
            self._directories.add(os.path.dirname(path))  # noqa: PTH120
        except OSError as error:
            one.error = RefUpdateError(f"cannot update '{show(one.name)}': {error.strerror}")

    def _let_go(self, one: _Held) -> None:
        for lock in one.made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)  # noqa: PTH108
        if one.error is not None or one.change.new == NULL_OID:
            self._prune_directories(self._root, one.name)

    def _prune_directories(self, root: bytes, name: bytes) -> None:
        """Remove directories that a deletion left empty; `refs/heads` and its like stay."""
        parts = name.split(b"/")[:-1]
        while len(parts) > 2:
            try:
                os.rmdir(root + b"/".join(parts))  # noqa: PTH106
            except OSError:
                return
            parts.pop()

    # reflog

    def _write_reflog(self, one: _Held) -> None:
        if one.change.new == NULL_OID:
            log_path = self._root + b"logs/" + one.name
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                os.unlink(log_path)  # noqa: PTH108
            self._prune_directories(self._root + b"logs/", one.name)
            return
        if self._log is None or one.current == one.change.new:
            return
        self._append_log(one.name, one)
        if self._head_target == one.name:
            self._append_log(b"HEAD", one)

    def _append_log(self, name: bytes, one: _Held) -> None:
        assert self._log is not None
        path = self._root + b"logs/" + name
        if not os.path.exists(path) and not self._is_logged(name):  # noqa: PTH110
            return
        line = b"%s %s %s %d +0000\t%s\n" % (
            one.current.hex().encode(),
            one.change.new.hex().encode(),
            self._log.who,
            int(time.time()),
            self._log.message,
        )
        # The ref has moved already: a log that cannot be written does not undo it.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(path, "ab") as file:  # noqa: PTH123
                file.write(line)

    def _is_logged(self, name: bytes) -> bool:
        config = self._repository.config
        wish = (config.text("core.logallrefupdates") or "").lower()
        if wish == "always":
            return True
        is_on = config.flag("core.logallrefupdates", default=not self._repository.is_bare)
        return bool(is_on) and (name == b"HEAD" or name.startswith(_LOGGED))


def _fail_together(held: list[_Held]) -> bool:
    """Let all changes fail if one has; say whether one had."""
    has_failed = any(one.error for one in held)
    if has_failed:
        for one in held:
            one.error = RefUpdateError(str(one.error or ""), reason=ATOMIC)
    return has_failed


def _require_old(change: RefChange, current: bytes) -> None:
    if current == change.old:
        return
    name = show(change.name)
    if change.old == NULL_OID:
        raise RefUpdateError(f"cannot lock ref '{name}': reference already exists", reason=EXISTS)
    if current == NULL_OID:
        raise RefUpdateError(
            f"cannot lock ref '{name}': unable to resolve reference '{name}'", reason=ABSENT
        )
    raise RefUpdateError(
        f"cannot lock ref '{name}': is at {current.hex()} but expected {change.old.hex()}",
        reason=STALE,
    )


def write_packed_refs(
    repository: Repository, path: bytes, values: dict[bytes, bytes], peeled: dict[bytes, bytes]
) -> None:
    """Write a whole `packed-refs`, synced, at `path` (its lock)."""
    known = repository.refs.snapshot().unpeelable
    lines = [PACKED_HEADER]
    for name in sorted(values):
        oid = values[name]
        lines.append(b"%s %s\n" % (oid.hex().encode(), name))
        target = peeled.get(oid)
        if target is None and oid not in known:
            with contextlib.suppress(RepositoryCorruptError):
                target = repository.objects.peel(oid)[1]
        if target is not None and target != oid:
            lines.append(b"^%s\n" % target.hex().encode())
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())


def pack_loose_refs(repository: Repository) -> int:
    """Move loose refs into `packed-refs`; return how many. What changes meanwhile stays loose."""
    root = os.fsencode(repository.path) + b"/"
    path = root + b"packed-refs"
    try:
        _lock_waiting(path + b".lock", PACKED_LOCK_TIMEOUT_S)
    except OSError:
        return 0
    try:
        values, peeled = repository.refs.packed()
        loose = repository.refs.loose_values()
        write_packed_refs(repository, path + b".lock", {**values, **loose}, peeled)
        os.rename(path + b".lock", path)  # noqa: PTH104
        _sync_directory(root)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + b".lock")  # noqa: PTH108
    moved = 0
    for name, oid in loose.items():
        lock = root + name + b".lock"
        try:
            _create(lock)
        except OSError:
            continue  # somebody is at it
        try:
            if repository.refs.loose_value(name) == oid:
                os.unlink(root + name)  # noqa: PTH108
                moved += 1
        finally:
            os.unlink(lock)  # noqa: PTH108
    return moved


def forget_locks(repository_path: Path) -> list[str]:
    """Remove locks and quarantines that a process left which died; return their names.

    Only for repositories that nobody else writes, while nothing is being pushed to them.
    """
    gone = []
    root = os.fspath(repository_path)
    places = [(root, os.listdir(root)), (f"{root}/objects", os.listdir(f"{root}/objects"))]  # noqa: PTH208
    places += [(directory, files) for directory, _, files in os.walk(f"{root}/refs")]
    for directory, names in places:
        for name in names:
            path = Path(directory) / name
            if name.endswith(".lock") and path.is_file():
                path.unlink(missing_ok=True)
            elif name.startswith(QUARANTINE_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
            else:
                continue
            gone.append(str(path.relative_to(repository_path)))
    return gone


def _lock_waiting(path: bytes, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _create(path)
            return
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _create(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))


def _remove_empty_tree(path: bytes) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        os.rmdir(directory)  # noqa: PTH106


def _sync_directory(path: bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
