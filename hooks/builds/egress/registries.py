"""The registries that builds may use: those of the machine's own package clients."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import structlog

from hooks.builds.egress import file_hosts
from hooks.builds.egress.file_hosts import FileHosts
from hooks.builds.egress.package_clients import (
    CLIENT_PATH,
    PORTS,
    Client,
    ClientError,
    Registry,
    ask_composer,
    ask_corepack,
    ask_npm,
    ask_python,
    ask_yarn,
)
from hooks.builds.wire import AllowedHost, Egress, Reach

log = structlog.get_logger(__name__)

REFRESH_S = 3600.0  # settings change, and so do the hosts of files
_CLIENTS: tuple[tuple[str, Callable[[Mapping[str, str], str], list[Client]]], ...] = (
    ("pip", ask_python),
    ("npm", ask_npm),
    ("yarn", ask_yarn),
    ("corepack", ask_corepack),
    ("composer", ask_composer),
)
_FILE_HOSTS: dict[str, Callable[[str, str | None, Reach], FileHosts]] = {
    "pip": file_hosts.of_index,
    "uv": file_hosts.of_index,
    "composer": file_hosts.of_composer,
}
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Registries:
    """What builds may use of this machine's set-up; the fields are those of `wire.Egress`."""

    allow: tuple[AllowedHost, ...] = ()
    ca_bundle: str | None = None
    home_files: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


class EgressRules:
    """What builds may reach, by the settings and by the machine's package clients.

    `limits`: the bounds, and what the operator allows. `with_registries`: the machine's too; its
    clients are asked when a build first needs to know, and in the background when the answer is
    older than `refresh_s`. Belongs to one event loop.
    """

    def __init__(
        self,
        limits: Egress,
        *,
        with_registries: bool,
        environ: Mapping[str, str],
        path: str = CLIENT_PATH,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._limits = limits
        self._path = path
        self._refresh_s = refresh_s
        self._with_registries = with_registries
        self._environ = environ
        self._known: Egress | None = None
        self._known_at = 0.0
        self._asking: asyncio.Task[Egress] | None = None

    async def current(self) -> Egress:
        """Return what was last heard; wait for it the first time."""
        is_old = asyncio.get_running_loop().time() - self._known_at > self._refresh_s
        if self._asking is None and (self._known is None or is_old):
            self._asking = asyncio.create_task(self._ask())
        if self._known is not None:
            return self._known
        assert self._asking is not None
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Egress:
        try:
            self._known = await asyncio.to_thread(self.read)
            self._known_at = asyncio.get_running_loop().time()
            return self._known
        finally:
            self._asking = None

    def read(self) -> Egress:
        """Ask now. Blocking: takes about a second."""
        if not self._with_registries:
            return msgspec.structs.replace(self._limits, ca_bundle=ca_bundle(self._environ, []))
        found = read(self._environ, path=self._path)
        targets = dict.fromkeys(f"{each.host}:{each.port}" for each in found.allow)
        log.info("egress_read", allowed=list(targets))
        return msgspec.structs.replace(
            self._limits,
            allow=(*self._limits.allow, *found.allow),
            ca_bundle=found.ca_bundle,
            home_files=dict(found.home_files),
            environ=dict(found.environ),
        )


def read(environ: Mapping[str, str], *, path: str = CLIENT_PATH) -> Registries:
    """Ask the clients in `path`, with `environ` as theirs. Blocking: takes about a second.

    A client that does not answer, or is not understood, is logged and left out.
    """
    with ThreadPoolExecutor(len(_CLIENTS)) as threads:
        asked = [threads.submit(_answer, name, ask, environ, path) for name, ask in _CLIENTS]
        clients = _without_bypasses([client for each in asked for client in each.result()])
        bundle = ca_bundle(environ, clients)
        allowed = threads.map(lambda client: list(_allowed(client, bundle)), clients)
        hosts = [host for found in allowed for host in found]
    files: dict[str, str] = {}
    variables: dict[str, str] = {}
    for client in clients:
        files |= client.home_files
        variables |= client.environ
    return Registries(tuple(dict.fromkeys(hosts)), bundle, files, variables)


def _answer(
    name: str,
    ask: Callable[[Mapping[str, str], str], list[Client]],
    environ: Mapping[str, str],
    path: str,
) -> list[Client]:
    try:
        clients = ask(environ, path)
    except ClientError as error:
        log.warning("package_client_unread", client=name, reason=str(error))
        return []
    except Exception as error:  # noqa: BLE001 - one riddle must not close builds to all registries
        # Its message may hold what the client said.
        log.warning("package_client_unread", client=name, reason=type(error).__name__)
        return []
    for client in clients:
        if not client.registries and client.name != "uv":  # which has pip's
            log.warning("package_client_without_registry", client=client.name)
    return clients


def _without_bypasses(clients: Sequence[Client]) -> list[Client]:
    """Leave out what npm's relatives have built in, where npm is set to a mirror: so are they."""
    has_mirror = any(client.name == "npm" and client.is_mirrored for client in clients)
    return [
        client
        for client in clients
        if not (
            has_mirror
            and client.name in ("yarn", "corepack")
            and all(registry.is_built_in for registry in client.registries)
        )
    ]


def _allowed(client: Client, bundle: str | None) -> Iterator[AllowedHost]:
    for registry in client.registries:
        url = urlsplit(registry.shown_url)
        # Who set up a registry here may have it on this very machine; what is built in is out in
        # the world, or behind a name that the machine's own network answers for.
        reach: Reach = "private" if registry.is_built_in else "loopback"
        assert url.hostname is not None
        yield AllowedHost(url.hostname, url.port or PORTS[url.scheme], client.name, reach)
        files = _file_hosts(client.name, registry, reach, bundle)
        for host, port in files.found:
            yield AllowedHost(host, port, client.name, files.reach)


def _file_hosts(name: str, registry: Registry, reach: Reach, bundle: str | None) -> FileHosts:
    """Where else the files of a registry lie, as its client knows or as it says itself."""
    if registry.file_hosts or name not in _FILE_HOSTS:
        known = tuple((host, PORTS["https"]) for host in registry.file_hosts)
        return FileHosts(known, "private")  # as what is built in
    try:
        return _FILE_HOSTS[name](registry.url, bundle, reach)
    except file_hosts.SilentRegistryError as error:
        log.warning("registry_silent", client=name, url=registry.shown_url, reason=str(error))
        return FileHosts()


def ca_bundle(environ: Mapping[str, str], clients: Sequence[Client]) -> str | None:
    """Return the file of certificates that the machine trusts, the first that is there."""
    candidates = [environ.get(name) for name in _CA_VARIABLES]
    candidates += [client.ca_bundle for client in clients]
    candidates += [ssl.get_default_verify_paths().cafile, *_CA_FILES]
    return next((path for path in candidates if path and Path(path).is_file()), None)
