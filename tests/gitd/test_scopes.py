"""Scopes: contract §2 "Scopes"."""

from __future__ import annotations

import pytest

from gitd.errors import KeyInvalidError
from gitd.scopes import expand_scopes, granted_by


def test_mistyped_scope_and_preset_name_the_nearest() -> None:
    with pytest.raises(KeyInvalidError, match="did you mean deployments:read"):
        expand_scopes(["deployments:raed"])
    with pytest.raises(KeyInvalidError, match="did you mean deploy-bot"):
        expand_scopes(preset="deploybot")


def test_preset_is_expanded_when_the_key_is_made() -> None:
    assert set(expand_scopes(preset="deploy-bot")) == {
        "sites:read",
        "deployments:write",
        "environments:write",
        "domains:read",
        "jobs:read",
        "observability:read",
    }
    assert "keys:write" in expand_scopes(["keys:write"], preset="read-only")
    assert expand_scopes(["sites:*"]) == ("sites:admin",)


@pytest.mark.parametrize(
    ("scopes", "wanted", "may"),
    [
        (("deployments:write",), "deployments:read", True),
        (("deployments:admin",), "deployments:write", True),
        (("deployments:admin",), "deployments:read", True),
        (("deployments:read",), "deployments:write", False),
        (("deployments:write",), "deployments:admin", False),
        (("deployments:write",), "sites:read", False),
        (("*",), "sites:admin", True),
        (("*",), "jobs:read", True),
        (("*",), "keys:write", False),
        (("*",), "credentials:read", False),
        (("*",), "credentials:write", False),
        (("*",), "exec:raw", False),
        (("credentials:write",), "credentials:read", False),
        (("keys:write",), "keys:write", True),
        (("*", "exec:raw"), "exec:raw", True),
    ],
)
def test_wider_scopes_imply_narrower_and_isolated_ones_are_never_implied(
    scopes, wanted, may
) -> None:
    assert (wanted in granted_by(scopes)) is may
