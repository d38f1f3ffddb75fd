"""Links: whether the symbolic links of a tree stay in it, however they are followed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from storage.manifest import Entry, LinkEntry

HOP_COUNT_MAX = 40
NAMES_COUNT_MAX = 50_000_000
"""Names that the links of a tree may lead through, all together; each with those that lead there.
Ten thousand links as package managers make them come to a million at most."""
# What the virtual environments of Python point at: where a machine's own is, and one beside it.
HOST_PREFIXES = (b"/usr/bin/python3", b"/usr/local/bin/python3")


def escaping_link(entries: Iterable[Entry]) -> LinkEntry | None:
    """Return the first link that may lead out of the tree, or None.

    Links are followed through one another, as the kernel would: `a/up -> ..` and then `m ->
    a/up/../x` leaves the tree although neither seems to. Links to nothing and loops stay in. Where
    following them takes longer than any tree needs, the one that would be next counts as one.
    """
    links = {entry.path: entry.target for entry in entries if isinstance(entry, LinkEntry)}
    way = _Way(links)
    return next(
        (LinkEntry(path, target) for path, target in links.items() if way.escapes(path)), None
    )


def is_host_target(target: bytes) -> bool:
    """Say whether an absolute target is one of the few files of the host that links may name."""
    return any(
        target.startswith(prefix) and b"/" not in target.removeprefix(prefix)
        for prefix in HOST_PREFIXES
    )


class _Way:
    """Follows links one after the other, and counts what that takes."""

    def __init__(self, links: Mapping[bytes, bytes]) -> None:
        self._links = links
        self._names_left = NAMES_COUNT_MAX

    def escapes(self, path: bytes) -> bool:
        here: list[bytes] = []
        todo = path.split(b"/")[::-1]
        hops = 0
        while todo:
            self._names_left -= 1 + len(here)
            if self._names_left < 0:
                return True
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if not here:
                    return True
                here.pop()
                continue
            here.append(name)
            target = self._links.get(b"/".join(here))
            if target is None:
                continue
            if target.startswith(b"/"):
                return not is_host_target(target)
            hops += 1
            if hops > HOP_COUNT_MAX:
                return False  # the kernel gives up as well (ELOOP)
            here.pop()
            todo += target.split(b"/")[::-1]
        return False
