"""The borders of shallow clones: where they are, and where a fetch moves them.

Source: gitprotocol-pack(5), "shallow"; git's shallow.c and upload-pack.c, deepen().
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from storage.git.errors import RepositoryCorruptError
from storage.git.object_formats import COMMIT
from storage.git.objects import ObjectStore
from storage.git.repository import Repository
from storage.git.walk import reachable_among

INFINITE_DEPTH = 0x7FFFFFFF


class DeepenError(ValueError):
    """A wish for depth that nothing can satisfy; the message is git's."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How deep a client wants to be: by number, or by what to leave out.

    Attributes:
        commits: so many from each tip, or from its present border if `is_relative`.
        since: only commits at least so young, in seconds since 1970.
        without: only commits that these do not reach.
    """

    commits: int | None = None
    is_relative: bool = False
    since: int | None = None
    without: tuple[bytes, ...] = ()

    @property
    def is_by_selection(self) -> bool:
        return self.since is not None or bool(self.without)


@dataclass(frozen=True, slots=True)
class Borders:
    """Where a client's history ends after a fetch.

    Attributes:
        shallow: its new borders.
        unshallow: borders that it had and that are none any longer.
        cut: commits whose parents neither side may assume the client to have.
        more_wants: parents behind the former borders.
    """

    shallow: tuple[bytes, ...] = ()
    unshallow: tuple[bytes, ...] = ()
    cut: frozenset[bytes] = frozenset()
    more_wants: tuple[bytes, ...] = ()


def borders_after(
    objects: ObjectStore,
    *,
    wants: Iterable[bytes],
    depth: Depth,
    client: Collection[bytes],
    server: Collection[bytes],
) -> Borders:
    """Find where a fetch of `wants` moves the borders of a client.

    Args:
        objects: the repository's.
        wants: tips that the client asks for.
        depth: how deep it wants to be; nothing set means as deep as the server is.
        client: the borders that it has.
        server: the repository's own.

    Raises:
        DeepenError: no commit is left.
    """
    tips = _commits(objects, wants)
    known = {oid for oid in client if objects.contains(oid)}
    if depth.is_by_selection:
        borders, inside = _by_selection(objects, tips, depth, server)
    else:
        commits = INFINITE_DEPTH if depth.commits is None else depth.commits
        if depth.is_relative and commits != INFINITE_DEPTH:
            borders, inside = _by_more(objects, tips, commits, known, server)
        else:
            borders, inside = _by_depth(objects, tips, commits, server)
        if commits == INFINITE_DEPTH and not server:
            inside |= known
    unshallow = tuple(sorted(oid for oid in known if oid in inside))
    return Borders(
        shallow=tuple(sorted(oid for oid in borders if oid not in known)),
        unshallow=unshallow,
        cut=frozenset({*client, *borders, *server}),
        more_wants=tuple(
            parent
            for oid in unshallow
            for parent in objects.links.commit(oid).parents
            if oid not in server
        ),
    )


def _commits(objects: ObjectStore, oids: Iterable[bytes]) -> list[bytes]:
    found = []
    for oid in oids:
        kind, target = objects.links.peel(oid)
        if kind == COMMIT:
            found.append(target)
    return found


def borders_behind(
    objects: ObjectStore,
    tips: Iterable[bytes],
    borders: Collection[bytes],
    *,
    server: Collection[bytes],
) -> set[bytes]:
    """Return those of some new borders at which the histories of `tips` end.

    `server`: the borders that the repository has already.

    Raises:
        RepositoryCorruptError: a commit on the way is missing or none.
    """
    return reachable_among(borders, _commits(objects, tips), objects, cut={*borders, *server})


def forget_unreached_borders(repository: Repository) -> int:
    """Drop the borders that no ref reaches, and return how many: a push noted them, and the power
    failed before its refs moved. What comes whole later would end there. Source: git's `prune`.

    Only for repositories that nobody else writes, while nothing is being pushed to them. Does
    nothing where that cannot be told for damage, nor where there are reflogs: git follows what they
    name as it follows refs, and its `gc` fails at a commit without parents.

    Raises:
        OSError: As for `Repository.extend_shallow`.
        RefUpdateError: A ref cannot be read.
    """
    borders = repository.shallow()
    if not borders or any(repository.refs.broken()) or not repository.refs.is_packed_whole():
        return 0
    if (repository.path / "logs").exists():
        return 0
    objects, refs = repository.objects, repository.refs.snapshot()
    there = {oid for oid in borders if objects.contains(oid)}
    try:
        tips = _commits(objects, {*refs.values.values(), *filter(None, [refs.head])})
        reached = reachable_among(there, tips, objects, cut=borders)
    except RepositoryCorruptError:
        return 0
    if reached != borders:
        repository.keep_shallow(reached)
    return len(borders) - len(reached)


def _by_depth(
    objects: ObjectStore, tips: Iterable[bytes], depth: int, server: Collection[bytes]
) -> tuple[set[bytes], set[bytes]]:
    """Return (commits at exactly that depth, or the server's own ends; commits above)."""
    borders, inside = set[bytes](), set[bytes]()
    row = set(tips)
    seen = set(row)
    level = 1
    while row:
        below = set[bytes]()
        for oid in row:
            if (depth != INFINITE_DEPTH and level >= depth) or oid in server:
                borders.add(oid)
                continue
            inside.add(oid)
            below.update(objects.links.commit(oid).parents)
        row = below - seen
        seen |= row
        level += 1
    return borders, inside


def _by_more(
    objects: ObjectStore,
    tips: Iterable[bytes],
    commits: int,
    client: Collection[bytes],
    server: Collection[bytes],
) -> tuple[set[bytes], set[bytes]]:
    """Return what `_by_depth` does, for so many commits behind each border of the client.

    Behind a merge one way may be the longer one: the way back from its border comes to commits
    that the client has with their parents. They stay what they are. Source: git since 2.54.
    """
    present = _history(objects, tips, {*client, *server})
    ends = present.intersection(client)
    borders, inside = _by_depth(objects, ends, commits + 1, server)
    return borders - (present - ends - set(server)), inside


def _by_selection(
    objects: ObjectStore, tips: list[bytes], depth: Depth, server: Collection[bytes]
) -> tuple[set[bytes], set[bytes]]:
    excluded = _history(objects, _commits(objects, depth.without), server)
    chosen = set[bytes]()
    queue = [oid for oid in tips if oid not in excluded]
    while queue:
        oid = queue.pop()
        links = objects.links.commit(oid)
        if oid in chosen or oid in excluded or links.time < (depth.since or 0):
            continue
        chosen.add(oid)
        if oid not in server:
            queue.extend(links.parents)
    if not chosen:
        raise DeepenError("no commits selected for shallow requests")
    borders = {
        oid
        for oid in chosen
        if oid in server
        or any(parent not in chosen for parent in objects.links.commit(oid).parents)
    }
    return borders, chosen - borders


def _history(objects: ObjectStore, tips: Iterable[bytes], server: Collection[bytes]) -> set[bytes]:
    seen = set[bytes]()
    queue = list(tips)
    while queue:
        oid = queue.pop()
        if oid not in seen:
            seen.add(oid)
            if oid not in server:
                queue.extend(objects.links.commit(oid).parents)
    return seen


def all_reach_some(
    objects: ObjectStore,
    wants: Iterable[bytes],
    common: Collection[bytes],
    *,
    cut: Collection[bytes] = (),
) -> bool:
    """Say whether from every wanted commit some common one is reached.

    Then nothing that the client could still say would make the answer much smaller.
    """
    if not common:
        return False
    try:
        goals = set(_commits(objects, common))
        tips = _commits(objects, wants)
        oldest = min((objects.links.commit(oid).time for oid in goals), default=0)
        order: list[bytes] = []
        seen = set[bytes]()
        stack: list[tuple[bytes, bool]] = [(oid, False) for oid in tips]
        while stack:
            oid, is_done = stack.pop()
            if is_done:
                order.append(oid)
                continue
            if oid in seen:
                continue
            seen.add(oid)
            stack.append((oid, True))
            links = objects.links.commit(oid)
            if oid not in goals and oid not in cut and links.time >= oldest:
                stack += [(parent, False) for parent in links.parents]
        reaching = set[bytes]()
        for oid in order:  # parents before children
            if oid in goals or any(p in reaching for p in objects.links.commit(oid).parents):
                reaching.add(oid)
        return all(oid in reaching for oid in tips)
    except RepositoryCorruptError:
        return False
