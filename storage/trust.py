"""Trust: which public keys may vouch for what, in generations that each sign the next.

`trust/root.<N>.json` is an envelope. The generation N+1 counts only when enough root keys of N
and of N+1 itself signed it, so that whoever can only write the folder cannot add a key.
Which root keys may stand in the first generation is said from outside (`root_key_ids`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from storage.envelope import ENVELOPE_BYTES_MAX, decode_json, encode_json, seal, unseal
from storage.errors import SignatureInvalidError
from storage.files import mapped_errors, read_bounded, write_atomic
from storage.layout import STATEMENT_MODE
from storage.provenance import BUILDERS
from storage.signing import SigningKey, key_id

TRUST_TYPE = "application/vnd.gitd.trust+json"
PROVENANCE_ROLE = "provenance"
GENERATION_COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may vouch for.

    Attributes:
        public: Its 32 bytes.
        roles: Kinds of statements; so far `provenance`.
        builders: Ids of the builders that it may speak for.
        sites: Names of sites, or `*` for all.
        retired: It signs nothing new; what it signed before stays valid.
        revoked: Nothing that it ever signed is valid.
        reason: Why it was retired or revoked.
    """

    public: bytes
    roles: tuple[str, ...] = (PROVENANCE_ROLE,)
    builders: tuple[str, ...] = BUILDERS
    sites: tuple[str, ...] = ("*",)
    retired: bool = False
    revoked: bool = False
    reason: str | None = None

    @property
    def key_id(self) -> str:
        return key_id(self.public)


@dataclass(frozen=True, slots=True)
class Keyring:
    """One generation of trust, checked.

    Attributes:
        version: Its number N.
        roots: Public root keys by id.
        keys: The other keys by id.
    """

    version: int
    roots: Mapping[str, bytes]
    keys: Mapping[str, TrustedKey]

    def provenance_key(self, key_id: str) -> bytes | None:
        """Return the public key if it may vouch for any provenance at all."""
        key = self.keys.get(key_id)
        if key is None or key.revoked or PROVENANCE_ROLE not in key.roles:
            return None
        return key.public

    def authorize(self, key_ids: Iterable[str], *, builder: str, site: str) -> str:
        """Return the first of the keys that may speak for this builder and site.

        Raises:
            SignatureInvalidError: None may.
        """
        for name in sorted(key_ids):
            key = self.keys[name]
            if builder in key.builders and ("*" in key.sites or site in key.sites):
                return name
        raise SignatureInvalidError(f"no key that signed may speak for {builder} and {site}")


def establish(folder: Path, *, root: SigningKey, signing: SigningKey) -> Keyring:
    """See to it that the newest generation trusts `signing`; write the next one if it does not.

    The other keys of that generation are retired: what they signed stays valid. Durable when it
    returns; one process at a time.

    Raises:
        SignatureInvalidError: The generations do not hold, `root` is not a root key of the last
            one, or `signing` was revoked.
    """
    if not (folder / "root.1.json").exists():
        first = Keyring(1, {root.key_id: root.public}, _listed([TrustedKey(signing.public)]))
        return _write(folder, first, root)
    newest = load_keyring(folder, root_key_ids=frozenset({root.key_id}))
    key = newest.keys.get(signing.key_id)
    if key is not None and not key.retired and not key.revoked:
        return newest
    if key is not None:
        raise SignatureInvalidError(f"the key {signing.key_id} was retired or revoked")
    kept = [
        other if other.revoked else replace(other, retired=True) for other in newest.keys.values()
    ]
    return _write(folder, _next(newest, [*kept, TrustedKey(signing.public)]), root)


def revoke(folder: Path, *, root: SigningKey, key_id: str, reason: str) -> Keyring:
    """Write a generation in which nothing that the key `key_id` ever signed is valid.

    Raises:
        SignatureInvalidError: As for `establish`, or there is no such key.
    """
    newest = load_keyring(folder, root_key_ids=frozenset({root.key_id}))
    if key_id not in newest.keys:
        raise SignatureInvalidError(f"there is no key {key_id} to revoke")
    keys = [
        replace(key, revoked=True, reason=reason) if key.key_id == key_id else key
        for key in newest.keys.values()
    ]
    return _write(folder, _next(newest, keys), root)


