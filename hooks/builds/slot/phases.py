"""The phases of a build: detect, source, install, build, finish, collect.

    lease --detect--> plan
    commit's tar --source--> tree        step, tree --install, build, finish--> changed tree
    an earlier build's cache --cache--> tree and home --cache--> the next build's
    plan, tree --collect--> output

A plan without steps ends after detect: control has the source itself.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from hooks.builds.caches import dependencies
from hooks.builds.errors import BuildFailedError
from hooks.builds.logs.build_log import BuildLog, OutputLines
from hooks.builds.logs.leaks import refuse_secrets
from hooks.builds.logs.masking import Masker
from hooks.builds.phase import Phase
from hooks.builds.profiles import detection, managed_toml, runtimes, versions
from hooks.builds.profiles.managed_toml import CONFIG_INVALID, Fact, ManagedToml
from hooks.builds.profiles.plan import MANAGED_TOML, Listing, Plan, Step, told
from hooks.builds.profiles.runtimes import BUILD_ENVIRON
from hooks.builds.sandbox.disk_allowance import DiskAllowance, exceeded
from hooks.builds.sandbox.limits import LIMIT_EXCEEDED, Limit, Limits, explain, in_units
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.builds.sandbox.spec import APP_DIR, HOME_DIR, Bind, SandboxSpec
from hooks.builds.slot.control import LeasedJob
from hooks.builds.slot.network import BuildNetwork
from hooks.builds.sources.originals import Originals
from hooks.builds.sources.tree import Output, filled_folder, find_output, remove_tree
from hooks.builds.wire import CacheAnswer, CacheRequest, Folder, Given, Lease, Unchanged
from storage.errors import TreeError
from storage.source import SourceDirectory, SourceEntry, SourceFile

T = TypeVar("T")
TAIL_LINE_CHARS = 300
PROBLEMS_SHOWN_MAX = 5
NOTHING = Given()
# What programs say that end because they are refused memory, in the words of their languages.
_REFUSED_MEMORY = re.compile(r"MemoryError|annot allocate|bad_alloc|ENOMEM")
_EXIT_HINTS = {
    126: "the shell may not execute the command",
    127: "the shell did not find the command: builds have the programs below /usr",
    137: "it was killed",
}


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one build, below the slot's scratch folder, and what may be put into them."""

    root: Path
    allowance: DiskAllowance
    originals: Originals = field(default_factory=Originals)

    @property
    def tree(self) -> Path:
        return self.root / "app"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def seal(self) -> None:
        """From here on the steps may write. Blocking, a moment."""
        self.originals.seal(self.root)


async def detect(job: LeasedJob, log: BuildLog, toolchain: Mapping[str, str]) -> Plan:
    """Decide what to do, and say so. `toolchain`: the versions that the build finds.

    Raises:
        BuildFailedError: See `detection.detect` and `runtimes.require`.
    """
    lease = job.lease
    listing = Listing.of(Folder(lease.tree, lease.root_entries, lease.files))
    config = await _managed_toml(listing)
    root = config.root_of(lease.site)
    if root != ".":
        listing = await _list_folder(job, root)
        config = config.overridden_by(await _managed_toml(listing))
    plan = await _in_thread(lambda _: detection.detect(listing, config, runtimes.available()))
    log.line(Phase.DETECT, plan.explanation)
    unmet = await _in_thread(lambda _: versions.unmet(listing, plan, toolchain))
    for note in (*plan.notes, *unmet):
        log.line(Phase.DETECT, note)
    await asyncio.to_thread(runtimes.require, plan.needs)
    return replace(plan, unmet=tuple(unmet))


async def _managed_toml(listing: Listing) -> ManagedToml:
    text = listing.text(MANAGED_TOML)
    if text is None:
        return ManagedToml()
    where = listing.path(MANAGED_TOML)
    return await _in_thread(lambda _: managed_toml.parse(text, where=where))


async def _list_folder(job: LeasedJob, path: str) -> Listing:
    folder = await job.folder(path)
    if folder is None:
        raise BuildFailedError(
            CONFIG_INVALID,
            f"managed.toml has the site in {path!r}, and the commit has no such folder",
        )
    return Listing.of(folder, path)


async def fetch_variables(plan: Plan, job: LeasedJob, log: BuildLog) -> Given:
    """Fetch the values that the commit declares, and keep the secrets among them out of the log.

    Raises:
        BuildFailedError: `build.variable_missing`.
    """
    if not plan.steps:
        return NOTHING
    given = await job.variables(plan.variables)
    log.masker = Masker(given.secrets)
    if given.secrets or given.plain:
        log.line(Phase.DETECT, f"given {', '.join(sorted([*given.secrets, *given.plain]))}")
    if given.undeclared:
        log.line(
            Phase.DETECT,
            f"not given: {', '.join(given.undeclared)}, which build.variables does not declare",
        )
    return given


def make_home(network: BuildNetwork, workspace: Workspace) -> None:
    """Make the home of the steps, with the settings of package clients."""
    (workspace.home / "bin").mkdir(parents=True)  # see `runtimes.BUILD_PATH`
    network.write_settings(workspace.home)


