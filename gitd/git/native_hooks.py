"""The operator's own hooks in a repository: run as git runs them.

Source: githooks(5); git's builtin/receive-pack.c.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from gitd.git.hook_config import hook_commands
from gitd.git.push_certificate import NonceVerdict
from gitd.git.signatures import Signer
from storage.git.errors import RepositoryCorruptError
from storage.git.repository import Repository

Say = Callable[[bytes], Awaitable[None]]
# Of the server's environment, what would point git at another repository than the pushed one.
_NOT_PASSED_ON = (
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
)


def hook_path(repository: Repository, name: str) -> Path | None:
    """Return the executable of a hook, or None."""
    configured = repository.config.text("core.hookspath")
    if configured:
        path = os.fspath(repository.path / Path(configured).expanduser() / name)
    else:
        path = f"{repository.path}/hooks/{name}"
    # Asked four times at every push: mostly for what is not there.
    return Path(path) if os.access(path, os.X_OK) and os.path.isfile(path) else None  # noqa: PTH113


class HookRunner:
    """Runs the hooks of one push.

    Args:
        environ: makes the server's, with what the push adds: who and from where.
        say: gets what hooks print, both streams as one.
        timeout_s: a hook that takes longer is killed and has failed.
    """

    def __init__(
        self,
        repository: Repository,
        environ: Callable[[], Mapping[str, str]],
        say: Say,
        *,
        timeout_s: float,
    ) -> None:
        self._repository = repository
        self._make_environ = environ
        self._say = say
        self._timeout_s = timeout_s

    @cached_property
    def environ(self) -> dict[str, str]:
        """What every hook of the push finds in its environment."""
        made = self._make_environ().items()
        return {name: value for name, value in made if name not in _NOT_PASSED_ON} | {
            "GIT_DIR": "."
        }

    def has(self, name: str) -> bool:
        """Say whether there is anything to run, or to complain about, at this event."""
        try:
            return bool(self._programs(name))
        except RepositoryCorruptError:
            return True

    def _programs(self, name: str) -> list[tuple[str, ...]]:
        """List what runs at an event: the commands of the config, then the file, as with git."""
        commands = hook_commands(self._repository.config, name)
        # Behind the command stand a name for the shell to complain under, and the arguments.
        programs: list[tuple[str, ...]] = [
            ("/bin/sh", "-c", f'{command} "$@"', command) for command in commands
        ]
        path = hook_path(self._repository, name)
        return programs if path is None else [*programs, (os.fspath(path.absolute()),)]

    async def run(
        self,
        name: str,
        *arguments: bytes,
        stdin: bytes = b"",
        environ: Mapping[str, str] | None = None,
    ) -> bool:
        """Run the hooks of an event to their ends; true when all succeeded or none exists.

        One that fails keeps none behind it from running, as with git.
        """
        try:
            programs = self._programs(name)
        except RepositoryCorruptError as error:
            await self._say(f"error: {error}\n".encode())
            return False
        done = [
            await self._run(name, (*program, *map(os.fsdecode, arguments)), stdin, environ or {})
            for program in programs
        ]
        return all(done)

    async def _run(
        self, name: str, command: Sequence[str], stdin: bytes, environ: Mapping[str, str]
    ) -> bool:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._repository.path,
                env={**self.environ, **environ},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            await self._say(f"error: cannot run {name}: {error.strerror}\n".encode())
            return False
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(_feed(process, stdin), self._relay(process))
                return await process.wait() == 0
        except TimeoutError:
            await self._say(
                f"error: {name} took longer than {self._timeout_s:g} s (git.hook_s)\n".encode()
            )
            return False
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        pending = b""
        while chunk := await process.stdout.read(8192):
            pending += chunk
            cut = max(pending.rfind(b"\n"), pending.rfind(b"\r")) + 1
            if cut or len(pending) > 8192:
                cut = cut or len(pending)
                await self._say(pending[:cut])
                pending = pending[cut:]
        if pending:
            await self._say(pending)


async def _feed(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # a hook need not read
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()
    with contextlib.suppress(ConnectionError):
        await process.stdin.wait_closed()


def quarantine_environ(repository: Repository, quarantine: Path) -> dict[str, str]:
    """Return what lets git commands of a pre-receive hook see the incoming objects."""
    return {
        "GIT_QUARANTINE_PATH": os.fspath(quarantine.absolute()),
        "GIT_OBJECT_DIRECTORY": os.fspath(quarantine.absolute()),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": os.fspath((repository.path / "objects").absolute()),
    }


def certificate_environ(oid: str, signer: Signer, verdict: NonceVerdict) -> dict[str, str]:
    """Return `GIT_PUSH_CERT*`; `oid` names the blob of the certificate."""
    environ = {
        "GIT_PUSH_CERT": oid,
        "GIT_PUSH_CERT_SIGNER": signer.name,
        "GIT_PUSH_CERT_KEY": signer.key,
        "GIT_PUSH_CERT_STATUS": signer.status,
        "GIT_PUSH_CERT_NONCE": verdict.nonce,
        "GIT_PUSH_CERT_NONCE_STATUS": verdict.status,
    }
    if verdict.slop_s is not None:
        environ["GIT_PUSH_CERT_NONCE_SLOP"] = str(verdict.slop_s)
    return environ


def option_environ(options: Sequence[str] | None) -> dict[str, str]:
    """Return `GIT_PUSH_OPTION_*`; nothing at all when the client sent none with the capability."""
    if options is None:
        return {}
    numbered = {f"GIT_PUSH_OPTION_{at}": option for at, option in enumerate(options)}
    return {"GIT_PUSH_OPTION_COUNT": str(len(options)), **numbered}
