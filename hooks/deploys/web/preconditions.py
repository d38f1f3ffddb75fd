"""Preconditions: what conditional and range headers of a request ask for. Pure."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `first` up to and with `last`."""

    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


class RangeUnsatisfiableError(Exception):
    """The range asked for lies behind the file's end."""


_RANGE = re.compile(
    r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*", re.IGNORECASE
)
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


def wanted_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """Read a `Range` header. None when the whole file is the answer: there is no such header, it
    is malformed, or it asks for several ranges, which a server may ignore.

    Raises:
        RangeUnsatisfiableError: It is behind the end.

    Source: RFC 9110, 14.1.2 and 14.2.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None:
        return None
    first_text, last_text, suffix_text = match.groups()
    if suffix_text is not None:
        count = min(int(suffix_text), size_bytes)
        if count == 0:
            raise RangeUnsatisfiableError
        return ByteRange(size_bytes - count, size_bytes - 1)
    first = int(first_text)
    if last_text and int(last_text) < first:
        return None
    if first >= size_bytes:
        raise RangeUnsatisfiableError
    return ByteRange(first, min(int(last_text), size_bytes - 1) if last_text else size_bytes - 1)


def etag_matches(header: str, etag: str, *, weak: bool) -> bool:
    """Say whether an `If-None-Match` (`weak`) or `If-Match` header names `etag`, or is `*`.

    Source: RFC 9110, 8.8.3.2 and 13.1.
    """
    if header.strip() == "*":
        return True
    named = _ETAG.findall(header)
    return etag in named or (weak and f"W/{etag}" in named)


def http_date(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


def parsed_http_date(text: str) -> int | None:
    try:
        return int(email.utils.parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def precondition_status(
    headers: Mapping[str, str], etag: str, last_modified_s: int
) -> HTTPStatus | None:
    """Decide on the conditional headers of a GET or HEAD: 304, 412, or None to go on.

    Source: RFC 9110, 13.2.2.
    """
    if (if_match := headers.get("If-Match")) is not None:
        if not etag_matches(if_match, etag, weak=False):
            return HTTPStatus.PRECONDITION_FAILED
    elif (unmodified := headers.get("If-Unmodified-Since")) is not None:
        since = parsed_http_date(unmodified)
        if since is not None and last_modified_s > since:
            return HTTPStatus.PRECONDITION_FAILED
    if (if_none_match := headers.get("If-None-Match")) is not None:
        if etag_matches(if_none_match, etag, weak=True):
            return HTTPStatus.NOT_MODIFIED
    elif (modified := headers.get("If-Modified-Since")) is not None:
        since = parsed_http_date(modified)
        if since is not None and last_modified_s <= since:
            return HTTPStatus.NOT_MODIFIED
    return None


def range_applies(headers: Mapping[str, str], etag: str, last_modified: str | None) -> bool:
    """Say whether a `Range` counts, by its `If-Range`: only for the very same representation.

    Source: RFC 9110, 13.1.5.
    """
    validator = headers.get("If-Range")
    return validator is None or validator.strip() in (etag, last_modified)
