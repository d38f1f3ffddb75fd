"""A pack's own checksum, held against its bytes while they are sent.

Source: gitformat-pack(5): the last 20 bytes of a pack are the SHA-1 of all before.
"""

from __future__ import annotations

import hashlib

from storage.git.pack import TRAILER_BYTES


class PackSum:
    """Takes a pack piece by piece.

    Args:
        size_bytes: of the whole pack, its trailer included.
    """

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes - TRAILER_BYTES
        self._digest = hashlib.sha1(usedforsecurity=False)
        self._trailer = b""

    def take(self, piece: bytes) -> bool:
        """Take the next piece; false when it is the last one, and the sum is another."""
        if len(piece) <= self._left_bytes:
            self._digest.update(piece)
            self._left_bytes -= len(piece)
            return True
        with memoryview(piece) as view:
            self._digest.update(view[: self._left_bytes])
            self._trailer += view[self._left_bytes :]
        self._left_bytes = 0
        return len(self._trailer) < TRAILER_BYTES or self._trailer == self._digest.digest()
