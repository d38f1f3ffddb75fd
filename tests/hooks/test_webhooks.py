"""Webhooks: the pure parts."""

from __future__ import annotations

import pytest

from hooks.webhook_addresses import PrivateAddressError, PublicResolver, is_public
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
    ],
)
def test_address_of_this_machine_or_its_networks_is_not_public(
    address: str, *, public: bool
) -> None:
    assert is_public(address) is public


async def test_name_that_leads_to_this_machine_does_not_resolve() -> None:
    resolver = PublicResolver()
    with pytest.raises(PrivateAddressError):
        await resolver.resolve("localhost", 80)
    await resolver.close()
