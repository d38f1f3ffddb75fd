"""Change refs: locked as git locks them, checked against their old values, durable at the end.

Every ref is locked by `<ref>.lock` beside it, so that git processes and this one exclude each
other. A few changes are written as loose files; deletions, many changes at once, and those that
belong together, by rewriting `packed-refs` in one go.
Source: git's refs/files-backend.c; gitrepository-layout(5).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.files import sync_directory, sync_file
from storage.git import ref_refusals as refusals
from storage.git.errors import RefNotDurableError, RefUpdateError, RepositoryError
from storage.git.locks import RETRY_S, create_lock
from storage.git.object_formats import NULL_OID
from storage.git.packed_refs import packed_refs_locked, replace_packed_refs
from storage.git.ref_conflicts import TakenNames
from storage.git.ref_folders import RefFolders, is_free_of_refs, prune_folders, remove_empty_folders
from storage.git.reflog import ReflogEntry, Reflogs
from storage.git.refs import NAME_COMPONENT_BYTES_MAX, RefSnapshot
from storage.git.repository import Repository

LOCK_TIMEOUT_S = 0.1  # git's core.filesRefLockTimeout
LOOSE_COUNT_MAX = 24  # more changes than this are written into packed-refs together
PATH_BYTES_MAX = 4096 - len("logs/") - len(".lock") - 1


@dataclass(frozen=True, slots=True)
class RefChange:
    """One wish: `old` is what the ref must be now, `new` what it becomes; NULL_OID is absence."""

    name: bytes
    old: bytes
    new: bytes


Prepare = Callable[[Sequence[RefChange]], Mapping[bytes, RefUpdateError]]
"""Does what must be done before refs change, when they are locked and are what they must be.
Returns the errors, by name, of those that may not change after all.
"""


@dataclass(slots=True)
class _Held:
    change: RefChange
    name: bytes  # behind symbolic refs
    lock: bytes
    current: bytes = NULL_OID
    error: RefUpdateError | None = None
    is_committed: bool = False  # the ref is what it was to become, though perhaps not durably
    made: list[bytes] = field(default_factory=list)

    @property
    def is_delete(self) -> bool:
        return self.change.new == NULL_OID

    @property
    def has_moved(self) -> bool:
        return self.is_committed and self.current != self.change.new


def change_refs(
    repository: Repository,
    changes: Sequence[RefChange],
    *,
    is_atomic: bool = False,
    log: ReflogEntry | None = None,
    sync_first: Iterable[Path] = (),
    prepare: Prepare | None = None,
    snapshot: RefSnapshot | None = None,
) -> list[RefUpdateError | None]:
    """Apply changes, each by itself or all or none. Those without an error are durable then.

    Each by itself: deletions first, so that `x` can go and `x/a` come; of two new names that cannot
    stand beside each other the first one wins. All or none: one error lets all fail for the reason
    `atomic transaction failed`, and only its words tell which it was; no name may stand in
    another's way then, not even one that is deleted. Source: as git does both.

    `sync_first`: directories that must be durable before any ref points at what is in them.
    `prepare`: is asked for deletions and for the rest apart, but where all or none are made.
    `snapshot`: all refs, for who has read them just now under the same lock; what a ref is when it
    changes is read again in any case.

    Returns for each change None, or why it was not made; a RefNotDurableError for one that was, and
    that a power cut may undo. A process that dies in between leaves each ref old or new (with
    `is_atomic` all old or all new), and perhaps a `.lock` that `forget_locks` removes.

    Raises:
        OSError, RepositoryError: In the midst of it. What has moved by then is durable.
        RefNotDurableError: The same, and what has moved may be undone by a power cut.
    """
    transaction = _Transaction(repository, log, sync_first, prepare, snapshot)
    return transaction.run_atomic(changes) if is_atomic else transaction.run(changes)


class _Transaction:
    def __init__(
        self,
        repository: Repository,
        log: ReflogEntry | None,
        sync_first: Iterable[Path],
        prepare: Prepare | None,
        snapshot: RefSnapshot | None,
    ) -> None:
        self._sync_first = tuple(sync_first)
        self._prepare_for = prepare
        self._repository = repository
        self._refs = repository.refs
        self._root = os.fsencode(repository.path) + b"/"
        self._sharing = repository.sharing
        self._folders = RefFolders(self._root, repository.sharing)
        self._has_twins = False  # no lock of these will be written to
        self._twin: bytes | None = None  # the first one, which the others are names of
        snapshot = snapshot or self._refs.snapshot()
        self._reflogs = Reflogs(repository, log, snapshot.head_target)
        self._taken = TakenNames(snapshot.values)

    def run(self, changes: Sequence[RefChange]) -> list[RefUpdateError | None]:
        """Make each change by itself, as far as it can be."""
        all_held: dict[int, _Held] = {}
        with self._synced_at_the_end(all_held.values()):
            for is_delete in (True, False):
                part = [i for i, one in enumerate(changes) if (one.new == NULL_OID) == is_delete]
                if part:
                    held = self._run_part([changes[i] for i in part], is_delete=is_delete)
                    all_held.update(zip(part, held, strict=True))
        return [all_held[index].error for index in range(len(changes))]

    def _run_part(self, changes: Sequence[RefChange], *, is_delete: bool) -> list[_Held]:
        held: list[_Held] = []
        is_packed = is_delete or len(changes) > LOOSE_COUNT_MAX
        self._twin, self._has_twins = None, is_packed
        try:
            held.extend(map(self._hold, changes))
            self._commit([one for one in held if one.error is None], is_packed=is_packed)
        finally:
            for one in held:
                self._let_go(one)
        return held

    def run_atomic(self, changes: Sequence[RefChange]) -> list[RefUpdateError | None]:
        """Make all changes or none."""
        self._has_twins = len(changes) > 1
        planned = TakenNames()
        for change in changes:
            planned.add(self._refs.resolve_symbolic(change.name)[0])
        held: list[_Held] = []
        with self._synced_at_the_end(held):
            try:
                for change in changes:
                    one = self._hold(change, planned)
                    held.append(one)
                    if one.error is not None:
                        break
                else:
                    self._commit_together(held)
            finally:
                for one in held:
                    self._let_go(one)
        words = next((str(one.error) for one in held if one.error is not None), None)
        if words is None or any(one.has_moved for one in held):  # all were held then
            return [one.error for one in held]
        told_once = [words, *("" for _ in changes[1:])]
        return [RefUpdateError(text, reason=refusals.ATOMIC) for text in told_once]

    # prepare

    def _hold(self, change: RefChange, planned: TakenNames | None = None) -> _Held:
        """Check a change and lock its ref. `planned` are all names of which none may be refused."""
        name, _ = self._refs.resolve_symbolic(change.name)
        one = _Held(change, name, self._root + name + b".lock")
        try:
            self._require_short(name)
            if change.old == NULL_OID and not one.is_delete:
                self._require_place(name, planned)
            self._lock(one)
            one.current = self._refs.resolve(name) or NULL_OID
            refusals.require_old(change.name, change.old, one.current)
        except RefUpdateError as error:
            one.error = error
        except OSError as error:
            one.error = refusals.not_locked(change.name, error)
        else:
            if not one.is_delete:
                self._taken.add(name)
        return one

    def _require_short(self, name: bytes) -> None:
        is_long = len(self._root) + len(name) > PATH_BYTES_MAX
        if is_long or any(len(part) > NAME_COMPONENT_BYTES_MAX for part in name.split(b"/")):
            raise refusals.name_too_long(name)

    def _require_place(self, name: bytes, planned: TakenNames | None) -> None:
        if (there := self._taken.conflict(name)) is not None:
            raise refusals.name_conflict(name, there)
        if planned is not None and (beside := planned.conflict(name)) is not None:
            raise refusals.not_both(name, beside)

    def _lock(self, one: _Held) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        directory = os.path.dirname(one.lock)  # noqa: PTH120
        while True:
            try:
                self._folders.make(directory)
                create_lock(one.lock, self._twin)
                one.made.append(one.lock)
                if self._has_twins and self._twin is None:
                    self._twin = one.lock
                return
            except FileNotFoundError:  # its directory was cleaned away between the two calls
                pass
            except (FileExistsError, NotADirectoryError) as error:
                if os.path.lexists(directory) and not os.path.isdir(directory):  # noqa: PTH112
                    raise refusals.below_a_ref(one.name) from error
                if time.monotonic() > deadline:
                    raise refusals.lock_held(one.name, one.lock) from error
            time.sleep(RETRY_S)

    # commit

    def _commit(self, held: list[_Held], *, is_packed: bool) -> None:
        """Commit changes of one kind: all of them deletions, or none."""
        held = self._prepared(held)
        packed, loose = (held, []) if is_packed else ([], held)
        for one in loose:
            self._write_lock(one)
        self._sync_locks(loose)
        if packed:
            self._commit_packed(packed)
        for one in loose:
            if one.error is None:
                self._log(one)  # under the lock, which the rename gives away; so does git
                self._commit_loose(one)
        self._finish(packed)

    def _prepared(self, held: list[_Held]) -> list[_Held]:
        """Return those that may change, with all done that is to be done before."""
        if self._prepare_for is None or not held:
            return held
        refused = self._prepare_for([one.change for one in held])
        for one in held:
            one.error = refused.get(one.change.name)
        return [one for one in held if one.error is None]

    def _sync_locks(self, loose: list[_Held]) -> None:
        """Make locks durable, and what they name.

        The locks first: the commit of the journal that takes in a new file takes in the names that
        came to a directory before it, so that syncing the directory then waits for nothing.
        """
        for one in loose:
            if one.error is None and one.current != one.change.new:
                self._sync_lock(one)
        self._sync_what_they_name()

    def _commit_together(self, held: list[_Held]) -> None:
        """The rename of one file changes one ref; that of `packed-refs` changes any number."""
        if len(held) <= 1:
            self._commit(held, is_packed=any(one.is_delete for one in held))
            return
        self._prepared(held)
        self._sync_what_they_name()
        self._commit_packed(held, is_atomic=True)
        self._finish(held)

    def _finish(self, held: list[_Held]) -> None:
        for one in held:
            if one.is_committed and one.error is None:
                self._log(one)
                if one.is_delete:
                    self._taken.free(one.name)

    def _log(self, one: _Held) -> None:
        self._reflogs.note(one.name, one.current, one.change.new)

    def _sync_what_they_name(self) -> None:
        for place in self._sync_first:
            sync_directory(place)
        self._sync_first = ()

    @contextlib.contextmanager
    def _synced_at_the_end(self, held: Collection[_Held]) -> Iterator[None]:
        """Make what moves inside durable, also when that ends in the midst of it.

        Directories are noted for locks too, and for what an atomic change packs as it is: that one
        of them cannot be synced says nothing of a ref which has not moved.
        """
        try:
            yield
        except BaseException:
            self._folders.sync()
            raise
        try:
            self._folders.sync()
        except RefNotDurableError as error:
            for one in held:
                if one.has_moved and one.error is None:
                    one.error, error = error, RefNotDurableError("")  # it is told once

    def _commit_packed(self, held: list[_Held], *, is_atomic: bool = False) -> None:
        """Rewrite `packed-refs` with the changes, so that no loose file hides them."""
        try:
            with packed_refs_locked(self._root):
                values, peeled = self._refs.packed()
                self._require_places(held, values)
                going = [one for one in held if one.error is None]
                if is_atomic and len(going) == len(held):
                    values = self._pack(held, values, peeled)
                    going = [one for one in held if one.error is None]
                if is_atomic and len(going) < len(held):
                    return
                changed = dict(values)
                for one in going:
                    if one.is_delete:
                        changed.pop(one.name, None)
                    else:
                        changed[one.name] = one.change.new
                if changed != values:
                    replace_packed_refs(self._repository, changed, peeled)
                self._remove_loose(going)
                for one in going:
                    one.is_committed = one.error is None
        except (OSError, RefNotDurableError) as error:
            self._look_what_moved(held, error)

    def _look_what_moved(self, held: list[_Held], error: OSError | RefNotDurableError) -> None:
        """Say of each ref what a failure has left. What is loose has stayed, and hides what is in
        `packed-refs`: without it, a power cut could leave a ref in neither.
        """
        words = f"cannot write packed-refs: {error.strerror}" if isinstance(error, OSError) else ""
        for one in held:
            if one.error is not None:
                continue
            if not self._is_moved(one):
                one.error = RefUpdateError(words or str(error))
            elif one.current != one.change.new:
                one.error, one.is_committed = RefNotDurableError(words or str(error)), True

    def _is_moved(self, one: _Held) -> bool:
        try:
            return (self._refs.resolve(one.name) or NULL_OID) == one.change.new
        except (OSError, RepositoryError):  # it cannot be read: none that was just written
            return False

    def _pack(
        self, held: list[_Held], values: dict[bytes, bytes], peeled: dict[bytes, bytes]
    ) -> dict[bytes, bytes]:
        """Move what is loose into `packed-refs`, unchanged; return what is there then.

        A loose file would hide the ref's new value until it is gone. Without any, the one rename
        that follows changes all refs at once.
        """
        loose = [one for one in held if self._refs.loose_value(one.name) is not None]
        if not loose:
            return values
        packed = {**values, **{one.name: one.current for one in loose}}
        replace_packed_refs(self._repository, packed, peeled)
        self._remove_loose(loose)
        return packed

    def _require_places(self, held: list[_Held], packed: Mapping[bytes, bytes]) -> None:
        """Look again, now that nobody else can write `packed-refs`: git may have, meanwhile."""
        taken = TakenNames(dict(sorted(packed.items())))
        for one in held:
            if one.is_delete or one.current != NULL_OID:
                continue
            there = taken.conflict(one.name)
            if there is None and not is_free_of_refs(self._root + one.name):
                there = one.name + b"/"
            if there is not None:
                one.error = refusals.name_conflict(one.name, there)

    def _remove_loose(self, held: list[_Held]) -> None:
        for one in held:
            loose = self._root + one.name
            try:
                os.unlink(loose)  # noqa: PTH108
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue
            except OSError as error:
                one.error = refusals.not_updated(one.name, error)
                continue
            self._folders.note_change(loose)

    def _write_lock(self, one: _Held) -> None:
        if one.current == one.change.new:
            return
        try:
            with open(one.lock, "wb") as file:  # noqa: PTH123
                file.write(one.change.new.hex().encode() + b"\n")
            self._sharing.apply(one.lock)
        except OSError as error:
            one.error = refusals.not_updated(one.name, error)

    def _sync_lock(self, one: _Held) -> None:
        try:
            sync_file(os.fsdecode(one.lock))
        except OSError as error:
            one.error = refusals.not_updated(one.name, error)

    def _commit_loose(self, one: _Held) -> None:
        path = self._root + one.name
        if one.current == one.change.new:
            one.is_committed = True
            return
        try:
            try:
                os.rename(one.lock, path)  # noqa: PTH104
            except IsADirectoryError:
                remove_empty_folders(path)
                os.rename(one.lock, path)  # noqa: PTH104
            one.is_committed = True
            one.made.clear()
            self._folders.note_change(path)
        except OSError as error:
            one.error = refusals.not_updated(one.name, error)

    def _let_go(self, one: _Held) -> None:
        for lock in one.made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)  # noqa: PTH108
        if one.error is not None or one.made:  # nothing of it is in its directory
            prune_folders(self._root, one.name)
