"""The deflated streams of a pack that nobody has checked yet, inflated within bounds."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from collections.abc import Callable

from storage.git.errors import PackInvalidError

_PIECE_BYTES = 256 << 10
_STREAM_PIECE_BYTES = 64 << 10


class PackStreams:
    """What lies between a pack's header and its trailer.

    Attributes:
        end: where the trailer begins; `view` ends there.
    """

    def __init__(self, mapped: mmap.mmap | bytes, end: int) -> None:
        self.mapped = mapped
        self.end = end
        self.view = memoryview(mapped)[:end]

    def require_sum(self) -> None:
        """Hold all of it against the trailer.

        Raises:
            PackInvalidError: they differ.
        """
        digest = hashlib.sha1(self.view, usedforsecurity=False).digest()
        if digest != self.mapped[self.end :]:
            raise PackInvalidError("final sha1 did not match")

    def whole(self, at: int, size: int) -> tuple[bytes, int]:
        """Inflate the stream at `at`, which makes `size` bytes; return them and where it ends.

        Raises:
            PackInvalidError: it makes more or fewer, or is damaged.
        """
        view, end = self.view, self.end
        inflater = zlib.decompressobj()
        take = size + 64 if size < _STREAM_PIECE_BYTES else _STREAM_PIECE_BYTES + size // 4
        stop = min(at + take, end)
        try:
            data = inflater.decompress(view[at:stop], size + 1)
            at = stop
            while not inflater.eof:
                if inflater.unconsumed_tail or len(data) > size:
                    raise PackInvalidError("inflate: object is larger than its head says")
                if at >= end:
                    raise PackInvalidError("early EOF")
                stop = min(at + _STREAM_PIECE_BYTES, end)
                data += inflater.decompress(view[at:stop], size + 1 - len(data))
                at = stop
        except zlib.error as error:
            raise damaged(error) from error
        if len(data) != size:
            raise PackInvalidError(f"inflate: object has {len(data)} bytes, its head says {size}")
        return data, at - len(inflater.unused_data)

    def pieces(self, at: int, size: int, take: Callable[[bytes], object]) -> int:
        """Inflate the stream at `at` piece by piece; return where it ends.

        Raises:
            PackInvalidError: it makes more or fewer than `size` bytes, or is damaged.
        """
        inflater = zlib.decompressobj()
        got = 0
        try:
            while not inflater.eof:
                if at >= self.end:
                    raise PackInvalidError("early EOF")
                rest: bytes | memoryview = self.view[at : at + _PIECE_BYTES]
                at += len(rest)
                while rest and not inflater.eof:
                    piece = inflater.decompress(rest, 4 * _PIECE_BYTES)
                    rest = inflater.unconsumed_tail
                    got += len(piece)
                    if got > size:
                        raise PackInvalidError("inflate: object is larger than its head says")
                    take(piece)
        except zlib.error as error:
            raise damaged(error) from error
        if got != size:
            raise PackInvalidError(f"inflate: object has {got} bytes, its head says {size}")
        return at - len(inflater.unused_data)


def damaged(error: zlib.error) -> PackInvalidError:
    """Say that a stream cannot be inflated."""
    return PackInvalidError(f"inflate: data stream error ({error})")
