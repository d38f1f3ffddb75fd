"""Rate limits: a bucket of tokens for each key and class of requests, to the API and by git.

A bucket holds as many tokens as its burst and fills at its rate; a request takes one. The buckets
are this process's own: a restart fills them. Source: contract §2 "Rate limits".
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from gitd.config import RateLimitsConfig
from gitd.errors import RateLimitedError

MINUTE_S = 60.0
BUCKETS_COUNT_MAX = 10_000  # beyond it the full ones go: they are as good as new ones
RATE_HEADERS = web.RequestKey("rate_headers", dict[str, str])  # of a key that is counted


class Kind(StrEnum):
    """What a request costs the server: `job` starts a build or a roll."""

    READ = "read"
    WRITE = "write"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a minute, and `burst` of them at once."""

    per_minute: int
    burst: int

    @property
    def per_s(self) -> float:
        return self.per_minute / MINUTE_S


@dataclass(frozen=True, slots=True)
class Standing:
    """How a bucket stands behind a request."""

    limit: int
    remaining: int
    full_at_s: int

    def headers(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.full_at_s),
        }


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float

    def fill(self, rate: Rate, now_s: float) -> None:
        self.tokens = min(rate.burst, self.tokens + (now_s - self.at_s) * rate.per_s)
        self.at_s = now_s


class RateLimits:
    """Counts requests. Belongs to one event loop; any thread may read `refused`, by kind."""

    def __init__(
        self,
        rates: Mapping[Kind, Rate],
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.refused: Counter[Kind] = Counter()
        self._rates = rates
        self._monotonic = monotonic
        self._clock = clock
        self._buckets: dict[tuple[str, Kind], _Bucket] = {}

    def take(self, key_id: str, kind: Kind) -> Standing:
        """Count a request of a key.

        Raises:
            RateLimitedError: There is no token for it. It says how the bucket stands.
        """
        bucket = self._bucket_with_one(key_id, kind)
        bucket.tokens -= 1
        return self._standing(bucket, self._rates[kind])

    def expect(self, key_id: str, kind: Kind) -> None:
        """Look whether `take` would count a request now, and count none.

        Raises:
            RateLimitedError: As `take`.
        """
        self._bucket_with_one(key_id, kind)

    def _bucket_with_one(self, key_id: str, kind: Kind) -> _Bucket:
        rate, now_s = self._rates[kind], self._monotonic()
        bucket = self._buckets.get((key_id, kind))
        if bucket is None:
            if len(self._buckets) >= BUCKETS_COUNT_MAX:
                self._forget_full(now_s)
            bucket = self._buckets[key_id, kind] = _Bucket(rate.burst, now_s)
        bucket.fill(rate, now_s)
        if bucket.tokens < 1:
            self.refused[kind] += 1
            wait_s = max(1, math.ceil((1 - bucket.tokens) / rate.per_s))
            raise RateLimitedError(kind.value, wait_s, self._standing(bucket, rate).headers())
        return bucket

    def _standing(self, bucket: _Bucket, rate: Rate) -> Standing:
        full_in_s = (rate.burst - bucket.tokens) / rate.per_s
        full_at_s = math.ceil(self._clock() + full_in_s)
        return Standing(rate.burst, int(bucket.tokens), full_at_s)

    def _forget_full(self, now_s: float) -> None:
        for (key_id, kind), bucket in list(self._buckets.items()):
            rate = self._rates[kind]
            bucket.fill(rate, now_s)
            if bucket.tokens >= rate.burst:
                del self._buckets[key_id, kind]


def limits_of(config: RateLimitsConfig) -> RateLimits | None:
    """The limits that the settings say; None where they are off."""
    if not config.enabled:
        return None
    return RateLimits(
        {
            Kind.READ: Rate(config.read_per_minute, config.read_burst),
            Kind.WRITE: Rate(config.write_per_minute, config.write_burst),
            Kind.JOB: Rate(config.job_per_minute, config.job_burst),
        }
    )


async def add_rate_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Say in an answer how the key's bucket stands: for `Application.on_response_prepare`."""
    response.headers.update(request.get(RATE_HEADERS, {}))