async def restore_cache(
    plan: Plan, wanted: CacheRequest, job: LeasedJob, workspace: Workspace, log: BuildLog
) -> CacheAnswer:
    """Put back what an earlier build left, and say which or why none."""
    answer = await job.find_cache(wanted)
    if answer.digest is None:
        log.line(Phase.CACHE, answer.said)
        return answer
    scratch = workspace.root / "cache"
    with workspace.allowance.spool() as archive:
        try:
            if not await job.fetch_cache(answer.digest, archive):
                log.line(Phase.CACHE, f"{answer.said}; it could not be read, so it is not used")
                return CacheAnswer(answer.said)
            await _in_thread(
                lambda is_stopped: dependencies.put_back(
                    archive.content(),
                    scratch,
                    workspace.home,
                    workspace.tree,
                    plan,
                    allowance=workspace.allowance,
                    is_stopped=is_stopped,
                )
            )
        except BuildFailedError as error:
            await asyncio.to_thread(remove_tree, scratch)
            log.line(Phase.CACHE, f"{answer.said}; it is not used: {error}")
            return CacheAnswer(answer.said)
    log.line(Phase.CACHE, answer.said)
    return answer


async def keep_cache(
    plan: Plan, wanted: CacheRequest, job: LeasedJob, workspace: Workspace, log: BuildLog
) -> None:
    """Send what the next build begins with, and say what became of it."""
    size_max = job.lease.cache_bytes_max
    try:
        gathered = await _in_thread(
            lambda is_stopped: dependencies.gather(
                workspace.home,
                workspace.tree,
                plan,
                size_bytes_max=size_max,
                is_stopped=is_stopped,
            )
        )
    except TreeError as error:
        log.line(Phase.CACHE, f"not kept: {error}")
        return
    if gathered.said:
        log.line(Phase.CACHE, gathered.said)
    if gathered.files:
        said = await job.send_cache(wanted, lambda: _from_thread(gathered.chunks()))
        log.line(Phase.CACHE, said)


async def run_step(
    step: Step,
    spec: SandboxSpec,
    network: BuildNetwork,
    log: BuildLog,
    *,
    sandboxes: Sandboxes,
    used_s: float = 0,
    unmet: Sequence[str] = (),
) -> float:
    """Run a step as `spec`, of `build_spec`; every process of it is dead when this returns.

    `used_s`: the processor time that the steps before it used of the build's. Returns its own.
    `unmet`: which other versions the commit asks for, lines of `versions.unmet`.

    Raises:
        BuildFailedError: `build.limit_exceeded`, naming the setting; or `build.command_failed`,
            with the exit status. Both with the last lines.
        SandboxUnavailableError: The sandbox does not work here.
    """
    phase = Phase(step.name)
    log.line(phase, f"$ {step.command}")
    lines = log.output(phase)
    build_limits, spec = (
        spec.limits,
        network.given_to(_with_what_is_left(spec, used_s)),
    )

    def tell_of_halts() -> None:
        log.line(phase, _paced(build_limits))

    sandbox = await sandboxes.start(spec, on_output=lines.feed, on_halted=tell_of_halts)
    try:
        await network.serve(sandbox)
        exit_status = await sandbox.wait()
    finally:
        await sandbox.close()
        lines.end()
        if sandbox.halted_s:  # also where it took too long by that
            log.line(phase, f"waited {sandbox.halted_s:.1f} s for the disk")
    limit = sandbox.exceeded
    if limit is None and exit_status and sandbox.refuses_memory:
        limit = Limit.MEMORY if any(map(_REFUSED_MEMORY.search, lines.tail)) else None
    if limit is not None:
        message = explain(limit, build_limits, who="the build", section="builders")
        raise BuildFailedError(LIMIT_EXCEEDED, _with_tail(f"{message}.", lines.tail))
    if exit_status != 0:
        suspect = "; ".join(unmet) or log.engine
        raise _command_failed(step, exit_status, lines, network.problems, suspect)
    return sandbox.cpu_s


def _paced(limits: Limits) -> str:
    burst, rate = in_units(limits.write_burst_bytes), in_units(limits.write_bytes_per_s or 0)
    return (
        f"waits for the disk: the builds of this slot wrote more than {burst}, and go on at {rate}"
        " a second (builders.write_burst_bytes_max, builders.write_bytes_per_s_max)"
    )


def _with_what_is_left(spec: SandboxSpec, used_s: float) -> SandboxSpec:
    """Leave a step the processor time that its build has left; a second at least."""
    cpu_s = spec.limits.cpu_s
    if cpu_s is None:
        return spec
    return replace(spec, limits=replace(spec.limits, cpu_s=max(1, round(cpu_s - used_s))))


def build_spec(
    command: str,
    facts: tuple[Fact, ...],
    lease: Lease,
    workspace: Workspace,
    given: Given = NOTHING,
) -> SandboxSpec:
    """Return the sandbox of a build: the tree and a home, both writable, and nothing else.

    Nor does it know more of where it comes from and goes to than it asked for: what it yields
    serves wherever its inputs are the same.
    """
    return SandboxSpec(
        argv=("/bin/sh", "-c", command),
        binds=(
            Bind(workspace.tree, APP_DIR, writable=True),
            Bind(workspace.home, HOME_DIR, writable=True),
        ),
        environ={
            **BUILD_ENVIRON,
            **given.plain,
            **given.secrets,
            "CI": "true",
            "GITD_SITE": lease.site,
            **told(facts, lease.commit, lease.ref, lease.environment),
        },
        is_background=True,
        limits=limits_of(lease),
    )


