from __future__ import annotations

import pytest

from hooks.deploys.web.router import Router, host_name


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("acme.localhost", "acme.localhost"),
        ("ACME.Localhost", "acme.localhost"),
        ("acme.localhost:8081", "acme.localhost"),
        ("acme.localhost.", "acme.localhost"),
        ("acme.localhost.:80", "acme.localhost"),
        ("acme.localhost:", "acme.localhost"),
        ("a", "a"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("", None),
        (":80", None),
        (".", None),
        ("acme..", None),
        ("-acme", None),
        ("[::1]:80", None),
        ("acme.localhost:http", None),
        ("acme.localhost:123456", None),
        ("acme localhost", None),
        ("acme.localhost/x", None),
        ("a@acme.localhost", None),
        ("acmé.localhost", None),
        ("\u212aelvin.localhost", None),  # the sign of the unit, whose small letter is a k
        ("a" * 300, None),
        ("acme.localhost\n", None),
    ],
)
def test_a_host_value_gives_a_host_name(host, name):
    assert host_name(host) == name


def test_an_environment_has_the_names_it_was_given_last():
    router: Router[str] = Router()
    router.put("env_1", ["one.localhost", "uno.localhost"], "first")
    router.put("env_1", ["one.localhost", "eins.localhost"], "first")
    assert router.find("uno.localhost") is None
    assert router.find("EINS.localhost:80") == "first"
    router.remove("env_1")
    assert router.find("one.localhost") is None


def test_a_name_that_moved_stays_when_its_former_owner_goes():
    router: Router[str] = Router()
    router.put("env_1", ["shop.localhost"], "first")
    router.put("env_2", ["shop.localhost"], "second")
    router.remove("env_1")
    assert router.find("shop.localhost") == "second"
