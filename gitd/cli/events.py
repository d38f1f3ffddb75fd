"""Events: Server-Sent Events, out of a stream of bytes.

Source: HTML Living Standard, section 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE_BYTES_MAX = 4 * 1024 * 1024
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventTooLargeError(Exception):
    """A line has no end: whatever this is, it is no event stream of ours."""


@dataclass(frozen=True, slots=True)
class Event:
    """`last_id` is the id to resume behind, of this event or the nearest before it."""

    type: str
    data: str
    last_id: str


class EventDecoder:
    """Bytes in, in pieces of any size; events out, each as soon as its empty line came."""

    def __init__(self, last_id: str = "") -> None:
        self._rest = b""
        self._is_start = True
        self._last_id = last_id
        self._type = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completes.

        Raises:
            EventTooLargeError: A line or an event is over `LINE_BYTES_MAX`.
        """
        found = []
        for line in self._lines(piece):
            event = self._take(line.decode("utf-8", "replace"))
            if event is not None:
                found.append(event)
        return found

    def _lines(self, piece: bytes) -> list[bytes]:
        data = self._rest + piece
        if self._is_start:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return []
            data = data.removeprefix(_BOM)
            self._is_start = False
        # A carriage return at the end may be half of a CRLF: it waits for the next piece.
        held = b""
        if data.endswith(b"\r"):
            data, held = data[:-1], b"\r"
        *lines, rest = _LINE_END.split(data)
        self._rest = rest + held
        if len(self._rest) > LINE_BYTES_MAX:
            raise EventTooLargeError
        return lines

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            if sum(map(len, self._data)) > LINE_BYTES_MAX:
                raise EventTooLargeError
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._last_id = value
        return None

    def _dispatch(self) -> Event | None:
        kind, data = self._type or "message", self._data
        self._type, self._data = "", []
        return Event(kind, "\n".join(data), self._last_id) if data else None
