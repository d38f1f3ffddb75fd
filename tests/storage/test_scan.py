"""What may be in a folder that becomes an artifact, and what may not."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.digest import Digest
from storage.errors import TreeInvalidError, TreeTooLargeError
from storage.manifest import Manifest
from storage.scan import scan_directory
from storage.source import Draft, Limits, SourceDirectory, SourceEntry, SourceFile, SourceLink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    (path / "index.html").write_text("hello")
    return path


def scan(folder: Path, *, owner_uid: int | None = None) -> dict[str, object]:
    found: dict[str, object] = {}
    for entry in scan_directory(folder, owner_uid=owner_uid):
        name = entry.path.decode()
        if isinstance(entry, SourceFile):
            contents = entry.read()
            data = contents if isinstance(contents, bytes) else b"".join(contents)
            assert len(data) == entry.size_bytes
            found[name] = ("x" if entry.executable else "f", data)
        elif isinstance(entry, SourceLink):
            found[name] = ("l", entry.target)
        else:
            assert isinstance(entry, SourceDirectory)
            found[name] = "d"
    return found


def test_files_directories_and_links_are_given_as_they_are(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "a" / "b" / "run").chmod(0o710)
    (folder / "large").write_bytes(b"x" * (3 << 20))
    (folder / "home").symlink_to("index.html")
    assert scan(folder) == {
        "a": "d",
        "a/b": "d",
        "a/b/run": ("x", b"#!/bin/sh\n"),
        "empty": "d",
        "home": ("l", b"index.html"),
        "index.html": ("f", b"hello"),
        "large": ("f", b"x" * (3 << 20)),
    }


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o400, 0o666, 0o444])
def test_mode_without_an_x_bit_is_a_plain_file(folder: Path, mode: int) -> None:
    (folder / "index.html").chmod(mode)
    assert scan(folder) == {"index.html": ("f", b"hello")}


@pytest.mark.parametrize("mode", [0o755, 0o100, 0o610, 0o601])
def test_mode_with_any_x_bit_is_executable(folder: Path, mode: int) -> None:
    if os.getuid() and not mode & 0o400:
        pytest.skip("only root reads a file without the bit for it")
    (folder / "index.html").chmod(mode)
    assert scan(folder) == {"index.html": ("x", b"hello")}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


REFUSED: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "set-uid": lambda path: (path.write_text("x"), path.chmod(0o4755)),
    "set-gid": lambda path: (path.write_text("x"), path.chmod(0o2755)),
    "sticky": lambda path: (path.write_text("x"), path.chmod(0o1755)),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_no_artifact_may_hold_is_refused_at_once(
    folder: Path, make: Callable[[Path], object]
) -> None:
    make(folder / "bad")
    started = time.monotonic()
    with pytest.raises(TreeInvalidError) as caught:
        scan(folder)
    assert caught.value.path == "bad"
    assert time.monotonic() - started < 10


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="makes a device")
def test_device_is_refused(folder: Path) -> None:
    os.mknod(folder / "bad", 0o600 | 0o020000, os.makedev(1, 5))
    with pytest.raises(TreeInvalidError, match="bad"):
        scan(folder)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="sets a capability")
@pytest.mark.parametrize("size_bytes", [5, 3 << 20])
def test_program_with_capabilities_is_refused(folder: Path, size_bytes: int) -> None:
    # Revision 2, CAP_NET_BIND_SERVICE, permitted and effective.
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    (folder / "index.html").write_bytes(bytes(size_bytes))
    os.setxattr(folder / "index.html", "security.capability", value)
    assert scan(folder), "nobody can start it: they mean nothing"
    (folder / "index.html").chmod(0o755)
    with pytest.raises(TreeInvalidError, match="capabilities"):
        scan(folder)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_strangers_file_is_refused_when_the_owner_is_given(folder: Path) -> None:
    os.chown(folder / "index.html", 60998, 60998)
    with pytest.raises(TreeInvalidError, match="another user"):
        scan(folder, owner_uid=0)
    assert scan(folder, owner_uid=None)


@contextlib.contextmanager
def as_nobody_in_particular() -> Iterator[None]:
    """Root may read everything."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(60998)
    try:
        yield
    finally:
        if uid == 0:
            os.seteuid(uid)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where everybody may look."""
    path = Path(tempfile.mkdtemp(prefix="gitd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_unreadable_entry_is_named(open_folder: Path, what: str) -> None:
    path = open_folder / "closed"
    path.mkdir() if what == "folder" else path.write_text("x")
    path.chmod(0)
    with (
        as_nobody_in_particular(),
        pytest.raises(TreeInvalidError, match="closed: cannot be read"),
    ):
        scan(open_folder)


def test_set_gid_directory_is_a_directory(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o2775)
    assert scan(folder)["shared"] == "d"


def test_hard_links_are_two_files(folder: Path) -> None:
    os.link(folder / "index.html", folder / "again")
    assert scan(folder) == {"index.html": ("f", b"hello"), "again": ("f", b"hello")}


def test_attributes_are_left_out(folder: Path) -> None:
    plain = scan(folder)
    try:
        os.setxattr(folder / "index.html", "user.note", b"not part of a tree")
    except OSError:
        pytest.skip("no attributes on this filesystem")
    assert scan(folder) == plain


def test_access_list_is_left_out(folder: Path) -> None:
    plain = scan(folder)
    # Version 2: rw- for the owner and for user 60998, r-- for the group, rw- as the mask, r--.
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 6, 60998), (0x04, 4, 0xFFFFFFFF)]
    entries += [(0x10, 6, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder / "index.html", "system.posix_acl_access", value)
    except OSError:
        pytest.skip("no access lists on this filesystem")
    assert scan(folder) == plain


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="sets flags of files")
@pytest.mark.parametrize("flag", ["i", "a"], ids=["immutable", "append only"])
def test_file_that_nobody_may_change_is_a_file(flag: str) -> None:
    # Where files have flags: memory has none.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        path = Path(name, "index.html")
        path.write_text("hello")
        if subprocess.run(["chattr", f"+{flag}", path], capture_output=True).returncode:
            pytest.skip("no flags on this filesystem")
        try:
            assert scan(Path(name)) == {"index.html": ("f", b"hello")}
        finally:
            subprocess.run(["chattr", f"-{flag}", path], check=True)


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/uuid").exists(), reason="no such /proc")
def test_file_that_has_more_than_its_size_says_is_refused(tmp_path: Path) -> None:
    # As the kernel's own files: their size is 0.
    draft = Draft(Limits())
    found = scan_directory(Path("/proc/sys/kernel/random"), owner_uid=None)
    entry = next(e for e in found if e.path == b"uuid")
    assert isinstance(entry, SourceFile)
    draft.admit(entry)
    assert entry.size_bytes == 0
    contents = entry.read()
    assert isinstance(contents, bytes)
    assert len(contents) != entry.size_bytes  # which ends an ingest


@pytest.mark.parametrize("size_bytes", [100, 3 << 20])
@pytest.mark.parametrize("how", ["shrinks", "vanishes", "is written to", "is another"])
def test_file_that_is_not_as_it_was_found_is_refused(
    folder: Path, how: str, size_bytes: int
) -> None:
    path = folder / "index.html"
    path.write_bytes(b"x" * size_bytes)
    for entry in scan_directory(folder, owner_uid=None):
        assert isinstance(entry, SourceFile)
        if how == "shrinks":
            os.truncate(path, size_bytes - 1)
        elif how == "is written to":
            path.write_bytes(b"y" * size_bytes)
        else:
            path.unlink()
        if how == "is another":
            path.write_bytes(b"x" * size_bytes)
        with pytest.raises(TreeInvalidError, match=r"index\.html"):
            b"".join(piece for piece in entry.read() if isinstance(piece, bytes))


def test_file_is_read_again_after_its_folder_was_left(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "f").write_bytes(b"again")
    entries = [e for e in scan_directory(folder, owner_uid=None) if isinstance(e, SourceFile)]
    assert [entry.read() for entry in entries] == [b"again", b"hello"]
    assert [entry.read() for entry in entries] == [b"again", b"hello"]


@pytest.mark.parametrize("name", [b"a\nb", b"a\tb", b"\x7f", b"\x01", b"\xff\xfe"])
def test_name_with_control_bytes_or_not_utf8_is_refused(folder: Path, name: bytes) -> None:
    (folder / os.fsdecode(name)).write_text("x")
    with pytest.raises(TreeInvalidError):
        scan(folder)


@pytest.mark.parametrize("name", ["-rf", " ", "a b", "😀", "\u202etxt.exe", "n" * 255, "~", "*"])
def test_odd_but_honest_name_is_taken(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    assert scan(folder)[name] == ("f", b"x")


def test_names_that_differ_in_case_or_composition_only_are_two_files(folder: Path) -> None:
    for name in ("A", "a", "\u00e9", "e\u0301"):
        (folder / name).write_text("x")
    assert len(scan(folder)) == 5


def test_depth_of_64_is_taken_and_65_refused(folder: Path) -> None:
    path = folder.joinpath(*["d"] * 63)
    path.mkdir(parents=True)
    (path / "f").write_text("x")
    assert len(scan(folder)) == 65
    (path / "d").mkdir()
    (path / "d" / "f").write_text("x")
    with pytest.raises(TreeInvalidError):
        scan(folder)


@pytest.mark.parametrize("size_bytes", [100, 3 << 20])
def test_file_that_grows_while_it_is_read_is_refused(folder: Path, size_bytes: int) -> None:
    path = folder / "index.html"
    path.write_bytes(b"x" * size_bytes)
    (entry,) = scan_directory(folder, owner_uid=None)
    assert isinstance(entry, SourceFile)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(TreeInvalidError, match="changed"):
        b"".join(piece for piece in entry.read() if isinstance(piece, bytes))


@pytest.mark.parametrize("what", ["link", "fifo", "nothing", "folder"])
def test_file_that_becomes_something_else_is_refused(folder: Path, what: str) -> None:
    (entry,) = scan_directory(folder, owner_uid=None)
    assert isinstance(entry, SourceFile)
    path = folder / "index.html"
    path.unlink()
    match what:
        case "link":
            path.symlink_to("/etc/passwd")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    with pytest.raises(TreeInvalidError):
        entry.read()


def test_folder_that_becomes_a_link_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "passwd").write_text("mine")
    entry = next(e for e in scan_directory(folder, owner_uid=None) if e.path == b"a/passwd")
    assert isinstance(entry, SourceFile)
    (folder / "a").rename(tmp_path / "elsewhere")
    (folder / "a").symlink_to("/etc")
    with pytest.raises(TreeInvalidError):
        entry.read()


def test_folder_under_change_is_refused_or_read_whole(folder: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            for n in range(20):
                path = folder / f"f{n}"
                path.write_text(f"{turn}" * 100)
                if turn % 3 == 0:
                    path.unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            try:
                found = scan(folder)
            except TreeInvalidError:
                continue
            assert "index.html" in found
    finally:
        stop.set()
        thread.join()


# -- limits and names, whatever the source -----------------------------------------------------


def admit(*entries: object, limits: Limits | None = None) -> None:
    draft = Draft(limits or Limits())
    for entry in entries:
        draft.admit(entry)  # type: ignore[arg-type]
        if isinstance(entry, SourceFile):
            draft.add_file(entry, Digest.of(b""))


def file(path: bytes, size_bytes: int = 0) -> SourceFile:
    return SourceFile(path, size_bytes, executable=False, read=lambda: bytes(size_bytes))


def test_large_file_that_nobody_reads_is_not_opened(folder: Path) -> None:
    (folder / "large").write_bytes(b"x" * (3 << 20))
    before = list(Path("/proc/self/fd").iterdir())
    held = [e.read() for e in scan_directory(folder, owner_uid=None) if isinstance(e, SourceFile)]
    assert list(Path("/proc/self/fd").iterdir()) == before
    assert sum(map(len, held[1])) == 3 << 20  # type: ignore[arg-type]


PARTS = st.sampled_from(
    [
        b"a",
        b"b",
        b"a.",
        b".a",
        b".",
        b"..",
        b"",
        b"\x7f",
        b"\t",
        b"\xff",
        "\u00e9".encode(),
        b"n" * 256,
    ]
)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)
ENTRIES = st.one_of(
    st.builds(file, PATHS, st.integers(0, 9)),
    st.builds(SourceDirectory, PATHS),
    st.builds(SourceLink, PATHS, st.one_of(PATHS, st.just(b"/usr/bin/python3"))),
)


@settings(max_examples=500)
@given(st.lists(ENTRIES, max_size=12))
def test_manifest_of_whatever_was_let_in_is_read_as_it_is(entries: list[SourceEntry]) -> None:
    draft = Draft(Limits())
    draft.admit(file(b"any"))
    draft.add_file(file(b"any"), Digest.of(b""))
    for entry in entries:
        try:
            draft.admit(entry)
        except TreeInvalidError:
            continue
        if isinstance(entry, SourceFile):
            draft.add_file(entry, Digest.of(b"%d" % entry.size_bytes))
    try:
        manifest = draft.manifest()
    except TreeInvalidError:
        return  # a link leads out
    assert Manifest.parse(manifest.data) == manifest


@pytest.mark.parametrize(
    "path", [b"", b"/a", b"a/", b"a//b", b"..", b"a/../b", b".", b"./a", b"n" * 256, b"a\0b"]
)
def test_path_that_is_not_plain_is_refused(path: bytes) -> None:
    with pytest.raises(TreeInvalidError):
        admit(file(path))


def test_limits_are_enforced_before_anything_is_read() -> None:
    limits = Limits(size_bytes_max=100, file_bytes_max=60, files_max=2)
    admit(file(b"a", 60), file(b"b", 40), limits=limits)
    for entries in (
        [file(b"a", 61)],
        [file(b"a", 60), file(b"b", 41)],
        [file(b"a"), file(b"b"), file(b"c")],
    ):
        with pytest.raises(TreeTooLargeError):
            admit(*entries, limits=limits)


def test_file_that_is_larger_than_all_memory_is_refused_unread(folder: Path) -> None:
    with (folder / "large").open("wb") as large:
        large.truncate(64 << 30)  # holes
    found = {entry.path: entry for entry in scan_directory(folder, owner_uid=None)}
    with pytest.raises(TreeTooLargeError):
        Draft(Limits()).admit(found[b"large"])


def test_tree_may_have_a_hundred_thousand_files_and_no_more() -> None:
    draft = Draft(Limits())
    for number in range(100_000):
        draft.admit(file(b"%06d" % number))
    with pytest.raises(TreeTooLargeError):
        draft.admit(file(b"one more"))


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"a"), file(b"a")],
        [file(b"a"), SourceDirectory(b"a")],
        [SourceDirectory(b"a"), SourceLink(b"a", b"b")],
        [SourceLink(b"a", b"/tmp"), file(b"a/b")],
        [file(b"a/b"), SourceLink(b"a", b"/tmp")],
        [file(b"a/b/c"), file(b"a/b")],
    ],
)
def test_two_entries_that_cannot_both_be_there_are_refused(entries: list[object]) -> None:
    with pytest.raises(TreeInvalidError):
        admit(*entries)


def test_directory_may_be_given_after_what_lies_in_it_and_twice() -> None:
    admit(file(b"a/b"), SourceDirectory(b"a"), SourceDirectory(b"a"))
