"""The sandbox: a process tree of its own that sees nothing of the machine but what it is given.

Made by bubblewrap: namespaces of its own for users, processes, mounts, IPC, host name and (unless
asked for) network; the runtimes below /usr read-only; a filter of system calls; limits per process.
Builds run in it, and so do the web processes of sites.

Source: bwrap(1), version 0.8.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from hooks.builds import seccomp
from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.listener import listen_inside
from hooks.builds.namespace import Init, Status, end_named
from hooks.process import Process, adopt_orphans

BWRAP = Path("/usr/bin/bwrap")
PRLIMIT = "/usr/bin/prlimit"  # from util-linux; runs inside, see _limited
IN_BACKGROUND = ("/usr/bin/nice", "-n", "10", "/usr/bin/choom", "-n", "500", "--")
APP_DIR = "/app"  # where a build finds its source, and a site its release: paths stay true
HOME_DIR = "/home/app"
INNER_UID = 1000  # what the program believes to be, whatever its uid on the machine

_BASE_ENVIRON = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": HOME_DIR,
    "USER": "app",
    "LOGNAME": "app",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    "TZ": "UTC",
}
_ETC_FILES = {
    "passwd": b"root:x:0:0:root:/root:/bin/sh\n"
    b"app:x:1000:1000:app:/home/app:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": b"root:x:0:\napp:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
}
_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"
_ETC_OF_THE_MACHINE = (
    "ssl",
    "ca-certificates",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "php.d",  # which of its extensions PHP loads: without them composer does not start
    "php.ini",
)
_ETC_FOR_NETWORK = ("resolv.conf", "hosts", "services", "protocols", "gai.conf")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process, or the sandbox as a whole, may use. None: no limit of ours.

    `process_count` counts the threads of this sandbox alone, whatever else its uid runs.
    `data_bytes` is private writable memory (not address space, of which node and go reserve much).
    `tmp_bytes` bounds /tmp and /dev/shm each, which are memory.
    """

    data_bytes: int | None = 2 << 30
    process_count: int | None = 512
    file_bytes: int | None = 2 << 30
    open_file_count: int | None = 4096
    cpu_s: int | None = None
    tmp_bytes: int = 512 << 20


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the machine, and where the sandbox sees it."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What to run, and what it may see.

    `argv[0]` is looked up in the sandbox's PATH. `environ` is added to a small base (PATH, HOME,
    LANG, ...) and wins over it. `binds` are made in their order. Without a bind at `HOME_DIR` the
    home is a folder in memory, of at most `limits.tmp_bytes`. `network`: share the machine's.
    `listen_port`: a port of the sandbox's own loopback that `Sandbox.listener` listens on.
    `is_background`: others come first, for the processor and when memory runs out.
    """

    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    cwd: str = APP_DIR
    environ: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    listen_port: int | None = None
    is_background: bool = False
    hostname: str = "build"
    limits: Limits = field(default_factory=Limits)


_named = [BWRAP.name]  # what sandboxes of this process are called in its list of processes


def end_leftovers(folder: Path) -> int:
    """Kill the sandboxes that an earlier process with the same `folder` left, and return how many.

    bubblewrap asks to die with its parent only when all is set up: whoever is killed while it
    starts a sandbox leaves it running. From here on sandboxes bear a name made of `folder`, by
    which the next process knows them.
    """
    name = f"{BWRAP.name}-{blake3(os.fsencode(folder.resolve())).hexdigest()[:16]}"
    _named[0] = name
    return end_named(name)


class Sandbox:
    """A running sandbox. Made by `start`; always `wait` for its end.

    It ends with this process, and it never outlives `wait`.
    """

    listener: socket.socket | None = None
    """Listens inside, before the program begins, when `listen_port` asks for it. The caller's."""

    def __init__(self, outer: Process, init_pid: int | None, status: Status) -> None:
        self._outer = outer
        self._init = Init.open(init_pid, parent_pid=outer.pid)
        self._status = status
        self._was_killed = False

    @classmethod
    async def start(cls, spec: SandboxSpec, *, on_output: Callable[[bytes], None]) -> Sandbox:
        """Start `spec` and return once its namespaces exist. Call it in the main thread.

        `on_output` gets what is written to output and error, as it comes, in the loop.

        Raises:
            SandboxUnavailableError: bubblewrap is not there, or this process is root.
        """
        if os.geteuid() == 0:
            raise SandboxUnavailableError(
                "the sandbox is never run as root: root inside could change the machine's kernel"
            )
        adopt_orphans()
        status = Status(on_output)
        with contextlib.ExitStack() as gate, contextlib.ExitStack() as files:
            args, pass_fds = _arguments(spec, files)
            pass_fds.append(status.open(files))
            args += ["--json-status-fd", str(pass_fds[-1])]
            if spec.listen_port is not None:
                pass_fds.append(_closed_gate(files, gate))
                args += ["--block-fd", str(pass_fds[-1])]
            args_fd = _memory_file(files, b"".join(f"{arg}\0".encode() for arg in args))
            argv = [_named[0], "--args", str(args_fd), "--", *_limited(spec)]
            try:
                # bwrap's own environment is empty: the sandbox can read it in /proc/1/environ
                outer = Process.start(
                    argv,
                    program=str(BWRAP),
                    environ={},
                    on_output=status.on_output,
                    pass_fds=[args_fd, *pass_fds],
                )
            except OSError as error:
                status.close()
                raise SandboxUnavailableError(f"cannot run {BWRAP}: {error.strerror}") from error
            files.close()
            beginning = asyncio.ensure_future(_begun(outer, status))
            try:
                init_pid = await asyncio.shield(beginning)
            except asyncio.CancelledError:
                # Killed before it has told its child, bubblewrap would leave it behind: the child
                # waits for its word for ever, and holds the output open.
                await cls(outer, await beginning, status).close()
                raise
            sandbox = cls(outer, init_pid, status)
            if spec.listen_port is not None and init_pid is not None:
                await sandbox._listen(init_pid, spec.listen_port)
        return sandbox

    async def _listen(self, init_pid: int, port: int) -> None:
        try:
            self.listener = listen_inside(init_pid, port)
        except OSError as error:
            await self.close()
            raise SandboxUnavailableError(
                f"cannot listen inside the sandbox: {error.strerror}"
            ) from error

    async def wait(self) -> int:
        """Return the exit status (128 + n after signal n) once every process inside is dead.

        May be called again, and canceled.

        Raises:
            SandboxUnavailableError: The sandbox failed before the program began.
        """
        await self._outer.ended()
        self._init.kill()
        await self._init.gone()
        self._init.reap()
        await self._outer.wait()  # not for whoever was handed the output and lives elsewhere
        self._status.close()
        if self._status.exit_code is not None:
            return self._status.exit_code
        if self._was_killed:
            return 128 + signal.SIGKILL
        raise SandboxUnavailableError(f"the sandbox did not start: {self._status.tail}")

    async def close(self) -> None:
        """Kill what runs, and return once every process inside is dead. May be called again."""
        self.kill()
        await self.wait()

    def kill(self) -> None:
        """End everything inside at once. Does nothing when it has ended."""
        self._was_killed = True
        self._init.kill()
        self._outer.signal(signal.SIGKILL)

    def holds(self, inodes: Collection[int]) -> bool:
        """Say whether each of these sockets is open in a process inside. Reads /proc: blocking."""
        return self._init.holds(inodes)

    def terminate(self) -> None:
        """Ask every process inside to end (SIGTERM). Does nothing when they have."""
        for pid in self._init.descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)


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


