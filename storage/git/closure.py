"""What leads into a set of objects, and what leads out of it."""

from __future__ import annotations

from collections.abc import Iterable
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
    """How some objects hang together with others. All by type.

    Attributes:
        named: their ids, each at least once.
        roots: those of them that none of them links to as such.
        outside: what they link to as such, and is none of them of that type.
    """

    named: dict[int, list[bytes]]
    roots: dict[int, set[bytes]]
    outside: dict[int, set[bytes]]

    @classmethod
    def of(cls, named: dict[int, list[bytes]], links: dict[int, set[bytes]]) -> Closure:
        """Return the closure of objects with these links."""
        roots, outside = {}, {}
        for kind, oids in named.items():
            roots[kind] = set(oids)
            outside[kind] = links[kind] - roots[kind]
            roots[kind] -= links[kind]
        return cls(named, roots, outside)

    @property
    def is_typed(self) -> bool:
        """Whether what they link to among them is of the types that they link to it as.

        If not, `outside` has some of them too, and so may `roots`.
        """
        return not any(
            strange and not strange.isdisjoint(oids)
            for strange in self.outside.values()
            for oids in self.named.values()
        )

    def all_roots(self) -> set[bytes]:
        """Return those of them that none links to, of whatever type."""
        return set().union(*self.roots.values())

    def all_outside(self) -> set[bytes]:
        """Return what they link to and is none of them, of whatever type."""
        return set().union(*self.outside.values())

    def joined(self, other: Closure) -> Closure:
        """Return the closure of these objects and others, of which none are the same."""
        named, roots, outside = {}, {}, {}
        for kind, oids in self.named.items():
            others = other.named[kind]
            named[kind] = [*oids, *others]
            roots[kind] = self.roots[kind] - other.outside[kind]
            roots[kind] |= other.roots[kind] - self.outside[kind]
            outside[kind] = self.outside[kind].difference(others)
            outside[kind] |= other.outside[kind].difference(oids)
        return Closure(named, roots, outside)
