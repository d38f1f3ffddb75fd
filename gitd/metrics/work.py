"""Jobs, builds and rolls that have ended, and how long each part of them took."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from hooks.builds.control.packing import PACK
from hooks.builds.phase import Phase
from storage.model import Job, JobStatus, JobType, Trigger
from storage.records import builds, deployments
from storage.records.db import Records

OUTCOMES = tuple(status for status in JobStatus if status.is_final)
QUEUED = "queued"
# What builders and hosts call anything else is not taken over: a name would be a series for ever.
PHASES = (QUEUED, *Phase, PACK)
STEPS = ("verify", "unpack", "release", "start", "switch")
JOB_BUCKETS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0, 1800.0)
PHASE_BUCKETS_S = (0.01, 0.1, 0.5, 2.5, 10.0, 30.0, 120.0, 600.0)
STEP_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0)


class WorkMetrics:
    """The metrics of jobs. Belongs to one event loop: a job that ends costs a point read."""

    def __init__(self, registry: CollectorRegistry, records: Records) -> None:
        self._records = records
        self._ended = Counter(
            "gitd_jobs_ended",
            "Jobs that are over, by type and outcome.",
            ["type", "outcome"],
            registry=registry,
        )
        self._waited = Histogram(
            "gitd_job_wait_seconds",
            "How long jobs were queued before they first began.",
            ["type"],
            buckets=JOB_BUCKETS_S,
            registry=registry,
        )
        self._took = Histogram(
            "gitd_job_duration_seconds",
            "How long jobs took from their first beginning to their end.",
            ["type"],
            buckets=JOB_BUCKETS_S,
            registry=registry,
        )
        self._rolls = Counter(
            "gitd_rolls_ended",
            "Rolls that are over, by what asked for them and outcome.",
            ["trigger", "outcome"],
            registry=registry,
        )
        self._phases = Histogram(
            "gitd_build_phase_duration_seconds",
            "How long the phases of builds took; pack keeps the output and signs it.",
            ["phase"],
            buckets=PHASE_BUCKETS_S,
            registry=registry,
        )
        self._steps = Histogram(
            "gitd_roll_step_duration_seconds",
            "How long the steps of rolls that succeeded took at the site host. What served before"
            " serves until the end of the switch.",
            ["step"],
            buckets=STEP_BUCKETS_S,
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Whoever reads a rate must see the first one too."""
        for outcome in OUTCOMES:
            for job_type in JobType:
                self._ended.labels(job_type.value, outcome.value)
            for trigger in Trigger:
                self._rolls.labels(trigger.value, outcome.value)
        for job_type in JobType:
            self._waited.labels(job_type.value)
            self._took.labels(job_type.value)
        for phase in PHASES:
            self._phases.labels(str(phase))
        for step in STEPS:
            self._steps.labels(step)

    def note_job(self, job: Job) -> None:
        """Take in a job that was changed. For `Jobs.watch`."""
        if not job.status.is_final:
            return
        self._ended.labels(job.type.value, job.status.value).inc()
        if job.started_at is not None and job.finished_at is not None:
            self._waited.labels(job.type.value).observe(_seconds(job.created_at, job.started_at))
            self._took.labels(job.type.value).observe(_seconds(job.started_at, job.finished_at))
        if job.type is JobType.BUILD_RUN:
            self._note_build(job.resource_id)
        else:
            self._note_roll(job)

    def note_steps(self, timings: Mapping[str, float]) -> None:
        """Take in what a site host says of a roll. For `RollRunner.watch_rolled`."""
        for step in STEPS:
            if step in timings:
                self._steps.labels(step).observe(max(0.0, timings[step]))

    def _note_build(self, build_id: str) -> None:
        build = builds.get(self._records.reader(), build_id)
        timings = {} if build is None else build.timings
        for phase in PHASES:
            if phase in timings:
                self._phases.labels(str(phase)).observe(max(0.0, timings[phase]))

    def _note_roll(self, job: Job) -> None:
        deployment = deployments.get(self._records.reader(), job.resource_id)
        if deployment is not None:
            self._rolls.labels(deployment.trigger.value, job.status.value).inc()


def _seconds(since: int, until: int) -> float:
    """Times are of a clock that may be set back."""
    return max(0, until - since) / 1000
