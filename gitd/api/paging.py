"""Pages of lists: the limit, and cursors that hold exactly one place of one list.

A cursor is the id of the last item that was seen, with a tag over it and over the list that it
belongs to. Ids grow with time and lists run from the newest to the oldest, so that whatever is
written meanwhile, the next page begins exactly behind the last item of this one. The tag is no
secret: what a key may see is asked anew for every page.

Source: contract §2 "Pagination".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar

import msgspec

from gitd.errors import RequestError
from storage.records.statements import Page

LIMIT_DEFAULT = 20
LIMIT_MAX = 100
CURSOR_CHARS_MAX = 200
_TAG_BYTES = 8

Limit = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX, description="How many items at most.")]
Cursor = Annotated[str, msgspec.Meta(description="`next_cursor` of the page before.")]


class _Listed(Protocol):
    """A row that lists are in the order of."""

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=_Listed)


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = LIMIT_DEFAULT
    cursor: Cursor | None = None


def list_name(*parts: str | None) -> str:
    """Name a list by what it is of and by its filters: another list has another name."""
    return "\0".join("-" if part is None else f"+{part}" for part in parts)


def write_cursor(name: str, *places: str) -> str:
    payload = "\0".join(places).encode()
    return _text_of(_tag(name, payload) + payload)


def next_cursor(name: str, page: Page[Row]) -> str | None:
    """Return the cursor of the page that follows; None where nothing does."""
    return write_cursor(name, page.items[-1].id) if page.has_more else None


def read_cursor(cursor: str | None, name: str, count: int = 1) -> Sequence[str | None]:
    """Return the `count` places that the cursor holds, or as many None without a cursor.

    Raises:
        RequestError: `pagination.cursor_invalid`, for a damaged one and for another list's.
    """
    if cursor is None:
        return (None,) * count
    payload = _opened(cursor, name)
    places = payload.decode("utf-8", "replace").split("\0") if payload is not None else []
    if len(places) != count:
        raise RequestError(
            "pagination.cursor_invalid", "This is no cursor of this list.", param="cursor"
        )
    return places


def _opened(cursor: str, name: str) -> bytes | None:
    if len(cursor) > CURSOR_CHARS_MAX:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    payload = raw[_TAG_BYTES:]
    is_ours = raw[:_TAG_BYTES] == _tag(name, payload)
    return payload if is_ours and _text_of(raw) == cursor else None


def _text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _tag(name: str, payload: bytes) -> bytes:
    return hashlib.blake2s(name.encode() + b"\0\0" + payload, digest_size=_TAG_BYTES).digest()
