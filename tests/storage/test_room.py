"""Room: what stays free, what is promised once, what is given up on a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore
from storage.blobs import ENVELOPE_NAME
from storage.check import check_store
from storage.collect import Collector, Order
from storage.errors import StorageFullError
from storage.gate import Gate
from storage.layout import Layout
from storage.records import garbage
from storage.records.db import Records
from storage.retention import DAY_MS, Fate, Retention
from storage.room import RELIEF_BYTES, Room, RoomLimits, size_in_words
from storage.source import SourceFile

MB = 1 << 20
FREE = RoomLimits(free_bytes_min=0, free_inodes_min=0, reserve_bytes=4 * MB)
KEEP_NOTHING = Retention(releases=0, branch_artifacts=0, recent_ms=0, grace_ms=0, cache_bytes_max=0)

ADD_SITE = "INSERT INTO site(id, name, default_branch, created_at) VALUES(?,?,?,?)"


def room_at(folder: Path, **limits: int) -> Room:
    return Room(Layout(folder), replace(FREE, **limits))


def needs_root(test: Callable[..., None]) -> Callable[..., None]:
    missing = os.getuid() != 0 or not shutil.which("mkfs.ext4")
    skipped = pytest.mark.skipif(missing, reason="makes and mounts filesystems")
    return pytest.mark.root(skipped(test))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes small disks."""
    mounted: list[Path] = []

    def make(size_bytes: int, *, kind: str = "ext4", options: str = "") -> Path:
        where = tmp_path / f"disk{len(mounted)}"
        where.mkdir()
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},{options}", "tmpfs", where]
        else:
            image = tmp_path / f"image{len(mounted)}"
            with image.open("wb") as file:
                file.truncate(size_bytes)
            quick = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
            subprocess.run(["mkfs.ext4", *quick, *options.split(), image], check=True)
            command = ["mount", "-o", "loop", image, where]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(where)
        return where

    yield make
    for where in mounted:
        subprocess.run(["umount", "-l", where], check=True)


def fill(folder: Path, name: str = "filler") -> None:
    """Take every free byte, and the last ones too."""
    size = 1 << 22
    with (folder / name).open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
        os.fsync(file.fileno())


# -- what stays free ---------------------------------------------------------------------------


def test_room_is_refused_below_what_stays_free_and_the_message_has_the_numbers(
    tmp_path: Path,
) -> None:
    free = room_at(tmp_path).space().free_bytes
    with pytest.raises(StorageFullError, match=r"[0-9.]+ GB of [0-9.]+ GB are free .* kept free"):
        room_at(tmp_path, free_bytes_min=2 * free).check()
    with pytest.raises(StorageFullError, match=r"8\.0 TB more are needed"):
        room_at(tmp_path).check(8 * 10**12)
    with pytest.raises(StorageFullError, match="more files can be made"):
        room_at(tmp_path, free_inodes_min=1 << 40).check()
    room_at(tmp_path).check()


@needs_root
def test_bounds_are_exact_and_promises_count(disk) -> None:
    folder = disk(64 * MB, kind="tmpfs", options="nr_inodes=100")
    space = room_at(folder).space()
    assert space.free_inodes is not None
    exact = room_at(folder, free_bytes_min=space.free_bytes, free_inodes_min=space.free_inodes)
    exact.check()
    for more in ((1, 0), (0, 1)):
        with pytest.raises(StorageFullError):
            exact.check(*more)
    room = room_at(folder, free_bytes_min=0, free_inodes_min=0)
    for _ in range(2):  # what was promised is given back
        with room.claimed(space.free_bytes, space.free_inodes):
            room.check()
            for more in ((1, 0), (0, 1)):
                with pytest.raises(StorageFullError):
                    room.check(*more)


@needs_root
def test_filesystem_without_a_bound_on_files_has_room_for_them(disk) -> None:
    room = room_at(disk(64 * MB, kind="tmpfs", options="nr_inodes=0"))
    assert room.space().free_inodes is None
    room.check(files=1 << 40)


@needs_root
def test_what_only_root_may_take_is_not_free(disk) -> None:
    folder = disk(64 * MB, options="-m 30")
    found = os.statvfs(folder)
    assert found.f_bfree > found.f_bavail
    assert room_at(folder).space().free_bytes == found.f_bavail * found.f_frsize


def test_room_is_promised_once(tmp_path: Path) -> None:
    room = room_at(tmp_path)
    most = room.space().free_bytes * 2 // 3
    with room.claimed(most, 1), pytest.raises(StorageFullError), room.claimed(most, 1):
        pass
    with room.claimed(most, 1):
        pass


