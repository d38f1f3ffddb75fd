"""Retention: which artifacts and build caches are kept, and why. Decisions on values, no effects.

An artifact that nothing keeps *expires*: it leaves the lists and can no longer be deployed. For a
grace it can be brought back, whole; then it is *dropped*, and what nobody else needs of it goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from storage.model import BuildCache

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept.

    Attributes:
        releases: So many different artifacts of an environment's releases, the newest first. The
            current one is kept whatever this says.
        branch_artifacts: So many different artifacts of each branch that an environment stands for.
        recent_ms: Whatever was built within this time.
        grace_ms: How long an expired artifact can be brought back.
        cache_bytes_max: How large all build caches may be together, by the sizes of their files;
            `cache_site_bytes_max`: those of one site.
    """

    releases: int = 10
    branch_artifacts: int = 3
    recent_ms: int = 7 * DAY_MS
    grace_ms: int = DAY_MS
    cache_bytes_max: int = 10 * 1024**3
    cache_site_bytes_max: int = 2 * 1024**3


class Pressure(IntEnum):
    """How badly room is needed, and so what else is given up for it. What is listed never is."""

    NONE = 0
    GRACE = 1  # expired artifacts are dropped without their grace
    CACHES = 2  # and build caches go


class Keeping(StrEnum):
    """Why an artifact is kept; the first that holds. The values are words for people."""

    PINNED = "pinned"
    CURRENT = "runs on an environment"
    DEPLOYING = "is being deployed"
    RELEASED = "among the last releases of an environment"
    BRANCH = "among the last artifacts of a branch"
    RECENT = "built recently"


class Fate(StrEnum):
    """What becomes of an artifact."""

    KEPT = "kept"
    RESTORED = "restored"  # it had expired, and something keeps it again
    EXPIRES = "expires"
    WAITS = "waits"  # it has expired and is in its grace
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """What is known of an artifact. Ranks count from 1, the newest; None is outside of all.

    Attributes:
        built_at: When a build of a site that is still there made it last; None when none did.
        release_rank: Its best place among the artifacts that an environment ran.
        branch_rank: Its best place among the artifacts of a branch that an environment stands for.
    """

    id: str
    digest: str
    size_bytes: int
    expired_at: int | None = None
    built_at: int | None = None
    is_pinned: bool = False
    is_current: bool = False
    is_deploying: bool = False
    release_rank: int | None = None
    branch_rank: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an artifact, and why: a clause for people.

    `until`: when its grace ends, for one that has expired or does now.
    """

    artifact: ArtifactFacts
    fate: Fate
    why: str
    until: int | None = None


def judge(
    artifact: ArtifactFacts, retention: Retention, now: int, pressure: Pressure = Pressure.NONE
) -> Verdict:
    """Decide about one artifact, at the time `now`."""
    expired_at = artifact.expired_at
    keeping = keeping_of(artifact, retention, now)
    if keeping is not None:
        return Verdict(artifact, Fate.KEPT if expired_at is None else Fate.RESTORED, keeping.value)
    until = (now if expired_at is None else expired_at) + retention.grace_ms
    if now >= until:
        return Verdict(artifact, Fate.DROPPED, "nothing keeps it, and its grace is over", until)
    if pressure >= Pressure.GRACE:
        return Verdict(artifact, Fate.DROPPED, "nothing keeps it, and room is needed", until)
    fate = Fate.EXPIRES if expired_at is None else Fate.WAITS
    return Verdict(artifact, fate, "nothing keeps it", until)


def keeping_of(artifact: ArtifactFacts, retention: Retention, now: int) -> Keeping | None:
    """Say why an artifact is kept, None when nothing keeps it."""
    if artifact.is_pinned:
        return Keeping.PINNED
    if artifact.is_current:
        return Keeping.CURRENT
    if artifact.is_deploying:
        return Keeping.DEPLOYING
    if _is_within(artifact.release_rank, retention.releases):
        return Keeping.RELEASED
    if _is_within(artifact.branch_rank, retention.branch_artifacts):
        return Keeping.BRANCH
    # A clock that was set back makes it look younger, which keeps it.
    if artifact.built_at is not None and now - artifact.built_at < retention.recent_ms:
        return Keeping.RECENT
    return None


def _is_within(rank: int | None, count: int) -> bool:
    return rank is not None and rank <= count


def caches_to_evict(
    caches: Iterable[BuildCache], retention: Retention, pressure: Pressure = Pressure.NONE
) -> list[tuple[BuildCache, str]]:
    """Return the caches that go, and why; those used last stay, as many as the budgets hold.

    One cache that alone is larger than a budget goes too.
    """
    evicted = []
    total = 0
    of_site: defaultdict[str, int] = defaultdict(int)
    for cache in sorted(caches, key=lambda c: (c.used_at, c.id), reverse=True):
        if pressure >= Pressure.CACHES:
            evicted.append((cache, "room is needed"))
        elif of_site[cache.site_id] + cache.size_bytes > retention.cache_site_bytes_max:
            evicted.append((cache, "its site's caches are too large"))
        elif total + cache.size_bytes > retention.cache_bytes_max:
            evicted.append((cache, "all caches together are too large"))
        else:
            total += cache.size_bytes
            of_site[cache.site_id] += cache.size_bytes
    return evicted
