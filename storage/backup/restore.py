"""Restoring: a backup becomes the data folder of a server, the records last.

While it lasts, and when it broke off, `restoring/` lies in the folder: no server starts there, and
the same restore run again goes on where it was. Each byte is held against the manifest on its way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from storage.artifacts import make_folders
from storage.backup.batch import Batch
from storage.backup.destination import Destination
from storage.backup.keys import KeyPlan, settle_keys
from storage.backup.manifest import BlobEntry, Entry, Facts, Manifest
from storage.backup.places import DATABASE, NOTE, REPOSITORIES, RESTORING, STORE, Places
from storage.backup.pool import matches
from storage.backup.progress import Progress, Tell, silently
from storage.custody import Custody
from storage.digest import Digest
from storage.errors import BackupDamagedError, BackupError, StorageFullError
from storage.files import mapped_errors, sync_directory, sync_filesystem, write_atomic
from storage.git.check import check_repository
from storage.ids import new_id
from storage.layout import Layout, blob_mode, blob_mtime
from storage.model import SYSTEM, Action, AuditEntry, Failure, Webhook
from storage.records import audit_log, copies, migrations, noted_keys, webhooks
from storage.room import size_in_words
from storage.timestamps import now_ms
from storage.trust import load_keyring

_HARMLESS = {RESTORING, "lost+found"}
_FREE_BYTES_MIN = 64 << 20
_BUILD_INTERRUPTED = Failure(
    "build.interrupted",
    "The server was restored from a backup that was made while this build ran. Build again.",
)
_ROLL_INTERRUPTED = Failure(
    "deployment.interrupted",
    "The server was restored from a backup that was made while this deployment ran. Deploy again.",
)

_SILENCED = "The server was restored from a backup."


class _Note(msgspec.Struct, frozen=True):
    """Which backup is being restored into a folder."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored.

    Attributes:
        digest: Of the backup.
        interrupted: How many jobs ran at its moment, and failed by that.
        forgotten_variables: How many values were left out, for want of their key.
        webhooks_off: How many webhooks were on, and are off: this server may be a copy.
        signing_key_id: The key that signs, where this restore made it.
        is_trust_new: Whether trust begins with another root key.
    """

    facts: Facts
    digest: Digest
    interrupted: int
    forgotten_variables: int
    webhooks_off: int
    signing_key_id: str | None
    is_trust_new: bool


def restore(
    destination: Destination,
    places: Places,
    plan: KeyPlan,
    *,
    at: str | None = None,
    expected: str | None = None,
    tell: Tell = silently,
) -> Restored:
    """Put a backup into a data folder that is empty, or where this very restore broke off.

    Durable when it returns; a server can be started there then, and not before. `at`: its name, or
    a time that it is the last before; the newest when None. `expected`: the digest that it must
    have, in text form.

    Raises:
        BackupError: The folder is not empty, a key is missing, or a newer gitd made the backup.
        BackupDamagedError: A byte of it is not what the manifest says, or the manifest is another.
        StorageFullError: No room; run again when there is.
        StorageError: The system or the database refused.
    """
    with destination.reading(), mapped_errors(f"restore {destination.root}"):
        manifest = Manifest.open(destination.manifest(destination.choose(at)))
        if expected is not None and str(manifest.digest) != expected:
            raise BackupDamagedError(
                f"the backup {manifest.facts.name} is {manifest.digest}, and not {expected}"
            )
        _require_known(manifest.facts)
        plan.check(manifest.facts)
        return _Restore(destination, manifest, places, tell).run(plan)


def _require_known(facts: Facts) -> None:
    unknown = migrations.unknown(facts.migrations)
    if unknown:
        raise BackupError(
            f"the backup {facts.name} was made by gitd {facts.gitd}, whose database has steps that"
            f" this one does not know ({', '.join(unknown)}): restore it with that version"
        )


class _Restore:
    """One restore under way."""

    def __init__(
        self, destination: Destination, manifest: Manifest, places: Places, tell: Tell
    ) -> None:
        self._destination = destination
        self._manifest = manifest
        self._places = places
        self._layout = Layout(places.store)
        self._tell = tell
        self._scratch = places.root / RESTORING

    def run(self, plan: KeyPlan) -> Restored:
        self._begin()
        fd = os.open(self._places.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._expect_room()
            make_folders(self._layout)
            self._copy_all(fd)
            self._check_repositories()
            settled = settle_keys(self._places, plan)
            interrupted, forgotten, webhooks_off = self._settle_records(
                new_key_id=settled.signing_key_id, forgets=plan.without_variables
            )
            sync_filesystem(fd)
        finally:
            os.close(fd)
        (self._scratch / DATABASE).rename(self._places.database)
        sync_directory(self._places.root)
        self._end()
        return Restored(
            self._manifest.facts,
            self._manifest.digest,
            interrupted,
            forgotten,
            webhooks_off,
            settled.signing_key_id,
            settled.is_trust_new,
        )

    def _begin(self) -> None:
        """See that the folder is ours, and say so in it."""
        root = self._places.root
        note = _Note(self._manifest.facts.name, str(self._manifest.digest))
        path = self._scratch / NOTE
        if path.exists():
            try:
                begun = msgspec.json.decode(path.read_bytes(), type=_Note)
            except ValueError as error:
                raise BackupError(
                    f"{path}, which says what is being restored here, is damaged: remove {root} to"
                    " begin anew"
                ) from error
            if begun != note:
                raise BackupError(
                    f"{root} is being restored from the backup {begun.name}, and that broke off: go"
                    f" on with --at {begun.name}, or remove the folder to begin anew"
                )
            self._tidy()
        else:
            _require_empty(root)
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._scratch.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, msgspec.json.encode(note), mode=0o600)
            sync_directory(root)

    def _end(self) -> None:
        """Say that it is done: what the note speaks of is complete."""
        (self._scratch / NOTE).unlink()
        sync_directory(self._scratch)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what an earlier try made that is not in the backup: half files, and new keys."""
        for path in self._scratch.iterdir():
            if path.name != NOTE:
                path.unlink()
        for folder in (self._places.keys, self._layout.trust):
            if folder.exists():
                for path in folder.iterdir():
                    path.unlink()

    def _expect_room(self) -> None:
        needed = self._manifest.facts.size_bytes
        there = sum(
            entry.stat(follow_symlinks=False).st_size
            for folder in (STORE, REPOSITORIES)
            for entry in _each_file(self._places.root / folder)
        )
        free = shutil.disk_usage(self._places.root).free
        if free + there < needed + _FREE_BYTES_MIN:
            raise StorageFullError(
                f"{size_in_words(free)} are free at {self._places.root}, and the backup has"
                f" {size_in_words(needed)}: make room, or restore elsewhere"
            )

    # -- files -----------------------------------------------------------------------------------

    def _copy_all(self, fd: int) -> None:
        total, done = self._manifest.facts.size_bytes, 0
        batch = Batch(self._places.root, self._scratch, fd)
        for entry in self._manifest.entries():
            self._copy(entry, batch)
            done += entry.size_bytes
            self._tell(Progress("files", done, total))
        batch.flush()

    def _copy(self, entry: Entry, batch: Batch) -> None:
        if isinstance(entry, BlobEntry):
            final = self._layout.blob(entry.digest, executable=entry.is_executable)
            mode, mtime_ns = (
                blob_mode(executable=entry.is_executable),
                blob_mtime(entry.digest) * 1_000_000_000,
            )
        elif entry.path == DATABASE:
            final, mode, mtime_ns = str(self._scratch / DATABASE), 0o600, 0
        else:
            final, mode, mtime_ns = str(self._places.root / entry.path), entry.mode, entry.mtime_ns
        if matches(final, size_bytes=entry.size_bytes, digest=entry.digest):
            Path(final).chmod(mode)
            if mtime_ns:
                os.utime(final, ns=(mtime_ns, mtime_ns))
            return
        source = self._destination.content(entry.digest)
        batch.add(entry, source, final, mode=mode, mtime_ns=mtime_ns)

    def _check_repositories(self) -> None:
        """Prove that each ref has its object, and give each repository the folders it must have."""
        for path in sorted(self._places.repositories.glob("*.git")):
            for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "hooks"):
                (path / name).mkdir(parents=True, exist_ok=True)
            faults = check_repository(path, is_whole=False).faults
            if faults:
                raise BackupDamagedError(f"the repository {path.name}: {faults[0]}")

    # -- records ---------------------------------------------------------------------------------

    def _settle_records(self, *, new_key_id: str | None, forgets: bool) -> tuple[int, int, int]:
        """End what ran at the moment of the backup, forget what cannot be opened any more, and turn
        webhooks off: their receivers may have heard of all of it, and from another server.
        """
        self._tell(Progress("records"))
        copies.update(self._scratch / DATABASE)  # so that what is done here can be noted in it
        with copies.editing(self._scratch / DATABASE) as db:
            interrupted = copies.fail_running(
                db,
                of_build=_BUILD_INTERRUPTED,
                of_roll=_ROLL_INTERRUPTED,
                at=now_ms(),
            )
            forgotten = copies.forget_sealed(db) if forgets else 0
            were_on = webhooks.silence(db, _SILENCED)
            self._note(db, new_key_id, were_on)
            return interrupted, forgotten, len(were_on)

    def _note(
        self, db: sqlite3.Connection, new_key_id: str | None, were_on: Sequence[Webhook]
    ) -> None:
        """Write it into the audit log: whoever has the server's machine did it."""
        name = self._manifest.facts.name
        changes: list[tuple[Action, str, str | None]] = [(Action.BACKUP_RESTORED, name, None)]
        roots = Custody(self._places.keys).root_key_ids()
        keyring = load_keyring(self._layout.trust, root_key_ids=roots)
        of_keys = noted_keys.changes(db, keyring)
        if of_keys is None and new_key_id is not None:  # a backup from before they were noted
            of_keys = [(Action.SIGNING_KEY_ROTATED, new_key_id)]
        changes += [(action, key_id, None) for action, key_id in of_keys or ()]
        changes += [(Action.WEBHOOK_CHANGED, each.id, each.site_id) for each in were_on]
        for action, target, site_id in changes:
            entry = AuditEntry(
                id=new_id("evt"),
                created_at=now_ms(),
                actor=SYSTEM,
                action=action,
                target=target,
                site_id=site_id,
                env_id=None,
                address=None,
                request_id=None,
            )
            audit_log.add(db, entry)


def _require_empty(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise BackupError(f"{root} is no folder")
    strangers = sorted(path.name for path in root.iterdir() if path.name not in _HARMLESS)
    if strangers:
        raise BackupError(
            f"{root} is not empty ({strangers[0]} is in it): restore into a folder that is empty,"
            " or that is not there yet. Nothing is ever restored over a server's data."
        )


def _each_file(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from _each_file(Path(entry.path))
            else:
                yield entry
