"""The server itself: its version, database, backups, git, webhooks and rate limits."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import Metric
from prometheus_client.core import InfoMetricFamily

from gitd.backup_note import last_backup_at
from gitd.git.tally import FetchOutcome, GitTally, PushOutcome
from gitd.layout import DataFolder
from gitd.metrics.families import counter, counters, gauge
from gitd.rate_limits import Kind, RateLimits
from hooks.clock import now_ms
from hooks.webhooks import Messenger
from storage.model import DeliveryStatus
from storage.records import census
from storage.records.db import Records

# What an attempt leaves its delivery as, and what that means for the attempt.
ATTEMPTS = {
    DeliveryStatus.SUCCEEDED: "taken",
    DeliveryStatus.QUEUED: "put_off",
    DeliveryStatus.FAILED: "given_up",
}


class ServerPart:
    """What is of the server as a whole."""

    def __init__(self, records: Records, folder: DataFolder) -> None:
        self._records = records
        self._folder = folder
        self._version = version("gitd")

    def families(self) -> Iterable[Metric]:
        yield InfoMetricFamily("gitd", "The server's version.", {"version": self._version})
        database = self._folder.database
        yield gauge("gitd_database_bytes", "Size of the database.", database.stat().st_size)
        log = database.with_name(f"{database.name}-wal")
        yield gauge(
            "gitd_database_log_bytes",
            "Size of its write-ahead log.",
            log.stat().st_size if log.exists() else 0,
        )
        yield counter("gitd_database_commits", "Commits of this process.", self._records.commits)
        at = last_backup_at(self._folder)
        if at is not None:
            yield gauge(
                "gitd_backup_last_success_timestamp_seconds",
                "The moment of the last backup that was taken whole; none while there is none.",
                at / 1000,
            )


class GitPart:
    """Pushes and fetches."""

    def __init__(self, tally: GitTally) -> None:
        self._tally = tally

    def families(self) -> Iterable[Metric]:
        yield counters(
            "gitd_pushes",
            "Pushes, by outcome.",
            "outcome",
            {outcome.value: self._tally.pushes[outcome] for outcome in PushOutcome},
        )
        yield counters(
            "gitd_fetches",
            "Fetches and clones that were sent a pack, by outcome.",
            "outcome",
            {outcome.value: self._tally.fetches[outcome] for outcome in FetchOutcome},
        )


class WebhooksPart:
    """Deliveries to webhooks, and what waits."""

    def __init__(self, records: Records, messenger: Messenger) -> None:
        self._records = records
        self._messenger = messenger

    def families(self) -> Iterable[Metric]:
        yield counters(
            "gitd_webhook_attempts",
            "Attempts to deliver, by what became of them.",
            "outcome",
            {name: self._messenger.attempts[status] for status, name in ATTEMPTS.items()},
        )
        outbox = census.outbox(self._records.reader())
        yield gauge(
            "gitd_webhook_outbox_deliveries",
            "Deliveries that are still to be taken.",
            outbox.deliveries,
        )
        yield gauge(
            "gitd_webhook_outbox_events",
            "Events that no deliveries were made of yet.",
            outbox.events,
        )
        now = now_ms()
        yield gauge(
            "gitd_webhook_outbox_oldest_age_seconds",
            "For how long the oldest delivery has waited; 0 without one.",
            0 if outbox.oldest_at is None else max(0, now - outbox.oldest_at) / 1000,
        )


class RateLimitsPart:
    """Requests that were refused for their number."""

    def __init__(self, limits: RateLimits | None) -> None:
        self._limits = limits

    def families(self) -> Iterable[Metric]:
        refused = {} if self._limits is None else self._limits.refused.copy()
        yield counters(
            "gitd_rate_limit_refusals",
            "Requests that a key made beyond its limit, by kind.",
            "kind",
            {kind.value: refused.get(kind, 0) for kind in Kind},
        )
