"""The ways to a registry and to what it names: connections to addresses that were judged.

A name is resolved once, and the judged address is the one that is connected to. All of them
together have one end, however slowly the other side speaks.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ipaddress import ip_address
from typing import Any

from hooks.builds.egress.addresses import AddressInfo, LookUp, is_own
from hooks.builds.egress.allowlist import is_name, may_be
from hooks.builds.wire import Reach

SILENCE_S_MAX = 5.0  # until a side counts as deaf or dumb


class Ways:
    """The connections to a registry, and to what it names, to addresses that were judged.

    `lasts_s`: how long from now on they may last, all of them together.
    """

    def __init__(
        self, registry: tuple[str, int] | None, reach: Reach, look_up: LookUp, lasts_s: float
    ) -> None:
        self._ends_at = time.monotonic() + lasts_s
        self._registry = registry
        self._reach = reach
        self._look_up = look_up
        self._is_at: tuple[str, int] | None = None
        self.named_reach: Reach = "public"
        """How far what it names may lie: as far as it does itself, and never on this machine."""

    def wait_s(self) -> float:
        """Return how long the next step may be waited for.

        Raises:
            TimeoutError: Not at all: the time of all is over.
        """
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the time of all is over")
        return min(left_s, SILENCE_S_MAX)

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a host at an address that it may have.

        Raises:
            OSError: It has none, or does not answer in time.
        """
        self.wait_s()  # a look-up has an end of its own; none begins behind this one
        host = host.lower().removesuffix(".")
        is_registry = (host, port) == self._registry
        problem = OSError("no address that it may have")
        for info in self._look_up(host, port):
            if self._may_connect(info) if is_registry else self._may_be_led_to(host, info):
                try:
                    connection = _connected(info, self.wait_s)
                except OSError as error:
                    problem = error
                    continue
                if is_registry:
                    self._note(info)
                return connection
        raise problem

    def _may_connect(self, info: AddressInfo) -> bool:
        return may_be(ip_address(info[4][0]), self._reach, is_own=is_own(info[4]))

    def _may_be_led_to(self, host: str, info: AddressInfo) -> bool:
        if info[4][:2] == self._is_at:
            return True  # the registry under another name
        own = is_own(info[4])
        return is_name(host) and may_be(ip_address(info[4][0]), self.named_reach, is_own=own)

    def _note(self, info: AddressInfo) -> None:
        self._is_at = info[4][:2]
        is_far = may_be(ip_address(info[4][0]), "public", is_own=is_own(info[4]))
        self.named_reach = "public" if is_far else "private"


def _connected(info: AddressInfo, wait_s: Callable[[], float]) -> socket.socket:
    family, kind, protocol, _, address = info
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(wait_s())
        connection.connect(address)
        connection.settimeout(wait_s())  # for what is sent, or agreed on by TLS
    except BaseException:
        connection.close()
        raise
    return connection


class _InTime(io.RawIOBase):
    """What a connection brings, as long as it may be waited for: each piece, and all."""

    def __init__(self, connection: socket.socket, wait_s: Callable[[], float]) -> None:
        self._connection = connection
        self._arriving = connection.makefile("rb", 0)
        self._wait_s = wait_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._connection.settimeout(self._wait_s())
        return self._arriving.readinto(buffer)

    def close(self) -> None:
        self._arriving.close()
        super().close()


def _answers_in_time(wait_s: Callable[[], float]) -> type[HTTPResponse]:
    class Answer(HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
            super().__init__(sock, *arguments, **named)
            self.fp.close()
            self.fp = io.BufferedReader(_InTime(sock, wait_s))

    return Answer


class HttpHandler(urllib.request.HTTPHandler):
    """Opens `http://` URLs by these ways."""

    def __init__(self, ways: Ways) -> None:
        super().__init__()
        self._ways = ways

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        ways = self._ways

        class Connection(HTTPConnection):
            response_class = _answers_in_time(ways.wait_s)

            def connect(self) -> None:
                self.sock = ways.connect(self.host, self.port)

        return self.do_open(Connection, req)


class HttpsHandler(urllib.request.HTTPSHandler):
    """Opens `https://` URLs by these ways."""

    def __init__(self, ways: Ways, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._ways = ways
        self._tls = context

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        ways, tls = self._ways, self._tls

        class Connection(HTTPSConnection):
            response_class = _answers_in_time(ways.wait_s)

            def connect(self) -> None:
                plain = ways.connect(self.host, self.port)
                self.sock = tls.wrap_socket(plain, server_hostname=self.host)

        return self.do_open(Connection, req, context=tls)
