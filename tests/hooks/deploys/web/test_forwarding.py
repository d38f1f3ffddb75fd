from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from hooks.deploys.web.forwarding import TrustedProxies, end_to_end, own_cookies, request_headers


def passed(headers, *, peer="203.0.113.9", trusted=()):
    given = CIMultiDictProxy(CIMultiDict([("Host", "shop.example"), *headers]))
    return request_headers(
        given, host="shop.example", peer=peer, scheme="http", trusted=TrustedProxies(trusted)
    )


def test_headers_of_one_hop_stay_here():
    headers = CIMultiDict(
        [
            ("Connection", "keep-alive, X-Secret"),
            ("Connection", "x-other"),
            ("X-Secret", "1"),
            ("X-Other", "2"),
            ("Keep-Alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Proxy-Authorization", "Basic x"),
            ("Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Set-Cookie", "c=3"),
        ]
    )
    assert list(end_to_end(CIMultiDictProxy(headers)).items()) == [
        ("Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Set-Cookie", "c=3"),
    ]


def test_the_process_learns_who_asked_and_how():
    headers = passed([])
    assert headers["Host"] == "shop.example"
    assert headers["X-Forwarded-For"] == "203.0.113.9"
    assert headers["X-Forwarded-Proto"] == "http"
    assert headers["X-Forwarded-Host"] == "shop.example"


def test_no_connection_header_names_the_host_or_the_length_away():
    headers = passed([("Connection", "close, Host, Content-Length"), ("Content-Length", "3")])
    assert headers["Host"] == "shop.example"
    assert headers["Content-Length"] == "3"


@pytest.mark.parametrize(
    "name",
    [
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-Forwarded-Host",
        "X-Real-IP",
        "Forwarded",
        "X_Forwarded_For",
        "X-Forwarded_Proto",
        "X-Forwarded-Ssl",
        "X-Forwarded-Scheme",
        "x_forwarded_prefix",
    ],
)
def test_a_visitor_cannot_say_who_he_is(name):
    headers = passed([(name, "forged")])
    assert "forged" not in headers.values()


def test_a_trusted_proxy_says_who_asked():
    forwarded = [("X-Forwarded-For", "198.51.100.7"), ("X-Forwarded-Proto", "https")]
    headers = passed(forwarded, peer="10.0.0.2", trusted=("10.0.0.0/8",))
    assert headers["X-Forwarded-For"] == "198.51.100.7, 10.0.0.2"
    assert headers["X-Forwarded-Proto"] == "https"


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("fe80::1%eth0", True),
        ("fe81::1", False),
        ("", False),
        ("unix", False),
    ],
)
def test_trust_goes_by_network(address, is_trusted):
    assert (address in TrustedProxies(("10.0.0.0/8", "fe80::/16"))) is is_trusted


@pytest.mark.parametrize(
    ("set_by_it", "passed_on"),
    [
        ("a=1; Path=/; Secure", "a=1; Path=/; Secure"),
        ("a=1; Domain=acme.sites.example; Path=/", "a=1; Domain=acme.sites.example; Path=/"),
        ("a=1; Domain=sites.example; Path=/", "a=1; Path=/"),
        ("a=1;DOMAIN= .Example ;Path=/", "a=1;Path=/"),
        ("a=1; Domain=other.sites.example; domain=example", "a=1"),
    ],
)
def test_cookies_are_for_no_other_site(set_by_it, passed_on):
    headers = CIMultiDict([("Set-Cookie", "b=2"), ("X", "y"), ("Set-Cookie", set_by_it)])
    own_cookies(headers, "acme.sites.example:8081")
    assert headers.getall("Set-Cookie") == ["b=2", passed_on]


@pytest.mark.parametrize(
    "host",
    [
        "acme.sites.example",
        "Acme.Sites.Example:8081",
        "acme.sites.example.",
        "acme.sites.example.:8081",
        "acme.sites.example:",
    ],
)
def test_cookies_of_a_host_are_its_own_however_it_is_spelled(host):
    headers = CIMultiDict(
        [("Set-Cookie", f"{name}=1; Domain={name}.sites.example") for name in ("acme", "other")]
    )
    own_cookies(headers, host)
    assert headers.getall("Set-Cookie") == ["acme=1; Domain=acme.sites.example", "other=1"]
