"""A check of the artifact store: what the records say against what lies on disk."""
# Plain strings: a store has a million files, and a Path costs as much as the call.
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from storage import inspector
from storage.consequences import Consequence, Consequences
from storage.digest import Digest
from storage.errors import ArtifactError, SignatureInvalidError
from storage.files import mapped_errors, read_bounded
from storage.gate import Gate
from storage.inspector import Inspector, Pace
from storage.layout import FORMAT_LINE, SHARDED, SHARDS, Layout
from storage.manifest import TreeFacts, read_facts
from storage.parts import Part, PartKind
from storage.quarantine import Kept, Quarantine
from storage.reader import StoreReader, read_manifest_bytes
from storage.records import blobs as rows
from storage.records import damage, garbage, release_statements, unsecured
from storage.records.db import Records
from storage.records.db import mapped_errors as mapped_record_errors
from storage.records.release_statements import CurrentStatement
from storage.second_reader import reading_halves
from storage.timestamps import now_ms

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be.

    Attributes:
        what: The thing, for people.
        fault: What is wrong with it.
        part: The part of the store that could be repaired, if it is one.
        consequence: Whom it hurts, and what to do.
    """

    what: str
    fault: str
    part: Part | None = None
    consequence: Consequence = field(default_factory=Consequence)

    def __str__(self) -> str:
        return f"{self.what}: {self.fault}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found.

    Attributes:
        blobs: How many live blobs were looked at; so with `trees` and `envelopes`, which are
            those of provenance and of releases.
        size_bytes: Of those blobs together.
        findings: Whatever is not as it must be; sorted.
        leftovers: Files that nothing refers to: they cost room and nothing else; paths
            below the root, sorted.
        quarantined: What was found damaged earlier, mended or not.
    """

    blobs: int
    trees: int
    envelopes: int
    size_bytes: int
    findings: tuple[Finding, ...]
    leftovers: tuple[str, ...]
    quarantined: tuple[Kept, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """The findings, a sentence each."""
        return tuple(map(str, self.findings))

    @property
    def is_sound(self) -> bool:
        return not self.findings


def check_store(
    root: Path, records: Records, *, is_deep: bool = True, from_medium: bool = False
) -> Report:
    """Look at every blob, manifest and envelope, and hold them against the records.

    `is_deep`: read the contents of blobs too, and not only that they are there, with the size, mode
    and time that they must have. `from_medium`: what is read is read from there, and not from what
    the system remembers of it, which may be what the medium lost.

    Safe while the store is in use; changes nothing.

    Raises:
        StorageIoError: The system refused.
        RecordsError: The database refused.
    """
    with mapped_errors(f"check the store {root}"), mapped_record_errors():
        return _Check(root, records, from_medium=from_medium).run(is_deep=is_deep)


class _Check:
    """One check under way."""

    def __init__(self, root: Path, records: Records, *, from_medium: bool) -> None:
        self._layout = Layout(root)
        self._from_medium = from_medium
        self._pace: Pace | None = inspector.from_medium if from_medium else None
        self._records = records
        self._reader = StoreReader(root)
        self._inspector = Inspector(self._layout)
        self._found: list[tuple[str, str, Part | None]] = []
        self._provenance: dict[str, list[str]] = {}  # envelopes by the tree that they are about
        self._current: dict[str, list[CurrentStatement]] = {}

    def run(self, *, is_deep: bool) -> Report:
        db = self._records.reader()
        self._check_folders()
        # Rows first, then files: a row is written after its file.
        live = rows.each_live(db)
        trees = [Digest(digest) for digest in rows.each_tree(db)]
        attestations = rows.each_attestation(db)
        released = release_statements.each_name(db)
        self._provenance = _grouped((about, sha256) for sha256, about in attestations if about)
        current = release_statements.each_current(db)
        self._current = _grouped((statement.digest, statement) for statement in current)
        with reading_halves(
            self._layout, live, reads=is_deep, from_medium=self._from_medium
        ) as blobs:
            self._check_blobs(blobs.ours(reads=is_deep), reads=is_deep)
            for digest in trees:
                self._check_tree(digest)
            for sha256 in (*(sha256 for sha256, _ in attestations), *released):
                self._check_part(Part.of_envelope(sha256))
            self._check_blobs(blobs.theirs(), reads=is_deep)
        self._add_known_damage()
        leftovers = self._leftovers()
        quarantined = self._quarantined()
        return Report(
            blobs=len(live),
            trees=len(trees),
            envelopes=len(attestations) + len(released),
            size_bytes=sum(size for _, size in live),
            findings=self._findings(),
            leftovers=tuple(sorted(leftovers)),
            quarantined=quarantined,
        )

    def _findings(self) -> tuple[Finding, ...]:
        consequences = Consequences(self._records.reader())
        return tuple(
            Finding(what, fault, part, consequences.of(part) if part is not None else Consequence())
            for what, fault, part in sorted(
                dict.fromkeys(self._found), key=lambda found: (found[0], found[1])
            )
        )

    def _add(self, what: str | Part, fault: str) -> None:
        self._found.append((str(what), fault, what if isinstance(what, Part) else None))

    # -- folders and keys -----------------------------------------------------------------------

    def _check_folders(self) -> None:
        path = self._layout.format
        try:
            if not read_bounded(path, size_bytes_max=4096).startswith(FORMAT_LINE):
                self._add(str(path), "names a format that this program does not know")
        except OSError as error:
            self._add(str(path), f"cannot be read: {error.strerror}")
        for kind in SHARDED:
            for shard in SHARDS:
                folder = f"{self._layout.root}/{kind}/{shard}"
                if not os.path.isdir(folder):  # noqa: PTH112 - a plain string
                    self._add(folder, "is missing: make it, as a folder of the store's owner")
        try:
            self._reader.keyring()
        except SignatureInvalidError as error:
            self._add(str(self._layout.trust), f"the trusted keys do not hold: {error}")

    # -- blobs ----------------------------------------------------------------------------------

    def _check_blobs(self, suspects: Iterable[bytes], *, reads: bool) -> None:
        for key in suspects:
            # Collected, or taken in again meanwhile? Nobody does either while the gate is ours.
            with Gate(self._layout).collecting():
                size_bytes = rows.size_of_live(self._records.reader(), key)
                if size_bytes is None:
                    continue
                fault = self._inspector.blob_fault(key, size_bytes, reads=reads, pace=self._pace)
            if fault is not None:
                self._add(Part.of_blob(key), fault.text)

    # -- manifests ------------------------------------------------------------------------------

    def _check_tree(self, digest: Digest) -> None:
        part = Part.of_tree(digest)
        db = self._records.reader()
        fault = self._inspector.fault(part, None, pace=self._pace)
        if fault is not None:
            if rows.has_tree(db, digest):  # it was not collected meanwhile
                self._add(part, fault.text)
            return
        # These bytes are what their name says, and were read strictly when they were taken in.
        tree = read_facts(read_manifest_bytes(self._layout, digest))
        is_so = tree.keys == garbage.references(db, digest)
        is_so = is_so and rows.tree(db, digest) in (None, _row_of(tree))
        if not is_so and rows.has_tree(db, digest):  # its references go before its row does
            self._add(
                f"records of the tree {digest}",
                "say otherwise than its manifest: gitd check --rebuild-index",
            )
        self._check_statements(tree)

    # -- statements -----------------------------------------------------------------------------

    def _check_statements(self, tree: TreeFacts) -> None:
        """What vouches for a tree, and what says that it may run."""
        for sha256 in self._provenance.get(str(tree.digest), ()):
            try:
                self._reader.vouch(tree, sha256)
            except ArtifactError as error:
                self._add_of_statement(Part.of_envelope(sha256), str(error))
        for statement in self._current.get(str(tree.digest), ()):
            try:
                data = self._reader.envelope(statement.envelope_sha256)
                vouched = self._reader.vouch(tree, statement.provenance_sha256)
                self._reader.verify_release(
                    data, vouched, env_id=statement.env_id, above=None, now_ms=now_ms()
                )
            except ArtifactError as error:
                self._add(f"release of {statement.environment}", str(error))

    def _add_of_statement(self, part: Part, text: str) -> None:
        """Of a file with other bytes that is said by itself: here, of what is wrong in it."""
        if self._inspector.fault(part, None) is None:
            self._found.append((str(part), text, None))

    def _check_part(self, part: Part) -> None:
        fault = self._inspector.fault(part, None, pace=self._pace)
        # Its row is there still: it was not collected meanwhile.
        if fault is not None and rows.is_attested(self._records.reader(), part.name):
            self._add(part, fault.text)

    # -- the rest -------------------------------------------------------------------------------

    def _add_known_damage(self) -> None:
        db = self._records.reader()
        said = {part: fault for _, fault, part in self._found}
        for known in damage.every(db):
            if known.part not in said:
                self._add(known.part, f"{known.why}; it counts as absent")
        for part, why in unsecured.every(db).items():
            if part in said and why.startswith(said[part]):  # the same, and what is in the way
                self._found.remove((str(part), said[part], part))
                self._add(part, why)
            elif part not in said and self._is_damaged_still(part):
                self._add(part, why)

    def _is_damaged_still(self, part: Part) -> bool:
        """Whether what could not be put away lies there, is wanted, and is not whole by now."""
        db = self._records.reader()
        if part.kind is PartKind.BLOB:
            size_bytes = rows.size_of_live(db, part.key)
            return size_bytes is not None and self._inspector.fault(part, size_bytes) is not None
        is_tree = part.kind is PartKind.TREE
        is_live = rows.has_tree(db, part.digest) if is_tree else rows.is_attested(db, part.name)
        return is_live and self._inspector.fault(part, None) is not None

    def _quarantined(self) -> tuple[Kept, ...]:
        try:
            return tuple(Quarantine(self._layout).kept())
        except OSError as error:
            self._add(str(self._layout.quarantine), f"cannot be read: {error.strerror}")
            return ()

    def _leftovers(self) -> list[str]:
        """Return the files that no row knows, as paths below the root."""
        known = self._known_paths()
        found = [path for path in self._each_path() if path not in known]
        if not found:
            return []
        # An ingest in progress places files before their rows; none is while the gate is ours.
        with Gate(self._layout).collecting():
            known = self._known_paths()
            root = self._layout.root
            return [p for p in found if p not in known and os.path.lexists(f"{root}/{p}")]

    def _known_paths(self) -> set[str]:
        db = self._records.reader()
        below = len(str(self._layout.root)) + 1
        paths = {_blob_path(key.hex()) for key in rows.each_key(db)}
        paths.update(self._layout.tree(Digest(d))[below:] for d in rows.each_known_tree(db))
        paths.update(self._layout.envelope(name)[below:] for name, _ in rows.each_attestation(db))
        paths.update(
            self._layout.envelope(name)[below:] for name in release_statements.each_name(db)
        )
        return paths

    def _each_path(self) -> Iterator[str]:
        for kind in SHARDED:
            for shard in SHARDS:
                with contextlib.suppress(FileNotFoundError):  # said by itself
                    names = os.listdir(f"{self._layout.root}/{kind}/{shard}")
                    yield from [f"{kind}/{shard}/{name}" for name in names]


def _blob_path(key: str) -> str:
    """Where the blob with a key, in hexadecimal, lies below the root: `layout.blob`, for many."""
    return (
        f"blobs/{key[:2]}/{key[2:64]}.x" if key.endswith("78") else f"blobs/{key[:2]}/{key[2:64]}"
    )


def _row_of(tree: TreeFacts) -> rows.TreeRow:
    return rows.TreeRow(
        digest=tree.digest,
        sha256=bytes.fromhex(tree.sha256),
        files=tree.files,
        size_bytes=tree.size_bytes,
        manifest_bytes=tree.manifest_bytes,
        blobs=len(tree.keys),
    )


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return groups
