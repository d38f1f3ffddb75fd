"""What one build may use: the settings, and its share of the machine where they say nothing."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from gitd.config import BuildersConfig
from hooks.builds.wire import SandboxLimits

MEMORY_BYTES: Final = 1 << 30
KEPT_BYTES: Final = 512 << 20  # for the server, which takes 150 MiB, sites and the system
LEAST_BYTES: Final = 256 << 20  # no package client does with much less


def of_builds(builders: BuildersConfig) -> SandboxLimits:
    """Return what the processes of a build may use together on this machine."""
    limits = msgspec.convert(builders, SandboxLimits, from_attributes=True)  # of the same names
    if limits.memory_bytes_max:
        return limits
    slots = len(builders.users) or builders.slots
    return msgspec.structs.replace(limits, memory_bytes_max=share(_machine_bytes(), slots))


def share(machine_bytes: int, slots: int) -> int:
    """How much memory a build has where all slots build at once, and the rest is to go on."""
    return max(LEAST_BYTES, min(MEMORY_BYTES, (machine_bytes - KEPT_BYTES) // slots))


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
