"""A quick delta between two versions of a file or tree, by whole lines or entries.

Linear in both lengths; it finds what a line-wise diff finds and gives up on the rest.
Source of the format: gitformat-pack(5), "Deltified representation".
"""

from __future__ import annotations

import re

from storage.git.delta_formats import encoded_size

_LINES = re.compile(rb"[^\n]*\n|[^\n]+\Z")
_ENTRIES = re.compile(rb"[0-7]+ [^\0]+\0[\s\S]{20}")
_INSERT_BYTES_MAX = 127
_COPY_BYTES_MAX = 0xFFFF
_SHORT_LINE_BYTES = 8  # such a line is found everywhere: it starts no copy out of order


def line_delta(base: bytes, result: bytes, *, is_tree: bool = False) -> bytes | None:
    """Return a delta that makes `result` of `base`; None when it would not pay."""
    split = (_ENTRIES if is_tree else _LINES).findall
    old, new = split(base), split(result)
    places: dict[bytes, int] = {}
    starts = []
    at = 0
    for number, line in enumerate(old):
        places.setdefault(line, number)
        starts.append(at)
        at += len(line)
    if at != len(base) or sum(map(len, new)) != len(result):
        return None
    out = bytearray(encoded_size(len(base)) + encoded_size(len(result)))
    literal = bytearray()
    bytes_max = len(result) // 2 + 32
    number, expected = 0, 0
    while number < len(new):
        line = new[number]
        is_next = expected < len(old) and old[expected] == line
        place = expected if is_next else places.get(line)
        if place is None or (len(line) < _SHORT_LINE_BYTES and not is_next):
            literal += line
            number += 1
            continue
        start, length = starts[place], 0
        while number < len(new) and place < len(old) and old[place] == new[number]:
            length += len(old[place])
            place += 1
            number += 1
        expected = place
        _insert(out, literal)
        _copy(out, start, length)
        if len(out) + len(literal) > bytes_max:
            return None
    _insert(out, literal)
    return bytes(out) if len(out) <= bytes_max else None


def _insert(out: bytearray, literal: bytearray) -> None:
    for at in range(0, len(literal), _INSERT_BYTES_MAX):
        piece = literal[at : at + _INSERT_BYTES_MAX]
        out.append(len(piece))
        out += piece
    literal.clear()


def _copy(out: bytearray, start: int, length: int) -> None:
    while length:
        count = min(length, _COPY_BYTES_MAX)
        operation, arguments = 0x80, bytearray()
        for place in range(4):
            byte = (start >> (8 * place)) & 255
            if byte:
                arguments.append(byte)
                operation |= 1 << place
        for place in range(2):
            byte = (count >> (8 * place)) & 255
            if byte:
                arguments.append(byte)
                operation |= 16 << place
        out.append(operation)
        out += arguments
        start += count
        length -= count
