"""Trust: which public keys may vouch for what, in generations that each sign the next.

`trust/root.<N>.json` is an envelope. The generation N+1 counts only when enough root keys of N
and of N+1 itself signed it, so that whoever can only write the folder cannot add a key.
Which root keys may stand in the first generation is said from outside (`root_key_ids`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from storage.envelope import ENVELOPE_BYTES_MAX, decode_json, encode_json, seal, unseal
from storage.errors import (
    KeyFileError,
    ReleaseInvalidError,
    ReleaseKeyRetiredError,
    SignatureInvalidError,
)
from storage.files import mapped_errors, read_bounded, write_atomic
from storage.layout import STATEMENT_MODE
from storage.provenance import BUILDERS
from storage.signing import SigningKey, key_id

TRUST_TYPE = "application/vnd.gitd.trust+json"
PROVENANCE_ROLE = "provenance"
RELEASE_ROLE = "release"
ROLES = (PROVENANCE_ROLE, RELEASE_ROLE)
GENERATION_COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may vouch for.

    Attributes:
        public: Its 32 bytes.
        roles: Kinds of statements: `provenance`, `release`.
        builders: Ids of the builders that it may speak for.
        sites: Names of sites, or `*` for all.
        retired: It signs nothing new; what it signed before stays valid. That a statement is not
            new is known of those that a host went by before, and of those that a release names.
        revoked: Nothing that it ever signed is valid.
        reason: Why it was retired or revoked.
    """

    public: bytes
    roles: tuple[str, ...] = ROLES
    builders: tuple[str, ...] = BUILDERS
    sites: tuple[str, ...] = ("*",)
    retired: bool = False
    revoked: bool = False
    reason: str | None = None

    @property
    def key_id(self) -> str:
        return key_id(self.public)

    @property
    def is_active(self) -> bool:
        return not self.retired and not self.revoked

    @property
    def state(self) -> str:
        """`active`, `retired` or `revoked`, as people and the records are told of it."""
        return "revoked" if self.revoked else "retired" if self.retired else "active"

    def may(self, role: str, site: str) -> bool:
        return role in self.roles and ("*" in self.sites or site in self.sites)


@dataclass(frozen=True, slots=True)
class Seen:
    """A generation that somebody went by: its number, and the SHA-256 of its file; empty where
    that was not remembered.
    """

    version: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Keyring:
    """One generation of trust, checked.

    Attributes:
        version: Its number N.
        roots: Public root keys by id.
        keys: The other keys by id.
        digests: The SHA-256 of each generation's file up to this one, in hexadecimal.
    """

    version: int
    roots: Mapping[str, bytes]
    keys: Mapping[str, TrustedKey]
    digests: tuple[str, ...] = ()

    @property
    def seen(self) -> Seen:
        return Seen(self.version, self.digests[-1])

    @property
    def revoked(self) -> frozenset[str]:
        return frozenset(name for name, key in self.keys.items() if key.revoked)

    def provenance_key(self, key_id: str) -> bytes | None:
        """Return the public key if it may vouch for any provenance at all."""
        return self._key_for(PROVENANCE_ROLE, key_id)

    def release_key(self, key_id: str) -> bytes | None:
        """Return the public key if it may vouch for any release at all."""
        return self._key_for(RELEASE_ROLE, key_id)

    def authorize(self, key_ids: Iterable[str], *, builder: str, site: str) -> str:
        """Return the first of the keys that may speak for this builder and site.

        Raises:
            SignatureInvalidError: None may.
        """
        for name in sorted(key_ids):
            key = self.keys[name]
            if builder in key.builders and key.may(PROVENANCE_ROLE, site):
                return name
        raise SignatureInvalidError(f"no key that signed may speak for {builder} and {site}")

    def authorize_release(self, key_ids: Iterable[str], *, site: str, is_new: bool) -> str:
        """Return the first of the keys that may release this site.

        `is_new`: the statement was not gone by before, so that a retired key is too late.

        Raises:
            ReleaseInvalidError: None may.
            ReleaseKeyRetiredError: Only such a one did.
        """
        able = [name for name in sorted(key_ids) if self.keys[name].may(RELEASE_ROLE, site)]
        if not able:
            raise ReleaseInvalidError(f"no key that signed may release {site}")
        for name in able:
            if not is_new or self.keys[name].is_active:
                return name
        raise ReleaseKeyRetiredError(f"the key {able[0]} was retired: it releases nothing any more")

    def _key_for(self, role: str, key_id: str) -> bytes | None:
        key = self.keys.get(key_id)
        if key is None or key.revoked or role not in key.roles:
            return None
        return key.public


