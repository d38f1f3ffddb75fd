"""Where the files of a registry lie, when that is not the registry's own host: it is asked.

That is a few bounded requests, once. A registry that does not answer costs nothing but what it
would have said: the operator can allow the hosts of its files.

A registry's pages are written by many, and a registry may be taken over. So of what it names only
names count, no addresses; they may lie no nearer than the registry does itself, and never on this
machine. Control, which asks outside of any sandbox, keeps to that itself (`Ways`), by HTTP alone.
Nor may they hold it up: all that a registry is asked has one end, and one that is not understood
counts as silent.

Source: PEP 503 and PEP 691, the page of a project; Composer's "Repositories", `packages.json`,
`metadata-url` and `dist`.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from itertools import islice
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from hooks.builds.egress.addresses import LookUp, look_up
from hooks.builds.egress.allowlist import is_name
from hooks.builds.egress.package_clients import PORTS, without_secrets
from hooks.builds.egress.page_links import links_of
from hooks.builds.egress.registry_ways import HttpHandler, HttpsHandler, Ways
from hooks.builds.wire import Reach

ANSWER_BYTES_MAX = 4 << 20
ASKED_S_MAX = 15.0  # all requests to one registry, and where they lead
HOSTS_MAX = 8
FILES_MAX = 10_000  # that are looked at
URL_CHARS_MAX = 8192  # what web servers commonly take
PROJECT = "pip"  # which an index is likely to have
PACKAGE = "composer/semver"  # likewise, for a repository that does not list what it has
_SIMPLE = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"

# Brackets in brackets without end are more than the reader of JSON bears.
_ERRORS = (OSError, ValueError, HTTPException, msgspec.MsgspecError, RecursionError)

HostPort = tuple[str, int]


@dataclass(frozen=True, slots=True)
class FileHosts:
    """The hosts of a registry's files, and how far their addresses may lie."""

    found: tuple[HostPort, ...] = ()
    reach: Reach = "public"


class SilentRegistryError(Exception):
    """A registry does not answer, or not as one. The message holds nothing that it said."""


def of_index(
    url: str,
    ca_bundle: str | None,
    reach: Reach,
    *,
    look_up: LookUp = look_up,
    asked_s: float = ASKED_S_MAX,
) -> FileHosts:
    """Ask a Python index, given with its password, by its page of one project.

    `reach`: how far the index's own addresses may lie. `asked_s`: how long all of it may take, but
    for a look-up of a name that has begun.

    Raises:
        SilentRegistryError: It does not answer as an index.
    """
    with _mapped_errors():
        asked = _Asked(url, ca_bundle, Ways(_host_port(url), reach, look_up, asked_s))
        page, at = asked.get(f"{asked.base}/{PROJECT}/", accept=_SIMPLE)
        if page.lstrip().startswith("{"):
            named = msgspec.json.decode(page, type=_Project).files
            return asked.hosts(_joined(at, (each.url for each in named)))
        return asked.hosts(_joined(at, links_of(page)))


def of_composer(
    url: str,
    ca_bundle: str | None,
    reach: Reach,
    *,
    look_up: LookUp = look_up,
    asked_s: float = ASKED_S_MAX,
) -> FileHosts:
    """Ask a Composer repository, given with its password, by what one package is made of.

    `reach`: how far the repository's own addresses may lie. `asked_s`: how long all of it may take,
    but for a look-up of a name that has begun.

    Raises:
        SilentRegistryError: It does not answer as a repository.
    """
    with _mapped_errors():
        asked = _Asked(url, ca_bundle, Ways(_host_port(url), reach, look_up, asked_s))
        text, at = asked.get(f"{asked.base}/packages.json")
        root = msgspec.json.decode(text, type=_Root)
        packages = root.packages
        if root.metadata_url is not None:
            name = next(iter(root.available_packages), PACKAGE)
            text, at = asked.get(urljoin(at, root.metadata_url.replace("%package%", name)))
            packages = msgspec.json.decode(text, type=_Root).packages
        files = list(_joined(at, _dist_urls(packages)))
        for file in files[:1]:  # its own host may send clients on to another one
            with contextlib.suppress(*_ERRORS):
                asked.get(file, method="HEAD")
        return asked.hosts(files)


