"""Signing keys: Ed25519, one key per file. The only place that knows the library."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path

import nacl.exceptions
import nacl.signing

from storage.errors import KeyFileError
from storage.files import mapped_errors, read_bounded, write_atomic

SEED_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
KEY_FILE_MODE = 0o400
_KEY_FILE_BYTES_MAX = 4096
# PKCS #8 of an Ed25519 key, up to the seed. Source: RFC 8410, section 7.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
_PEM_BEGIN = "-----BEGIN PRIVATE KEY-----"
_PEM_END = "-----END PRIVATE KEY-----"
# SubjectPublicKeyInfo of an Ed25519 key, up to the key. Source: RFC 8410, section 4.
_SPKI = bytes.fromhex("302a300506032b6570032100")
_PUBLIC_BEGIN = "-----BEGIN PUBLIC KEY-----"
_PUBLIC_END = "-----END PUBLIC KEY-----"


class SigningKey:
    """A private key. It prints as its id, never as itself."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        self._key = nacl.signing.SigningKey(seed)
        self.public = bytes(self._key.verify_key)
        self.key_id = key_id(self.public)

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the key at `path`, or make one there when there is none.

        The file is PEM (PKCS #8), mode 0400, whole from the first moment that it has its name.
        Two processes may race: both get the key that stays.

        Raises:
            KeyFileError: It cannot be read, is no Ed25519 key, or others may read it.
        """
        if not os.path.lexists(path):
            with mapped_errors(f"make the key {path}"):
                write_atomic(path, _pem(os.urandom(SEED_BYTES)), mode=KEY_FILE_MODE, replace=False)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path, *, is_credential: bool = False) -> SigningKey:
        """Read the key at `path`.

        `is_credential`: the service manager put it there, for this process. It may say so by an
        access list, whose mask then shows as the group's right to read.

        Raises:
            KeyFileError: As for `load_or_create`, or there is none.
        """
        data = read_private(path, is_credential=is_credential)
        seed = _seed_of_pem(data)
        if seed is None:
            raise KeyFileError(f"{path} is not an Ed25519 private key in PEM (PKCS #8)")
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._key.sign(message).signature

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"


def read_private(path: Path, *, is_credential: bool) -> bytes:
    """Return what is in the file of a private key: see `SigningKey.load`.

    Raises:
        KeyFileError: There is none, or others may read it.
    """
    try:
        status = path.lstat()
        data = read_bounded(path, size_bytes_max=_KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & (0o037 if is_credential else 0o077):
        raise KeyFileError(
            f"others may read the key {path}: its mode is {mode:04o}. If nobody has read it,"
            f" chmod 0400 is enough; else it has to be revoked."
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(
            f"the key {path} belongs to the user {status.st_uid}, who may read it: it must be"
            f" this server's alone (user {os.geteuid()})"
        )
    return data


def public_pem(public: bytes) -> bytes:
    """Write a public key as other tools read it: PEM, SubjectPublicKeyInfo."""
    body = base64.b64encode(_SPKI + public).decode()
    return f"{_PUBLIC_BEGIN}\n{body}\n{_PUBLIC_END}\n".encode()


def read_public_pem(data: bytes) -> bytes:
    """Return the 32 bytes of a public key in PEM.

    Raises:
        KeyFileError: It is no Ed25519 public key.
    """
    der = _der_of_pem(data, _PUBLIC_BEGIN, _PUBLIC_END)
    if der is None or len(der) != len(_SPKI) + PUBLIC_BYTES or not der.startswith(_SPKI):
        raise KeyFileError("not an Ed25519 public key in PEM")
    return der[len(_SPKI) :]


def key_id(public: bytes) -> str:
    """Return the id of a public key: `ed25519:` and the SHA-256 of its 32 bytes."""
    return f"ed25519:{hashlib.sha256(public).hexdigest()}"


def is_signed(message: bytes, *, signature: bytes, public: bytes) -> bool:
    """Say whether the holder of the key `public` signed exactly these bytes.

    Weak keys and signatures in a second spelling are refused, as libsodium does.
    """
    if len(signature) != SIGNATURE_BYTES or len(public) != PUBLIC_BYTES:
        return False
    try:
        nacl.signing.VerifyKey(public).verify(message, signature)
    except nacl.exceptions.CryptoError:
        return False
    return True


def _pem(seed: bytes) -> bytes:
    body = base64.b64encode(_PKCS8 + seed).decode()
    return f"{_PEM_BEGIN}\n{body}\n{_PEM_END}\n".encode()


def _seed_of_pem(data: bytes) -> bytes | None:
    der = _der_of_pem(data, _PEM_BEGIN, _PEM_END)
    if der is None or len(der) != len(_PKCS8) + SEED_BYTES or not der.startswith(_PKCS8):
        return None
    return der[len(_PKCS8) :]


def _der_of_pem(data: bytes, begin: str, end: str) -> bytes | None:
    text = " ".join(data.decode("ascii", "replace").split())
    if not (text.startswith(begin) and text.endswith(end)):
        return None
    try:
        return base64.b64decode(text[len(begin) : -len(end)].replace(" ", ""), validate=True)
    except binascii.Error:
        return None
