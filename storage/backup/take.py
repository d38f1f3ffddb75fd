"""Taking a backup: the moment first, then what it refers to, the manifest last.

Until the manifest has its name there is no new backup, and the earlier ones are as they were. What
is in the pool already is neither read nor copied again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from storage.backup import prune
from storage.backup.destination import FILE_MODE, Destination
from storage.backup.earlier import Earlier
from storage.backup.joblogs import JobLogCopier
from storage.backup.manifest import (
    BlobEntry,
    Facts,
    FileEntry,
    ManifestWriter,
)
from storage.backup.moment import Moment, moment_of
from storage.backup.places import DATABASE, REPOSITORIES, SETTINGS, Places
from storage.backup.pool import Pool, matches
from storage.backup.progress import Progress, Tell, silently
from storage.backup.references import named_blobs, reference_fault
from storage.backup.repositories import Picture, check_view, picture_of
from storage.backup.salvage import Salvage
from storage.blobs import blob_path, is_executable
from storage.counted import counted
from storage.custody import ROOT_KEY, SIGNING_KEY
from storage.digest import DIGEST_BYTES, Digest
from storage.errors import BackupDamagedError, BackupError, StorageFullError
from storage.files import FULL, Lease, mapped_errors, sync_directory, sync_file, sync_filesystem
from storage.git.errors import RepositoryNotFoundError
from storage.layout import Layout
from storage.parts import Part
from storage.records.db import Records
from storage.room import size_in_words
from storage.sealing import VARIABLES_KEY

TRIES_MAX = 3  # of the whole, when a site is deleted in the middle
REPOSITORY_TRIES_MAX = 20  # when its packs are joined in the middle
FREE_BYTES_MIN = 8 << 20  # left for the manifest and the names
DAMAGE_SHOWN_MAX = 10


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that was taken.

    Attributes:
        digest: Of its manifest: whoever keeps it elsewhere knows a backup that was changed.
        warnings: A sentence for each thing that is not in it and should be known.
        found: What was found damaged on the way, and is not in it: nobody knew of it before.
        pruned: Names of the backups that went by the rule.
        freed_bytes: What the pool lost with them, and with what an interrupted backup left.
    """

    facts: Facts
    digest: Digest
    warnings: tuple[str, ...]
    found: tuple[str, ...]
    pruned: tuple[str, ...]
    freed_bytes: int


class _SiteGoneError(Exception):
    """A site of the moment was deleted before its repository was read."""


def take(
    places: Places,
    destination: Destination,
    *,
    with_keys: bool = False,
    keep_count: int | None = None,
    tell: Tell = silently,
) -> Taken:
    """Take a backup of a server that may be running. Durable when it returns.

    What of the store or the job logs turns out damaged is left out, as what is known to be: see
    `Taken.found`.

    `keep_count`: how many backups stay, with this one; None keeps all.

    Raises:
        BackupError: The destination cannot be used, or a repository or the records are damaged.
        StorageFullError: No room there; what was copied is removed again.
        StorageError: The system or the database refused. Earlier backups are as they were.
    """
    with destination.writing() as broke_off, mapped_errors(f"back up to {destination.root}"):
        with Records.open(places.database) as records:
            for tries in range(TRIES_MAX):  # noqa: B007 - counted
                with contextlib.suppress(_SiteGoneError):
                    backup = _Backup(places, destination, records, tell)
                    facts, digest = backup.run(with_keys=with_keys, settles=broke_off)
                    break
            else:
                raise BackupError("sites were deleted again and again meanwhile: run it again")
        is_thorough = broke_off or tries > 0 or bool(backup.found)
        try:
            swept = prune.prune(destination, keep_count, is_thorough=is_thorough)
        except BackupDamagedError as error:
            raise BackupDamagedError(
                f"the backup {facts.name} was made, but no earlier one removed: {error}, so that"
                " what it needs is not known. Move that manifest away and run it again"
            ) from error
        found = [f"{part}: {why}" for part, why in backup.found.items()]
        found += [f"job log {name}: {why}" for name, why in backup.logs.items()]
        return Taken(
            facts, digest, tuple(backup.warnings), tuple(found), swept.names, swept.size_bytes
        )


