"""What waits and runs just now: jobs and builder slots."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from gitd.metrics.families import gauge
from hooks.builds.control.dispatcher import Dispatcher
from hooks.builds.control.leases import Leases
from hooks.clock import now_ms
from storage.model import JobStatus, JobType
from storage.records import census
from storage.records.census import Unfinished
from storage.records.db import Records

_NONE = Unfinished(0, 0)


class QueuePart:
    """The queue. `slots`: how many builder slots there are to be."""

    def __init__(
        self, records: Records, leases: Leases, dispatcher: Dispatcher, *, slots: int
    ) -> None:
        self._records = records
        self._leases = leases
        self._dispatcher = dispatcher
        self._slots = slots

    def families(self) -> Iterable[Metric]:
        yield from self._jobs()
        yield gauge("gitd_build_slots", "Builder slots that the settings say.", self._slots)
        yield gauge("gitd_build_slots_busy", "Builder slots that build.", self._leases.busy_slots)
        yield gauge(
            "gitd_build_slots_idle",
            "Builder slots that wait for a build; those that are neither are away.",
            self._dispatcher.free_slots,
        )

    def _jobs(self) -> Iterable[Metric]:
        found = census.unfinished_jobs(self._records.reader())
        count = GaugeMetricFamily(
            "gitd_jobs", "Jobs that are not over, by type and status.", labels=["type", "status"]
        )
        age = GaugeMetricFamily(
            "gitd_jobs_oldest_age_seconds",
            "For how long the oldest of these has been there; 0 without one.",
            labels=["type", "status"],
        )
        now = now_ms()
        for job_type in JobType:
            for status in (JobStatus.QUEUED, JobStatus.RUNNING):
                one = found.get((job_type, status), _NONE)
                count.add_metric([job_type, status], one.count)
                passed_ms = max(0, now - one.oldest_at) if one.count else 0
                age.add_metric([job_type, status], passed_ms / 1000)
        yield count
        yield age
