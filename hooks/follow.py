"""What a push prints while its work goes on: the `remote:` lines of `git push`."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

from hooks import default_branch
from hooks.advice import after_failure
from hooks.deploys.wire import Running
from hooks.hostnames import PlatformNames, served_names
from hooks.jobs import Jobs, QueuePlace
from hooks.key_reach import KeyReach
from hooks.push import Building, Deleted, Effect, Failed, MadeDefault, NotDeployed, TornDown
from storage.counted import counted
from storage.joblog import Entry, LogLine
from storage.model import (
    Build,
    Deployment,
    Environment,
    EnvironmentKind,
    EnvironmentStatus,
    Failure,
    Job,
    JobStatus,
)
from storage.records import (
    artifacts,
    builds,
    deployments,
    domains,
    environments,
    releases,
    sites,
)
from storage.room import size_in_words

SILENCE_S = 5.0  # then it is asked whether anybody is still there, and may listen
LINES_REMEMBERED = 50  # of the log: what the end of a push need not say again
NAMES_SAID = 3  # custom domains of an environment that went live
SLOW_STAGE_S = 0.1  # what takes less goes without saying


class Listener(Protocol):
    """The client at the other end: it may leave at any moment."""

    @property
    def is_gone(self) -> bool: ...

    async def say(self, *lines: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where things answer: an environment's URL, this server's own, that of a custom domain.

    `platform`: what cannot be a custom domain.
    """

    of_environment: Callable[[Environment], str]
    server: str
    of_domain: Callable[[str], str] = "http://{}".format
    platform: PlatformNames = field(default_factory=PlatformNames)


