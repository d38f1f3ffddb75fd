"""Files that are put in place whole: their drafts, and who may remove them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.files import (
    Lease,
    open_regular,
    read_bounded,
    read_sized,
    remove_drafts,
    sync_directory,
    sync_file,
    sync_in_order,
    sync_together,
    write_atomic,
)
from tests.crashing import needs_strace

DRAFT = ".key.0123456789ab"


def test_draft_of_a_dead_writer_goes_and_other_files_stay(tmp_path: Path) -> None:
    for name in (DRAFT, "key", ".hidden", ".key.0123", ".key.0123456789AB"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".folder.0123456789ab").mkdir()
    (tmp_path / ".link.0123456789ab").symlink_to("key")
    assert remove_drafts(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 6
    assert not (tmp_path / DRAFT).exists()


def test_draft_of_a_living_writer_stays(tmp_path: Path) -> None:
    with (tmp_path / DRAFT).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert remove_drafts(tmp_path) == 0
    assert remove_drafts(tmp_path) == 1


def test_draft_that_was_put_in_place_without_replacing_is_removed_alone(tmp_path: Path) -> None:
    (tmp_path / DRAFT).write_bytes(b"x")
    os.link(tmp_path / DRAFT, tmp_path / "key")
    assert remove_drafts(tmp_path) == 1
    assert (tmp_path / "key").read_bytes() == b"x"


def test_bound_takes_no_memory_where_a_file_is_small(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size_bytes in (0, 1, 100_000):
        path.write_bytes(b"x" * size_bytes)
        tracemalloc.start()
        try:
            assert read_bounded(path, size_bytes_max=64 << 20) == b"x" * size_bytes
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()
    assert read_bounded(path, size_bytes_max=100_000) == b"x" * 100_000
    with pytest.raises(OSError, match="longer than it may be"):
        read_bounded(path, size_bytes_max=99_999)


WRITE = """
import sys
from pathlib import Path
from storage.files import write_atomic
assert write_atomic(Path(sys.argv[1]), b"x", mode=0o600, replace=sys.argv[2] == "replace")
"""


@needs_strace
@pytest.mark.parametrize("how", ["replace", "keep"])
def test_file_is_synced_before_it_has_its_name_and_that_after(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "file", tmp_path / "trace"
    calls = "fsync,?rename,?renameat,?renameat2,?link,?linkat"
    traced = ("strace", "-y", "-qq", "-e", f"trace={calls}", "-o", trace)
    subprocess.run([*traced, sys.executable, "-c", WRITE, path, how], check=True)
    before, _, after = trace.read_text().partition(f', "{path}"')
    assert re.search(rf"fsync\(\d+<{tmp_path}/\.file\.\w+>\) += 0", before)
    assert re.search(rf"fsync\(\d+<{tmp_path}>\) += 0", after)


def test_what_is_to_be_durable_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, synced = os.fsync, []

    def note(fd: int) -> None:
        synced.append(path_of(fd).name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")
    sync_directory(tmp_path)
    sync_file(paths[0])
    assert synced == [tmp_path.name, "a"]
    with ThreadPoolExecutor(2) as threads:
        for how in (None, threads):
            synced.clear()
            sync_together([str(path) for path in paths], how)
            assert sorted(synced) == ["a", "b", "c"]
    synced.clear()
    assert sync_in_order(paths, lambda: list(synced)) == []
    assert synced == ["a", "b", "c"]


@pytest.mark.parametrize("size_bytes", [0, 1, 3, 4, 1000])
def test_what_the_system_gives_and_takes_in_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    read, write = os.read, os.write
    monkeypatch.setattr(os, "read", lambda fd, count: read(fd, min(count, 3)))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    path, data = tmp_path / "file", bytes(n % 251 for n in range(size_bytes))
    write_atomic(path, data, mode=0o600)
    assert read_bounded(path, size_bytes_max=size_bytes) == data
    for sized, expected in ((size_bytes, data), (size_bytes + 1, data), (1, data[:2])):
        fd = open_regular(path)
        assert read_sized(fd, sized) == expected
        os.close(fd)


def test_what_is_no_file_is_not_read_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    for name, code in (("pipe", errno.EINVAL), ("folder", errno.EINVAL), ("link", errno.ELOOP)):
        with pytest.raises(OSError) as raised:
            read_bounded(tmp_path / name, size_bytes_max=1)
        assert raised.value.errno == code


# -- what somebody else takes for a dead owner's, before it could be locked --------------------


def once_before(monkeypatch: pytest.MonkeyPatch, module, name: str, first) -> None:
    """Do something before the first call of a function of the system."""
    real = getattr(module, name)

    def call(*args: object) -> object:
        monkeypatch.setattr(module, name, real)
        first(*args)
        return real(*args)

    monkeypatch.setattr(module, name, call)


def path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def test_draft_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_before(monkeypatch, fcntl, "flock", lambda fd, _: remove_drafts(path_of(fd).parent))
    assert write_atomic(tmp_path / "file", b"x", mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"x"


def test_lease_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seize(fd: int, _: int) -> None:
        seized = Lease.seize(path_of(fd))
        assert seized is not None
        seized.release()

    once_before(monkeypatch, fcntl, "flock", seize)
    lease = Lease.take(tmp_path)
    assert list(tmp_path.iterdir()) == [Path(lease.path)]
    lease.release()
    once_before(monkeypatch, os, "open", lambda path, _: Path(path).rmdir())
    lease = Lease.take(tmp_path)
    assert list(tmp_path.iterdir()) == [Path(lease.path)]
    lease.release()


def test_lease_of_a_dead_owner_alone_is_seized(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path)
    (tmp_path / "link").symlink_to(lease.path)
    (tmp_path / "file").write_bytes(b"x")
    assert [Lease.seize(Path(lease.path)), Lease.seize(tmp_path / "gone")] == [None, None]
    lease.is_abandoned = True
    lease.release()
    assert [Lease.seize(tmp_path / "link"), Lease.seize(tmp_path / "file")] == [None, None]
    seized = Lease.seize(Path(lease.path))
    assert seized is not None
    seized.release()
    assert not Path(lease.path).exists()


def test_draft_is_locked_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[int] = []
    once_before(monkeypatch, os, "fsync", lambda fd: removed.append(remove_drafts(tmp_path)))
    write_atomic(tmp_path / "file", b"x", mode=0o600)
    assert removed == [0]


def test_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_atomic(path, b"one", mode=0o400)
    assert not write_atomic(path, b"two", mode=0o400, replace=False)
    assert path.read_bytes() == b"one"
    assert write_atomic(path, b"three", mode=0o440)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"three", 0o440)
    assert list(tmp_path.iterdir()) == [path]
