"""Metrics as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families


class Scraped(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one scrape, by name and labels."""

    def __init__(self, text: str, *, is_open: bool = False) -> None:
        read = openmetrics.text_string_to_metric_families if is_open else None
        self.families = list((read or text_string_to_metric_families)(text))
        for family in self.families:
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self, f"{key} is there twice"
                self[key] = sample.value

    def of(self, name: str, **labels: str) -> float:
        """The value of a sample with exactly these labels."""
        return self[name, frozenset(labels.items())]

    def has(self, name: str) -> bool:
        return any(found == name for found, _ in self)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels, and others."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.items() if found == name and wanted <= has)
