"""Records: durable, grouped, isolated changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage.errors import RecordConflictError, RecordsError, StorageFullError
from storage.records import integrity
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS
from tests.spoiling import damage_index

ADD_SITE = "INSERT INTO site(id, name, default_branch, created_at) VALUES(?,?,?,?)"


@pytest.fixture
def records(tmp_path: Path):
    opened = Records.open(tmp_path / "gitd.db")
    yield opened
    opened.close()


def add_site(name: str):
    def change(db: sqlite3.Connection) -> str:
        db.execute(ADD_SITE, (f"site_{name}", name, "main", 0))
        return name

    return change


def names(records: Records) -> list[str]:
    return [row["name"] for row in records.reader().execute("SELECT name FROM site ORDER BY name")]


def test_reader_sees_a_change_whose_write_returned(records: Records) -> None:
    assert records.write(add_site("a")) == "a"
    assert names(records) == ["a"]


def test_failing_change_takes_nothing_else_of_its_group_with_it(records: Records) -> None:
    def fails_halfway(db: sqlite3.Connection) -> None:
        add_site("half")(db)
        raise ValueError("no")

    changes = [add_site("a"), fails_halfway, add_site("b"), add_site("a"), add_site("c")]
    futures = [records.submit(change) for change in changes]
    wait(futures)
    assert [type(f.exception()).__name__ for f in futures] == [
        "NoneType",
        "ValueError",
        "NoneType",
        "RecordConflictError",
        "NoneType",
    ]
    assert names(records) == ["a", "b", "c"]


def test_reader_cannot_write(records: Records) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        records.reader().execute("DELETE FROM site")


def test_foreign_keys_are_kept(records: Records) -> None:
    with pytest.raises(RecordConflictError):
        records.write(
            lambda db: db.execute("INSERT INTO branch_route VALUES('site_x', 0, '*', 'live')")
        )


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    first = Records.open(tmp_path / "gitd.db")
    first.write(add_site("a"))
    second = Records.open(tmp_path / "gitd.db")
    assert names(second) == ["a"]
    first.close()
    second.close()
    with pytest.raises(RecordsError, match="closed"):
        second.write(add_site("b"))


async def test_change_runs_and_writing_goes_on_when_whoever_waits_is_canceled(
    records: Records,
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        began.set()
        go_on.wait(30)
        add_site("slow")(db)

    waiting = asyncio.wrap_future(records.submit(slow))
    queued = asyncio.wrap_future(records.submit(add_site("queued")))
    await asyncio.to_thread(began.wait, 30)
    waiting.cancel()
    queued.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.to_thread(records.write, add_site("z"))
    assert names(records) == ["queued", "slow", "z"]


def test_database_that_was_closed_is_whole_without_its_log(tmp_path: Path) -> None:
    records = Records.open(tmp_path / "gitd.db")
    has_read, is_over = threading.Event(), threading.Event()

    def read_and_stay() -> None:
        names(records)
        has_read.set()
        is_over.wait()

    reader = threading.Thread(target=read_and_stay)
    reader.start()
    has_read.wait()
    records.write(add_site("a"))
    records.close()
    copy = shutil.copy(tmp_path / "gitd.db", tmp_path / "copy.db")
    is_over.set()
    reader.join()
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT name FROM site").fetchall() == [("a",)]


def test_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    Records.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO _sqlite_migrations(migration_set, name, applied_at)"
            " VALUES ('gitd', 'of_next_year', '2027-01-01')"
        )
    db.close()
    with pytest.raises(RecordsError, match=r"newer gitd.*of_next_year.*install that version"):
        Records.open(path)


STEPS_INDEX = "idx__sqlite_migrations_migration_set_name"


@pytest.mark.parametrize(
    ("key", "bit"),
    [(b"sites", 0x01), (b"\x17\tgitdsites", 0x01), (b"gitdsites", 0x08)],
    ids=["unknown", "no text", "not done"],
)
def test_damaged_index_of_the_steps_holds_up_no_start(tmp_path: Path, key: bytes, bit: int) -> None:
    path = tmp_path / "gitd.db"
    with Records.open(path) as made:
        made.write(add_site("a"))
    damage_index(path, STEPS_INDEX, key, bit)
    with Records.open(path) as records:
        assert names(records) == ["a"]
        assert STEPS_INDEX in str(integrity.faults(records.reader()))


def test_no_step_is_run_by_a_damaged_index(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        MIGRATIONS.apply(Database(db), stop_before="makers_of_keys")
    damage_index(path, STEPS_INDEX, b"gitdsites", 0x08)
    for _ in range(2):
        with pytest.raises(RecordsError, match=r"damaged.*restore a backup"):
            Records.open(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert "created_by" not in str(db.execute("PRAGMA table_info(api_key)").fetchall())
        db.execute("REINDEX")
    Records.open(path).close()


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gitd.db").write_bytes(b"not a database, and long enough to be one" * 40)
    with pytest.raises(RecordsError):
        Records.open(tmp_path / "gitd.db")


WRITER = f"""
ADD_SITE = {ADD_SITE!r}
import sqlite3, sys
from pathlib import Path
from storage.records import integrity
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS
from tests.spoiling import damage_index
records = Records.open(Path(sys.argv[1]))
for n in range(100000):
    row = (f"s{{n}}", f"{{n}}", "main", 0)
    records.write(lambda db: db.execute(ADD_SITE, row))
    print(n, flush=True)
