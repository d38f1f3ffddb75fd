"""A digest: the BLAKE3-256 of some bytes, and so their name."""

from __future__ import annotations

import re

from blake3 import blake3

from storage.errors import DigestInvalidError

DIGEST_BYTES = 32
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
