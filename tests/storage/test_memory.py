"""What taking in, verifying and unpacking hold of memory: a bound, however large the tree is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("memory_child.py")


def grown_kib(tmp_path: Path, folder: Path) -> int:
    """By how much a process grew that did it all."""
    command = [sys.executable, CHILD, tmp_path / "shop", folder]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    "count",
    [5_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
def test_files_of_one_folder_take_some_hundred_bytes_each(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}.html").write_bytes(b"%d" % number)
    grown = grown_kib(tmp_path, folder)
    print(f"{count} files: {grown} KiB")
    assert grown < (16 << 10) + 2 * count


def test_file_is_never_held_whole(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    with (folder / "large").open("wb") as large:
        large.truncate(192 << 20)
    grown = grown_kib(tmp_path, folder)
    print(f"192 MiB: {grown} KiB")
    assert grown < 32 << 10
