"""Power cuts: what was acknowledged is on the medium, on each filesystem that can be made here.

Samples first, then the long proofs. The power is cut right after a process ended, or at a
system call of it.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
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
from tests.power import KINDS, KINDS_IN_TURN, Disk, disk_of, killed_at, needs_disks, run
from tests.spoiling import flip
from tests.storage.trees import FEW, INGEST_CHILD, LARGE, MANY, Tree

FOLDER = Path(__file__).parent
COLLECT_CHILD = FOLDER / "collect_child.py"
ROTATE_CHILD = FOLDER / "rotate_child.py"
UNPACK_CHILD = FOLDER / "unpack_child.py"
REPAIR_CHILD = FOLDER / "repair_child.py"
SYNCS = "fsync,fdatasync,syncfs"
CALLS = (
    *("write", "pwrite64", "rename", "renameat", "link", "unlink", "unlinkat"),
    *("fsync", "fdatasync", "syncfs"),
)
TREES = pytest.mark.parametrize("tree", [FEW, MANY, LARGE], ids=str)

pytestmark = [
    *needs_disks,
    pytest.mark.timeout(1800),
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
    return run(where, [INGEST_CHILD, *tree.words(where / "shop")], strace)


def artifacts(shop) -> int:
    """Count what the records acknowledge; all of it must be whole."""
    shop.store.recover()
    report = check_store(shop.folder / "store", shop.records)
    assert (report.problems, report.leftovers) == ((), ())
    return report.envelopes


# -- a sample --------------------------------------------------------------------------------------


def test_power_cut_takes_no_artifact_that_was_acknowledged_and_leaves_no_half_one(
    sample: Disk, shop_at
) -> None:
    for tree, how in ((FEW, ()), (LARGE, ()), (FEW, killed_at("renameat", 3))):
        is_done = ingest(sample.begin(), tree, *how) == 0
        assert is_done == (how == ())
        kept = shop_at(sample.cut() / "shop")
        assert artifacts(kept) == 1 + is_done
        kept.records.close()
        sample.end()


def test_power_cut_after_a_repair_leaves_what_was_mended(sample: Disk, shop_at) -> None:
    where = sample.begin()
    shop = shop_at(where / "shop")
    (shop.folder / "copy").mkdir()
    (shop.folder / "copy" / "any-name").write_bytes(b"before")
    flip(shop.blob(b"before"))
    shop.records.close()
    sample.keep("damaged")
    where = sample.begin("damaged")
    assert run(where, [REPAIR_CHILD, where / "shop"]) == 0
    kept = shop_at(sample.cut() / "shop")
    assert artifacts(kept) == 1
    assert kept.blob(b"before").read_bytes() == b"before"
    assert len(list(kept.store.layout.quarantine.iterdir())) == 1
    kept.records.close()


# -- changing keys -----------------------------------------------------------------------------

KEYS_CALLS = ("write", "rename", "link", "unlink", "fsync", "flock")


def establish(where: Path) -> None:
    for name in ("keys", "trust"):
        (where / name).mkdir()
    Custody(where / "keys").open(where / "trust")


def change_keys(where: Path, *strace: str) -> int:
    return run(where, [ROTATE_CHILD, where / "keys", where / "trust"], strace)


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
        assert change_keys(where) == 0
        custody, ring = open_keys(disk.cut())
        assert custody.signing_key().key_id != old
        assert ring.keys[old].revoked


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_any_moment_of_a_change_of_keys_leaves_keys_that_hold(kind: str) -> None:
    with disk_of(kind, establish) as disk:
        reached = 0
        for call in KEYS_CALLS:
            for number in itertools.count(1):
                is_done = change_keys(disk.begin(), *killed_at(call, number)) == 0
                kept = disk.cut()
                custody, _ = open_keys(kept)
                new = custody.rotate(kept / "trust").key_id
                ring = expect_held(custody, kept / "trust")
                assert [name for name, key in ring.keys.items() if key.is_active] == [new]
                disk.end()
                if is_done:
                    break
                reached += 1
        print(f"{kind}: {reached} cuts while keys change")
        assert reached > 15


# -- unpacking ---------------------------------------------------------------------------------

UNPACK_CALLS = ("write", "mkdir", "utimensat", "rename", *SYNCS.split(","))


class Unpacking:
    """An artifact on a disk that is unpacked there, so that it outlasts a power cut."""

    def __init__(self, disk: Disk, shop_at, count: int) -> None:
        shop = shop_at(disk.begin() / "shop")
        shop.builds = iter([100])
        ingested = shop.ingest({f"d/f{n}": b"%d" % n * 100 for n in range(count)})
        self._manifest = shop.verify(ingested).manifest
        self._words = (str(ingested.digest), ingested.envelope_sha256)
        self._disk = disk
        shop.records.close()
        disk.keep("filled")

    def cut(self, *strace: str) -> tuple[bool, Path]:
        """Unpack, and cut the power; return whether it was done, and where it is then if it is."""
        where = self._disk.begin("filled")
        child = [UNPACK_CHILD, where / "shop/store", *self._words, where / "release"]
        is_done = run(where, child, strace) == 0
        release = self._disk.cut() / "release"
        if release.exists():
            verify_tree(release, self._manifest)
        return is_done, release


def test_power_cut_after_an_unpacking_leaves_the_folder_whole(sample: Disk, shop_at) -> None:
    for count in (3, 60):
        is_done, release = Unpacking(sample, shop_at, count).cut()
        assert is_done
        assert release.exists()
        sample.end()


@pytest.mark.soak
@pytest.mark.parametrize("count", [3, 60])
def test_power_cut_while_unpacking_leaves_a_whole_folder_or_none(
    disk: Disk, shop_at, count: int
) -> None:
    unpacking = Unpacking(disk, shop_at, count)
    points = [(call, number) for call in UNPACK_CALLS for number in (1, 2, 3, count)]
    reached = 0
    for call, number in points:
        is_done, release = unpacking.cut(*killed_at(call, number))
        assert release.exists() or not is_done
        reached += not is_done
        disk.end()
    print(f"{disk.kind}: {reached} cuts while unpacking")
    assert reached > 8


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
@pytest.mark.soak
def test_power_cut_at_any_moment_leaves_whole_artifacts_only(
    disk: Disk, shop_at, tree: Tree
) -> None:
    pick = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    reached = 0
    # Half of them while a large tree's early sync goes on, or behind it.
    numbers = range(1, 2 * LARGE.count if tree == LARGE else 13)
    for call in CALLS:
        for number in sorted(pick.sample(numbers, 4)):
            code = ingest(disk.begin(), tree, *killed_at(call, number))
            reached += code != 0
            kept = shop_at(disk.cut() / "shop")
            kept.builds = iter([2000])
            assert artifacts(kept) == (2 if code == 0 else artifacts(kept))
            kept.ingest({"a/page.html": b"two" * 50, "more/1": b"1"})
            assert artifacts(kept) >= 2
            kept.records.close()
            disk.end()
    print(f"{disk.kind}: {reached} cuts")
    assert reached > 8


# -- collecting --------------------------------------------------------------------------------

COLLECT_CALLS = ("unlink", "pwrite64", "fdatasync", "flock")
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


@pytest.mark.soak
def test_power_cut_while_collecting_takes_nothing_that_is_kept(disk: Disk, shop_at) -> None:
    digest = fill(disk, shop_at)
    seed = int(os.environ.get("CRASH_SEED", "0"))
    pick = random.Random(seed)
    points = [(call, n) for call in COLLECT_CALLS for n in sorted(pick.sample(range(1, 25), 4))]
    reached = 0
    for call, number in [*points, ("none", 0)]:
        where = disk.begin("filled")
        how = killed_at(call, number) if number else ()
        reached += run(where, [COLLECT_CHILD, where / "shop"], how) != 0
        kept = shop_at(disk.cut() / "shop")
        expect_kept_alone(kept, digest)
        kept.records.close()
        disk.end()
    print(f"{disk.kind}: {reached} cuts while collecting")
    assert reached > 8
