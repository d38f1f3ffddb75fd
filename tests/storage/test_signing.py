"""Key files: made whole, kept private, read by other tools."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import KeyFileError
from storage.signing import SigningKey, is_signed, read_public_pem

SEED = bytes(range(32))
PUBLIC = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
KEY_ID = "ed25519:56475aa75463474c0285df5dbf2bcab73da651358839e9b77481b2eab107708c"


def test_vector_of_the_key_id() -> None:
    key = SigningKey(SEED)
    assert (key.public.hex(), key.key_id) == (PUBLIC, KEY_ID)


def test_key_is_made_once_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    first = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o7777 == 0o400
    assert SigningKey.load_or_create(path).key_id == first.key_id
    assert [p.name for p in tmp_path.iterdir()] == ["signing.key"]


def test_two_processes_that_race_get_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from storage.signing import SigningKey;"
        "sys.stdin.read(1); print(SigningKey.load_or_create(Path(sys.argv[1])).key_id)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "key"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert len({racer.communicate("x")[0] for racer in racers}) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here")
def test_openssl_reads_the_key_and_checks_its_signature(tmp_path: Path) -> None:
    key = SigningKey.load_or_create(tmp_path / "key")
    (tmp_path / "message").write_bytes(b"hello")
    (tmp_path / "signature").write_bytes(key.sign(b"hello"))
    der = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key", "-pubout", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    assert der.endswith(key.public)
    subprocess.run(
        [
            *("openssl", "pkeyutl", "-verify", "-inkey", tmp_path / "key", "-rawin"),
            *("-in", tmp_path / "message", "-sigfile", tmp_path / "signature"),
        ],
        capture_output=True,
        check=True,
    )


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o644, 0o420])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}"):
        SigningKey.load_or_create(path)


def test_key_that_appears_while_one_is_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"

    def another_came_first(count: int) -> bytes:
        monkeypatch.undo()
        others.append(SigningKey.load_or_create(path).key_id)
        return bytes(count)

    others: list[str] = []
    monkeypatch.setattr(os, "urandom", another_came_first)
    assert [SigningKey.load_or_create(path).key_id] == others


def pem(der: bytes, what: str = "PRIVATE") -> bytes:
    body = base64.b64encode(der).decode()
    return f"-----BEGIN {what} KEY-----\n{body}\n-----END {what} KEY-----\n".encode()


PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
OF_X25519 = bytes.fromhex("302e020100300506032b656e04220420")
SPKI = bytes.fromhex("302a300506032b6570032100")
SPKI_OF_X25519 = bytes.fromhex("302a300506032b656e032100")


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"nonsense",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n",
        pem(PKCS8 + SEED).replace(b"MC", b"M!"),
        pem(PKCS8 + SEED, "EC PRIVATE"),
        pem(PKCS8 + SEED).replace(b"END", b"end"),
        pem(PKCS8 + SEED[:-1]),
        pem(PKCS8 + SEED + b"\0"),
        pem(OF_X25519 + SEED),
    ],
)
def test_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(contents)
    path.chmod(0o400)
    with pytest.raises(KeyFileError):
        SigningKey.load_or_create(path)
    assert path.read_bytes() == contents


def test_public_key_that_is_none_is_refused() -> None:
    public = bytes.fromhex(PUBLIC)
    assert read_public_pem(pem(SPKI + public, "PUBLIC")) == public
    for data in (
        pem(SPKI + public),
        pem(SPKI + public[:-1], "PUBLIC"),
        pem(SPKI + public + b"\0", "PUBLIC"),
        pem(SPKI_OF_X25519 + public, "PUBLIC"),
        pem(SPKI + public, "PUBLIC")[:-5],
        pem(SPKI + public, "PUBLIC").replace(b"A", b"!"),
    ):
        with pytest.raises(KeyFileError):
            read_public_pem(data)


@pytest.mark.parametrize("mode", [0o460, 0o420, 0o444, 0o442])
def test_credential_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    SigningKey.load_or_create(path)
    path.chmod(0o440)
    assert SigningKey.load(path, is_credential=True)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{mode:04o}"):
        SigningKey.load(path, is_credential=True)


def test_link_in_place_of_a_key_is_refused(tmp_path: Path) -> None:
    SigningKey.load_or_create(tmp_path / "real")
    (tmp_path / "key").symlink_to("real")
    with pytest.raises(KeyFileError):
        SigningKey.load_or_create(tmp_path / "key")


def test_key_prints_as_its_id() -> None:
    assert str(SigningKey(SEED)) == f"SigningKey({KEY_ID})"


def test_signature_holds_for_its_message_and_key_only() -> None:
    key, other = SigningKey(SEED), SigningKey.generate()
    signature = key.sign(b"hello")
    assert is_signed(b"hello", signature=signature, public=key.public)
    assert not is_signed(b"hellO", signature=signature, public=key.public)
    assert not is_signed(b"hello", signature=signature, public=other.public)
    assert not is_signed(b"hello", signature=signature[:-1], public=key.public)
    assert not is_signed(b"hello", signature=b"", public=key.public)


def test_second_spelling_of_a_signature_is_refused() -> None:
    """Case 29: S beyond the order of the group."""
    key = SigningKey(SEED)
    signature = key.sign(b"hello")
    order = 2**252 + 27742317777372353535851937790883648493
    again = int.from_bytes(signature[32:], "little") + order
    assert not is_signed(
        b"hello", signature=signature[:32] + again.to_bytes(32, "little"), public=key.public
    )


@pytest.mark.parametrize(
    "public", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
)
def test_weak_key_vouches_for_nothing(public: bytes) -> None:
    """Case 29: keys of small order, under which signatures hold for many messages."""
    for signature in (bytes(64), public + bytes(32)):
        assert not is_signed(b"hello", signature=signature, public=public)
