"""The sandbox: a process tree of its own that sees nothing of the machine but what it is given.

Made by bubblewrap: namespaces of its own for users, processes, mounts, IPC, host name and (unless
asked for) network; the runtimes below /usr read-only; a filter of system calls; limits, for each
process and for all together. Builds run in it, and so do the web processes of sites.

Source: bwrap(1), version 0.8.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import structlog
from blake3 import blake3

from hooks.builds.errors import GroupsUnavailableError, SandboxUnavailableError
from hooks.builds.sandbox import bwrap
from hooks.builds.sandbox.cgroups import Group, Groups
from hooks.builds.sandbox.limits import Limit
from hooks.builds.sandbox.listener import listen_inside
from hooks.builds.sandbox.namespace import Init, Status, end_named
from hooks.builds.sandbox.processors import Processors
from hooks.builds.sandbox.spec import HOME_DIR, IN_MEMORY, SandboxSpec
from hooks.builds.sandbox.watch import Watch
from hooks.builds.sandbox.write_pace import WritePace
from hooks.process import Process, adopt_orphans

BWRAP = Path("/usr/bin/bwrap")
ENV = "/usr/bin/env"
SPARE_CPU_S = 2  # what the kernel lets through, for the watch to see that it is too much
SPARE_MEMORY_BYTES = 1 << 30  # likewise: more than a program takes between two looks
NO_CORE_BYTES = 1  # not 0: with that the kernel still starts a program that takes core dumps
BACKGROUND_NICE = 10
BACKGROUND_OOM_SCORE = 500  # of 1000: when the machine's memory runs out, it is ended first

log = structlog.get_logger(__name__)


class Sandboxes:
    """What the sandboxes of one process have in common, and how one is started."""

    def __init__(self) -> None:
        self._name = BWRAP.name  # of each in the list of processes
        self._groups: Groups | None = None
        self._processors = Processors()
        self._pace = WritePace()

    def keep_in_groups(
        self, label: str, *, owner: tuple[int, int] | None = None, weight: int | None = None
    ) -> None:
        """From here on each gets a control group of its own, where possible.

        Where it is not, the log says why, and limits are kept without: see `Groups.prepare`, which
        has the arguments.
        """
        try:
            self._groups = Groups.prepare(label, owner=owner, weight=weight)
        except GroupsUnavailableError as error:
            log.warning("control_groups_unavailable", reason=str(error), instead="watching")
        else:
            log.info("control_groups_prepared", version=self._groups.version)

    def leave_processors(self, count: int) -> None:
        """Leave so many processors to others, as a sandbox does: this process, and its keeper.

        One is left to it. With 0 it has all again. Call it in the main thread.
        """
        share = self._groups.share if self._groups is not None else None
        self._processors.leave(count, also=() if share is None else (share.keeper_pid,))

    def end_leftovers(self, folder: Path) -> int:
        """Kill those that an earlier process with the same `folder` left, and return how many.

        bubblewrap asks to die with its parent only when all is set up: whoever is killed while it
        starts a sandbox leaves it running. From here on sandboxes bear a name made of `folder`, by
        which the next process knows them.
        """
        digest = blake3(os.fsencode(folder.resolve())).hexdigest()[:16]
        self._name = f"{BWRAP.name}-{digest}"
        return end_named(self._name)

    async def start(
        self,
        spec: SandboxSpec,
        *,
        on_output: Callable[[bytes], None],
        on_halted: Callable[[], None] | None = None,
    ) -> Sandbox:
        """Start `spec` and return once it runs, under its limits. Call it in the main thread.

        `on_output` gets what is written to output and error, as it comes, in the loop. `on_halted`
        is called there when it is halted for the first time, since it writes too fast.

        Raises:
            SandboxUnavailableError: bubblewrap is not there, this process is root, or a limit
                cannot be kept.
        """
        if os.geteuid() == 0:
            raise SandboxUnavailableError(
                "the sandbox is never run as root: root inside could change the machine's kernel"
            )
        adopt_orphans()
        status = Status(on_output)
        go, wait_for_go = _gate()
        with os.fdopen(go, "wb", buffering=0) as gate:
            try:
                group = self._make_group(spec)
                try:
                    outer = self._spawn(spec, status, wait_for_go)
                except SandboxUnavailableError:
                    status.close()
                    self.end_group(group)
                    raise
            finally:
                os.close(wait_for_go)
            starting = asyncio.ensure_future(self._started(outer, status, group, spec, on_halted))
            try:
                sandbox = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # Killed before it has told its child, bubblewrap would leave it behind: the child
                # waits for its word for ever, and holds the output open.
                sandbox = await starting
                if sandbox.listener is not None:
                    sandbox.listener.close()
                await sandbox.close()
                raise
            with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile: `wait` says why
                gate.write(b"1")
        return sandbox

    async def _started(
        self,
        outer: Process,
        status: Status,
        group: Group | None,
        spec: SandboxSpec,
        on_halted: Callable[[], None] | None,
    ) -> Sandbox:
        """Put limits on the first process, which waits for the gate to open, and listen inside."""
        init = Init.open(await _begun(outer, status), parent_pid=outer.pid)
        watch = _watch_for(spec, group, self._pace, on_halted)
        sandbox = Sandbox(self, outer, init, status, watch=watch, group=group)
        what = "keep the sandbox to its limits"
        try:
            if init.is_there():
                if group is not None:
                    await asyncio.to_thread(group.join, init.pid)
                _limit(init.pid, spec, has_group=group is not None)
                if spec.limits.processors_free:
                    kept_to = self._processors.but(spec.limits.processors_free)
                    os.sched_setaffinity(init.pid, kept_to)
                what = "listen inside the sandbox"
                if spec.listen_port is not None:
                    sandbox.listener = listen_inside(init.pid, spec.listen_port)
                what = "look into the sandbox"
                await watch.look_inside(init)
        except (ProcessLookupError, FileNotFoundError):
            pass  # it has ended meanwhile: `wait` says why
        except OSError as error:
            await sandbox.close()
            raise SandboxUnavailableError(f"cannot {what}: {error.strerror}") from error
        sandbox.watch()
        return sandbox

    def _make_group(self, spec: SandboxSpec) -> Group | None:
        if self._groups is None:
            return None
        try:
            return self._groups.make(spec.limits, is_background=spec.is_background)
        except OSError as error:
            raise SandboxUnavailableError(f"no control group can be made: {error}") from error

    def end_group(self, group: Group | None) -> None:
        """Take back the group of one that has ended."""
        if self._groups is not None and group is not None:
            self._groups.end(group)

    def _spawn(self, spec: SandboxSpec, status: Status, wait_for_go: int) -> Process:
        with contextlib.ExitStack() as files:
            try:
                args, pass_fds = bwrap.arguments(spec, files)
                pass_fds += [status.open(files), wait_for_go]
                args += ["--json-status-fd", str(pass_fds[-2]), "--block-fd", str(wait_for_go)]
                args_fd = bwrap.memory_file(files, b"".join(f"{arg}\0".encode() for arg in args))
                # bwrap's own environment is empty: the sandbox can read it in /proc/1/environ
                return Process.start(
                    [self._name, "--args", str(args_fd), "--", *_found(spec.argv)],
                    program=str(BWRAP),
                    environ={},
                    on_output=status.on_output,
                    pass_fds=[args_fd, *pass_fds],
                )
            except FileNotFoundError as error:
                raise SandboxUnavailableError(
                    f"{BWRAP} is not there: install bubblewrap"
                ) from error
            except OSError as error:
                raise SandboxUnavailableError(f"cannot run {BWRAP}: {error.strerror}") from error


class Sandbox:
    """A running sandbox. Made by `Sandboxes.start`; always `wait` for its end.

    It ends with this process, and it never outlives `wait`.
    """

    listener: socket.socket | None = None
    """Listens inside, before the program begins, when `listen_port` asks for it. The caller's."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        outer: Process,
        init: Init,
        status: Status,
        *,
        watch: Watch,
        group: Group | None,
    ) -> None:
        self._sandboxes = sandboxes
        self._outer = outer
        self._init = init
        self._status = status
        self._watch = watch
        self._group = group
        self._watching: asyncio.Task[None] | None = None
        self._looking_back: asyncio.Task[None] | None = None
        self._was_killed = False
        self.refuses_memory = group is None
        """Whether the kernel refuses memory to a program that wants far too much, and so ends none:
        the program itself may end, by an error that no limit is told by.
        """
        self.exceeded: Limit | None = None
        """The limit that it was ended for, or that it ran into. Known once `wait` has returned."""

    def watch(self) -> None:
        """From here on end it when it exceeds a limit. Who started it calls this, once."""
        self._watching = asyncio.ensure_future(self._end_when_exceeded())

    async def wait(self) -> int:
        """Return the exit status (128 + n after signal n) once every process inside is dead.

        May be called again, and canceled.

        Raises:
            SandboxUnavailableError: The sandbox failed before the program began.
        """
        await self._outer.ended()
        self._watch.halt_no_more()
        self._init.kill()
        await self._init.gone()
        if self._watching is not None:
            self._watch.end()
            await asyncio.wait({self._watching})
        self._watch.count_rest()
        self._init.reap()
        await self._outer.wait()  # not for whoever was handed the output and lives elsewhere
        self._status.close()
        status = self._status.exit_code
        if self._looking_back is None:
            shown = 128 + signal.SIGKILL if status is None else status
            self._looking_back = asyncio.ensure_future(self._look_back(shown))
        await asyncio.shield(self._looking_back)
        if status is not None:
            return status
        if self._was_killed or self.exceeded is not None:
            return 128 + signal.SIGKILL
        raise SandboxUnavailableError(f"the sandbox did not start: {self._status.tail}")

    async def ended(self) -> None:
        """Return when its first process or bubblewrap has ended: `wait` sees to what is left."""
        ends = [asyncio.ensure_future(end) for end in (self._outer.ended(), self._init.gone())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def close(self) -> None:
        """Kill what runs, and return once every process inside is dead. May be called again."""
        self.kill()
        await self.wait()

    @property
    def cpu_s(self) -> float:
        """The processor time that all inside used, once `wait` has returned."""
        return max(self._watch.cpu_s, self._outer.cpu_s)

    @property
    def halted_s(self) -> float:
        """For how long it was halted, since it wrote too fast. Known once `wait` has returned."""
        return self._watch.halted_s

    def kill(self) -> None:
        """End everything inside at once. Does nothing when it has ended."""
        self._was_killed = True
        self._watch.halt_no_more()
        self._init.kill()
        if self._group is not None:
            self._group.kill()
        self._outer.signal(signal.SIGKILL)

    def holds(self, inodes: Collection[int]) -> bool:
        """Say whether each of these sockets is open in a process inside; never of none.

        Reads /proc: blocking.
        """
        return self._init.holds(inodes)

    def those_held(self, inodes: Collection[int]) -> frozenset[int]:
        """Return those of these sockets that are open in a process inside. Blocking, as `holds`."""
        return self._init.those_held(inodes)

    def terminate(self) -> None:
        """Ask every process inside to end (SIGTERM). Does nothing when they have."""
        for pid in self._init.descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    async def _end_when_exceeded(self) -> None:
        is_watched = False
        try:
            self.exceeded = await self._watch.run(self._init)
            is_watched = self.exceeded is None
        finally:
            if not is_watched:  # nor does it run on where the watch failed
                self.kill()

    async def _look_back(self, exit_status: int) -> None:
        """Take the watch's last word, and give the group back."""
        last = await asyncio.to_thread(self._watch.last_look, exit_status)
        self.exceeded = self.exceeded or last
        self._sandboxes.end_group(self._group)


def _watch_for(
    spec: SandboxSpec,
    group: Group | None,
    pace: WritePace,
    on_halted: Callable[[], None] | None,
) -> Watch:
    limits = spec.limits
    on_disk: dict[str, Path] = {}
    if {limits.disk_bytes, limits.disk_free_bytes, limits.file_bytes} != {None}:
        writable = (bind for bind in spec.binds if bind.writable and bind.source.is_dir())
        on_disk = {bind.target: bind.source for bind in writable}
    in_memory = [*IN_MEMORY, *([HOME_DIR] if spec.home_is_in_memory else ())]
    return Watch(
        limits,
        group=group,
        in_memory=in_memory,
        on_disk=on_disk,
        is_background=spec.is_background,
        pace=pace,
        on_halted=on_halted,
    )


def _found(argv: Sequence[str]) -> Sequence[str]:
    """Let it be the program's failure, with status 127, when it is not there."""
    return argv if argv[0] == bwrap.SHELL else [ENV, "--", *argv]


def _gate() -> tuple[int, int]:
    """Return the ends of a pipe: a byte written to the first opens the second.

    The second can be written to as well, so that it stays shut when the first is closed: a
    sandbox whose starter was killed must not run on without its limits.
    """
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise SandboxUnavailableError(f"no pipe can be made: {error.strerror}") from error
    try:
        return writing, os.open(f"/proc/self/fd/{reading}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        os.close(writing)
        raise SandboxUnavailableError(f"no pipe can be made: {error.strerror}") from error
    finally:
        os.close(reading)


def _limit(pid: int, spec: SandboxSpec, *, has_group: bool) -> None:
    """Put the limits of each process on one that has no other beside it yet.

    What it starts has them too. Its namespaces exist already: so the count of processes is the
    sandbox's own, and not that of everything which runs with the same uid outside.
    """
    limits = spec.limits
    wanted = {
        resource.RLIMIT_FSIZE: limits.cut_file_bytes,
        resource.RLIMIT_NOFILE: limits.open_file_count,
        resource.RLIMIT_CORE: NO_CORE_BYTES,
        resource.RLIMIT_CPU: None if limits.cpu_s is None else limits.cpu_s + SPARE_CPU_S,
    }
    if not has_group:  # twice as many processes, for the watch to see that they are too many
        wanted[resource.RLIMIT_NPROC] = 2 * limits.process_count
        spare_bytes = SPARE_MEMORY_BYTES if limits.is_strict else 0
        wanted[resource.RLIMIT_DATA] = limits.memory_bytes + spare_bytes
    for kind, value in wanted.items():
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, kind, (bound, bound))
    if spec.is_background:
        os.setpriority(os.PRIO_PROCESS, pid, max(BACKGROUND_NICE, os.nice(0)))
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(BACKGROUND_OOM_SCORE))


async def _begun(outer: Process, status: Status) -> int | None:
    """Return the pid of the sandbox's first process, or None when bubblewrap ended without one."""
    telling = asyncio.ensure_future(status.started())
    ending = asyncio.ensure_future(outer.ended())
    try:
        await asyncio.wait({telling, ending}, return_when=asyncio.FIRST_COMPLETED)
        return status.told()
    finally:
        telling.cancel()
        ending.cancel()
