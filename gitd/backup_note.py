"""What `gitd backup` leaves with the server that it backed up: when it last did."""

from __future__ import annotations

import msgspec

from gitd.layout import DataFolder
from storage.files import mapped_errors, write_atomic

_NAME = "backup.json"


class BackupNote(msgspec.Struct, frozen=True):
    """`made_at`: the moment that the backup is of, in milliseconds since 1970."""

    name: str
    made_at: int


def note_backup(folder: DataFolder, name: str, made_at: int) -> None:
    """Write down that a backup was taken whole.

    Raises:
        StorageError: The system refused.
    """
    path = folder.run / _NAME
    with mapped_errors(f"write {path}"):
        write_atomic(path, msgspec.json.encode(BackupNote(name, made_at)), mode=0o600)


def last_backup_at(folder: DataFolder) -> int | None:
    """The moment of the last one, in milliseconds since 1970; None when nothing is known of any."""
    try:
        note = msgspec.json.decode((folder.run / _NAME).read_bytes(), type=BackupNote)
    except (FileNotFoundError, ValueError):
        return None
    return note.made_at
