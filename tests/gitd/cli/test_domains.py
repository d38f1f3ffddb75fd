"""mf domains: what is asked for, and what is said of the DNS."""

from __future__ import annotations

import pytest

HERE = "/v1/sites/acme-store/environments/production/domains"
PLACE = ("--site", "acme-store", "--env", "production")
DOMAIN = {
    "id": "dom_01",
    "hostname": "www.example.com",
    "url": "https://www.example.com",
    "status": "active",
    "dns": {"cname": "acme-store.sites.example.net", "addresses": ["203.0.113.7", "2001:db8::7"]},
    "actor": {"type": "api_key", "id": "key_01", "label": "ci"},
    "created_at": "2026-06-23T00:00:00.000Z",
}


def test_added_domain_is_told_with_what_to_set(mf, peer) -> None:
    peer.on("POST", HERE, peer.one(DOMAIN, 201))
    ran = mf("domains", "add", "WWW.Example.com", *PLACE)
    assert (ran.code, ran.out) == (
        0,
        "www.example.com leads to production of acme-store: https://www.example.com\n",
    )
    assert ran.err.splitlines() == [
        "Set in its DNS: www.example.com. CNAME acme-store.sites.example.net.",
        "or, where it can have no CNAME: A 203.0.113.7, AAAA 2001:db8::7",
    ]
    assert peer.seen[0].body == {"hostname": "WWW.Example.com"}
    assert peer.seen[0].headers["Idempotency-Key"]
    assert mf("domains", "add", "x.example", *PLACE, "--json").json == DOMAIN


@pytest.mark.parametrize(
    ("dns", "said"),
    [
        ({"cname": None, "addresses": []}, "Its DNS has to lead to the server;"),
        ({"cname": None, "addresses": ["203.0.113.7"]}, "Set in its DNS: A 203.0.113.7"),
        ({}, "Its DNS has to lead to the server;"),
    ],
)
def test_server_that_does_not_say_all_of_its_dns(mf, peer, dns, said) -> None:
    peer.on("POST", HERE, peer.one(DOMAIN | {"dns": dns}, 201))
    ran = mf("domains", "add", "www.example.com", *PLACE)
    assert ran.code == 0
    assert ran.err.startswith(said)


def test_table_has_names_where_they_are_to_lead_and_who_added_them(mf, peer) -> None:
    peer.on("GET", HERE, peer.many([DOMAIN]))
    title, row = mf("domains", *PLACE).out.splitlines()
    assert title.split("  ")[0] == "HOSTNAME"
    for text in ("www.example.com", "active", "acme-store.sites.example.net", "ci", "dom_01"):
        assert text in row


def test_name_of_other_letters_is_asked_for_as_it_is(mf, peer) -> None:
    peer.on("GET", f"{HERE}/b%C3%BCcher.example", peer.one(DOMAIN))
    assert mf("domains", "show", "bücher.example", *PLACE).code == 0


def test_refusal_is_told_with_its_code(mf, peer) -> None:
    peer.on("POST", HERE, peer.refusal(409, "domain.taken", "Something else has it."))
    ran = mf("domains", "add", "www.example.com", *PLACE)
    assert ran.code == 3
    assert "domain.taken: Something else has it." in ran.err


def test_environments_are_listed_with_their_domains(mf, peer) -> None:
    items = [{"slug": "production", "domains": ["www.example.com", "example.com"]}]
    peer.on("GET", "/v1/sites/acme-store/environments", peer.many(items))
    assert "www.example.com, example.com" in mf("env", "--site", "acme-store").out
