"""Writes of the database that are refused for want of room, in ways that it calls otherwise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.check import check_store
from tests.crashing import Child, needs_strace

FOLDER = Path(__file__).parent
HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("BEGIN")
db.execute("SELECT COUNT(*) FROM site").fetchall()
print("held", flush=True)
sys.stdin.read()
"""
# How many frames of the log the first part of the database's shared file has place for.
# Source: https://www.sqlite.org/walformat.html, 2.4.
FIRST_FRAMES = 4062
FRAME_BYTES = 4096 + 24

pytestmark = needs_strace


@contextmanager
def held(database: Path) -> Iterator[None]:
    """Another process reads the database: its log goes on growing, and its shared file is there.

    The process is killed, so that nobody closes the database in order.
    """
    command = [sys.executable, "-c", HOLDER, database]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


@pytest.mark.parametrize("has_reserve", [True, False])
def test_quota_that_is_used_up_frees_the_reserve(
    shop_at: Callable, scratch: Path, *, has_reserve: bool
) -> None:
    shop = shop_at(scratch / "shop")
    if has_reserve:
        shop.store.layout.reserve.write_bytes(b"reserve")
    refused = ("-e", "inject=pwrite64:error=EDQUOT:when=1", "-e", "inject=fallocate:error=EDQUOT")
    with held(shop.folder / "gitd.db"):
        child = Child(FOLDER / "write_child.py", (str(shop.folder),))
        done = child.run(scratch / "trace", "-e", "trace=pwrite64,fallocate", *refused)
        (count,) = shop.records.reader().execute("SELECT COUNT(*) FROM site").fetchone()
    assert (scratch / "trace").read_text().count("(INJECTED)") == 2
    if has_reserve:
        assert (done.returncode, count) == (0, 1), done.stdout
        assert not shop.store.layout.reserve.exists()
    else:
        assert (done.returncode, count) == (3, 0)
        assert done.stdout.startswith(
            "StorageFullError: the database: the disk is full, or a quota"
        )


def test_disk_error_that_is_no_lack_of_room_frees_nothing(shop_at, scratch: Path) -> None:
    shop = shop_at(scratch / "shop")
    shop.store.layout.reserve.write_bytes(b"reserve")
    with held(shop.folder / "gitd.db"):
        child = Child(FOLDER / "write_child.py", (str(shop.folder),))
        faults = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EIO:when=1")
        done = child.run(scratch / "trace", *faults)
    assert (done.returncode, done.stdout.partition(":")[0]) == (3, "RecordsError")
    assert shop.store.layout.reserve.exists()


def fill_log(shop) -> None:
    """Write until the log has all but filled the first part of the shared file."""
    log = shop.folder / "gitd.db-wal"
    number = 0
    while (frames := (log.stat().st_size - 32) // FRAME_BYTES) < FIRST_FRAMES - 10:
        number += 1
        size = 1 if frames > FIRST_FRAMES - 100 else 100_000
        shop.records.write(
            lambda db, row=(number, f"{number}" + "x" * size): db.execute(
                "INSERT INTO site(id, name, default_branch, created_at) VALUES(?,?,'main',0)", row
            )
        )
    assert frames < FIRST_FRAMES


def test_commit_that_is_told_as_a_full_disk_and_has_happened_loses_no_file(
    shop_at, scratch: Path
) -> None:
    shop = shop_at(scratch / "shop")
    shop.ingest({"before": b"before"})
    with held(shop.folder / "gitd.db"):
        fill_log(shop)
        shop.records.close()
        child = Child(FOLDER.parent / "ingest_child.py", (str(shop.folder),))
        shared = ("-P", f"{shop.folder}/gitd.db-shm", "-e", "trace=pwrite64")
        done = child.run(scratch / "trace", *shared, "-e", "inject=pwrite64:error=ENOSPC")
        assert (done.returncode, done.stdout.partition(":")[0]) == (3, "StorageFullError")
        assert "(INJECTED)" in (scratch / "trace").read_text()
    again = shop_at(shop.folder)  # finds the commit in the log
    again.store.recover()
    report = check_store(shop.folder / "store", again.records)
    assert (report.problems, report.leftovers, report.trees) == ((), (), 2)
    assert list(again.store.layout.tmp.iterdir()) == []
