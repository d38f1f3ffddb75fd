from __future__ import annotations

import pytest

from hooks.deploys.web.preconditions import (
    ByteRange,
    RangeUnsatisfiableError,
    etag_matches,
    http_date,
    precondition_status,
    range_applies,
    wanted_range,
)

ETAG = '"abc"'
MODIFIED_S = 1_700_000_000
BEFORE, SAME, AFTER = (http_date(MODIFIED_S + offset) for offset in (-1, 0, 1))


@pytest.mark.parametrize(
    ("header", "size", "wanted"),
    [
        (None, 10, None),
        ("bytes=0-3", 10, ByteRange(0, 3)),
        ("bytes=0-0", 10, ByteRange(0, 0)),
        ("bytes=3-", 10, ByteRange(3, 9)),
        ("bytes=3-99", 10, ByteRange(3, 9)),
        ("bytes=-4", 10, ByteRange(6, 9)),
        ("bytes=-99", 10, ByteRange(0, 9)),
        ("BYTES=0-3", 10, ByteRange(0, 3)),
        ("bytes= 0-3 ", 10, ByteRange(0, 3)),
        ("bytes=4-3", 10, None),
        ("bytes=a-3", 10, None),
        ("bytes=-", 10, None),
        ("bytes=", 10, None),
        ("items=0-3", 10, None),
        ("bytes=0-1,4-5", 10, None),
        ("bytes=+1-2", 10, None),
        ("bytes=1-2x", 10, None),
    ],
)
def test_a_range_is_read_or_ignored(header, size, wanted):
    assert wanted_range(header, size) == wanted


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_behind_the_end_is_refused(header, size):
    with pytest.raises(RangeUnsatisfiableError):
        wanted_range(header, size)


@pytest.mark.parametrize(
    ("header", "weak", "matches"),
    [
        ('"abc"', True, True),
        ('W/"abc"', True, True),
        ('W/"abc"', False, False),
        ('"x", "abc"', False, True),
        ('"x","abc"', True, True),
        ("*", False, True),
        ('"ab"', True, False),
        ("abc", True, False),
        ("", True, False),
        ('"a,b", "abc"', True, True),
    ],
)
def test_an_etag_is_found_in_a_list(header, weak, matches):
    assert etag_matches(header, ETAG, weak=weak) is matches


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": '"other"'}, None),
        ({"If-None-Match": '"other"', "If-Modified-Since": AFTER}, None),
        ({"If-None-Match": ETAG, "If-Modified-Since": BEFORE}, 304),
        ({"If-Modified-Since": SAME}, 304),
        ({"If-Modified-Since": AFTER}, 304),
        ({"If-Modified-Since": BEFORE}, None),
        ({"If-Modified-Since": "yesterday"}, None),
        ({"If-Modified-Since": "Mon, 32 Foo 99999 00:00:00 GMT"}, None),
        ({"If-Match": ETAG}, None),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": "*"}, None),
        ({"If-Unmodified-Since": BEFORE}, 412),
        ({"If-Unmodified-Since": SAME}, None),
        ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, None),
        ({"If-Match": '"other"', "If-None-Match": ETAG}, 412),
    ],
)
def test_conditions_are_decided_in_their_order(headers, status):
    assert precondition_status(headers, ETAG, MODIFIED_S) == status


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [
        (None, True),
        (ETAG, True),
        (SAME, True),
        ('W/"abc"', False),
        ('"other"', False),
        (BEFORE, False),
        (AFTER, False),
    ],
)
def test_a_range_holds_for_the_same_representation_only(if_range, applies):
    headers = {} if if_range is None else {"If-Range": if_range}
    assert range_applies(headers, ETAG, SAME) is applies
