"""The memory of trust: which generation a host went by, so that it never goes back behind it.

Who can write the store could take its newest generations away, and a revocation with them. What
a host remembers lies in its own folder.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from storage.errors import SignatureInvalidError
from storage.files import mapped_errors, read_bounded, write_atomic
from storage.trust import Keyring, Seen, check_succession

_BYTES_MAX = 4096
_MODE = 0o600


class TrustMemory:
    """What the file `path` remembers; without one, nothing is. One thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, keyring: Keyring) -> None:
        """Remember a generation. Durable when it returns.

        Raises:
            SignatureInvalidError: A newer one was remembered, or another of the same number.
            StorageError: The file cannot be written.
        """
        before = self._read()
        if before == keyring.seen:
            return
        if before is not None:
            try:
                check_succession(before, keyring)
            except SignatureInvalidError as error:
                raise SignatureInvalidError(
                    f"{error}. If the store was put back from an old copy, remove {self._path}"
                ) from error
        with mapped_errors(f"write {self._path}"):
            write_atomic(self._path, msgspec.json.encode(keyring.seen), mode=_MODE)

    def _read(self) -> Seen | None:
        try:
            data = read_bounded(self._path, size_bytes_max=_BYTES_MAX)
            return msgspec.json.decode(data, type=Seen)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SignatureInvalidError(f"trust: cannot read {self._path}: {error}") from error
