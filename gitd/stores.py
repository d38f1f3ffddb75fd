"""The store as the settings want it: its room, and what is kept in it.

The server notes its settings where commands beside it find them: a collector that knew others
would keep other things.
"""

from __future__ import annotations

import msgspec

from gitd.config import Config
from gitd.layout import DataFolder
from storage.artifacts import ArtifactStore
from storage.files import mapped_errors, remove_drafts, write_atomic
from storage.layout import Layout
from storage.records.db import Records
from storage.retention import Retention
from storage.room import Room, RoomLimits
from storage.scrub import ScrubLimits

_SETTINGS = "settings.json"


def note_settings(folder: DataFolder, config: Config) -> None:
    """Write down what this server runs with, for commands beside it."""
    path = folder.run / _SETTINGS
    with mapped_errors(f"write {path}"):
        remove_drafts(folder.run)
        write_atomic(path, msgspec.json.encode(config), mode=0o600)


def noted_settings(folder: DataFolder) -> Config | None:
    """What the server runs with, or ran with last; None when nothing is known."""
    try:
        return msgspec.json.decode((folder.run / _SETTINGS).read_bytes(), type=Config)
    except (FileNotFoundError, ValueError):
        return None


def room_of(folder: DataFolder, config: Config) -> Room:
    """The room of the server's store, which need not be there yet."""
    store = config.store
    limits = RoomLimits(store.free_bytes_min, store.free_inodes_min, store.reserve_bytes)
    return Room(Layout(folder.store), limits)


def open_beside(folder: DataFolder, records: Records, room: Room) -> ArtifactStore:
    """The store of a server that may be running. Of its folder nothing changes that is there: the
    group, above all, stays.
    """
    status = folder.store.stat()
    group = status.st_gid if status.st_mode & 0o050 else None
    return ArtifactStore.open(folder.store, records, group=group, room=room)


def scrub_limits_of(config: Config) -> ScrubLimits:
    store = config.store
    return ScrubLimits(
        every_ms=int(store.scrub_every_s * 1000),
        bytes_per_s=store.scrub_bytes_per_s,
        quarantine_ms=int(store.quarantine_s * 1000),
    )


def retention_of(config: Config) -> Retention:
    kept = config.retention
    return Retention(
        releases=kept.releases,
        branch_artifacts=kept.branch_artifacts,
        recent_ms=kept.recent_s * 1000,
        grace_ms=kept.grace_s * 1000,
        cache_bytes_max=config.builders.cache_bytes_max,
        cache_site_bytes_max=config.builders.cache_site_bytes_max,
    )