"""


def test_acknowledged_changes_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    for _ in range(20):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = 19 + len(writer.stdout.read().split())
    writer.stdout.close()
    writer.wait()
    records = Records.open(path)
    kept = {int(name) for name in names(records)}
    records.close()
    assert set(range(acknowledged + 1)) <= kept


def test_full_disk_is_told_apart_from_other_trouble_and_writing_goes_on(records: Records) -> None:
    def fill(db: sqlite3.Connection) -> None:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count={pages}")
        try:
            add_site("x" * 1_000_000)(db)
        finally:
            db.execute("PRAGMA max_page_count=1000000")

    with pytest.raises(StorageFullError):
        records.write(fill)
    records.write(add_site("a"))
    assert names(records) == ["a"]


def test_room_that_cannot_be_made_takes_no_writer_down(tmp_path: Path) -> None:
    def relieve() -> bool:
        raise PermissionError

    def fill(db: sqlite3.Connection) -> None:
        raise StorageFullError("no room")

    with Records.open(tmp_path / "gitd.db", relieve=relieve) as records:
        with pytest.raises(PermissionError):
            records.submit(fill).result(30)
        assert records.submit(add_site("a")).result(30) == "a"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_writer_that_ends_leaves_nobody_waiting(records: Records) -> None:
    has_begun, goes_on = threading.Event(), threading.Event()

    def end(db: sqlite3.Connection) -> None:
        has_begun.set()
        goes_on.wait(30)
        raise SystemExit

    ending = records.submit(end)
    assert has_begun.wait(30)
    behind = records.submit(add_site("a"))
    goes_on.set()
    with pytest.raises(RecordsError, match="closed"):
        ending.result(30)
    with pytest.raises(RecordsError, match="closed"):
        behind.result(30)
    with pytest.raises(RecordsError, match="closed"):
        records.write(add_site("b"))


def test_database_that_cannot_be_opened_by_a_reader_is_told_as_one_of_ours(
    records: Records, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.db"
    (tmp_path / "gitd.db").rename(moved)
    (tmp_path / "gitd.db").mkdir()
    with ThreadPoolExecutor(1) as another, pytest.raises(RecordsError, match="unable to open"):
        another.submit(records.reader).result(30)


def test_close_takes_no_thread_down_that_reads_meanwhile(tmp_path: Path) -> None:
    """In a process of its own: it would be the process that ends."""
    script = f"""
import threading, time
from pathlib import Path
from storage.records import integrity
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS
from tests.spoiling import damage_index

COUNT = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000)"
    " SELECT x FROM n"
)
for number in range(10):
    records = Records.open(Path({str(tmp_path)!r}, f"{{number}}.db"))
    is_over, counts = threading.Event(), []

    def read():
        while not is_over.is_set():
            assert len(records.reader().execute(COUNT).fetchall()) == 2000
            counts.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    records.close()
    before, end = len(counts), time.monotonic() + 20
    while len(counts) == before and time.monotonic() < end:
        time.sleep(0.01)
    is_over.set()
    for thread in threads:
        thread.join()
    assert len(counts) > before
print("well")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
