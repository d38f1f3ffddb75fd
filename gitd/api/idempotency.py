"""Idempotency keys: what makes two requests the same request.

Source: contract §2 "Idempotency".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from aiohttp import web

from gitd.errors import RequestError
from storage.records.idempotency import Claim

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotent-Replayed": "true"}
KEY_CHARS_MAX = 255
_ENCODER = msgspec.json.Encoder(order="deterministic")


def claim_of(
    request: web.Request, owner_id: str, target: Sequence[str], body: msgspec.Struct
) -> Claim | None:
    """Return the claim that the request makes by its header, or None without one.

    `target` says what it is about: the endpoint and the ids in its path, so that a site's name
    and its id make the same request. The body counts by its meaning: neither the order of its
    fields nor a default written out makes another request.

    Raises:
        RequestError: `idempotency.key_invalid`.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        raise RequestError(
            "idempotency.key_invalid",
            f"{HEADER} has 1 to {KEY_CHARS_MAX} printable ASCII characters.",
        )
    said = "\n".join((request.method, *target)).encode() + b"\n" + _ENCODER.encode(body)
    return Claim(owner_id, key, hashlib.sha256(said).digest())
