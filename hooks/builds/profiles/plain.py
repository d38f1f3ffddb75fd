"""Plain commits: files alone, by their names alone. Control packs them; no slot has to look.

Nothing that a commit says is read to find that out, let alone run: as soon as there is a file whose
text could say what to do, a slot reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import detection
from hooks.builds.profiles.managed_toml import ManagedToml
from hooks.builds.profiles.plan import Listing, Plan
from hooks.builds.wire import CONFIG_FILES, Finish, Folder

CONTROL = "control"
"""Stands where the slot of a build has its name."""
DETECT = "detect"


def plain_plan(root: Folder) -> Plan | None:
    """Return the plan of a commit by the names in its root; None when a slot must see to it.

    It is the plan that a slot would make. What cannot be built at all is a slot's to say, too.
    """
    if any(entry.name in CONFIG_FILES for entry in root.entries):
        return None
    try:
        plan = detection.detect(Listing.of(root), ManagedToml(), ())
    except BuildFailedError:
        return None
    return plan if plan.is_source and plan.run.web is None else None


def finished(plan: Plan, toolchain: Mapping[str, str]) -> Finish:
    """Return how a build by a plain plan ends, as a slot with that toolchain would tell it."""
    return Finish(
        CONTROL,
        "succeeded",
        profile=plan.profile,
        run=plan.run,
        output="source",
        folder=plan.source_folder,
        is_public=plan.is_public,
        settings=plan.settings,
        toolchain=dict(toolchain),
    )