class _File(msgspec.Struct):
    url: str


class _Project(msgspec.Struct):
    files: list[_File]


class _Root(msgspec.Struct):
    packages: Any = None  # by name, each a list of versions, or versions by name
    metadata_url: str | None = msgspec.field(default=None, name="metadata-url")
    available_packages: list[str] = msgspec.field(default_factory=list, name="available-packages")


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise SilentRegistryError(type(error).__name__) from None


class _Asked(urllib.request.HTTPRedirectHandler):
    """A registry that is being asked: directly, with its password, and no host but it gets that."""

    def __init__(self, url: str, ca_bundle: str | None, ways: Ways) -> None:
        self.base = (without_secrets(url) or "").rstrip("/")
        self._redirects: list[str] = []
        self._ways = ways
        parts = urlsplit(url)
        self._origin = _origin(url)
        self._password = None
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._password = f"Basic {base64.b64encode(secret.encode()).decode()}"
        context = ssl.create_default_context(cafile=ca_bundle)
        # Not `build_opener`, which adds ways of its own: to FTP servers, files and whatever comes.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            HttpHandler(ways),
            HttpsHandler(ways, context),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            self,
        ):
            self._opener.add_handler(handler)

    def hosts(self, files: Iterable[str]) -> FileHosts:
        """Return the hosts of these URLs, and those that it has sent on to."""
        found = [_host_port(url) for url in (*self._redirects, *files)]
        names = [each for each in found if each is not None and is_name(each[0])]
        return FileHosts(tuple(dict.fromkeys(names))[:HOSTS_MAX], self._ways.named_reach)

    def get(self, url: str, *, method: str = "GET", accept: str = "*/*") -> tuple[str, str]:
        """Return the answer's text, and the URL that it came from in the end."""
        _check(url)
        request = urllib.request.Request(url, method=method, headers={"Accept": accept})  # noqa: S310 - checked above
        if self._password is not None and _origin(url) == self._origin:
            request.add_unredirected_header("Authorization", self._password)
        with self._opener.open(request) as answer:
            text = answer.read(ANSWER_BYTES_MAX).decode("utf-8", "replace")
            return text, str(answer.geturl())

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        fp.close()  # what comes with a redirect, of any length, would be read first
        _check(newurl)
        self._redirects.append(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(url: str) -> None:
    if without_secrets(url) is None or len(url) > URL_CHARS_MAX:
        raise ValueError("no URL of a web server")


def _origin(url: str) -> tuple[str, HostPort | None]:
    """Return what a password is for: the same host by plain HTTP is another."""
    return urlsplit(url.strip()).scheme, _host_port(url)


def _joined(at: str, urls: Iterable[str]) -> Iterator[str]:
    """Give the URLs that these are on a page, without those that are none."""
    for url in islice(urls, FILES_MAX):
        with contextlib.suppress(ValueError):
            joined = urljoin(at, url)
            _check(joined)
            yield joined


def _dist_urls(packages: Any) -> Iterator[str]:
    for versions in packages.values() if isinstance(packages, dict) else ():
        listed = list(versions.values()) if isinstance(versions, dict) else versions
        for version in listed if isinstance(listed, list) else ():
            dist = version.get("dist") if isinstance(version, dict) else None
            if isinstance(dist, dict) and isinstance(dist.get("url"), str):
                yield dist["url"]


def _host_port(url: str) -> HostPort | None:
    clean = without_secrets(url)
    if clean is None:
        return None
    parts = urlsplit(clean)
    return str(parts.hostname).removesuffix("."), parts.port or PORTS[parts.scheme]
