"""What is written on its way into the store or a backup, until it is durable."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.files import SYNC_EACH_COUNT_MAX, Lease, Unsynced
from tests.crashing import Child, needs_strace
from tests.storage.conftest import make_shop

STAGED = re.compile(r"/store/tmp/[0-9a-f]{16}/\w+")
PLACED = re.compile(r'rename.*[<"](?P<folder>/[^<">]*/store/(?:blobs|trees|attest)/\w\w)[>/]')
UNPACKED = re.compile(r"/\.release\.partial-\w{8}/[\w/]+(?=>)")


def descriptors(lease: Lease) -> int:
    """How many of a lease and its files are open here. Of others some may close at any moment."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(fd.readlink()).startswith(lease.path)
    return found


def calls_by_path(trace: Path, paths: re.Pattern[str]) -> dict[str, list[str]]:
    happened: dict[str, list[str]] = {}
    for line in trace.read_text().splitlines():
        if (path := paths.search(line)) and "resumed" not in line:
            happened.setdefault(path[0], []).append(line.split()[1].partition("(")[0])
    return happened


@needs_strace
def test_file_that_is_synced_by_itself_is_open_since_it_was_written(scratch: Path) -> None:
    """One that nobody has open can be forgotten, and what went wrong with it."""
    make_shop(scratch / "shop").records.close()
    child = Child(Path(__file__).with_name("ingest_child.py"), (str(scratch / "shop"),))
    trace = scratch / "trace"
    done = child.run(trace, "-y", "-e", "trace=openat,close,fsync")
    assert done.returncode == 0, done.stdout
    happened = calls_by_path(trace, STAGED)
    synced = {path: calls for path, calls in happened.items() if "fsync" in calls}
    assert len(synced) == 4 + 2
    assert set(map(tuple, synced.values())) == {("openat", "fsync", "close")}


@needs_strace
def test_every_name_is_synced_before_the_records_count_on_it(scratch: Path) -> None:
    make_shop(scratch / "shop").records.close()
    child = Child(Path(__file__).with_name("ingest_child.py"), (str(scratch / "shop"),))
    trace = scratch / "trace"
    calls = "fsync,fdatasync,?rename,?renameat,?renameat2"
    done = child.run(trace, "-y", "-e", f"trace={calls}")
    assert done.returncode == 0, done.stdout
    happened = trace.read_text()
    placed = {match["folder"]: match.end() for match in PLACED.finditer(happened)}
    assert {Path(folder).parent.name for folder in placed} == {"blobs", "trees", "attest"}
    assert len(placed) > 3
    for folder, at in placed.items():
        committed = happened.index("gitd.db-wal>", at)
        assert f"<{folder}>" in happened[at:committed], folder


def unpacking(scratch: Path, files: dict[str, bytes]) -> Child:
    """A program that unpacks them to `release`, durably."""
    shop = make_shop(scratch / "shop")
    ingested = shop.ingest(files)
    shop.records.close()
    words = (str(ingested.digest), ingested.envelope_sha256, str(scratch / "release"))
    return Child(Path(__file__).with_name("unpack_child.py"), (str(shop.store.layout.root), *words))


@needs_strace
@pytest.mark.parametrize("count", [3, 30])
def test_unpacked_folder_is_synced_whole_before_it_has_its_name_and_that_after(
    scratch: Path, count: int
) -> None:
    child = unpacking(scratch, {f"d{n}/f": b"%d" % n for n in range(count)})
    trace = scratch / "trace"
    done = child.run(trace, "-y", "-e", "trace=fsync,syncfs,?rename,?renameat,?renameat2")
    assert done.returncode == 0, done.stdout
    before, _, after = trace.read_text().partition(f'"{scratch}/release")')
    assert re.search(rf"fsync\(\d+<{scratch}>\) += 0", after)
    synced = set(re.findall(r"fsync\(\d+<.*?/\.release\.partial-\w{8}(.*?)>\) += 0", before))
    if count == 3:
        assert synced == {"", *(f"/d{n}{f}" for n in range(3) for f in ("", "/f"))}
    else:
        assert re.search(r"syncfs\(\d+<.*/\.release\.partial-\w{8}>\) += 0", before)


@needs_strace
def test_file_of_a_durable_unpacking_is_open_until_it_is_synced(scratch: Path) -> None:
    child = unpacking(scratch, {"a": b"a", "d/b": b"b", "d/c*": b"c"})
    trace = scratch / "trace"
    done = child.run(trace, "-y", "-e", "trace=openat,close,fsync")
    assert done.returncode == 0, done.stdout
    happened = calls_by_path(trace, UNPACKED)
    assert len(happened) == 3 + 1
    assert set(map(tuple, happened.values())) == {("openat", "fsync", "close")}


@pytest.mark.parametrize("count", [1, SYNC_EACH_COUNT_MAX, SYNC_EACH_COUNT_MAX + 1, 100])
@pytest.mark.parametrize("is_synced", [True, False])
def test_few_files_stay_open_and_none_for_longer_than_the_lease(
    tmp_path: Path, count: int, *, is_synced: bool
) -> None:
    other = (tmp_path / "other").open("wb")
    lease = Lease.take(tmp_path)
    unsynced = Unsynced(lease)
    for number in range(count):
        unsynced.add(os.open(f"{lease.path}/{number}", os.O_WRONLY | os.O_CREAT))
    other.close()
    kept = count if count <= SYNC_EACH_COUNT_MAX else 0
    assert descriptors(lease) == 1 + kept
    assert unsynced.are_many == (count > SYNC_EACH_COUNT_MAX)
    if is_synced:
        unsynced.sync()
        assert descriptors(lease) == 1
        assert not unsynced.are_many
    lease.release()
    assert descriptors(lease) == 0


def test_no_sync_goes_on_after_one_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lease closes then, somebody else may open at once, under the same number."""
    has_failed = threading.Event()
    synced: list[str] = []

    def fsync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "0":
            has_failed.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        assert has_failed.wait(20)
        time.sleep(0.2)
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))

    lease = Lease.take(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        unsynced = Unsynced(lease, threads)
        for number in range(3):
            unsynced.add(os.open(f"{lease.path}/{number}", os.O_WRONLY | os.O_CREAT))
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output"):
            unsynced.sync()
        lease.release()
        others = [os.open(tmp_path / f"other{n}", os.O_WRONLY | os.O_CREAT) for n in range(4)]
    for fd in others:
        os.close(fd)
    assert sorted(synced) == [f"{lease.path}/1", f"{lease.path}/2"]
