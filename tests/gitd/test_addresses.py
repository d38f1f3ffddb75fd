"""Who the client is, behind proxies: contract §2 "Transport"."""

from __future__ import annotations

import pytest

from gitd.addresses import TrustedProxies


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "1.2.3.4", "9.9.9.9", "1.2.3.4"),
        (["10.0.0.0/8"], "1.2.3.4", "9.9.9.9", "1.2.3.4"),
        (["10.0.0.0/8"], "10.0.0.1", None, "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "9.9.9.9", "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", "6.6.6.6, 9.9.9.9", "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2", "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (["127.0.0.1"], "127.0.0.1", "2001:db8::1", "2001:db8::1"),
        (["127.0.0.1"], "127.0.0.1", "nonsense", "127.0.0.1"),
        (["127.0.0.1"], None, "9.9.9.9", None),
        (["127.0.0.1"], "::ffff:127.0.0.1", "9.9.9.9", "9.9.9.9"),
    ],
)
def test_only_trusted_proxies_are_believed(trusted, peer, forwarded, client) -> None:
    assert TrustedProxies(trusted).client_ip(peer, forwarded) == client
