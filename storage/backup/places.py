"""What of a server is backed up, and under which name it lies in a backup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATABASE = "gitd.db"
SETTINGS = "gitd.toml"
REPOSITORIES = "repos"
STORE = "store"
KEYS = "keys"
JOBLOGS = "joblogs"
RESTORING = "restoring"  # there while a backup is put back
NOTE = "backup.json"  # in it: which one
TOP = frozenset({DATABASE, SETTINGS, REPOSITORIES, STORE, KEYS, JOBLOGS})


@dataclass(frozen=True, slots=True)
class Places:
    """The data folder of a server, as far as backups know it."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / DATABASE

    @property
    def settings(self) -> Path:
        return self.root / SETTINGS

    @property
    def repositories(self) -> Path:
        return self.root / REPOSITORIES

    @property
    def store(self) -> Path:
        return self.root / STORE

    @property
    def keys(self) -> Path:
        return self.root / KEYS

    @property
    def joblogs(self) -> Path:
        return self.root / JOBLOGS


def is_unfinished(root: Path) -> bool:
    """Whether a restore into this folder did not come to its end."""
    return (root / RESTORING / NOTE).exists()
