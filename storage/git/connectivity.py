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
    TYPE_NAMES,
    commit_links,
    parse_commit,
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
        self._whole: dict[bytes, int] = {}  # type of what is there with all that it reaches
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
        wanted: dict[int, set[bytes]] = {kind: set() for kind in TYPE_NAMES}
        try:
            if pack is not None:
                if not pack.closure.is_typed:
                    return False
                wanted |= {kind: set(oids) for kind, oids in pack.closure.outside.items()}
                wanted[COMMIT] -= self._absent_on_purpose(pack)
            for tip in tips - self._trusted:
                if pack is None or not pack.has(tip):
                    wanted[self._stored.kind_and_size(tip)[0]].add(tip)
            wanted[COMMIT] -= self._reachable(wanted[COMMIT])
            if pack is not None and pack.is_linked and (wanted[TREE] or wanted[BLOB]):
                _drop_vouched(self._stored, pack, wanted[TREE], wanted[BLOB])
            for kind, oids in wanted.items():
                for oid in oids:
                    self._require_whole(oid, kind)
        except RepositoryCorruptError:
            return False
        return True

    def _absent_on_purpose(self, pack: IndexedPack) -> set[bytes]:
        """Return the commits that are linked to by borders of the pack, and by nothing else.

        Raises:
            RepositoryCorruptError: it is not known what else links to them.
        """
        borders = [oid for oid in self._shallow if pack.has(oid)] if self._shallow else []
        absent = {parent for oid in borders for parent in self._store.links.commit(oid).parents}
        if absent and (not pack.is_linked or pack.closure.named[TAG]):
            raise RepositoryCorruptError("not all links of the pack are remembered")
        if absent:
            for oid, data in pack.commits:
                if oid not in self._shallow:
                    absent.difference_update(commit_links(data)[1])
        return absent

    def _reachable(self, wanted: set[bytes]) -> set[bytes]:
        """Return those of some commits that the trusted refs reach, newest first.

        Raises:
            RepositoryCorruptError: one of them is missing or no commit.
        """
        store = self._stored
        found = wanted & self._trusted
        for oid in found:
            store.links.commit(oid)
        missing = wanted - found
        if not missing:
            return found
        oldest = min(store.links.commit(oid).time for oid in missing)
        queue: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()

        def add(oid: bytes) -> None:
            if oid not in seen:
                seen.add(oid)
                heapq.heappush(queue, (-store.links.commit(oid).time, oid))

        for oid in self._trusted:
            try:
                kind, oid = store.links.peel(oid)  # noqa: PLW2901 -- tags are followed
                if kind == COMMIT:
                    add(oid)
            except RepositoryCorruptError:
                continue
        # Clocks lie a little: go on for a day below the oldest wanted commit before giving up.
        while queue and missing and -queue[0][0] >= oldest - 86_400:
            oid = heapq.heappop(queue)[1]
            missing.discard(oid)
            for parent in store.links.commit(oid).parents if oid not in self._shallow else ():
                try:
                    add(parent)
                except RepositoryCorruptError:
                    continue
        return wanted - missing

    # the thorough way: walk to the end

    def _require_whole(self, root: bytes, root_kind: int | None = None) -> None:
        """Walk all that an object reaches.

        Raises:
            ObjectMissingError: something is not there.
            RepositoryCorruptError: something is not what it is linked as.
        """
        if root_kind is not None:  # as what it is not, it is no part of what is broken
            _require_kind(root, self._store.kind_and_size(root)[0], root_kind)
        whole = self._whole
        stack: list[tuple[bytes, int | None, bytes]] = [(root, None, root)]
        seen: dict[bytes, bytes] = {}  # object -> what linked to it
        kinds: dict[bytes, int] = {}  # of those
        while stack:
            oid, expected, linked_by = stack.pop()
            try:
                kind = whole.get(oid) or kinds.get(oid)
                if kind is not None:
                    _require_kind(oid, kind, expected)
                    continue
                kind, links = self._look_at(oid, expected)
            except RepositoryCorruptError as error:
                self._note_broken(root, linked_by, seen, error)
                raise
            seen[oid], kinds[oid] = linked_by, kind
            stack += [(link, link_kind, oid) for link, link_kind in links]
        whole |= kinds

    def _note_broken(
        self, root: bytes, oid: bytes, seen: dict[bytes, bytes], error: RepositoryCorruptError
    ) -> None:
        """Remember the way to what is not there: other tips may come the same way."""
        while oid != root:
            self._broken[oid] = error
            oid = seen[oid]
        self._broken[root] = error

    def _look_at(self, oid: bytes, expected: int | None) -> tuple[int, list[tuple[bytes, int]]]:
        """Look at one object; return its type, and what it links to, and as what.

        Raises:
            RepositoryCorruptError: it is not there, not what it is linked as, or known as broken.
        """
        if (known := self._broken.get(oid)) is not None:
            raise known.with_traceback(None)
        try:
            kind = self._store.kind_and_size(oid)[0]
            if oid in self._trusted or kind == BLOB or expected not in (None, kind):
                links = []
            else:
                links = self._links(oid, kind)
        except ObjectMissingError:
            raise
        except RepositoryCorruptError as error:
            raise RepositoryCorruptError(f"object {oid.hex()}: {error}") from error
        _require_kind(oid, kind, expected)
        return kind, links

    def _links(self, oid: bytes, kind: int) -> list[tuple[bytes, int]]:
        """List what a commit, tree or tag links to, and as what."""
        if kind == COMMIT:
            commit = self._store.links.commit(oid)
            parents = () if oid in self._shallow else commit.parents
            return [(commit.tree, TREE), *((parent, COMMIT) for parent in parents)]
        if kind == TREE:
            return [
                (child, TREE if mode == MODE_TREE else BLOB)
                for mode, _, child in tree_entries(self._store.get_typed(oid, TREE))
                if mode != MODE_SUBMODULE
            ]
        return [self._store.links.tag(oid)]


