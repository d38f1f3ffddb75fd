"""Sealing: values that lie encrypted in the database, under a key that lies beside it.

    variables.key      seals variables and secrets; a credential of that name takes its place

Whoever has the database alone, or a copy of it, has no values. A sealed value is bound to its
place: moved to another row, it does not open.

Source: the XChaCha20-Poly1305 construction of libsodium ("crypto_aead").
"""

from __future__ import annotations

import os
from pathlib import Path

import nacl.exceptions
from blake3 import blake3
from nacl.secret import Aead

from storage.errors import KeyFileError, SealBrokenError
from storage.files import mapped_errors, sync_directory, write_atomic
from storage.signing import KEY_FILE_MODE, read_private

VARIABLES_KEY = "variables.key"
KEY_BYTES = 32
_DIGEST_CONTEXT = "gitd 2026-06 digests of variables"


class Vault:
    """Seals and opens values. Any thread may use it. It prints as nothing of its key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key has {KEY_BYTES} bytes")
        self._box = Aead(key)
        self._digest_key = blake3(key, derive_key_context=_DIGEST_CONTEXT).digest()

    @classmethod
    def open(cls, folder: Path, *, credentials: Path | None = None, may_create: bool) -> Vault:
        """Read the key of the folder, or the one that the service manager hands over.

        `may_create`: make one where there is none; never while there are values under another.

        Raises:
            KeyFileError: It cannot be used, others may read it, or it is gone.
        """
        credential = credentials / VARIABLES_KEY if credentials is not None else None
        if credential is not None and os.path.lexists(credential):
            return cls(_key_of(credential, is_credential=True))
        path = folder / VARIABLES_KEY
        if not os.path.lexists(path):
            if not may_create:
                raise KeyFileError(
                    f"the key {path} is gone, and the database holds values that it sealed. Put it"
                    " back; or, if it is lost, delete the rows of the tables variable and"
                    " environment_config, and set the values again"
                )
            with mapped_errors(f"make the key {path}"):
                data = f"{os.urandom(KEY_BYTES).hex()}\n".encode()
                write_atomic(path, data, mode=KEY_FILE_MODE, replace=False)
        else:
            with mapped_errors(f"sync {folder}"):  # a crash may have come before that
                sync_directory(folder)
        return cls(_key_of(path, is_credential=False))

    def seal(self, value: bytes, *, place: str) -> bytes:
        return bytes(self._box.encrypt(value, place.encode()))

    def unseal(self, sealed: bytes, *, place: str) -> bytes:
        """Return the value that was sealed for `place`.

        Raises:
            SealBrokenError: It was not, with this key, or it was changed since.
        """
        try:
            return self._box.decrypt(sealed, place.encode())
        except (nacl.exceptions.CryptoError, ValueError) as error:  # the latter where it is short
            raise SealBrokenError(
                f"the value of {place} does not open: the database and {VARIABLES_KEY} do not"
                " belong together, or one of them was changed"
            ) from error

    def digest(self, data: bytes) -> str:
        """Return a digest of `data` that tells nothing of it to whoever lacks the key. In hex."""
        return blake3(data, key=self._digest_key).hexdigest()

    def __repr__(self) -> str:
        return "Vault()"


def _key_of(path: Path, *, is_credential: bool) -> bytes:
    data = read_private(path, is_credential=is_credential)
    try:
        key = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{path} is no key: it must hold {2 * KEY_BYTES} hexadecimal digits")
    return key
