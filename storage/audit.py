"""The audit: what the collector makes sure of before it deletes for good.

It goes by rows: a blob without a reference is garbage, a file without a row is a leftover. Were
rows lost, or not found because an index is damaged, what is in use would go. The manifests know
better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet

from storage.digest import Digest
from storage.errors import CollectionRefusedError, StorageError
from storage.ids import artifact_id
from storage.layout import Layout
from storage.leftovers import FUSE_COUNT_MIN, FUSE_SHARE
from storage.manifest import blob_keys
from storage.parts import Part
from storage.reader import read_manifest_bytes
from storage.records import blobs, garbage, index, integrity
from storage.records.damage import Damage
from storage.records.db import Records
from storage.repair import Repairer

# A manifest never changes, and neither should its references: a look now and then is enough.
EVERY_S = 7 * 24 * 3600.0
# What says which files are wanted, and by whom.
TABLES = (
    *("blob", "tree", "ref", "artifact", "build_cache", "attestation", "release_statement"),
    *("release", "deployment", "artifact_pin", "environment", "site", "build"),
)


class Audit:
    """The audit of one store; it remembers what it looked at. One thread at a time.

    Attributes:
        found: The manifests that it found damaged, until somebody takes them from here.
    """

    def __init__(
        self,
        layout: Layout,
        records: Records,
        repairer: Repairer,
        check_stop: Callable[[], None],
    ) -> None:
        """`check_stop` is called between two steps, and may raise to end them."""
        self.found: list[Damage] = []
        self._layout = layout
        self._records = records
        self._repairer = repairer
        self._check_stop = check_stop
        self._looked_at: dict[Digest, float] = {}
        self._is_torn = False

    def check_database(self, *, goes: bool) -> None:
        """Hold the tables that decide against themselves, and their indexes against them.

        Takes seconds where there are millions of rows: done where something goes by them, and
        after it found something, until it finds nothing.

        Raises:
            CollectionRefusedError: They are damaged.
        """
        if not goes and not self._is_torn:
            return
        for table in TABLES:
            self._check_stop()
            self._is_torn = True  # also where looking at it fails
            if fault := integrity.torn(self._records.reader(), table):
                raise CollectionRefusedError(
                    f"nothing was deleted: the database is damaged ({table}: {fault}). Run gitd "
                    "check --rebuild-index; where that does not help, bring a backup back."
                )
        self._is_torn = False

    def check_trees(
        self, *, is_thorough: bool, but: AbstractSet[Digest] = frozenset()
    ) -> set[Digest]:
        """Hold the references against the manifests of the trees that are kept.

        Each tree once a week; all of them when a cycle is thorough, which removes files without a
        row. Whatever the references name has a row, and with sound indexes it is found.

        A manifest that cannot be read is damaged from here on, as if the scrub had found it: its
        references hold for it until it is mended, if they are all there, which `doubt` says.

        `but`: trees that need no look. Returns the others that are kept.

        Raises:
            CollectionRefusedError: They differ, or a manifest cannot be read, nor called damaged.
        """
        now = time.monotonic()
        kept = set(garbage.kept_trees(self._records.reader())) - but
        for digest in kept:
            self._check_stop()
            if is_thorough or now - self._looked_at.get(digest, -EVERY_S) >= EVERY_S:
                self.check_tree(digest)
                self._looked_at[digest] = now
        return kept

    def check_tree(self, digest: Digest) -> None:
        """As `check_trees`, of one."""
        named = self._named(digest)
        if named is not None and named != garbage.references(self._records.reader(), digest):
            raise CollectionRefusedError(
                f"nothing was deleted: the records and the manifest of the tree {digest} differ. "
                "Run gitd check --rebuild-index."
            )

    def check_unkept(self, digests: Collection[Digest]) -> None:
        """See that trees which nothing keeps are not those of artifacts whose rows were lost.

        Raises:
            CollectionRefusedError: A build gave such an artifact. What was dropped has its row.
        """
        if doubt := self.doubt_of_unkept(digests):
            raise CollectionRefusedError(doubt)

    def doubt_of_unkept(self, digests: Collection[Digest]) -> str | None:
        """What `check_unkept` would say; None when nothing speaks against it."""
        lost = index.lost_artifacts(self._records.reader(), map(artifact_id, digests))
        if not lost:
            return None
        return (
            f"nothing was deleted: a build gave {min(lost)}, which lies in the store, and the "
            "records have lost it. Run gitd check --rebuild-index; gitd gc --force removes it."
        )

    def check_loose(self, blob_ids: Collection[int]) -> None:
        """See that blobs without a reference look like ordinary garbage.

        Raises:
            CollectionRefusedError: They are more than half of all, and not few.
        """
        if doubt := self.doubt_of_loose(blob_ids):
            raise CollectionRefusedError(doubt)

    def doubt_of_loose(self, blob_ids: Collection[int]) -> str | None:
        """What `check_loose` would say; None when nothing speaks against it."""
        if len(blob_ids) <= FUSE_COUNT_MIN:
            return None
        count = garbage.usage(self._records.reader()).blobs
        if len(blob_ids) <= FUSE_SHARE * count:
            return None
        return (
            f"{len(blob_ids)} of {count} blobs have no reference, which is more than half and may "
            "be a mistake: they were not deleted. Run gitd check, and gitd gc --dry-run; gitd gc "
            "--force deletes them."
        )

    def _named(self, digest: Digest) -> set[bytes] | None:
        """The keys that a manifest names; None when it counts as damaged, or the tree is gone."""
        try:
            return blob_keys(read_manifest_bytes(self._layout, digest))
        except StorageError:
            self.found += self._repairer.condemn([Part.of_tree(digest)])
        if not blobs.has_tree(self._records.reader(), digest):
            return None
        try:  # it was set right, or is well again
            return blob_keys(read_manifest_bytes(self._layout, digest))
        except StorageError as error:
            raise CollectionRefusedError(
                f"nothing was deleted: the manifest of the tree {digest} cannot be asked ({error})."
                " Run gitd check --repair."
            ) from error

    def doubt(self, *, but: Collection[str] = ()) -> str | None:
        """Say why nobody knows which blobs are in use, and what to do; None when it is known.

        `but`: artifacts that are about to go.

        A damaged manifest cannot be asked, and the references do until it is mended: if they are
        all there.
        """
        found = garbage.uncertain_artifacts(self._records.reader())
        unknown = [one for one in found if one not in but]
        if not unknown:
            return None
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return (
            f"the records do not know all files of {unknown[0]}{more}, and the manifest is lost or "
            "damaged: no manifest, no blob and no leftover was removed. Run gitd check "
            "--rebuild-index --repair, with --from where there is a copy; or build it again."
        )
