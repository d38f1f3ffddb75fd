"""A builder slot: leases one build after the other from control, runs it, and reports.

It keeps nothing that anybody would miss: whatever happens to it, control leases the build to
another slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from hooks.builds.caches import dependencies
from hooks.builds.errors import (
    BuildFailedError,
    ControlUnreachableError,
    LeaseLostError,
    SandboxUnavailableError,
)
from hooks.builds.logs.build_log import BuildLog
from hooks.builds.phase import PROGRESS, Phase
from hooks.builds.profiles.plan import Plan
from hooks.builds.profiles.toolchain import Toolchain
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.sandbox import BACKGROUND_OOM_SCORE, Sandboxes
from hooks.builds.slot import fetching, phases
from hooks.builds.slot.control import Control, LeasedJob
from hooks.builds.slot.network import BuildNetwork
from hooks.builds.slot.phases import Workspace
from hooks.builds.slot.sweeper import Sweeper
from hooks.builds.sources.kept_sources import KeptSources
from hooks.builds.sources.tree import remove_tree
from hooks.builds.wire import (
    BuildError,
    CacheAnswer,
    CacheRequest,
    Finish,
    Given,
    Lease,
    Unchanged,
)
from hooks.process import die_with_parent, drop_privileges

log = structlog.get_logger(__name__)

LEASE_WAIT_S = 30.0
BEATS_PER_LEASE = 3.3  # heartbeats in the time that a lease lasts
FIRST_BEAT_S = 0.1  # after the lease: a build that has ended by then needs none
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
SCRATCH_MODE = 0o700


@dataclass(frozen=True, slots=True)
class BuilderConfig:
    """A slot. `scratch` is its own folder, emptied at each start.

    `uid` and `gid`: what to become, when started as root. `cpu_weight`: what its builds get of the
    processor while others want it who weigh 100; None leaves it as it is. `watchdog`: what to call,
    and every how many seconds, as long as this process does not hang. `ready`: what to call once,
    before that, when it listens to signals.
    """

    socket: Path
    scratch: Path
    slot: str = "slot-0"
    uid: int | None = None
    gid: int | None = None
    die_with_parent: bool = False
    cpu_weight: int | None = None
    watchdog: tuple[float, Callable[[], None]] | None = None
    ready: Callable[[], None] | None = None


def main(config: BuilderConfig) -> None:
    """Prepare control groups and give up root, then build until SIGTERM or SIGINT.

    Raises:
        SystemExit: Started as root, with no other ids to become.
    """
    parent_pid = os.getppid()
    os.umask(0o022)
    config.scratch.mkdir(mode=SCRATCH_MODE, parents=True, exist_ok=True)
    sandboxes = Sandboxes()
    if os.geteuid() == 0:
        if not config.uid or not config.gid:
            raise SystemExit("gitd builder: builds never run as root: give --uid and --gid")
        os.chown(config.scratch, config.uid, config.gid)
        config.scratch.chmod(SCRATCH_MODE)
        # As root: what the kernel noted from root, no build takes back.
        Path("/proc/self/oom_score_adj").write_text(str(BACKGROUND_OOM_SCORE))
        owner = (config.uid, config.gid)
        sandboxes.keep_in_groups(config.slot, owner=owner, weight=config.cpu_weight)
        drop_privileges(config.uid, config.gid)
    else:
        sandboxes.keep_in_groups(config.slot, weight=config.cpu_weight)
    if config.die_with_parent:
        die_with_parent(parent_pid)
    asyncio.run(run_builder(config, sandboxes))


async def run_builder(config: BuilderConfig, sandboxes: Sandboxes) -> None:
    """Build until SIGTERM or SIGINT; a build that runs then is killed and left to others."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if config.ready is not None:
        config.ready()
    building = asyncio.create_task(_build_for_ever(config, sandboxes))
    stopping = asyncio.create_task(stopped.wait())
    beating = asyncio.create_task(_beat(*config.watchdog)) if config.watchdog else None
    await asyncio.wait([building, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    building.cancel()
    if beating is not None:
        beating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building
    log.info("builder_stopped", slot=config.slot)


async def _beat(every_s: float, say_alive: Callable[[], None]) -> None:
    """Say that this process does not hang, for ever."""
    while True:
        say_alive()
        await asyncio.sleep(every_s)


async def _build_for_ever(config: BuilderConfig, sandboxes: Sandboxes) -> None:
    await asyncio.to_thread(sandboxes.end_leftovers, config.scratch)
    await asyncio.to_thread(_empty, config.scratch)
    toolchain = Toolchain(sandboxes)
    pause_s = RETRY_FIRST_S
    sweeper, kept = Sweeper(config.scratch), KeptSources(config.scratch)
    async with (
        Control(config.socket, config.slot) as control,
        contextlib.aclosing(kept),
        contextlib.aclosing(sweeper),
    ):
        log.info("builder_started", slot=config.slot)
        while True:
            kept.rest()
            versions = await toolchain.versions()
            await sweeper.room()
            try:
                lease = await control.lease(LEASE_WAIT_S, versions)
            except ControlUnreachableError as error:
                log.debug("control_unreachable", slot=config.slot, reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            pause_s = RETRY_FIRST_S
            if lease is not None:
                build = _Build(control.job(lease), config, versions, kept, sandboxes=sandboxes)
                sandboxes.leave_processors(build.limits.processors_free)
                await _run_build(build, sweeper)


async def _run_build(build: _Build, sweeper: Sweeper) -> None:
    """Run one leased build and report its end, unless the lease is lost or the job canceled.

    When this slot is stopped meanwhile, the build is given back.
    """
    job = build.job
    facts = {"job_id": job.lease.job_id, "site": job.lease.site, "slot": build.slot}
    started = time.monotonic()
    try:
        outcome = await build.run()
        if outcome is not None:
            outcome = await _finish(build, outcome)
    except (LeaseLostError, ControlUnreachableError) as error:
        log.warning("build_lost", reason=str(error), **facts)
    except asyncio.CancelledError:
        await job.give_back()
        raise
    except Exception:  # the ring of a build: the slot has others to run
        log.exception("build_lost", **facts)
    else:
        log.info(
            "build_finished",
            status="canceled" if outcome is None else outcome.status,
            code=outcome.error.code if outcome is not None and outcome.error else None,
            duration_s=round(time.monotonic() - started, 3),
            **facts,
        )
    finally:
        sweeper.sweep(build.folder, build.limits)


async def _finish(build: _Build, outcome: Finish) -> Finish:
    """Report the end of a build, or that it crashed where that cannot be told; what was told."""
    try:
        await build.job.finish(outcome)
    except (LeaseLostError, ControlUnreachableError):
        raise
    except Exception as error:  # noqa: BLE001 - `crashed` logs it
        outcome = build.crashed(error)
        await build.job.finish(outcome)  # without the last lines: they may be what cannot be sent
    return outcome


class _Build:
    """One build on its way in `folder`: the phase it is in, its log, its heartbeats."""

    def __init__(
        self,
        job: LeasedJob,
        config: BuilderConfig,
        toolchain: Mapping[str, str],
        kept: KeptSources,
        *,
        sandboxes: Sandboxes,
    ) -> None:
        self.job = job
        self.slot = config.slot
        # Its path is in the build's own /proc/self/mountinfo: no name that means something here.
        self.folder = config.scratch / f"build-{secrets.token_hex(8)}"
        self.limits = phases.limits_of(job.lease)
        self._toolchain = toolchain
        self._kept = kept
        self._sandboxes = sandboxes
        allowance = DiskAllowance(self.folder, self.limits)
        self._workspace = Workspace(self.folder, allowance)
        self._log = BuildLog(chars_max=job.lease.limits.log_chars_max)
        self._phase = Phase.DETECT
        self._advanced = asyncio.Event()
        self._timings: dict[str, float] = {}

    async def run(self) -> Finish | None:
        """Return the outcome, or None when the job was canceled.

        Nothing of the build runs any more then.

        Raises:
            LeaseLostError: The outcome is nobody's business any more.
            ControlUnreachableError: It cannot be told.
        """
        work = asyncio.create_task(self._work())
        helpers = [
            asyncio.create_task(self._keep_lease()),
            asyncio.create_task(self._tell_phases()),
            asyncio.create_task(self._log.run(self.job.log)),
        ]
        try:
            await asyncio.wait([work, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for helper in helpers:
                if helper.done():
                    helper.result()
            outcome = work.result() if work.done() else None
        except (LeaseLostError, ControlUnreachableError):
            raise
        except Exception as error:  # noqa: BLE001 - `crashed` logs it
            outcome = self.crashed(error)
        finally:
            await _end_tasks([work, *helpers])
        # The last lines go along with it: one call less to wait for.
        return outcome and msgspec.structs.replace(outcome, log=self._log.rest())

    async def _work(self) -> Finish:
        lease = self.job.lease
        try:
            async with asyncio.timeout(lease.timeout_s):
                outcome = await self._phases(lease)
        except TimeoutError:
            outcome = self._failed(
                "build.timed_out",
                f"time: the build took longer than {lease.timeout_s:,} s (builders.timeout_s).",
            )
        except BuildFailedError as error:
            outcome = self._failed(error.code, str(error), error.exit_status)
        except SandboxUnavailableError as error:
            log.error("sandbox_unavailable", reason=str(error))  # noqa: TRY400 - a fact, no bug
            outcome = self._failed("build.sandbox_unavailable", f"This builder cannot run: {error}")
        except LeaseLostError:
            raise
        except Exception as error:  # noqa: BLE001 - `crashed` logs it
            outcome = self.crashed(error)
        await self._log.flush(but_for_a_batch=True)
        return outcome

    async def _phases(self, lease: Lease) -> Finish:
        with self._entered(Phase.DETECT):
            plan = await phases.detect(self.job, self._log, self._toolchain)
            given = await phases.fetch_variables(plan, self.job, self._log)
        settings = plan.settings
        cache_inputs: dict[str, str] = {}
        unchanged = Unchanged()
        if not plan.is_source:
            self._workspace.root.mkdir(mode=SCRATCH_MODE)
            with self._entered(Phase.SOURCE):
                await fetching.fetch_source(plan, self.job, self._workspace, self._log, self._kept)
            wanted = await self._cache_key(plan)
            settings["network"], cache = await self._run_steps(plan, wanted, lease, given)
            if cache.digest is not None:
                cache_inputs["dependencies"] = cache.digest
            with self._entered(Phase.COLLECT):
                plan = await phases.settle(plan, self._workspace, self._log)
                unchanged = await phases.collect(plan, self.job, self._workspace, self._log)
                settings["output"] = unchanged.folder
            is_new = not cache.is_hit or (plan.cache and not cache.is_borrowed)
            if is_new and not lease.clean and not given.secrets and self._leaves_any(plan):
                with self._entered(Phase.CACHE):
                    await phases.keep_cache(plan, wanted, self.job, self._workspace, self._log)
        return Finish(
            slot=self.slot,
            status="succeeded",
            profile=plan.profile,
            run=plan.run,
            output="source" if plan.is_source else "tar",
            folder=plan.source_folder if plan.is_source else plan.root,
            is_public=plan.is_public,
            ignores_submodules=plan.ignores_submodules,
            ignores_lfs=plan.ignores_lfs,
            timings=self._timings,
            settings=settings,
            toolchain=dict(self._toolchain),
            cache_inputs=cache_inputs,
            unchanged=unchanged,
        )

    def _leaves_any(self, plan: Plan) -> bool:
        return dependencies.leaves_any(self._workspace.home, self._workspace.tree, plan)

    async def _cache_key(self, plan: Plan) -> CacheRequest:
        key = await asyncio.to_thread(
            dependencies.key_of, self._workspace.tree, plan, self._toolchain
        )
        return CacheRequest(plan.profile, key)

    async def _run_steps(
        self, plan: Plan, wanted: CacheRequest, lease: Lease, given: Given
    ) -> tuple[str, CacheAnswer]:
        """Run the steps; return what they could reach, and the cache that they began with."""
        network = BuildNetwork(await self.job.egress(), self._log)
        try:
            phases.make_home(network, self._workspace)
            with self._entered(Phase.CACHE):
                cache = await phases.restore_cache(
                    plan, wanted, self.job, self._workspace, self._log
                )
            used_s = 0.0
            await asyncio.to_thread(self._workspace.seal)
            self._kept.rest()  # a step of some length leaves the slot nothing to do
            for step in plan.steps:
                with self._entered(Phase(step.name)):
                    spec = phases.build_spec(
                        step.command, plan.facts, lease, self._workspace, given
                    )
                    used_s += await phases.run_step(
                        step,
                        spec,
                        network,
                        self._log,
                        sandboxes=self._sandboxes,
                        used_s=used_s,
                        unmet=plan.unmet,
                    )
            self._kept.hold()
        finally:
            await network.close()
            passed = network.total
            log.info(
                "egress_closed",
                job_id=lease.job_id,
                site=lease.site,
                connections=passed.connections,
                up_bytes=passed.up_bytes,
                down_bytes=passed.down_bytes,
                problems=len(network.problems),
            )
        return network.hosts, cache

    def crashed(self, error: Exception) -> Finish:
        """Log an error that nobody foresaw, and return what the build ends with by it.

        What was raised may hold the lease or paths: it is for our own log alone.
        """
        job_id = self.job.lease.job_id
        log.error("build_crashed", job_id=job_id, exc_info=error)
        return self._failed(
            "build.internal",
            "The builder failed, through no fault of the commit. The server's log says why, "
            f"at job {job_id}.",
        )

    def _failed(self, code: str, message: str, exit_status: int | None = None) -> Finish:
        message = self._log.masker.masked(message)
        self._log.line(self._phase, message.partition("\n")[0])
        return Finish(
            slot=self.slot,
            status="failed",
            timings=self._timings,
            error=BuildError(code, message, exit_status),
        )

    async def _keep_lease(self) -> None:
        """Keep the lease; return at once when the job is canceled, for control holds its answer."""
        every_s = self.job.lease.lease_s / BEATS_PER_LEASE
        await asyncio.sleep(min(FIRST_BEAT_S, every_s))
        while True:
            beaten_at = time.monotonic()
            if await self.job.heartbeat(self._phase, PROGRESS[self._phase], every_s):
                return
            await asyncio.sleep(beaten_at + every_s - time.monotonic())  # it may not have held it

    async def _tell_phases(self) -> None:
        """Tell each phase as it begins; return when the job is canceled."""
        while True:
            await self._advanced.wait()
            self._advanced.clear()
            if await self.job.heartbeat(self._phase, PROGRESS[self._phase]):
                return

    @contextlib.contextmanager
    def _entered(self, phase: Phase) -> Iterator[None]:
        self._phase = phase
        if phase is not Phase.DETECT:
            self._advanced.set()
        self._log.begin(phase)
        started = time.monotonic()
        try:
            yield
        finally:
            took_s = time.monotonic() - started
            self._timings[phase] = round(self._timings.get(phase, 0) + took_s, 6)
            self._log.end(phase, took_s)


async def _end_tasks(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and return when they have ended, each with its own cleaning up."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, so that nothing is said of it at exit


def _empty(folder: Path) -> None:
    """Remove what a slot that was killed left behind."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
