"""Listening: what is refused, with which advice, and what is warned of."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gitd.config import Config, ServerConfig, SitesConfig
from gitd.errors import StartError
from gitd.listening import advice, bound_socket, expect_alone, front_socket

# What the service manager hands over is descriptor 3.
INHERITS = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
from gitd.config import Config, ServerConfig
from gitd.listening import front_socket
front_socket(Config(server=ServerConfig(listen=sys.argv[2])))
"""


@pytest.fixture
def taken() -> socket.socket:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def address(of: socket.socket) -> str:
    return "{}:{}".format(*of.getsockname())


def test_taken_address_is_another_programs(taken) -> None:
    with pytest.raises(StartError, match="Stop what has that address, or choose another with -x"):
        bound_socket(address(taken), "server.listen", "-x")


def test_address_that_is_guarded_is_had_beside_its_guard_and_by_one_alone() -> None:
    with socket.socket() as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        guard.bind(("127.0.0.1", 0))
        with bound_socket(address(guard), "server.listen", "-x", is_guarded=True) as first:
            first.listen()
            with pytest.raises(StartError, match="Stop what has that address"):
                bound_socket(address(guard), "server.listen", "-x", is_guarded=True)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as asking:
            asking.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=IPV6)])
def test_of_two_that_begin_at_the_same_moment_the_later_one_is_refused(host: str) -> None:
    """Each has asked whether anybody listens before the other did."""
    with bound_socket(f"{host}:0", "server.listen", "-x", is_guarded=True) as first:
        where = f"{host}:{first.getsockname()[1]}"
        config = Config(server=ServerConfig(listen=where))
        with bound_socket(where, "server.listen", "-x", is_guarded=True) as second:
            first.listen()
            expect_alone(first, config)
            second.listen()
            with pytest.raises(StartError, match=r"Stop what .* with --listen"):
                expect_alone(second, config)
        expect_alone(first, config)


@pytest.mark.parametrize("is_guarded", [False, True])
def test_address_of_another_machine_is_no_other_programs(*, is_guarded: bool) -> None:
    """Whether anybody answers there or not. Source of the address: RFC 5737."""
    with pytest.raises(StartError, match="Choose an address of this machine with -x"):
        bound_socket("198.51.100.1:8080", "server.listen", "-x", is_guarded=is_guarded)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "those below 1024 are root's"),
        (errno.EADDRINUSE, "Stop what has that address"),
        (errno.EADDRNOTAVAIL, "address of this machine"),
    ],
)
def test_advice_is_about_what_was_wrong(number: int, said: str) -> None:
    assert said in advice(OSError(number, "no"), "--listen")


@pytest.mark.parametrize("sites", ["127.0.0.1:8099", "0.0.0.0:8099", "[::]:8099"])
def test_git_and_sites_on_one_port_are_refused(sites: str) -> None:
    config = Config(ServerConfig(listen="127.0.0.1:8099"), SitesConfig(listen=sites))
    with pytest.raises(StartError, match=r"cannot both listen.*--listen or --sites"):
        front_socket(config)


def warnings_of(server: ServerConfig, sites: SitesConfig) -> set[str]:
    with capture_logs() as logs:
        front_socket(Config(server, sites)).close()
    return {entry["event"] for entry in logs}


def test_links_that_lead_nowhere_are_warned_of() -> None:
    everywhere, beyond = ServerConfig(listen="0.0.0.0:0"), SitesConfig(listen="0.0.0.0:1")
    assert warnings_of(everywhere, beyond) == {
        "plain_http_beyond_this_machine",
        "links_name_no_address",
        "sites_have_local_names",
    }
    named = ServerConfig(everywhere.listen, "https://forge.example.com", ("127.0.0.1/32",))
    assert warnings_of(named, SitesConfig("0.0.0.0:1", "example.com")) == set()
    assert warnings_of(ServerConfig(listen="127.0.0.1:0"), SitesConfig()) == set()


def test_socket_that_is_not_where_the_setting_says_is_warned_of(taken) -> None:
    def said(setting: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", INHERITS, str(taken.fileno()), setting],
            pass_fds=[taken.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "listens_elsewhere_than_set" not in said(address(taken))
    elsewhere = said("127.0.0.1:1")
    assert "listens_elsewhere_than_set" in elsewhere
    assert address(taken) in elsewhere
