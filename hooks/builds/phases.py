"""The phases of a build: detect, source, build, collect. What comes in and goes out is named.

    lease --detect--> plan
    commit's tar --source--> tree        plan, tree --build--> changed tree
    plan, tree --collect--> output

A plan without a command ends after detect: control has the source itself.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from hooks.builds import profiles
from hooks.builds.build_log import BuildLog
from hooks.builds.control import LeasedJob
from hooks.builds.errors import BuildFailedError
from hooks.builds.managed_toml import Profile
from hooks.builds.profiles import Plan
from hooks.builds.sandbox import APP_DIR, HOME_DIR, Bind, Sandbox, SandboxSpec
from hooks.builds.tree import Output, find_output, unpack
from hooks.builds.wire import Lease

T = TypeVar("T")
TAIL_LINE_CHARS = 300
_EXIT_HINTS = {
    126: "the shell may not execute the command",
    127: "the shell did not find the command: builds have the programs below /usr, and no network",
    137: "it was killed, perhaps for the memory that it took",
    153: "it wrote a file larger than allowed",
}


class Phase(StrEnum):
    """Each names the stage of its log lines too."""

    DETECT = "detect"
    SOURCE = "source"
    BUILD = "build"
    COLLECT = "collect"


PROGRESS = {Phase.DETECT: 0, Phase.SOURCE: 5, Phase.BUILD: 15, Phase.COLLECT: 80}


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one build, below the slot's scratch folder."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "app"

    @property
    def home(self) -> Path:
        return self.root / "home"


def detect(lease: Lease, log: BuildLog) -> Plan:
    """Decide what to do, and say so.

    Raises:
        BuildFailedError: See `profiles.detect`.
    """
    plan = profiles.detect(lease.root_entries, lease.files)
    what = "static site" if plan.profile is Profile.STATIC else f"web process: {plan.run.web}"
    where = "the whole tree" if plan.folder == "." else f"the folder {plan.folder}"
    how = "as committed" if plan.command is None else "after the build command"
    log.line(Phase.DETECT, f"{what}; {where}, {how}")
    for note in plan.notes:
        log.line(Phase.DETECT, note)
    return plan


async def fetch_source(job: LeasedJob, workspace: Workspace, log: BuildLog) -> None:
    """Unpack the commit's tree.

    Raises:
        BuildFailedError: See `tree.unpack`.
    """
    with tempfile.TemporaryFile(dir=workspace.root) as archive:
        await job.fetch_source(archive)
        size = await _in_thread(
            lambda is_stopped: unpack(archive, workspace.tree, is_stopped=is_stopped)
        )
    log.line(Phase.SOURCE, f"{size}, commit {job.lease.commit[:12]}")


async def run_command(plan: Plan, lease: Lease, workspace: Workspace, log: BuildLog) -> None:
    """Run the build command in the sandbox; every process of it is dead when this returns.

    Raises:
        BuildFailedError: `build.command_failed`, with the exit status and the last lines.
        SandboxUnavailableError: The sandbox does not work here.
    """
    assert plan.command is not None
    workspace.home.mkdir(mode=0o755)
    log.line(Phase.BUILD, f"$ {plan.command}")
    lines = log.output(Phase.BUILD)
    sandbox = await Sandbox.start(build_spec(plan.command, lease, workspace), on_output=lines.feed)
    try:
        exit_status = await sandbox.wait()
    finally:
        await sandbox.close()
        lines.end()
    if exit_status != 0:
        raise _command_failed(exit_status, lines.tail)


def build_spec(command: str, lease: Lease, workspace: Workspace) -> SandboxSpec:
    """Return the sandbox of a build: the tree and a home, both writable, and nothing else."""
    return SandboxSpec(
        argv=("/bin/sh", "-c", command),
        binds=(
            Bind(workspace.tree, APP_DIR, writable=True),
            Bind(workspace.home, HOME_DIR, writable=True),
        ),
        environ={
            "CI": "true",
            "GITD_SITE": lease.site,
            "GITD_ENVIRONMENT": lease.environment,
            "GITD_REF": lease.ref or "",
            "GITD_COMMIT": lease.commit,
        },
        is_background=True,
    )


async def collect(plan: Plan, job: LeasedJob, workspace: Workspace, log: BuildLog) -> None:
    """Send the output folder to control.

    Raises:
        BuildFailedError: See `tree.find_output`.
    """
    is_shown = profiles.is_published if plan.profile is Profile.STATIC else _everything

    def find(is_stopped: Callable[[], bool]) -> Output:
        return find_output(
            workspace.tree,
            plan.folder,
            size_bytes_max=job.lease.output_bytes_max,
            is_shown=is_shown,
            is_stopped=is_stopped,
        )

    output = await _in_thread(find)
    await job.send_output(lambda: _from_thread(output.chunks()))
    where = "the tree" if plan.folder == "." else plan.folder
    log.line(Phase.COLLECT, f"{output.size}, from {where}")


def _everything(_: str) -> bool:
    return True


def _command_failed(exit_status: int, tail: list[str]) -> BuildFailedError:
    hint = f" ({_EXIT_HINTS[exit_status]})" if exit_status in _EXIT_HINTS else ""
    message = f"The build command ended with exit status {exit_status}{hint}."
    if tail:
        message += " Its last lines:\n" + "\n".join(line[:TAIL_LINE_CHARS] for line in tail)
    return BuildFailedError("build.command_failed", message, exit_status=exit_status)


async def _in_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run `work(is_stopped)` in a thread; canceled, tell it to stop and wait until it did."""
    stopped = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(work, stopped.is_set))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: that it was told to stop is no news
        raise


async def _from_thread(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
