"""Power cuts: what was acknowledged is on the medium, on each filesystem that can be made here.

The filesystem lies on a loop device over memory. Right after the ingest, or at a system call of it,
the device is copied: what only the kernel's memory knew is lost, as in a power cut. It does not
model a disk that reorders writes in a cache of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.check import check_store
from storage.collect import Collector, Order
from storage.digest import Digest
from storage.errors import StorageError
from storage.retention import Retention
from storage.unpacked import verify_tree

CHILD = Path(__file__).with_name("ingest_child.py")
COLLECT_CHILD = CHILD.with_name("collect_child.py")
MEMORY = Path("/dev/shm")
KINDS = {"ext4": ["-F"], "xfs": ["-f"], "btrfs": ["-f"]}
SYNCS = "fsync,fdatasync,syncfs"
CALLS = ("write", "pwrite64", "rename", "link", "unlink", "fsync", "fdatasync", "syncfs")
COUNTS = (0, 60)  # files more: few are synced one by one, many together

pytestmark = [
    pytest.mark.root,
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.getuid() != 0 or not MEMORY.is_dir(), reason="mounts filesystems"),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here"),
]


@dataclass
class Disk:
    """A disk that can lose its power, with a shop on it."""

    kind: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "disk"

    def begin(self, base: str = "base") -> Path:
        """Put the first state back and mount it."""
        shutil.copyfile(self.folder / base, self.image)
        return self.mount(self.image)

    def keep(self, base: str) -> None:
        """Unmount, and keep what is there as another first state."""
        subprocess.run(["umount", self.folder / "on-disk"], check=True)
        shutil.copyfile(self.image, self.folder / base)

    def mount(self, image: Path) -> Path:
        where = self.folder / f"on-{image.name}"
        where.mkdir(exist_ok=True)
        options = "loop,nouuid" if self.kind == "xfs" else "loop"
        subprocess.run(["mount", "-o", options, image, where], check=True, capture_output=True)
        return where

    def cut(self) -> Path:
        """Keep what reached the disk by now, and mount that."""
        shutil.copyfile(self.image, self.folder / "kept")
        subprocess.run(["umount", "-l", self.folder / "on-disk"], check=True)
        return self.mount(self.folder / "kept")

    def end(self) -> None:
        for name in ("on-kept", "on-disk"):
            subprocess.run(["umount", "-l", self.folder / name], capture_output=True)


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, shop_at) -> Iterator[Disk]:
    kind = request.param
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not here")
    folder = MEMORY / f"gitd-power-{os.getpid()}-{kind}"
    folder.mkdir()
    made = Disk(kind, folder)
    try:
        with (folder / "base").open("wb") as file:
            file.truncate(600 << 20)
        quiet = ["mkfs.ext4", "-q"] if kind == "ext4" else [f"mkfs.{kind}", "-q"]
        subprocess.run([*quiet, *KINDS[kind], folder / "base"], check=True, capture_output=True)
        try:
            where = made.mount(folder / "base")
        except subprocess.CalledProcessError:
            pytest.skip(f"{kind} cannot be mounted here")
        shop = shop_at(where / "shop")
        shop.ingest({"f": b"before", "a/shared": b"one" * 50})
        shop.records.close()
        subprocess.run(["umount", where], check=True)
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


def ingest(where: Path, count: int, *strace: str) -> int:
    return run(where, [CHILD, where / "shop", str(count)], strace)


def run(where: Path, child: Sequence[str | Path], strace: Sequence[str] = ()) -> int:
    command: list[str | Path] = [sys.executable, *child]
    if strace:
        command = ["strace", "-f", "-qq", "-o", where.parent / "trace", *strace, *command]
    return subprocess.run(command, capture_output=True).returncode


def artifacts(shop) -> int:
    """Count what the records acknowledge; all of it must be whole."""
    shop.store.recover()
    report = check_store(shop.folder / "store", shop.records)
    assert (report.problems, report.leftovers) == ((), ())
    return report.envelopes


@pytest.mark.parametrize("count", COUNTS)
def test_acknowledged_artifact_survives_a_power_cut(disk: Disk, shop_at, count: int) -> None:
    assert ingest(disk.begin(), count) == 0
    kept = shop_at(disk.cut() / "shop")
    assert artifacts(kept) == 2
    kept.records.close()


def test_power_cut_here_does_lose_what_was_not_synced(disk: Disk, shop_at) -> None:
    # The proof that the test above can fail: the kernel answers each sync without doing it.
    faked = ("-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:retval=0")
    assert ingest(disk.begin(), 60, *faked) == 0
    try:
        kept = shop_at(disk.cut() / "shop")
        found = artifacts(kept)
        kept.records.close()
    except (AssertionError, StorageError):
        found = 0
    assert found < 2


@pytest.mark.parametrize("count", COUNTS)
def test_power_cut_at_any_moment_leaves_whole_artifacts_only(
    disk: Disk, shop_at, count: int
) -> None:
    pick = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    reached = 0
    for call in CALLS:
        for number in sorted(pick.sample(range(1, 13), 4)):
            how = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
            code = ingest(disk.begin(), count, *how)
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


def test_power_cut_while_collecting_takes_nothing_that_is_kept(disk: Disk, shop_at) -> None:
    digest = fill(disk, shop_at)
    seed = int(os.environ.get("CRASH_SEED", "0"))
    pick = random.Random(seed)
    points = [(call, n) for call in COLLECT_CALLS for n in sorted(pick.sample(range(1, 25), 4))]
    reached = 0
    for call, number in [*points, ("none", 0)]:
        where = disk.begin("filled")
        how = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
        reached += run(where, [COLLECT_CHILD, where / "shop"], how if number else ()) != 0
        kept = shop_at(disk.cut() / "shop")
        expect_kept_alone(kept, digest)
        kept.records.close()
        disk.end()
    print(f"{disk.kind}: {reached} cuts while collecting")
    assert reached > 8
