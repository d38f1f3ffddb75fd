"""Verifying backups: each byte against the manifests, and what they make up against itself.

Changes nothing, and needs no server. Contents that several backups share are read once.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.backup.destination import Destination
from storage.backup.manifest import BlobEntry, Entry, Facts, FileEntry, Manifest, read_facts
from storage.backup.places import DATABASE, REPOSITORIES, STORE
from storage.backup.pool import matches
from storage.backup.progress import Progress, Tell, silently
from storage.backup.references import named_blobs, reference_fault
from storage.backup.repositories import check_view
from storage.blobs import blob_key
from storage.counted import counted
from storage.digest import Digest
from storage.errors import BackupDamagedError, RecordsError
from storage.files import mapped_errors
from storage.records import blobs, copies

_TREES = f"{STORE}/trees/"
FAULTS_MAX = 50  # of one backup; a damaged disk has thousands of the same kind


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check found about one backup.

    Attributes:
        facts, digest: None when its manifest is damaged.
        faults: A sentence for each thing that is wrong; none, and it can be restored.
    """

    name: str
    facts: Facts | None
    digest: Digest | None
    faults: tuple[str, ...]


def verify(
    destination: Destination,
    *,
    at: str | None = None,
    is_deep: bool = False,
    tell: Tell = silently,
) -> list[Verified]:
    """Check the backup that `at` means, or all of them; the oldest first.

    `is_deep`: read every object of the repositories as well, and follow every link.

    Raises:
        BackupError: There is no such backup, or no folder of backups.
        StorageIoError: The system refused to list them.
    """
    with destination.reading(), mapped_errors(f"verify {destination.root}"):
        names = destination.names() if at is None else [destination.choose(at)]
        check = _Check(destination, is_deep=is_deep, tell=tell)
        return [check.backup(name) for name in names]


def listed(destination: Destination) -> list[Facts]:
    """Say what each backup is of, the oldest first. Reads the ends of the manifests only.

    Raises:
        BackupDamagedError: One does not end like a manifest.
        BackupError: It is no folder of backups.
    """
    destination.check_format()
    return [read_facts(destination.manifest(name)) for name in destination.names()]


class _Check:
    def __init__(self, destination: Destination, *, is_deep: bool, tell: Tell) -> None:
        self._destination = destination
        self._is_deep = is_deep
        self._tell = tell
        self._sound: set[tuple[Digest, int]] = set()

    def backup(self, name: str) -> Verified:
        try:
            manifest = Manifest.open(self._destination.manifest(name))
        except BackupDamagedError as error:
            return Verified(name, None, None, (str(error),))
        faults = list(self._faults(manifest))
        if len(faults) > FAULTS_MAX:
            faults[FAULTS_MAX:] = [f"and {len(faults) - FAULTS_MAX} more faults like these"]
        return Verified(name, manifest.facts, manifest.digest, tuple(faults))

    def _faults(self, manifest: Manifest) -> Iterator[str]:
        repositories: dict[str, dict[str, str]] = defaultdict(dict)
        keys: set[bytes] = set()
        manifests: dict[Digest, str] = {}
        database: str | None = None
        is_whole, done = True, 0
        for entry in manifest.entries():
            content = self._destination.content(entry.digest)
            if not self._is_sound(entry):
                is_whole = False
                yield (
                    f"{_named(entry)}: {content} is gone, cannot be read, or has other bytes than"
                    " its name says"
                )
            elif isinstance(entry, BlobEntry):
                keys.add(blob_key(entry.digest, executable=entry.is_executable))
            elif entry.path.startswith(_TREES):
                manifests[entry.digest] = content
            elif entry.path == DATABASE:
                database = content
            elif entry.path.startswith(f"{REPOSITORIES}/"):
                _, name, path = entry.path.split("/", 2)
                repositories[name][path] = str(Path(content).absolute())
            done += entry.size_bytes
            self._tell(Progress(f"backup {manifest.facts.name}", done, manifest.facts.size_bytes))
        if not is_whole:
            return
        yield from _database_faults(database, keys, manifests)
        for name, contents in repositories.items():
            with tempfile.TemporaryDirectory(prefix="gitd-verify-") as folder:
                view = Path(folder) / name
                for fault in check_view(view, contents, is_whole=self._is_deep):
                    yield f"repository {name}: {fault}"

    def _is_sound(self, entry: Entry) -> bool:
        known = (entry.digest, entry.size_bytes)
        if known not in self._sound:
            path = self._destination.content(entry.digest)
            if not matches(path, size_bytes=entry.size_bytes, digest=entry.digest):
                return False
            self._sound.add(known)
        return True


def _database_faults(
    content: str | None, keys: set[bytes], manifests: Mapping[Digest, str]
) -> Iterator[str]:
    """The records themselves, and whether the backup has each blob and manifest that they count
    on, and each blob that these name.
    """
    if content is None:
        yield f"{DATABASE} is not in it"
        return
    try:
        with copies.looking_into(content) as db:
            copies.require_sound(db)
            live = {key for key, _ in blobs.each_live(db)}
            damaged = blobs.each_key(db) - live
            trees = [Digest(digest) for digest in blobs.each_tree(db)]
    except RecordsError as error:
        yield str(error)
        return
    missing = len(live - keys)
    if missing:
        yield f"{counted(missing, 'blob')} that the records count on: not in it"
    there = keys | damaged
    for digest in trees:
        if digest not in manifests:
            yield f"tree {digest}: its manifest is not in it"
        elif (named := named_blobs(digest, manifests[digest])) is None:
            yield f"tree {digest}: {manifests[digest]} was damaged a moment ago"
        elif fault := reference_fault(named, there):
            yield f"tree {digest}: {fault}"


def _named(entry: Entry) -> str:
    return entry.path if isinstance(entry, FileEntry) else f"blob {entry.digest}"
