"""pkt-line: the framing of everything that git says over HTTP, and the side band inside it.

Source: gitprotocol-common(5), "pkt-line Format"; gitprotocol-pack(5), "side-band".
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from gitd.git.errors import BodyInvalidError

FLUSH, DELIM, RESPONSE_END = b"0000", b"0001", b"0002"
LINE_BYTES_MAX = 65520  # with its four digits
DATA_BYTES_MAX = LINE_BYTES_MAX - 4
SIDE_BAND_BYTES_MAX = 1000 - 5
SIDE_BAND_64K_BYTES_MAX = LINE_BYTES_MAX - 5
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Marker(Enum):
    """A packet without data."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2
    END = -1  # of the body


def pkt_line(data: bytes) -> bytes:
    """Frame one packet.

    Raises:
        ValueError: it has more than 65516 bytes.
    """
    if len(data) > DATA_BYTES_MAX:
        raise ValueError("a pkt-line holds at most 65516 bytes")
    return b"%04x%b" % (len(data) + 4, data)


def pkt_lines(lines: Iterable[bytes]) -> bytes:
    """Frame some packets."""
    return b"".join(map(pkt_line, lines))


def parse_length(head: bytes) -> int | Marker:
    """Read the four digits before a packet: how many bytes follow, or which marker it is.

    Raises:
        BodyInvalidError: they are no digits, `0003`, or more than 65520.
    """
    if not _HEX.issuperset(head) or len(head) != 4:
        raise BodyInvalidError(f"bad line length character: {head!r}")
    length = int(head, 16)
    if length in (0, 1, 2):
        return Marker(length)
    if length < 4 or length > LINE_BYTES_MAX:
        raise BodyInvalidError(f"bad line length {length}")
    return length - 4


def side_band(band: int, data: bytes | memoryview, *, bytes_max: int) -> list[bytes]:
    """Frame data for one band, in as many packets as it takes."""
    return [
        b"".join((b"%04x%c" % (len(piece) + 5, band), piece))
        for piece in (data[at : at + bytes_max] for at in range(0, len(data), bytes_max))
    ]
