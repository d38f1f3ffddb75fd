"""Files that are put in place whole: their drafts, and who may remove them."""

from __future__ import annotations

import fcntl
import os
import tracemalloc
from pathlib import Path

import pytest

from storage.files import read_bounded, remove_drafts, write_atomic

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


def test_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_atomic(path, b"one", mode=0o400)
    assert not write_atomic(path, b"two", mode=0o400, replace=False)
    assert path.read_bytes() == b"one"
    assert write_atomic(path, b"three", mode=0o440)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"three", 0o440)
    assert list(tmp_path.iterdir()) == [path]
