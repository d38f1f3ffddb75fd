"""The builder slots and the site host as children of control: started, watched, started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger(__name__)

FIRST_DELAY_S = 0.05
DELAY_S_MAX = 5.0
STEADY_S = 10.0  # a child that lived this long starts again at once
STOP_S = 15.0
NOTE_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child: `arguments` follow `gitd`. One that `survives` control is taken over by the next.

    Builders die with control: their leases do. The site host goes on serving.
    """

    name: str
    arguments: tuple[str, ...]
    survives: bool


class Children:
    """Control's children. `run` keeps them alive until it is canceled, then ends them."""

    def __init__(self, specs: Sequence[ChildSpec], *, run_folder: Path) -> None:
        self._specs = tuple(specs)
        self._run_folder = run_folder
        self._alive: dict[str, _Child] = {}

    def has_survivor(self) -> bool:
        """Whether a child of an earlier control lives: it holds what it holds, such as a port."""
        found = [child for spec in self._specs if (child := self._survivor(spec)) is not None]
        for child in found:
            child.close()
        return bool(found)

    def kill(self, name: str) -> None:
        """End a child that hangs, at once: it is started again."""
        child = self._alive.get(name)
        if child is not None:
            log.warning("child_hangs", child=name, pid=child.pid)
            child.send(signal.SIGKILL)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for spec in self._specs:
                tasks.create_task(self._keep_alive(spec))

    async def _keep_alive(self, spec: ChildSpec) -> None:
        loop = asyncio.get_running_loop()
        delay_s = FIRST_DELAY_S
        while True:
            began = loop.time()
            child = self._survivor(spec) or self._start(spec)
            if child is not None:
                await self._watch(spec, child)
            is_steady = loop.time() - began > STEADY_S
            delay_s = FIRST_DELAY_S if is_steady else min(delay_s * 2, DELAY_S_MAX)
            await asyncio.sleep(delay_s)

    async def _watch(self, spec: ChildSpec, child: _Child) -> None:
        """Return when the child has ended; canceled, see to it that it does."""
        self._alive[spec.name] = child
        try:
            is_over = False
            while not is_over:
                is_noted = self._note(spec, child)
                is_over = await child.has_gone(within_s=None if is_noted else NOTE_AGAIN_S)
        except asyncio.CancelledError:
            await child.stop()
            raise
        finally:
            del self._alive[spec.name]
        log.warning("child_ended", child=spec.name, pid=child.pid)

    def _start(self, spec: ChildSpec) -> _Child | None:
        """Start it; None where the system has no room for that now, so that it is tried again."""
        try:
            process = subprocess.Popen(
                # -P: whatever lies in the folder that control was started in is not imported as
                # root.
                [sys.executable, "-P", "-m", "gitd", *spec.arguments],
                stdin=subprocess.DEVNULL,
                env=_child_environ(),
                start_new_session=True,
            )
            child = _Child.of(process)
        except OSError as error:
            log.error("child_not_started", child=spec.name, reason=str(error))  # noqa: TRY400 - a fact, no bug
            return None
        log.info("child_started", child=spec.name, pid=child.pid)
        return child

    def _note(self, spec: ChildSpec, child: _Child) -> bool:
        """Write down whom the next control is to take over; say whether that is done.

        One that was taken over stands there already.
        """
        if not spec.survives or not child.is_own:
            return True
        note = msgspec.json.encode(_Note(child.pid, child.born, spec.arguments))
        path = self._note_path(spec)
        try:
            path.with_suffix(".new").write_bytes(note)
            path.with_suffix(".new").rename(path)
        except OSError as error:
            log.error("child_not_noted", child=spec.name, pid=child.pid, reason=str(error))  # noqa: TRY400 - a fact, no bug
            return False
        return True

    def _survivor(self, spec: ChildSpec) -> _Child | None:
        """The child of an earlier control that was killed, if it is the one wanted now."""
        if not spec.survives:
            return None
        try:
            note = msgspec.json.decode(self._note_path(spec).read_bytes(), type=_Note)
            child = _Child.open(note.pid, None)
        except (OSError, OverflowError, ValueError):
            return None
        if child.born != note.born:
            child.close()
            return None
        if note.arguments != spec.arguments:
            log.info("child_replaced", child=spec.name, pid=child.pid)
            child.send(signal.SIGTERM)
        else:
            log.info("child_taken_over", child=spec.name, pid=child.pid)
        return child

    def _note_path(self, spec: ChildSpec) -> Path:
        return self._run_folder / f"{spec.name}.json"


class _Note(msgspec.Struct, frozen=True):
    """A child that survives, as it is written down for the next control."""

    pid: int
    born: int
    arguments: tuple[str, ...]


class _Child:
    """A process held by a pidfd: its number cannot come to mean another one."""

    def __init__(
        self, pid: int, pidfd: int, born: int, process: subprocess.Popen[bytes] | None
    ) -> None:
        self.pid = pid
        self.born = born
        self._pidfd = pidfd
        self._process = process

    @classmethod
    def open(cls, pid: int, process: subprocess.Popen[bytes] | None) -> _Child:
        pidfd = os.pidfd_open(pid)
        try:
            return cls(pid, pidfd, _born(pid), process)
        except OSError:
            os.close(pidfd)
            raise

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> _Child:
        """Hold a process of our own; one that cannot be held is ended."""
        try:
            return cls.open(process.pid, process)
        except OSError:
            process.kill()
            process.wait()
            raise

    @property
    def is_own(self) -> bool:
        """Whether this process started it."""
        return self._process is not None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def gone(self) -> None:
        """Return when the process has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)
        if self._process is not None:
            self._process.wait()
        self.close()

    async def has_gone(self, *, within_s: float | None) -> bool:
        """As `gone`; False when it has not after so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                await self.gone()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Ask the process to end, and see to it."""
        self.send(signal.SIGTERM)
        if not await self.has_gone(within_s=STOP_S):
            log.warning("child_killed", pid=self.pid)
            self.send(signal.SIGKILL)
            await self.gone()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._pidfd)


def _born(pid: int) -> int:
    """When the process started, in clock ticks since boot. Source: proc(5), stat field 22."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])


def _child_environ() -> dict[str, str]:
    """What a child may know of this process's environment: no setting, no credential."""
    kept = ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ}
