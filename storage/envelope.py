"""An envelope: a statement, its type and the signatures over both (DSSE 1.0).

What is signed is not the JSON around the statement but `DSSEv1 <len> <type> <len> <body>`, so
that a signature holds for one type only and nothing needs to be spelled again to check it.

Source: the DSSE specification, "protocol.md" and "envelope.md".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from storage.digest import Digest
from storage.errors import DigestInvalidError, SignatureInvalidError
from storage.signing import SigningKey, is_signed

IN_TOTO_TYPE = "application/vnd.in-toto+json"
BODY_BYTES_MAX = 1 << 20
ENVELOPE_BYTES_MAX = 2 << 20
SIGNATURE_COUNT_MAX = 16
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A sealed statement.

    Attributes:
        data: The bytes of the file: JSON.
        sha256: SHA-256 of `data` in hexadecimal: the envelope's name in the store.
        key_id: The key that sealed it.
        signature: Its signature in base 64.
    """

    data: bytes
    sha256: str
    key_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The statement of an envelope whose signatures were checked.

    Attributes:
        body: Exactly the bytes that were signed.
        key_ids: The known keys that signed them: one or more, each once.
    """

    body: bytes
    key_ids: frozenset[str]


def seal(body: bytes, key: SigningKey, *, payload_type: str = IN_TOTO_TYPE) -> Envelope:
    """Sign a statement. The same statement and key give the same envelope, byte by byte."""
    if len(body) > BODY_BYTES_MAX:
        raise ValueError("the statement is longer than an envelope may hold")
    signature = base64.b64encode(key.sign(_signed_bytes(payload_type, body))).decode()
    data = encode_json(
        {
            "payload": base64.b64encode(body).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.key_id, "sig": signature}],
        }
    )
    return Envelope(data, hashlib.sha256(data).hexdigest(), key.key_id, signature)


def unseal(data: bytes, *, payload_type: str, public_key: Callable[[str], bytes | None]) -> Opened:
    """Check an envelope and return the statement in it.

    `public_key` gives the key for a key id, or None for one that is not trusted. Each signature
    by a trusted key must hold; those by unknown keys count for nothing.

    Raises:
        SignatureInvalidError: Malformed, of another type, or no trusted key signed it.
    """
    fields = decode_json(data, size_bytes_max=ENVELOPE_BYTES_MAX)
    if fields.get("payloadType") != payload_type:
        raise SignatureInvalidError("the envelope holds another type of statement")
    body = _decode_base64(fields.get("payload"))
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= SIGNATURE_COUNT_MAX:
        raise SignatureInvalidError("the envelope has no signatures, or too many")
    signed = _signed_bytes(payload_type, body)
    key_ids = set()
    for item in signatures:
        if not isinstance(item, dict) or not isinstance(item.get("keyid"), str):
            raise SignatureInvalidError("a signature names no key")
        public = public_key(item["keyid"])
        if public is None:
            continue
        if not is_signed(signed, signature=_decode_base64(item.get("sig")), public=public):
            raise SignatureInvalidError(f"the signature by {item['keyid']} does not hold")
        key_ids.add(item["keyid"])
    if not key_ids:
        raise SignatureInvalidError("no trusted key signed the envelope")
    return Opened(body, frozenset(key_ids))


def subject_digest(data: bytes) -> Digest:
    """Return which tree an envelope's statement says that it is about. Nothing is checked: whoever
    goes on with it unseals the envelope and reads the statement with that tree.

    Raises:
        SignatureInvalidError: It names none.
    """
    fields = decode_json(data, size_bytes_max=ENVELOPE_BYTES_MAX)
    statement: Any = decode_json(_decode_base64(fields.get("payload")))
    try:
        return Digest.parse(f"blake3:{statement['subject'][0]['digest']['blake3']}")
    except (KeyError, IndexError, TypeError, DigestInvalidError) as error:
        raise SignatureInvalidError("the statement is about no tree") from error


def signature_by(data: bytes, key_id: str) -> str:
    """Return the signature of a key in an envelope that was unsealed, in base 64."""
    fields: Any = decode_json(data, size_bytes_max=ENVELOPE_BYTES_MAX)
    return str(next(item["sig"] for item in fields["signatures"] if item["keyid"] == key_id))


def encode_json(value: Mapping[str, object]) -> bytes:
    """Write JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def decode_json(data: bytes, *, size_bytes_max: int = BODY_BYTES_MAX) -> dict[str, object]:
    """Read a JSON object; refuse what two readers could read differently.

    Raises:
        SignatureInvalidError: Too long, not UTF-8, no object, a key twice, or nested too deep.
    """
    if len(data) > size_bytes_max:
        raise SignatureInvalidError("the statement is too long")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise SignatureInvalidError(f"the statement is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise SignatureInvalidError("the statement is not a JSON object")
    return value


def _signed_bytes(payload_type: str, body: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def _decode_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise SignatureInvalidError("a field of the envelope is missing")
    try:
        # Verifiers take both alphabets. Source: DSSE, "envelope.md".
        return base64.b64decode(text.translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalidError("a field of the envelope is not base 64") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
