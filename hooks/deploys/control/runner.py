"""Control's side of rolls: what each environment should serve, and what the site host says of it.

An environment should serve its deployment under way, or else its current release. The host hears
of every change, makes it so, and reports; a report ends the deployment and makes its release, in
one transaction. Deployments of one environment go one after the other, in the order of their ids.

What a host is told bears a release statement with the environment's next sequence. A host that went
by a newer one refuses it and says so. Then control signs another, above that: for a deployment
under way, since somebody wants it now, and for the current release as long as the records are not
older than the host. Records that were put back from an old copy roll nothing back by themselves.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from functools import partial

import structlog

from hooks.background import Background, for_ever
from hooks.configs import Configs
from hooks.deploys.control.announcing import Announcer
from hooks.deploys.control.ending import note_failure, note_success
from hooks.deploys.control.issuing import ReleaseIssuer
from hooks.deploys.control.reissuing import Reissuer
from hooks.deploys.control.rolling import Rolling, RollLimits
from hooks.deploys.control.running import RunningPrograms
from hooks.deploys.control.wanted import Wanted
from hooks.deploys.wire import Config, DesiredMessage, Report, RollLog, Running
from hooks.errors import RefusedError
from hooks.hostnames import PlatformNames
from hooks.jobs import Jobs
from hooks.scrubbing import Scrubbing
from storage.errors import SealBrokenError, StorageError
from storage.joblog import LogLine
from storage.model import (
    Deployment,
    Environment,
    EnvironmentStatus,
    Failure,
    Job,
    JobStatus,
    JobType,
)
from storage.records import deployments, environments
from storage.records.db import mapped_errors

log = structlog.get_logger(__name__)

REAP_EVERY_S = 0.5
PROGRESS_EVERY_S = 1.0
# What a host finds wrong with what lies in the store; the third is of an envelope, too.
STORE_DAMAGED = ("artifact.corrupt", "artifact.missing", "artifact.signature_invalid")
HOST = "host"  # the source of the site host's lines in the job's log, with the attempt


class RollRunner:
    """The rolls of one server. Belongs to one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        issuer: ReleaseIssuer,
        configs: Configs,
        *,
        limits: RollLimits,
        names: PlatformNames,
        url_of: Callable[[Environment], str] = lambda _: "",
        relieve: Callable[[], None] = lambda: None,
        scrubbing: Scrubbing | None = None,
    ) -> None:
        """`relieve` makes room on a full disk: the host's too, which writes what it serves.
        `scrubbing` looks after what is damaged in the store; without it that only fails rolls.
        """
        self._scrubbing = scrubbing
        self._relieve = relieve
        self._jobs = jobs
        self._issuer = issuer
        self._configs = configs
        self._records = jobs.records
        self._limits = limits
        self._rolling: dict[str, Rolling] = {}
        self._wanted = Wanted(self._records, self._under_way, names=names, url_of=url_of)
        self._hosts = Announcer(self._records, self._wanted)
        self._reissuer = Reissuer(issuer, self._wanted)
        self._running = RunningPrograms()
        self._renewed: set[str] = set()  # environments with a statement that no host heard of yet
        self._not_read = ""
        self._hostless_since: float | None = None
        self._background = Background()
        self._on_rolled: Callable[[Mapping[str, float]], None] = lambda _: None
        issuer.watch_beginnings(self._hosts.foretell_from_thread)
        jobs.watch(self._on_job)
        jobs.watch_environments(self._hosts.tell)

    def recover(self) -> None:
        """After a start: go on with the deployments that were queued or under way."""
        reader = self._records.reader()
        self._issuer.recover()
        for deployment in deployments.unfinished(reader):
            self._advance(deployment.env_id)
        self._background.spawn(self._look_around())

    async def reap(self) -> None:
        """End rolls that take too long, for ever."""
        await for_ever(self._reap_once, failed="rolls_not_reaped", pause_s=REAP_EVERY_S)

    async def _reap_once(self) -> None:
        await asyncio.sleep(REAP_EVERY_S)
        now = self._now()
        await self._look_around()
        if self._hosts.has_hosts:
            self._hostless_since = None
        elif self._hostless_since is None:
            self._hostless_since = now
        for rolling in list(self._rolling.values()):
            failure = rolling.overdue(now, self._limits, hostless_since=self._hostless_since)
            if failure is not None:
                await self._fail(rolling, failure)
        self._take_up_unheard()

    def _take_up_unheard(self) -> None:
        """Go on where nobody said that a deployment was queued, or is over: what publishes that
        failed, or it was done beside this process.
        """
        with mapped_errors():
            for rolling in list(self._rolling.values()):
                job = self._jobs.get(rolling.deployment.job_id)
                if job is not None and job.status.is_final and not rolling.is_ending:
                    self._on_job(job)
            for deployment in deployments.unfinished(self._records.reader()):
                self._advance(deployment.env_id)

    async def _look_around(self) -> None:
        """Tell hosts of what was made beside this process, and of statements that took the place
        of others, as after a rotation. What cannot be read now is read at the next turn.
        """
        try:
            with mapped_errors():
                self._hosts.tell_what_others_made()
                self._renewed.update(await self._issuer.renew())
                for env_id in sorted(self._renewed):
                    self._hosts.tell(env_id)
                    self._renewed.discard(env_id)
        except StorageError as error:
            if str(error) != self._not_read:
                self._not_read = str(error)
                log.error("releases_not_renewed", reason=str(error))  # noqa: TRY400 - a fact, no bug
            return
        self._not_read = ""

    def close(self) -> None:
        """Let the hosts go: the server stops. They serve on, and come back."""
        self._hosts.close()

    # -- what the host asks and says ------------------------------------------------------------

    def watch_rolled(self, react: Callable[[Mapping[str, float]], None]) -> None:
        """Call `react` with the seconds that each step took, as the host says, of each roll that
        succeeded.
        """
        self._on_rolled = react

    @property
    def host_connected(self) -> asyncio.Event:
        """Set with the first host, and for good."""
        return self._hosts.host_connected

    @property
    def has_host(self) -> bool:
        """Whether one is connected just now."""
        return self._hosts.has_hosts

    def desired(
        self, *, hears_coming: bool = False, is_gone: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[DesiredMessage]:
        """Yield what every environment should serve, then every change. One reader per host.

        `hears_coming`: it makes use of being told what may come. `is_gone`: whether its connection
        is closed.
        """
        return self._hosts.messages(hears_coming=hears_coming, is_gone=is_gone)

    def foretell(self, env_id: str, digest: str | None = None) -> None:
        """Let the hosts make ready for a roll that is likely to come, of the artifact `digest`."""
        self._hosts.foretell(env_id, digest)

    async def report(self, report: Report) -> None:
        """Take in how a deployment stands at the host. Repeatable.

        A deployment that is over stays as it is: the host is told again what it should serve. What
        cannot be so changes nothing: a host is believed what it says of itself, and no more.
        """
        if not self._is_believable(report):
            return
        self._running.note(report)
        if report.log is not None:
            self.take_log(report.log)
        rolling = self._rolling.get(report.env_id)
        if report.status == "serving":
            self._reissuer.note_served(report.env_id)
        elif await self._heal(report, rolling):
            return
        if rolling is None or rolling.deployment.id != report.deployment_id:
            if report.status == "serving" and not self._wanted.is_of(
                report.env_id, report.deployment_id
            ):
                self._hosts.tell(report.env_id)
            return
        if rolling.is_ending:
            return
        if report.status == "serving":
            await self._succeed(rolling)
            self._on_rolled(report.timings)
        else:
            error = report.error
            assert error is not None, "a failed roll says why"
            await self._fail_as_reported(rolling, Failure(error.code, error.message))

    def running(self, env_id: str) -> Running | None:
        """How the program of an active environment stands; None when it has none, or no site host
        is there to say.
        """
        return self._running.of(env_id) if self._hosts.has_hosts else None

    def program_states(self) -> Counter[str]:
        """How many web processes there are in each state; of none where no site host is there to
        say. Any thread may ask.
        """
        return self._running.states() if self._hosts.has_hosts else Counter()

    def _is_believable(self, report: Report) -> bool:
        """Note by which statement the environment went, unless that cannot be so."""
        deployment = deployments.get(self._records.reader(), report.deployment_id)
        what = f"the environment has no deployment {report.deployment_id:.40}"
        if deployment is not None and deployment.env_id == report.env_id:
            went_by = self._issuer.note(
                report.env_id, sequence=report.sequence, statement=report.statement
            )
            if went_by:
                return True
            what = f"it never had as many statements as {report.sequence}"
        log.error("report_not_believed", env_id=report.env_id[:40], reason=what)
        return False

    def config_of(self, deployment_id: str) -> Config | None:
        """What the programs of a deployment are given: for the host that is to roll it, or did.

        None when it is given nothing, or no host is wanted to serve it.

        Raises:
            RefusedError, SealBrokenError: See `Configs.get`.
        """
        reader = self._records.reader()
        deployment = deployments.get(reader, deployment_id)
        if deployment is None or not deployment.config_version:
            return None
        if not self._wanted.is_of(deployment.env_id, deployment_id):
            return None
        return self._configs.get(reader, deployment.env_id, deployment.config_version)

    def gone(self, env_ids: Collection[str]) -> list[str]:
        """Those of the environments that were there once, and were removed since."""
        return environments.gone(self._records.reader(), env_ids)

    def take_log(self, batch: RollLog) -> None:
        """Keep the lines of a roll in its job's log; those it has already are dropped."""
        deployment = deployments.get(self._records.reader(), batch.deployment_id)
        if deployment is None:
            return
        rolling = self._rolling.get(deployment.env_id)
        if rolling is None or rolling.deployment.id != deployment.id:
            return
        source = f"{HOST}-{batch.attempt}" if batch.attempt else HOST
        if rolling.source != source:
            rolling.lines_seen = self._jobs.log.lines_seen(deployment.job_id, source)
            rolling.source = source
        lines = [LogLine(line.line, line.at, line.stage) for line in batch.lines]
        rolling.lines_seen = self._jobs.log.add_batch(
            deployment.job_id, lines, first=batch.first, source=source, seen=rolling.lines_seen
        )
        self._note_progress(rolling, batch.progress)

    # -- the course of a roll -------------------------------------------------------------------

    def _on_job(self, job: Job) -> None:
        if job.type is not JobType.DEPLOYMENT_ROLL:
            return
        if job.status is JobStatus.QUEUED:
            self._advance(job.env_id)
        elif job.status.is_final:
            rolling = self._rolling.get(job.env_id)
            if rolling is not None and rolling.deployment.job_id == job.id:
                del self._rolling[job.env_id]
                self._advance(job.env_id)
                if job.status is not JobStatus.SUCCEEDED and job.env_id not in self._rolling:
                    self._hosts.tell(job.env_id)

    def _advance(self, env_id: str) -> None:
        """Begin the environment's next deployment, unless one is under way."""
        if env_id in self._rolling:
            return
        waiting = deployments.unfinished(self._records.reader(), env_id)
        if not waiting:
            return
        deployment = waiting[0]
        self._relieve()
        now = self._now()
        rolling = self._rolling[env_id] = Rolling(deployment, now, progress_at=now)
        self._background.spawn(self._begin(rolling))

    async def _begin(self, rolling: Rolling) -> None:
        """Sign that the deployment is to happen, write down that it does, and tell the host.

        What is known to be damaged is repaired first, or never gets that far.
        """
        if self._scrubbing is not None:
            artifact_id = rolling.deployment.artifact_id
            if not self._scrubbing.is_whole(artifact_id):
                said = await _examined(self._scrubbing, rolling.deployment)
                if not self._scrubbing.is_whole(artifact_id):
                    await self._fail(rolling, Failure("artifact.corrupt", said or "It is damaged."))
                    return
        if await self._signed(rolling, self._issuer.begin(rolling.deployment)):
            begun = deployments.get(self._records.reader(), rolling.deployment.id)
            assert begun is not None, "deployments are never deleted"
            rolling.deployment = begun  # now it says what it rolls, and with which config
            rolling.is_issued = True
            self._say_whether_suspended(begun)
            self._hosts.tell(rolling.deployment.env_id)

    def _say_whether_suspended(self, deployment: Deployment) -> None:
        environment = environments.get(self._records.reader(), deployment.env_id)
        if environment is not None and environment.status is EnvironmentStatus.SUSPENDED:
            said = f"{environment.slug} is suspended: it is resumed when this release is live"
            self._jobs.log.add(deployment.job_id, [said], stage="gitd")

    async def _signed(self, rolling: Rolling, issuing: Awaitable[bool]) -> bool:
        """Await a statement for the deployment under way; end that when it cannot be had."""
        try:
            return await issuing
        except RefusedError as error:
            await self._fail(rolling, Failure(error.code, str(error)))
        except SealBrokenError:
            log.exception("config_unreadable", env_id=rolling.deployment.env_id)
            message = "The server cannot open the variables and secrets that are set."
            await self._fail(rolling, Failure("release.config_unreadable", message))
        except StorageError:
            log.exception("release_unsigned", env_id=rolling.deployment.env_id)
            message = "The server could not sign the release. Its log says why."
            await self._fail(rolling, Failure("release.unsigned", message))
        return False

    async def _heal(self, report: Report, rolling: Rolling | None) -> bool:
        """Answer a host that refused a statement with a newer one; say whether it was answered."""
        if rolling is not None and rolling.is_issued and rolling.is_ending:
            return False
        wanted = self._reissuer.refused(report)
        if wanted is None:
            return False
        if rolling is not None and rolling.is_issued:
            is_done = await self._signed(rolling, self._issuer.again(wanted, rollback=False))
        else:
            is_done = await self._reissuer.heal_current(report, wanted)
        if is_done:
            log.info("release_reissued", env_id=report.env_id, deployment_id=wanted.id)
            self._hosts.tell(report.env_id)
        return True

    async def _succeed(self, rolling: Rolling) -> None:
        rolling.is_ending = True
        try:
            await self._jobs.commit(partial(note_success, deployment=rolling.deployment))
        finally:
            rolling.is_ending = False

    async def _fail(self, rolling: Rolling, failure: Failure) -> None:
        """End a roll. If the disk has no room for that now, `reap` does it, as soon as it has."""
        rolling.is_ending = True
        deployment = rolling.deployment
        try:
            await self._jobs.commit(partial(note_failure, deployment=deployment, failure=failure))
        except StorageError:
            if rolling.unwritten is None:
                log.exception("roll_not_ended", env_id=deployment.env_id)
            rolling.unwritten = failure
        finally:
            rolling.is_ending = False

    async def _fail_as_reported(self, rolling: Rolling, failure: Failure) -> None:
        """End a roll that the host could not do. If that is for damage in the store, look at it
        first, so that the job says what is to be done; the host waits for none of this.
        """
        scrubbing = self._scrubbing
        if scrubbing is None or failure.code not in STORE_DAMAGED:
            await self._fail(rolling, failure)
            return
        rolling.is_ending = True

        async def fail() -> None:
            said = await _examined(scrubbing, rolling.deployment)
            message = f"{failure.message.rstrip('.')}. {said}" if said else failure.message
            await self._fail(rolling, Failure(failure.code, message))

        self._background.spawn(fail())

    def _note_progress(self, rolling: Rolling, progress: int) -> None:
        now = self._now()
        if progress <= rolling.progress or now - rolling.progress_at < PROGRESS_EVERY_S:
            return
        rolling.progress, rolling.progress_at = progress, now
        job_id = rolling.deployment.job_id

        async def advance() -> None:
            await self._jobs.commit(lambda changes: changes.advance(job_id, min(progress, 99)))

        self._background.spawn(advance())

    def _under_way(self, env_id: str) -> Deployment | None:
        rolling = self._rolling.get(env_id)
        return rolling.deployment if rolling is not None and rolling.is_issued else None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _examined(scrubbing: Scrubbing, deployment: Deployment) -> str:
    """Say what became of what is damaged; nothing where that cannot be found out."""
    try:
        return await scrubbing.examine(deployment)
    except Exception:  # whatever it is, the roll must end
        log.exception("examination_failed", deployment_id=deployment.id)
        return ""
