"""Why a ref is not changed: git's word for the report, and its sentence for the pusher.

Source: git's refs/files-backend.c, refs.c, and builtin/receive-pack.c for the words.
"""

from __future__ import annotations

from storage.git.errors import RefUpdateError
from storage.git.object_formats import NULL_OID
from storage.git.refs import show

STALE = "incorrect old value provided"
EXISTS = "reference already exists"
ABSENT = "reference does not exist"
CONFLICT = "refname conflict"
ATOMIC = "atomic transaction failed"


def name_too_long(name: bytes) -> RefUpdateError:
    return RefUpdateError(f"cannot lock ref '{show(name)}': File name too long")


def name_conflict(name: bytes, there: bytes) -> RefUpdateError:
    """`there`: a ref that it cannot stand beside."""
    return RefUpdateError(
        f"cannot lock ref '{show(name)}': '{show(there)}' exists; cannot create '{show(name)}'",
        reason=CONFLICT,
    )


def below_a_ref(name: bytes) -> RefUpdateError:
    return RefUpdateError(
        f"cannot lock ref '{show(name)}': a leading part of it is a ref", reason=CONFLICT
    )


def not_both(name: bytes, other: bytes) -> RefUpdateError:
    """`other`: of the same change, which may leave none of its refs out."""
    return RefUpdateError(
        f"cannot lock ref '{show(name)}': cannot process '{show(name)}' and "
        f"'{show(other)}' at the same time"
    )


def lock_held(name: bytes, lock: bytes) -> RefUpdateError:
    return RefUpdateError(
        f"cannot lock ref '{show(name)}': Unable to create '{show(lock)}': File exists."
    )


def not_locked(name: bytes, error: OSError) -> RefUpdateError:
    return RefUpdateError(f"cannot lock ref '{show(name)}': {error.strerror}")


def not_updated(name: bytes, error: OSError) -> RefUpdateError:
    return RefUpdateError(f"cannot update '{show(name)}': {error.strerror}")


def require_old(name: bytes, old: bytes, current: bytes) -> None:
    """Raises RefUpdateError when a ref is not what it must be now; NULL_OID is absence."""
    if current == old:
        return
    shown = show(name)
    if old == NULL_OID:
        raise RefUpdateError(f"cannot lock ref '{shown}': reference already exists", reason=EXISTS)
    if current == NULL_OID:
        raise RefUpdateError(
            f"cannot lock ref '{shown}': unable to resolve reference '{shown}'", reason=ABSENT
        )
    raise RefUpdateError(
        f"cannot lock ref '{shown}': is at {current.hex()} but expected {old.hex()}", reason=STALE
    )
