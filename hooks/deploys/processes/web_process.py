"""A web process: the program of a release, in its sandbox, kept running."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.profiles.runtimes import SITE_PATH
from hooks.builds.sandbox.limits import Limits, explain
from hooks.builds.sandbox.sandbox import Sandbox, Sandboxes
from hooks.builds.sandbox.spec import APP_DIR, Bind, SandboxSpec
from hooks.deploys.errors import RollFailedError
from hooks.deploys.processes.health import HealthCheck, first_answer, wait_until_healthy
from hooks.deploys.processes.port_watch import PortWatch, Watched
from hooks.deploys.processes.restarts import STEADY_AFTER_S, Restarts
from hooks.deploys.processes.run_values import RunValues
from hooks.deploys.processes.weblog import Lines, LineSink, WebLog
from hooks.deploys.web import pages
from hooks.deploys.web.forwarding import TrustedProxies
from hooks.deploys.web.proxy import NotListeningError, WebProxy
from hooks.deploys.wire import Running

DATA_DIR: Final = "/data"
WEB_LIMITS: Final = Limits(is_strict=False)
HOSTNAME_CHARS_MAX: Final = 64  # sethostname(2)
PORTS: Final = range(20_000, 30_000)
"""Below the range from which the kernel takes ports for outgoing connections."""
PORTS_TRIED: Final = 200
HOLD_S: Final = 5.0
"""How long a request waits for a process that is being started again."""
STARTING_S: Final = 10.0
"""A process that is not healthy by then no longer keeps others from starting."""

_EXIT_HINTS: Final = {
    0: "it has to run on, in the foreground",
    126: "the shell may not execute the command",
    127: "the shell did not find the command: the release has it not, nor /usr",
}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Program:
    """What to run for a release, and with what around it.

    `command` goes through `/bin/sh -c`, in the release's folder, which it cannot write to. What it
    is `given` wins over the platform's defaults, and `environ` over all. `names` are for our log,
    `title` for that of the program.
    """

    command: str
    release_dir: Path
    data_dir: Path
    hostname: str
    environ: Mapping[str, str] = field(default_factory=dict)
    given: RunValues = field(default_factory=RunValues)
    limits: Limits = WEB_LIMITS
    names: Mapping[str, str] = field(default_factory=dict)
    title: str = "the web process"

    def sandbox(self, **environ: str) -> SandboxSpec:
        # Everything inside gets SIGTERM. A shell would die of it at once and take the sandbox with
        # it; this one waits for the program that it runs.
        script = f"trap 'exit 143' TERM\n{self.command}\n"
        return SandboxSpec(
            argv=("/bin/sh", "-c", script),
            binds=(Bind(self.release_dir, APP_DIR), Bind(self.data_dir, DATA_DIR, writable=True)),
            environ={
                "NODE_ENV": "production",  # many a framework shows visitors its errors without it
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                **self.given.environ,
                "PATH": SITE_PATH,
                "DATA_DIR": DATA_DIR,
                **self.environ,
                **environ,
            },
            network=True,
            hostname=self.hostname[:HOSTNAME_CHARS_MAX],
            limits=self.limits,
        )


class WebProcess:
    """A program that listens on $PORT. It is started again, with growing pauses, when it ends.

    It ends with this process, whatever happens to it.
    """

    def __init__(
        self,
        program: Program,
        check: HealthCheck,
        *,
        sandboxes: Sandboxes,
        web_log: Path,
        starting: asyncio.Semaphore,
        ports: PortWatch,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called whenever it is `running` otherwise."""
        self.port = 0
        """A new one at each start: who waits for an old one to be free gets nothing."""
        self._program = program
        self._check = check
        self._sandboxes = sandboxes
        self._log = WebLog(web_log, program.given.masker)
        self._starting = starting
        self._ports = ports
        self._watched: Watched | None = None
        self._sandbox: Sandbox | None = None
        self._exit: asyncio.Task[int] | None = None
        self._may_be_healthy = False
        self._keeper: asyncio.Task[None] | None = None
        self._healthy = asyncio.Event()
        self._restarts = Restarts(on_change)

    @property
    def running(self) -> Running:
        return self._restarts.running

    @property
    def starts_in_s(self) -> int | None:
        """Seconds until it is started again; None while nothing is wrong with it."""
        return self._restarts.left_s if self.running.state == "restarting" else None

    async def start(self, *, timeout_s: float) -> None:
        """Start it and wait until it is healthy. It is not started again if that fails.

        Raises:
            RollFailedError: It ended, or was not healthy in time.
        """
        try:
            await self._begin()
            trouble = await self._become_healthy(timeout_s)
            if trouble is None:
                self._restarts.first_answer = await first_answer(self.port, self._check)
        except SandboxUnavailableError as error:
            await self.stop(grace_s=0)
            raise RollFailedError("deployment.start_failed", str(error)) from error
        except BaseException:
            await self.stop(grace_s=0)
            raise
        if trouble is not None:
            self._log.note(trouble[1], is_said=True)
            await self.stop(grace_s=0)
            raise RollFailedError(trouble[0], trouble[1], output=self._log.tail())
        self.keep()

    def keep(self) -> None:
        """From now on start it whenever it is not running. Not too many start at once."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def healthy(self, *, timeout_s: float) -> bool:
        """Wait until it can take requests; False when time ran out."""
        if not self._healthy.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._healthy.wait(), timeout_s)
        return self._healthy.is_set()

    async def stop(self, *, grace_s: float) -> None:
        """Ask it to end (SIGTERM); end it after `grace_s`. May be called again."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end(grace_s=grace_s)
        self._log.close()

    async def _begin(self) -> None:
        self.port = port = free_port(besides=self._ports.held)
        self._ports.hold(port)
        self._log.note(f"starting {self._program.title}", is_said=True)
        try:
            spec = self._program.sandbox(PORT=str(port))
            self._sandbox = await _start(self._sandboxes, spec, self._log.write)
        except BaseException:
            self._ports.let_go(port)
            raise
        self._may_be_healthy = True
        self._exit = asyncio.get_running_loop().create_task(self._ended(self._sandbox, port))

    async def _ended(self, sandbox: Sandbox, port: int) -> int:
        """Return the exit status once nothing is left of it.

        Other programs can have its port long before that: it gets no visitor from the first moment
        on. No process of this host gets it until then.
        """
        try:
            await sandbox.ended()
            self._may_be_healthy = False
            self._healthy.clear()
            if self._watched is not None:
                self._ports.forget(self._watched)
                self._watched = None
            return await sandbox.wait()
        finally:
            self._ports.let_go(port)

    def _end_for_stranger(self, sandbox: Sandbox) -> None:
        """End it: it shares its port with another program, and visitors could reach that."""
        self._may_be_healthy = False
        self._healthy.clear()
        self._log.note(f"another program listens on port {self.port} too: it is ended")
        _log.error("port_shared", port=self.port, advice="let programs not share $PORT")
        sandbox.kill()

    async def _become_healthy(self, timeout_s: float) -> tuple[str, str] | None:
        """Wait for health or the end, whichever is first; return what went wrong: code, message."""
        assert self._exit is not None, "it was begun"
        assert self._sandbox is not None, "it was begun"
        began_at = time.monotonic()
        check = asyncio.get_running_loop().create_task(
            wait_until_healthy(
                self.port,
                self._check,
                timeout_s=timeout_s,
                is_own=self._sandbox.holds,
                those_held=self._sandbox.those_held,
                gives_up=self._keeper is None,  # who is kept may take as long as it likes
            )
        )
        try:
            await asyncio.wait({check, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if self._exit.done():
                how = _how_it_ended(
                    "web process", self._sandbox, self._exit.result(), self._program.limits
                )
                return "deployment.start_failed", how
            trouble = check.result()
        finally:
            check.cancel()
        if trouble is None:
            if self._may_be_healthy:
                self._healthy.set()
                self._restarts.note_healthy()
                self._log.note("healthy", is_said=True)
                self._watched = self._ports.watch(
                    self.port,
                    is_own=self._sandbox.holds,
                    on_stranger=partial(self._end_for_stranger, self._sandbox),
                )
            return None
        return (
            "deployment.health_check_failed",
            f"the web process was not healthy after {time.monotonic() - began_at:.0f} s: {trouble}",
        )

    async def _end(self, *, grace_s: float) -> None:
        self._healthy.clear()
        if self._sandbox is None or self._exit is None:
            return
        had_ended = self._exit.done()
        if grace_s:
            self._sandbox.terminate()
            await asyncio.wait({self._exit}, timeout=grace_s)
        self._sandbox.kill()
        try:
            await self._exit
            if not had_ended:
                self._log.note(f"stopped {self._program.title}", is_said=True)
        except SandboxUnavailableError:
            pass  # it failed before the program began: there is nothing to end
        except Exception:  # noqa: BLE001 - of what is gone anyway
            _log.exception("web_process_end_unclear", port=self.port)
        self._sandbox = self._exit = None

    async def _keep(self) -> None:
        while True:
            try:
                await self._live_once()
            except SandboxUnavailableError as error:
                self._restarts.note_end(None, str(error))
                _log.error("web_process_not_started", reason=str(error), **self._program.names)
            except Exception:  # noqa: BLE001 - whatever it is: a site stays down when nobody tries again
                self._restarts.note_end(None, "the site host failed to keep it running")
                _log.exception("web_process_not_kept", port=self.port, **self._program.names)
                await self._end(grace_s=0)
            finally:
                self._healthy.clear()
            pause_s = self._restarts.next_pause_s()
            self._log.note(f"starting again in {pause_s:g} s")
            await asyncio.sleep(pause_s)

    async def _live_once(self) -> None:
        """Start it unless it runs, and return when it has ended."""
        if self._exit is None:
            async with self._starting:
                await self._begin()
                trouble = await self._become_healthy(STARTING_S)
            if trouble is not None:
                await self._become_healthy(float("inf"))
        assert self._exit is not None, "it was begun"
        await asyncio.wait({self._exit}, timeout=STEADY_AFTER_S)
        if not self._exit.done():
            self._restarts.note_steady()
            await asyncio.wait({self._exit})
        assert self._sandbox is not None, "it was begun"
        sandbox, ended = self._sandbox, self._exit
        self._sandbox = self._exit = None
        self._tell_end(sandbox, ended.result())

    def _tell_end(self, sandbox: Sandbox, status: int) -> None:
        how = _how_it_ended("web process", sandbox, status, self._program.limits)
        self._log.note(how)
        self._restarts.note_end(status, how)
        tell = _log.warning if self._restarts.is_worrying else _log.info
        tell(
            "web_process_ended",
            exit_status=status,
            exceeded=sandbox.exceeded,
            restarts=self.running.restarts,
            port=self.port,
            **self._program.names,
        )


class WebSite:
    """A release that answers by its web process."""

    def __init__(self, process: WebProcess, *, trusted: TrustedProxies) -> None:
        self._process = process
        self._proxy = WebProxy(lambda: process.port, trusted=trusted)

    async def respond(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        deadline = time.monotonic() + HOLD_S
        while await self._process.healthy(timeout_s=max(0.0, deadline - time.monotonic())):
            try:
                return await self._proxy.forward(request, target)
            except NotListeningError:  # nothing was sent yet, so it may be tried again
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.02)
        return pages.starting(self._process.starts_in_s)

    @property
    def running(self) -> Running:
        return self._process.running

    def hurry(self) -> None:
        self._proxy.end_tunnels()

    async def close(self, *, grace_s: float) -> None:
        await self._proxy.close()
        await self._process.stop(grace_s=grace_s)


async def run_release_command(
    program: Program, *, sandboxes: Sandboxes, timeout_s: float, on_line: LineSink
) -> None:
    """Run a release's `release` command once, to its end.

    Raises:
        RollFailedError: It failed, or took too long; everything it started is dead.
    """
    lines = Lines(on_line, masker=program.given.masker)
    try:
        sandbox = await _start(sandboxes, program.sandbox(), lines.write)
    except SandboxUnavailableError as error:
        raise RollFailedError("deployment.start_failed", str(error)) from error
    try:
        async with asyncio.timeout(timeout_s):
            status = await sandbox.wait()
    except TimeoutError as error:
        raise RollFailedError(
            "deployment.timed_out", f"the release command ran longer than {timeout_s:g} s"
        ) from error
    except SandboxUnavailableError as error:
        raise RollFailedError("deployment.start_failed", str(error)) from error
    finally:
        sandbox.kill()
        with contextlib.suppress(SandboxUnavailableError):
            await asyncio.shield(sandbox.wait())
        lines.close()
    if status != 0:
        how = _how_it_ended("release command", sandbox, status, program.limits)
        raise RollFailedError("deployment.release_command_failed", how)


def _how_it_ended(what: str, sandbox: Sandbox, status: int, limits: Limits) -> str:
    """Say the exit status, and what it means or what it was ended for."""
    said = f"the {what} ended with status {status}"
    if sandbox.exceeded is None:
        hint = _EXIT_HINTS.get(status)  # a release command that ends with 0 has not failed
        return said if hint is None else f"{said}: {hint}"
    return f"{said}; {explain(sandbox.exceeded, limits, who=f'the {what}', section='host')}"


async def _start(
    sandboxes: Sandboxes, spec: SandboxSpec, on_output: Callable[[bytes], None]
) -> Sandbox:
    """Start a sandbox; when canceled meanwhile, leave none behind."""
    starting = asyncio.get_running_loop().create_task(sandboxes.start(spec, on_output=on_output))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(SandboxUnavailableError):
            sandbox = await starting
            sandbox.kill()
            await sandbox.wait()
        raise


def free_port(*, besides: Container[int] = ()) -> int:
    """Return a port of this machine that nobody listens on just now, and that is none of `besides`.

    Raises:
        SandboxUnavailableError: None was found, or this process can open nothing.
    """
    for port in random.sample(PORTS, k=min(PORTS_TRIED, len(PORTS))):
        if port in besides:
            continue
        try:
            if _is_free(port):
                return port
        except OSError as error:
            raise SandboxUnavailableError(f"no port can be looked for: {error.strerror}") from error
    raise SandboxUnavailableError(
        f"no port from {PORTS[0]} to {PORTS[-1]} is free: other programs of this machine hold them"
    )


def _is_free(port: int) -> bool:
    """Say whether a program can listen there, whichever of its addresses it takes.

    Many listen on `::`, and fail when somebody has that, if only for IPv6.

    Raises:
        OSError: This process can open nothing.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    try:
        everywhere = socket.socket(socket.AF_INET6)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return True
        raise
    with everywhere:
        everywhere.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            everywhere.bind(("::", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # otherwise nobody can have it
    return True