def limits_of(lease: Lease) -> Limits:
    """Return what the sandbox of a build may use."""
    given = lease.limits
    return Limits(
        memory_bytes=given.memory_bytes_max,
        process_count=given.process_count_max,
        cpu_s=given.cpu_s_max,
        tmp_bytes=given.tmp_bytes_max,
        disk_bytes=given.disk_bytes_max,
        disk_free_bytes=given.disk_free_bytes_min,
        file_bytes=given.file_bytes_max,
        processors_free=given.processors_free_min,
        write_bytes_per_s=given.write_bytes_per_s_max or None,
        write_burst_bytes=given.write_burst_bytes_max,
    )


async def settle(plan: Plan, workspace: Workspace, log: BuildLog) -> Plan:
    """Return the plan as it is once the build has run: a program that it did not make is not run.

    The adapter of a server may be installed and not in use, and the framework makes pages then.
    """
    if plan.web_file is None:
        return plan
    if await asyncio.to_thread(_may_be_there, workspace.tree, plan.web_file):
        return plan
    log.line(
        Phase.COLLECT, f"the build made no {plan.web_file}: the pages that it wrote are served"
    )
    return detection.of_pages(plan)


def _may_be_there(tree: Path, path: str) -> bool:
    """Say whether the build may have made `path`. A link in it may lead there: none is followed."""
    for name in path.split("/"):
        tree /= name
        if tree.is_symlink():
            return True
        if not os.path.lexists(tree):
            return False
    return True


async def collect(plan: Plan, job: LeasedJob, workspace: Workspace, log: BuildLog) -> Unchanged:
    """Send the output folder to control, and return which it is, and what of it was not sent.

    Raises:
        BuildFailedError: See `tree.find_output`; `build.secret_in_output`; and
            `build.limit_exceeded` for a file that was cut off.
    """
    folder = plan.folder
    if plan.output_folders:
        folder = await _in_thread(lambda _: filled_folder(workspace.tree, plan.output_folders))

    def find(is_stopped: Callable[[], bool]) -> Output:
        return find_output(
            workspace.tree,
            folder,
            size_bytes_max=job.lease.output_bytes_max,
            is_shown=_part_of(plan, folder),
            is_stopped=is_stopped,
            originals=workspace.originals,
        )

    output = await _in_thread(find)
    _refuse_cut_files(output.entries, limits_of(job.lease))
    entries = [SourceDirectory(os.fsencode(folder)), *output.entries]
    await _in_thread(lambda is_stopped: refuse_secrets(entries, log.masker, is_stopped=is_stopped))
    await job.send_output(lambda: _from_thread(output.chunks()))
    where = "the tree" if folder == "." else folder
    log.line(Phase.COLLECT, f"{output.size}, from {where}")
    return Unchanged(folder, tuple(map(os.fsdecode, output.unchanged)))


def _part_of(plan: Plan, folder: str) -> Callable[[str], bool] | None:
    """Return what says of a path in the output folder whether the artifact has it; None for all."""
    if not plan.is_public and not plan.left_out:
        return None
    left_out = tuple(f"{name}/" for name in plan.left_out)
    before = "" if folder == "." else f"{folder}/"

    def is_part(path: str) -> bool:
        if plan.is_public and not detection.is_published(path):
            return False
        return not f"{before}{path}/".startswith(left_out)

    return is_part


def _refuse_cut_files(entries: Iterable[SourceEntry], limits: Limits) -> None:
    """Refuse what is no whole file, though no command has failed by it.

    Raises:
        BuildFailedError: `build.limit_exceeded`.
    """
    for each in entries:
        if isinstance(each, SourceFile) and each.size_bytes == limits.cut_file_bytes:
            raise exceeded(Limit.FILE, limits)


def _command_failed(
    step: Step, exit_status: int, lines: OutputLines, problems: list[str], suspect: str | None
) -> BuildFailedError:
    hint = f" ({_EXIT_HINTS[exit_status]})" if exit_status in _EXIT_HINTS else ""
    message = f"The {step.name} command ended with exit status {exit_status}{hint}."
    if problems:
        message += f" Its network: {', '.join(problems[:PROBLEMS_SHOWN_MAX])}."
    if reason := lines.reason.text:
        message += f"\n{reason}"
    elif suspect:  # programs seldom say that it is their version
        message += f"\nIt may be this: {suspect}"
    if not lines.reason.is_all:
        message = _with_tail(message, lines.tail)
    return BuildFailedError(lines.reason.code, message, exit_status=exit_status)


def _with_tail(message: str, tail: list[str]) -> str:
    if not tail:
        return message
    return "\n".join((message, "Its last lines:", *(line[:TAIL_LINE_CHARS] for line in tail)))


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
