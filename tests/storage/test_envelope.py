"""Envelopes by DSSE: the vector, and every way that one can be forged (case 29)."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.envelope import (
    BODY_BYTES_MAX,
    IN_TOTO_TYPE,
    encode_json,
    seal,
    signature_by,
    subject_digest,
    unseal,
)
from storage.errors import SignatureInvalidError
from storage.signing import SigningKey

KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(range(1, 33)))
TREE = "51d45b24c3c7f752017426dca62b3cc54cc1fd7cc6155d5f74f05f365750437f"
TREE_SHA256 = "6c8c73ea6b775dea8389c8f2cfc051e341308f3a497adce371880993255e0e6c"
SOURCE = "git+file:///srv/git/demo.git"
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": "https://example.invalid/build/v1",
            "externalParameters": {"ref": "refs/heads/main", "source": SOURCE},
            "resolvedDependencies": [
                {
                    "digest": {"gitCommit": "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"},
                    "uri": f"{SOURCE}@refs/heads/main",
                }
            ],
        },
        "runDetails": {
            "builder": {"id": "https://example.invalid/builder/v1"},
            "metadata": {
                "finishedOn": "2026-01-01T00:00:05Z",
                "invocationId": "build/1",
                "startedOn": "2026-01-01T00:00:00Z",
            },
        },
    },
    "predicateType": "https://slsa.dev/provenance/v1",
    "subject": [{"digest": {"blake3": TREE, "sha256": TREE_SHA256}, "name": "demo"}],
}


def open_with(data: bytes, *keys: SigningKey, payload_type: str = IN_TOTO_TYPE) -> bytes:
    known = {key.key_id: key.public for key in keys}
    return unseal(data, payload_type=payload_type, public_key=known.get).body


def changed(**fields: object) -> bytes:
    return encode_json({**json.loads(seal(b'{"a":1}', KEY).data), **fields})


def test_vector() -> None:
    body = encode_json(STATEMENT)
    assert len(body) == 775
    assert hashlib.sha256(body).hexdigest() == (
        "7a6fed17472f032137661f09c5a63a0b4e145fcbb832bfffc92ae915308839c3"
    )
    envelope = seal(body, KEY)
    assert envelope.signature == (
        "vKQynCmhGZAA522AgW76VtvhHXIvlT7DoyfGAVTh+6cbP16/7RTBoZgaxLrU04H0rAer4P+7x89kEEP1plSwAA=="
    )
    assert envelope.sha256 == hashlib.sha256(envelope.data).hexdigest()
    assert open_with(envelope.data, KEY) == body


def test_same_statement_and_key_give_the_same_envelope() -> None:
    assert seal(b"{}", KEY) == seal(b"{}", KEY)


def test_statement_that_no_envelope_may_hold_is_not_sealed() -> None:
    assert open_with(seal(bytes(BODY_BYTES_MAX), KEY).data, KEY) == bytes(BODY_BYTES_MAX)
    with pytest.raises(ValueError, match="longer than an envelope may hold"):
        seal(bytes(BODY_BYTES_MAX + 1), KEY)


def test_signature_that_is_asked_for_is_that_of_the_key() -> None:
    one, other = (json.loads(seal(b"{}", key).data)["signatures"][0] for key in (KEY, OTHER))
    both = encode_json({**json.loads(seal(b"{}", KEY).data), "signatures": [other, one]})
    assert signature_by(both, KEY.key_id) == one["sig"]
    assert signature_by(both, OTHER.key_id) == other["sig"]


@pytest.mark.parametrize(
    "statement",
    [
        {},
        {"subject": None},
        {"subject": []},
        {"subject": [{"digest": {"sha256": TREE_SHA256}}]},
        {"subject": [{"digest": {"blake3": TREE[1:]}}]},
    ],
)
def test_statement_about_no_tree_is_said_to_be_none(statement: dict[str, object]) -> None:
    assert subject_digest(seal(encode_json(STATEMENT), KEY).data).hex() == TREE
    with pytest.raises(SignatureInvalidError, match="about no tree"):
        subject_digest(seal(encode_json(statement), KEY).data)


def test_url_safe_alphabet_is_read_too() -> None:
    """Case 29: it must be accepted."""
    envelope = seal(b"\xff\xfe\xfb" * 5, KEY)
    fields = json.loads(envelope.data)
    fields["payload"] = fields["payload"].replace("+", "-").replace("/", "_")
    fields["signatures"][0]["sig"] = envelope.signature.replace("+", "-").replace("/", "_")
    assert open_with(encode_json(fields), KEY) == b"\xff\xfe\xfb" * 5


def test_signatures_by_unknown_keys_count_for_nothing() -> None:
    one, other = (json.loads(seal(b"{}", key).data)["signatures"][0] for key in (KEY, OTHER))
    both = encode_json({**json.loads(seal(b"{}", KEY).data), "signatures": [other, one]})
    assert open_with(both, KEY) == b"{}"
    with pytest.raises(SignatureInvalidError, match="no trusted key"):
        open_with(both, SigningKey(bytes(32)))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


SIGNATURE = {"keyid": KEY.key_id, "sig": seal(b'{"a":1}', KEY).signature}
FORGED = {
    "other statement": changed(payload=b64(b'{"a":2}')),
    "other type": changed(payloadType="application/json"),
    "no type": changed(payloadType=None),
    "no signatures": changed(signatures=[]),
    "signatures are no list": changed(signatures={"0": SIGNATURE}),
    "too many signatures": changed(signatures=[SIGNATURE] * 17),
    "flipped bit": changed(signatures=[{**SIGNATURE, "sig": b64(b"\1" + KEY.sign(b"")[1:])}]),
    "short signature": changed(signatures=[{**SIGNATURE, "sig": "AAAA"}]),
    "no key id": changed(signatures=[{"sig": SIGNATURE["sig"]}]),
    "key id is no text": changed(signatures=[{**SIGNATURE, "keyid": 1}]),
    "key id of another key": changed(signatures=[{**SIGNATURE, "keyid": OTHER.key_id}]),
    "signed by another key in its name": changed(
        signatures=[{"keyid": KEY.key_id, "sig": seal(b'{"a":1}', OTHER).signature}]
    ),
    "signature is no text": changed(signatures=[{**SIGNATURE, "sig": None}]),
    "not base 64": changed(payload="{}"),
    "base 64 with a line end": changed(payload=b64(b'{"a":1}') + "\n"),
    "not ascii": changed(payload="é"),
    "a good signature and a bad one": changed(
        signatures=[SIGNATURE, {**SIGNATURE, "sig": b64(bytes(64))}]
    ),
    "key twice": seal(b'{"a":1}', KEY).data[:-1] + b',"payload":"e30="}',
    "trailing bytes": seal(b'{"a":1}', KEY).data + b"{}",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "not utf-8": seal(b'{"a":1}', KEY).data[:-1] + b',"x":"\xff"}',
    "not a number": seal(b'{"a":1}', KEY).data[:-1] + b',"x":NaN}',
    "nothing": b"",
    "too long": seal(b'{"a":1}', KEY).data + b" " * (2 << 20),
}


@pytest.mark.parametrize("data", FORGED.values(), ids=FORGED)
def test_forged_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureInvalidError):
        open_with(data, KEY, OTHER)


def test_signature_over_another_type_does_not_hold() -> None:
    """Case 29: the type is signed too, with its length before it."""
    envelope = seal(b"{}", KEY, payload_type="application/x-other")
    fields = {**json.loads(envelope.data), "payloadType": IN_TOTO_TYPE}
    with pytest.raises(SignatureInvalidError, match="does not hold"):
        open_with(encode_json(fields), KEY)


@given(st.data())
def test_any_flipped_bit_is_refused_or_means_the_same(data: st.DataObject) -> None:
    body = b'{"statement":"of some length, so that most flips fall into it"}'
    sealed = bytearray(seal(body, KEY).data)
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert open_with(bytes(sealed), KEY) == body
    except SignatureInvalidError:
        return
