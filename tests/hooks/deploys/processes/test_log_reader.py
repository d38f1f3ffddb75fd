"""A log is read while it is written: its last lines, across its two files, and on from a place."""

from __future__ import annotations

import pytest

from hooks.deploys.log_position import is_position, position
from hooks.deploys.processes.log_reader import LogReader
from hooks.deploys.processes.weblog import BURST_LINES, FILE_BYTES_MAX, WebLog, older_log

LINE = "x" * 1000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "web.log"


@pytest.fixture
def log(path):
    opened = WebLog(path)
    yield opened
    opened.close()


@pytest.fixture
def reader(path):
    made: list[LogReader] = []

    def make(lines=1_000_000, after=None):
        made.append(LogReader(path, lines=lines, after=after))
        return made[-1]

    yield make
    for one in made:
        one.close()


def said(reader):
    """The lines that there are by now, without their times, and where they end."""
    lines, place = [], None
    while piece := reader.next():
        lines += [line.split(" ", 1)[1] for line in piece.data.decode().splitlines()]
        place = position(piece.file, piece.offset + len(piece.data))
    return lines, place


def write(log, *lines):
    for line in lines:
        log.note(line)


def noted(*names):
    return [f"[gitd] {name}" for name in names]


def fill(log, first, count):
    names = [f"{number} {LINE}" for number in range(first, first + count)]
    write(log, *names)
    return names


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, ["b", "c"]), (9, ["a", "b", "c"])])
def test_it_begins_with_the_last_lines_and_goes_on(log, reader, count, expected) -> None:
    write(log, "a", "b", "c")
    read = reader(lines=count)
    assert said(read)[0] == noted(*expected)
    assert read.next() is None
    write(log, "d")
    assert said(read)[0] == noted("d")


def test_a_log_that_is_not_there_yet_is_read_once_it_is(log, reader, tmp_path) -> None:
    read = reader()
    assert read.next() is None
    assert not read.is_over
    write(log, "first")
    assert said(read)[0] == noted("first")
    (tmp_path / "web.log").unlink()
    tmp_path.rmdir()
    assert read.next() is None
    assert read.is_over


def test_a_log_that_begins_a_second_file_before_it_is_looked_at_is_read_from_its_first(
    log, reader, path
) -> None:
    read = reader(lines=0)
    names = fill(log, 0, FILE_BYTES_MAX // 1000 + 10)
    assert older_log(path).exists()
    assert said(read)[0] == noted(*names)
    assert read.next() is None


def test_last_lines_reach_into_the_file_before(log, reader, path) -> None:
    names = fill(log, 0, FILE_BYTES_MAX // 1000 + 10)
    assert older_log(path).exists()
    assert said(reader(lines=200))[0] == noted(*names[-200:])
    assert said(reader())[0] == noted(*names)


def test_nothing_is_lost_when_the_file_changes_while_it_is_read(log, reader) -> None:
    read, found, names = reader(), [], []
    for start in range(0, 3 * FILE_BYTES_MAX // 1000, 300):
        names += fill(log, start, 300)
        found += said(read)[0]
    assert found == noted(*names)


def test_a_whole_file_that_came_and_was_put_aside_between_two_looks_is_read(log, reader) -> None:
    read = reader()
    write(log, "first")
    assert said(read)[0] == noted("first")
    names = fill(log, 0, 2 * FILE_BYTES_MAX // 1000)
    assert said(read)[0] == noted(*names)
    assert read.next() is None


def test_it_goes_on_behind_a_place_without_a_gap_or_a_repeat(log, reader) -> None:
    write(log, "a", "b")
    place = said(reader())[1]
    assert is_position(place)
    names = fill(log, 0, FILE_BYTES_MAX // 1000 + 10)  # the place is in the file before by now
    assert said(reader(after=place))[0] == noted(*names)
    place = said(reader())[1]
    assert said(reader(after=place))[0] == []
    write(log, "c")
    assert said(reader(after=place))[0] == noted("c")


def test_a_place_that_is_gone_begins_with_the_oldest_that_there_is(log, reader) -> None:
    write(log, "a")
    place = said(reader())[1]
    names = fill(log, 0, 3 * FILE_BYTES_MAX // 1000)
    found = said(reader(after=place))[0]
    assert found == noted(*names[-len(found) :])
    assert len(found) > 1000


def test_a_file_that_somebody_emptied_is_read_from_its_beginning(log, reader, path) -> None:
    write(log, *["long " * 20] * 5)
    read = reader()
    said(read)
    with path.open("r+b") as file:
        file.truncate(0)
    write(log, "new")
    assert said(read)[0] == noted("new")


def test_half_a_line_waits_for_its_end(reader, path) -> None:
    path.write_bytes(b"2026-11-27T00:00:00.000Z one\n2026-11-27T00:00:00.000Z t")
    read = reader()
    assert said(read)[0] == ["one"]
    with path.open("ab") as file:
        file.write(b"wo\n")
    assert said(read)[0] == ["two"]


def test_a_link_in_the_files_place_is_not_followed(reader, path, tmp_path) -> None:
    (tmp_path / "secret").write_text("2026-11-27T00:00:00.000Z secret\n")
    path.symlink_to(tmp_path / "secret")
    assert reader().next() is None


@pytest.mark.parametrize("text", ["", "x", "1/2/3", "2026/1\nevil: 1", "é/1", "/5"])
def test_what_is_no_place_is_known_as_none(text) -> None:
    assert not is_position(text)


def test_a_burst_is_shorter_than_what_two_files_hold() -> None:
    """What is printed between two looks is not lost, unless lines are long."""
    assert BURST_LINES * 256 < FILE_BYTES_MAX
