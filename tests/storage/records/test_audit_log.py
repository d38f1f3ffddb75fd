"""The audit log's chain: what is added, what is forgotten, and what others change behind it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage.audit_chain import BEFORE_ALL, check_lines, in_order
from storage.errors import AuditLogInvalidError, RecordConflictError
from storage.model import SYSTEM, Action, AuditEntry
from storage.records import audit_log
from storage.records.db import Records, savepoint
from storage.records.migrations import MIGRATIONS


def entry(number: int, *, at: int | None = None) -> AuditEntry:
    return AuditEntry(
        id=f"evt_{number:03}",
        created_at=number if at is None else at,
        actor=SYSTEM,
        action=Action.SITE_CREATED,
        target=f"site_{number} \u00fc",
        site_id="site_1",
        env_id=None,
        address=None,
        request_id=None,
    )


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records.open(tmp_path / "gitd.db")
    yield made
    made.close()


def fill(records: Records, *numbers: int) -> None:
    for number in numbers:
        records.write(lambda db, number=number: audit_log.add(db, entry(number)))


def lines_of(records: Records) -> list[Mapping[str, object]]:
    """As the API shows them, the oldest first."""
    page = audit_log.page(
        records.reader(), site_id=None, env_id=None, before=None, limit_count=1000
    )
    shown = [
        {
            **audit_log._shown(each, each.link.sequence, each.link.previous),
            "digest": str(each.link.digest),
        }
        for each in page.items
        if each.link is not None
    ]
    return list(in_order(shown))


def test_lines_follow_from_each_other_in_the_order_of_their_transactions(records: Records) -> None:
    """Not in that of their ids: a command beside the server has a clock of its own."""
    fill(records, 5, 2, 9)
    lines = lines_of(records)
    assert [(line["id"], line["sequence"]) for line in lines] == [
        ("evt_005", 1),
        ("evt_002", 2),
        ("evt_009", 3),
    ]
    assert lines[0]["previous"] == str(BEFORE_ALL)
    assert [line["previous"] for line in lines[1:]] == [line["digest"] for line in lines[:-1]]
    assert audit_log.check(records.reader()).faults == []


def test_change_that_is_undone_leaves_the_chain_whole(records: Records) -> None:
    fill(records, 1)

    def change(db: sqlite3.Connection) -> None:
        with contextlib.suppress(ArithmeticError), savepoint(db):
            audit_log.add(db, entry(2))
            raise ArithmeticError
        audit_log.add(db, entry(3))

    records.write(change)
    assert [line["id"] for line in lines_of(records)] == ["evt_001", "evt_003"]
    assert audit_log.check(records.reader()).faults == []


def test_two_processes_write_one_chain(records: Records) -> None:
    other = Records.open(records.path)
    for number in range(20):
        fill((records, other)[number % 2], number)
    other.close()
    report = audit_log.check(records.reader())
    assert (report.count, report.faults) == (20, [])


def test_old_lines_go_from_the_beginning_and_the_chain_begins_behind_them(records: Records) -> None:
    """Also once all have gone: what comes follows from what was."""
    fill(records, *range(1, 7))
    head = audit_log.head(records.reader())
    assert records.write(lambda db: audit_log.forget(db, 4)) == 3
    assert [line["sequence"] for line in lines_of(records)] == [4, 5, 6]
    assert audit_log.check(records.reader()).faults == []
    assert records.write(lambda db: audit_log.forget(db, 4)) == 0
    assert records.write(lambda db: audit_log.forget(db, 100)) == 3
    assert audit_log.head(records.reader()) == head
    assert audit_log.check(records.reader()).count == 0
    fill(records, 200)
    (line,) = lines_of(records)
    assert (line["sequence"], line["previous"]) == (7, str(head[1]))
    assert audit_log.check(records.reader()).faults == []


def test_line_with_an_old_time_behind_a_young_one_stays(records: Records) -> None:
    """A clock that was wrong for a while makes no gap."""
    for number, at in ((1, 10), (2, 90), (3, 10)):
        records.write(lambda db, n=number, at=at: audit_log.add(db, entry(n, at=at)))
    assert records.write(lambda db: audit_log.forget(db, 50)) == 1
    assert audit_log.check(records.reader()).faults == []


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        ("UPDATE audit_log SET target = 'x' WHERE sequence = 3", "line 3 (evt_003) is not as it"),
        ("UPDATE audit_log SET created_at = 9 WHERE sequence = 3", "line 3 (evt_003) is not as it"),
        ("DELETE FROM audit_log WHERE sequence = 3", "lines 3 to 3 are missing"),
        ("DELETE FROM audit_log WHERE sequence < 3", "lines 1 to 2 are missing"),
        ("INSERT INTO audit_anchor(sequence, digest) VALUES(0, x'00')", "line 1 does not follow"),
        ("DELETE FROM audit_log WHERE sequence > 3", "the newest lines, 4 to 5, are missing"),
        ("DELETE FROM audit_log", "the newest lines, 1 to 5, are missing"),
        ("DELETE FROM audit_head", "line 5 is not the one that was written last"),
    ],
)
def test_log_that_was_changed_in_the_database_is_found(
    records: Records, done: str, fault: str
) -> None:
    fill(records, *range(1, 6))
    records.write(lambda db: db.execute(done))
    (found,) = audit_log.check(records.reader()).faults
    assert found.startswith(fault)


def test_log_of_an_earlier_version_is_chained_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    with sqlite3.connect(path) as db:
        MIGRATIONS.apply(Database(db), stop_before="chained_audit_log")
        for number in (2, 1, 3):
            db.execute(
                "INSERT INTO audit_log(id, created_at, actor_type, actor_id, actor_label, action,"
                " target) VALUES(?, 1, 'system', 'gitd', 'gitd', 'site.created', 'site_1')",
                (f"evt_{number}",),
            )
    db.close()
    records = Records.open(path)
    fill(records, 4)
    report = audit_log.check(records.reader())
    assert (report.count, report.faults) == (4, [])
    assert [line["id"] for line in lines_of(records)][:3] == ["evt_1", "evt_2", "evt_3"]
    records.close()


def test_damaged_lines_of_an_earlier_version_stop_no_update_and_are_named(tmp_path: Path) -> None:
    """A bit that flipped years ago: no start may hang on it."""
    path = tmp_path / "gitd.db"
    with sqlite3.connect(path) as db:
        MIGRATIONS.apply(Database(db), stop_before="chained_audit_log")
        for number, action, target, at in (
            (1, "'site.renamed'", "'site_1'", 1),
            (2, "'site.created'", "CAST(x'73ff' AS TEXT)", 1),
            (3, "'site.created'", "x'00'", 1),
            (4, "'site.created'", "'site_1'", 1 << 60),
            (5, "'site.created'", "'site_1'", 1),
        ):
            db.execute(
                "INSERT INTO audit_log(id, created_at, actor_type, actor_id, actor_label, action,"
                f" target) VALUES('evt_{number}', {at}, 'system', 'gitd', 'gitd', {action},"
                f" {target})"
            )
        db.execute("UPDATE audit_log SET id = CAST(x'657674ff' AS TEXT) WHERE id = 'evt_2'")
    db.close()
    with Records.open(path) as records:
        fill(records, 6)
        report = audit_log.check(records.reader())
        assert report.count == 6
        assert [fault.partition(" cannot be read")[0] for fault in report.faults] == [
            "line 2 (evt_3)",
            "line 3 (evt_4)",
            "line 5 (evt\\udcff)",
        ]
        records.write(
            lambda db: db.execute("UPDATE audit_log SET target = x'01' WHERE sequence = 2")
        )
        assert "line 2 (evt_3) is not as it was written" in audit_log.check(records.reader()).faults
        page = audit_log.page(
            records.reader(), site_id=None, env_id=None, before=None, limit_count=10
        )
        assert {"site.renamed", "site.created"} == {entry.action for entry in page.items}
        assert len(page.items) == 6


@pytest.mark.parametrize(
    "done",
    [
        "UPDATE audit_log SET sequence = 'abc' WHERE sequence = 3",
        "UPDATE audit_log SET sequence = NULL WHERE sequence = 3",
        "UPDATE audit_log SET digest = NULL WHERE sequence = 5",
        "UPDATE audit_log SET previous = 'x' WHERE sequence = 3",
    ],
)
def test_line_without_a_place_is_named_and_stops_nothing(records: Records, done: str) -> None:
    """Neither what is written after it, nor the check of other lines, nor what is shown."""
    fill(records, *range(1, 6))

    def damage(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA ignore_check_constraints=ON")
        db.execute(done)
        db.execute("UPDATE audit_log SET target = 'x' WHERE sequence = 2")

    records.write(damage)
    fill(records, 6)
    faults = audit_log.check(records.reader()).faults
    assert "line 2 (evt_002) is not as it was written" in faults
    (named,) = [fault for fault in faults if fault.endswith("no place in the chain: it is damaged")]
    assert named.startswith("a line (evt_005)" if "digest" in done else "a line (evt_003)")
    page = audit_log.page(records.reader(), site_id=None, env_id=None, before=None, limit_count=10)
    assert len(page.items) == 6
    assert records.write(lambda db: audit_log.forget(db, 3)) == 2


def test_sequence_that_is_no_number_is_refused_by_the_database(records: Records) -> None:
    fill(records, 1)
    with pytest.raises(RecordConflictError):
        records.write(lambda db: db.execute("UPDATE audit_log SET sequence = 'abc'"))


def test_lines_that_are_forgotten_while_they_are_checked_are_no_fault(records: Records) -> None:
    fill(records, *range(1, 6))
    reader = records.reader()
    told: list[str] = []
    forgotten: list[int] = []

    def forget(statement: str) -> None:  # each statement of the check is told before it runs
        told.append(statement)
        if len(told) == 3:
            forgotten.append(records.write(lambda db: audit_log.forget(db, 3)))

    reader.set_trace_callback(forget)
    report = audit_log.check(reader)
    reader.set_trace_callback(None)
    assert (forgotten, report.faults) == ([2], [])
    assert audit_log.check(reader).faults == []


def test_newest_lines_that_were_removed_stay_missing_once_others_follow(records: Records) -> None:
    fill(records, *range(1, 6))
    records.write(lambda db: db.execute("DELETE FROM audit_log WHERE sequence > 3"))
    fill(records, 6)
    assert audit_log.check(records.reader()).faults == ["lines 4 to 5 are missing"]


# -- an export -----------------------------------------------------------------------------------


@pytest.fixture
def lines(records: Records) -> list[Mapping[str, object]]:
    fill(records, *range(1, 8))
    return lines_of(records)


def test_export_is_checked_in_any_order(lines: list[Mapping[str, object]]) -> None:
    report = check_lines(in_order(lines[::-1]))
    assert (report.count, report.first, report.last, report.faults) == (7, 1, 7, [])
    assert report.head == lines[-1]["digest"]


def test_what_was_cut_off_or_written_anew_is_found_by_a_head_that_was_noted(
    records: Records, lines: list[Mapping[str, object]], tmp_path: Path
) -> None:
    head = str(lines[-1]["digest"])
    assert check_lines(lines, noted=[head, str(lines[2]["digest"])]).faults == []
    (fault,) = check_lines(lines[:-1], noted=[head]).faults
    assert fault == f"the head {head}, which was noted before, is not in it"
    anew = Records.open(tmp_path / "anew.db")
    fill(anew, 1, 2, 3, 4, 5, 6, 8)  # with all the rights that there are
    assert check_lines(lines_of(anew)).faults == []
    assert check_lines(lines_of(anew), noted=[head]).fault_count == 1
    anew.close()


def test_line_of_another_place_or_twice_is_found(lines: list[Mapping[str, object]]) -> None:
    other = {**lines[3], "sequence": 5}
    assert check_lines([*lines[:4], other, *lines[5:]]).fault_count == 3
    assert check_lines([*lines, lines[-1]]).faults == ["line 7 is there twice"]


def test_lines_of_one_site_have_gaps_and_are_each_as_they_were(
    lines: list[Mapping[str, object]],
) -> None:
    some = [lines[0], lines[3], lines[4]]
    assert check_lines(some).faults == ["lines 2 to 3 are missing"]
    report = check_lines(some, is_partial=True)
    assert (report.missing, report.faults) == (2, [])
    some[1] = {**some[1], "address": "192.0.2.1"}
    assert check_lines(some, is_partial=True).fault_count == 1


@pytest.mark.parametrize(
    "read", [{}, [1], [{}], [{"sequence": True, "previous": "", "digest": ""}]]
)
def test_what_is_no_audit_log_is_refused(read: object) -> None:
    with pytest.raises(AuditLogInvalidError):
        in_order(read)
