"""Which host, port and address a build may reach."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from hooks.builds.egress.allowlist import Allowlist, Nature, nature_of, parse, split_port
from hooks.builds.wire import AllowedHost


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.com", "example.com", 443),
        ("Example.COM.", "example.com", 443),
        ("example.com:8443", "example.com", 8443),
        ("*.example.com", "*.example.com", 443),
        ("under_score.example", "under_score.example", 443),
        ("10.1.2.3", "10.1.2.3/32", 443),
        ("10.1.2.3:80", "10.1.2.3/32", 80),
        ("10.1.0.0/16", "10.1.0.0/16", 443),
        ("10.1.2.3/16:8443", "10.1.0.0/16", 8443),
        ("fd00::1", "fd00::1/128", 443),
        ("[fd00::1]:8443", "fd00::1/128", 8443),
        ("[fd00::/8]", "fd00::/8", 443),
    ],
)
def test_entry_is_a_host_an_address_or_a_network_with_a_port(text, host, port):
    assert parse(text) == AllowedHost(host, port, "builders.egress_allow")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":443",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:https",
        "example.com:٤٤٣",
        "https://example.com",
        "example.com/path",
        "user@example.com",
        "*",
        "*example.com",
        "a.*.example.com",
        "-a.example",
        "a b.example",
        "[fd00::1",
        "10.1.2.3/33",
    ],
)
def test_entry_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_port_is_told_from_an_ipv6_address():
    assert split_port("[::1]:80") == ("::1", 80)
    assert split_port("::1", 443) == ("::1", 443)
    with pytest.raises(ValueError, match="no port"):
        split_port("::1")


@pytest.mark.parametrize(
    ("address", "nature"),
    [
        ("1.1.1.1", Nature.PUBLIC),
        ("2606:4700::1111", Nature.PUBLIC),
        ("10.0.0.1", Nature.PRIVATE),
        ("172.31.255.255", Nature.PRIVATE),
        ("192.168.0.1", Nature.PRIVATE),
        ("100.64.0.1", Nature.PRIVATE),
        ("198.18.0.1", Nature.PRIVATE),
        ("203.0.113.7", Nature.PRIVATE),
        ("fd00::1", Nature.PRIVATE),
        ("fec0::1", Nature.PRIVATE),
        ("2001:db8::1", Nature.PRIVATE),
        ("127.0.0.1", Nature.LOOPBACK),
        ("127.255.255.254", Nature.LOOPBACK),
        ("::1", Nature.LOOPBACK),
        ("0.0.0.0", Nature.FORBIDDEN),
        ("0.1.2.3", Nature.FORBIDDEN),
        ("::", Nature.FORBIDDEN),
        ("169.254.169.254", Nature.FORBIDDEN),
        ("fe80::1", Nature.FORBIDDEN),
        ("fe80::1%eth0", Nature.FORBIDDEN),
        ("224.0.0.1", Nature.FORBIDDEN),
        ("239.1.1.1", Nature.FORBIDDEN),
        ("ff02::1", Nature.FORBIDDEN),
        ("255.255.255.255", Nature.FORBIDDEN),
        ("240.0.0.1", Nature.FORBIDDEN),
        ("100.100.100.200", Nature.FORBIDDEN),
        ("168.63.129.16", Nature.FORBIDDEN),
        ("192.0.0.192", Nature.FORBIDDEN),
        ("fd00:ec2::254", Nature.FORBIDDEN),
        ("fd00:ec2::254%eth0", Nature.FORBIDDEN),
        # an address within an address is what the inner one is
        ("::ffff:10.0.0.1", Nature.PRIVATE),
        ("::ffff:127.0.0.1", Nature.LOOPBACK),
        ("::ffff:169.254.169.254", Nature.FORBIDDEN),
        ("::ffff:1.1.1.1", Nature.PUBLIC),
        ("64:ff9b::7f00:1", Nature.LOOPBACK),
        ("64:ff9b::a00:1", Nature.PRIVATE),
        ("2002:7f00:1::", Nature.LOOPBACK),
        ("2002:a9fe:a9fe::", Nature.FORBIDDEN),
        ("::7f00:1", Nature.PRIVATE),
    ],
)
def test_nature_of_an_address(address, nature):
    assert nature_of(ip_address(address)) is nature


def allowlist(*entries):
    return Allowlist([each if isinstance(each, AllowedHost) else parse(each) for each in entries])


@pytest.mark.parametrize(
    ("host", "port", "is_listed"),
    [
        ("example.com", 443, True),
        ("example.com", 80, False),
        ("sub.example.com", 443, False),
        ("example.com.evil.example", 443, False),
        ("below.example.net", 8443, True),
        ("far.below.example.net", 8443, True),
        ("below.example.net", 443, False),
        ("example.net", 8443, False),
        ("notexample.net", 8443, False),
        ("10.1.2.3", 443, True),
        ("10.2.0.1", 443, False),
        ("::ffff:10.1.2.3", 443, True),
        ("2130706433", 443, False),
    ],
)
def test_request_must_be_for_a_listed_host_and_port(host, port, is_listed):
    listed = allowlist("example.com", "*.example.net:8443", "10.1.0.0/16")
    assert (listed.reach_of(host, port) is not None) is is_listed


@pytest.mark.parametrize(
    ("reach", "address", "may"),
    [
        ("public", "1.1.1.1", True),
        ("public", "10.0.0.1", False),
        ("public", "127.0.0.1", False),
        ("private", "10.0.0.1", True),
        ("private", "127.0.0.1", False),
        ("private", "169.254.169.254", False),
        ("loopback", "127.0.0.1", True),
        ("loopback", "10.0.0.1", True),
        ("loopback", "169.254.169.254", False),
        ("loopback", "0.0.0.0", False),
    ],
)
def test_addresses_of_a_name_go_as_far_as_who_listed_it_says(reach, address, may):
    listed = allowlist(AllowedHost("registry.example", 443, "pip", reach))
    assert listed.reach_of("registry.example", 443) == reach
    assert listed.may_connect(ip_address(address), 443, reach) is may


@pytest.mark.parametrize(("reach", "may"), [("public", False), ("private", False), ("loopback", 1)])
def test_public_address_of_this_machine_counts_as_its_loopback(reach, may):
    listed = allowlist(AllowedHost("registry.example", 443, "pip", reach))
    assert listed.may_connect(ip_address("1.1.1.1"), 443, reach, is_own=True) == may
    assert not listed.may_connect(ip_address("fe80::1"), 443, reach, is_own=True)


def test_names_may_resolve_to_a_private_address_that_is_listed_beside_them():
    listed = allowlist("intranet.example", "10.1.2.3")
    assert listed.may_connect(ip_address("10.1.2.3"), 443, "public")
    assert listed.may_connect(ip_address("::ffff:10.1.2.3"), 443, "public")
    assert not listed.may_connect(ip_address("10.1.2.4"), 443, "public")
    assert not listed.may_connect(ip_address("10.1.2.3"), 80, "public")


def test_metadata_is_in_no_network_and_must_be_listed_by_its_address():
    everything = allowlist("0.0.0.0/0:80")
    assert everything.may_connect(ip_address("10.0.0.1"), 80, "public")
    assert not everything.may_connect(ip_address("169.254.169.254"), 80, "public")
    assert everything.reach_of("169.254.169.254", 80) is None
    assert allowlist("169.254.169.254:80").reach_of("169.254.169.254", 80) is not None


@pytest.mark.parametrize(
    ("host", "reach", "may"),
    [
        ("10.1.2.3", "private", True),
        ("10.1.2.3", "public", False),
        ("127.0.0.1", "private", False),
        ("127.0.0.1", "loopback", True),
        ("169.254.169.254", "loopback", False),
        ("fd00::1", "private", True),
    ],
)
def test_address_that_no_setting_lists_is_judged_as_what_a_name_resolves_to(host, reach, may):
    listed = allowlist(AllowedHost(host, 443, "pip", reach), "intranet.example")
    assert listed.reach_of(host, 443) == reach
    assert listed.may_connect(ip_address(host), 443, reach) is may
    assert not listed.may_connect(ip_address(host), 443, "public"), "no name may lead to it"


def test_address_is_listed_however_it_is_spelled():
    listed = allowlist(AllowedHost("fd00:0::1", 443, "pip", "private"))
    assert listed.reach_of("fd00::1", 443) == "private"
    assert listed.ports_of("fd00:0:0::1") == [443]


def test_host_that_two_list_reaches_as_far_as_either_says():
    far = AllowedHost("registry.example", 443, "npm", "private")
    near = AllowedHost("registry.example", 443, "builders.egress_allow")
    for entries in ((far, near), (near, far)):
        assert Allowlist(entries).reach_of("registry.example", 443) == "private"


def test_ports_that_a_host_is_listed_with_are_known_for_advice():
    listed = allowlist("a.example:8443", "*.example:80", "b.other")
    assert listed.ports_of("a.example") == [80, 8443]
    assert listed.ports_of("c.other") == []