def _require_kind(oid: bytes, kind: int, expected: int | None) -> None:
    if expected not in (None, kind):
        raise RepositoryCorruptError(f"object {oid.hex()} is of another type than linked")


def _drop_vouched(
    store: ObjectStore, pack: IndexedPack, missing_trees: set[bytes], missing_blobs: set[bytes]
) -> None:
    """Drop the objects that stand, as such, in a parent's tree where the pack's trees stood.

    The parent is outside of the pack, and so either reachable or walked in full by the caller.
    """
    visited: set[tuple[bytes, tuple[bytes, ...]]] = set()
    stack: list[tuple[bytes, tuple[bytes, ...]]] = []
    commits = {oid: parse_commit(data) for oid, data in pack.commits}
    trees = dict(pack.trees)
    for commit in commits.values():
        olds = []
        for parent in commit.parents:
            inside_commit = commits.get(parent)
            olds.append((inside_commit or store.links.commit(parent)).tree)
            if inside_commit is None:
                missing_trees.discard(olds[-1])
        stack.append((commit.tree, tuple(olds)))
    while stack and (missing_trees or missing_blobs):
        pair = stack.pop()
        new, olds_here = pair
        if new not in trees or not olds_here or pair in visited:
            continue
        visited.add(pair)
        subtrees: dict[bytes, list[bytes]] = {}
        for old in olds_here:
            inside = trees.get(old)
            for mode, name, oid in tree_entries(inside or store.get_typed(old, TREE)):
                if mode == MODE_TREE:
                    subtrees.setdefault(name, []).append(oid)
                    if inside is None:
                        missing_trees.discard(oid)
                elif inside is None and mode != MODE_SUBMODULE:
                    missing_blobs.discard(oid)
        for mode, name, oid in tree_entries(trees[new]):
            if mode == MODE_TREE and name in subtrees:
                stack.append((oid, tuple(subtrees[name])))
