"""Requests to git and the API: how many, how long they took, and how much they moved.

A route is the API's own template (`/v1/sites/{site}`) and never a path as it was asked for; other
methods than the usual ones are one.
"""

from __future__ import annotations

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Histogram

from gitd.log import Note

# From what is answered from memory to pushes and streams, which take as long as what they follow.
BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
GIT_ROUTES = {
    f"/{service}": f"/{{site}}.git/{service}"
    for service in ("info/refs", "git-upload-pack", "git-receive-pack")
}
OTHER = "other"
GONE = 499  # nobody was there any more to be answered


class RequestMetrics:
    """The metrics of all requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "gitd_http_requests",
            "Requests to git and the API that have ended, by the class of their status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "gitd_http_request_duration_seconds",
            "How long they took; those that follow something take as long as that.",
            ["route", "method"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._received = Counter(
            "gitd_http_received_bytes",
            "Bytes of the bodies of requests, as they came.",
            ["route"],
            registry=registry,
        )
        self._sent = Counter(
            "gitd_http_sent_bytes",
            "Bytes of answers, as they went out.",
            ["route"],
            registry=registry,
        )

    def of(self, route: str) -> Note:
        """What takes in the requests of a route."""
        ended: dict[tuple[str, str], Counter] = {}
        seconds: dict[str, Histogram] = {}
        received, sent = self._received.labels(route), self._sent.labels(route)

        def note(
            request: web.Request, response: web.StreamResponse | None, status: int, took_s: float
        ) -> None:
            method = request.method if request.method in METHODS else OTHER
            kind = _class_of(status)
            if (method, kind) not in ended:
                ended[method, kind] = self._ended.labels(route, method, kind)
                seconds[method] = self._seconds.labels(route, method)
            ended[method, kind].inc()
            seconds[method].observe(took_s)
            received.inc(request.content.total_bytes)
            sent.inc(_size_of(request, response))

        return note

    def of_git(self) -> Note:
        """What takes in the requests to repositories, and to whatever else has no route."""
        notes = {suffix: self.of(route) for suffix, route in GIT_ROUTES.items()}
        rest = self.of("/{path}")

        def note(
            request: web.Request, response: web.StreamResponse | None, status: int, took_s: float
        ) -> None:
            found = (each for suffix, each in notes.items() if request.path.endswith(suffix))
            next(found, rest)(request, response, status, took_s)

        return note


def _class_of(status: int) -> str:
    return "gone" if status in (0, GONE) else f"{status // 100}xx"


def _size_of(request: web.Request, response: web.StreamResponse | None) -> int:
    """What was sent, or will be at once: a whole answer is not on its way yet."""
    if response is None or response.prepared:
        return request.writer.output_size
    return 0 if request.method == hdrs.METH_HEAD else response.content_length or 0
