"""Serve ordinary git repositories over smart HTTP.

python -m gitd.git --root DIR --listen ADDR:PORT [--remote-user-header NAME] [--config FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import structlog
from aiohttp import web

from gitd.config import Config, load, machine_environ, parse_address
from gitd.errors import ConfigError
from gitd.git.limits import GitLimits
from gitd.git.plain import PlainAccess
from gitd.git.push import SilentReceiver
from gitd.git.service import GitService
from hooks.http_server import HttpLimits, Runner

HEADER_BYTES_MAX = 64 << 10
OURS = ("GITD_GIT_", "GITD_SERVER_")
THREAD_COUNT_MAX = 32  # most of them wait for the disk


def main() -> None:
    """Run until a signal says to stop."""
    parser = argparse.ArgumentParser(prog="python -m gitd.git", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="serve what is below this")
    parser.add_argument("--listen", required=True, metavar="ADDR:PORT", help="port 0 picks one")
    parser.add_argument(
        "--remote-user-header",
        metavar="NAME",
        help="the header in which a front tells who is logged in",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="bounds, in the sections [git] and [server] of a TOML file",
    )
    arguments = parser.parse_args()
    if not arguments.root.is_dir():
        parser.error("--root must be a directory")
    try:
        host, port = parse_address(arguments.listen, "--listen")
    except ConfigError as error:
        parser.error(str(error))
    access = PlainAccess(arguments.root, arguments.remote_user_header)
    config = _config(parser, arguments.config)
    service = GitService(
        access,
        SilentReceiver(),
        GitLimits(**asdict(config.git)),
        serves_files=True,
        pack_folder=_pack_folder(arguments.root),
        environ=machine_environ(),
    )
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    server = config.server
    limits = HttpLimits(server.connections_max, server.keepalive_s, server.drain_s)
    asyncio.run(_serve(service, limits, host, port))


def _config(parser: argparse.ArgumentParser, path: Path | None) -> Config:
    ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    try:
        return load(path, ours)
    except ConfigError as error:
        parser.error(str(error))


def _pack_folder(root: Path) -> Path:
    """Choose where large packs are made: TMPDIR, else beside the repositories, on their disk."""
    beside = root.resolve().parent
    is_free = not os.environ.get("TMPDIR") and os.access(beside, os.W_OK | os.X_OK)
    return beside if is_free else Path(tempfile.gettempdir())


async def _serve(service: GitService, limits: HttpLimits, host: str, port: int) -> None:
    runner = make_runner(service, limits)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREAD_COUNT_MAX, thread_name_prefix="git"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        reason = error.strerror or error
        sys.exit(f"cannot listen on {host}:{port}: {reason}. Choose another with --listen.")
    for address in runner.addresses:
        print(f"serving git on http://{address[0]}:{address[1]}/", flush=True)  # noqa: T201
    await service.warm()
    await stop.wait()
    service.begin_stop(limits.drain_s)
    await runner.cleanup()
    await service.close()


def make_runner(service: GitService, limits: HttpLimits) -> Runner:
    """Return a runner that sends every request to the service."""
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", service.handler)
    return Runner(app, limits, handle_signals=False, max_field_size=HEADER_BYTES_MAX)


if __name__ == "__main__":
    main()
