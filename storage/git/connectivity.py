"""May a ref point there: is everything that a new tip reaches in the repository?

Existing refs are taken to be complete, as `git rev-list --objects --not --all` takes them. What a
received pack links to outside of itself must be reachable from them, or be walked to its end.
Source: git's connected.c.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from functools import cached_property

from storage.git.errors import ObjectMissingError, RepositoryCorruptError
from storage.git.indexer import IndexedPack
from storage.git.object_formats import (
    BLOB,
    COMMIT,
    MODE_SUBMODULE,
    MODE_TREE,
    TAG,
    TREE,
    parse_commit,
    parse_tag,
    tree_entries,
)
from storage.git.objects import ObjectStore


class Connectivity:
    """Checks new tips of one push.

    Args:
        stored: the repository's objects.
        whole: opens what came and the repository as one; called when the quick way does not do.
        trusted: oids of the refs before the push.
        shallow: commits whose parents are absent on purpose.
    """

    def __init__(
        self,
        stored: ObjectStore,
        trusted: Iterable[bytes],
        shallow: Collection[bytes] = (),
        whole: Callable[[], ObjectStore] | None = None,
    ) -> None:
        self._stored = stored
        self._open_whole = whole
        self._trusted = set(trusted)
        self._shallow = shallow
        self._whole: set[bytes] = set()  # objects found to be there with all that they reach
        self._broken: dict[bytes, RepositoryCorruptError] = {}  # those that reach what is not

    def broken_tips(self, tips: Iterable[bytes], pack: IndexedPack | None) -> dict[bytes, str]:
        """Return the tips that lack something, each with what they lack."""
        tips = set(tips)
        if self._is_closed(tips, pack):
            return {}
        broken = {}
        for tip in tips:
            try:
                self._require_whole(tip)
            except ObjectMissingError as error:
                broken[tip] = f"missing object {error.oid.hex()}"
            except RepositoryCorruptError as error:
                broken[tip] = str(error)
        return broken

    @cached_property
    def _store(self) -> ObjectStore:
        return self._open_whole() if self._open_whole is not None else self._stored

    # the quick way: only what leaves the pack is looked at

    def _is_closed(self, tips: set[bytes], pack: IndexedPack | None) -> bool:
        commits, others = set[bytes](), set[bytes]()
        if pack is not None:
            commits |= pack.closure.outside_commits
            others |= pack.closure.outside_objects
        try:
            for tip in tips - self._trusted:
                if pack is None or not pack.has(tip):
                    kind = self._stored.kind_and_size(tip)[0]
                    (commits if kind == COMMIT else others).add(tip)
            commits -= self._absent_on_purpose(pack)
            stray = commits - self._reachable(commits)
            if pack is not None and pack.is_linked and others:
                others -= _vouched(self._stored, pack, others)
            for oid in stray | others:
                self._require_whole(oid)
        except RepositoryCorruptError:
            return False
        return True

    def _absent_on_purpose(self, pack: IndexedPack | None) -> set[bytes]:
        if not self._shallow or pack is None:
            return set()
        cut = [self._store.commit(oid) for oid in self._shallow if pack.has(oid)]
        return {parent for commit in cut for parent in commit.parents}

    def _reachable(self, wanted: set[bytes]) -> set[bytes]:
        """Return those of some commits that the trusted refs reach, newest first."""
        found = wanted & self._trusted
        missing = wanted - found
        if not missing:
            return found
        store = self._stored
        oldest = min(store.commit(oid).time for oid in missing)
        queue: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()

        def add(oid: bytes) -> None:
            if oid not in seen:
                seen.add(oid)
                heapq.heappush(queue, (-store.commit(oid).time, oid))

        for oid in self._trusted:
            try:
                kind, oid = store.peel(oid)  # noqa: PLW2901 -- tags are followed
                if kind == COMMIT:
                    add(oid)
            except RepositoryCorruptError:
                continue
        # Clocks lie a little: go on for a day below the oldest wanted commit before giving up.
        while queue and missing and -queue[0][0] >= oldest - 86_400:
            oid = heapq.heappop(queue)[1]
            missing.discard(oid)
            for parent in store.commit(oid).parents if oid not in self._shallow else ():
                try:
                    add(parent)
                except RepositoryCorruptError:
                    continue
        return wanted - missing

    # the thorough way: walk to the end

    def _require_whole(self, root: bytes) -> None:
        """Walk all that an object reaches.

        Raises:
            ObjectMissingError: something is not there.
            RepositoryCorruptError: something is not what it is linked as.
        """
        whole = self._whole
        stack: list[tuple[bytes, int | None, bytes]] = [(root, None, root)]
        seen: dict[bytes, bytes] = {}  # object -> what linked to it
        while stack:
            oid, expected, linked_by = stack.pop()
            if oid in whole or oid in seen or oid in self._trusted:
                continue
            seen[oid] = linked_by
            try:
                stack += [(link, kind, oid) for link, kind in self._links(oid, expected)]
            except RepositoryCorruptError as error:
                self._note_broken(root, linked_by, seen, error)
                raise
        whole |= seen.keys()

    def _note_broken(
        self, root: bytes, oid: bytes, seen: dict[bytes, bytes], error: RepositoryCorruptError
    ) -> None:
        """Remember the way to what is not there: other tips may come the same way."""
        while oid != root:
            self._broken[oid] = error
            oid = seen[oid]
        self._broken[root] = error

    def _links(self, oid: bytes, expected: int | None) -> list[tuple[bytes, int]]:
        """Look at one object; return what it links to, and as what.

        Raises:
            RepositoryCorruptError: it is not there, not what it is linked as, or known as broken.
        """
        if expected == BLOB:
            if not self._store.contains(oid):
                raise ObjectMissingError(oid)
            return []
        if (known := self._broken.get(oid)) is not None:
            raise known.with_traceback(None)
        kind, data = self._content(oid, expected)
        if expected not in (None, kind):
            raise RepositoryCorruptError(f"object {oid.hex()} is of another type than linked")
        if kind == COMMIT:
            commit = self._store.commit(oid)
            parents = () if oid in self._shallow else commit.parents
            return [(commit.tree, TREE), *((parent, COMMIT) for parent in parents)]
        if kind == TREE:
            return [
                (child, TREE if mode == MODE_TREE else BLOB)
                for mode, _, child in tree_entries(data)
                if mode != MODE_SUBMODULE
            ]
        return [parse_tag(data)] if kind == TAG else []

    def _content(self, oid: bytes, expected: int | None) -> tuple[int, bytes]:
        try:
            if expected is None and self._store.kind_and_size(oid)[0] == BLOB:
                return BLOB, b""
            return self._store.get(oid)
        except ObjectMissingError:
            raise
        except RepositoryCorruptError as error:
            raise RepositoryCorruptError(f"object {oid.hex()}: {error}") from error


def _vouched(store: ObjectStore, pack: IndexedPack, wanted: set[bytes]) -> set[bytes]:
    """Return those of some objects that stand in a parent's tree where the pack's trees stood.

    The parent is outside of the pack, and so either reachable or walked in full by the caller.
    """
    missing = set(wanted)
    visited: set[tuple[bytes, tuple[bytes, ...]]] = set()
    stack: list[tuple[bytes, tuple[bytes, ...]]] = []
    commits = {oid: parse_commit(data) for oid, data in pack.commits}
    trees = dict(pack.trees)
    for commit in commits.values():
        olds = []
        for parent in commit.parents:
            inside_commit = commits.get(parent)
            olds.append((inside_commit or store.commit(parent)).tree)
            if inside_commit is None:
                missing.discard(olds[-1])
        stack.append((commit.tree, tuple(olds)))
    while stack and missing:
        pair = stack.pop()
        new, olds_here = pair
        if new not in trees or not olds_here or pair in visited:
            continue
        visited.add(pair)
        subtrees: dict[bytes, list[bytes]] = {}
        for old in olds_here:
            inside = trees.get(old)
            for mode, name, oid in tree_entries(inside or store.get_typed(old, TREE)):
                if inside is None:
                    missing.discard(oid)
                if mode == MODE_TREE:
                    subtrees.setdefault(name, []).append(oid)
        for mode, name, oid in tree_entries(trees[new]):
            if mode == MODE_TREE and name in subtrees:
                stack.append((oid, tuple(subtrees[name])))
    return wanted - missing
