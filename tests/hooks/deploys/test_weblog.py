from __future__ import annotations

from hooks.deploys.weblog import FILE_BYTES_MAX, LINE_BYTES_MAX, TAIL_LINES, Lines, WebLog


def lines_of(*chunks):
    found: list[str] = []
    lines = Lines(found.append)
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
