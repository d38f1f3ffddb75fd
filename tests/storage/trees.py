"""Trees that `ingest_child.py` takes in: each is made durable in another way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.blobs import EARLY_SYNC_BYTES
from storage.files import SYNC_EACH_COUNT_MAX
from storage.long_write import AHEAD_BYTES, WINDOW_BYTES

INGEST_CHILD = Path(__file__).with_name("ingest_child.py")


@dataclass(frozen=True)
class Tree:
    """The four small files of `ingest_child.py` and `count` more, each of `size_bytes` or some
    more; those that are longer than `piece_bytes` come in pieces, unless that is 0.
    """

    name: str
    count: int
    size_bytes: int = 0
    piece_bytes: int = 0

    def __str__(self) -> str:
        return self.name

    def words(self, shop: Path) -> tuple[str, ...]:
        """What to say to the child that takes it in."""
        return (str(shop), str(self.count), str(self.size_bytes), str(self.piece_bytes))


FEW = Tree("few", 0)  # synced one by one
MANY = Tree("many", 30)  # synced together, and their folders too
# Some of it is synced early, while the last two are staged.
LARGE = Tree("large", SYNC_EACH_COUNT_MAX + 2, EARLY_SYNC_BYTES // SYNC_EACH_COUNT_MAX)
# The disk is waited for while the last of its pieces are still to come.
LONG = Tree("long", 1, AHEAD_BYTES + 2 * WINDOW_BYTES, 1 << 20)
