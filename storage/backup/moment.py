"""The moment of a backup: the records, the trust, the keys and the statements as they are at once.

For as long as the records are copied, nobody collects and nobody changes which keys are trusted;
builds, rolls and pushes go on. What the copy refers to and what takes longer to copy is held after
that: the trees, and so their blobs. The repositories have no part in it: their refs are read
later, and what was pushed until then is added to the copy as pushes that have begun. A server that
starts from it ends them, as after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from storage.backup.manifest import FileEntry, Where
from storage.backup.places import Places
from storage.backup.pool import Kept, Pool, reading
from storage.backup.salvage import Salvage
from storage.blobs import blob_sizes
from storage.custody import (
    EXTERNAL,
    PUBLIC_MODE,
    ROOT_KEY,
    ROOT_PUBLIC,
    SIGNING_KEY,
    Custody,
)
from storage.digest import Digest
from storage.errors import BackupDamagedError, BackupError
from storage.files import open_regular, read_bounded, read_up_to
from storage.gate import locked
from storage.holding import hold_trees
from storage.layout import STATEMENT_MODE, Layout
from storage.manifest import MANIFEST_BYTES_MAX
from storage.manifest import Manifest as TreeManifest
from storage.model import Site
from storage.parts import Part, PartKind
from storage.records import (
    audit_log,
    blobs,
    copies,
    damage,
    index,
    migrations,
    pushes,
    release_statements,
    sites,
)
from storage.records.damage import Damage
from storage.records.db import Records
from storage.sealing import VARIABLES_KEY
from storage.signing import KEY_FILE_MODE
from storage.timestamps import now_ms
from storage.trust import load_keyring

LATE_MS = 60_000  # how much earlier than its row a push may say that it began


@dataclass(frozen=True, slots=True)
class Moment:
    """What there was at one moment.

    Attributes:
        copy: The copy of the records, to be added to the backup last.
        files: What was copied within the moment.
        trees, blobs: What the store had; blobs by key, with their sizes.
        absent: The keys of blobs that it should have and that are left out: they are damaged.
        salvaged: What was known to be damaged and is whole in the pool: in this backup it is.
        damaged: How many other parts were known to be damaged: they are left out.
        found: Statements that turned out damaged, and why: left out too.
        audit_head: `SEQUENCE:DIGEST` of the audit log's newest line, where it has one.
        signing_key_id: The key that signed.
        keys: Which private keys are among the files.
    """

    made_at: int
    copy: Path
    sites: tuple[Site, ...]
    files: tuple[FileEntry, ...]
    trees: tuple[Digest, ...]
    blobs: tuple[tuple[bytes, int], ...]
    absent: frozenset[bytes]
    salvaged: Mapping[Part, Kept]
    damaged: int
    found: Mapping[Part, str]
    migrations: list[str]
    counts: dict[str, int]
    audit_head: str | None
    signing_key_id: str | None
    keys: dict[str, Where]

    def note_damage(self, found: Mapping[Part, str]) -> None:
        """Let the copy know that parts are damaged, as if the server had found it."""
        with copies.editing(self.copy) as db:
            for part, why in found.items():
                damage.note(db, part, why, self.made_at)

    def add_late_pushes(self, records: Records) -> int:
        """Add the pushes that began since to the copy, as begun; return how many.

        Called when all refs were read: whatever moved them stands in the records by then.
        """
        late = pushes.begun_since(records.reader(), self.made_at - LATE_MS)
        known = {site.id for site in self.sites}
        count = 0
        with copies.editing(self.copy) as db:
            for push in late:
                if push.site_id in known and not pushes.is_known(db, push.id):
                    pushes.add(db, replace(push, landed_at=None))
                    count += 1
        return count


@contextlib.contextmanager
def moment_of(
    places: Places,
    records: Records,
    pool: Pool,
    salvage: Salvage,
    copy: Path,
    *,
    with_keys: bool,
) -> Iterator[Moment]:
    """Take the moment, and hold what it refers to until the context ends.

    `copy`: where the copy of the records is made; what is salvaged is whole by it.

    Raises:
        StorageError, OSError: Something refused.
    """
    layout, custody = Layout(places.store), Custody(places.keys)
    # Before anybody has to wait: what it takes to read is remembered.
    salvage.of(records.reader(), damage.every(records.reader()))
    with contextlib.ExitStack() as stack:
        with locked(layout.collector, fcntl.LOCK_EX), custody.locked():
            made_at = now_ms()
            records.copy_into(copy)
            with copies.editing(copy) as db:
                damaged, salvaged = _heal(db, salvage, pool, made_at)
                copies.drop_garbage(db)
                counts = copies.counts(db)
                known = tuple(map(Digest, blobs.each_known_tree(db)))
                live = tuple(blobs.each_live(db))
                statements = {name for name, _ in blobs.each_attestation(db)}
                issued = set(release_statements.each_name(db))
                for found in damaged:
                    statements.discard(found.part.name)
                    issued.discard(found.part.name)
                moment = Moment(
                    made_at=made_at,
                    copy=copy,
                    sites=tuple(sites.every(db)),
                    files=(),
                    trees=tuple(map(Digest, blobs.each_tree(db))),
                    blobs=live,
                    absent=frozenset(blobs.each_key(db).difference(key for key, _ in live)),
                    salvaged=salvaged,
                    damaged=len(damaged) - len(salvaged),
                    found={},
                    migrations=migrations.applied(db),
                    counts=counts,
                    audit_head=_audit_head(db),
                    signing_key_id=_signing_key_id(layout.trust, custody),
                    keys=_keys(
                        places.keys,
                        with_keys=with_keys,
                        has_sealed=counts["sealed"] > 0,
                    ),
                )
            hold = hold_trees(layout, known)
            stack.callback(hold.release)
            copier = _Copier(places, pool)
            copier.add(layout.format, STATEMENT_MODE)
            copier.add_folder(layout.trust, "root.*.json", STATEMENT_MODE)
            for part, kept in salvaged.items():
                if part.kind is PartKind.ENVELOPE:
                    copier.add_kept(salvage.path(part), STATEMENT_MODE, kept)
            found_damaged: dict[Part, str] = {}
            for name in sorted(statements):
                part = Part.of_envelope(name)
                try:
                    copier.add_statement(Path(layout.envelope(name)), part)
                except BackupDamagedError as error:
                    # Unlike blobs, which are asked of the pool first: is it in an earlier backup?
                    found = Damage(part, None, str(error), made_at)
                    if earlier := salvage.of(records.reader(), [found]).get(part):
                        copier.add_kept(salvage.path(part), STATEMENT_MODE, earlier)
                        salvaged[part] = earlier
                    else:
                        found_damaged[part] = found.why
            for name in sorted(issued):
                # Control lays these copies of its records into the store, when it comes to it.
                with contextlib.suppress(BackupError):
                    copier.add_statement(Path(layout.envelope(name)), Part.of_envelope(name))
            copier.add_keys(places.keys, moment.keys)
        yield replace(moment, files=tuple(copier.files), found=found_damaged)


def _heal(
    db: sqlite3.Connection, salvage: Salvage, pool: Pool, at: int
) -> tuple[tuple[Damage, ...], dict[Part, Kept]]:
    """Make whole what is whole in the pool; return what was damaged, and what of it was salvaged.

    A tree brings back the references that the records had lost, and with them perhaps blobs that
    they do not know: those count as damaged, and may be in the pool too.
    """
    damaged: dict[Part, Damage] = {}
    salvaged: dict[Part, Kept] = {}
    while found := [one for one in damage.every(db) if one.part not in damaged]:
        damaged.update((one.part, one) for one in found)
        for part, kept in salvage.of(db, found).items():
            salvaged[part] = kept
            if part.kind is PartKind.TREE:
                data = read_bounded(pool.path(part.digest), size_bytes_max=MANIFEST_BYTES_MAX)
                manifest = TreeManifest.parse(data)
                index.heal_tree(db, index.row_of(manifest), blob_sizes(manifest), at)
            else:
                damage.heal(db, part, at)
    return tuple(damaged.values()), salvaged


class _Copier:
    """Copies files of the data folder, and keeps what it copied."""

    def __init__(self, places: Places, pool: Pool) -> None:
        self._places = places
        self._pool = pool
        self.files: list[FileEntry] = []

    def add(self, path: Path, mode: int) -> None:
        try:
            kept = self._pool.add_file(path)
            mtime_ns = path.stat().st_mtime_ns
        except FileNotFoundError:
            raise BackupError(
                f"{path} is gone, and the records know of it: run gitd check. Nothing was taken"
                " from earlier backups"
            ) from None
        self._add(path, mode, mtime_ns, kept)

    def _add(self, path: Path, mode: int, mtime_ns: int, kept: Kept) -> None:
        name = os.path.relpath(path, self._places.root)
        self.files.append(FileEntry(name, mode, mtime_ns, kept.size_bytes, kept.digest))

    def add_kept(self, name: str, mode: int, kept: Kept) -> None:
        self.files.append(FileEntry(name, mode, 0, kept.size_bytes, kept.digest))

    def add_statement(self, path: Path, part: Part) -> None:
        """Read it once: what is held against its name is what is kept.

        Raises:
            BackupDamagedError: It is not what it must be.
        """
        try:
            with reading(path):
                fd = open_regular(path)
                try:
                    mtime_ns = os.fstat(fd).st_mtime_ns
                    data = read_up_to(fd, part.size_bytes_max + 1)
                finally:
                    os.close(fd)
        except FileNotFoundError:
            raise BackupDamagedError("is gone") from None
        if not part.names(data):
            raise BackupDamagedError("has other bytes than its name says")
        self._add(path, STATEMENT_MODE, mtime_ns, self._pool.add_bytes(data))

    def add_folder(self, folder: Path, pattern: str, mode: int) -> None:
        for path in sorted(folder.glob(pattern)):
            self.add(path, mode)

    def add_keys(self, folder: Path, keys: dict[str, Where]) -> None:
        if (folder / ROOT_PUBLIC).exists():
            self.add(folder / ROOT_PUBLIC, PUBLIC_MODE)
        if (folder / EXTERNAL).exists():
            self.add(folder / EXTERNAL, PUBLIC_MODE)
        for name, where in keys.items():
            if where == "included":
                self.add(folder / name, KEY_FILE_MODE)


def _keys(folder: Path, *, with_keys: bool, has_sealed: bool) -> dict[str, Where]:
    """Say of each private key whether it goes into the backup."""
    found: dict[str, Where] = {}
    for name in (SIGNING_KEY, ROOT_KEY, VARIABLES_KEY):
        if (folder / name).exists():
            found[name] = "included" if with_keys else "left_out"
        else:
            found[name] = "none" if name == VARIABLES_KEY and not has_sealed else "elsewhere"
    return found


def _audit_head(db: sqlite3.Connection) -> str | None:
    sequence, digest = audit_log.head(db)
    return f"{sequence}:{digest}" if sequence else None


def _signing_key_id(trust_folder: Path, custody: Custody) -> str | None:
    """The key that signs, by its public half: the one that is trusted and not retired."""
    keyring = load_keyring(trust_folder, root_key_ids=custody.root_key_ids())
    return next((key.key_id for key in keyring.keys.values() if key.is_active), None)
