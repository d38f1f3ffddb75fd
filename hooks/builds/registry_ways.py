"""The ways to a registry and to what it names: connections to addresses that were judged.

A name is resolved once, and the judged address is the one that is connected to.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ipaddress import ip_address

from hooks.builds.addresses import AddressInfo, LookUp, is_own
from hooks.builds.allowlist import is_name, may_be
from hooks.builds.wire import Reach


class Ways:
    """The connections to a registry, and to what it names, to addresses that were judged."""

    def __init__(self, registry: tuple[str, int] | None, reach: Reach, look_up: LookUp) -> None:
        self._registry = registry
        self._reach = reach
        self._look_up = look_up
        self._is_at: tuple[str, int] | None = None
        self.named_reach: Reach = "public"
        """How far what it names may lie: as far as it does itself, and never on this machine."""

    def connect(self, host: str, port: int, timeout_s: float | None) -> socket.socket:
        """Connect to a host at an address that it may have.

        Raises:
            OSError: It has none, or does not answer.
        """
        host = host.lower().removesuffix(".")
        is_registry = (host, port) == self._registry
        problem = OSError("no address that it may have")
        for info in self._look_up(host, port):
            if self._may_connect(info) if is_registry else self._may_be_led_to(host, info):
                try:
                    connection = _connected(info, timeout_s)
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


def _connected(info: AddressInfo, timeout_s: float | None) -> socket.socket:
    family, kind, protocol, _, address = info
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(timeout_s)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


class HttpHandler(urllib.request.HTTPHandler):
    """Opens `http://` URLs by these ways."""

    def __init__(self, ways: Ways) -> None:
        super().__init__()
        self._ways = ways

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        ways = self._ways

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = ways.connect(self.host, self.port, self.timeout)

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
            def connect(self) -> None:
                plain = ways.connect(self.host, self.port, self.timeout)
                self.sock = tls.wrap_socket(plain, server_hostname=self.host)

        return self.do_open(Connection, req, context=tls)
