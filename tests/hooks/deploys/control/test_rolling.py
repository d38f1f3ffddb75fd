"""When a deployment under way has been that for too long."""

from __future__ import annotations

import dataclasses

import pytest

from hooks.deploys.control.rolling import Rolling, RollLimits
from storage.model import SYSTEM, Deployment, Failure, JobStatus, Trigger

LIMITS = RollLimits(roll_timeout_s=900, host_timeout_s=30)
DEPLOYMENT = Deployment(
    *("dep_1", "site_1", "env_1", "job_1", "art_1", "", Trigger.PUSH, JobStatus.RUNNING),
    runs_release_command=True,
    release_id=None,
    error=None,
    ref=None,
    commit=None,
    actor=SYSTEM,
    created_at=0,
    started_at=0,
    finished_at=None,
)
UNWRITTEN = Failure("artifact.corrupt", "It is damaged.")


@pytest.mark.parametrize(
    ("after_s", "hostless_s", "changes", "code"),
    [
        (900, None, {}, None),
        (901, None, {}, "deployment.timed_out"),
        (901, None, {"is_ending": True}, None),
        (1, None, {"unwritten": UNWRITTEN}, "artifact.corrupt"),
        (1, None, {"unwritten": UNWRITTEN, "is_ending": True}, None),
        (100, 30, {}, None),
        (100, 31, {}, "deployment.host_unavailable"),
        (30, 500, {}, None),  # a host has its time from the roll's beginning on
        (31, 500, {}, "deployment.host_unavailable"),
    ],
)
def test_roll_fails_when_its_time_or_the_hosts_is_over(after_s, hostless_s, changes, code) -> None:
    now = 10_000.0
    rolling = dataclasses.replace(Rolling(DEPLOYMENT, now - after_s), **changes)
    hostless_since = None if hostless_s is None else now - hostless_s
    failure = rolling.overdue(now, LIMITS, hostless_since=hostless_since)
    assert (failure and failure.code) == code
