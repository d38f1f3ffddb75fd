"""A second process that reads a tree on its way in: what it does not read, the first one does."""

from __future__ import annotations

import io
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from storage import ingest, source_helper
from storage.check import check_store
from storage.digest import Digest
from storage.errors import TreeInvalidError
from storage.scan import scan_directory
from storage.source import WHOLE_BYTES_MAX, Place, SourceEntry, SourceFile
from storage.source_helper import GIVEN_COUNT_MAX, SourceHelper
from storage.tar import scan_tar

COUNT = 60
PROGRAM = b"/source_worker.py"

needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
pytestmark = needs_two


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as four files were known, whoever else works on this machine."""
    monkeypatch.setattr(ingest, "HELPED_COUNT_MIN", 4)
    monkeypatch.setattr(ingest, "_CHUNK_COUNT", 4)
    monkeypatch.setattr(source_helper, "IDLE_COUNT_MIN", -(1 << 20))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in three folders, small ones, an empty one, a large one, and one to execute."""
    root = tmp_path / "tree"
    for number in range(COUNT):
        path = root / f"{number % 3}/in/{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * number)
    (root / "1/in/run").write_bytes(b"#!")
    (root / "1/in/run").chmod(0o755)
    (root / "2/large").write_bytes(b"x" * (3 << 20))
    return root


class Watched:
    """The entries of a source; what is read of them by this process, by path.

    `do` is called with each, before it is given.
    """

    def __init__(
        self,
        entries: Iterable[SourceEntry],
        *,
        waits: bool = True,
        do: Callable[[bytes], object] = lambda _: None,
    ) -> None:
        self.read: list[bytes] = []
        self.helpers: set[int] = set()
        self._entries = entries
        self._waits = waits
        self._do = do

    def __iter__(self) -> Iterator[SourceEntry]:
        for entry in self._entries:
            self._do(entry.path)
            if isinstance(entry, SourceFile):
                yield entry._replace(read=lambda entry=entry: self._noted(entry))
            else:
                yield entry
            self.helpers |= helpers()
            if self._waits:
                for pid in self.helpers:
                    wait_until(lambda pid=pid: is_waiting(pid))

    def _noted(self, entry: SourceFile) -> bytes | Iterator[bytes]:
        self.read.append(entry.path)
        return entry.read()


def helpers() -> set[int]:
    return {pid for pid in children() if says(pid, "cmdline", PROGRAM)}


def children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def says(pid: int, name: str, text: bytes) -> bool:
    try:
        return text in Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return False


def is_waiting(pid: int) -> bool:
    """Whether a helper has answered all that it was asked, or has ended."""
    return not says(pid, "cmdline", PROGRAM) or says(pid, "syscall", b"0 0x0 ")


def wait_until(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.001)


def scanned(tree: Path) -> Iterator[SourceEntry]:
    return scan_directory(tree, owner_uid=os.geteuid())


def packed(tree: Path) -> io.BufferedReader:
    path = tree.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(tree, arcname="")
    return path.open("rb")


def files_in(tar: io.BufferedReader) -> list[tuple[SourceFile, Place]]:
    entries = scan_tar(tar, is_file=True)
    return [(one, one.place()) for one in entries if isinstance(one, SourceFile)]


def expect_sound(shop) -> None:
    report = check_store(shop.store.layout.root, shop.records)
    assert (report.problems, report.leftovers) == ((), ())


def test_most_of_a_known_tree_is_read_by_a_second_process(shop, helped, tree: Path) -> None:
    before = shop.ingest(scanned(tree))
    watched = Watched(scanned(tree))
    again = shop.ingest(watched)
    assert (again.digest, again.new_blobs) == (before.digest, 0)
    # Those before it was there, what may be executed, what is large.
    assert len(watched.helpers) == 1
    assert {b"1/in/run", b"2/large"} < set(watched.read)
    assert 6 <= len(watched.read) <= 10
    wait_until(lambda: not [pid for pid in watched.helpers if Path(f"/proc/{pid}").exists()])


def test_most_of_a_known_archive_is_read_by_a_second_process(shop, helped, tree: Path) -> None:
    before = shop.ingest(scanned(tree))
    with packed(tree) as tar:
        watched = Watched(scan_tar(tar, is_file=True))
        again = shop.ingest(watched)
    assert (again.digest, again.new_blobs) == (before.digest, 0)
    assert len(watched.helpers) == 1
    assert 4 <= len(watched.read) <= 10


def test_stream_that_is_no_file_is_read_here(shop, helped, tree: Path) -> None:
    before = shop.ingest(scanned(tree))
    with packed(tree) as tar:
        watched = Watched(scan_tar(tar))
        assert shop.ingest(watched).digest == before.digest
    assert len(watched.read) == COUNT + 2
    assert not watched.helpers


