"""Server-Sent Events out of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitd.cli import events
from gitd.cli.events import Event, EventDecoder, EventTooLargeError

# Source: HTML Living Standard, section 9.2.6, its examples and its rules.
EXAMPLES = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("message", "YHOO\n+2\n10", "")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        [Event("message", "first event", "1"), Event("message", "second event", "")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [Event("message", "", ""), Event("message", "\n", "")]),
    (b"data:test\n\ndata: test\n\n", [Event("message", "test", ""), Event("message", "test", "")]),
    (b"event: log\rdata: a\r\ndata: b\n\r", [Event("log", "a\nb", "")]),
    (b"\xef\xbb\xbfid: 7\ndata: x\n\n", [Event("message", "x", "7")]),
    (b"id: 7\0\ndata: x\n\n", [Event("message", "x", "")]),
    (b"id: 7\n\ndata: x\n\n", [Event("message", "x", "7")]),
    (b"event: job\n\ndata: x\n\n", [Event("message", "x", "")]),
    (b"unknown: x\ndata: y: z\n\n", [Event("message", "y: z", "")]),
    (b"data: \xff\n\n", [Event("message", "\ufffd", "")]),
    (b"", []),
]


def decoded(pieces: list[bytes]) -> list[Event]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(("data", "expected"), EXAMPLES)
def test_stream_reads_as_the_standard_says(data: bytes, expected: list[Event]) -> None:
    # A line that ends with a bare CR is known to be whole when the next byte comes.
    assert decoded([data, b":\n"] if data.endswith(b"\r") else [data]) == expected


@pytest.mark.parametrize(("data", "expected"), EXAMPLES)
def test_bytes_one_by_one_give_the_same_events(data: bytes, expected: list[Event]) -> None:
    pieces = [bytes([byte]) for byte in data] + ([b":\n"] if data.endswith(b"\r") else [])
    assert decoded(pieces) == expected


@given(
    st.lists(
        st.tuples(st.sampled_from(["job", "log"]), st.text(alphabet="aé\u2028 :", max_size=5))
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)
def test_events_survive_any_cut(
    said: list[tuple[str, str]], line_end: bytes, data: st.DataObject
) -> None:
    wire = b"".join(
        line_end.join(
            (f"event: {kind}".encode(), f"id: {index}".encode(), f"data: {text}".encode(), b"", b"")
        )
        for index, (kind, text) in enumerate(said)
    )
    wire += b":\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    expected = [Event(kind, text, str(index)) for index, (kind, text) in enumerate(said)]
    assert decoded(pieces) == expected


def test_last_id_of_before_stays_until_another_comes() -> None:
    assert EventDecoder("41").feed(b"data: x\n\n") == [Event("message", "x", "41")]


def test_endless_line_is_refused() -> None:
    pieces = [b"x" * 65536] * (events.LINE_BYTES_MAX // 65536 + 2)
    with pytest.raises(EventTooLargeError):
        decoded(pieces)


def test_endless_event_is_refused() -> None:
    pieces = [b"data: " + b"x" * 65536 + b"\n"] * (events.LINE_BYTES_MAX // 65536 + 2)
    with pytest.raises(EventTooLargeError):
        decoded(pieces)
