"""Which of the files that were unpacked are what they were, by their marks alone."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from hooks.builds.sources.originals import Originals, are_mapped_writes_shown
from hooks.builds.sources.tree import UNCHANGED_BYTES_MAX, find_output

TEXT = b"one and the same"


@pytest.fixture
def disk():
    """A folder on a disk that shows what is written, which is what the marks are about."""
    with tempfile.TemporaryDirectory(prefix="gitd-test-", dir="/var/tmp") as name:
        if not are_mapped_writes_shown(Path(name).stat().st_dev, Path(name)):
            pytest.skip("/var/tmp is on no such disk")
        yield Path(name)


@pytest.fixture
def memory():
    """A folder in memory."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        pytest.skip("no /dev/shm")
    with tempfile.TemporaryDirectory(prefix="gitd-test-", dir=shm) as name:
        yield Path(name)


@pytest.fixture
def noted(disk):
    """A file, and what was noted of it before anybody else could write."""
    path = disk / "file"
    path.write_bytes(TEXT)
    originals = Originals()
    originals.note(b"file", path.stat())
    originals.seal(disk)
    return path, originals


def write_with_old_times(path):
    before = path.stat()
    path.write_bytes(TEXT.upper())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_mapped(path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = ord("O")


def read_and_write_mapped(path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped.find(TEXT) == 0
        mapped[0] = ord("O")


def write_mapped_by_another_name(path):
    other = path.with_name("other")
    os.link(path, other)
    write_mapped(other)
    other.unlink()


def replace_by_a_copy(path):
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def put_away_and_back(path):
    path.rename(path.with_name("away"))
    path.with_name("away").rename(path)


def remove_and_make_again(path):
    path.unlink()
    path.write_bytes(TEXT)


def test_file_that_nobody_touched_is_known(noted) -> None:
    path, originals = noted
    path.read_bytes()
    assert originals.has(b"file", path.stat())
    assert not originals.has(b"other", path.stat())


@pytest.mark.parametrize(
    "touch",
    [
        write_with_old_times,
        write_mapped,
        read_and_write_mapped,
        write_mapped_by_another_name,
        replace_by_a_copy,
        put_away_and_back,
        remove_and_make_again,
        lambda path: path.chmod(0o755),
    ],
)
def test_file_that_somebody_touched_is_none_that_is_known(noted, touch) -> None:
    path, originals = noted
    touch(path)
    assert not originals.has(b"file", path.stat())


def test_folders_that_changed_places_hold_no_file_that_is_known(disk) -> None:
    originals = Originals()
    for name in ("a", "b"):
        (disk / name).mkdir()
        (disk / name / "x").write_bytes(TEXT)
        originals.note(f"{name}/x".encode(), (disk / name / "x").stat())
    originals.seal(disk)
    (disk / "a").rename(disk / "c")
    (disk / "b").rename(disk / "a")
    assert not originals.has(b"a/x", (disk / "a/x").stat())


def test_file_of_the_moment_that_others_may_write_from_is_in_doubt(disk) -> None:
    originals = Originals()
    originals.seal(disk)
    path = disk / "file"
    path.write_bytes(TEXT)
    originals.note(b"file", path.stat())
    assert not originals.has(b"file", path.stat())


def test_file_in_memory_is_none_that_is_known_where_a_write_would_not_show(memory) -> None:
    path = memory / "file"
    path.write_bytes(TEXT)
    originals = Originals()
    originals.note(b"file", path.stat())
    originals.seal(memory)
    read_and_write_mapped(path)
    assert not originals.has(b"file", path.stat())


def test_a_disk_is_tried_once(disk) -> None:
    device = disk.stat().st_dev
    assert are_mapped_writes_shown(device, disk)
    assert are_mapped_writes_shown(device, disk / "no such folder")


def test_files_that_were_taken_over_a_moment_ago_are_told_too(disk):
    for number in range(50):
        path = disk / str(number)
        path.write_bytes(TEXT)
        first, second = Originals(), Originals()
        first.note(b"file", path.stat())
        second.take_over(first)
        second.seal(disk)
        assert second.has(b"file", path.stat())


def test_files_of_which_there_are_too_many_to_be_named_are_sent_whole(disk, unpacked):
    folder = "/".join("d" * 250 for _ in range(7))
    names = [f"{folder}/{number:0250}" for number in range(UNCHANGED_BYTES_MAX // 2000 + 9)]
    (disk / "app" / folder).mkdir(parents=True)
    originals = Originals()
    for name in names:
        path = disk / "app" / name
        path.write_bytes(TEXT)
        originals.note(name.encode(), path.stat())
    originals.seal(disk)
    output = find_output(
        disk / "app",
        ".",
        size_bytes_max=1 << 30,
        is_shown=None,
        is_stopped=lambda: False,
        originals=originals,
    )
    named = [name.decode() for name in output.unchanged]
    assert len(named) == UNCHANGED_BYTES_MAX // len(names[0]) < len(names)
    sent = unpacked(b"".join(output.chunks()))
    assert sorted([*named, *(name for name, file in sent.items() if file is not None)]) == names
