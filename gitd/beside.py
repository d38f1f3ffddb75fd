"""Commands beside a server that may be running: its data folder, its records, their answers."""

from __future__ import annotations

import importlib
import os
import pkgutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from gitd.errors import GitdError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from gitd.layout import DataFolder
    from storage.model import Action
    from storage.records.db import Records
    from storage.trust import Keyring

F = TypeVar("F", bound="Callable[..., object]")


def data_option(command: F) -> F:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False, readable=False),
        required=True,
        envvar="GITD_DATA",
        help="The data folder of the server.",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(command)


def folder_of(data: Path) -> DataFolder:
    from gitd.layout import DataFolder

    return DataFolder(data.absolute())


def beside(data: Path) -> DataFolder:
    """The folder of a server that may be running: as its owner, whose files all of it stays.

    Raises:
        StartError: There is no server's folder. Nothing is made then.
    """
    folder = folder_of(data)
    folder.require_server()
    become_owner(folder)
    folder.prepare()
    folder.check_whole()
    return folder


def become_owner(folder: DataFolder) -> None:
    """Become the user whose server it is, when it is there and this process may."""
    from hooks.process import drop_privileges

    if folder.root.exists():
        owner = folder.root.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            if not _everybody_may_read(Path(__file__), Path(os.__file__), Path(click.__file__)):
                _load_everything()
            drop_privileges(owner.st_uid, owner.st_gid)


def _everybody_may_read(*files: Path) -> bool:
    """Say whether any user can load the programs that lie where these files do."""
    folders = {folder for file in files for folder in file.resolve().parents}
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def _load_everything() -> None:
    """Load what a command loads as it goes: from /root, its new user could not."""
    for package in ("storage", "hooks", "gitd"):
        for module in pkgutil.walk_packages([Path(__file__).parents[1] / package], f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def open_records(folder: DataFolder) -> Records:
    from storage.records.db import Records

    return Records.open(folder.database)


def note(
    db: sqlite3.Connection,
    action: Action,
    target: str,
    *,
    site_id: str | None = None,
    env_id: str | None = None,
) -> None:
    """Write a change into the audit log: whoever has the server's machine made it."""
    from hooks.clock import now_ms
    from hooks.job_changes import JobChanges

    changes = JobChanges(db, now_ms, lambda *_: None)
    changes.note(action, target, site_id=site_id, env_id=env_id)


def note_keys(db: sqlite3.Connection, keyring: Keyring) -> bool:
    """Write into the audit log what became of the signing keys since they were noted last, also by
    a command that was killed before it could. False when they never were: then nothing is told.
    """
    from storage.records import noted_keys

    changes = noted_keys.changes(db, keyring)
    for action, key_id in changes or ():
        note(db, action, key_id)
    return changes is not None


def print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value))


def fail(message: str) -> NoReturn:
    raise GitdError(message)
