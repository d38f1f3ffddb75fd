"""The form of every answer: the data, the request's id, and where a list goes on.

Source: contract §2 "Envelope", "Errors".
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from gitd.log import REQUEST_ID_HEADER
from hooks.http_server import SERVER

JSON = "application/json"
VERSION = "2026-06-23"
VERSION_HEADER = "Forge-Version"
CLOSED_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": SERVER,
}
ENCODER = msgspec.json.Encoder()


class Pagination(msgspec.Struct, frozen=True):
    next_cursor: str | None
    has_more: bool


class One(msgspec.Struct, frozen=True):
    data: object
    request_id: str


class Many(msgspec.Struct, frozen=True):
    data: object
    pagination: Pagination
    request_id: str


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    code: str
    message: str
    doc_url: str
    param: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorDetail
    request_id: str


def written(answer: object) -> msgspec.Raw:
    """Return an answer as JSON, ready to be put into any number of envelopes."""
    return msgspec.Raw(ENCODER.encode(answer))


_HEADERS = CIMultiDict({"Content-Type": JSON, VERSION_HEADER: VERSION, **CLOSED_HEADERS})


def answer_headers(
    request_id: str, *, version: str = VERSION, content_type: str = JSON
) -> CIMultiDict[str]:
    """The headers that every answer of the API has."""
    headers = _HEADERS.copy()
    headers[REQUEST_ID_HEADER] = request_id
    if version is not VERSION:
        headers[VERSION_HEADER] = version
    if content_type is not JSON:
        headers["Content-Type"] = content_type
    return headers


def json_answer(
    body: One | Many | ErrorAnswer,
    *,
    status: int = 200,
    version: str = VERSION,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    all_headers = answer_headers(body.request_id, version=version)
    if headers:
        all_headers.update(headers)
    return web.Response(body=ENCODER.encode(body), status=status, headers=all_headers)
