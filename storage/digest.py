"""A digest: the BLAKE3-256 of some bytes, and so their name."""

from __future__ import annotations

import functools
import re
import struct
from itertools import chain

from blake3 import blake3

from storage.errors import DigestInvalidError

DIGEST_BYTES = 32
KEY_BYTES = DIGEST_BYTES + 1  # of a blob: its digest, then whether it may be executed
_AT_ONCE_COUNT = 256
_TEXT = re.compile(r"blake3:([0-9a-f]{64})", re.ASCII)


class Digest(bytes):
    """The 32 raw bytes; its text form is `blake3:` and 64 lower-case hexadecimal digits."""

    __slots__ = ()

    @classmethod
    def of(cls, data: bytes | memoryview) -> Digest:
        return cls(blake3(data).digest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read the text form: exactly it, no other algorithm, no upper case, no short form.

        Raises:
            DigestInvalidError: It is anything else.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise DigestInvalidError(f"not a digest: {text[:100]!r}")
        return cls.fromhex(match[1])

    def __str__(self) -> str:
        return f"blake3:{self.hex()}"

    def __repr__(self) -> str:
        return f"Digest({self.hex()[:12]})"


def split(data: bytes, count: int) -> list[bytes]:
    """Cut into pieces of one length, such as digests: there may be millions."""
    many = _pieces_of(count)
    end = len(data) - len(data) % many.size
    pieces = list(chain.from_iterable(many.iter_unpack(memoryview(data)[:end])))
    pieces += [data[at : at + count] for at in range(end, len(data), count)]
    return pieces


@functools.cache
def _pieces_of(count: int) -> struct.Struct:
    """Cuts so many at once: a slice for each takes several times as long."""
    return struct.Struct(f"{count}s" * _AT_ONCE_COUNT)
