"""API keys: contract §2 "Authentication"."""

from __future__ import annotations

import hashlib
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitd.api.api_keys import ApiKeyBody
from gitd.api_keys import BASE62, DAY_MS, TTL_MS_MAX, is_well_formed, mint
from gitd.errors import KeyInvalidError
from gitd.families import FAMILIES, Family
from storage.ids import is_id

NOW = 1_780_000_000_000


def test_secret_has_its_family_30_random_characters_and_a_checksum() -> None:
    for family in Family:
        secret, key = mint("ci", ["jobs:read"], family=family, now=NOW)
        text = secret.reveal()
        assert text.startswith(f"{family}_")
        assert len(text) == len(family) + 1 + 36
        assert is_well_formed(text)
        assert is_id(key.id, "key")


def test_families_are_called_alike_in_the_api_and_on_command_lines() -> None:
    in_the_api = get_args(get_type_hints(ApiKeyBody)["family"])
    assert in_the_api == FAMILIES
    assert [Family.of(word) for word in in_the_api] == list(Family)
    with pytest.raises(ValueError, match="no family"):
        Family.of("PERSONAL")


def test_only_the_sha256_of_a_secret_is_kept() -> None:
    secret, key = mint("ci", ["jobs:read"], now=NOW)
    assert key.secret_sha256 == hashlib.sha256(secret.reveal().encode()).digest()
    assert secret.reveal() not in repr((secret, key))
    assert repr(secret) == str(secret) == "***"
    assert len(key.hint) < 20


@given(st.integers(0, 44), st.sampled_from(BASE62))
def test_one_wrong_character_breaks_the_checksum(at: int, char: str) -> None:
    secret = mint("ci", ["jobs:read"], now=NOW)[0].reveal()
    changed = secret[:at] + char + secret[at + 1 :]
    assert is_well_formed(changed) == (changed == secret)


def test_key_lives_90_days_by_default_and_a_year_at_most() -> None:
    assert mint("ci", ["*"], now=NOW)[1].expires_at == NOW + 90 * DAY_MS
    assert mint("ci", ["*"], ttl_ms=TTL_MS_MAX, now=NOW)[1].expires_at == (NOW + 365 * DAY_MS)
    for ttl_ms in (0, -1, TTL_MS_MAX + 1):
        with pytest.raises(KeyInvalidError) as refused:
            mint("ci", ["*"], ttl_ms=ttl_ms, now=NOW)
        assert refused.value.param == "ttl_s"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"label": ""}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": "x" * 101}, "label"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["deployments:raed"]}, "scopes"),
        ({"cidrs": ["10.0.0.1/8"]}, "cidrs"),
        ({"cidrs": ["nonsense"]}, "cidrs"),
        ({"cidrs": ["10.0.0.0/8"] * 51}, "cidrs"),
        ({"env_id": "env_1"}, "site_id"),
    ],
)
def test_key_that_cannot_be_names_the_field(fields, param: str) -> None:
    asked = {"label": "ci", "scopes": ["*"], **fields}
    with pytest.raises(KeyInvalidError) as refused:
        mint(asked.pop("label"), asked.pop("scopes"), **asked)
    assert refused.value.param == param