def load_keyring(folder: Path, *, root_key_ids: frozenset[str] | None) -> Keyring:
    """Read all generations in order and return the newest.

    `root_key_ids`: the root keys that the first generation must consist of; None takes those
    that it names itself, which is enough against accident but not against who writes the folder.

    Raises:
        SignatureInvalidError: There is none, one is missing between, or one does not hold.
    """
    keyring: Keyring | None = None
    for version in range(1, GENERATION_COUNT_MAX + 1):
        try:
            data = read_bounded(folder / f"root.{version}.json", size_bytes_max=ENVELOPE_BYTES_MAX)
        except FileNotFoundError:
            break
        except OSError as error:
            raise SignatureInvalidError(f"trust: root.{version}.json: {error}") from error
        keyring = _check(data, version, keyring, root_key_ids)
    if keyring is None:
        raise SignatureInvalidError("trust: there are no trusted keys")
    if len(list(folder.glob("root.*.json"))) != keyring.version:
        raise SignatureInvalidError("trust: a generation is missing")
    return keyring


def _check(
    data: bytes, version: int, before: Keyring | None, root_key_ids: frozenset[str] | None
) -> Keyring:
    claimed = _read(_unchecked_body(data), version)
    if before is None and root_key_ids is not None and set(claimed.roots) != root_key_ids:
        raise SignatureInvalidError("trust: the first generation has other root keys")
    # One signature by the generation's own root keys, and one by those of the generation before.
    for roots in (claimed.roots, before.roots if before else claimed.roots):
        unseal(data, payload_type=TRUST_TYPE, public_key=roots.get)
    return claimed


def _unchecked_body(data: bytes) -> bytes:
    # Which keys must have signed a generation stands in it; nothing else of it is believed yet.
    payload = decode_json(data, size_bytes_max=ENVELOPE_BYTES_MAX).get("payload")
    try:
        return base64.b64decode(cast("str", payload), validate=True)
    except (TypeError, ValueError) as error:
        raise SignatureInvalidError("trust: malformed") from error


def _read(body: bytes, version: int) -> Keyring:
    fields = cast("dict[str, Any]", decode_json(body))
    try:
        number = fields["version"]
        roots = {name: _public(name, text) for name, text in fields["rootKeys"].items()}
        keys = {name: _read_key(name, item) for name, item in fields["keys"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SignatureInvalidError(f"trust: malformed: {error}") from error
    if number != version:
        raise SignatureInvalidError("trust: a generation bears another number")
    return Keyring(version, roots, keys)


def _read_key(name: str, item: dict[str, Any]) -> TrustedKey:
    key = TrustedKey(
        public=_public(name, item["public"]),
        roles=tuple(item["roles"]),
        builders=tuple(item["builders"]),
        sites=tuple(item["sites"]),
        retired=item["retired"],
        revoked=item["revoked"],
        reason=item["reason"],
    )
    if not isinstance(key.retired, bool) or not isinstance(key.revoked, bool):
        raise TypeError("a flag is no flag")
    return key


def _public(name: str, text: str) -> bytes:
    public = base64.b64decode(text, validate=True)
    if key_id(public) != name:
        raise ValueError(f"{name} is not the id of its key")
    return public


def _next(newest: Keyring, keys: list[TrustedKey]) -> Keyring:
    return Keyring(newest.version + 1, newest.roots, _listed(keys))


def _listed(keys: list[TrustedKey]) -> dict[str, TrustedKey]:
    return {key.key_id: key for key in keys}


def _write(folder: Path, keyring: Keyring, root: SigningKey) -> Keyring:
    if root.key_id not in keyring.roots:
        raise SignatureInvalidError(f"{root.key_id} is not a root key")
    body = encode_json(
        {
            "version": keyring.version,
            "rootKeys": {
                name: base64.b64encode(public).decode() for name, public in keyring.roots.items()
            },
            "keys": {
                name: {
                    "public": base64.b64encode(key.public).decode(),
                    "roles": key.roles,
                    "builders": key.builders,
                    "sites": key.sites,
                    "retired": key.retired,
                    "revoked": key.revoked,
                    "reason": key.reason,
                }
                for name, key in keyring.keys.items()
            },
        }
    )
    path = folder / f"root.{keyring.version}.json"
    envelope = seal(body, root, payload_type=TRUST_TYPE)
    with mapped_errors("write the trusted keys"):
        if not write_atomic(path, envelope.data, mode=STATEMENT_MODE, replace=False):
            raise SignatureInvalidError(f"{path.name} was written meanwhile: try again")
    return keyring
