"""The client: one server's API over HTTP, and its refusals as exits.

Every request may be repeated: reads, deletes and replacements by their nature, creating ones by
their idempotency key. So a connection that breaks is tried again, a few times and shortly.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, urlsplit

import click

from gitd.cli.answers import Fields, Page, as_fields, at, text_at
from gitd.cli.exits import RefusedError, StrangeAnswerError, UnreachableError

if TYPE_CHECKING:
    # httpx takes 0.1 s to import: `mf --help` and usage errors do without.
    import httpx

VERSION = "2026-06-23"  # contract section 2, "Version pin"
PAGE_ITEMS_MAX = 100
CONNECT_S_MAX = 5.0
ANSWER_S_MAX = 30.0
RETRY_WAITS_S = (0.1, 0.4, 1.0)
RETRY_AFTER_S_MAX = 15.0
WAIT_SAID_S = 2.0
NO_TLS = "WRONG_VERSION_NUMBER"  # OpenSSL's words for an answer that is no TLS
BUSY = (429, 502, 503, 504)
SAID_CHARS_MAX = 200
REFUSAL_TYPES = {404: "not_found", 409: "conflict"}  # contract section 2, "Errors"
Query = Mapping[str, str | int]
NO_QUERY: Query = {}


def endpoint(*names: str) -> str:
    """The path below /v1 of a resource, its names quoted.

    Raises:
        click.UsageError: A name is empty or would climb out of the path.
    """
    for name in names:
        if name in ("", ".", ".."):
            raise click.UsageError(f"{name!r} is no name.")
    return "/v1/" + "/".join(quote(name, safe="", errors="surrogateescape") for name in names)


def server_url(url: str) -> str:
    """The address of a server, checked, without a slash at its end.

    Raises:
        click.UsageError: It is none, or it carries a secret.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # a bad one raises
    except ValueError:
        is_address = False
    if not is_address or "?" in url or "#" in url or not url.isascii() or not url.isprintable():
        raise click.UsageError(
            f"{url!r} is no server's address: set FORGE_URL (or --url) to something such as "
            "http://127.0.0.1:8080."
        )
    if parts.username is not None or parts.password is not None:
        raise click.UsageError("The address carries a user name: the key belongs in FORGE_TOKEN.")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Say whether the server is on this machine, so that no network sees what is sent."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Api:
    """A server's API. Paths come from `endpoint`. Not to be shared between threads."""

    def __init__(
        self, url: str, token: str, on_wait: Callable[[float], None] = lambda _: None
    ) -> None:
        """`on_wait` hears for how many seconds nothing is sent, since the server asks for it."""
        import httpx

        self.url = url
        self._on_wait = on_wait
        self._request_id = ""
        # Certificates take 40 ms to load. Without TLS none are needed, and an empty context trusts
        # nobody, so that nothing is lost if TLS comes in by another way (a proxy's).
        is_plain = urlsplit(url).scheme == "http"
        self._http = httpx.Client(
            base_url=url,
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Forge-Version": VERSION,
                "User-Agent": "mf",
            },
            timeout=httpx.Timeout(ANSWER_S_MAX, connect=CONNECT_S_MAX),
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else True,
            # No proxy leads back to this machine.
            trust_env=not (is_plain and is_loopback(url)),
        )

    def close(self) -> None:
        self._http.close()

    def refusal(self, status: int, code: str, message: str) -> RefusedError:
        """What the server would say, by its last answer, to what was not worth asking then."""
        error = {
            "type": REFUSAL_TYPES[status],
            "code": code,
            "message": message,
            "doc_url": f"{self.url}/errors/{code}",
        }
        envelope = {"error": error, "request_id": self._request_id}
        return RefusedError(envelope, error, status=status)

    # -- requests --------------------------------------------------------------------------------

    def get(self, path: str, query: Query = NO_QUERY) -> object:
        """Return the answer's `data`.

        Raises:
            RefusedError: The server said no.
            UnreachableError: No answer of this API's came.
        """
        return self._data(self._send("GET", path, query=query))

    def post(
        self, path: str, body: Fields | None = None, *, idempotency_key: str | None = None
    ) -> object:
        """Return the answer's `data`. Safe to repeat: with a key, or for what happens once."""
        return self._data(self._send("POST", path, body=body, idempotency_key=idempotency_key))

    def put(self, path: str, body: Fields, query: Query = NO_QUERY) -> object:
        return self._data(self._send("PUT", path, query=query, body=body))

    def patch(self, path: str, body: Fields, query: Query = NO_QUERY) -> object:
        return self._data(self._send("PATCH", path, query=query, body=body))

    def delete(self, path: str, query: Query = NO_QUERY) -> object:
        return self._data(self._send("DELETE", path, query=query))

    def content(self, path: str, query: Query = NO_QUERY) -> bytes:
        """Return the answer's bytes as they are: they may be signed."""
        response = self._send("GET", path, query=query)
        if not response.is_success:
            raise self._refusal(response)
        return response.content

    def download(self, path: str, out: BinaryIO) -> int:
        """Write the answer's bytes to `out` as they come; return how many.

        Tried again from the beginning when the connection breaks, where `out` can go back to it.

        Raises:
            RefusedError: The server said no.
            UnreachableError: The answer did not come whole.
        """
        import httpx

        for pause_s in (*RETRY_WAITS_S, None):
            size_bytes = 0
            try:
                with self.reading(path, headers={}, silence_s_max=ANSWER_S_MAX) as response:
                    for chunk in response.iter_raw():
                        out.write(chunk)
                        size_bytes += len(chunk)
            except httpx.RequestError as error:
                if pause_s is None or (size_bytes and not out.seekable()):
                    raise self.unreachable(error) from error
                time.sleep(pause_s)
                if size_bytes:
                    out.seek(0)
                    out.truncate()
            else:
                return size_bytes
        raise AssertionError("the last try returns or raises")

    def pages(self, path: str, query: Query = NO_QUERY) -> Iterator[Page]:
        """Yield a list's pages, as many as there are."""
        cursor, seen = None, set[str]()
        while True:
            asked = {"limit": PAGE_ITEMS_MAX, **query} | ({"cursor": cursor} if cursor else {})
            answer = self._envelope(self._send("GET", path, query=asked))
            items = answer.get("data")
            if not isinstance(items, list):
                raise StrangeAnswerError("The server's answer is no list.")
            following = at(answer, "pagination.next_cursor")
            cursor = following if isinstance(following, str) and following else None
            yield Page([as_fields(item, "object") for item in items], cursor is not None)
            if cursor is None:
                return
            if cursor in seen:
                raise StrangeAnswerError("The server's pages go in a circle.")
            seen.add(cursor)

    def some(self, path: str, limit: int | None, query: Query = NO_QUERY) -> Page:
        """Return the first `limit` items of a list, or all of them without a limit."""
        items: list[Fields] = []
        page_items = min(limit or PAGE_ITEMS_MAX, PAGE_ITEMS_MAX)
        for page in self.pages(path, {**query, "limit": page_items}):
            items += page.items
            if limit is not None and len(items) >= limit:
                return Page(items[:limit], page.has_more or len(items) > limit)
        return Page(items, has_more=False)

    @contextmanager
    def reading(
        self,
        path: str,
        *,
        headers: Mapping[str, str],
        silence_s_max: float,
        query: Query = NO_QUERY,
    ) -> Iterator[httpx.Response]:
        """Open an answer that goes on, without tries of its own.

        Raises:
            httpx.RequestError: No connection, or it broke, here or while it is read.
            RefusedError: The server said no.
            StrangeAnswerError: What answers is not this API.
        """
        import httpx

        timeout = httpx.Timeout(ANSWER_S_MAX, connect=CONNECT_S_MAX, read=silence_s_max)
        with self._http.stream(
            "GET", path, params=dict(query) or None, headers=headers, timeout=timeout
        ) as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            yield response

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Query = NO_QUERY,
        body: Fields | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        import httpx

        assert "?" not in path, "httpx drops a path's own query: it goes into `query`"
        headers, content = {}, None
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        was_lost = False
        for pause_s in (*RETRY_WAITS_S, None):
            try:
                response = self._http.request(
                    method, path, params=dict(query), content=content, headers=headers
                )
            except httpx.RequestError as error:
                was_lost = True
                if pause_s is None:
                    raise self.unreachable(error) from error
                time.sleep(pause_s)
                continue
            if was_lost and method == "DELETE" and response.status_code == httpx.codes.NOT_FOUND:
                # The first try arrived; only its answer was lost.
                return httpx.Response(httpx.codes.NO_CONTENT)
            if response.status_code not in BUSY or pause_s is None:
                return response
            asked_s = retry_after_s(response, otherwise=pause_s)
            if asked_s > RETRY_AFTER_S_MAX:
                return response
            if asked_s >= WAIT_SAID_S:
                self._on_wait(asked_s)
            time.sleep(asked_s)
        raise AssertionError("the last try returns or raises")

    # -- answers ---------------------------------------------------------------------------------

    def _data(self, response: httpx.Response) -> object:
        if response.status_code == 204:
            return None
        return self._envelope(response).get("data")

    def _envelope(self, response: httpx.Response) -> Fields:
        if not response.is_success:
            raise self._refusal(response)
        envelope = _json_object(response)
        if envelope is None or "data" not in envelope:
            raise self._strange(response)
        self._request_id = text_at(envelope, "request_id")
        return envelope

    def _refusal(self, response: httpx.Response) -> RefusedError | UnreachableError:
        envelope = _json_object(response)
        error = envelope.get("error") if envelope else None
        if envelope is None or not isinstance(error, dict):
            return self._strange(response)
        return RefusedError(envelope, error, status=response.status_code)

    def _strange(self, response: httpx.Response) -> StrangeAnswerError:
        if response.is_redirect:
            return StrangeAnswerError(
                f"{self.url} sends on to {response.headers.get('Location', 'nowhere')}.",
                "The key is not sent there by itself: set FORGE_URL to the right address.",
            )
        kind = response.headers.get("Content-Type", "no type")
        return StrangeAnswerError(
            f"{self.url} answers {response.status_code} with {kind[:SAID_CHARS_MAX]}, "
            "which is not what the deployments API says.",
            "Check FORGE_URL (or --url), and what stands between here and the server.",
        )

    def unreachable(self, error: Exception) -> UnreachableError:
        why = str(error)[:SAID_CHARS_MAX] or type(error).__name__
        advice = "Check FORGE_URL (or --url), and that the server runs."
        if NO_TLS in why:
            advice = f"It speaks no TLS there: is it http:{self.url.removeprefix('https:')}?"
        return UnreachableError(f"{self.url} cannot be reached: {why}", advice)


def retry_after_s(response: httpx.Response, *, otherwise: float) -> float:
    """How long a busy server asks to be left alone; dates are not read."""
    asked = response.headers.get("Retry-After", "")
    if asked.isascii() and asked.isdigit():
        return float(asked)
    return otherwise * random.uniform(0.8, 1.2)  # noqa: S311 - spreads clients, keeps no secret


def _json_object(response: httpx.Response) -> Fields | None:
    try:
        value = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