class PushNarrator:
    """Tells the client of a push what becomes of it. Work goes on whether or not it listens."""

    def __init__(
        self,
        jobs: Jobs,
        addresses: Addresses,
        running: Callable[[str], Running | None] = lambda _: None,
    ) -> None:
        """`running` says how the program of an environment stands, by the environment's id."""
        self._jobs = jobs
        self._addresses = addresses
        self._running = running

    async def announce(self, effect: Effect, listener: Listener) -> None:
        """Say in a line or two what a ref asked for."""
        if isinstance(effect, NotDeployed):
            await listener.say(f"{_short(effect.ref)}: kept, not deployed ({effect.why})")
        elif isinstance(effect, MadeDefault):
            branch = _short(effect.ref)
            await listener.say(f"{branch}: the default branch from now on, as it was pushed first")
        elif isinstance(effect, TornDown):
            slug = effect.environment.slug
            await listener.say(
                f"{_short(effect.ref)}: deleted, and its preview {slug} with it"
                if effect.is_deleted
                else f"{_short(effect.ref)}: its preview {slug} is gone: its route leads elsewhere"
            )
        elif isinstance(effect, Deleted):
            place = effect.stays_on
            stays = f"; what it deployed stays on {place.slug}" if place is not None else ""
            await listener.say(f"{_short(effect.ref)}: deleted{stays}")
        elif isinstance(effect, Failed):
            await listener.say(
                f"{_short(effect.ref)}: kept, not deployed: gitd failed to act on it; see its log"
            )
        else:
            made = " (new)" if effect.is_new_environment else ""
            same = "" if effect.is_new_build else " (of this commit, asked for before)"
            clean = " (clean)" if effect.build.clean else ""
            where = f"{effect.environment.slug}{made}"
            await listener.say(f"{_short(effect.ref)} -> {where}: {effect.build.id}{clean}{same}")

    async def begin(self, effect: Effect, listener: Listener) -> None:
        """Head the lines of one environment, where a push has several."""
        if isinstance(effect, Building):
            await listener.say(f"{effect.environment.slug} ({effect.build.id}):")

    async def tell_how_to_follow(
        self, effect: Effect, listener: Listener, *, was_asked: bool
    ) -> None:
        """For a client that does not wait: where its build can be watched.

        `was_asked`: it was told not to wait; else git may have asked for quiet by itself.
        """
        if not isinstance(effect, Building):
            return
        await listener.say(f"  not waiting; watch it with: mf jobs wait {effect.build.job_id}")
        if not was_asked:
            await listener.say("  (git push --progress waits where there is no terminal)")
        await listener.say(*self._what_production_waits_for(effect))

    async def follow(self, effect: Effect, listener: Listener) -> None:
        """Tell the build and the roll line by line, to the URL or to the reason why not."""
        if not isinstance(effect, Building):
            return
        said: deque[str] = deque(maxlen=LINES_REMEMBERED)
        job = await self._follow_job(effect.build.job_id, listener, said)
        if job is None or listener.is_gone:
            return
        newer = self._newer_build(effect.build)
        if newer is not None:
            await self._tell_superseded(effect, newer, listener)
            return
        if job.status is not JobStatus.SUCCEEDED:
            await self._tell_failed_build(effect, _unsaid(job, said), listener)
            return
        await self._tell_artifact(job, listener)
        deployment = _deployment_of(self._jobs, job)
        if deployment is None:
            return
        job = await self._follow_job(deployment.job_id, listener, said)
        if job is None or listener.is_gone:
            return
        if job.status is JobStatus.SUCCEEDED:
            await self._tell_live(effect, job, listener)
        else:
            await self._tell_failed_roll(effect, deployment, _unsaid(job, said), listener)

    async def _follow_job(self, job_id: str, listener: Listener, said: deque[str]) -> Job | None:
        async for item in self._jobs.follow(job_id, heartbeat_s=SILENCE_S):
            if listener.is_gone:
                return None
            if isinstance(item, QueuePlace):
                if not item.is_starting:
                    await listener.say(_staged("queued", place_in_words(item)))
            elif item is not None:
                lines = []
                for entry in (positioned.entry for positioned in item):
                    if isinstance(entry, LogLine) and (line := shown(entry)) is not None:
                        lines.append(line)
                        said.append(entry.line)
                if lines:
                    await listener.say(*lines)
        job = self._jobs.get(job_id)
        if job is not None and not job.status.is_final:
            await listener.say(f"  gitd is being stopped; go on with: mf jobs wait {job_id}")
            return None
        return job

    async def _tell_artifact(self, job: Job, listener: Listener) -> None:
        artifact_id = (job.result or {}).get("artifact_id", "")
        artifact = artifacts.get(self._jobs.records.reader(), artifact_id)
        if artifact is not None:
            size = size_in_words(artifact.size_bytes)
            files = counted(artifact.files, "file")
            await listener.say(f"  artifact {artifact_id}: {files}, {size}, signed")

    async def _tell_live(self, effect: Building, job: Job, listener: Listener) -> None:
        took_ms = (job.finished_at or 0) - effect.build.created_at
        took = f"{took_ms / 1000:.1f} s" if took_ms >= 100 else f"{took_ms} ms"
        url = self._addresses.of_environment(effect.environment)
        slug = effect.environment.slug
        broken = self._how_it_is_broken(effect.environment)
        also = self._where_else(effect.environment)
        await listener.say("", f"  {slug} is live after {took}: {url}{broken}", *also)
        if effect.environment.status is EnvironmentStatus.SUSPENDED:
            await listener.say(f"  {slug} was suspended: this push resumed it")
        await listener.say(*self._what_production_waits_for(effect), "")

    def _where_else(self, environment: Environment) -> list[str]:
        """Words of the custom domains, the oldest first; whether they lead here nobody knows."""
        found = domains.of_environments(self._jobs.records.reader(), [environment.id])
        names = served_names(self._addresses.platform, found).get(environment.id, [])
        said = [f"  and by its domain: {self._addresses.of_domain(n)}" for n in names[:NAMES_SAID]]
        if len(names) > NAMES_SAID:
            more = len(names) - NAMES_SAID
            said.append(f"  and by {more} more: mf domains {self._place(environment)}")
        return said

    def _how_it_is_broken(self, environment: Environment) -> str:
        """A word behind the address when a program answers its own front page with an error."""
        running = self._running(environment.id)
        if running is None or not running.is_broken:
            return ""
        return f" (GET / answers {running.first_answer}: mf logs {self._place(environment)})"

    def _what_production_waits_for(self, effect: Building) -> list[str]:
        """Words for whoever pushes beside a production to which nobody has pushed yet."""
        reader, site_id = self._jobs.records.reader(), effect.environment.site_id
        reach = KeyReach.of(reader, effect.build.actor)
        for production in environments.of_kind(reader, site_id, EnvironmentKind.PRODUCTION):
            is_begun = (
                releases.current(reader, production.id) is not None
                or builds.newest_deployed_ref(reader, production.id) is not None
            )
            if production.branch is not None and not is_begun and reach.has(production):
                refs = shlex.quote(f"{_short(effect.ref)}:{production.branch}")
                waits = f"  production waits for {production.branch}: git push managed {refs}"
                return [waits, *self._how_it_goes_live_itself(effect)]
        return []

    def _how_it_goes_live_itself(self, effect: Building) -> list[str]:
        """Words for whoever calls the default branch otherwise, where its route may move."""
        reader, branch = self._jobs.records.reader(), _short(effect.ref)
        site = sites.find(reader, effect.environment.site_id)
        if site is None or not default_branch.goes_live_as_default(
            sites.routes(reader, site.id), site.default_branch, branch
        ):
            return []
        name = shlex.quote(branch)
        made = f"mf sites set {site.name} --default-branch {name}"
        build = f"mf build --site {site.name} --env production --ref {name} --deploy --wait"
        return [
            f"  or, with sites:write, let {branch} go live itself: {made}",
            f"  and then, as it is pushed already: {build}",
        ]

    async def _tell_failed_build(self, effect: Building, job: Job, listener: Listener) -> None:
        await self._tell_end(
            "build canceled" if job.status is JobStatus.CANCELED else "BUILD FAILED",
            job.error,
            effect,
            listener,
        )
        ref = shlex.quote(_short(effect.ref))
        again = f"mf build {self._place(effect.environment)} --ref {ref} --deploy --wait"
        await self._tell_what_to_do(job, again, listener)

    def _newer_build(self, build: Build) -> Build | None:
        reader = self._jobs.records.reader()
        ended = builds.get(reader, build.id)
        newer_id = ended.superseded_by if ended is not None else None
        return builds.get(reader, newer_id) if newer_id is not None else None

    async def _tell_superseded(self, effect: Building, newer: Build, listener: Listener) -> None:
        await listener.say("")
        await listener.say(f"  superseded by a newer push, of commit {newer.commit[:12]}")
        await listener.say(f"  nothing failed: {newer.id} took over and goes on without this push")
        await listener.say(f"  watch it with: mf jobs wait {newer.job_id}")
        await listener.say(f"  {self._what_serves(effect.environment)}")
        await listener.say("")

    async def _tell_failed_roll(
        self, effect: Building, deployment: Deployment, job: Job, listener: Listener
    ) -> None:
        canceled = job.status is JobStatus.CANCELED
        await self._tell_end(
            f"{deployment.id} canceled" if canceled else "DEPLOYMENT FAILED",
            job.error,
            effect,
            listener,
        )
        place = self._place(effect.environment)
        again = f"mf deploy {deployment.artifact_id} {place} --wait"
        await self._tell_what_to_do(job, again, listener)

    async def _tell_end(
        self, what: str, error: Failure | None, effect: Building, listener: Listener
    ) -> None:
        await listener.say("")
        lines = error.message.splitlines() if error else []
        code = f" ({error.code})" if error else ""
        await listener.say(f"  {what}{code}")
        for line in lines:
            await listener.say(f"  {line}")
        await listener.say(f"  {self._what_serves(effect.environment)}")

    async def _tell_what_to_do(self, job: Job, again: str, listener: Listener) -> None:
        is_canceled = job.status is JobStatus.CANCELED
        code = job.error.code if job.error is not None and not is_canceled else None
        await listener.say(f"  full log: mf logs {job.id}")
        await listener.say(*(f"  {line}" for line in after_failure(code, again)), "")

    def _place(self, environment: Environment) -> str:
        """The options of `mf` that name an environment."""
        return f"--site {self._site_name(environment)} --env {environment.slug}"

    def _site_name(self, environment: Environment) -> str:
        site = sites.find(self._jobs.records.reader(), environment.site_id)
        return site.name if site else environment.site_id

    def _what_serves(self, environment: Environment) -> str:
        reader = self._jobs.records.reader()
        current = releases.current(reader, environment.id)
        now = environments.get(reader, environment.id)
        if current is not None and now is not None and now.status is EnvironmentStatus.SUSPENDED:
            resume = f"mf env resume {environment.slug} --site {self._site_name(environment)}"
            return f"{environment.slug} is suspended and serves nothing ({resume})"
        if current is None:
            return f"nothing ran on {environment.slug} before, and nothing does now"
        commit = f" ({current.commit[:12]})" if current.commit else ""
        url = self._addresses.of_environment(environment)
        return f"{environment.slug} still serves {current.id}{commit}: {url}"