def establish(
    folder: Path,
    *,
    root: SigningKey | None,
    signing: SigningKey,
    root_key_ids: frozenset[str] | None = None,
) -> Keyring:
    """See to it that the newest generation trusts `signing`, for all roles, and no other key.

    Writes the next generation if it does not. Other keys are retired in it: what they signed stays
    valid. Durable when it returns; one process at a time (see `Custody.locked`).

    `root`: signs a new generation; None where it is kept elsewhere. `root_key_ids`: the root keys
    that trust begins with; without them that is `root`.

    Raises:
        SignatureInvalidError: The generations do not hold, or `signing` was retired or revoked.
        KeyFileError: A new generation is needed, and the root key is not here.
    """
    if not (folder / "root.1.json").exists():
        needed = _needed(root, signing)
        first = Keyring(1, {needed.key_id: needed.public}, _listed([TrustedKey(signing.public)]))
        return _write(folder, first, needed)
    if root_key_ids is None and root is not None:
        root_key_ids = frozenset({root.key_id})
    newest = load_keyring(folder, root_key_ids=root_key_ids)
    key = newest.keys.get(signing.key_id)
    if key is not None and not key.is_active:
        raise SignatureInvalidError(
            f"the signing key {signing.key_id} was retired or revoked. Put the one that signs now"
            " in its place, or let gitd signing-key rotate make another"
        )
    others = [other for name, other in newest.keys.items() if name != signing.key_id]
    wanted = [*(_retired(other) for other in others), TrustedKey(signing.public)]
    if dict(newest.keys) == _listed(wanted):
        return newest
    return _write(folder, _next(newest, wanted), _needed(root, signing))


def introduce(folder: Path, *, root: SigningKey, signing: SigningKey) -> Keyring:
    """Write a generation that trusts `signing` beside what it trusts already.

    Raises:
        SignatureInvalidError: As for `establish`.
    """
    newest = load_keyring(folder, root_key_ids=frozenset({root.key_id}))
    key = newest.keys.get(signing.key_id)
    if key is not None:
        if not key.is_active:
            raise SignatureInvalidError(f"the key {signing.key_id} was retired or revoked")
        return newest
    wanted = [*newest.keys.values(), TrustedKey(signing.public)]
    return _write(folder, _next(newest, wanted), root)


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


def begin_anew(folder: Path, *, root: SigningKey, signing: SigningKey, before: Keyring) -> Keyring:
    """Let trust begin with another root key, where that of before is lost, and return it.

    The keys of before are retired in it: what they signed stays valid. Hosts that pin the root key
    believe it only when they are told. Not safe beside a server: the generations of before are
    removed first.

    Raises:
        StorageError: The system refused.
    """
    with mapped_errors("remove the generations of trust"):
        for path in folder.glob("root.*.json"):
            path.unlink()
    keys = [*map(_retired, before.keys.values()), TrustedKey(signing.public)]
    return _write(folder, Keyring(1, {root.key_id: root.public}, _listed(keys)), root)


