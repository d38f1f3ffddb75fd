"""Custody: where a server's private keys lie, and how they are replaced while it runs.

    signing.key        signs statements; read anew whenever the file is another
    root.key           signs generations of trust; needed for nothing else, so it may be kept away
    root.pub           its public half, by which trust begins
    signing.key.next   the next signing key, while it is being put in place
    external           there when the service manager hands the signing key over
    lock               held by whoever writes a generation

A key that the service manager hands over (a credential) takes the place of its file here. It is
never written to a disk by us.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage import trust
from storage.envelope import Envelope, seal
from storage.errors import KeyFileError, SignatureInvalidError
from storage.files import mapped_errors, read_bounded, remove_drafts, sync_directory, write_atomic
from storage.signing import SigningKey, key_id, public_pem, read_public_pem
from storage.trust import Keyring

SIGNING_KEY = "signing.key"
ROOT_KEY = "root.key"
PUBLIC_MODE = 0o444
ROOT_PUBLIC = "root.pub"
EXTERNAL = "external"
_PUBLIC_BYTES_MAX = 4096
_GENERATION = re.compile(r"root\.([0-9]{1,9})\.json")


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did: the key that signs from now on, and the generation that says so."""

    key_id: str
    keyring: Keyring


class Custody:
    """The private keys of one server. Any thread may use it; blocking, for a moment.

    `credentials`: the folder that the service manager put this process's credentials into.
    """

    def __init__(self, folder: Path, *, credentials: Path | None = None) -> None:
        self._folder = folder
        self._credentials = credentials
        self._signing: tuple[object, SigningKey] | None = None

    def open(self, trust_folder: Path) -> Keyring:
        """See that there are keys, making them at the first start, and that they are trusted.

        Raises:
            KeyFileError: A key cannot be used, others may read it, or one that is needed is gone.
            SignatureInvalidError: The trusted keys do not hold, or the signing key was retired.
        """
        with self.locked():
            self._remove_drafts(trust_folder)
            with mapped_errors(f"sync {self._folder}"):  # a crash may have come before that
                sync_directory(self._folder)
                sync_directory(trust_folder)
            is_new = not (trust_folder / "root.1.json").exists()
            root = self._root_key(may_create=is_new)
            self._settle_signing_key(may_create=is_new)
            mark = self._path(EXTERNAL)
            is_missed = mark.exists() and self._credential(SIGNING_KEY) is None
            try:
                keyring = trust.establish(
                    trust_folder,
                    root=root,
                    signing=self.signing_key(),
                    root_key_ids=self.root_key_ids(),
                )
            except SignatureInvalidError as error:
                if is_missed:
                    raise KeyFileError(f"{self._missed()}. In its file, {error}") from error
                raise
            if is_missed:
                mark.unlink()
            self._forget_retired(keyring)
            return keyring

    @staticmethod
    def generation(trust_folder: Path) -> int:
        """Return the number of the newest generation that there is, unread; 0 without any."""
        names = (_GENERATION.fullmatch(path.name) for path in trust_folder.iterdir())
        return max((int(name[1]) for name in names if name is not None), default=0)

    # -- keys ------------------------------------------------------------------------------------

    def signing_key(self) -> SigningKey:
        """Return the key that signs now: the one in the file, whoever put it there.

        Raises:
            KeyFileError: It cannot be read, or others may read it.
        """
        credential = self._credential(SIGNING_KEY)
        path = credential or self._path(SIGNING_KEY)
        state = _state(path)
        if self._signing is None or self._signing[0] != state:
            key = SigningKey.load(path, is_credential=credential is not None)
            self._signing = (state, key)
        return self._signing[1]

    def seal(self, body: bytes) -> Envelope:
        """Sign a statement with the key that signs now."""
        return seal(body, self.signing_key())

    def root_key_ids(self) -> frozenset[str]:
        """Return the root keys that trust begins with, by id.

        Raises:
            KeyFileError: Nothing here says which.
        """
        path = self._path(ROOT_PUBLIC)
        try:
            public = read_public_pem(read_bounded(path, size_bytes_max=_PUBLIC_BYTES_MAX))
        except OSError as error:
            raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
        except KeyFileError as error:
            raise KeyFileError(f"{path}: {error}") from error
        return frozenset({key_id(public)})

    # -- changes ---------------------------------------------------------------------------------

    def rotate(self, trust_folder: Path, *, root: SigningKey | None = None) -> Rotated:
        """Put a new signing key in place and retire the others: what they signed stays valid.

        Safe beside a running server: the new key is trusted before it signs, and the old one
        retired when it signs no more. What a crash leaves, the next rotation takes up.

        `root`: the root key, where it is kept elsewhere.

        Raises:
            KeyFileError: The root key is not here, or the signing key comes from outside.
        """
        if self._path(EXTERNAL).exists():
            raise KeyFileError(
                "the signing key comes from the service manager: replace it there and restart"
                " gitd, which then trusts the new key and retires the old one"
            )
        with self.locked():
            self._remove_drafts(trust_folder)
            root_key = self._needed_root(root)
            following = self._following(trust_folder, root_key)
            trust.introduce(trust_folder, root=root_key, signing=following)
            with mapped_errors("put the signing key in place"):
                self._path(f"{SIGNING_KEY}.next").rename(self._path(SIGNING_KEY))
                sync_directory(self._folder)
            keyring = trust.establish(
                trust_folder,
                root=root_key,
                signing=following,
                root_key_ids=self.root_key_ids(),
            )
        return Rotated(following.key_id, keyring)

    def revoke(
        self, trust_folder: Path, key_id: str, *, reason: str, root: SigningKey | None = None
    ) -> Keyring:
        """Write a generation in which nothing that the key ever signed is valid.

        The key that signs now has to be replaced first.

        Raises:
            KeyFileError: As for `rotate`.
            SignatureInvalidError: There is no such key.
        """
        with self.locked():
            root_key = self._needed_root(root)
            return trust.revoke(trust_folder, root=root_key, key_id=key_id, reason=reason)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from writing a generation meanwhile."""
        with mapped_errors(f"lock {self._folder}"):
            fd = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with mapped_errors(f"lock {self._folder}"):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # -- files -----------------------------------------------------------------------------------

    def _remove_drafts(self, trust_folder: Path) -> None:
        """Remove what a crash left half written: it may have a private key in it."""
        with mapped_errors("remove what a crash left"):
            for folder in (self._folder, trust_folder):
                remove_drafts(folder)

    def _settle_signing_key(self, *, may_create: bool) -> None:
        """See that there is one, and note for commands beside the server where it comes from."""
        path, mark = self._path(SIGNING_KEY), self._path(EXTERNAL)
        if self._credential(SIGNING_KEY) is not None:
            with mapped_errors(f"write {mark}"):
                mark.touch(mode=PUBLIC_MODE)
        elif path.exists() or may_create:
            SigningKey.load_or_create(path)
        elif mark.exists():
            raise KeyFileError(self._missed())
        else:
            raise KeyFileError(
                f"the signing key {path} is gone. Put it back; or, if it is lost, let"
                " gitd signing-key rotate make another"
            )

    def _forget_retired(self, keyring: Keyring) -> None:
        """Remove the file of a key that a credential has retired, as a rotation does: in a backup
        or a copy of the keys it would pass for the key that signs.
        """
        path = self._path(SIGNING_KEY)
        if self._credential(SIGNING_KEY) is None or not path.exists():
            return
        key = keyring.keys.get(SigningKey.load(path).key_id)
        if key is not None and not key.is_active:
            with mapped_errors(f"remove {path}"):
                path.unlink()
                sync_directory(self._folder)

    def _missed(self) -> str:
        return (
            "the service manager handed the signing key over before, and does not now: see"
            f" LoadCredential= of the service. To go on without it remove {self._path(EXTERNAL)}"
        )

    def _root_key(self, *, may_create: bool) -> SigningKey | None:
        """Return the root key, if it is here, and see that its public half is."""
        credential = self._credential(ROOT_KEY)
        if credential is not None:
            key = SigningKey.load(credential, is_credential=True)
        elif may_create:
            key = SigningKey.load_or_create(self._path(ROOT_KEY))
        elif self._path(ROOT_KEY).exists():
            key = SigningKey.load(self._path(ROOT_KEY))
        else:
            return None
        if not self._path(ROOT_PUBLIC).exists():
            with mapped_errors("write the root key's public half"):
                write_atomic(self._path(ROOT_PUBLIC), public_pem(key.public), mode=PUBLIC_MODE)
        return key

    def _needed_root(self, given: SigningKey | None) -> SigningKey:
        key = given or self._root_key(may_create=False)
        if key is None:
            raise KeyFileError(
                f"the root key {self._path(ROOT_KEY)} is not here, and only it can change which"
                " keys are trusted: bring it, and name its file with --root-key"
            )
        return key

    def _following(self, trust_folder: Path, root: SigningKey) -> SigningKey:
        """Return the next signing key: a new one, or one that a crash kept from its place."""
        path = self._path(f"{SIGNING_KEY}.next")
        key = SigningKey.load_or_create(path)
        keyring = trust.load_keyring(trust_folder, root_key_ids=frozenset({root.key_id}))
        known = keyring.keys.get(key.key_id)
        if known is None or known.is_active:
            return key
        path.unlink()
        return SigningKey.load_or_create(path)

    def _credential(self, name: str) -> Path | None:
        path = self._credentials / name if self._credentials is not None else None
        return path if path is not None and os.path.lexists(path) else None

    def _path(self, name: str) -> Path:
        return self._folder / name


def _state(path: Path) -> object:
    try:
        status = path.lstat()
    except OSError as error:
        raise KeyFileError(f"cannot read the key {path}: {error.strerror}") from error
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
