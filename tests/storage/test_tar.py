"""Archives from strangers: what honest tools write is read, what attacks is refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.errors import TreeInvalidError
from storage.source import Draft, Limits, SourceDirectory, SourceFile, SourceLink
from storage.tar import DIRECTORY, FILE, LINK, chunks, encode_header, scan_tar


def read(data: bytes, *, dribble: bool = False) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    stream = io.BytesIO(data)
    for entry in scan_tar(Dribble(stream) if dribble else stream):  # type: ignore[arg-type]
        if isinstance(entry, SourceFile):
            contents = entry.read()
            body = contents if isinstance(contents, bytes) else b"".join(contents)
            assert len(body) == entry.size_bytes
            found[entry.path] = ("x" if entry.executable else "f", body)
        elif isinstance(entry, SourceLink):
            found[entry.path] = ("l", entry.target)
        else:
            assert isinstance(entry, SourceDirectory)
            found[entry.path] = "d"
    return found


class Dribble:
    """A stream that gives less than it is asked for, as sockets do."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream

    def read(self, count: int) -> bytes:
        return self._stream.read(min(count, 100))


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def archive(
    *members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for item in members:
            info, data = item if isinstance(item, tuple) else (item, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


LONG = "d" * 60 + "/" + "é" * 60 + "/" + "f" * 90
ALL = [
    member("dir", type=tarfile.DIRTYPE, mode=0o755),
    (member("dir/plain", mode=0o644), b"hello"),
    (member("dir/run", mode=0o755), b"#!/bin/sh\n"),
    (member("dir/empty", mode=0o644), b""),
    (member("large", mode=0o644), b"x" * (5 << 20)),
    (member(LONG, mode=0o644, mtime=1.5), b"long"),
    member("link", type=tarfile.SYMTYPE, linkname="dir/plain"),
    member("longlink", type=tarfile.SYMTYPE, linkname="t/" * 90 + "x"),
]
READ = {
    b"dir": "d",
    b"dir/plain": ("f", b"hello"),
    b"dir/run": ("x", b"#!/bin/sh\n"),
    b"dir/empty": ("f", b""),
    b"large": ("f", b"x" * (5 << 20)),
    LONG.encode(): ("f", b"long"),
    b"link": ("l", b"dir/plain"),
    b"longlink": ("l", b"t/" * 90 + b"x"),
}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("dribble", [False, True])
def test_what_python_writes_is_read(kind: int, *, dribble: bool) -> None:
    assert read(archive(*ALL, kind=kind), dribble=dribble) == READ


def test_ustar_prefix_is_joined_to_the_name() -> None:
    name = "p" * 80 + "/" + "n" * 80
    assert read(archive((member(name), b"x"), kind=tarfile.USTAR_FORMAT)) == {
        name.encode(): ("f", b"x")
    }


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_what_gnu_tar_writes_of_a_folder_is_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run").write_text("x")
    (tmp_path / "a" / "run").chmod(0o755)
    (tmp_path / "l").symlink_to("a/run")
    data = subprocess.run(
        ["tar", "-C", tmp_path, f"--format={form}", "-c", "."], capture_output=True, check=True
    ).stdout
    assert read(data) == {b"a": "d", b"a/run": ("x", b"x"), b"l": ("l", b"a/run")}


def test_what_git_archive_writes_is_read(tmp_path: Path) -> None:
    def git(*words: str) -> bytes:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *words], capture_output=True, check=True
        ).stdout

    git("init", "-q")
    (tmp_path / "f").write_text("x")
    git("add", "f")
    git("commit", "-qm", "one")
    assert read(git("archive", "HEAD")) == {b"f": ("f", b"x")}


def test_file_that_was_not_read_is_passed_over() -> None:
    data = archive((member("a"), b"x" * 1000), (member("b"), b"y" * (3 << 20)), (member("c"), b"z"))
    assert [entry.path for entry in scan_tar(io.BytesIO(data))] == [b"a", b"b", b"c"]


