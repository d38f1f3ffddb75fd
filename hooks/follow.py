"""What a push prints while its work goes on: the `remote:` lines of `git push`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hooks.jobs import Jobs
from hooks.push import Building, Effect, Failed, NotDeployed, TornDown
from storage.joblog import LogLine
from storage.model import Deployment, Environment, Failure, Job, JobStatus
from storage.records import artifacts, deployments, releases, sites
from storage.room import size_in_words

SILENCE_S = 30.0


class Listener(Protocol):
    """The client at the other end: it may leave at any moment."""

    @property
    def is_gone(self) -> bool: ...

    async def say(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where things answer: an environment's URL, and this server's own."""

    of_environment: Callable[[Environment], str]
    server: str


class PushNarrator:
    """Tells the client of a push what becomes of it. Work goes on whether or not it listens."""

    def __init__(self, jobs: Jobs, addresses: Addresses) -> None:
        self._jobs = jobs
        self._addresses = addresses

    async def announce(self, effect: Effect, listener: Listener) -> None:
        """Say in a line or two what a ref asked for."""
        if isinstance(effect, NotDeployed):
            await listener.say(f"{_short(effect.ref)}: kept, not deployed ({effect.why})")
        elif isinstance(effect, TornDown):
            slug = effect.environment.slug
            await listener.say(f"{_short(effect.ref)}: deleted, and its preview {slug} with it")
        elif isinstance(effect, Failed):
            await listener.say(
                f"{_short(effect.ref)}: kept, not deployed: gitd failed to act on it; see its log"
            )
        else:
            made = " (new)" if effect.is_new_environment else ""
            await listener.say(
                f"{_short(effect.ref)} -> {effect.environment.slug}{made}: {effect.build.id}"
            )

    async def tell_how_to_follow(self, effect: Effect, listener: Listener) -> None:
        """For a client that does not wait: where its build can be watched."""
        if isinstance(effect, Building):
            await listener.say(
                f"  not waiting; watch it with: mf logs --follow {effect.build.job_id}"
            )
            await listener.say("  (git push --progress waits where there is no terminal)")

    async def follow(self, effect: Effect, listener: Listener) -> None:
        """Tell the build and the roll line by line, to the URL or to the reason why not."""
        if not isinstance(effect, Building):
            return
        job = await self._follow_job(effect.build.job_id, listener)
        if job is None or listener.is_gone:
            return
        if job.status is not JobStatus.SUCCEEDED:
            await self._tell_failed_build(effect, job, listener)
            return
        await self._tell_artifact(effect, job, listener)
        deployment = _deployment_of(self._jobs, job)
        if deployment is None:
            return
        job = await self._follow_job(deployment.job_id, listener)
        if job is None or listener.is_gone:
            return
        if job.status is JobStatus.SUCCEEDED:
            await self._tell_live(effect, job, listener)
        else:
            await self._tell_failed_roll(effect, deployment, job, listener)

    async def _follow_job(self, job_id: str, listener: Listener) -> Job | None:
        async for item in self._jobs.follow(job_id, heartbeat_s=SILENCE_S):
            if listener.is_gone:
                return None
            if item is not None and isinstance(item.entry, LogLine):
                await listener.say(f"  {item.entry.stage:<8} {item.entry.line}")
        job = self._jobs.get(job_id)
        if job is not None and not job.status.is_final:
            await listener.say(f"  gitd is being stopped; go on with: mf logs --follow {job_id}")
            return None
        return job

    async def _tell_artifact(self, effect: Building, job: Job, listener: Listener) -> None:
        artifact_id = (job.result or {}).get("artifact_id", "")
        found = artifacts.of_site(
            self._jobs.records.reader(), effect.environment.site_id, artifact_id
        )
        if found is not None:
            size = size_in_words(found.artifact.size_bytes)
            await listener.say(
                f"  artifact {artifact_id}: {found.artifact.files} files, {size}, signed"
            )

    async def _tell_live(self, effect: Building, job: Job, listener: Listener) -> None:
        took = ((job.finished_at or 0) - effect.build.created_at) / 1000
        url = self._addresses.of_environment(effect.environment)
        await listener.say("")
        await listener.say(f"  {effect.environment.slug} is live after {took:.1f} s: {url}")
        await listener.say("")

    async def _tell_failed_build(self, effect: Building, job: Job, listener: Listener) -> None:
        await self._tell_end(
            "build canceled" if job.status is JobStatus.CANCELED else "BUILD FAILED",
            job.error,
            effect,
            listener,
        )
        await self._tell_log(effect, job, listener)

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
        await listener.say(f"  full log: mf logs {job.id}")
        await listener.say("")

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

    async def _tell_log(self, effect: Building, job: Job, listener: Listener) -> None:
        site = sites.find(self._jobs.records.reader(), effect.environment.site_id)
        name = site.name if site else effect.environment.site_id
        path = f"/v1/sites/{name}/environments/{effect.environment.slug}/builds/{effect.build.id}"
        await listener.say(f"  full log: {self._addresses.server}{path}/log, or: mf logs {job.id}")
        await listener.say("")

    def _what_serves(self, environment: Environment) -> str:
        current = releases.current(self._jobs.records.reader(), environment.id)
        if current is None:
            return f"nothing ran on {environment.slug} before, and nothing does now"
        commit = f" ({current.commit[:7]})" if current.commit else ""
        url = self._addresses.of_environment(environment)
        return f"{environment.slug} still serves {current.id}{commit}: {url}"


def _deployment_of(jobs: Jobs, job: Job) -> Deployment | None:
    deployment_id = (job.result or {}).get("deployment_id")
    return deployments.get(jobs.records.reader(), deployment_id) if deployment_id else None


def _short(ref: str) -> str:
    for prefix in ("refs/heads/", "refs/tags/", "refs/"):
        if ref.startswith(prefix):
            return ref.removeprefix(prefix)
    return ref
