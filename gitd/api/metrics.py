"""`GET /metrics`: what a server says of itself to Prometheus, for keys that may see it.

It stands beside the API, where scrapers look for it, and goes by the API's keys and errors. Its
requests are not counted against the key's rate limit: reading again costs nothing (`Exporter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_network

from aiohttp import hdrs, web

from gitd.addresses import is_within, parse_address
from gitd.api.dispatch import Gate
from gitd.metrics.exporter import Exporter

SCOPE = "observability:read"
PATH = "/metrics"


class MetricsPage:
    """The page. `refuse` makes the answer of an error; `networks` read it without a key."""

    def __init__(
        self,
        exporter: Exporter,
        gate: Gate,
        refuse: Callable[[web.Request, Exception], web.Response],
        *,
        networks: Iterable[str],
    ) -> None:
        self._exporter = exporter
        self._gate = gate
        self._refuse = refuse
        self._networks = tuple(ip_network(text) for text in networks)

    async def show(self, request: web.Request) -> web.Response:
        try:
            if hdrs.AUTHORIZATION in request.headers or not self._is_open_to(request):
                self._require(request)
            accept = ",".join(request.headers.getall(hdrs.ACCEPT, ()))
            exposition = await self._exporter.read(accept)
        except Exception as error:  # noqa: BLE001 - as the API's own ring: answered, and logged
            return self._refuse(request, error)
        return web.Response(
            body=exposition.data,
            headers={
                hdrs.CONTENT_TYPE: exposition.content_type,
                hdrs.CACHE_CONTROL: "no-store",
                "X-Content-Type-Options": "nosniff",
            },
        )

    def _require(self, request: web.Request) -> None:
        """Raises AuthenticationError, AddressRefusedError, AccessDeniedError."""
        actor = self._gate.actor_of(request, self._gate.grant_of(request))
        actor.require(SCOPE)
        actor.require_unbound()

    def _is_open_to(self, request: web.Request) -> bool:
        address = parse_address(self._gate.proxies.client_of(request) or "")
        return address is not None and is_within(address, self._networks)