REFUSED = {
    "hard link": archive(member("bad", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
    "fifo": archive(member("bad", type=tarfile.FIFOTYPE)),
    "character device": archive(member("bad", type=tarfile.CHRTYPE)),
    "block device": archive(member("bad", type=tarfile.BLKTYPE)),
    "fifo with a target": archive(member("bad", type=tarfile.FIFOTYPE, linkname="a")),
    "device with a target": archive(member("bad", type=tarfile.CHRTYPE, linkname="a")),
    "unknown kind with a target": archive(member("bad", type=b"Z", linkname="a")),
    "set-uid": archive((member("bad", mode=0o4755), b"x")),
    "set-gid": archive((member("bad", mode=0o2755), b"x")),
    "sticky": archive((member("bad", mode=0o1755), b"x")),
    "sparse": archive(member("bad", type=tarfile.GNUTYPE_SPARSE), kind=tarfile.GNU_FORMAT),
    "sparse by pax": archive(member("bad", pax_headers={"GNU.sparse.major": "1"})),
    "capabilities": archive(member("bad", pax_headers={"SCHILY.xattr.security.capability": "x"})),
    "link with contents": archive((member("bad", type=tarfile.SYMTYPE, linkname="a"), b"x")),
    "nul in a pax path": archive(member("bad", pax_headers={"path": "a\0b"})),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_no_artifact_may_hold_is_refused(data: bytes) -> None:
    with pytest.raises(TreeInvalidError):
        admit_all(data)


def admit_all(data: bytes) -> None:
    draft = Draft(Limits())
    for entry in scan_tar(io.BytesIO(data)):
        draft.admit(entry)


def block(name: bytes = b"f", *, size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"00000000000\0")
    head += b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    head += bytes(512 - len(head))
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def plain(name: bytes = b"f", *, size: bytes = b"00000000001\0", total: bytes = b"") -> bytes:
    """As nearly all headers are. `total`: instead of the check sum."""
    head = bytearray(encode_header(name, FILE, 0o644))
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = total or b"%06o\0 " % sum(head)
    return bytes(head)


def total_of(header: bytes) -> bytes:
    return header[148:154]


MALFORMED = {
    "nothing": b"",
    "half a block": bytes(100),
    "no end": archive((member("a"), b"x" * 600))[:1536],
    "cut in a file": archive((member("a"), b"x" * 6000))[:3000],
    "bad sum": block()[:-1] + b"\1",
    "rubbish": b"rubbish!" * 64,
    "size with letters": block(size=b"0000000zz01\0"),
    "negative size": block(size=b"-0000000001\0"),
    "size with a sign": plain(size=b"+0000000001\0") + bytes(1536),
    "size with an 8": plain(size=b"00000000008\0") + bytes(1536),
    "sum with a sign": plain(total=b"+" + total_of(plain())[1:] + b"\0 ") + bytes(1536),
    "sum and more digits": plain(total=total_of(plain()) + b"77") + bytes(1536),
    "gigantic header": block(kind=b"x", size=b"77777777777\0"),
    "gigantic long name": block(kind=b"L", size=b"77777777777\0"),
    "gigantic file": block(size=b"77777777777\0"),
    "base 256 giant": block(size=b"\xff" * 12),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_archive_is_refused_quickly(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(TreeInvalidError):
        read(data)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("header", "path", "size_bytes"),
    [
        (plain(b"./f"), b"f", 1),
        (plain(b"f\0g"), b"f", 1),
        (plain(size=b"000000000010"), b"f", 8),  # all twelve are digits
        (block(kind=b"7"), b"f", 1),
        (block(size=b"\x80" + bytes(10) + b"\1"), b"f", 1),
    ],
)
def test_header_that_is_nearly_plain_is_read_as_tarfile_reads_it(
    header: bytes, path: bytes, size_bytes: int
) -> None:
    theirs = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    assert theirs.name.removeprefix("./").encode() == path
    assert (theirs.size, theirs.isreg()) == (size_bytes, True)
    data = header + b"x" * size_bytes + bytes(512 - size_bytes) + bytes(1024)
    assert read(data) == {path: ("f", b"x" * size_bytes)}


def test_name_that_ends_as_a_folders_does_is_one() -> None:
    none = b"0" * 11 + b"\0"
    for header in (plain(b"d/", size=none), block(b"d/", size=none, kind=b"\0")):
        assert read(header + bytes(1024)) == {b"d": "d"}
    with pytest.raises(TreeInvalidError, match="is no name"):
        read(plain(b".", size=none) + bytes(1024))


def test_prefix_is_one_of_posix_alone() -> None:
    """GNU's has times there."""
    head = bytearray(block())
    head[257:265] = b"ustar  \0"
    head[345:356] = b"01234567012"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert read(bytes(head) + b"x" + bytes(511 + 1024)) == {b"f": ("f", b"x")}


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    head = block(b"x", kind=kind, size=b"%011o\0" % len(records))
    return head + records.ljust(-(-len(records) // 512) * 512, b"\0") + block() + bytes(1024)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"4 a\n",
        b"5 a\n",
        b"9999 path=a\n",
        b"0 path=a\n",
        b"-9 path=a\n",
        b"9 path=ab",
        b"9 size=x\n",
        b"11 size=-1\n",
        b"28 size=0000000000000000001\n",
    ],
)
def test_malformed_pax_header_is_refused(records: bytes) -> None:
    assert [*read(pax(b"9 path=a\n"))] == [b"a"]
    with pytest.raises(TreeInvalidError):
        read(pax(records))


def test_size_in_a_pax_header_counts() -> None:
    assert read(pax(b"9 size=3\n")[:-1024] + b"abc" + bytes(509 + 1024)) == {b"f": ("f", b"abc")}


def test_header_of_a_header_is_bounded() -> None:
    assert [*read(pax(b"%d comment=%s\n" % (60_000, b"c" * 59_985)))] == [b"f"]
    with pytest.raises(TreeInvalidError, match="too long a header"):
        read(pax(b"%d comment=%s\n" % (70_000, b"c" * 69_985)))


def test_link_hides_no_entry_in_its_contents() -> None:
    """Or another reader, which passes over them, would find another tree."""
    link = member("link", type=tarfile.SYMTYPE, linkname="a")
    hidden = plain(b"hidden", size=b"0" * 11 + b"\0")
    with pytest.raises(TreeInvalidError, match="has contents"):
        read(archive((link, hidden)))


def test_header_for_all_entries_names_none() -> None:
    assert [*read(pax(b"11 uname=a\n", b"g"))] == [b"f"]
    with pytest.raises(TreeInvalidError, match="has the header path"):
        read(pax(b"9 path=a\n", b"g"))


def test_stream_is_read_to_its_end() -> None:
    stream = io.BytesIO(archive((member("a"), b"x")) + bytes(20_000))
    list(scan_tar(stream))
    assert not stream.read()


@given(st.data())
def test_damaged_archive_is_refused_or_read_within_bounds(data: st.DataObject) -> None:
    damaged = bytearray(archive(ALL[0], ALL[1], ALL[5], ALL[6]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    reader: Callable[[bytes], object] = read
    try:
        reader(bytes(damaged))
    except TreeInvalidError:
        return


NAMES = st.binary(min_size=1, max_size=130).map(lambda name: name.replace(b"\0", b"/"))


@given(
    path=NAMES.filter(lambda name: not name.endswith(b"/"))
    | st.text("ab/é", min_size=1).map(lambda name: f"{name}x".encode()),
    kind=st.sampled_from([FILE, LINK, DIRECTORY]),
    mode=st.sampled_from([0o644, 0o755, 0o777]),
    size_bytes=st.integers(0, 8**12),
    target=NAMES | st.just(b""),
    at=st.integers(-5, 8**12),
)
@example(path=b"n" * 100, kind=FILE, mode=0o644, size_bytes=8**11 - 1, target=b"", at=8**11 - 1)
@example(path=b"n" * 101, kind=FILE, mode=0o644, size_bytes=0, target=b"", at=0)
@example(path=b"n" * 100, kind=DIRECTORY, mode=0o755, size_bytes=0, target=b"", at=0)
@example(path=b"n", kind=FILE, mode=0o644, size_bytes=8**11, target=b"", at=0)
@example(path=b"n", kind=FILE, mode=0o644, size_bytes=0, target=b"", at=8**11)
@example(path=b"n", kind=LINK, mode=0o777, size_bytes=0, target=b"t" * 101, at=0)
def test_headers_are_those_of_the_library(
    path: bytes, kind: bytes, mode: int, size_bytes: int, target: bytes, at: int
) -> None:
    ours = encode_header(path, kind, mode, size_bytes=size_bytes, target=target, time=at)
    theirs = tarfile.TarInfo(os.fsdecode(path))
    theirs.type, theirs.mode, theirs.size, theirs.mtime = kind, mode, size_bytes, at
    theirs.linkname = os.fsdecode(target)
    assert ours == theirs.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_what_is_written_in_pieces_is_an_archive_for_others() -> None:
    large = bytes(range(256)) * 5000
    pieces = [
        encode_header(b"d", DIRECTORY, 0o755),
        *(encode_header(b"d/large", FILE, 0o644, size_bytes=len(large)), large),
        bytes(-len(large) % 512),
        encode_header(b"d/link", LINK, 0o777, target=b"large"),
    ]
    data = b"".join(chunks(pieces))
    assert data.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["d", "d/large", "d/link"]
        found = archive.extractfile("d/large")
        assert found is not None
        assert found.read() == large
    assert read(data)[b"d/link"] == ("l", b"large")


@given(
    places=st.lists(
        st.integers(0, 511).filter(lambda place: not 148 <= place < 156),
        min_size=2,
        max_size=2,
        unique=True,
    ),
    step=st.integers(1, 255),
)
def test_header_that_differs_from_ours_is_read_as_tarfile_reads_it_or_refused(
    places: list[int], step: int
) -> None:
    block = bytearray(encode_header(b"d/file.txt", FILE, 0o644, size_bytes=0, time=1_700_000_000))
    upward, downward = places
    if block[upward] + step > 255 or block[downward] < step:
        return
    block[upward] += step
    block[downward] -= step  # the check sum is right
    data = bytes(block) + bytes(10 * 512)
    try:
        entries = list(scan_tar(io.BytesIO(data)))
    except TreeInvalidError:
        return
    try:
        theirs = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return  # an owner or a time, which are nothing to a tree
    if not entries:
        assert theirs.isdir() or theirs.name in (".", "./")
        return
    [ours] = entries
    assert os.fsdecode(ours.path) == theirs.name.removeprefix("./").removesuffix("/")
    if isinstance(ours, SourceFile):
        assert (ours.size_bytes, ours.executable) == (theirs.size, bool(theirs.mode & 0o111))


@pytest.mark.parametrize("place", [0, 20, 103, 130, 140, 156, 200, 260, 300, 400, 511])
def test_header_with_one_bit_that_flipped_is_refused(place: int) -> None:
    block = bytearray(encode_header(b"d/file.txt", FILE, 0o644, size_bytes=0, time=1_700_000_000))
    block[place] ^= 1
    with pytest.raises(TreeInvalidError):
        list(scan_tar(io.BytesIO(bytes(block) + bytes(2 * 512))))


def test_archive_in_a_file_is_read_as_often_as_wanted(tmp_path: Path) -> None:
    large = os.urandom(5 << 19)
    path = tmp_path / "tar"
    path.write_bytes(
        archive(
            (member("a", size=3), b"one"),
            (member("passed over", size=600), b"x" * 600),
            (member("large", size=len(large)), large),
            (member("empty"), b""),
            (member("z", size=1), b"z"),
        )
    )

    def read_all(entry: SourceFile) -> bytes:
        contents = entry.read()
        return contents if isinstance(contents, bytes) else b"".join(contents)

    with path.open("rb") as stream:
        entries = []
        for entry in scan_tar(stream, is_file=True):
            assert isinstance(entry, SourceFile)
            assert entry.is_repeatable
            entries.append((entry, b"" if entry.path == b"passed over" else read_all(entry)))
        wanted = [b"one", b"x" * 600, large, b"", b"z"]
        assert [data for _, data in entries] == [wanted[0], b"", *wanted[2:]]
        for _ in range(2):
            assert [read_all(entry) for entry, _ in entries] == wanted
        os.truncate(path, 700)
        with pytest.raises(TreeInvalidError, match="cut short"):
            read_all(entries[2][0])
