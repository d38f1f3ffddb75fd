"""Branches to environments: pure decisions on names.

Source: contract §5 "Branch routes" and "Preview URL".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import count

from blake3 import blake3

from storage.git.refs import is_valid_name
from storage.model import BranchRoute, Environment, RouteTarget

HEADS = "refs/heads/"
LABEL_CHARS_MAX = 63  # Source: RFC 1035 §2.3.4
HASH_CHARS = 7
LONG_HASH_CHARS = 16  # for a name that somebody has already
SITE_NAME_CHARS_MAX = 40
SLUG_CHARS_MAX = 40
_GLOB = re.compile(r"\*|\?|\[!?+\]?+[^\]]*\]")  # as fnmatch has them
_SITE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
RESERVED_SLUGS = frozenset({"production", "staging", "preview"})


def default_routes(default_branch: str) -> tuple[BranchRoute, ...]:
    """The default branch goes live, `staging` to staging, the rest to a preview each."""
    return (
        BranchRoute(default_branch, RouteTarget.LIVE),
        BranchRoute("staging", RouteTarget.STAGING),
        BranchRoute("*", RouteTarget.PREVIEW),
    )


def target_of(routes: Sequence[BranchRoute], branch: str) -> RouteTarget:
    """The target of the first route whose pattern matches; `ignore` when none does."""
    route = _route_of(routes, branch)
    return RouteTarget.IGNORE if route is None else route.target


def reason_to_ignore(routes: Sequence[BranchRoute], branch: str) -> str:
    """Why a branch with the target `ignore` has it."""
    route = _route_of(routes, branch)
    return "no branch route matches it" if route is None else "its branch route says ignore"


def _route_of(routes: Sequence[BranchRoute], branch: str) -> BranchRoute | None:
    return next((route for route in routes if fnmatchcase(branch, route.pattern)), None)


def branch_of(ref: str) -> str | None:
    """The branch that `ref` is, or None for a tag, a note, or anything else."""
    return ref.removeprefix(HEADS) if ref.startswith(HEADS) else None


def reaches(routes: Sequence[BranchRoute], ref: str, environment: Environment) -> bool:
    """Whether `ref` is a branch whose pushes deploy to the environment, as the routes are now."""
    branch = branch_of(ref)
    if branch is None:
        return False
    target = target_of(routes, branch)
    return (
        (target is RouteTarget.LIVE and environment.slug == "production")
        or (target is RouteTarget.STAGING and environment.slug == "staging")
        or (target is RouteTarget.PREVIEW and environment.branch == branch)
    )


def site_name_fault(name: str) -> str | None:
    """Why `name` cannot name a site, or None when it can.

    A name is a host name's label; two hyphens in a row separate a site from its environment there.
    """
    if not _SITE_NAME.fullmatch(name):
        return "A site's name has lower-case letters, digits and hyphens, and no hyphen at its ends"
    if "--" in name:
        return "A site's name has no two hyphens in a row"
    if len(name) > SITE_NAME_CHARS_MAX:
        return f"A site's name has at most {SITE_NAME_CHARS_MAX} characters"
    return None


def branch_fault(branch: str) -> str | None:
    """Why `branch` cannot be made a branch by its name, or None. Source: git-check-ref-format(1).

    git lets a branch be called refs/heads/x; who writes that means the branch x. Nor is `-x` or `@`
    one to choose: git's commands take these for something else.
    """
    if fault := _whole_name_fault(branch):
        return fault
    if branch == "@" or branch.startswith("-") or not _may_be_pushed(branch):
        return f"{branch!r} is not a valid branch name"
    return None


def pattern_fault(pattern: str) -> str | None:
    """Why no branch can match `pattern`, or None when one can.

    Pushes bring also branches that nobody could choose (`-x`, by its full name): a route may say
    what becomes of them.
    """
    if fault := _whole_name_fault(pattern):
        return fault
    if not _may_be_pushed(_GLOB.sub("x", pattern)):
        return (
            f"No branch can be called {pattern!r}: a pattern is a branch's name, or a glob such "
            "as 'release/*'"
        )
    return None


def _may_be_pushed(branch: str) -> bool:
    return is_valid_name(f"{HEADS}{branch}".encode("utf-8", "surrogateescape"))


def _whole_name_fault(name: str) -> str | None:
    if name.startswith(HEADS):
        return f"{name!r} is the name of a ref: its branch is {name.removeprefix(HEADS)!r}"
    if name.startswith("refs/"):
        return f"{name!r} is the name of a ref, and of no branch"
    return None


def short_hash(site_id: str, branch: str, chars: int = HASH_CHARS) -> str:
    return blake3(f"{site_id}\0{branch}".encode()).hexdigest()[:chars]


def label_of(branch: str, chars_max: int) -> str:
    """The branch as part of a host name: lower case, letters, digits, single hyphens."""
    label = re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-")
    return label[:chars_max].strip("-") or "branch"[:chars_max]


def preview_slugs(site_id: str, branch: str) -> Iterator[str]:
    """Slugs for a preview in its site, best first, without end: the first free one is taken.

    The plain one, then ones with a hash: another branch can have any of them, by its own name.
    """
    label = label_of(branch, SLUG_CHARS_MAX)
    if label not in RESERVED_SLUGS:
        yield label
    for short in _hashes(site_id, branch):
        yield f"{label[: SLUG_CHARS_MAX - len(short) - 1].strip('-')}-{short}"


def production_hostname(site_name: str) -> str:
    return site_name


def staging_hostname(site_name: str) -> str:
    return f"{site_name}--staging"


def preview_hostnames(site_name: str, site_id: str, branch: str) -> Iterator[str]:
    """Names for a preview, `<site>-<branch>-<short hash>`, as `preview_slugs` gives slugs.

    Each is one label of a host name.
    """
    for short in _hashes(site_id, branch):
        room = LABEL_CHARS_MAX - len(site_name) - len(short) - 2
        yield f"{site_name}-{label_of(branch, room)}-{short}"


def _hashes(site_id: str, branch: str) -> Iterator[str]:
    """The usual hash, a longer one, then ever other ones: no branch's name holds a NUL."""
    yield short_hash(site_id, branch)
    yield short_hash(site_id, branch, LONG_HASH_CHARS)
    for number in count(2):
        yield short_hash(site_id, f"{branch}\0{number}", LONG_HASH_CHARS)
