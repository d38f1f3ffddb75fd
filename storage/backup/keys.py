"""Private keys at a restore: from the backup, from where they were kept, or new ones.

A backup without keys has the public ring, by which all that was signed stays verifiable. Only who
may sign from now on has to be settled. With the root key a new signing key is one more generation
of trust. Without it trust begins anew, by another root key: the keys of before are listed in it as
retired, so that what they signed stays valid, and hosts that pin the root key have to be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage import trust
from storage.backup.manifest import Facts
from storage.backup.places import Places
from storage.custody import EXTERNAL, PUBLIC_MODE, ROOT_KEY, ROOT_PUBLIC, SIGNING_KEY, Custody
from storage.errors import BackupError
from storage.files import read_bounded, write_atomic
from storage.sealing import VARIABLES_KEY
from storage.signing import KEY_FILE_MODE, SigningKey, public_pem

_KEY_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """Where a restored server's private keys come from.

    Attributes:
        files: Contents of key files that were kept elsewhere, by their names in `keys/`.
        makes_new: Make a signing key where there is none; a root key too, if that is lost.
        without_variables: Forget the values of variables and secrets: their key is lost.
    """

    files: dict[str, bytes]
    makes_new: bool = False
    without_variables: bool = False

    def check(self, facts: Facts) -> None:
        """See that the restored server will have what it needs.

        Raises:
            BackupError: A key is missing; the message says what can be done.
        """
        if facts.signing_key == "left_out" and SIGNING_KEY not in self.files and not self.makes_new:
            raise BackupError(
                f"the backup {facts.name} has no private keys (it was made without --with-keys)."
                " Give those that were kept elsewhere with --keys DIR; or let --new-keys make"
                " others: what was signed before stays verifiable"
            )
        lacks_key = facts.variables_key == "left_out" and VARIABLES_KEY not in self.files
        if facts.sealed and lacks_key and not self.without_variables:
            raise BackupError(
                f"the backup {facts.name} has sealed values of variables and secrets"
                f" ({facts.sealed}), and not their key. Give {VARIABLES_KEY} with --keys DIR; or,"
                " if it is lost, restore with --without-variables and set the values again"
            )


@dataclass(frozen=True, slots=True)
class SettledKeys:
    """`signing_key_id`: of a key that was made. `is_trust_new`: by another root key."""

    signing_key_id: str | None = None
    is_trust_new: bool = False


def read_keys(folder: Path) -> dict[str, bytes]:
    """Read the key files that lie in a folder.

    Raises:
        BackupError: There are none, or one cannot be read.
    """
    found = {}
    for name in (SIGNING_KEY, ROOT_KEY, VARIABLES_KEY):
        try:
            found[name] = read_bounded(folder / name, size_bytes_max=_KEY_BYTES_MAX)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BackupError(f"cannot read {folder / name}: {error.strerror}") from error
    if not found:
        names = f"{SIGNING_KEY}, {ROOT_KEY} and {VARIABLES_KEY}"
        raise BackupError(f"there is no key in {folder}: the files are called {names}")
    return found


def settle_keys(places: Places, plan: KeyPlan) -> SettledKeys:
    """Put the keys in place in a folder that nothing else uses, and see that they fit the trust.

    Raises:
        BackupError: A key is none of this server's.
        KeyFileError, SignatureInvalidError: A key or the trust cannot be used.
    """
    keys, trust_folder = places.keys, places.store / "trust"
    keys.mkdir(mode=0o700, exist_ok=True)
    keys.chmod(0o700)
    for name, data in plan.files.items():
        write_atomic(keys / name, data, mode=KEY_FILE_MODE)
    custody = Custody(keys)
    keyring = trust.load_keyring(trust_folder, root_key_ids=custody.root_key_ids())
    root = SigningKey.load(keys / ROOT_KEY) if (keys / ROOT_KEY).exists() else None
    if root is not None and root.key_id not in keyring.roots:
        raise BackupError(f"{ROOT_KEY} is not the root key of this server: it is {root.key_id}")
    if (keys / SIGNING_KEY).exists():
        signing = SigningKey.load(keys / SIGNING_KEY)
        key = keyring.keys.get(signing.key_id)
        if key is not None and not key.is_active and (keys / EXTERNAL).exists():
            (keys / SIGNING_KEY).unlink()  # retired by the one that the service manager hands over
            return SettledKeys()
        if key is None or not key.is_active:
            state = "retired or revoked" if key else "none that this server trusts"
            raise BackupError(f"{SIGNING_KEY} is {state} at the moment of the backup")
        return SettledKeys()
    if not plan.makes_new:
        return SettledKeys()  # the service manager hands it over
    (keys / EXTERNAL).unlink(missing_ok=True)
    if root is not None:
        return SettledKeys(custody.rotate(trust_folder).key_id)
    root = SigningKey.load_or_create(keys / ROOT_KEY)
    signing = SigningKey.load_or_create(keys / SIGNING_KEY)
    trust.begin_anew(trust_folder, root=root, signing=signing, before=keyring)
    write_atomic(keys / ROOT_PUBLIC, public_pem(root.public), mode=PUBLIC_MODE)
    return SettledKeys(signing.key_id, is_trust_new=True)
