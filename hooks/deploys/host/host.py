"""The site host: serves the environments of this machine, and keeps them as control desires.

It needs control only for news. What it serves it has verified itself, keeps in its own folder and
serves again after a start, whether control is there or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.deploys.host import configs
from hooks.deploys.host.control import ControlLine
from hooks.deploys.host.log_sender import LogSender
from hooks.deploys.host.reconcile import Reconciler
from hooks.deploys.host.rollout_tools import (
    DRAIN_S,
    RELEASE_COMMAND_TIMEOUT_S,
    START_COUNT_MAX,
    THREADS,
    UNPACK_COUNT_MAX,
    RolloutTools,
)
from hooks.deploys.host.selector import SparingSelector, warn_of_few_watches
from hooks.deploys.host.state import HostFolder
from hooks.deploys.processes.health import TIMEOUT_S as HEALTH_TIMEOUT_S
from hooks.deploys.processes.web_process import WEB_LIMITS
from hooks.deploys.web.forwarding import TrustedProxies
from hooks.deploys.web.router import Router
from hooks.deploys.web.serving import Serving
from hooks.deploys.web.traffic import make_server
from hooks.deploys.wire import DesiredMessage, LogWanted
from hooks.process import drop_privileges, take_short_turns
from storage.reader import StoreReader
from storage.sealing import Vault
from storage.trust_memory import TrustMemory

BACKLOG: Final = 1024
STORE_LOOK_EVERY_S: Final = 0.1

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HostConfig:
    """How to run a site host.

    Attributes:
        socket: Control's Unix socket. It need not be there yet.
        directory: Where the host keeps what it serves; made if need be.
        store: The artifact store, read only.
        listen: Address and port for visitors. Not used with `listen_fd`.
        listen_fd: A listening socket that was inherited.
        guards: Control's address, which sites do not get while control is away. With a `uid`.
        uid: Become this user once everything is imported and bound; with `gid`.
        trusted_proxies: Networks whose `X-Forwarded-*` is believed.
        root_key_ids: The root keys that trust begins with; None believes the store's own.
        credentials: Where the service manager put this process's credentials, if it did.
        web_limits: What each web process, and each release command, may use.
        ready: What to call, once, when it listens.
    """

    socket: Path
    directory: Path
    store: Path
    listen: tuple[str, int] = ("127.0.0.1", 8081)
    listen_fd: int | None = None
    guards: tuple[str, int] | None = None
    uid: int | None = None
    gid: int | None = None
    trusted_proxies: tuple[str, ...] = ()
    root_key_ids: frozenset[str] | None = None
    credentials: Path | None = None
    web_limits: Limits = WEB_LIMITS
    health_timeout_s: float = HEALTH_TIMEOUT_S
    release_command_timeout_s: float = RELEASE_COMMAND_TIMEOUT_S
    drain_s: float = DRAIN_S
    ready: Callable[[], None] | None = None


def main(config: HostConfig) -> None:
    """Run a site host until SIGTERM or SIGINT.

    With a `uid` it is started as root: it binds, prepares its folder, and gives up every right
    before it reads the first byte of anybody's.
    """
    try:
        listener = _listener(config)
    except OSError as error:
        raise SystemExit(
            f"cannot listen on {config.listen[0]}:{config.listen[1]}: {error}"
        ) from error
    guard = _guard(config.guards) if config.guards is not None else None
    _prepare_folder(config)
    sandboxes = _sandboxes(config)
    if config.uid is not None:
        drop_privileges(config.uid, config.gid if config.gid is not None else config.uid)
    take_short_turns()
    warn_of_few_watches(config.web_limits.memory_bytes)
    with asyncio.Runner(loop_factory=_sparing_loop) as runner:
        runner.run(run_host(config, sandboxes, listener=listener))
    if guard is not None:
        guard.close()


def _sparing_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(SparingSelector())


async def run_host(
    config: HostConfig, sandboxes: Sandboxes, *, listener: socket.socket | None = None
) -> None:
    """Serve until SIGTERM or SIGINT: then stop accepting, let requests finish for at most
    `drain_s`, and stop the web processes.
    """
    stop = _stop_signal()
    await _store_opened(config.store, stop)
    if left := sandboxes.end_leftovers(config.directory):
        _log.warning("left_sandboxes_ended", count=left)
    router: Router[Serving] = Router()
    line = ControlLine(config.socket)
    with ThreadPoolExecutor(THREADS, "rollout") as threads:
        tools = RolloutTools(
            vault=Vault.open(config.directory, credentials=config.credentials, may_create=True),
            config_of=lambda deployment_id: configs.fetch(line, deployment_id),
            reader=StoreReader(
                config.store,
                root_key_ids=config.root_key_ids,
                memory=TrustMemory(config.directory / "trust.json"),
            ),
            threads=threads,
            sandboxes=sandboxes,
            unpacking=asyncio.Semaphore(UNPACK_COUNT_MAX),
            starting=asyncio.Semaphore(START_COUNT_MAX),
            trusted=TrustedProxies(config.trusted_proxies),
            health_timeout_s=config.health_timeout_s,
            release_command_timeout_s=config.release_command_timeout_s,
            web_limits=config.web_limits,
            drain_s=config.drain_s,
        )
        folder = HostFolder(config.directory)
        reconciler = Reconciler(folder, tools=tools, router=router, line=line)
        logs = LogSender(folder, config.socket)

        def take(message: DesiredMessage) -> None:
            if isinstance(message, LogWanted):
                logs.take(message)
            else:
                reconciler.take(message)

        reconciler.resume()
        try:
            async with _traffic(router, listener or _listener(config), config.drain_s):
                if config.ready is not None:
                    config.ready()
                loop = asyncio.get_running_loop()
                following = loop.create_task(line.follow(take))
                watching = loop.create_task(tools.ports.keep())
                stopped = loop.create_task(stop.wait())
                await asyncio.wait(
                    {following, watching, stopped}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in (following, watching):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                reconciler.hurry()
        finally:
            await logs.close()
            await reconciler.close()
    _log.info("host_stopped")


@contextlib.asynccontextmanager
async def _traffic(
    router: Router[Serving], listener: socket.socket, drain_s: float
) -> AsyncIterator[None]:
    runner = web.ServerRunner(make_server(router), shutdown_timeout=drain_s)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        address = listener.getsockname()
        _log.info("host_ready", address=f"{address[0]}:{address[1]}", pid=os.getpid())
        yield
    finally:
        await runner.cleanup()


async def _store_opened(store: Path, stop: asyncio.Event) -> None:
    """Return once this user may read the store: control lets it, at its own start.

    A store that was restored is closed until then. One that is not there yet will be readable.
    """
    is_told = False
    while store.exists() and not os.access(store, os.R_OK | os.X_OK) and not stop.is_set():
        if not is_told:
            _log.warning("store_closed", store=str(store), advice="it is opened as control starts")
            is_told = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STORE_LOOK_EVERY_S)


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _listener(config: HostConfig) -> socket.socket:
    if config.listen_fd is not None:
        return socket.socket(fileno=config.listen_fd)
    host, port = config.listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _guard(address: tuple[str, int]) -> socket.socket | None:
    """Bind control's address, as its user, beside it: no other user can have it from then on.

    A host lives on when control is killed. A site that listened there then would be sent the keys
    of everybody who pushes. Source: socket(7), SO_REUSEPORT.
    """
    guard = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        guard.bind(address)
    except OSError as error:
        guard.close()
        _log.warning("address_not_guarded", address=address, reason=str(error))
        return None
    return guard


def _sandboxes(config: HostConfig) -> Sandboxes:
    gid = config.gid if config.gid is not None else config.uid
    owner = (config.uid, gid) if config.uid is not None and gid is not None else None
    sandboxes = Sandboxes()
    sandboxes.keep_in_groups("host", owner=owner)
    return sandboxes


def _prepare_folder(config: HostConfig) -> None:
    config.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if config.uid is not None and os.geteuid() == 0:
        gid = config.gid if config.gid is not None else config.uid
        os.chown(config.directory, config.uid, gid, follow_symlinks=False)
