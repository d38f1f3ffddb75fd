"""Contents of objects that were just read: they are the bases of those that are read next."""

from __future__ import annotations

CACHED_OBJECT_BYTES_MAX = 1 << 20  # larger objects are read again
GENERATION_BYTES_MAX = 32 << 20


class ContentCache:
    """Recently used delta bases, shared by all stores of a process.

    Two generations: what is used survives the turn of the generation, the rest goes. Its size
    stays below that of two.
    """

    def __init__(self) -> None:
        self._young: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._old: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._young_bytes = 0

    def get(self, key: tuple[int, int]) -> tuple[int, bytes] | None:
        """Return (type, content) of an entry, keyed by (serial of the pack, offset)."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: tuple[int, int], value: tuple[int, bytes]) -> None:
        """Remember an entry for a while."""
        size = len(value[1])
        if size > CACHED_OBJECT_BYTES_MAX:
            return
        if self._young_bytes > GENERATION_BYTES_MAX:
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[key] = value
        self._young_bytes += size
