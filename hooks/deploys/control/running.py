"""Running: what the site host said last of the web process of each environment."""

from __future__ import annotations

from collections import Counter
from typing import Final

from hooks.deploys.wire import Report, Running

ENVIRONMENTS_MAX: Final = 20_000
"""Beyond it those go that were heard of first: some of them are no more."""


class RunningPrograms:
    """How the programs of all environments stand. Belongs to one event loop."""

    def __init__(self) -> None:
        self._heard: dict[str, Running] = {}

    def note(self, report: Report) -> None:
        """Take in what a report says of what its environment serves."""
        if report.serves is None:
            self._heard.pop(report.env_id, None)
            return
        if report.serves != report.deployment_id:
            return  # of what it serves this one says nothing
        self._heard.pop(report.env_id, None)
        if report.running is not None:
            self._heard[report.env_id] = report.running
            if len(self._heard) > ENVIRONMENTS_MAX:
                del self._heard[next(iter(self._heard))]

    def states(self) -> Counter[str]:
        """How many there are in each state. Any thread may ask."""
        return Counter(running.state for running in list(self._heard.values()))

    def of(self, env_id: str) -> Running | None:
        return self._heard.get(env_id)
