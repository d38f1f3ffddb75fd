"""Families of samples, as parts of the metrics read them from elsewhere at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class Part(Protocol):
    """Some of the metrics."""

    def families(self) -> Iterable[Metric]:
        """Read them now. In a thread: it may look at the disk. What takes long is left out."""


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A gauge for each value of one label."""
    return _filled(GaugeMetricFamily(name, text, labels=[label]), values)


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter for each value of one label."""
    return _filled(CounterMetricFamily(name, text, labels=[label]), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
    for value, number in values.items():
        family.add_metric([value], number)
    return family
