"""mf keys: what is asked for, and that a secret is printed once."""

from __future__ import annotations

import pytest

KEY = {"id": "key_01", "label": "ci", "secret": "mfk_live_x", "expires_at": "2026-09-21T00:00:00Z"}
LOST = KEY | {"secret": None}


def test_secret_of_a_made_key_is_all_of_the_output(mf, peer) -> None:
    peer.on("POST", "/v1/api-keys", peer.one(KEY, 201))
    asked = ("--label", "ci", "--preset", "read-only", "--scope", "keys:write", "--cidr", "::1/128")
    ran = mf("keys", "create", *asked, "--site", "acme-store", "--expires-in", "4w")
    assert (ran.code, ran.out) == (0, "mfk_live_x\n")
    assert "key_01, until 2026-09-21T00:00:00Z" in ran.err
    assert peer.seen[0].body == {
        "label": "ci",
        "preset": "read-only",
        "scopes": ["keys:write"],
        "site_id": "acme-store",
        "cidrs": ["::1/128"],
        "ttl_s": 4 * 7 * 86400,
    }
    assert mf("keys", "create", "--label", "ci", "--scope", "*", "--json").json == KEY


def test_key_is_rolled_with_the_grace_that_is_given(mf, peer) -> None:
    peer.on("POST", "/v1/api-keys/key_01/roll", peer.one(KEY))
    assert mf("keys", "roll", "key_01").out == "mfk_live_x\n"
    mf("keys", "roll", "key_01", "--grace", "0s", "--expires-in", "90d")
    assert [seen.body for seen in peer.seen] == [{}, {"grace_s": 0, "ttl_s": 90 * 86400}]


def test_secret_that_was_lost_is_a_failure_with_what_to_do(mf, peer) -> None:
    peer.on("POST", "/v1/api-keys", peer.broken(), peer.one(LOST, 201))
    ran = mf("keys", "create", "--label", "ci", "--preset", "read-only")
    assert (ran.code, ran.out) == (1, "")
    assert "mf keys roll key_01" in ran.err


def test_label_and_networks_are_changed(mf, peer) -> None:
    peer.on("PATCH", "/v1/api-keys/key_01", peer.one(KEY))
    assert mf("keys", "set", "key_01", "--label", "cd").code == 0
    assert mf("keys", "set", "key_01", "--cidr", "10.0.0.0/8", "--cidr", "::1/128").code == 0
    assert mf("keys", "set", "key_01", "--any-network").code == 0
    assert [seen.body for seen in peer.seen] == [
        {"label": "cd"},
        {"cidrs": ["10.0.0.0/8", "::1/128"]},
        {"cidrs": []},
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "key_01"),
        ("set", "key_01", "--any-network", "--cidr", "::1/128"),
        ("roll", "key_01", "--grace", "soon"),
        ("create", "--label", "ci", "--expires-in", "1y"),
        ("create", "--preset", "read-only"),
    ],
)
def test_wrong_use_asks_nothing_of_the_server(mf, peer, arguments) -> None:
    assert mf("keys", *arguments).code == 2
    assert peer.seen == []
