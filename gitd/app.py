"""The life of `gitd serve`: starts its parts in order, waits, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from aiohttp import web

from gitd.config import Config
from gitd.control import Control, builder_child
from gitd.errors import StartError
from gitd.layout import DataFolder
from gitd.lifetime import Lifetime
from gitd.listening import expect_alone, front_socket, sites_socket, try_addresses
from gitd.stores import note_settings
from gitd.systemd import notify
from hooks.builds.control import service as builder_service
from hooks.builds.sandbox import cgroups
from hooks.deploys.control import service as host_service
from hooks.http_server import HttpLimits, Runner

log = structlog.get_logger(__name__)

BACKLOG = 1024
HOST_WAIT_S = 5.0
THREADS = 32


async def serve(
    folder: DataFolder, config: Config, *, with_children: bool, credentials: Path | None = None
) -> None:
    """Run control until SIGTERM or SIGINT; then drain and return.

    `credentials`: the folder that the service manager put this process's credentials into.

    Raises:
        StartError: The address is taken, another gitd has the folder, nobody can reach it, or its
            database is lost.
        LoopFailedError: A part of it that goes on for ever has failed.
        KeyFileError: A private key cannot be used.
    """
    lifetime = Lifetime()
    lifetime.end_on(signal.SIGTERM, signal.SIGINT)
    # The default pool has as many threads as this machine has processors, and a few: slow disks
    # would let pushes wait for each other.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "control"))
    if os.geteuid() == 0 and with_children:
        folder.check_reachable()
    if folder.is_new():  # a start that is refused leaves nothing behind
        try_addresses(config, with_sites=with_children)
    folder.prepare()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_only_one(folder))
        folder.check_whole()
        listener = front_socket(config)
        control = Control(folder, config, credentials)
        stack.callback(control.close)
        stack.push_async_callback(control.housekeeping.close)
        stack.push_async_callback(control.scrubbing.close)
        note_settings(folder, config)
        if with_children and control.uids.are_one:
            log.warning(
                "users_not_apart",
                uid=os.geteuid(),
                advice="builds and sites have the server's own user: what leaves its sandbox can"
                " read and change all of the server. For code of others run it as root, or as the"
                " units of systemd/",
            )
        if with_children:  # at once: they take as long to start as all of the rest
            cgroups.vacate()
            stack.callback(cgroups.tidy)
            children = control.children()
            if not children.has_survivor():
                sites_socket(config).close()
            control.builds.watch_silence(lambda slot: children.kill(builder_child(slot)))
            await stack.enter_async_context(lifetime.running(children.run()))
        await control.recover(slots_are_gone=with_children)
        await stack.enter_async_context(_sockets(control))
        await stack.enter_async_context(_front(control, listener))
        expect_alone(listener, config)
        stack.callback(control.rolls.close)
        stack.push_async_callback(control.builds.close, ends_slots=with_children)
        loops = [
            control.builds.reap(),
            control.rolls.reap(),
            control.housekeeping.keep(),
            control.log_retention.run(),
            control.scrubbing.keep(),
            control.previews.keep(),
            control.messenger.run(),
            control.metrics.loop_lag.keep(),
        ]
        if with_children:
            loops.append(cgroups.keep_tidy())
        await stack.enter_async_context(lifetime.running(*loops))
        if with_children:
            await _wait_for_host(control)
        _say_ready(config)
        notify("READY=1")
        try:
            await lifetime.over()
        finally:
            notify("STOPPING=1")
            log.info("stopping")


@contextlib.contextmanager
def _only_one(folder: DataFolder) -> Iterator[None]:
    """Hold the folder: a second gitd on it would write what the first one keeps in memory."""
    path = folder.run / "control.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"{path}: {error.strerror}. A server writes into its data folder: see its disk and"
            " owner."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartError(
            f"Another gitd serves {folder.root}. Stop it first, or choose another --data."
        ) from None
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _sockets(control: Control) -> AsyncIterator[None]:
    """The builders' and the hosts' sockets: anyone may connect, and the kernel says who it is."""
    slots = control.uids.slots
    builders = builder_service.make_app(control.builds, control.egress_rules, slots=slots)
    hosts = host_service.make_app(control.rolls, control.program_logs, uids={control.uids.host})
    async with contextlib.AsyncExitStack() as stack:
        for app, path in (
            (builders, control.folder.builders_socket),
            (hosts, control.folder.hosts_socket),
        ):
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            path.unlink(missing_ok=True)
            await web.UnixSite(runner, str(path)).start()
            path.chmod(0o666)
        yield


@contextlib.asynccontextmanager
async def _front(control: Control, listener: socket.socket) -> AsyncIterator[None]:
    server = control.config.server
    limits = HttpLimits(server.connections_max, server.keepalive_s, server.drain_s)
    runner = Runner(control.web_app(), limits)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


async def _wait_for_host(control: Control) -> None:
    """Ready means that sites answer. A host that does not come is waited for in vain, not long."""
    try:
        async with asyncio.timeout(HOST_WAIT_S):
            await control.rolls.host_connected.wait()
    except TimeoutError:
        log.warning("host_not_connected", advice="sites do not answer; look for its own errors")


def _say_ready(config: Config) -> None:
    """Say where git, the API and sites answer: as URLs, and where that is else on this machine."""
    sites, url = config.sites, config.sites.url_of("NAME")
    is_direct = sites.public_scheme == "http" and not sites.public_port
    behind = "" if is_direct else f" (from {sites.listen})"
    sys.stdout.write(f"git and API at http://{config.server.listen}\nsites at {url}{behind}\n")
    sys.stdout.flush()
