"""As `test_collect_states`, on a medium that rots: what is damaged never runs, nothing else does
worse for it, and what comes again, from a build, a release folder or somebody's copy, is whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, rule

from storage.blobs import entry_key
from storage.check import check_store
from storage.copies import Lacking, Offer, release_folders, twins
from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.manifest import FileEntry
from storage.parts import Part
from storage.records import blobs as rows
from storage.repair import Repairer
from storage.retention import DAY_MS
from storage.scrub import Scrubber, ScrubLimits
from tests.spoiling import flip
from tests.storage.test_collect_states import CONTENTS, TREES, Shopping, run


def later() -> int:
    """After all that was read when it came."""
    return time.time_ns() // 1_000_000 + 40 * DAY_MS


class Rotting(Shopping):
    """A site whose medium loses bits."""

    built = Bundle("built")

    def __init__(self, make_world) -> None:
        super().__init__(make_world)
        self.contents: dict[str, set[bytes]] = {}
        self.rolled_digest: Digest | None = None

    @rule(target=built, contents=TREES)
    def build(self, contents):
        """Pinned: what was collected cannot rot."""
        ingested = super().build(contents)
        self.contents[ingested.artifact_id] = contents
        self.pin(ingested)
        return ingested

    @rule(data=st.sampled_from(CONTENTS), at=st.integers(0, 9))
    def rot(self, data, at):
        if self.world.shop.blob(data).exists():
            flip(self.world.shop.blob(data), at)

    @rule(ingested=built)
    def rot_beside(self, ingested):
        """A release folder has files of its own, or those of the folder before it."""
        if self.rolled is not None:
            for path in self.rolled.iterdir():
                flip(path)
                break

    @rule(ingested=built)
    def roll(self, ingested):
        if not self.is_available(ingested):
            return
        if self.is_whole(ingested):
            super().roll(ingested)
            self.rolled_digest = ingested.digest
            return
        shop = self.world.shop
        with pytest.raises((ArtifactCorruptError, ArtifactMissingError)):
            shop.reader.verify_blobs(shop.verify(ingested))

    @rule(mends=st.booleans())
    def scrub(self, mends):
        """Whatever is damaged is known afterwards."""
        scrubber = self.scrubber(mends=mends)
        while not scrubber.turn().is_idle:
            pass
        assert all(self.is_good(data) for data in self.live())

    @rule(ingested=built)
    def stumble(self, ingested):
        """A host could not roll it: control looks at this one at once."""
        if not self.is_available(ingested) or self.is_whole(ingested):
            return
        bad = {data for data in self.contents[ingested.artifact_id] if not self.is_good(data)}
        known = {damage.part.digest for damage in self.repairer.damage()}
        found, _ = self.scrubber().examine(ingested.digest, ingested.envelope_sha256)
        assert {damage.part.digest for damage in found} | known >= {Digest.of(d) for d in bad}
        assert all(self.is_good(data) for data in bad & self.live()), "mended, or absent"

    @invariant()
    def what_is_known_is_whole(self):
        """But for what rots, and by its own name; and for what counts as absent, though a process
        that went down had placed it again.
        """
        report = check_store(self.world.shop.store.layout.root, self.records)
        live = self.live()
        bad = {
            Digest.of(data) for data in self.known() if data not in live or not self.is_good(data)
        }
        assert {digest for digest in bad if any(digest.hex() in p for p in report.problems)} == bad
        for problem in report.problems:
            assert any(digest.hex() in problem for digest in bad), problem

    def teardown(self):
        self.scrubber(mends=True)
        super().teardown()

    # -- what is so -------------------------------------------------------------------------------

    @property
    def repairer(self):
        return Repairer(self.world.shop.store, self.records, clock=later)

    def scrubber(self, *, mends=False):
        shop = self.world.shop
        layout = shop.store.layout
        unpacked = {self.rolled_digest: [self.rolled]} if self.rolled_digest else {}
        sources = [twins(layout), release_folders(layout, self.records, lambda: unpacked)]
        limits = ScrubLimits(every_ms=1, bytes_per_s=1 << 40)
        return Scrubber(
            self.repairer,
            self.records,
            [*sources, offered] if mends else sources,
            layout.trust,
            limits=limits,
            clock=later,
        )

    def is_good(self, data: bytes) -> bool:
        path = self.world.shop.blob(data)
        return path.exists() and path.read_bytes() == data

    def is_whole(self, ingested) -> bool:
        return all(map(self.is_good, self.contents[ingested.artifact_id]))

    def known(self) -> set[bytes]:
        """The contents that the records have a row of, damaged or not."""
        found = {bytes(row["key"]) for row in self.records.reader().execute("SELECT key FROM blob")}
        return {data for data in CONTENTS if key_of(data) in found}

    def live(self) -> set[bytes]:
        found = rows.live(self.records.reader(), list(map(key_of, CONTENTS)))
        return {data for data in CONTENTS if key_of(data) in found}


def key_of(data: bytes) -> bytes:
    return entry_key(FileEntry(b"any", False, len(data), Digest.of(data)))


def offered(lacking: Lacking) -> Iterator[Offer]:
    """Somebody has all of it, elsewhere."""
    for data in CONTENTS:
        part = Part.of_blob(key_of(data))
        if part in lacking:
            yield Offer.of_bytes(part, "elsewhere", data)


@pytest.mark.timeout(300)
def test_what_rots_never_runs_in_some_orders(make_world) -> None:
    run(make_world, 10, 25, Rotting)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_rots_never_runs_in_many_orders(make_world) -> None:
    run(make_world, 300, 50, Rotting)
