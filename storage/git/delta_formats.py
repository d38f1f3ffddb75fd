"""Deltas as packs have them: a result, told by pieces of a base.

Source: gitformat-pack(5), "Deltified representation".
"""

from __future__ import annotations

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from storage.git.errors import RepositoryCorruptError
from storage.git.pack import SIZE_OUT_OF_BOUND, SIZE_SHIFT_MAX

DELTA_DEPTH_MAX = 4096  # git's own limit is 4095


def delta_sizes(delta: bytes) -> tuple[int, int]:
    """Read the two sizes at the head of a delta: of its base and of its result.

    Raises:
        RepositoryCorruptError: it ends before them, or one is none.
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
        byte = delta[at]
        result, shift = byte & 127, 7
        while byte & 128 and shift <= SIZE_SHIFT_MAX:
            at += 1
            byte = delta[at]
            result |= (byte & 127) << shift
            shift += 7
        if byte & 128:
            raise RepositoryCorruptError(SIZE_OUT_OF_BOUND)
    except IndexError as error:
        raise RepositoryCorruptError("a delta is too short") from error
    return base, result


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
