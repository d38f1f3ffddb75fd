"""Retention: what is kept, and why; tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.model import BuildCache
from storage.retention import (
    DAY_MS,
    ArtifactFacts,
    Fate,
    Keeping,
    Pressure,
    Retention,
    caches_to_evict,
    judge,
    keeping_of,
)

NOW = 100 * DAY_MS
OLD = 10 * DAY_MS
KEPT = Retention(releases=3, branch_artifacts=2, recent_ms=7 * DAY_MS, grace_ms=DAY_MS)
ARTIFACT = ArtifactFacts(id="art_1", digest="blake3:00", size_bytes=1, built_at=OLD)


@pytest.mark.parametrize(
    ("known", "keeping"),
    [
        ({}, None),
        ({"is_pinned": True}, Keeping.PINNED),
        ({"is_current": True, "release_rank": 1}, Keeping.CURRENT),
        ({"is_deploying": True}, Keeping.DEPLOYING),
        ({"release_rank": 3}, Keeping.RELEASED),
        ({"release_rank": 4}, None),
        ({"branch_rank": 2}, Keeping.BRANCH),
        ({"branch_rank": 3}, None),
        ({"built_at": NOW - 7 * DAY_MS + 1}, Keeping.RECENT),
        ({"built_at": NOW - 7 * DAY_MS}, None),
        ({"built_at": NOW + DAY_MS}, Keeping.RECENT),  # the clock was set back since
        ({"built_at": None}, None),
        ({"release_rank": 4, "branch_rank": 2, "is_pinned": True}, Keeping.PINNED),
    ],
)
def test_artifact_is_kept_for_a_reason(known: dict[str, object], keeping: Keeping | None) -> None:
    assert keeping_of(replace(ARTIFACT, **known), KEPT, NOW) is keeping


def test_current_release_is_kept_whatever_the_settings_say() -> None:
    nothing = Retention(releases=0, branch_artifacts=0, recent_ms=0, grace_ms=0)
    current = replace(ARTIFACT, is_current=True, release_rank=1, built_at=NOW)
    assert judge(current, nothing, NOW, Pressure.CACHES).fate is Fate.KEPT
    assert judge(replace(current, is_current=False), nothing, NOW).fate is Fate.DROPPED


@pytest.mark.parametrize(
    ("expired_at", "grace_ms", "pressure", "fate"),
    [
        (None, DAY_MS, Pressure.NONE, Fate.EXPIRES),
        (None, 0, Pressure.NONE, Fate.DROPPED),
        (None, DAY_MS, Pressure.GRACE, Fate.DROPPED),
        (NOW - DAY_MS + 1, DAY_MS, Pressure.NONE, Fate.WAITS),
        (NOW - DAY_MS, DAY_MS, Pressure.NONE, Fate.DROPPED),
        (NOW - 1, DAY_MS, Pressure.GRACE, Fate.DROPPED),
        (NOW + DAY_MS, DAY_MS, Pressure.NONE, Fate.WAITS),  # the clock was set back since
    ],
)
def test_what_nothing_keeps_expires_waits_and_is_dropped(
    expired_at: int | None, grace_ms: int, pressure: Pressure, fate: Fate
) -> None:
    artifact = replace(ARTIFACT, expired_at=expired_at)
    assert judge(artifact, replace(KEPT, grace_ms=grace_ms), NOW, pressure).fate is fate


def test_verdict_says_until_when_it_can_be_brought_back() -> None:
    assert judge(ARTIFACT, KEPT, NOW).until == NOW + DAY_MS
    expired = replace(ARTIFACT, expired_at=NOW - 5)
    assert judge(expired, KEPT, NOW).until == NOW - 5 + DAY_MS


def test_expired_artifact_that_something_keeps_again_comes_back() -> None:
    expired = replace(ARTIFACT, expired_at=OLD, release_rank=5)
    assert judge(expired, KEPT, NOW, Pressure.CACHES).fate is Fate.DROPPED
    verdict = judge(expired, replace(KEPT, releases=5), NOW, Pressure.CACHES)
    assert (verdict.fate, verdict.why) == (Fate.RESTORED, Keeping.RELEASED)


@given(
    st.builds(
        ArtifactFacts,
        id=st.just("art_1"),
        digest=st.just("blake3:00"),
        size_bytes=st.just(1),
        expired_at=st.none() | st.integers(0, NOW),
        built_at=st.none() | st.integers(0, NOW),
        is_pinned=st.booleans(),
        is_current=st.booleans(),
        is_deploying=st.booleans(),
        release_rank=st.none() | st.integers(1, 9),
        branch_rank=st.none() | st.integers(1, 9),
    ),
    st.sampled_from(Pressure),
)
def test_no_pressure_takes_what_something_keeps(
    artifact: ArtifactFacts, pressure: Pressure
) -> None:
    fate = judge(artifact, KEPT, NOW, pressure).fate
    is_kept = keeping_of(artifact, KEPT, NOW) is not None
    assert (fate in (Fate.KEPT, Fate.RESTORED)) == is_kept


# -- build caches ------------------------------------------------------------------------------


def cache(name: str, size: int, used_at: int, site: str = "site_a") -> BuildCache:
    return BuildCache(
        id=f"cache_{name}",
        site_id=site,
        profile="node",
        cache_key=name,
        tree_digest="blake3:00",
        files=1,
        size_bytes=size,
        created_at=0,
        used_at=used_at,
    )


CACHES = [
    cache("old", 40, 1),
    cache("mid", 40, 2, site="site_b"),
    cache("new", 40, 3),
    cache("huge", 90, 4, site="site_c"),
]


@pytest.mark.parametrize(
    ("total", "per_site", "pressure", "gone"),
    [
        (1000, 1000, Pressure.GRACE, []),
        (1000, 80, Pressure.NONE, ["cache_huge"]),
        (1000, 70, Pressure.NONE, ["cache_huge", "cache_old"]),
        (170, 1000, Pressure.NONE, ["cache_old"]),
        (85, 1000, Pressure.NONE, ["cache_huge", "cache_old"]),
        (0, 1000, Pressure.NONE, ["cache_huge", "cache_new", "cache_mid", "cache_old"]),
        (1000, 1000, Pressure.CACHES, ["cache_huge", "cache_new", "cache_mid", "cache_old"]),
    ],
)
def test_caches_used_longest_ago_go_first(
    total: int, per_site: int, pressure: Pressure, gone: list[str]
) -> None:
    retention = Retention(cache_bytes_max=total, cache_site_bytes_max=per_site)
    assert [c.id for c, _ in caches_to_evict(CACHES, retention, pressure)] == gone


def test_caches_that_stay_are_within_their_budgets_and_used_later() -> None:
    caches = [cache(str(n), 10, n, site=f"site_{n % 3}") for n in range(30)]
    retention = Retention(cache_bytes_max=150, cache_site_bytes_max=60)
    gone = {c.id for c, _ in caches_to_evict(caches, retention)}
    kept = [c for c in caches if c.id not in gone]
    assert sum(c.size_bytes for c in kept) == 150
    assert min(c.used_at for c in kept) > max(c.used_at for c in caches if c.id in gone)
