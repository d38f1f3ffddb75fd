"""The numbers that settings can have: what could not work is refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DAY_S: Final = 24 * 3600
ENOUGH_BYTES: Final = 2**50  # a pebibyte: more is a typing error
ENOUGH_S: Final = 100 * 366 * DAY_S
UID_MAX: Final = 2**32 - 2  # the number after it means nobody. Source: setresuid(2)
PROCESSES_MAX: Final = 2**22  # Source: proc(5), /proc/sys/kernel/pid_max

_SIZE = (1, ENOUGH_BYTES)
_SIZE_OR_NONE = (0, ENOUGH_BYTES)
_MEMORY = (16 * 1024**2, ENOUGH_BYTES)
_PROCESSES = (8, PROCESSES_MAX)
_COUNT = (1, 10**9)
_AGE = (0, ENOUGH_S)

_OR_ZERO: Final = {"builders.memory_bytes_max"}  # which is left to the machine then

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "server.connections_max": (16, 2**20),
    "server.keepalive_s": (1, DAY_S),
    "server.drain_s": (0, DAY_S),
    "sites.public_port": (0, 65535),
    "previews.idle_s_max": _AGE,
    "previews.count_max": (0, 100_000),
    "builders.slots": (1, 64),
    "builders.first_uid": (1, UID_MAX - 64),
    "builders.timeout_s": (1, 7 * DAY_S),
    "builders.lease_s": (0.5, 3600),
    "builders.output_bytes_max": _SIZE,
    "builders.memory_bytes_max": _MEMORY,
    "builders.process_count_max": _PROCESSES,
    "builders.cpu_s_max": (1, 30 * DAY_S),
    "builders.tmp_bytes_max": (4096, ENOUGH_BYTES),
    "builders.disk_bytes_max": (4096, ENOUGH_BYTES),
    "builders.disk_free_bytes_min": _SIZE_OR_NONE,
    "builders.file_bytes_max": _SIZE,
    "builders.log_chars_max": _SIZE,
    "builders.cpu_weight": (1, 10_000),  # Source: cgroup-v2.rst, "cpu.weight"
    "builders.processors_free_min": (0, 1024),
    "builders.write_bytes_per_s_max": _SIZE_OR_NONE,
    "builders.write_burst_bytes_max": _SIZE_OR_NONE,
    "builders.cache_bytes_max": _SIZE_OR_NONE,
    "builders.cache_site_bytes_max": _SIZE_OR_NONE,
    "builders.egress_up_bytes_max": _SIZE,
    "builders.egress_down_bytes_max": _SIZE,
    # Two descriptors each, of the 1,024 that a process usually has.
    "builders.egress_connections_max": (1, 400),
    "builders.egress_idle_s": (0.1, DAY_S),
    "host.uid": (1, UID_MAX),
    "host.roll_timeout_s": (1, DAY_S),
    "host.missing_timeout_s": (0.1, DAY_S),
    "host.memory_bytes_max": _MEMORY,
    "host.process_count_max": _PROCESSES,
    **{
        f"rate_limits.{kind}_{what}": _COUNT
        for kind in ("read", "write", "job")
        for what in ("per_minute", "burst")
    },
    "git.idle_s": (0.1, DAY_S),
    "git.hook_s": (0.1, 7 * DAY_S),
    "git.pack_bytes_max": _SIZE,
    "git.objects_max": (1, 2**31),
    "git.object_bytes_max": _SIZE,
    "git.refs_max": _COUNT,
    "git.commands_max": _COUNT,
    "git.push_options_max": (0, 10_000),
    "git.push_options_bytes_max": (0, 16 * 1024**2),
    "git.request_bytes_max": (64 * 1024, 1024**3),
    "git.wants_max": _COUNT,
    "git.haves_max": _COUNT,
    "git.kept_packs_bytes_max": _SIZE_OR_NONE,
    "store.free_bytes_min": _SIZE_OR_NONE,
    "store.free_inodes_min": _SIZE_OR_NONE,
    "store.reserve_bytes": _SIZE_OR_NONE,
    "store.size_bytes_max": _SIZE_OR_NONE,
    "store.site_bytes_max": _SIZE_OR_NONE,
    "store.collect_every_s": (10, 30 * DAY_S),
    "store.collect_below_bytes": _SIZE_OR_NONE,
    "store.scrub_every_s": (1, ENOUGH_S),
    "store.scrub_bytes_per_s": _SIZE_OR_NONE,
    "store.quarantine_s": _AGE,
    "retention.releases": (0, 10_000),
    "retention.branch_artifacts": (0, 10_000),
    "retention.recent_s": _AGE,
    "retention.grace_s": _AGE,
    "retention.log_age_s_max": _AGE,
    "retention.audit_age_s_max": _AGE,
    "retention.log_count_max": (0, 10**9),
    "retention.log_bytes_max": _SIZE_OR_NONE,
}
"""Of each setting that is a number: the least and the most that it can be."""


def fault_of(name: str, value: float) -> str | None:
    """Why a setting cannot have a value, or None when it can."""
    least, most = BOUNDS[name]
    if value == 0 and name in _OR_ZERO:
        return None
    if least <= value <= most:  # what is no number at all is not in between either
        return None
    or_zero = ", nor 0" if name in _OR_ZERO else ""
    return f"{name}: {value} is not from {least} to {most}{or_zero}"
