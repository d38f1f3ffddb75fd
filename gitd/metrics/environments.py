"""Sites and their environments, as they stand."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from gitd.metrics.families import gauge, gauges
from hooks.deploys.control.runner import RollRunner
from storage.model import EnvironmentKind, EnvironmentStatus
from storage.records import census
from storage.records.db import Records

PROGRAM_STATES = ("starting", "serving", "restarting")


class EnvironmentsPart:
    """All environments, counted: a site or a branch has no series of its own."""

    def __init__(self, records: Records, rolls: RollRunner) -> None:
        self._records = records
        self._rolls = rolls

    def families(self) -> Iterable[Metric]:
        db = self._records.reader()
        yield gauge("gitd_sites", "Sites.", census.sites(db))
        found = census.environments(db)
        count = GaugeMetricFamily(
            "gitd_environments", "Environments, by kind and status.", labels=["kind", "status"]
        )
        for kind in EnvironmentKind:
            for status in EnvironmentStatus:
                count.add_metric([kind, status], found.get((kind, status), 0))
        yield count
        yield gauge(
            "gitd_environments_last_roll_failed",
            "Environments whose last roll failed: they serve what they did before.",
            census.environments_whose_last_roll_failed(db),
        )
        states = self._rolls.program_states()
        yield gauges(
            "gitd_web_processes",
            "Web processes of environments, as the site host says; restarting ones have ended.",
            "state",
            {state: states[state] for state in PROGRAM_STATES},
        )
        yield gauge(
            "gitd_site_host_connected", "Whether a site host is there.", self._rolls.has_host
        )
