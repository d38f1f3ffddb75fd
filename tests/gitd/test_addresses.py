"""Who the client is, behind proxies: contract §2 "Transport"."""

from __future__ import annotations

import pytest

from gitd.addresses import TrustedProxies

LOOPBACK = ["127.0.0.1"]


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        (["10.0.0.0/8"], "1.2.3.4", ["9.9.9.9"], "1.2.3.4"),
        (["10.0.0.0/8"], "1.2.3.4", ["nonsense"], "1.2.3.4"),
        (["10.0.0.0/8"], "10.0.0.1", [], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", ["6.6.6.6, 9.9.9.9, 10.0.0.2"], "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (LOOPBACK, "127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        (LOOPBACK, None, ["9.9.9.9"], None),
        (LOOPBACK, "::ffff:127.0.0.1", ["9.9.9.9"], "9.9.9.9"),
    ],
)
def test_only_trusted_proxies_are_believed(trusted, peer, forwarded, client) -> None:
    assert TrustedProxies(trusted).client_ip(peer, forwarded) == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["127.0.0.1", "203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1", "6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (["127.0.0.1", "203.0.113.9, 127.0.0.1"], "203.0.113.9"),
    ],
)
def test_line_that_the_client_sent_counts_for_less_than_the_proxys_own(forwarded, client) -> None:
    assert TrustedProxies(LOOPBACK).client_ip("127.0.0.1", forwarded) == client


@pytest.mark.parametrize(
    ("hop", "client"),
    [
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[::ffff:203.0.113.9]:443", "203.0.113.9"),
        ("127.0.0.1:4711", "127.0.0.1"),
    ],
)
def test_port_of_the_client_is_no_part_of_its_address(hop, client) -> None:
    assert TrustedProxies(LOOPBACK).client_ip("127.0.0.1", [hop]) == client


@pytest.mark.parametrize(
    "hop",
    [
        "nonsense",
        "unknown",
        "unix:",
        "",
        ":4711",
        "203.0.113.9:",
        "203.0.113.9:x",
        "2001:db8:0:0:0:0:0:1:443",
        "127.0.0.1,",
        "127.0.0.1, nonsense, 127.0.0.1",
    ],
)
def test_what_is_no_address_is_nobody_and_never_the_proxy(hop) -> None:
    assert TrustedProxies(LOOPBACK).client_ip("127.0.0.1", [hop]) is None
