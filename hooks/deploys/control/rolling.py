"""A deployment under way, and when it has been that for too long."""

from __future__ import annotations

from dataclasses import dataclass

from storage.model import Deployment, Failure


@dataclass(frozen=True, slots=True)
class RollLimits:
    """How long control waits, in seconds: for a roll as a whole, and for a site host to appear."""

    roll_timeout_s: float = 900.0
    host_timeout_s: float = 30.0


@dataclass(slots=True)
class Rolling:
    """The deployment under way on an environment. Times are loop times.

    `lines_seen`: of `source`, the attempt at it that was heard last.
    `unwritten`: what it failed for, while that cannot be written down.
    """

    deployment: Deployment
    since: float
    source: str = ""
    lines_seen: int = 0
    progress: int = 0
    progress_at: float = 0.0
    is_issued: bool = False
    is_ending: bool = False
    unwritten: Failure | None = None

    def overdue(
        self, now: float, limits: RollLimits, *, hostless_since: float | None
    ) -> Failure | None:
        """What it is to fail for by `now`. `hostless_since`: since when no site host is there."""
        if self.is_ending:
            return None
        if self.unwritten is not None:
            return self.unwritten
        if now - self.since > limits.roll_timeout_s:
            return Failure(
                "deployment.timed_out",
                f"The roll took longer than {limits.roll_timeout_s:.0f} s.",
            )
        if hostless_since is not None and now - max(hostless_since, self.since) > (
            limits.host_timeout_s
        ):
            return Failure(
                "deployment.host_unavailable",
                "No site host is connected: is `gitd host` running? Look at the server's log.",
            )
        return None
