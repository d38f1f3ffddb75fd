"""Power cuts: what was acknowledged is on the medium, on each filesystem that can be made here.

Samples first, then the long proofs. The power is cut right after a process ended, at a system call
of it, or at any moment at which something differs on the disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import Collector, Order
from storage.custody import Custody
from storage.digest import Digest
from storage.envelope import IN_TOTO_TYPE, unseal
from storage.errors import StorageError
from storage.retention import Retention
from storage.trust import Keyring, load_keyring
from storage.unpacked import verify_tree
from tests.crashing import share, some
from tests.power import KINDS, KINDS_IN_TURN, Disk, disk_of, killed_at, needs_disks, run
from tests.recorded import record
from tests.spoiling import flip
from tests.storage.trees import FEW, INGEST_CHILD, LARGE, LONG, MANY, Tree

FOLDER = Path(__file__).parent
COLLECT_CHILD = FOLDER / "collect_child.py"
ROTATE_CHILD = FOLDER / "rotate_child.py"
UNPACK_CHILD = FOLDER / "unpack_child.py"
REPAIR_CHILD = FOLDER / "repair_child.py"
SYNCS = "fsync,fdatasync,syncfs"
RESTLESS = pytest.mark.parametrize("is_restless", [False, True], ids=["quiet", "restless"])
TREES = pytest.mark.parametrize("tree", [FEW, MANY, LARGE], ids=str)

pytestmark = [
    *needs_disks,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here"),
]


def fill_disk(shop_at, where: Path) -> None:
    shop = shop_at(where / "shop")
    shop.ingest({"f": b"before", "a/shared": b"one" * 50})
    shop.records.close()


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, shop_at) -> Iterator[Disk]:
    with disk_of(request.param, lambda where: fill_disk(shop_at, where)) as made:
        yield made


@pytest.fixture(params=KINDS_IN_TURN)
def sample(request: pytest.FixtureRequest, shop_at) -> Iterator[Disk]:
    with disk_of(request.param, lambda where: fill_disk(shop_at, where)) as made:
        yield made


def ingest(where: Path, tree: Tree, *strace: str) -> int:
    return run(where, ingesting_of(tree)(where), strace)


def ingesting_of(tree: Tree) -> Callable[[Path], list[str | Path]]:
    return lambda where: [INGEST_CHILD, *tree.words(where / "shop")]


def artifacts(shop) -> int:
    """Count what the records acknowledge; all of it must be whole."""
    shop.store.recover()
    report = check_store(shop.folder / "store", shop.records)
    assert (report.problems, report.leftovers) == ((), ())
    return report.envelopes


def expect_whole_artifacts(shop_at, kept: Path, *, is_done: bool) -> None:
    """What was acknowledged is there; nothing half; and it can be done again."""
    shop = shop_at(kept / "shop")
    shop.builds = iter([2000])
    found = artifacts(shop)
    assert found == 2 if is_done else found in (1, 2)
    shop.ingest({"a/page.html": b"two" * 50, "more/1": b"1"})
    assert artifacts(shop) == found + 1
    shop.records.close()


# -- a sample --------------------------------------------------------------------------------------


def test_power_cut_takes_no_artifact_that_was_acknowledged_and_leaves_no_half_one(
    sample: Disk, shop_at
) -> None:
    for tree, how in ((FEW, ()), (LARGE, ()), (LONG, ()), (FEW, killed_at("renameat", 3))):
        is_done = ingest(sample.begin(), tree, *how) == 0
        assert is_done == (how == ())
        kept = shop_at(sample.cut() / "shop")
        assert artifacts(kept) == 1 + is_done
        kept.records.close()
        sample.end()


def test_power_cut_at_some_moments_leaves_whole_artifacts_only(sample: Disk, shop_at) -> None:
    for is_restless in (False, True):
        ingesting = record(sample, ingesting_of(FEW), is_restless=is_restless)
        assert ingesting.status == 0
        *before, last = ingesting.moments
        assert last.is_done
        assert len(before) > 20
        for kept, is_done in ingesting.cuts([*some(before, 4), last]):
            expect_whole_artifacts(shop_at, kept, is_done=is_done)


def damage(disk: Disk, shop_at) -> None:
    """Damage what is on the disk, with a copy of it beside, as the first state `damaged`."""
    where = disk.begin()
    shop = shop_at(where / "shop")
    (shop.folder / "copy").mkdir()
    (shop.folder / "copy" / "any-name").write_bytes(b"before")
    flip(shop.blob(b"before"))
    shop.records.close()
    disk.keep("damaged")


def repairing(where: Path) -> list[str | Path]:
    return [REPAIR_CHILD, where / "shop"]


def expect_mended(shop_at, kept: Path) -> None:
    shop = shop_at(kept / "shop")
    assert artifacts(shop) == 1
    assert shop.blob(b"before").read_bytes() == b"before"
    (damaged,) = shop.store.layout.quarantine.iterdir()
    assert damaged.read_bytes() != b"before"
    shop.records.close()


def test_power_cut_after_a_repair_leaves_what_was_mended(sample: Disk, shop_at) -> None:
    damage(sample, shop_at)
    where = sample.begin("damaged")
    assert run(where, repairing(where)) == 0
    expect_mended(shop_at, sample.cut())


@RESTLESS
@pytest.mark.soak
def test_power_cut_at_any_moment_of_a_repair_leaves_what_can_be_mended(
    disk: Disk, shop_at, *, is_restless: bool
) -> None:
    damage(disk, shop_at)
    recording = record(disk, repairing, base="damaged", is_restless=is_restless)
    assert recording.status == 0
    for kept, is_done in recording.cuts(share(recording.moments)):
        assert is_done or run(kept, repairing(kept)) == 0
        expect_mended(shop_at, kept)


# -- changing keys -----------------------------------------------------------------------------


def establish(where: Path) -> None:
    for name in ("keys", "trust"):
        (where / name).mkdir()
    Custody(where / "keys").open(where / "trust")


def changing_keys(where: Path) -> list[str | Path]:
    return [ROTATE_CHILD, where / "keys", where / "trust"]


def open_keys(where: Path) -> tuple[Custody, Keyring]:
    """As the next start does: what is signed from then on holds."""
    custody = Custody(where / "keys")
    custody.open(where / "trust")
    return custody, expect_held(custody, where / "trust")


def expect_held(custody: Custody, trust: Path) -> Keyring:
    ring = load_keyring(trust, root_key_ids=custody.root_key_ids())
    sealed = custody.seal(b"{}")
    assert unseal(sealed.data, payload_type=IN_TOTO_TYPE, public_key=ring.provenance_key)
    return ring


@pytest.mark.parametrize("kind", KINDS_IN_TURN)
def test_power_cut_after_a_change_of_keys_leaves_the_new_ones(kind: str) -> None:
    with disk_of(kind, establish) as disk:
        where = disk.begin()
        old = Custody(where / "keys").signing_key().key_id
        assert run(where, changing_keys(where)) == 0
        custody, ring = open_keys(disk.cut())
        assert custody.signing_key().key_id != old
        assert ring.keys[old].revoked


@RESTLESS
@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_any_moment_of_a_change_of_keys_leaves_keys_that_hold(
    kind: str, *, is_restless: bool
) -> None:
    with disk_of(kind, establish) as disk:
        changing = record(disk, changing_keys, is_restless=is_restless)
        assert changing.status == 0
        for kept, _ in changing.cuts(share(changing.moments)):
            custody, _ = open_keys(kept)
            new = custody.rotate(kept / "trust").key_id
            ring = expect_held(custody, kept / "trust")
            assert [name for name, key in ring.keys.items() if key.is_active] == [new]


# -- unpacking ---------------------------------------------------------------------------------


class Unpacking:
    """An artifact on a disk that is unpacked there, so that it outlasts a power cut."""

    def __init__(self, disk: Disk, shop_at, count: int) -> None:
        shop = shop_at(disk.begin() / "shop")
        shop.builds = iter([100])
        ingested = shop.ingest({f"d/f{n}": b"%d" % n * 100 for n in range(count)})
        self._manifest = shop.verify(ingested).manifest
        self._words = (str(ingested.digest), ingested.envelope_sha256)
        shop.records.close()
        disk.keep("filled")

    def child(self, where: Path) -> list[str | Path]:
        return [UNPACK_CHILD, where / "shop/store", *self._words, where / "release"]

    def expect_whole_or_none(self, kept: Path, *, is_done: bool) -> None:
        release = kept / "release"
        assert release.exists() or not is_done
        if release.exists():
            verify_tree(release, self._manifest)


def test_power_cut_after_an_unpacking_leaves_the_folder_whole(sample: Disk, shop_at) -> None:
    for count in (3, 60):
        unpacking = Unpacking(sample, shop_at, count)
        where = sample.begin("filled")
        assert run(where, unpacking.child(where)) == 0
        unpacking.expect_whole_or_none(sample.cut(), is_done=True)
        sample.end()


@RESTLESS
@pytest.mark.soak
@pytest.mark.parametrize("count", [3, 60])
def test_power_cut_while_unpacking_leaves_a_whole_folder_or_none(
    disk: Disk, shop_at, *, count: int, is_restless: bool
) -> None:
    unpacking = Unpacking(disk, shop_at, count)
    recording = record(disk, unpacking.child, base="filled", is_restless=is_restless)
    assert recording.status == 0
    for kept, is_done in recording.cuts(share(recording.moments)):
        unpacking.expect_whole_or_none(kept, is_done=is_done)


# -- acknowledged ----------------------------------------------------------------------------------


@TREES
@pytest.mark.soak
def test_acknowledged_artifact_survives_a_power_cut(disk: Disk, shop_at, tree: Tree) -> None:
    assert ingest(disk.begin(), tree) == 0
    kept = shop_at(disk.cut() / "shop")
    assert artifacts(kept) == 2
    kept.records.close()


@pytest.mark.soak
def test_power_cut_here_does_lose_what_was_not_synced(disk: Disk, shop_at) -> None:
    # The proof that the test above can fail: the kernel answers each sync without doing it.
    faked = ("-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:retval=0")
    assert ingest(disk.begin(), MANY, *faked) == 0
    try:
        kept = shop_at(disk.cut() / "shop")
        found = artifacts(kept)
        kept.records.close()
    except (AssertionError, StorageError):
        found = 0
    assert found < 2


@TREES
@RESTLESS
@pytest.mark.soak
def test_power_cut_at_any_moment_leaves_whole_artifacts_only(
    disk: Disk, shop_at, *, tree: Tree, is_restless: bool
) -> None:
    ingesting = record(disk, ingesting_of(tree), is_restless=is_restless)
    assert ingesting.status == 0
    for kept, is_done in ingesting.cuts(share(ingesting.moments)):
        expect_whole_artifacts(shop_at, kept, is_done=is_done)


# -- collecting --------------------------------------------------------------------------------

KEPT = {"a/shared": b"one" * 50, "kept": b"kept"}


def fill(disk: Disk, shop_at) -> Digest:
    """Add what is kept and what is garbage to the first state; return what is kept."""
    shop = shop_at(disk.begin() / "shop")
    shop.builds = iter(range(100, 200))
    for number in range(3):
        shop.ingest(
            {"a/shared": b"one" * 50, **{f"{n}": b"%d" % (n * 3 + number) for n in range(9)}}
        )
    kept = shop.ingest(KEPT)
    shop.pin(kept)
    shop.keep_tree({"cache": b"cache", "kept": b"kept"})
    shop.records.close()
    disk.keep("filled")
    return kept.digest


def expect_kept_alone(shop, digest: Digest) -> None:
    """What is kept is whole at once; another cycle takes the rest, and what it left lying."""
    shop.store.recover()
    root = shop.folder / "store"
    assert check_store(root, shop.records).problems == ()
    row = shop.records.reader().execute(
        "SELECT envelope_sha256 FROM attestation JOIN artifact ON artifact.id = artifact_id"
        " WHERE digest = ?",
        (str(digest),),
    )
    verified = shop.reader.verify(digest, row.fetchone()[0])
    shop.reader.materialise(verified, shop.folder / "release")
    verify_tree(shop.folder / "release", verified.manifest)
    nothing = Retention(0, 0, 0, 0, 0, 0)
    Collector(shop.store, shop.records, nothing).run(Order(is_hurried=True, is_thorough=True))
    report = check_store(root, shop.records)
    assert (report.problems, report.leftovers, report.blobs) == ((), (), len(KEPT))


@RESTLESS
@pytest.mark.soak
def test_power_cut_while_collecting_takes_nothing_that_is_kept(
    disk: Disk, shop_at, *, is_restless: bool
) -> None:
    digest = fill(disk, shop_at)
    collecting = record(
        disk,
        lambda where: [COLLECT_CHILD, where / "shop"],
        base="filled",
        is_restless=is_restless,
    )
    assert collecting.status == 0
    for kept, _ in collecting.cuts(share(collecting.moments)):
        shop = shop_at(kept / "shop")
        expect_kept_alone(shop, digest)
        shop.records.close()