def test_promise_ends_with_an_error(tmp_path: Path) -> None:
    room = room_at(tmp_path)
    most = room.space().free_bytes * 2 // 3
    with pytest.raises(ZeroDivisionError), room.claimed(most, 1):
        raise ZeroDivisionError
    room.check(most)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes_are_written_for_people(size: int, words: str) -> None:
    assert size_in_words(size) == words


def test_site_is_charged_for_each_content_once_and_for_nothing_that_expired(world, shop) -> None:
    kept = shop.ingest({"a": b"123", "twice": b"123", "b": b"12345"})
    loose = shop.ingest({"a": b"123", "c": b"1234567"})
    world.release(kept)

    def charged() -> int:
        return garbage.site_bytes(shop.records.reader(), "site_1")

    assert charged() == 3 + 5 + 7
    assert garbage.site_bytes(shop.records.reader(), "site_2") == 0
    world.retention = replace(world.retention, grace_ms=DAY_MS)
    assert [v.artifact.id for v in world.collect().of(Fate.EXPIRES)] == [loose.artifact_id]
    assert charged() == 3 + 5


# -- the reserve -------------------------------------------------------------------------------


@needs_root
def test_reserve_is_given_up_when_the_disk_is_full_and_comes_back(disk) -> None:
    room = room_at(disk(64 * MB))
    assert room.set_aside()
    path = room._layout.reserve
    assert (path.stat().st_size, path.stat().st_blocks * 512 >= 4 * MB) == (4 * MB, True)
    room.relieve_if_full()
    assert path.exists()  # there is no need
    fill(path.parent)
    assert room.space().free_bytes < RELIEF_BYTES
    room.relieve_if_full()
    assert not path.exists()
    assert room.space().free_bytes >= 4 * MB
    assert not room.relieve()  # there is no more
    assert not room.set_aside()
    (path.parent / "filler").unlink()
    assert room.set_aside()


def test_reserve_never_takes_what_is_kept_free(tmp_path: Path) -> None:
    free = room_at(tmp_path).space().free_bytes
    assert not room_at(tmp_path, free_bytes_min=free - 5 * MB).set_aside()
    assert not room_at(tmp_path, reserve_bytes=0).set_aside()
    assert not (tmp_path / "reserve").exists()


def test_reserve_of_another_size_is_made_anew(tmp_path: Path) -> None:
    assert room_at(tmp_path).set_aside()
    assert room_at(tmp_path, reserve_bytes=MB).set_aside()
    assert (tmp_path / "reserve").stat().st_size == MB


def test_reserve_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, bounds[1]))
    try:
        assert not room_at(tmp_path).set_aside()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert list(tmp_path.iterdir()) == []
    assert room_at(tmp_path).set_aside()


def test_what_lies_where_the_reserve_belongs_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "reserve").symlink_to("other")
    room_at(tmp_path).set_aside()
    assert (tmp_path / "other").read_bytes() == b"other"
    (tmp_path / "reserve").unlink(missing_ok=True)
    (tmp_path / "reserve").mkdir()
    room = room_at(tmp_path)
    assert (room.set_aside(), room.relieve()) == (False, False)


def test_reserve_of_a_store_that_is_gone_is_none_and_nothing_fails(tmp_path: Path) -> None:
    room = room_at(tmp_path / "gone")
    assert (room.set_aside(), room.relieve()) == (False, False)
    room.relieve_if_full()


class Blind(Room):
    """Promises whatever is asked for, as if another program took the room in between."""

    def _check(self, size_bytes: int, files: int) -> None:
        pass


# -- a disk that is really full ----------------------------------------------------------------


@needs_root
def test_records_are_written_on_a_full_disk_by_way_of_the_reserve(disk) -> None:
    folder = disk(64 * MB)
    room = room_at(folder)
    with Records.open(folder / "gitd.db", relieve=room.relieve) as records:
        room.set_aside()
        fill(folder)
        for n in range(200):
            records.write(lambda db, n=n: db.execute(ADD_SITE, (n, n, "x" * 4000, 0)))
        assert not (folder / "reserve").exists()
        count = records.reader().execute("SELECT COUNT(*) FROM site").fetchone()[0]
    assert count == 200


@needs_root
def test_records_open_on_a_full_disk_by_way_of_the_reserve(disk) -> None:
    folder = disk(64 * MB)
    room = room_at(folder)
    Records.open(folder / "gitd.db").close()
    room.set_aside()
    fill(folder)
    with pytest.raises(StorageFullError):
        Records.open(folder / "gitd.db")
    with Records.open(folder / "gitd.db", relieve=room.relieve) as records:
        records.write(lambda db: db.execute(ADD_SITE, ("a", "a", "main", 0)))


