"""Which objects answer a fetch: all that the wants reach, less what the client has.

What the client has is known by commits: their trees are compared path by path, so that the work
grows with the changes and not with the repository.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from storage.git.errors import ObjectMissingError, RepositoryCorruptError
from storage.git.object_filter import ObjectFilter
from storage.git.object_formats import (
    BLOB,
    COMMIT,
    MODE_SUBMODULE,
    MODE_TREE,
    TAG,
    TREE,
    Commit,
    plain_mode,
    tree_entries,
)
from storage.git.objects import ObjectStore

LATEST_HAVES = 4  # so many of the client's commits are looked at where a history is cut
_WANTED, _HAD = 1, 2
# Larger ones are not read where memory is scarce: each of their links becomes an object there.
SMALL_COMMIT_BYTES_MAX, SMALL_TREE_BYTES_MAX = 1 << 20, 8 << 20
# 4 is a tree, 1 a blob; what else a mode can be is there as it is.
_KIND_AND_OID = re.compile(
    rb"0*(4(?=0000 )|1(?=00644 |00755 |20000 )|[0-7]+)[0-7]* [^\0]+\0([\s\S]{20})"
)
# A commit's tree is read as its own, and again as its child's parent's.
_PARSED_TREES_MAX, _PARSED_ENTRIES_MAX = 64, 1_000
_PLAIN_KINDS, _TREE_KINDS = (b"1", b"4"), (b"4", MODE_TREE)


@dataclass(slots=True)
class Selection:
    """Objects to send, in an order that puts commits first.

    Attributes:
        oids: each once.
        twins: oid -> an object that stands at the same path and that the client has.
        had: trees and blobs known to be with the client already.
    """

    oids: list[bytes] = field(default_factory=list)
    twins: dict[bytes, bytes] = field(default_factory=dict)
    had: set[bytes] = field(default_factory=set)


def select_objects(
    objects: ObjectStore,
    *,
    wants: Iterable[bytes],
    haves: Iterable[bytes] = (),
    cut: Collection[bytes] = (),
    object_filter: ObjectFilter | None = None,
    tags: Iterable[tuple[bytes, bytes]] = (),
    is_memory_scarce: bool = False,
    may_thin: bool = False,
) -> Selection:
    """Choose what to send.

    Args:
        objects: where all of it is.
        wants: objects of any type.
        haves: objects that the client has with all that they reach.
        cut: commits whose parents are not followed, the client's borders and the server's.
        object_filter: what to leave out; the wants themselves stay.
        tags: (annotated tag, what it names): sent too when what they name is sent.
        is_memory_scarce: large commits and trees are not to be read here.
        may_thin: leave out what commits of the client's have, also where a history is cut.

    Raises:
        ObjectMissingError, RepositoryCorruptError: an object on the way is missing or damaged.
        PackOutgrownError: one is large, and memory is scarce.
    """
    selector = _Selector(
        objects, cut, object_filter, is_memory_scarce=is_memory_scarce, may_thin=may_thin
    )
    return selector.run(wants, haves, tags)


class _Selector:
    def __init__(
        self,
        objects: ObjectStore,
        cut: Collection[bytes],
        object_filter: ObjectFilter | None,
        *,
        is_memory_scarce: bool,
        may_thin: bool,
    ) -> None:
        self._objects = objects
        commit_bytes_max = SMALL_COMMIT_BYTES_MAX if is_memory_scarce else None
        tree_bytes_max = SMALL_TREE_BYTES_MAX if is_memory_scarce else None
        self._commit = partial(objects.links.commit, bytes_max=commit_bytes_max)
        self._tree = partial(objects.get_typed, kind=TREE, bytes_max=tree_bytes_max)
        self._latest_max = LATEST_HAVES if may_thin else 0
        self._cut = cut
        self._filter = object_filter or ObjectFilter()
        self._selection = Selection()
        self._seen: set[bytes] = set()
        self._explicit: dict[bytes, None] = {}  # sent whatever the filter says
        self._depths: dict[bytes, int] = {}
        self._parsed: dict[bytes, list[tuple[bytes, bytes, bytes]]] = {}

    def run(
        self,
        wants: Iterable[bytes],
        haves: Iterable[bytes],
        tags: Iterable[tuple[bytes, bytes]],
    ) -> Selection:
        commits, others = self._peel_wants(wants)
        had_commits = self._peel_haves(haves)
        new = self._new_commits(commits, had_commits)
        for oid, _ in new:
            self._add(oid, COMMIT)
        if not self._has_no_trees():
            if had_commits or self._filter.tree_depth is not None:
                self._add_changed_trees(new, had_commits)
            else:
                self._add_whole_trees([commit.tree for _, commit in new])
            for kind, oid in others:
                if kind == TREE:
                    self._add_wanted_tree(oid)
        self._add_tags(tags)
        return self._finished()

    def _finished(self) -> Selection:
        found = self._selection
        if self._explicit:
            chosen = set(found.oids)
            found.oids += [oid for oid in self._explicit if oid not in chosen]
            self._seen.update(self._explicit)
        # What is sent is no base that the client has: a delta on it could come full circle. And
        # whoever filters lacks objects that its commits reach.
        found.had = found.had - self._seen if self._filter == ObjectFilter() else set()
        return found

    # the ends

    def _peel_wants(self, wants: Iterable[bytes]) -> tuple[list[bytes], list[tuple[int, bytes]]]:
        commits: dict[bytes, None] = {}
        others: dict[tuple[int, bytes], None] = {}
        for want in wants:
            oid = want
            kind = self._objects.kind_and_size(oid)[0]
            while kind == TAG:
                self._explicit[oid] = None
                oid, kind = self._objects.links.tag(oid)
            self._explicit[oid] = None
            if kind == COMMIT:
                commits[oid] = None
            else:
                others[kind, oid] = None
        return list(commits), list(others)

    def _peel_haves(self, haves: Iterable[bytes]) -> set[bytes]:
        found = set()
        for have in haves:
            try:
                kind, oid = self._objects.links.peel(have)
            except RepositoryCorruptError:
                continue
            if kind == COMMIT:
                found.add(oid)
            else:
                self._selection.had.add(oid)
        return found

    def _new_commits(self, wants: list[bytes], haves: set[bytes]) -> list[tuple[bytes, Commit]]:
        if not haves:
            return self._whole_history(wants)
        return self._history_since(wants, haves)

    def _whole_history(self, wants: list[bytes]) -> list[tuple[bytes, Commit]]:
        commit, cut = self._commit, self._cut
        seen = set(wants)
        queue = list(wants)
        found = []
        while queue:
            oid = queue.pop()
            links = commit(oid)
            if oid in cut:
                links = Commit(links.tree, (), links.time)
            found.append((oid, links))
            for parent in links.parents:
                if parent not in seen:
                    seen.add(parent)
                    queue.append(parent)
        return found

    def _history_since(self, wants: list[bytes], haves: set[bytes]) -> list[tuple[bytes, Commit]]:
        """Paint wanted and had commits downwards, newest first, until no wanted one is left."""
        commit, cut = self._commit, self._cut
        paint: dict[bytes, int] = dict.fromkeys(haves, _HAD)
        for oid in wants:
            paint.setdefault(oid, _WANTED)
        queue = [(-commit(oid).time, oid) for oid in paint]
        heapq.heapify(queue)
        open_wants = {oid for oid, color in paint.items() if color == _WANTED}
        order = []
        while queue and open_wants:
            _, oid = heapq.heappop(queue)
            color = paint[oid]
            open_wants.discard(oid)
            if color == _WANTED:
                order.append(oid)
            for parent in commit(oid).parents if oid not in cut else ():
                before = paint.get(parent)
                if before is None:
                    try:
                        time = commit(parent).time
                    except ObjectMissingError:
                        if color == _WANTED:
                            raise
                        continue
                    paint[parent] = color
                    heapq.heappush(queue, (-time, parent))
                    if color == _WANTED:
                        open_wants.add(parent)
                elif color & ~before:
                    paint[parent] = before | color
                    open_wants.discard(parent)
                    heapq.heappush(queue, (-commit(parent).time, parent))
        found = []
        for oid in order:
            if paint[oid] == _WANTED:
                links = commit(oid)
                parents = () if oid in cut else links.parents
                found.append((oid, Commit(links.tree, parents, links.time)))
        return found

    # adding

    def _add(self, oid: bytes, kind: int) -> None:
        if oid in self._seen:
            return
        self._seen.add(oid)
        if self._filter.kind in (None, kind):
            self._selection.oids.append(oid)

    def _has_no_trees(self) -> bool:
        depth, kind = self._filter.tree_depth, self._filter.kind
        return depth == 0 or kind in (COMMIT, TAG)

    def _takes_blob(self, oid: bytes) -> bool:
        limit = self._filter.blob_bytes_limit
        if self._filter.kind not in (None, BLOB) or limit == 0:
            return False
        return limit is None or self._objects.size(oid) < limit

    def _add_whole_trees(self, roots: list[bytes]) -> None:
        seen, oids = self._seen, self._selection.oids
        find, get = _KIND_AND_OID.findall, self._tree
        takes_all = self._filter == ObjectFilter()
        takes_trees = self._filter.kind in (None, TREE)
        for root in roots:
            queue = [root]
            while queue:
                tree = queue.pop()
                if tree in seen:
                    continue
                seen.add(tree)
                if takes_trees:
                    oids.append(tree)
                for kind, oid in find(get(tree)):
                    if oid in seen:
                        continue
                    if kind not in _PLAIN_KINDS:
                        kind = plain_mode(kind)  # noqa: PLW2901
                    if kind == MODE_SUBMODULE:
                        continue
                    if kind in _TREE_KINDS:
                        queue.append(oid)
                    else:
                        seen.add(oid)
                        if takes_all or self._takes_blob(oid):
                            oids.append(oid)

    def _add_changed_trees(self, new: list[tuple[bytes, Commit]], haves: set[bytes]) -> None:
        """Add what each commit changes, after what its parents do: theirs it is compared with."""
        trees = {oid: commit.tree for oid, commit in new}
        # At a border no parent is followed: what the client has is all that its tree can be like.
        latest = heapq.nlargest(
            self._latest_max, haves, key=lambda oid: (self._commit(oid).time, oid)
        )
        for oid, commit in _parents_first(new):
            before = latest if oid in self._cut else commit.parents
            olds = tuple(trees.get(old) or self._commit(old).tree for old in before)
            self._compare(commit.tree, olds)

    def _compare(self, root: bytes, root_olds: tuple[bytes, ...]) -> None:
        """Add what a tree has beyond trees that the client has, or is being sent."""
        depth_max = self._filter.tree_depth
        queue = deque([(root, root_olds, 0)])
        # With a limit level by level: no tree is then seen again where it lies less deep.
        take = queue.pop if depth_max is None else queue.popleft
        while queue:
            tree, olds, depth = take()
            if tree in olds or (depth_max is not None and depth >= depth_max):
                continue
            if not self._enter(tree, olds, depth):
                continue
            before = self._entries_by_name(olds)
            for mode, name, oid in self._entries(tree):
                twins = before.get(name, ())
                if mode == MODE_SUBMODULE or any(oid == twin for _, twin in twins):
                    continue
                if mode == MODE_TREE:
                    subtrees = tuple(twin for kind, twin in twins if kind == MODE_TREE)
                    queue.append((oid, subtrees, depth + 1))
                elif depth_max is None or depth + 1 < depth_max:
                    self._add_blob(oid, [twin for kind, twin in twins if kind != MODE_TREE])

    def _enter(self, tree: bytes, olds: tuple[bytes, ...], depth: int) -> bool:
        earlier = self._depths.get(tree)
        if tree in self._seen:
            # Seen before, but perhaps where less of it was below the depth limit.
            if self._filter.tree_depth is None or earlier is None or earlier <= depth:
                return False
        elif olds:
            self._selection.twins.setdefault(tree, olds[0])
        self._depths[tree] = depth
        self._add(tree, TREE)
        return True

    def _entries(self, tree: bytes) -> list[tuple[bytes, bytes, bytes]]:
        """Return a tree's entries; those of a few small trees that were read last are at hand."""
        entries = self._parsed.get(tree)
        if entries is None:
            entries = tree_entries(self._tree(tree))
            if len(entries) <= _PARSED_ENTRIES_MAX:
                if len(self._parsed) >= _PARSED_TREES_MAX:
                    self._parsed.clear()
                self._parsed[tree] = entries
        return entries

    def _entries_by_name(self, trees: tuple[bytes, ...]) -> dict[bytes, list[tuple[bytes, bytes]]]:
        found: dict[bytes, list[tuple[bytes, bytes]]] = {}
        seen, had = self._seen, self._selection.had
        for tree in trees:
            try:
                entries = self._entries(tree)
            except ObjectMissingError:
                continue  # a partial repository: what is not compared is sent
            if tree not in seen:
                had.add(tree)
            for mode, name, oid in entries:
                found.setdefault(name, []).append((mode, oid))
                if oid not in seen:
                    had.add(oid)
        return found

    def _add_blob(self, oid: bytes, twins: list[bytes]) -> None:
        if oid not in self._seen and self._takes_blob(oid):
            self._seen.add(oid)
            self._selection.oids.append(oid)
            if twins:
                self._selection.twins[oid] = twins[0]

    def _add_wanted_tree(self, oid: bytes) -> None:
        """Add a tree that was wanted by its own id, with all below it."""
        if self._filter.tree_depth is None:
            self._add_whole_trees([oid])
        else:
            self._compare(oid, ())

    def _add_tags(self, tags: Iterable[tuple[bytes, bytes]]) -> None:
        for tag, target in tags:
            if target in self._seen:
                oid, kind = tag, TAG
                while kind == TAG:
                    self._explicit[oid] = None
                    oid, kind = self._objects.links.tag(oid)


def _parents_first(new: list[tuple[bytes, Commit]]) -> Iterator[tuple[bytes, Commit]]:
    """Yield commits, given with the newest first, so that parents among them come before.

    What times say is no such order: a clock may have gone back between a commit and the next.
    """
    children: dict[bytes, list[tuple[bytes, Commit]]] = {oid: [] for oid, _ in new}
    waits: dict[bytes, int] = {}
    for oid, commit in new:
        parents = [children[parent] for parent in commit.parents if parent in children]
        for place in parents:
            place.append((oid, commit))
        waits[oid] = len(parents)
    ready = [(oid, commit) for oid, commit in new if not waits[oid]]
    while ready:
        oid, commit = ready.pop()
        yield oid, commit
        for child in children[oid]:
            waits[child[0]] -= 1
            if not waits[child[0]]:
                ready.append(child)
