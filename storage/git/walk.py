"""Walk a history: ancestry, what a fetch lacks, shallow borders.

`cut` is everywhere the set of commits whose parents are not to be followed: the borders of a
shallow repository or clone.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from storage.git.objects import ObjectStore


def is_ancestor(
    objects: ObjectStore, old: bytes, new: bytes, *, cut: Collection[bytes] = ()
) -> bool:
    """Say whether commit `old` is reachable from commit `new`.

    Raises:
        RepositoryCorruptError: a commit on the way is missing or none.
    """
    return bool(reachable_among({old}, {new}, objects, cut=cut))


def reachable_among(
    wanted: Iterable[bytes],
    tips: Iterable[bytes],
    objects: ObjectStore,
    *,
    cut: Collection[bytes] = (),
) -> set[bytes]:
    """Return those of some commits that some tips reach, walking newest first.

    Raises:
        RepositoryCorruptError: a commit on the way is missing or none.
    """
    missing = set(wanted)
    found = set[bytes]()
    if not missing:
        return found
    oldest = min(objects.links.commit(oid).time for oid in missing)
    queue = [(-objects.links.commit(oid).time, oid) for oid in set(tips)]
    heapq.heapify(queue)
    seen = {oid for _, oid in queue}
    late: list[bytes] = []  # older than all wanted, by a clock that may be wrong
    while missing and (queue or late):
        if queue:
            time, oid = heapq.heappop(queue)
            if -time < oldest and oid not in missing:
                late.append(oid)
                continue
        else:
            oid = late.pop()
        if oid in missing:
            missing.discard(oid)
            found.add(oid)
        for parent in objects.links.commit(oid).parents if oid not in cut else ():
            if parent not in seen:
                seen.add(parent)
                heapq.heappush(queue, (-objects.links.commit(parent).time, parent))
    return found
