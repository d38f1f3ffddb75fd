"""Branches to environments: contract §5."""

from __future__ import annotations

import string
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hooks import branches
from hooks.environments import mapped_branches
from storage.git.refs import is_writable_name
from storage.model import BranchRoute, RouteTarget

ROUTES = branches.default_routes("main")


@pytest.mark.parametrize(
    ("branch", "target"),
    [
        ("main", RouteTarget.LIVE),
        ("staging", RouteTarget.STAGING),
        ("feature/checkout", RouteTarget.PREVIEW),
        ("Main", RouteTarget.PREVIEW),
        ("main/sub", RouteTarget.PREVIEW),
    ],
)
def test_default_routes(branch: str, target: RouteTarget) -> None:
    assert branches.target_of(ROUTES, branch) is target


def test_first_matching_route_wins() -> None:
    routes = (
        BranchRoute("release/*", RouteTarget.STAGING),
        BranchRoute("release/1.0", RouteTarget.LIVE),
        BranchRoute("wip/*", RouteTarget.IGNORE),
    )
    assert branches.target_of(routes, "release/1.0") is RouteTarget.STAGING
    assert branches.target_of(routes, "wip/deep/er") is RouteTarget.IGNORE


def test_branch_that_no_route_matches_is_ignored() -> None:
    assert branches.target_of((), "main") is RouteTarget.IGNORE
    assert branches.reason_to_ignore((), "main") == "no branch route matches it"


def test_branch_that_a_route_ignores_is_told_so() -> None:
    routes = (BranchRoute("wip/*", RouteTarget.IGNORE),)
    assert branches.reason_to_ignore(routes, "wip/a") == "its branch route says ignore"


@pytest.mark.parametrize("name", ["acme-store", "a", "0", "a" * 40])
def test_good_site_names(name: str) -> None:
    assert branches.site_name_fault(name) is None


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a_b", "a.b", "a--b", "a" * 41, "site_01", "é", "a/b", "a b"]
)
def test_bad_site_names(name: str) -> None:
    assert branches.site_name_fault(name)


@pytest.mark.parametrize("name", ["main", "feature/x", "été", "a.b", "release/1.0"])
def test_good_branch_names(name: str) -> None:
    assert branches.branch_fault(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("", "@", "-x", "a..b", "a.lock", "a/.b", "a//b", "/a", "a/", "a b", "a~1", "a^", "a:b"),
        *("a@{", "refs/heads/a", "refs/tags/a"),
    ],
)
def test_bad_branch_names(name: str) -> None:
    assert branches.branch_fault(name)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "?", "main", "release/*", "*/x", "v[0-9]*", "[!]a]", "*.lock?", "*.x", "a.*"),
        *("refs-*", "-*", "-x", "@"),
    ],
)
def test_pattern_that_some_branch_matches(pattern: str) -> None:
    assert branches.pattern_fault(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("refs/heads/main", "its branch is 'main'"),
        ("refs/heads/*", "its branch is '*'"),
        ("refs/tags/*", "of no branch"),
        *((each, "No branch") for each in ("a..b", "*.lock", "a.lock/*", "a b", " main", "main ")),
        *((each, "No branch") for each in ("/*", "*/", "a//*", ".*", "*/.*", "*.", "x^", "v[0-9")),
        *((each, "No branch") for each in ("[]", "v[!]", "[!")),  # no sets: they are never closed
    ],
)
def test_pattern_that_no_branch_matches_is_told_what_one_is(pattern: str, said: str) -> None:
    assert said in str(branches.pattern_fault(pattern))


@given(st.text(alphabet="ab./*?[]!@{- lock", max_size=12))
@example("-*")
@example("@")
def test_pattern_with_a_fault_matches_no_branch_that_can_be_pushed(pattern: str) -> None:
    shapes = [pattern.replace("*", more).replace("?", "b") for more in ("", "b", "b/b")]
    for branch in shapes:
        route = BranchRoute(pattern, RouteTarget.LIVE)
        is_live = branches.target_of([route], branch) is RouteTarget.LIVE
        if is_live and is_writable_name(f"refs/heads/{branch}".encode()):
            assert branches.pattern_fault(pattern) is None


@given(st.text(min_size=1, max_size=300))
def test_preview_hostname_is_one_valid_label(branch: str) -> None:
    for label in islice(branches.preview_hostnames("a" * 40, "site_01", branch), 4):
        assert 0 < len(label) <= 63
        assert set(label) <= set(string.ascii_lowercase + string.digits + "-")
        assert not label.startswith("-")
        assert not label.endswith("-")


def test_preview_hostname_is_stable_and_tells_branches_apart() -> None:
    def usual(branch: str) -> str:
        return next(branches.preview_hostnames("shop", "site_01", branch))

    one = usual("feature/x")
    assert one == usual("feature/x")
    assert one.startswith("shop-feature-x-")
    assert one != usual("feature-x")


@pytest.mark.parametrize("branch", ["production", "staging", "Preview"])
def test_preview_never_takes_the_slug_of_a_kind(branch: str) -> None:
    for slug in islice(branches.preview_slugs("site_01", branch), 4):
        assert slug not in branches.RESERVED_SLUGS


@given(st.text(min_size=1, max_size=300))
def test_preview_slugs_never_end_and_never_repeat(branch: str) -> None:
    slugs = list(islice(branches.preview_slugs("site_01", branch), 20))
    assert len(set(slugs)) == 20
    assert all(0 < len(slug) <= branches.SLUG_CHARS_MAX for slug in slugs)


def test_staging_host_cannot_be_a_site_name() -> None:
    assert branches.site_name_fault(branches.staging_hostname("shop"))


@pytest.mark.parametrize(
    ("routes", "mapped"),
    [
        ("main=live staging=staging *=preview", ("main", "staging")),
        ("release/*=live main=staging", (None, "main")),
        ("main=live release/*=staging *=preview", ("main", None)),
        ("*=live", ("main", None)),
        ("*=preview main=live", (None, None)),
        ("next=live main=live", ("next", None)),
    ],
)
def test_production_and_staging_stand_for_the_branch_that_goes_there(
    routes: str, mapped: tuple[str | None, str | None]
) -> None:
    pairs = [route.split("=") for route in routes.split()]
    table = [BranchRoute(pattern, RouteTarget(target)) for pattern, target in pairs]
    assert mapped_branches(table, "main") == mapped
