"""The network of a build: its proxy, and what tells the programs of the build to use it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hooks.builds.egress.proxy import PORT, EgressProxy, Passed
from hooks.builds.logs.build_log import BuildLog
from hooks.builds.sandbox.sandbox import Sandbox
from hooks.builds.sandbox.spec import Bind, SandboxSpec
from hooks.builds.wire import Egress

STAGE = "network"  # of its lines in the build's log
HOSTS_CHARS_MAX = 16_000
CA_BUNDLE = "/run/ca-certificates.crt"
_PROXY_URL = f"http://127.0.0.1:{PORT}"
_OWN_LOOPBACK = "localhost,127.0.0.1,::1"
_PROXY_ENVIRON = {
    "HTTP_PROXY": _PROXY_URL,
    "http_proxy": _PROXY_URL,
    "HTTPS_PROXY": _PROXY_URL,
    "https_proxy": _PROXY_URL,
    "NO_PROXY": _OWN_LOOPBACK,
    "no_proxy": _OWN_LOOPBACK,
    "npm_config_proxy": _PROXY_URL,
    "npm_config_https_proxy": _PROXY_URL,
    "YARN_HTTP_PROXY": _PROXY_URL,
    "YARN_HTTPS_PROXY": _PROXY_URL,
    "NODE_USE_ENV_PROXY": "1",  # node's own fetch, from 24 on
}
_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "COMPOSER_CAFILE",
    "CARGO_HTTP_CAINFO",
)


class BuildNetwork:
    """What the sandboxes of one build may reach, together. Close it when the last has ended."""

    def __init__(self, egress: Egress, log: BuildLog) -> None:
        self._egress = egress
        self._log = log
        self._proxy = EgressProxy(egress, lambda line: log.line(STAGE, line))
        self._ca_bundle = egress.ca_bundle
        if self._ca_bundle is not None and not os.access(self._ca_bundle, os.R_OK):
            if egress.allow:
                log.line(STAGE, f"the machine's certificates, {self._ca_bundle}, are not readable")
            self._ca_bundle = None

    def given_to(self, spec: SandboxSpec) -> SandboxSpec:
        """Return `spec` with the way to the proxy. What `spec` has of its own wins."""
        if not self._egress.allow:
            return spec
        binds = []
        environ = {**_PROXY_ENVIRON, **self._egress.environ}
        if self._ca_bundle is not None:
            environ |= dict.fromkeys(_CA_VARIABLES, CA_BUNDLE)
            binds.append(Bind(Path(self._ca_bundle), CA_BUNDLE))
        return replace(
            spec,
            binds=(*binds, *spec.binds),
            environ={**environ, **spec.environ},
            listen_port=PORT,
        )

    def write_settings(self, home: Path) -> None:
        """Tell package clients in a build's home which registries the machine uses.

        `home` is new and empty: a link that a build had left there would lead outside.
        """
        for name, text in self._egress.home_files.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    async def serve(self, sandbox: Sandbox) -> None:
        """Answer what comes from a sandbox that was started with `given_to`."""
        if sandbox.listener is not None:
            await self._proxy.serve(sandbox.listener)

    async def close(self) -> None:
        """End all connections, and tell in the build's log what passed. Call it once."""
        await self._proxy.close()
        for line in self._proxy.summary():
            self._log.line(STAGE, line)

    @property
    def hosts(self) -> str:
        """What the build may reach, for its provenance: `host:port`, sorted; `none`."""
        names = sorted({f"{allowed.host}:{allowed.port}" for allowed in self._egress.allow})
        return ", ".join(names)[:HOSTS_CHARS_MAX] or "none"

    @property
    def total(self) -> Passed:
        """What passed, to all hosts together."""
        return self._proxy.total

    @property
    def problems(self) -> list[str]:
        """What was refused or failed up to now, each once."""
        return self._proxy.problems
