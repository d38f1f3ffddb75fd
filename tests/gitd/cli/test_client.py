"""Addresses and paths: decided before any request."""

from __future__ import annotations

import click
import pytest

from gitd.cli.client import endpoint, is_loopback, server_url


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (("sites",), "/v1/sites"),
        (
            ("sites", "a b/c", "environments", "größe"),
            "/v1/sites/a%20b%2Fc/environments/gr%C3%B6%C3%9Fe",
        ),
        (("jobs", "x?y#z"), "/v1/jobs/x%3Fy%23z"),
        (("jobs", "%2e%2e"), "/v1/jobs/%252e%252e"),
        (("jobs", "\udcff"), "/v1/jobs/%FF"),
    ],
)
def test_names_in_paths_are_quoted(names: tuple[str, ...], path: str) -> None:
    assert endpoint(*names) == path


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_would_leave_the_path_are_refused(name: str) -> None:
    with pytest.raises(click.UsageError):
        endpoint("sites", name, "environments")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "https://forge.example/below/", "http://[::1]:80"]
)
def test_addresses_of_servers_are_taken(url: str) -> None:
    assert server_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "forge.example",
        "ftp://forge.example",
        "http://",
        "http://forge.example:port",
        "http://forge.example:99999",
        "http://[::1",
        "http://forge.example?x=1",
        "http://forge.example#x",
        "http://user:secret@forge.example",
        "http://token@forge.example",
        "http://forge.example/\n",
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        server_url(url)
    if "secret" in url:
        assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8080", True),
        ("http://localhost", True),
        ("http://acme.localhost:1", True),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("https://forge.example", False),
    ],
)
def test_this_machine_is_told_from_others(url: str, *, is_here: bool) -> None:
    assert is_loopback(url) == is_here
