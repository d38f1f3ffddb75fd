"""Webhooks: the pure parts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from hooks.builds.egress.addresses import AddressInfo, look_up
from hooks.webhook_addresses import PrivateAddressError, Resolver, is_public, url_fault
from hooks.webhooks import PAUSES_S, after, signature
from storage.model import Delivery, DeliveryStatus

VECTOR = "366e40c480fe3a9e6a03609dca079cea86d77ae82d5a56b5348208247317a8d1"


def delivery() -> Delivery:
    return Delivery(
        id="whd_1",
        webhook_id="whe_1",
        event_id="evt_1",
        event_type="job.failed",
        body=b"{}",
        status=DeliveryStatus.QUEUED,
        attempts=0,
        next_at=0,
        http_status=None,
        error=None,
        created_at=0,
        attempted_at=None,
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://Example.COM.:8443/hook?a=%20",
        "http://ci_runner:9000/",
        "http://xn--bcher-kva.example/",
        "http://127.0.0.1:1/",
        "http://[::1]:65535/",
        "http://7.example/",
    ],
)
def test_url_whose_host_can_be_there_is_taken(url: str) -> None:
    assert url_fault(url) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://", "such as https://example.com/hook"),
        ("https:///hook", "such as https://example.com/hook"),
        ("https://example.com:0/", "such as https://example.com/hook"),
        ("https://example.com:65536/", "such as https://example.com/hook"),
        ("https://[::1", "such as https://example.com/hook"),
        ("https://[abc]/", "such as https://example.com/hook"),  # by some releases of Python
        ("https://[1.2.3.4]/", "such as https://example.com/hook"),
        ("https://[v1.a]/", "v1.a in brackets is no IPv6 address"),
        ("https://example.com[::1]/", "such as https://example.com/hook"),
        ("https://[::1]example.com/", "such as https://example.com/hook"),
        ("https://u@example.com[::1]:80/", "such as https://example.com/hook"),
        ("https://%", "% is no host"),
        ("https://exam%70le.com/", "exam%70le.com is no host"),
        ("https://a..example.com/", "a..example.com is no host"),
        ("https://.example.com/", ".example.com is no host"),
        ("https://./", ". is no host"),
        ("https://-a.example.com/", "-a.example.com is no host"),
        (f"https://{'a' * 64}.example.com/", "is no host"),
        (f"https://{'a.' * 126}aa/", "is no host"),
        ("https://300.1.1.1/", "300.1.1.1 is no host"),
        ("https://127.1/", "127.1 is no host"),
        ("https://0x7f000001/", "0x7f000001 is no host"),
        ("https://b\u00fccher.example/", "xn--"),
        ("https://example.com/a b", "%20"),
    ],
)
def test_url_whose_host_cannot_be_is_told_what_can(url: str, said: str) -> None:
    assert said in str(url_fault(url))


def test_signature_is_the_hmac_of_time_dot_body() -> None:
    # printf '1700000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_x
    assert signature("whsec_x", 1_700_000_000, b'{"id":"evt_1"}') == "t=1700000000,v1=" + VECTOR


def test_delivery_is_given_up_after_the_last_pause() -> None:
    tried, now = delivery(), 0
    for number, pause_s in enumerate(PAUSES_S):
        tried = after(tried, now=now, http_status=500, error="no")
        assert (tried.status, tried.attempts) == (DeliveryStatus.QUEUED, number + 1)
        assert tried.next_at == now + 1000 * pause_s
        now = tried.next_at
    tried = after(tried, now=now, http_status=None, error="no")
    assert (tried.status, tried.next_at) == (DeliveryStatus.FAILED, None)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),  # 6to4
        ("2001:0:4136:e378::7f00:1", False),  # Teredo
        ("::7f00:1", False),
        ("::ffff:0:7f00:1", False),
        ("0.1.2.3", False),
        ("168.63.129.16", False),  # where a cloud tells secrets
    ],
)
def test_address_of_this_machine_or_its_networks_is_not_public(
    address: str, *, public: bool
) -> None:
    assert is_public(address) is public


OWN = """
ip link set lo up && ip address add 8.8.4.4/32 dev lo && exec "$0" -c '
from hooks.webhook_addresses import PrivateAddressError, check_literal, may_be_told
print(may_be_told("8.8.4.4", 443), may_be_told("8.8.8.8", 443))
check_literal("https://8.8.8.8/")
try:
    check_literal("https://8.8.4.4/")
except PrivateAddressError as error:
    print(error)
'
"""


def test_public_address_of_this_machine_is_told_nothing() -> None:
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", OWN, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False True\n8.8.4.4 is no public address\n", done.stderr


async def test_name_that_leads_to_this_machine_does_not_resolve() -> None:
    resolver = Resolver()
    with pytest.raises(PrivateAddressError):
        await resolver.resolve("localhost", 80)
    await resolver.close()


async def test_name_that_hangs_takes_no_thread_of_control_and_no_other_name() -> None:
    goes_on, before = threading.Event(), set(threading.enumerate())

    def hanging(host: str, port: int) -> list[AddressInfo]:
        if host == "silent.example":
            goes_on.wait(30)
        return look_up("127.0.0.1", port)

    resolver = Resolver(may_be_private=True, look_up=hanging)
    for _ in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await resolver.resolve("silent.example", 80)
    assert len(set(threading.enumerate()) - before) == 1
    (found,) = await resolver.resolve("quick.example", 80)
    assert found["host"] == "127.0.0.1"
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10) == 1
    goes_on.set()
    assert await resolver.resolve("silent.example", 80)


async def test_name_that_is_none_is_an_error_of_its_own() -> None:
    resolver = Resolver()
    with pytest.raises(OSError, match=r"(?i)name"):
        await resolver.resolve("nowhere.invalid", 80)
