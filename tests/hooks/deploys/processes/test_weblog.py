from __future__ import annotations

import time

import pytest

from hooks.builds.logs.masking import Masker
from hooks.deploys.processes.weblog import (
    BURST_LINES,
    FILE_BYTES_MAX,
    LINE_BYTES_MAX,
    TAIL_LINES,
    Lines,
    WebLog,
)


def lines_of(*chunks):
    found: list[str] = []
    lines = Lines(found.append, lambda: 0.0)
    for chunk in chunks:
        lines.write(chunk)
    lines.close()
    return found


def test_output_is_cut_into_lines_wherever_its_pieces_end():
    assert lines_of(b"one\ntw", b"o\r\n", b"\n", b"three") == ["one", "two", "", "three"]


def test_a_character_cut_in_two_is_whole_in_its_line():
    assert lines_of(b"\xc3", b"\xbc\n\xff\n") == ["ü", "\ufffd"]


def test_a_line_without_end_is_passed_on_in_pieces():
    found = lines_of(b"x" * (2 * LINE_BYTES_MAX + 1))
    assert [len(line) for line in found] == [LINE_BYTES_MAX, LINE_BYTES_MAX, 1]
    assert [len(line) for line in lines_of(b"y" * LINE_BYTES_MAX + b"yy\n")] == [LINE_BYTES_MAX, 2]


def test_of_a_flood_the_first_lines_and_the_last_are_kept_and_the_gap_is_told():
    flood = [f"{number}\n".encode() for number in range(200_000)]
    found = lines_of(*(b"".join(flood[i : i + 10_000]) for i in range(0, len(flood), 10_000)))
    assert found[:3] == ["0", "1", "2"]
    assert found[-2:] == ["199998", "199999"]
    assert len(found) < 2 * BURST_LINES
    assert any("bytes left out" in line for line in found)


def test_a_flood_takes_little_time_of_the_loop_that_serves_all_sites(tmp_path):
    log = WebLog(tmp_path / "web.log")
    began = time.process_time()
    for _ in range(100):
        log.write(b"y\n" * 32_768)
    log.close()
    assert time.process_time() - began < 4  # a line for each would take about 15 s


def test_a_flood_without_line_ends_is_bounded_too():
    found = lines_of(*([b"x" * 65_536] * 2_000))
    assert sum(map(len, found)) < (BURST_LINES + 200) * LINE_BYTES_MAX


def test_a_log_never_outgrows_its_two_files(tmp_path):
    log = WebLog(tmp_path / "web.log")
    for number in range(4_000):
        log.write(f"{number} {'x' * 1000}\n".encode())
    log.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= FILE_BYTES_MAX
    assert "3999 x" in (tmp_path / "web.log").read_text()
    assert len(log.tail()) == TAIL_LINES


def test_a_log_goes_on_after_a_restart(tmp_path):
    for text in (b"one\n", b"two\n"):
        log = WebLog(tmp_path / "web.log")
        log.write(text)
        log.close()
    lines = (tmp_path / "web.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["one", "two"]


def test_a_log_that_cannot_be_written_still_knows_its_last_lines(tmp_path):
    log = WebLog(tmp_path / "missing" / "web.log")
    log.write(b"one\n")
    log.note("two")
    assert log.tail() == ("one", "[gitd] two")
    log.close()


SECRET = "sk_live_" + "".join(chr(ord("A") + number % 26) for number in range(40))


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("piece_bytes", [1000, LINE_BYTES_MAX, 1 << 20])
@pytest.mark.parametrize("before", [LINE_BYTES_MAX - 20, LINE_BYTES_MAX + 1, 3 * LINE_BYTES_MAX])
def test_a_secret_is_masked_wherever_a_long_line_is_cut(tmp_path, before, piece_bytes, end):
    log = WebLog(tmp_path / "web.log", Masker({"KEY": SECRET}))
    said = f"{'x' * before}{SECRET}{'y' * LINE_BYTES_MAX}{end}".encode()
    for start in range(0, len(said), piece_bytes):
        log.write(said[start : start + piece_bytes])
    log.close()
    kept = log.tail()
    assert "".join(kept) == f"{'x' * before}***{'y' * LINE_BYTES_MAX}"
    assert max(map(len, kept)) <= LINE_BYTES_MAX
    log.write(f"{SECRET[:20]}\n{SECRET[20:]}\n{SECRET}\n".encode())
    assert log.tail()[-3:] == (SECRET[:20], SECRET[20:], "***")


def test_a_line_that_a_flood_cuts_off_is_kept():
    found = lines_of(b"z\n" * BURST_LINES + b"begun", b", the rest is left out\nlast")
    assert found[BURST_LINES] == "begun"
    assert found[-2:] == [", the rest is left out", "last"]


def test_no_line_of_a_program_passes_for_one_of_the_host():
    assert lines_of(b"[gitd] all is well\n", b" [gitd] so it is\n", b"see [gitd]\n") == [
        "\\[gitd] all is well",
        "\\ [gitd] so it is",
        "see [gitd]",
    ]