def bwrap_arguments(spec: SandboxSpec) -> list[str]:
    """Return bubblewrap's arguments for `spec`, without those that name open files."""
    network = ["--share-net"] if spec.network else []
    environ = {**_BASE_ENVIRON, **spec.environ}
    tmp_bytes = str(spec.limits.tmp_bytes)
    etc = (*_ETC_OF_THE_MACHINE, *(_ETC_FOR_NETWORK if spec.network else ()))
    args = ["--unshare-all", *network, "--unshare-user", "--disable-userns"]
    args += ["--uid", str(INNER_UID), "--gid", str(INNER_UID)]
    args += ["--die-with-parent", "--new-session", "--hostname", spec.hostname, "--clearenv"]
    for name, value in environ.items():
        args += ["--setenv", name, value]
    args += ["--ro-bind", "/usr", "/usr", *_top_level_folders()]
    for name in etc:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for path in _settings_of_php():
        args += ["--ro-bind", path, path]
    args += ["--proc", "/proc", "--dev", "/dev"]
    args += ["--perms", "1777", "--size", tmp_bytes, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108 - the sandbox's own
    args += ["--perms", "1777", "--size", tmp_bytes, "--tmpfs", "/tmp"]  # noqa: S108 - likewise
    args += ["--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108 - likewise
    if all(bind.target != HOME_DIR for bind in spec.binds):
        args += ["--size", tmp_bytes, "--tmpfs", HOME_DIR]
    for bind in spec.binds:
        args += ["--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target]
    return [*args, "--chdir", spec.cwd, "--remount-ro", "/"]


def _arguments(spec: SandboxSpec, files: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    contents = dict(_ETC_FILES)
    if not spec.network:
        contents["hosts"] = _HOSTS
    args: list[str] = []
    pass_fds: list[int] = []
    for name, content in contents.items():
        pass_fds.append(_memory_file(files, content))
        args += ["--perms", "0444", "--file", str(pass_fds[-1]), f"/etc/{name}"]
    try:
        pass_fds.append(_memory_file(files, seccomp.program()))
    except seccomp.UnknownArchitectureError as error:
        raise SandboxUnavailableError(str(error)) from error
    return [*args, *bwrap_arguments(spec), "--seccomp", str(pass_fds[-1])], pass_fds


def _memory_file(files: contextlib.ExitStack, content: bytes) -> int:
    """Return a descriptor that reads `content`; it is closed with `files`."""
    fd = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    files.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _closed_gate(files: contextlib.ExitStack, gate: contextlib.ExitStack) -> int:
    """Return a descriptor that bubblewrap waits at, before the program, until `gate` is closed."""
    waiting, gate_fd = os.pipe2(os.O_CLOEXEC)
    files.callback(os.close, waiting)
    gate.callback(os.close, gate_fd)
    return waiting


def _top_level_folders() -> Iterator[str]:
    """Show /bin, /lib, ... as the machine has them: links into /usr, or folders of their own."""
    for path in (Path("/bin"), Path("/sbin"), Path("/lib"), Path("/lib32"), Path("/lib64")):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))


def _settings_of_php() -> Iterator[str]:
    """Show Debian's settings of PHP, and not those of its FPM: they hold others' environments."""
    for name in ("cli", "mods-available"):
        yield from map(str, Path("/etc/php").glob(f"*/{name}"))


def _limited(spec: SandboxSpec) -> list[str]:
    """Return the program's argv behind its limits.

    They are set inside, after the namespaces exist: so the count of processes is the sandbox's own
    and not that of everything which runs with the same uid outside.
    """
    limits = spec.limits
    wanted = {
        "data": (resource.RLIMIT_DATA, limits.data_bytes),
        "nproc": (resource.RLIMIT_NPROC, limits.process_count),
        "fsize": (resource.RLIMIT_FSIZE, limits.file_bytes),
        "nofile": (resource.RLIMIT_NOFILE, limits.open_file_count),
        "cpu": (resource.RLIMIT_CPU, limits.cpu_s),
        "core": (resource.RLIMIT_CORE, 0),
    }
    options = []
    for name, (kind, value) in wanted.items():
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            options.append(f"--{name}={bound}")
    background = IN_BACKGROUND if spec.is_background else ()
    return [PRLIMIT, *options, "--", *background, *spec.argv]
