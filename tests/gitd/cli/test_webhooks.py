"""mf webhooks: what is asked for, and that a secret is printed once."""

from __future__ import annotations

import pytest

from gitd.cli.webhooks import EVENTS
from storage.model import EventType

WEBHOOK = {"id": "whe_01", "url": "https://example.com/", "secret": "whsec_x"}


def test_secret_of_a_made_webhook_is_all_of_the_output(mf, peer) -> None:
    peer.on("POST", "/v1/webhooks", peer.one(WEBHOOK, 201))
    asked = ("--event", "site.deployed", "--event", "job.failed", "--site", "acme-store")
    ran = mf("webhooks", "create", "https://example.com/", *asked)
    assert (ran.code, ran.out) == (0, "whsec_x\n")
    assert peer.seen[0].body == {
        "url": "https://example.com/",
        "events": ["site.deployed", "job.failed"],
        "site_id": "acme-store",
    }
    mf("webhooks", "create", "https://example.com/")
    assert peer.seen[1].body == {"url": "https://example.com/"}


def test_secret_is_rolled(mf, peer) -> None:
    peer.on("POST", "/v1/webhooks/whe_01/roll", peer.one(WEBHOOK))
    assert mf("webhooks", "roll", "whe_01").out == "whsec_x\n"


def test_secret_that_was_lost_is_a_failure_with_what_to_do(mf, peer) -> None:
    peer.on("POST", "/v1/webhooks", peer.broken(), peer.one(WEBHOOK | {"secret": None}, 201))
    ran = mf("webhooks", "create", "https://example.com/")
    assert (ran.code, ran.out) == (1, "")
    assert "mf webhooks roll whe_01" in ran.err


def test_webhook_is_changed(mf, peer) -> None:
    peer.on("PATCH", "/v1/webhooks/whe_01", peer.one(WEBHOOK))
    assert mf("webhooks", "set", "whe_01", "--disabled").code == 0
    mf("webhooks", "set", "whe_01", "--url", "https://e.com", "--event", "job.failed", "--enabled")
    assert [seen.body for seen in peer.seen] == [
        {"enabled": False},
        {"url": "https://e.com", "events": ["job.failed"], "enabled": True},
    ]


def test_delivery_is_sent_again(mf, peer) -> None:
    path = "/v1/webhooks/whe_01/deliveries/whd_01/redeliver"
    peer.on("POST", path, peer.one({"id": "whd_02"}, 201))
    assert mf("webhooks", "redeliver", "whe_01", "whd_01").out == "whd_02 is on its way\n"


@pytest.mark.parametrize(
    "arguments", [("create",), ("create", "https://e.com", "--event", "x"), ("set", "whe_01")]
)
def test_wrong_use_asks_nothing_of_the_server(mf, peer, arguments) -> None:
    assert mf("webhooks", *arguments).code == 2
    assert peer.seen == []


def test_events_are_the_servers() -> None:
    assert set(EVENTS) == {event.value for event in EventType}