def load_keyring(folder: Path, *, root_key_ids: frozenset[str] | None) -> Keyring:
    """Read all generations in order and return the newest.

    `root_key_ids`: the root keys that the first generation must consist of; None takes those
    that it names itself, which is enough against accident but not against who writes the folder.

    Raises:
        SignatureInvalidError: There is none, one is missing between, or one does not hold.
    """
    return keyring_of(read_generations(folder), root_key_ids=root_key_ids)


def read_generations(folder: Path) -> list[bytes]:
    """Return the generations as they lie in the folder, the first one first.

    Raises:
        SignatureInvalidError: One is missing between, or cannot be read.
    """
    found: list[bytes] = []
    while len(found) < GENERATION_COUNT_MAX:
        name = f"root.{len(found) + 1}.json"
        try:
            found.append(read_bounded(folder / name, size_bytes_max=ENVELOPE_BYTES_MAX))
        except FileNotFoundError:
            break
        except OSError as error:
            raise SignatureInvalidError(f"trust: {name}: {error}") from error
    if len(list(folder.glob("root.*.json"))) != len(found):
        raise SignatureInvalidError("trust: a generation is missing")
    return found


def keyring_of(generations: Sequence[bytes], *, root_key_ids: frozenset[str] | None) -> Keyring:
    """Check generations, the first one first, and return the newest. See `load_keyring`."""
    keyring: Keyring | None = None
    for version, data in enumerate(generations, start=1):
        keyring = _check(data, version, keyring, root_key_ids)
    if keyring is None:
        raise SignatureInvalidError("trust: there are no trusted keys")
    return keyring


def check_succession(before: Seen, keyring: Keyring) -> None:
    """Nobody who went by a generation goes back behind it, or on from another of that number.

    Raises:
        SignatureInvalidError: That is what `keyring` would be.
    """
    if keyring.version < before.version:
        raise SignatureInvalidError(
            f"trust: generation {before.version} was seen before, and they end with"
            f" {keyring.version}: newer ones were taken away"
        )
    if before.sha256 and keyring.digests[before.version - 1] != before.sha256:
        raise SignatureInvalidError(
            f"trust: generation {before.version} is not the one that was seen before"
        )


def _check(
    data: bytes, version: int, before: Keyring | None, root_key_ids: frozenset[str] | None
) -> Keyring:
    claimed = _read(_unchecked_body(data), version)
    if before is None and root_key_ids is not None and set(claimed.roots) != root_key_ids:
        raise SignatureInvalidError("trust: the first generation has other root keys")
    # One signature by the generation's own root keys, and one by those of the generation before.
    for roots in (claimed.roots, before.roots if before else claimed.roots):
        unseal(data, payload_type=TRUST_TYPE, public_key=roots.get)
    digest = hashlib.sha256(data).hexdigest()
    return replace(claimed, digests=(*(before.digests if before else ()), digest))


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
    retired, revoked = item["retired"], item["revoked"]
    if not isinstance(retired, bool) or not isinstance(revoked, bool):
        raise TypeError("a flag is no flag")
    return TrustedKey(
        public=_public(name, item["public"]),
        roles=tuple(item["roles"]),
        builders=tuple(item["builders"]),
        sites=tuple(item["sites"]),
        retired=retired,
        revoked=revoked,
        reason=item["reason"],
    )


def _public(name: str, text: str) -> bytes:
    public = base64.b64decode(text, validate=True)
    if key_id(public) != name:
        raise ValueError(f"{name} is not the id of its key")
    return public


def _needed(root: SigningKey | None, signing: SigningKey) -> SigningKey:
    if root is None:
        raise KeyFileError(
            f"the signing key {signing.key_id} is not trusted yet, and the root key that could say "
            "so is not here"
        )
    return root


def _retired(key: TrustedKey) -> TrustedKey:
    return key if key.revoked else replace(key, retired=True)


def _next(newest: Keyring, keys: list[TrustedKey]) -> Keyring:
    return Keyring(newest.version + 1, newest.roots, _listed(keys), newest.digests)


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
    return replace(keyring, digests=(*keyring.digests, envelope.sha256))
