"""Ids: a prefix, an underscore and 26 characters of Crockford's base 32."""

from __future__ import annotations

import secrets
import threading
import time
from typing import NewType

from storage.digest import Digest

ArtifactId = NewType("ArtifactId", str)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ID_CHARS = 26
ARTIFACT_PREFIX = "art"
_RANDOM_BITS = 80
_ALPHABET_SET = frozenset(ALPHABET)
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


class _Clock:
    """The last ULID given out: within a process ids only grow, whatever the wall clock does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        now = time.time_ns() // 1_000_000
        with self._lock:
            if now > self._last >> _RANDOM_BITS:
                # The top bit stays free, so that a millisecond never runs out of successors.
                self._last = (now << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS - 1)
            else:
                self._last += 1 + secrets.randbits(32)
            return self._last

    def advance_past(self, last: int) -> None:
        with self._lock:
            self._last = max(self._last, last)


_CLOCK = _Clock()


def new_id(prefix: str) -> str:
    """Return a new id, such as `job_01J9...`: a ULID, later ids of this process sort higher.

    Source: contract section 1; the ULID specification, "Monotonicity".
    """
    return f"{prefix}_{_encode(_CLOCK.next())}"


def advance_past(text: str) -> None:
    """Let every later id of this process sort behind `text`, a ULID with its prefix.

    For a start: ids go on growing when the wall clock was set back meanwhile.
    """
    number = 0
    for char in text.partition("_")[2]:
        number = (number << 5) | ALPHABET.index(char)
    _CLOCK.advance_past(number)


class IdSequence:
    """Ids for what is made by the thousands a second and kept nowhere, such as requests.

    The time, 40 random bits of this sequence, and a count: a tenth of the price of `new_id`, and as
    good as long as nothing rests on their being hard to guess. Belongs to one thread.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._random = "".join(_PAIRS[secrets.randbits(10)] for _ in range(4))
        self._count = secrets.randbits(39)
        self._ms = -1
        self._head = ""

    def next(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            self._head = f"{self._prefix}_{_encode(ms)[-10:]}{self._random}"
        count = self._count = (self._count + 1) & ((1 << 40) - 1)
        low, high = count & 0xFFFFF, count >> 20
        return (
            f"{self._head}{_PAIRS[high >> 10]}{_PAIRS[high & 1023]}"
            f"{_PAIRS[low >> 10]}{_PAIRS[low & 1023]}"
        )


def artifact_id(digest: Digest) -> ArtifactId:
    """Return the id of the artifact with this digest: equal content has an equal id.

    It is the first 130 bits of the digest.
    """
    return ArtifactId(f"{ARTIFACT_PREFIX}_{_encode(int.from_bytes(digest[:17], 'big') >> 6)}")


def is_id(text: str, prefix: str) -> bool:
    """Say whether `text` has the form of an id with this prefix. Lower case is refused."""
    head, _, tail = text.partition("_")
    if head != prefix or len(tail) != ID_CHARS or not _ALPHABET_SET.issuperset(tail):
        return False
    # 26 characters hold 130 bits and a ULID has 128: its first character is at most 7.
    return prefix == ARTIFACT_PREFIX or tail[0] <= "7"


def _encode(number: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -10, -10)])