def shown(entry: Entry) -> str | None:
    """What a push shows of an entry of the log: lines, with their stages before them.

    So the marks of stages say little: only where one took its time, however it ended.
    """
    if not isinstance(entry, LogLine) or entry.mark == "begin":
        return None
    if entry.mark == "end":
        took_s = entry.seconds or 0
        is_slow = took_s >= SLOW_STAGE_S
        return _staged(entry.stage, f"took {took_s:.1f} s") if is_slow else None
    return _staged(entry.stage, entry.line)


def place_in_words(place: QueuePlace) -> str:
    """Where a build stands in the queue, and what it waits for."""
    if place.before:
        words = f"{counted(place.before, 'build')} before this one"
        return f"{words}; {place.behind} must end too" if place.behind else words
    if place.behind:
        return f"next, when {place.behind} has ended: it deploys there too, or builds the same"
    if place.has_builders:
        return "next, when a builder is free"
    return "next, when there is a builder: none is connected yet"


def _staged(stage: str, line: str) -> str:
    return f"  {stage:<8} {line}"


def _unsaid(job: Job, said: Collection[str]) -> Job:
    """The job with only that in its error's message which its log has not said already."""
    if job.error is None:
        return job
    lines = [line for line in job.error.message.splitlines() if line not in said]
    if lines and lines[-1].endswith(":"):
        lines.pop()  # what it announces was said
    return replace(job, error=replace(job.error, message="\n".join(lines)))


def _deployment_of(jobs: Jobs, job: Job) -> Deployment | None:
    deployment_id = (job.result or {}).get("deployment_id")
    return deployments.get(jobs.records.reader(), deployment_id) if deployment_id else None


def _short(ref: str) -> str:
    for prefix in ("refs/heads/", "refs/tags/", "refs/"):
        if ref.startswith(prefix):
            return ref.removeprefix(prefix)
    return ref
