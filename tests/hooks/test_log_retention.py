"""Which job logs go, and what is left to say of them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from hooks.jobs import REMOVED
from hooks.log_retention import FRESH_MS, SWEEP_EVERY_S, LogLimits, LogRetention, logs_to_remove
from storage.joblog import LogFile, LogLine, StateChange
from storage.model import JobStatus, JobType
from tests.following import entries

NOW = 1_000 * FRESH_MS
BOUNDLESS = {"age_s_max": 0, "count_max": 0, "bytes_max": 0}


def files(*ages_h: float, size_bytes: int = 10) -> list[LogFile]:
    """Logs that were last written so many hours ago, named by their place."""
    return [
        LogFile(f"job_{n}", size_bytes, NOW - int(age * FRESH_MS)) for n, age in enumerate(ages_h)
    ]


@pytest.mark.parametrize(
    ("ages_h", "limits", "kept", "removed"),
    [
        pytest.param((), {}, (), "", id="none there"),
        pytest.param((5, 400, 3), {}, (), "", id="without bound"),
        pytest.param((5, 400, 3), {"age_s_max": 3 * 3600}, (), "10", id="too old, oldest first"),
        pytest.param((5, 400, 3), {"age_s_max": 3 * 3600}, (1,), "0", id="kept, however old"),
        pytest.param((5, 4, 3, 2), {"count_max": 2}, (), "01", id="too many"),
        pytest.param((5, 4, 3, 2), {"count_max": 2}, (0, 2), "13", id="too many, but for kept"),
        pytest.param((5, 4, 3, 2), {"bytes_max": 25}, (), "01", id="too much"),
        pytest.param((5, 4, 3, 2), {"bytes_max": 40}, (), "", id="just not too much"),
        pytest.param((0.9, 0.5), {"count_max": 1, "age_s_max": 1}, (), "", id="fresh ones stay"),
    ],
)
def test_logs_to_remove(ages_h, limits, kept, removed) -> None:
    found = logs_to_remove(
        files(*ages_h),
        {f"job_{n}" for n in kept},
        LogLimits(**(BOUNDLESS | limits)),
        now=NOW,
        surely=NOW,
    )
    assert "".join(file.job_id[-1] for file in found) == removed


async def job(world, env_id: str, *, job_type=JobType.DEPLOYMENT_ROLL, is_over=True) -> str:
    def change(changes):
        added = changes.add(
            job_type, resource_type="deployment", resource_id="dep_1", site_id="s", env_id=env_id
        )
        if is_over:
            changes.fail(added.id, error=None)
        return added.id

    job_id = await world.jobs.commit(change)
    path = world.jobs.joblogs.path(job_id)
    os.utime(path, ns=(0, 0))
    return job_id


async def test_newest_of_each_environment_and_what_is_not_over_stay(world) -> None:
    site = await world.site()
    here, there = world.environment(site).id, world.environment(site, "staging").id
    old = [await job(world, env_id) for env_id in (here, there, here, "env_gone")]
    waiting = await job(world, here, is_over=False)
    newest = [await job(world, there)]
    retention = LogRetention(world.jobs, LogLimits(**(BOUNDLESS | {"count_max": 1})))
    assert retention.sweep() == 4
    left = {file.job_id for file in world.jobs.joblogs.files()}
    assert left == {waiting, *newest}
    assert retention.sweep() == 0

    found = [i.entry async for i in entries(world.jobs, old[0], heartbeat_s=10)]
    assert [type(entry) for entry in found] == [LogLine, StateChange]
    assert found[0].line == REMOVED
    assert found[1].status is JobStatus.FAILED


async def test_strangers_and_logs_that_cannot_be_removed_keep_no_other_from_it(world) -> None:
    site = await world.site()
    env_id = world.environment(site).id
    old = [await job(world, env_id) for _ in range(3)]
    await job(world, env_id)
    stranger = world.root / "joblogs" / "AA" / "old.ndjson"
    stranger.parent.mkdir(exist_ok=True)
    stranger.touch()
    os.utime(stranger, ns=(0, 0))
    retention = LogRetention(world.jobs, LogLimits(**(BOUNDLESS | {"count_max": 1})))
    stuck = world.jobs.joblogs.path(old[0])
    if os.getuid() or not shutil.which("chattr"):
        pytest.skip("sets flags of files as root")
    if subprocess.run(["chattr", "+i", stuck], capture_output=True).returncode:
        pytest.skip("this filesystem has no such flags")
    try:
        assert retention.sweep() == 2
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)
    assert retention.sweep() == 1
    assert stranger.exists()


def sweep_for(retention: LogRetention, elapsed: list[float], *, hours: int) -> int:
    """Sweep once an hour."""
    removed = 0
    for _ in range(hours):
        elapsed[0] += SWEEP_EVERY_S
        removed += retention.sweep()
    return removed


async def test_log_that_is_too_old_goes_after_a_day_of_sweeps(world) -> None:
    env_id = world.environment(await world.site()).id
    old = [await job(world, env_id) for _ in range(3)]
    await job(world, env_id)
    elapsed = [0.0]
    limits = LogLimits(**(BOUNDLESS | {"age_s_max": 90 * 24 * 3600}))
    retention = LogRetention(world.jobs, limits, monotonic=lambda: elapsed[0])
    assert sweep_for(retention, elapsed, hours=24) == 0
    assert sweep_for(retention, elapsed, hours=1) == len(old)


async def test_clock_that_is_wrong_for_a_while_takes_no_log(world) -> None:
    env_id = world.environment(await world.site()).id
    for job_id in [await job(world, env_id) for _ in range(4)]:
        os.utime(world.jobs.joblogs.path(job_id))
    elapsed, ahead_ms, right = [0.0], [0], world.jobs.clock
    world.jobs.clock = lambda: right() + ahead_ms[0]
    limits = LogLimits(**(BOUNDLESS | {"age_s_max": 90 * 24 * 3600}))
    retention = LogRetention(world.jobs, limits, monotonic=lambda: elapsed[0])
    assert sweep_for(retention, elapsed, hours=30) == 0
    ahead_ms[0] = 91 * 24 * 3600 * 1000
    elapsed[0] += 365 * 24 * 3600  # it stood still, and this is the first sweep since
    assert sweep_for(retention, elapsed, hours=20) == 0
    ahead_ms[0] = 0
    assert sweep_for(retention, elapsed, hours=30) == 0
    ahead_ms[0] = 91 * 24 * 3600 * 1000  # and it is so for good
    assert sweep_for(retention, elapsed, hours=26) == 3
