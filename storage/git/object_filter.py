"""Which objects a partial clone leaves out.

Source: git-rev-list(1), `--filter`; gitprotocol-v2(5), "fetch", filter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from storage.git.object_formats import TYPE_NUMBERS

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_COMBINED_MAX = 16


class FilterError(ValueError):
    """A filter that is not understood, or not offered."""


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """Objects must satisfy all of it; what is wanted by id is sent all the same.

    Attributes:
        blob_bytes_limit: blobs of so many bytes or more are left out; 0 leaves out all; None none.
        tree_depth: trees and blobs so deep or deeper are left out; a commit's tree has depth 0.
        kind: only objects of this type.
    """

    blob_bytes_limit: int | None = None
    tree_depth: int | None = None
    kind: int | None = None


def parse_filter(spec: str) -> ObjectFilter:
    """Parse a filter's specification.

    Raises:
        FilterError: it is unknown, with git's own wording.
    """
    found = ObjectFilter()
    for part in _parts(spec):
        one = _parse_one(part)
        found = ObjectFilter(
            _least(found.blob_bytes_limit, one.blob_bytes_limit),
            _least(found.tree_depth, one.tree_depth),
            one.kind if found.kind is None else found.kind,
        )
    return found


def _parts(spec: str) -> list[str]:
    if not spec.startswith("combine:"):
        return [spec]
    parts = [unquote(part) for part in spec[8:].split("+") if part]
    if not parts or len(parts) > _COMBINED_MAX or any(p.startswith("combine:") for p in parts):
        raise FilterError(f"invalid filter-spec '{spec}'")
    return parts


def _parse_one(spec: str) -> ObjectFilter:
    if spec == "blob:none":
        return ObjectFilter(blob_bytes_limit=0)
    if limit := re.fullmatch(r"blob:limit=([0-9]{1,18})([kmgKMG]?)", spec):
        return ObjectFilter(blob_bytes_limit=int(limit[1]) * _UNITS[limit[2].lower()])
    if depth := re.fullmatch(r"tree:([0-9]{1,9})", spec):
        return ObjectFilter(tree_depth=int(depth[1]))
    if (kind := re.fullmatch(r"object:type=(\w+)", spec)) and kind[1].encode() in TYPE_NUMBERS:
        return ObjectFilter(kind=TYPE_NUMBERS[kind[1].encode()])
    if spec.startswith("sparse:"):
        raise FilterError("filter 'sparse' not supported")
    raise FilterError(f"invalid filter-spec '{spec}'")


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
