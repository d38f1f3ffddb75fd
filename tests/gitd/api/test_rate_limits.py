"""Contract §2 "Rate limits"."""

from __future__ import annotations

import pytest

from gitd import rate_limits
from gitd.config import RateLimitsConfig
from gitd.errors import RateLimitedError
from gitd.rate_limits import Kind, Rate, RateLimits, limits_of

NAMES = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class Time:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


def limits(time: Time, *, read: int = 60, write: int = 60, job: int = 60) -> RateLimits:
    rates = {Kind.READ: Rate(read, 3), Kind.WRITE: Rate(write, 2), Kind.JOB: Rate(job, 1)}
    return RateLimits(rates, time, time)


def test_bucket_gives_its_burst_and_then_as_fast_as_it_fills(time) -> None:
    bucket = limits(time)
    left = [bucket.take("key_1", Kind.READ).remaining for _ in range(3)]
    assert left == [2, 1, 0]
    with pytest.raises(RateLimitedError) as refused:
        bucket.take("key_1", Kind.READ)
    assert refused.value.retry_after_s == 1
    time.now_s += 1
    assert bucket.take("key_1", Kind.READ).remaining == 0
    time.now_s += 3600
    assert bucket.take("key_1", Kind.READ).remaining == 2


def test_reset_says_when_the_bucket_is_full_again(time) -> None:
    bucket = limits(time, read=20)
    bucket.take("key_1", Kind.READ)
    assert bucket.take("key_1", Kind.READ).full_at_s == 1000 + 6


def test_keys_and_kinds_do_not_share_a_bucket(time) -> None:
    bucket = limits(time)
    bucket.take("key_1", Kind.JOB)
    bucket.take("key_2", Kind.JOB)
    bucket.take("key_1", Kind.WRITE)
    with pytest.raises(RateLimitedError):
        bucket.take("key_1", Kind.JOB)
    assert bucket.refused == {Kind.JOB: 1}


def test_full_buckets_are_forgotten_and_others_not(time, monkeypatch) -> None:
    monkeypatch.setattr(rate_limits, "BUCKETS_COUNT_MAX", 10)
    bucket = limits(time)
    for number in range(10):
        bucket.take(f"key_{number}", Kind.JOB)
    time.now_s += 1
    bucket.take("key_9", Kind.JOB)
    bucket.take("key_new", Kind.JOB)
    with pytest.raises(RateLimitedError):
        bucket.take("key_9", Kind.JOB)


def test_limits_are_off_by_default_and_then_the_contracts() -> None:
    assert limits_of(RateLimitsConfig()) is None
    on = limits_of(RateLimitsConfig(enabled=True))
    assert on is not None
    for kind, limit in ((Kind.READ, 1000), (Kind.WRITE, 100), (Kind.JOB, 5)):
        standing = on.take("key_1", kind)
        assert (standing.limit, standing.remaining) == (limit, limit - 1)


@pytest.fixture
async def limited(service, time):
    service.rate_limits = limits(time)
    await service.restart()
    return service


async def test_every_answer_to_a_key_says_how_its_bucket_stands(limited, acme, time) -> None:
    time.now_s += 60
    job = (await limited.post(f"{acme.production}/builds")).data
    await limited.post(f"{job['links']['self']}/cancel")
    time.now_s += 60
    for path in ("/v1/sites/nowhere", "/v1/sites", job["links"]["stream"]):
        time.now_s += 60
        heard = await limited.get(path)
        assert [heard.headers[name] for name in NAMES[:2]] == ["3", "2"], path
        assert int(heard.headers[NAMES[2]]) == time.now_s + 1
    assert not {*NAMES} & {*(await limited.get("/v1/sites", secret="")).headers}


async def test_one_request_too_many_is_429_with_when_to_come_again(limited, acme, time) -> None:
    time.now_s += 60
    other = limited.key("*")
    builds = f"{acme.production}/builds"
    assert (await limited.post(builds)).status == 202
    heard = await limited.post(builds)
    assert (heard.status, heard.code) == (429, "rate_limit.exceeded")
    assert heard.body["error"]["type"] == "rate_limit"
    assert heard.headers["Retry-After"] == "1"
    assert heard.headers["X-RateLimit-Remaining"] == "0"
    assert (await limited.post(builds, secret=other)).status == 202
    assert (await limited.get(builds)).status == 200
    time.now_s += 1
    assert (await limited.post(builds)).status == 202


async def test_answers_that_are_kept_are_counted_too(limited, acme, time) -> None:
    time.now_s += 60
    statuses = [(await limited.get(acme.path)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_nothing_is_said_of_limits_where_there_are_none(service, acme) -> None:
    assert not {*NAMES} & {*(await service.get("/v1/sites")).headers}
    assert (await service.get(f"{acme.path}/capabilities")).data["features"]["rate_limits"] is False
