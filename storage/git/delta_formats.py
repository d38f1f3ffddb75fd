"""Deltas as packs have them: a result, told by pieces of a base.

Source: gitformat-pack(5), "Deltified representation".
"""

from __future__ import annotations

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from storage.git.errors import RepositoryCorruptError
from storage.git.pack import SIZE_OUT_OF_BOUND, SIZE_SHIFT_MAX

DELTA_BYTES_MIN = 4  # as git's: two sizes and the shortest instruction
DELTA_DEPTH_MAX = 4096  # git's own limit is 4095
# Literal bytes. An instruction that lacks up to seven of its own bytes swallows a part of them:
# what is left begins with the one byte that is no instruction at all.
_MORE_BYTES = 7
_MORE = bytes((_MORE_BYTES,)) + bytes(_MORE_BYTES)


def delta_sizes(delta: bytes) -> tuple[int, int]:
    """Read the two sizes at the head of a delta: of its base and of its result.

    Raises:
        RepositoryCorruptError: it ends before them, or one is none.
    """
    base, _, result, _ = delta_head(delta)
    return base, result


def delta_head(delta: bytes) -> tuple[int, int, int, int]:
    """Read both sizes, and where each of them ends: (base, end, result, end).

    Raises:
        RepositoryCorruptError: see `delta_sizes`.
    """
    try:
        byte = delta[0]
        at = 1
        base, shift = byte & 127, 7
        while byte & 128 and shift <= SIZE_SHIFT_MAX:
            byte = delta[at]
            at += 1
            base |= (byte & 127) << shift
            shift += 7
        if byte & 128:
            raise RepositoryCorruptError(SIZE_OUT_OF_BOUND)
        base_end = at
        byte = delta[at]
        at += 1
        result, shift = byte & 127, 7
        while byte & 128 and shift <= SIZE_SHIFT_MAX:
            byte = delta[at]
            at += 1
            result |= (byte & 127) << shift
            shift += 7
        if byte & 128:
            raise RepositoryCorruptError(SIZE_OUT_OF_BOUND)
    except IndexError as error:
        raise RepositoryCorruptError("a delta is too short") from error
    return base, base_end, result, at


def encoded_size(size: int) -> bytes:
    """Write a size as it stands at the head of a delta."""
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def patched(base: bytes, delta: bytes) -> bytes:
    """Apply a delta to its base.

    Raises:
        RepositoryCorruptError: the delta does not fit the base.
    """
    try:
        pieces = apply_delta(base, delta)
    except ApplyDeltaError as error:
        raise RepositoryCorruptError(f"a delta does not apply: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def patched_anew(base: bytes, delta: bytes, head: tuple[int, int, int, int]) -> bytes:
    """As `patched`, of a delta that nobody has read before: git must be able to read it too.

    `head`: see `delta_head`.

    Raises:
        RepositoryCorruptError: the delta does not fit the base, or one of its instructions does
            not; or it is too short for git.
    """
    if len(delta) < DELTA_BYTES_MIN:
        raise RepositoryCorruptError("a delta is too short")
    # The native code stops at a copy that is out of bounds, and takes no notice of one that is the
    # last instruction. With one more behind it, it does.
    _, base_end, size, at = head
    longer_size = size + _MORE_BYTES
    if longer_size < 1 << 14:  # nearly always; in two bytes, however small
        encoded = (longer_size & 127 | 128 | longer_size >> 7 << 8).to_bytes(2, "little")
    else:
        encoded = encoded_size(longer_size)
    longer = patched(base, b"%b%b%b%b" % (delta[:base_end], encoded, delta[at:], _MORE))
    made = longer[:-_MORE_BYTES]
    # A literal that lacks just as many bytes has taken it for them, and ends as it begins.
    return made if made[-1:] != _MORE[:1] else patched(base, delta)