def test_new_tree_is_read_here(shop, helped, tree: Path) -> None:
    watched = Watched(scanned(tree))
    shop.ingest(watched)
    assert len(watched.read) == COUNT + 3  # the large one twice: to know it, and to write it
    assert not watched.helpers


def test_busy_machine_is_left_alone(
    shop, helped, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_helper, "IDLE_COUNT_MIN", 1 << 20)
    shop.ingest(scanned(tree))
    watched = Watched(scanned(tree))
    shop.ingest(watched)
    assert not watched.helpers


@pytest.mark.parametrize("is_packed", [False, True])
def test_new_files_among_known_ones_are_taken_in(
    shop, helped, tree: Path, *, is_packed: bool
) -> None:
    shop.ingest(scanned(tree))
    new = {f"{n % 3}/in/{n:03}": b"new %d" % n for n in range(20, COUNT, 9)}
    for name, data in new.items():
        (tree / name).write_bytes(data)
    with packed(tree) as tar:
        watched = Watched(scan_tar(tar, is_file=True) if is_packed else scanned(tree))
        ingested = shop.ingest(watched)
    assert watched.helpers
    assert ingested.new_blobs == len(new)
    for data in new.values():
        assert shop.blob(data).read_bytes() == data
    expect_sound(shop)
    shop.records.close()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("/nowhere/python", id="not there"),
        pytest.param("/bin/false", id="ends at once"),
        pytest.param("#!/bin/sh\nexec cat", id="says what it is told"),
        pytest.param("#!/bin/sh\nexec sleep 100", id="says nothing"),
        pytest.param("#!/bin/sh\nexec head -c 200 /dev/zero", id="ends amid an answer"),
        pytest.param("#!/bin/sh\nexec cat /dev/zero", id="says too much"),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_what_it_did_not_read_is_read_without_it(
    shop, helped, tree: Path, monkeypatch: pytest.MonkeyPatch, program: str, *, is_packed: bool
) -> None:
    before = shop.ingest(scanned(tree))
    if program.startswith("#!"):
        path = tree.parent / "program"
        path.write_text(program)
        path.chmod(0o755)
        program = str(path)
    monkeypatch.setattr(sys, "executable", program)
    with packed(tree) as tar:
        watched = Watched(scan_tar(tar, is_file=True) if is_packed else scanned(tree), waits=False)
        assert shop.ingest(watched).digest == before.digest
    assert set(watched.read) == {
        path.relative_to(tree).as_posix().encode() for path in tree.rglob("*") if path.is_file()
    }
    expect_sound(shop)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_amid_a_tree_it_is_not_missed(
    shop, helped, tree: Path, how: signal.Signals
) -> None:
    before = shop.ingest(scanned(tree))
    hit: list[int] = []

    def strike(path: bytes) -> None:
        if path == b"1/in/031":
            wait_until(helpers)  # just begun, it has no command line for a moment: proc(5)
            hit.extend(helpers())
            for pid in hit:
                os.kill(pid, how)

    watched = Watched(scanned(tree), waits=False, do=strike)
    assert shop.ingest(watched).digest == before.digest
    assert len(hit) == 1
    wait_until(lambda: not Path(f"/proc/{hit[0]}").exists())


@pytest.mark.parametrize("waits", [False, True])
def test_file_that_changed_after_it_was_found_is_refused(
    shop, helped, tree: Path, *, waits: bool
) -> None:
    """Source: docs/store.md, "What is taken in"."""
    shop.ingest(scanned(tree))
    shop.ingest({"known": b"XX" * 32})

    def change(path: bytes) -> None:
        if path == b"2/in/032":
            (tree / "2/in/032").write_bytes(b"XX" * 32)  # as long as before

    with pytest.raises(TreeInvalidError, match="changed while it was read") as caught:
        shop.ingest(Watched(scanned(tree), waits=waits, do=change))
    assert caught.value.path == "2/in/032"
    expect_sound(shop)


@pytest.mark.parametrize("waits", [False, True])
def test_new_file_that_changes_before_it_is_staged_is_refused(
    shop, helped, tree: Path, *, waits: bool
) -> None:
    shop.ingest(scanned(tree))
    (tree / "2/in/056").write_bytes(b"new" * 20)

    def change(path: bytes) -> None:
        if path == b"2/in/059":
            (tree / "2/in/056").write_bytes(b"NEW" * 20)

    with pytest.raises(TreeInvalidError, match="changed while it was read"):
        shop.ingest(Watched(scanned(tree), waits=waits, do=change))
    expect_sound(shop)