@needs_root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize("room", [Room, Blind])
def test_full_disk_is_said_leaves_nothing_and_is_cleaned_by_collecting(
    disk, shop_at, kind: str, room: type[Room]
) -> None:
    folder = disk(96 * MB, kind=kind)
    made = shop_at(folder / "shop")
    layout = made.store.layout
    store = ArtifactStore(layout, made.records, room(layout, FREE))
    made.store = store
    assert store.room.set_aside()
    made.records._relieve = store.room.relieve
    for _ in range(3):
        made.ingest({f"f{m}": os.urandom(MB // 4) for m in range(20)})
    fill(folder)
    with pytest.raises(StorageFullError):
        made.ingest({f"f{m}": os.urandom(MB // 4) for m in range(40)})
    report = check_store(layout.root, made.records)
    assert (report.problems, report.leftovers) == ((), ())
    assert list(layout.tmp.iterdir()) == []
    done = Collector(store, made.records, KEEP_NOTHING).run(Order(is_hurried=True))
    assert (done.trees, done.blobs, done.size_bytes) == (3, 60, 15 * MB)
    assert store.room.space().free_bytes >= 15 * MB
    made.ingest({f"f{m}": os.urandom(MB // 4) for m in range(20)})
    report = check_store(layout.root, made.records)
    assert (report.problems, report.leftovers) == ((), ())


STAGING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_shop
from storage.artifacts import ArtifactStore
from storage.room import Room, RoomLimits
shop = make_shop(Path(sys.argv[2]))
layout = shop.store.layout
shop.store = ArtifactStore(layout, shop.records, Room(layout, RoomLimits(0, 0, 0)))
shop.ingest({f"f{n}": os.urandom(1 << 20) for n in range(20)})
"""


@needs_root
@pytest.mark.timeout(60)
def test_start_on_a_full_disk_removes_what_fills_it(disk, shop_at) -> None:
    """A dead ingest had written its manifest, and there is no reserve for a commit."""
    folder = disk(64 * MB, kind="tmpfs")
    made = shop_at(folder / "shop")
    layout = made.store.layout
    with Gate(layout).collecting():  # so that it places nothing
        command = [sys.executable, "-c", STAGING, Path(__file__).parent, made.folder]
        with subprocess.Popen(command) as process:
            while not list(layout.tmp.glob(f"*/{ENVELOPE_NAME}")):
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
    fill(folder)
    with pytest.raises(StorageFullError):
        made.records.settle()
    recovered = made.store.recover()
    assert (recovered.leases, recovered.stuck) == (1, ())
    assert list(layout.tmp.iterdir()) == []
    assert made.store.room.space().free_bytes >= 20 * MB - MB
    assert check_store(layout.root, made.records).leftovers == ()


@needs_root
@pytest.mark.parametrize("room", [Room, Blind])
def test_disk_without_inodes_is_said_and_leaves_nothing(disk, shop_at, room: type[Room]) -> None:
    made = shop_at(disk(64 * MB, kind="tmpfs", options="nr_inodes=1400") / "shop")
    layout = made.store.layout
    made.store = ArtifactStore(layout, made.records, room(layout, FREE))
    kept = made.ingest({"kept": b"kept"})
    said = "more files can be made" if room is Room else "the disk is full"
    with pytest.raises(StorageFullError, match=said):
        made.ingest({f"f{n}": b"%d" % n for n in range(900)})
    assert made.verify(kept)
    report = check_store(layout.root, made.records)
    assert (report.problems, report.leftovers) == ((), ())
    assert Collector(made.store, made.records, KEEP_NOTHING).run(Order(is_hurried=True)).blobs == 1


@needs_root
def test_many_at_once_leave_free_what_is_kept_free(disk, shop_at) -> None:
    folder = disk(96 * MB)
    made = shop_at(folder / "shop")
    layout = made.store.layout
    limits = replace(FREE, free_bytes_min=24 * MB)
    made.store = store = ArtifactStore(layout, made.records, Room(layout, limits))
    seen: list[int] = []
    outcomes: list[bool] = []

    def tree(number: int) -> Iterator[SourceFile]:
        for n in range(8):
            data = bytes([number, n]) * (MB // 2)
            seen.append(store.room.space().free_bytes)
            yield SourceFile(b"f%d" % n, MB, executable=False, read=lambda data=data: iter([data]))

    def take_in(number: int) -> None:
        try:
            made.ingest(tree(number))
            outcomes.append(True)
        except StorageFullError:
            outcomes.append(False)

    threads = [threading.Thread(target=take_in, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in outcomes
    assert False in outcomes
    assert min(seen) >= 24 * MB - MB  # the filesystem's own
    report = check_store(layout.root, made.records)
    assert (report.problems, report.leftovers) == ((), ())
