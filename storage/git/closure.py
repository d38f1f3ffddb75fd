"""What leads into a set of objects, and what leads out of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from storage.git.object_formats import BLOB, COMMIT, TAG, TREE

LISTED_KINDS = (COMMIT, TREE, TAG)
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
        named: type -> those of them that are of it; blobs are the rest, and not listed.
        outside: type -> what they link to as such, and is none of them.
        is_typed: whether what they link to among them is of the types that they link to it as. If
            not, `outside` has some of them too.
    """

    roots: set[bytes]
    named: dict[int, set[bytes]]
    outside: dict[int, set[bytes]]
    is_typed: bool

    @classmethod
    def of(
        cls, oids: set[bytes], named: dict[int, set[bytes]], links: dict[int, set[bytes]]
    ) -> Closure:
        """Return the closure of objects, of which `named` are no blobs, with these links."""
        outside = {kind: links[kind] - named[kind] for kind in LISTED_KINDS}
        is_typed = all(oids.isdisjoint(strange) for strange in outside.values())
        outside[BLOB] = links[BLOB] - oids
        roots = oids - links[BLOB]
        for kind in LISTED_KINDS:
            is_typed = is_typed and links[BLOB].isdisjoint(named[kind])
            roots -= links[kind]
        return cls(roots, named, outside, is_typed)

    def all_outside(self) -> set[bytes]:
        """Return what they link to and is none of them, of whatever type."""
        return set().union(*self.outside.values())

    def joined(self, oids: Collection[bytes], other: Closure, others: Collection[bytes]) -> Closure:
        """Return the closure of these objects and others, of which none are the same."""
        outside = {
            kind: (self.outside[kind] - other.named[kind])
            | (other.outside[kind] - self.named[kind])
            for kind in LISTED_KINDS
        }
        linked = self.outside[BLOB] | other.outside[BLOB]
        is_typed = self.is_typed and other.is_typed
        for kind in LISTED_KINDS:
            strange = outside[kind]
            is_typed = is_typed and strange.isdisjoint(oids) and strange.isdisjoint(others)
            for named in (self.named[kind], other.named[kind]):
                is_typed = is_typed and linked.isdisjoint(named)
        outside[BLOB] = linked.difference(oids, others)
        return Closure(
            roots=(self.roots - other.all_outside()) | (other.roots - self.all_outside()),
            named={kind: self.named[kind] | other.named[kind] for kind in LISTED_KINDS},
            outside=outside,
            is_typed=is_typed,
        )
