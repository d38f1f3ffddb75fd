"""What keeps a web process running, when this machine has nothing left to run it with."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

import pytest

from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.deploys.errors import RollFailedError
from hooks.deploys.processes import web_process
from hooks.deploys.processes.health import HealthCheck
from hooks.deploys.processes.port_watch import PortWatch
from hooks.deploys.processes.web_process import Program, WebProcess


@pytest.fixture
def process(tmp_path):
    """A web process that ends at once, where it can be started at all: not by root."""
    program = Program("exit 0", release_dir=tmp_path, data_dir=tmp_path, hostname="production")
    return WebProcess(
        program,
        HealthCheck(None, host="a.localhost"),
        sandboxes=Sandboxes(),
        web_log=tmp_path / "web.log",
        starting=asyncio.Semaphore(1),
        ports=PortWatch(),
    )


@contextlib.contextmanager
def no_files_left():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def log_says(process, text):
    async with asyncio.timeout(20):
        while not any(text in line for line in process._log.tail()):
            await asyncio.sleep(0.01)


async def test_a_host_without_a_file_to_open_tries_again(process):
    with no_files_left():
        process.keep()
        for _ in range(10):
            await asyncio.sleep(0)
    await log_says(process, "starting again in 0.2 s")
    await process.stop(grace_s=0)


async def test_whatever_goes_wrong_a_process_is_started_again(process, monkeypatch):
    monkeypatch.setattr(web_process, "PORTS", None)  # nothing that the keeper knows of
    process.keep()
    await log_says(process, "starting again in 0.2 s")
    await process.stop(grace_s=0)


def test_a_port_that_somebody_has_for_ipv6_alone_is_not_free(monkeypatch):
    try:
        taken = socket.socket(socket.AF_INET6)
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("::", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(web_process, "PORTS", range(port, port + 1))
        with pytest.raises(SandboxUnavailableError, match="is free"):
            web_process.free_port()


async def test_a_roll_without_a_free_port_says_so(process, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(web_process, "PORTS", range(port, port + 1))
        with pytest.raises(SandboxUnavailableError):
            web_process.free_port()
        with pytest.raises(RollFailedError, match=f"no port from {port} to {port} is free") as roll:
            await process.start(timeout_s=1)
    assert roll.value.code == "deployment.start_failed"
