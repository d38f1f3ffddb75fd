"""Scopes: what an API key may be granted, what that implies, and presets of them.

Source: contract §2 "Scopes".
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from gitd.errors import KeyInvalidError

SCOPES: dict[str, str] = {
    "sites:read": "see sites and their branch routes",
    "sites:write": "make sites, change their branch routes",
    "sites:admin": "delete sites",
    "environments:read": "see environments",
    "environments:write": "make, suspend, resume and delete previews",
    "environments:admin": "all of environments",
    "deployments:read": "see builds, artifacts, deployments and releases; fetch by git",
    "deployments:write": "build, deploy, promote, roll back, cancel; push by git",
    "deployments:admin": "all of deployments",
    "domains:read": "see custom domains",
    "domains:write": "add and remove custom domains",
    "domains:admin": "all of domains",
    "jobs:read": "see and follow every job",
    "webhooks:read": "see webhook endpoints and their deliveries",
    "webhooks:write": "change webhook endpoints",
    "webhooks:admin": "all of webhooks",
    "observability:read": "see logs of what runs, and metrics of the server",
    "keys:write": "make, change and revoke API keys (isolated)",
    "credentials:read": "see credentials (isolated)",
    "credentials:write": "change credentials (isolated)",
    "exec:raw": "run commands in an environment (isolated)",
    "*": "everything that is not isolated",
}
ISOLATED = frozenset({"keys:write", "credentials:read", "credentials:write", "exec:raw"})
PRESETS: dict[str, tuple[str, ...]] = {
    "read-only": (
        "sites:read",
        "environments:read",
        "deployments:read",
        "domains:read",
        "jobs:read",
        "webhooks:read",
        "observability:read",
    ),
    "deploy-bot": (
        "sites:read",
        "deployments:write",
        "environments:write",
        "domains:read",
        "jobs:read",
        "observability:read",
    ),
    "ci-terraform": (
        "sites:write",
        "environments:write",
        "deployments:read",
        "domains:write",
        "webhooks:write",
        "jobs:read",
    ),
}
_IMPLIED = {"admin": ("write", "read"), "write": ("read",)}


def expand_scopes(scopes: Iterable[str] = (), *, preset: str | None = None) -> tuple[str, ...]:
    """Return the scopes that a key is made with: a preset's and those named, each once, sorted.

    `sites:*` is another spelling of `sites:admin`.

    Raises:
        KeyInvalidError: A scope or the preset is unknown, or there is none at all.
    """
    wanted: list[str] = []
    if preset is not None:
        if preset not in PRESETS:
            raise KeyInvalidError(_unknown("preset", preset, PRESETS), param="preset")
        wanted += PRESETS[preset]
    for scope in scopes:
        name = f"{scope[:-2]}:admin" if scope.endswith(":*") else scope
        if name not in SCOPES:
            raise KeyInvalidError(_unknown("scope", scope, SCOPES), param="scopes")
        wanted.append(name)
    if not wanted:
        raise KeyInvalidError(
            "A key needs a scope or a preset, such as deploy-bot.", param="scopes"
        )
    return tuple(sorted(set(wanted)))


def granted_by(scopes: tuple[str, ...]) -> frozenset[str]:
    """All that these scopes allow, with what they imply. An isolated scope is never implied."""
    granted = set(scopes)
    if "*" in granted:
        granted |= SCOPES.keys() - ISOLATED
    for scope in tuple(granted):
        resource, _, action = scope.partition(":")
        granted |= {f"{resource}:{lesser}" for lesser in _IMPLIED.get(action, ())} - ISOLATED
    return frozenset(granted)


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
    return f"There is no {what} {name!r}: {hint}"
