"""API keys as they are made, changed and rolled, and how their secrets look.

Source: contract §2 "Authentication".
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network

from gitd.errors import KeyInvalidError
from gitd.families import Family
from gitd.scopes import expand_scopes
from hooks.clock import now_ms
from storage.ids import new_id
from storage.model import ApiKey

DAY_MS = 24 * 60 * 60 * 1000
TTL_DEFAULT_MS = 90 * DAY_MS
TTL_MS_MAX = 365 * DAY_MS
GRACE_MS_MAX = 7 * DAY_MS
LABEL_CHARS_MAX = 100
CIDRS_COUNT_MAX = 50

RANDOM_CHARS = 30  # 178 bits
CHECKSUM_CHARS = 6  # a CRC-32 in base 62: a mistyped secret is known without a look-up
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET = re.compile(r"(?:mfk_live|mfk_test|mfs_live)_[0-9A-Za-z]{36}")


class Secret:
    """A key's secret, shown once. It prints as `***`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"


def mint(
    label: str,
    scopes: Iterable[str],
    *,
    site_id: str | None = None,
    env_id: str | None = None,
    ttl_ms: int = TTL_DEFAULT_MS,
    cidrs: Iterable[str] = (),
    family: Family = Family.PERSONAL,
    now: int | None = None,
) -> tuple[Secret, ApiKey]:
    """Return a new secret and the key to keep for it (`storage.records.api_keys.add`).

    `scopes` are checked and expanded here; a preset's come from `expand_scopes`.
    `env_id` binds the key to an environment and then wants that environment's `site_id` too.
    `ttl_ms` is at most a year. `cidrs` are the networks it may be used from; all when empty.

    Raises:
        KeyInvalidError: A field cannot be so; `param` names it.
    """
    if env_id is not None and site_id is None:
        raise KeyInvalidError("A key for an environment names its site too.", param="site_id")
    created_at = now_ms() if now is None else now
    secret = _new_secret(family)
    return Secret(secret), ApiKey(
        id=new_id("key"),
        family=family.value,
        label=_checked_label(label),
        secret_sha256=sha256_of(secret),
        hint=_hint(secret),
        scopes=expand_scopes(scopes),
        site_id=site_id,
        env_id=env_id,
        cidrs=_checked_cidrs(cidrs),
        created_at=created_at,
        expires_at=created_at + _checked_ttl(ttl_ms),
        revoked_at=None,
        last_used_at=None,
    )


def changed(key: ApiKey, *, label: str | None = None, cidrs: Iterable[str] | None = None) -> ApiKey:
    """Return the key with another label, or for other networks.

    Raises:
        KeyInvalidError: A field cannot be so; `param` names it.
    """
    return replace(
        key,
        label=key.label if label is None else _checked_label(label),
        cidrs=key.cidrs if cidrs is None else _checked_cidrs(cidrs),
    )


def roll(key: ApiKey, *, grace_ms: int, ttl_ms: int | None, now: int) -> tuple[Secret, ApiKey]:
    """Return a new secret and the key with it; the secret that it had is good for `grace_ms` more.

    Without `ttl_ms` the key ends when it would have.

    Raises:
        KeyInvalidError: A field cannot be so, or the key is at its end; `param` names the field.
    """
    if not 0 <= grace_ms <= GRACE_MS_MAX:
        raise KeyInvalidError("Both secrets work for at most 7 days.", param="grace_s")
    if ttl_ms is None and key.expires_at <= now:
        raise KeyInvalidError("The key is expired: say for how long it is to live.", param="ttl_s")
    secret = _new_secret(Family(key.family))
    return Secret(secret), replace(
        key,
        secret_sha256=sha256_of(secret),
        hint=_hint(secret),
        expires_at=key.expires_at if ttl_ms is None else now + _checked_ttl(ttl_ms),
        previous_sha256=key.secret_sha256 if grace_ms else None,
        previous_until=min(now + grace_ms, key.expires_at) if grace_ms else None,
    )


def is_well_formed(secret: str) -> bool:
    """Say whether `secret` could be one of ours: its form and its checksum hold."""
    if not _SECRET.fullmatch(secret):
        return False
    return _checksum(secret[:-CHECKSUM_CHARS]) == secret[-CHECKSUM_CHARS:]


def sha256_of(secret: str) -> bytes:
    """Return what records keep of a secret; of what cannot be one, too."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _new_secret(family: Family) -> str:
    head = f"{family}_{''.join(secrets.choice(BASE62) for _ in range(RANDOM_CHARS))}"
    return head + _checksum(head)


def _checksum(head: str) -> str:
    number, digits = zlib.crc32(head.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        number, digit = divmod(number, len(BASE62))
        digits = BASE62[digit] + digits
    return digits


def _hint(secret: str) -> str:
    return f"{secret[: secret.rindex('_') + 5]}…{secret[-4:]}"


def _checked_label(label: str) -> str:
    if not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable():
        raise KeyInvalidError(
            f"A label has 1 to {LABEL_CHARS_MAX} printable characters.", param="label"
        )
    return label


def _checked_ttl(ttl_ms: int) -> int:
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise KeyInvalidError("A key lives at least a moment and at most 365 days.", param="ttl_s")
    return ttl_ms


def _checked_cidrs(cidrs: Iterable[str]) -> tuple[str, ...]:
    checked = []
    for text in cidrs:
        try:
            checked.append(str(ip_network(text)))
        except ValueError as error:
            raise KeyInvalidError(f"{error}.", param="cidrs") from error
    if len(checked) > CIDRS_COUNT_MAX:
        raise KeyInvalidError(f"At most {CIDRS_COUNT_MAX} networks.", param="cidrs")
    return tuple(checked)