def test_archive_that_changes_before_a_new_file_of_it_is_staged_is_refused(
    shop, helped, tree: Path
) -> None:
    shop.ingest(scanned(tree))
    (tree / "1/in/025").write_bytes(b"new" * 10)
    with packed(tree) as tar:
        names = [entry.path for entry in scan_tar(tar) if isinstance(entry, SourceFile)]
        tar.seek(0)

        def change(path: bytes) -> None:
            if path == names[-1]:
                name = Path(tar.name)
                name.write_bytes(name.read_bytes().replace(b"new" * 10, b"NEW" * 10))

        with pytest.raises(TreeInvalidError, match="changed while it was read") as caught:
            shop.ingest(Watched(scan_tar(tar, is_file=True), do=change))
    assert caught.value.path == "1/in/025"
    expect_sound(shop)


def test_folder_that_became_a_link_is_not_followed(shop, helped, tree: Path) -> None:
    shop.ingest(scanned(tree))

    def swap(path: bytes) -> None:
        if path == b"2/in/002":  # found, not read yet
            (tree / "2/in").rename(tree / "2/other")
            (tree / "2/in").symlink_to(tree.parent / "secret")

    secret = tree.parent / "secret"
    secret.mkdir()
    (secret / "002").write_bytes(b"no")
    with pytest.raises(TreeInvalidError, match="cannot be read: Not a directory"):
        shop.ingest(Watched(scanned(tree), do=swap))
    assert not shop.blob(b"no").exists()
    expect_sound(shop)


@pytest.mark.parametrize("cut", ["in a file", "behind a file"])
def test_archive_that_is_cut_short_is_refused(shop, helped, tree: Path, cut: str) -> None:
    shop.ingest(scanned(tree))
    with packed(tree) as tar:
        with tarfile.open(fileobj=tar) as members:
            files = [info for info in members if info.isfile() and info.size > 10]
        last = max(files, key=lambda info: info.offset_data)
        os.truncate(tar.name, last.offset_data + (5 if cut == "in a file" else 512))
        tar.seek(0)
        watched = Watched(scan_tar(tar, is_file=True))
        with pytest.raises(TreeInvalidError, match="the archive is cut short"):
            shop.ingest(watched)
    assert watched.helpers


def test_one_that_does_not_answer_is_asked_only_so_much(tree: Path) -> None:
    with packed(tree) as tar:
        one, place = files_in(tar)[0]
        helper = SourceHelper(place)
        os.kill(helper._process.pid, signal.SIGSTOP)
        while helper.give(one, place):
            pass
        assert helper.is_busy
        assert helper.answers() == []
        assert list(helper.rest()) == [(one, None)] * GIVEN_COUNT_MAX
        helper.stop()


def test_it_answers_with_digests_in_the_order_of_the_questions(tree: Path) -> None:
    with packed(tree) as tar:
        asked = files_in(tar)[:GIVEN_COUNT_MAX]
        files = [one for one, _ in asked]
        helper = SourceHelper(asked[0][1])
        for one, place in asked:
            assert helper.give(one, place) == (one.size_bytes <= WHOLE_BYTES_MAX)
        files = [one for one in files if one.size_bytes <= WHOLE_BYTES_MAX]
        answers: list[tuple[SourceFile, Digest | None]] = []

        def are_all_here() -> bool:
            answers.extend(helper.answers())
            return len(answers) == len(files)

        wait_until(are_all_here)
        assert [file for file, _ in answers] == files
        assert [digest for _, digest in answers] == [Digest.of(file.read()) for file in files]
        helper.stop()


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("2/in/050", tarfile.REGTYPE, "stands twice"),
        ("2/in/050", tarfile.DIRTYPE, "stands twice"),
        ("2/in/050", tarfile.SYMTYPE, "stands twice"),
        ("2/in/050/below", tarfile.REGTYPE, "lies below what is no directory"),
    ],
)
def test_name_whose_contents_are_still_read_is_taken(
    shop, helped, tree: Path, name: str, kind: bytes, reason: str
) -> None:
    """Source: docs/store.md, "What is taken in"."""
    shop.ingest(scanned(tree))
    with packed(tree) as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "0" * (kind == tarfile.SYMTYPE)
        with tarfile.open(tar.name, "a") as archive:
            archive.addfile(member)
        watched = Watched(scan_tar(tar, is_file=True))
        with pytest.raises(TreeInvalidError, match=reason) as caught:
            shop.ingest(watched)
    assert caught.value.path == name
    assert watched.helpers
    assert b"2/in/050" not in watched.read
    expect_sound(shop)
