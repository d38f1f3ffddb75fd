"""Limits: what one sandbox may use, and what is said when it used more."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LIMIT_EXCEEDED = "build.limit_exceeded"
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


@dataclass(frozen=True, slots=True)
class Limits:
    """What all processes of a sandbox may use together. None: no limit of ours.

    `memory_bytes` counts their private and shared memory and what lies in /tmp and /dev/shm, of
    which `tmp_bytes` bounds each. `process_count` counts threads too. `cpu_s` is processor time.
    `disk_bytes` counts what lies in the writable binds, and each name in them as 4 KiB at least;
    `disk_free_bytes` is what must stay free on their disk; where that bounds files, as large
    a part of them stays free. `file_bytes` bounds each file, and `open_file_count` each process.
    `processors_free`: so many of the processors it never runs on, but for the last one.
    `write_bytes_per_s`: how fast it writes to its disk once it is `write_burst_bytes` ahead of
    that; it is halted then, and not ended, where control groups can halt it.

    A sandbox that exceeds one is ended. Unless it `is_strict` it goes on where the kernel refused
    it another process, or another byte in /tmp.
    """

    memory_bytes: int = 1 << 30
    process_count: int = 512
    is_strict: bool = True
    cpu_s: int | None = None
    tmp_bytes: int = 256 << 20
    disk_bytes: int | None = None
    disk_free_bytes: int | None = None
    file_bytes: int | None = None
    open_file_count: int = 4096
    processors_free: int = 0
    write_bytes_per_s: int | None = None
    write_burst_bytes: int = 1 << 30

    @property
    def cut_file_bytes(self) -> int | None:
        """Where the kernel cuts a file off: a byte beyond what it may have."""
        return None if self.file_bytes is None else self.file_bytes + 1


class Limit(StrEnum):
    """A limit that was exceeded."""

    MEMORY = "memory"
    MACHINE_MEMORY = "machine memory"
    PROCESSES = "processes"
    CPU = "processor time"
    TMP = "temporary files"
    DISK = "disk"
    DISK_FREE = "free disk"
    FILES_FREE = "free files"
    FILE = "file size"


def explain(limit: Limit, limits: Limits, *, who: str, section: str) -> str:
    """Say which limit `who` exceeded, its value, and the setting in `section` that has it."""
    match limit:
        case Limit.MEMORY:
            return (
                f"memory: {who} used more than {in_units(limits.memory_bytes)}"
                f" ({section}.memory_bytes_max)"
            )
        case Limit.MACHINE_MEMORY:
            return (
                f"memory: the machine had none left, and {who} was ended first;"
                f" it may use {in_units(limits.memory_bytes)} ({section}.memory_bytes_max)"
            )
        case Limit.PROCESSES:
            return (
                f"processes: {who} started more than {limits.process_count:,} processes and"
                f" threads ({section}.process_count_max)"
            )
        case Limit.CPU:
            return f"processor time: {who} used more than {limits.cpu_s:,} s ({section}.cpu_s_max)"
        case Limit.TMP:
            return (
                f"temporary files: {who} filled /tmp or /dev/shm, which hold"
                f" {in_units(limits.tmp_bytes)} each ({section}.tmp_bytes_max)"
            )
        case Limit.DISK:
            return (
                f"disk: the files of {who} took more than {in_units(limits.disk_bytes or 0)}"
                f" ({section}.disk_bytes_max)"
            )
        case Limit.DISK_FREE:
            return (
                f"disk: less than {in_units(limits.disk_free_bytes or 0)} was left free on the disk"
                f" while {who} ran ({section}.disk_free_bytes_min)"
            )
        case Limit.FILES_FREE:
            return (
                f"disk: too few more files could be made on the disk while {who} ran: of all that"
                f" it can hold as large a part is left free as"
                f" {in_units(limits.disk_free_bytes or 0)} are of its bytes"
                f" ({section}.disk_free_bytes_min)"
            )
        case Limit.FILE:
            return (
                f"file size: {who} wrote a file of more than {in_units(limits.file_bytes or 0)}"
                f" ({section}.file_bytes_max)"
            )


def in_units(count: int) -> str:
    """Say a number of bytes as people do: `1 GiB`, `1.5 GiB`, `100 bytes`."""
    for unit, factor in _UNITS:
        if count >= factor:
            return f"{round(count / factor, 1):g} {unit}"
    return f"{count} bytes"