class _Backup:
    """One backup under way."""

    def __init__(
        self, places: Places, destination: Destination, records: Records, tell: Tell
    ) -> None:
        self._places = places
        self._destination = destination
        self._records = records
        self._tell = tell
        self._earlier = Earlier(destination)
        self.warnings: list[str] = []
        self.found: dict[Part, str] = {}  # damage to the store that nobody knew of
        self.logs: dict[str, str] = {}  # those that could not be read, and why
        self._damage: list[str] = []
        self._renewed = 0  # contents of the pool that were damaged

    def run(self, *, with_keys: bool, settles: bool) -> tuple[Facts, Digest]:
        """`settles`: make durable what an earlier backup that broke off had put into the pool."""
        lease = Lease.take(self._destination.tmp)
        pool = Pool(self._destination, lease)
        try:
            draft = Path(lease.path) / "manifest"
            with draft.open("xb") as file:
                written = self._write(Path(lease.path), pool, file, with_keys=with_keys)
            if settles:
                sync_filesystem(lease.fd)
            self._place(draft, written[0].name, pool)
            return written
        except OSError as error:
            if error.errno in FULL:
                pool.take_back()
            raise
        except StorageFullError:
            pool.take_back()
            raise
        finally:
            lease.release()

    def _write(
        self, scratch: Path, pool: Pool, file: BinaryIO, *, with_keys: bool
    ) -> tuple[Facts, Digest]:
        writer = ManifestWriter(file)
        copy = scratch / DATABASE
        self._tell(Progress("records"))
        salvage = Salvage(self._places, self._destination, pool)
        with moment_of(
            self._places, self._records, pool, salvage, copy, with_keys=with_keys
        ) as moment:
            self.found.update(moment.found)
            for entry in moment.files:
                writer.add(entry)
            self._say_damage(moment)
            self._expect_room(moment, pool)
            self._add_repositories(moment, pool, writer, scratch)
            self._add_joblogs(pool, writer)
            self._add_store(moment, pool, writer)
        if self._damage:
            raise BackupDamagedError(_in_words(self._damage))
        self._say_renewed()
        moment.note_damage(self.found)
        late = moment.add_late_pushes(self._records)
        writer.add(_entry(DATABASE, pool, copy, mode=0o600))
        with contextlib.suppress(FileNotFoundError):
            writer.add(_entry(SETTINGS, pool, self._places.settings, mode=0o600))
        pool.flush()
        facts = self._facts(moment, pool, writer, late)
        return facts, writer.finish(facts)

    def _say_damage(self, moment: Moment) -> None:
        if moment.salvaged:
            self.warnings.append(
                f"{_damaged_parts(len(moment.salvaged))} in it, from earlier backups. To mend the"
                " server with them too: gitd check --repair --from"
                f" {self._destination.root}"
            )
        if moment.damaged:
            self.warnings.append(
                f"{_damaged_parts(moment.damaged)} not in it: gitd check names them"
            )

    def _say_renewed(self) -> None:
        if self._renewed:
            root = self._destination.root
            were, are = ("was", "is") if self._renewed == 1 else ("were", "are")
            self.warnings.append(
                f"{counted(self._renewed, 'file')} of {root}/pool {were} damaged, and {are} written"
                f" anew from the server's. Look for others: gitd backup {root} --verify"
            )

    def _facts(self, moment: Moment, pool: Pool, writer: ManifestWriter, late: int) -> Facts:
        return Facts(
            name=self._destination.new_name(),
            made_at=moment.made_at,
            gitd=version("gitd"),
            migrations=moment.migrations,
            sites=moment.counts["sites"],
            artifacts=moment.counts["artifacts"],
            files=writer.files,
            size_bytes=writer.size_bytes,
            new_bytes=pool.new_bytes,
            signing_key=moment.keys[SIGNING_KEY],
            root_key=moment.keys[ROOT_KEY],
            variables_key=moment.keys[VARIABLES_KEY],
            signing_key_id=moment.signing_key_id,
            sealed=moment.counts["sealed"],
            late_pushes=late,
            audit_head=moment.audit_head,
            damaged=moment.damaged + len(self.found) + len(self.logs),
        )

    def _place(self, draft: Path, name: str, pool: Pool) -> None:
        """Make the backup count."""
        draft.chmod(FILE_MODE)
        sync_file(draft)
        draft.rename(self._destination.manifest(name))
        pool.keep()
        sync_directory(self._destination.backups)

    def _expect_room(self, moment: Moment, pool: Pool) -> None:
        """Refuse before anything large is copied for which there is no room.

        Raises:
            StorageFullError: There is none; the message has the numbers.
        """
        needed = moment.copy.stat().st_size + sum(
            size for key, size in moment.blobs if not pool.has(Digest(key[:DIGEST_BYTES]))
        )
        free = shutil.disk_usage(self._destination.root).free
        if free < needed + FREE_BYTES_MIN:
            raise StorageFullError(
                f"{size_in_words(free)} are free at {self._destination.root}, and the backup needs"
                f" {size_in_words(needed + FREE_BYTES_MIN)}: make room, or keep fewer (--keep)"
            )

    # -- repositories ----------------------------------------------------------------------------

    def _add_repositories(
        self, moment: Moment, pool: Pool, writer: ManifestWriter, scratch: Path
    ) -> None:
        for number, site in enumerate(moment.sites):
            self._tell(Progress("repositories", number, len(moment.sites)))
            path = self._places.repositories / f"{site.id}.git"
            for _ in range(REPOSITORY_TRIES_MAX):
                try:
                    picture = picture_of(path)
                    entries = self._copy_repository(path, picture, pool)
                    break
                except RepositoryNotFoundError:
                    raise _SiteGoneError from None
                except FileNotFoundError:
                    continue  # its packs were joined: they are listed anew
            else:
                raise BackupError(f"the repository of {site.name} does not hold still")
            self.warnings += [f"site {site.name}: {warning}" for warning in picture.warnings]
            self._check_repository(site.name, path, entries, pool, scratch / site.id)
            for entry in entries:
                writer.add(entry)

    def _copy_repository(self, path: Path, picture: Picture, pool: Pool) -> list[FileEntry]:
        place = f"{REPOSITORIES}/{path.name}"
        found = []
        for name, data in picture.made.items():
            kept = pool.add_bytes(data)
            found.append(FileEntry(f"{place}/{name}", 0o644, 0, kept.size_bytes, kept.digest))
        found += [
            self._earlier.or_copied(f"{place}/{item.path}", path / item.path, item, pool)
            for item in picture.files
        ]
        return found

    def _check_repository(
        self, site: str, path: Path, entries: list[FileEntry], pool: Pool, view: Path
    ) -> None:
        """Prove that each ref has its object in what was copied; not again where nothing is new."""
        if all(map(self._earlier.has, entries)):
            return
        pool.flush()
        if not (faults := self._view_faults(entries, view)):
            return
        # What earlier backups have was not read: is it that which is wrong, or the repository?
        damaged = [entry for entry in entries if not self._is_sound(entry)]
        for entry in damaged:
            self._renew(pool, entry.digest, path / _in_repository(entry))
        if damaged:
            faults = self._view_faults(entries, view)
        self._damage += [f"site {site}: {fault}" for fault in faults]

    def _view_faults(self, entries: list[FileEntry], view: Path) -> tuple[str, ...]:
        contents = {
            _in_repository(entry): self._destination.content(entry.digest) for entry in entries
        }
        faults = check_view(view, contents)
        shutil.rmtree(view)
        return faults

    def _is_sound(self, entry: FileEntry) -> bool:
        content = self._destination.content(entry.digest)
        return matches(content, size_bytes=entry.size_bytes, digest=entry.digest)

    # -- logs and blobs --------------------------------------------------------------------------

    def _add_joblogs(self, pool: Pool, writer: ManifestWriter) -> None:
        self._tell(Progress("job logs"))
        copier = JobLogCopier(self._places.joblogs, self._earlier, pool, writer)
        copier.run()
        self.logs = copier.found

    def _add_store(self, moment: Moment, pool: Pool, writer: ManifestWriter) -> None:
        self._add_trees(moment, pool, writer)
        layout = Layout(self._places.store)
        done, total = 0, sum(size for _, size in moment.blobs)
        for key, size in moment.blobs:
            digest = Digest(key[:DIGEST_BYTES])
            with self._noting(Part.of_blob(key)):
                if not pool.has(digest):
                    self._add_content(pool, Path(blob_path(layout, key)), digest)
                writer.add(BlobEntry(digest, size, is_executable(key)))
            done += size
            self._tell(Progress("artifacts", done, total))

    def _add_trees(self, moment: Moment, pool: Pool, writer: ManifestWriter) -> None:
        """Add the manifests, each held against the blobs that it names: records that lost a
        reference lose a blob too. What the pool has is not asked of the server.
        """
        # Those that were found damaged among them: that they are left out is known.
        there = moment.absent.union(key for key, _ in moment.blobs)
        layout = Layout(self._places.store)
        for digest in moment.trees:
            path = Path(layout.tree(digest))
            with self._noting(Part.of_tree(digest)):
                if not pool.has(digest):
                    self._add_content(pool, path, digest)
                self._check_references(digest, path, pool, there)
                name = str(path.relative_to(self._places.root))
                size_bytes = Path(pool.path(digest)).lstat().st_size
                writer.add(FileEntry(name, 0o444, 0, size_bytes, digest))

    def _check_references(
        self, digest: Digest, source: Path, pool: Pool, there: AbstractSet[bytes]
    ) -> None:
        """Read a manifest in the pool, and write it anew where it is not what its name says."""
        named = named_blobs(digest, pool.path(digest))
        if named is None and self._renew(pool, digest, source):
            named = named_blobs(digest, pool.path(digest))
        fault = reference_fault(named, there) if named is not None else None
        if fault is not None:
            self._damage.append(f"tree {digest}: {fault}: gitd check --rebuild-index")

    def _renew(self, pool: Pool, digest: Digest, source: Path) -> bool:
        """Bring back what is damaged in the pool from what it is a copy of, or say what to do."""
        if pool.renew(digest, source):
            self._renewed += 1
            return True
        self._damage.append(
            f"{pool.path(digest)} is a damaged copy of {source}, which has other bytes by now or is"
            " damaged as well: move the copy away, and run gitd check --repair"
        )
        return False

    def _add_content(self, pool: Pool, path: Path, digest: Digest) -> None:
        if pool.add_file(path).digest != digest:
            raise BackupDamagedError("has other bytes than its name says")

    @contextlib.contextmanager
    def _noting(self, part: Part) -> Iterator[None]:
        """Go on past what is damaged, and leave it out."""
        try:
            yield
        except BackupDamagedError as error:
            self.found[part] = str(error)
        except FileNotFoundError:
            self.found[part] = "is gone"


def _entry(name: str, pool: Pool, path: Path, *, mode: int) -> FileEntry:
    kept = pool.add_file(path)
    return FileEntry(name, mode, 0, kept.size_bytes, kept.digest)


def _in_repository(entry: FileEntry) -> str:
    """The path of a file in its repository."""
    return entry.path.split("/", 2)[2]


def _in_words(damage: list[str]) -> str:
    shown = "; ".join(damage[:DAMAGE_SHOWN_MAX])
    more = f"; and {len(damage) - DAMAGE_SHOWN_MAX} more" if len(damage) > DAMAGE_SHOWN_MAX else ""
    return (
        f"what is to be backed up is damaged: {shown}{more}. No backup was made, and the earlier"
        " ones are as they were; gitd check says more"
    )


def _damaged_parts(count: int) -> str:
    part = "{} of the store that {} found damaged {}"
    return counted(count, part.format("part", "was", "is"), part.format("parts", "were", "are"))
