"""Branches to environments: pure decisions on names.

Source: contract §5 "Branch routes" and "Preview URL".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from blake3 import blake3

from storage.model import BranchRoute, RouteTarget

HEADS = "refs/heads/"
LABEL_CHARS_MAX = 63  # Source: RFC 1035 §2.3.4
HASH_CHARS = 7
LONG_HASH_CHARS = 16  # for a name that somebody has already
SITE_NAME_CHARS_MAX = 40
SLUG_CHARS_MAX = 40
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
    for route in routes:
        if fnmatchcase(branch, route.pattern):
            return route.target
    return RouteTarget.IGNORE


def branch_of(ref: str) -> str | None:
    """The branch that `ref` is, or None for a tag, a note, or anything else."""
    return ref.removeprefix(HEADS) if ref.startswith(HEADS) else None


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
    """Why `branch` cannot be a branch name, or None. Source: git-check-ref-format(1)."""
    parts = branch.split("/")
    bad = (
        not branch
        or branch == "@"
        or branch.startswith("-")
        or branch.endswith(".")
        or ".." in branch
        or "@{" in branch
        or any(not p or p.startswith(".") or p.endswith(".lock") for p in parts)
        or re.search(r"[\x00-\x20\x7f~^:?*\[\\]", branch) is not None
    )
    return f"{branch!r} is not a valid branch name" if bad else None


def short_hash(site_id: str, branch: str, chars: int = HASH_CHARS) -> str:
    return blake3(f"{site_id}\0{branch}".encode()).hexdigest()[:chars]


def label_of(branch: str, chars_max: int) -> str:
    """The branch as part of a host name: lower case, letters, digits, single hyphens."""
    label = re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-")
    return label[:chars_max].strip("-") or "branch"


def preview_slug(site_id: str, branch: str, *, is_taken: bool) -> str:
    """A preview's slug in its site; with a hash when another branch or a kind has the plain one."""
    slug = label_of(branch, SLUG_CHARS_MAX)
    if is_taken or slug in RESERVED_SLUGS:
        slug = f"{slug[: SLUG_CHARS_MAX - HASH_CHARS - 1].strip('-')}-{short_hash(site_id, branch)}"
    return slug


def production_hostname(site_name: str) -> str:
    return site_name


def staging_hostname(site_name: str) -> str:
    return f"{site_name}--staging"


def preview_hostname(
    site_name: str, site_id: str, branch: str, *, hash_chars: int = HASH_CHARS
) -> str:
    """`<site>-<branch>-<short hash>`, stable for the life of the branch, one label at most."""
    room = LABEL_CHARS_MAX - len(site_name) - hash_chars - 2
    return f"{site_name}-{label_of(branch, room)}-{short_hash(site_id, branch, hash_chars)}"
