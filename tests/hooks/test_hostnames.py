"""Host names as people give them. RFC 1123, 2.1; RFC 5891; Unicode TS #46."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.deploys.web.router import host_name
from hooks.hostnames import HostnameError, PlatformNames, normal


def wide(text: str) -> str:
    """As keyboards of other scripts write it."""
    return "".join(chr(ord(char) + 0xFEE0) for char in text)


LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 57, "com"])
assert len(LONGEST) == 253


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("www.example.com", "www.example.com"),
        ("Example.COM.", "example.com"),
        ("a.b", "a.b"),
        ("3com.example", "3com.example"),
        ("ab--cd.example.com", "ab--cd.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.Example", "xn--bcher-kva.example"),
        ("www。example。com", "www.example.com"),
        (wide("www.Example.com"), "www.example.com"),
        ("\u212aelvin.example", "kelvin.example"),  # the sign of the unit
        ("exam\u00adple.com", "example.com"),  # a soft hyphen, which nobody sees
        ("пример.рф", "xn--e1afmkfd.xn--p1ai"),
        (LONGEST, LONGEST),
    ],
)
def test_every_spelling_of_a_name_is_one(text: str, name: str) -> None:
    assert normal(text) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is needed"),
        (".", "is needed"),
        ("localhost", "two labels"),
        ("com.", "two labels"),
        ("https://www.example.com", "no scheme and no path"),
        ("www.example.com/shop", "no scheme and no path"),
        ("www.example.com:443", "no port"),
        (f"www.example.com{wide(':443')}", "no port"),
        ("*.example.com", "wildcards"),
        (f"{wide('*')}.example.com", "wildcards"),
        ("127.0.0.1", "an address"),
        ("127.1", "an address"),
        ("127.0.0.1.", "an address"),
        ("0x7f.1", "an address"),
        ("example.0x7f", "an address"),
        (wide("127.0.0.1"), "an address"),
        ("[::1]", "an address"),
        ("2001:db8::7", "an address"),
        ("www..example.com", "between two dots"),
        (".example.com", "between two dots"),
        ("www.example.com..", "between two dots"),
        ("-www.example.com", "beside a dot"),
        ("www-.example.com", "beside a dot"),
        ("my_shop.example.com", "letters, digits and hyphens"),
        ("a b.example.com", "letters, digits and hyphens"),
        (" www.example.com", "letters, digits and hyphens"),
        ("www.example.com\n", "letters, digits and hyphens"),
        ("me@example.com", "letters, digits and hyphens"),
        ("www.example.com?x", "letters, digits and hyphens"),
        ("www.example.com\0", "letters, digits and hyphens"),
        ("xn--a.example", "no host name"),
        ("xn--.example", "no host name"),
        ("xn--example-.com", "no host name"),
        ("xn--www-mk0a.example.com\u00df", "no host name"),
        ("\u05d0a.example", "no host name"),  # runs both ways
        ("a\u200db.example", "no host name"),
        ("\u2024.example", "IDNA"),
        ("\ud800.example", "no host name"),
        ("a" * 64 + ".com", "63 characters"),
        ("ü" * 63 + ".com", "no host name"),
        (f"a.{LONGEST}", "253 characters"),
        ("\u2024" * 900, "IDNA"),
        ("ü" * 5000, "253 characters"),
    ],
)
def test_what_is_no_name_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(HostnameError) as refused:
        normal(text)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 300


@given(st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9.\-ü。\uff21]{1,80}", fullmatch=True))
def test_name_that_is_taken_is_its_own_spelling_and_one_that_requests_can_have(text: str) -> None:
    try:
        name = normal(text)
    except HostnameError:
        return
    assert normal(name) == name
    assert name.isascii()
    assert host_name(name) == name
    assert host_name(f"{name.upper()}.:443") == name


@pytest.mark.parametrize(
    ("hostname", "is_own"),
    [
        ("sites.example.com", True),
        ("acme.sites.example.com", True),
        ("a.b.sites.example.com", True),
        ("forge.example.com", True),
        ("x.forge.example.com", True),
        ("example.com", False),
        ("www.example.com", False),
        ("mysites.example.com", False),
        ("sites.example.com.evil.example", False),
    ],
)
def test_what_is_at_or_below_the_servers_own_names_is_its_own(
    hostname: str, *, is_own: bool
) -> None:
    names = PlatformNames("sites.example.com", "forge.example.com")
    assert names.include(hostname) is is_own
    assert not PlatformNames("localhost").include("www.example.com")
