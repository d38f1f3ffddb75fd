"""Reading requests: bodies and queries become values, or an error that names the field."""

from __future__ import annotations

import asyncio
import re
from datetime import date
from difflib import get_close_matches
from functools import cache
from typing import Any

import msgspec
from aiohttp import hdrs, web

from gitd.api.envelope import JSON, VERSION, VERSION_HEADER
from gitd.errors import RequestError
from gitd.validation_messages import place_and_fault

BODY_BYTES_MAX = 64 * 1024
BODY_TIMEOUT_S = 30.0  # for all of a body
QUERIES_COUNT_MAX = 100  # of one endpoint, kept as they were read: clients repeat themselves
QUERY_CHARS_MAX = 200  # of one that is kept
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NO_OBJECT = re.compile(r"^Expected `object`, got `\w+`$")  # of the whole: no place is named
_FIELD = re.compile(r"^object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`")


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that has no parameters: none, or an empty object."""


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a path that has no parameters."""


@cache  # most endpoints have no query, many no body: what is found out of a type takes a while
def _parts_of(
    shape: type[msgspec.Struct],
) -> tuple[msgspec.json.Decoder[Any], tuple[str, ...], msgspec.Struct | None]:
    """Return what reads it, the names of its fields, and what nothing is read as, if it can be."""
    fields = msgspec.structs.fields(shape)
    empty = None if any(field.required for field in fields) else shape()
    return msgspec.json.Decoder(shape), tuple(field.encode_name for field in fields), empty


class Reader:
    """Reads one type of struct from bodies and queries. Made once per endpoint."""

    def __init__(self, shape: type[msgspec.Struct]) -> None:
        self._shape = shape
        self._decoder, self._names, self._empty = _parts_of(shape)
        self._read: dict[str, msgspec.Struct] = {}

    async def body(
        self, request: web.Request, *, timeout_s: float = BODY_TIMEOUT_S
    ) -> msgspec.Struct:
        """Return the body as a value; where every field is optional, no body is one too.

        Raises:
            RequestError: It is packed, too large, too slow, no JSON, or a field is wrong.
        """
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
        if request.body_exists and encoding.strip().lower() != "identity":
            raise RequestError(
                "request.media_type_unsupported",
                f"The body has Content-Encoding: {encoding[:40]}. Send it as it is.",
            )
        try:
            async with asyncio.timeout(timeout_s):
                data = await _bytes_of(request)
        except TimeoutError as error:
            raise RequestError(
                "request.timed_out", f"The body did not come within {timeout_s:g} s."
            ) from error
        if not data:
            if self._empty is None:
                raise RequestError(
                    "request.invalid",
                    f"A body is needed, with {', '.join(self._names)}.",
                    param=self._names[0],
                )
            return self._empty
        if request.content_type != JSON:
            is_told = hdrs.CONTENT_TYPE in request.headers
            kind = request.content_type if is_told else "of no kind that was told"
            raise RequestError(
                "request.media_type_unsupported", f"The body is {kind}: send Content-Type: {JSON}."
            )
        try:
            value: msgspec.Struct = self._decoder.decode(data)
        except msgspec.ValidationError as error:
            if _NO_OBJECT.match(str(error)):
                message = "The body must be one JSON object."
                raise RequestError("request.json_invalid", message) from error
            raise self._fault(error) from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise RequestError("request.json_invalid", f"The body: {error}.") from error
        return value

    def query(self, request: web.Request) -> msgspec.Struct:
        """Return the query as a value.

        Raises:
            RequestError: A parameter is unknown, given twice, or wrong.
        """
        if not request.query_string and self._empty is not None:
            return self._empty
        text = request.rel_url.raw_query_string
        if (known := self._read.get(text)) is not None:
            return known
        value = self._query(request)
        if len(self._read) < QUERIES_COUNT_MAX and len(text) <= QUERY_CHARS_MAX:
            self._read[text] = value
        return value

    def _query(self, request: web.Request) -> msgspec.Struct:
        parameters: dict[str, Any] = {}
        for name, text in request.query.items():
            if name in parameters:
                raise RequestError("request.invalid", f"{name} is given twice.", param=name)
            parameters[name] = text
        try:
            value: msgspec.Struct = msgspec.convert(parameters, self._shape, strict=False)
        except msgspec.ValidationError as error:
            raise self._fault(error) from error
        return value

    def _fault(self, error: msgspec.ValidationError) -> RequestError:
        """Name the field, `routes[0].target` or `ref`, and say what is wrong with it."""
        where, what = place_and_fault(error, self._shape)
        if field := _FIELD.match(what):
            name = field["name"][:100]
            param = f"{where}.{name}" if where else name
            if field["fault"].startswith("missing"):
                return RequestError("request.invalid", f"{param} is missing.", param=param)
            near = get_close_matches(name, self._names, n=1) if not where else []
            hint = f": did you mean {near[0]}?" if near else "."
            return RequestError(
                "request.invalid",
                f"There is no field {param[:100]!r} here{hint}",
                param=param[:100],
            )
        message = f"{where or 'The body'} {what}" if what.startswith("must") else f"{where}: {what}"
        return RequestError("request.invalid", f"{message[:500]}.", param=where or None)


async def _bytes_of(request: web.Request) -> bytes:
    if not request.body_exists:
        return b""
    data = bytearray()
    if (request.content_length or 0) <= BODY_BYTES_MAX:
        try:
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > BODY_BYTES_MAX:
                    break
            else:
                return bytes(data)
        except web.RequestPayloadError as error:
            raise RequestError("request.json_invalid", f"The body: {error}.") from error
    raise RequestError("request.too_large", f"The body has more than {BODY_BYTES_MAX // 1024} KiB.")


def version_of(request: web.Request) -> str:
    """The version that the client pins, or the current one.

    Raises:
        RequestError: `request.version_invalid`.
    """
    version = request.headers.get(VERSION_HEADER)
    if version is None:
        return VERSION
    if not _is_date(version):
        raise RequestError(
            "request.version_invalid", f"{VERSION_HEADER} is a date, such as {VERSION}."
        )
    return version


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
