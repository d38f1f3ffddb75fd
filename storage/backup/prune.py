"""Pruning: old backups go by a rule, and with them the contents that no other one needs."""

from __future__ import annotations

from dataclasses import dataclass

from storage.backup.destination import Destination
from storage.backup.manifest import Manifest
from storage.backup.pool import sweep
from storage.files import sync_directory


@dataclass(frozen=True, slots=True)
class Pruned:
    """Which backups went, and by how much the pool is smaller."""

    names: tuple[str, ...]
    size_bytes: int


def prune(destination: Destination, keep_count: int | None, *, is_thorough: bool) -> Pruned:
    """Let all but the newest backups go. The folder is open for writing.

    `keep_count`: None keeps all. `is_thorough`: look for contents that nobody needs even when no
    backup goes, as an interrupted one leaves them.

    Raises:
        BackupDamagedError: A manifest cannot be read: what it needs is not known, so nothing goes.
        OSError: The system refused.
    """
    names = destination.names()
    gone = names[:-keep_count] if keep_count else []
    if not gone and not is_thorough:
        return Pruned((), 0)
    # Before any backup goes: where one that stays is damaged, an old one may be the last good one.
    needed: set[bytes] = set()
    for name in names[len(gone) :]:
        needed.update(entry.digest for entry in Manifest.open(destination.manifest(name)).entries())
    for name in gone:
        destination.manifest(name).unlink()
    if gone:
        sync_directory(destination.backups)
    _, size_bytes = sweep(destination, needed.__contains__)
    return Pruned(tuple(gone), size_bytes)
