"""What leads into a set of objects, and what leads out of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

_RECENT_MAX = 4_000


class Links:
    """Ids that objects link to: the same few again and again, for a while.

    They are noted in a set that is small enough to stay in the processor's cache.
    """

    def __init__(self) -> None:
        self._all: set[bytes] = set()
        self._recent: set[bytes] = set()

    def note(self, links: Iterable[bytes]) -> None:
        """Note some links."""
        self._recent.update(links)
        if len(self._recent) > _RECENT_MAX:
            self._all |= self._recent
            self._recent.clear()

    def all(self) -> set[bytes]:
        """Return all of them."""
        self._all |= self._recent
        return self._all


@dataclass(frozen=True, slots=True)
class Closure:
    """How some objects hang together with others.

    Attributes:
        roots: those of them that none of them links to.
        outside_commits, outside_objects: what they link to and is none of them.
    """

    roots: set[bytes]
    outside_commits: set[bytes]
    outside_objects: set[bytes]

    @classmethod
    def of(cls, oids: set[bytes], commit_links: set[bytes], object_links: set[bytes]) -> Closure:
        """Return the closure of objects with these links."""
        return cls(
            roots=oids - object_links - commit_links,
            outside_commits=commit_links - oids,
            outside_objects=object_links - oids,
        )

    def joined(self, oids: Collection[bytes], other: Closure, others: Collection[bytes]) -> Closure:
        """Return the closure of these objects and others, of which none are the same."""
        roots = self.roots - other.outside_objects - other.outside_commits
        other_roots = other.roots - self.outside_objects - self.outside_commits
        return Closure(
            roots=roots | other_roots,
            outside_commits=self.outside_commits.difference(others)
            | other.outside_commits.difference(oids),
            outside_objects=self.outside_objects.difference(others)
            | other.outside_objects.difference(oids),
        )
