"""When the time of a file, or of a directory, can tell its content from the next one."""

from __future__ import annotations

RACY_NS = 100_000_000  # a time stamp this young may still change without looking changed
COARSE_NS = 2_000_000_000  # where whole seconds are all that is kept (ext3, some NFS), or two (FAT)
_SECOND_NS = 1_000_000_000


def is_settled(changed_ns: int, seen_ns: int) -> bool:
    """Say whether a change after `seen_ns` would show, in what had been changed at `changed_ns`."""
    age_ns = seen_ns - changed_ns
    return age_ns > RACY_NS and (changed_ns % _SECOND_NS != 0 or age_ns > COARSE_NS)
