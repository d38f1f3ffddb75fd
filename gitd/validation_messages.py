"""Messages of validation: what msgspec says is wrong with a value, in words for people.

Its own words are for programmers: they name Python's types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_AT = re.compile(r" - at `(.*)`$", re.DOTALL)
_KIND = re.compile(r"^Expected `(?P<wanted>[\w |]+)`(?:, got `\w+`)?(?P<bound> .*)?$", re.DOTALL)
_BOUND = re.compile(r"^ (?P<length>of length )?(?P<sign><=|>=|<|>) (?P<limit>\S+)$")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(?:\d+|\.\.\.)?\]")
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_SIGNS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}


def place_and_fault(error: msgspec.ValidationError, shape: Any) -> tuple[str, str]:
    """Return where a value of `shape` is wrong (`routes[0].target`), and a clause that says how."""
    text = str(error)
    at = _AT.search(text)
    where = at[1].removeprefix("$").removeprefix(".") if at else ""
    what = text[: at.start()] if at else text
    if what.startswith("Invalid enum value"):
        known = ", ".join(_choices(shape, where))
        return where, f"{what.removeprefix('Invalid enum value ')[:100]} is none of {known}"
    return where, _clause(what)


def _clause(what: str) -> str:
    kind = _KIND.match(what)
    if kind is None:
        return what[:1].lower() + what[1:]
    wanted = kind["wanted"].split(" | ")
    bound = _BOUND.match(kind["bound"] or "")
    if bound is None:
        return "must be " + " or ".join(_WORDS.get(name, name) for name in wanted)
    limit = f"{_SIGNS[bound['sign']]} {bound['limit']}"
    if bound["length"] is None:
        return f"must be {limit}"
    things = {"array": "items", "object": "fields"}.get(wanted[0], "characters")
    return f"must have {limit} {things[:-1] if bound['limit'] == '1' else things}"


def _choices(shape: Any, where: str) -> Iterator[str]:
    """The values that an enumeration at that place knows."""
    kind = msgspec.inspect.type_info(shape)
    for step in _STEP.finditer(where):
        kind = _inside(kind, step[1])
    for option in _options(kind):
        if isinstance(option, msgspec.inspect.EnumType):
            yield from (str(member.value) for member in option.cls)
        elif isinstance(option, msgspec.inspect.LiteralType):
            yield from (str(value) for value in option.values)


def _inside(kind: msgspec.inspect.Type, name: str | None) -> msgspec.inspect.Type:
    """The kind of a field, or of what a list or an object of any keys holds."""
    for option in _options(kind):
        if isinstance(option, (msgspec.inspect.StructType, msgspec.inspect.DataclassType)):
            for field in option.fields:
                if field.encode_name == name:
                    return field.type
        if isinstance(option, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
            return option.item_type
        if isinstance(option, msgspec.inspect.DictType):
            return option.value_type
    return kind


def _options(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    """What a value of the kind can be, without notes on it."""
    if isinstance(kind, msgspec.inspect.Metadata):
        yield from _options(kind.type)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for option in kind.types:
            yield from _options(option)
    else:
        yield kind
