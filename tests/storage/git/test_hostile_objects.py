"""Packs whose numbers and lines have no end: refused at once, or read in one go.

What takes longer with each byte for each byte would never come to an end here, and fails by the
time that a test has.
"""

from __future__ import annotations

import hashlib
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.git.delta_formats import delta_head, delta_sizes, patched_anew
from storage.git.errors import PackInvalidError, PackOutgrownError, RepositoryCorruptError
from storage.git.fsck import findings
from storage.git.indexer import IndexedPack, index_pack
from storage.git.object_formats import (
    BLOB,
    COMMIT,
    OFS_DELTA,
    REF_DELTA,
    TAG,
    TREE,
    links_of,
    parse_commit,
    tree_entries,
    tree_links,
)
from storage.git.objects import ObjectStore
from storage.git.pack import PACK_HEADER_BYTES, Pack, entry_head, read_entry_head
from storage.git.pack_scan import PackLimits

MANY = 1_000_000
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEAD_BYTES_MAX = 12  # ten for 64 bits of a size; and as many for a distance
COMMIT_START = b"tree " + b"a" * 40 + b"\nauthor A <a@b> 1 +0000\ncommitter "
pytestmark = pytest.mark.timeout(60)


def indexed(folder: Path, count: int, entries: bytes) -> IndexedPack:
    body = b"PACK" + struct.pack(">LL", 2, count) + entries
    path = folder / "pack"
    path.write_bytes(body + hashlib.sha1(body).digest())
    return index_pack(path, bases=ObjectStore.over([]), limits=PackLimits())


def entry(kind: int, data: bytes, base: bytes = b"") -> bytes:
    return entry_head(kind, len(data)) + base + zlib.compress(data, 1)


@pytest.mark.parametrize("digit", [b"\xff", b"\x80"])
@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\xbf", "the size of an object is out of bound"),
        (b"\xe1\x01", "delta base offset is out of bound"),
    ],
)
def test_numbers_of_an_entry_end(tmp_path: Path, start: bytes, digit: bytes, says: str) -> None:
    if digit == b"\x80" and start == b"\xe1\x01":
        digit = b"\x81"
    with pytest.raises(PackInvalidError, match=says):
        indexed(tmp_path, 1, start + digit * MANY + b"\x01")


def test_numbers_of_a_stored_entry_end(tmp_path: Path) -> None:
    found = indexed(tmp_path, 1, entry(BLOB, b"content"))
    for start in (b"\xbf", b"\xe1\x01"):
        data = bytearray(found.path.read_bytes())
        data[PACK_HEADER_BYTES:-20] = start + b"\xff" * MANY
        found.path.chmod(0o644)
        found.path.write_bytes(data)
        with pytest.raises(RepositoryCorruptError, match="out of bound"):
            Pack(found.path.with_suffix(".idx")).header(PACK_HEADER_BYTES)


@pytest.mark.parametrize("said_bytes", [0, 1, 1000, 100_000])
def test_stored_entry_that_is_larger_than_it_says_is_refused_at_that_size(
    tmp_path: Path, said_bytes: int
) -> None:
    content = bytes(32 << 20)
    pack = Pack(indexed(tmp_path, 1, entry(BLOB, content)).path.with_suffix(".idx"))
    at = pack.header(PACK_HEADER_BYTES)[3]
    tracemalloc.start()
    with pytest.raises(RepositoryCorruptError, match="wrong size"):
        pack.inflate(at, said_bytes)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    assert pack.inflate(at, len(content)) == content


@pytest.mark.parametrize("before", [b"", b"\x05"])
def test_sizes_of_a_delta_end(tmp_path: Path, before: bytes) -> None:
    delta = before + b"\xff" * MANY + b"\x01\x05"
    with pytest.raises(RepositoryCorruptError):
        delta_sizes(delta)
    base = entry(BLOB, b"12345")
    with pytest.raises(PackInvalidError, match="out of bound"):
        indexed(tmp_path, 2, base + entry(OFS_DELTA, delta, bytes([len(base)])))


@pytest.mark.parametrize(
    "delta",
    [
        b"\5\1\2XX",  # too many literal bytes
        b"\5\1\x91\0\2",  # too many copied bytes
        b"\5\2\2X",  # too few literal bytes
        b"\5\1\x91\5\1",  # too few bytes in the base
        b"\5\2\x91\0",  # truncated copy parameters
        b"\5\1\1X\1X",  # one instruction more than the result takes
        b"\5\1\1X\x91\0\1",
        b"\5\1\1X\x91\5\1",  # ... that copies from behind the base
        b"\5\0\x91\5\1",  # ... and is the only one
        b"\5\1\1X\0",  # an instruction that is none
        b"\5\0",  # none at all
    ],
)
def test_deltas_that_git_cannot_apply_are_refused(tmp_path: Path, delta: bytes) -> None:
    """t5303 "apply delta with ...": no client could read what they stand for."""
    base = entry(BLOB, b"12345")
    with pytest.raises(PackInvalidError, match="failed to apply delta"):
        indexed(tmp_path, 2, base + entry(OFS_DELTA, delta, bytes([len(base)])))


def test_the_shortest_delta_that_git_applies_is_taken(tmp_path: Path) -> None:
    base = entry(BLOB, b"12345")
    found = indexed(tmp_path, 2, base + entry(OFS_DELTA, b"\5\1\1X", bytes([len(base)])))
    assert len(found.oids) == 2


@pytest.mark.parametrize("piece", [b"1", b"1 ", b"0 a", b"\0", b"100644 a\0", b"40000 "])
@pytest.mark.parametrize("count", [1, MANY])
def test_what_is_no_tree_is_refused(tmp_path: Path, piece: bytes, count: int) -> None:
    with pytest.raises(PackInvalidError, match="cannot be parsed as a tree"):
        indexed(tmp_path, 1, entry(TREE, piece * (count // len(piece) or 1)))


@pytest.mark.parametrize("mode", [b"1" * 12, b"0" * MANY, b"", b"8"])
def test_a_mode_has_eleven_digits_at_most(mode: bytes) -> None:
    for more in (b"", b"100644 a\0" + bytes(20) * 200):
        with pytest.raises(RepositoryCorruptError):
            tree_links(mode + b" a\0" + bytes(20) + more)
    assert tree_links(b"00000100644 a\0" + bytes(range(20))) == ([], [bytes(range(20))])


@pytest.mark.parametrize("piece", [b"> 1", b"9", b"> ", b"<", b"> 1\0"])
@pytest.mark.parametrize("start", [b"", b"x> "])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_commits_time_is_found_in_one_go(piece: bytes, start: bytes, end: bytes) -> None:
    assert parse_commit(COMMIT_START + start + piece * MANY + end).tree == b"\xaa" * 20


def test_a_commits_time_is_the_first_number_behind_the_address() -> None:
    line = b"A > 12 <a@b> 34 +0000\n\nx> 56 \n"
    assert parse_commit(COMMIT_START + line).time == 12
    assert parse_commit(COMMIT_START + b"A <a@b> 34 +0000").time == 0
    assert parse_commit(COMMIT_START + b"A <a@b>\n\nx> 56\n").time == 0


@pytest.mark.parametrize("piece", [b" ", b" .g", b" \xe2", b"a ", b" .git:"])
def test_checks_of_a_long_name_take_one_go(piece: bytes) -> None:
    tree = b"100644 " + piece * MANY + b"\0" + bytes(range(20))
    assert [finding.id for finding in findings(TREE, tree)] == []


@pytest.mark.parametrize("piece", [b" ", b" .g", b" .", b"a "])
def test_checks_of_many_names_take_one_go(piece: bytes) -> None:
    name = (piece * 255)[:245]
    entries = [b"100644 %b%09d\0" % (name, number) + b"\1" * 20 for number in range(100_000)]
    assert list(findings(TREE, b"".join(entries))) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b".", "hasDot"),
        (b"..", "hasDotdot"),
        (b".GIT", "hasDotgit"),
        (b".git. ", "hasDotgit"),
        (b"GIT~1", "hasDotgit"),
        (b".g\xe2\x80\x8cit", "hasDotgit"),
        (b"\xef\xbb\xbf.git", "hasDotgit"),
        (b" .git", None),
        (b"a .git", None),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_notable_name_is_found_anywhere(
    name: bytes, found: str | None, *, is_first: bool
) -> None:
    other = b"100644 %b\0" % (b"\xff" if is_first else b"\1") + b"\1" * 20
    one = b"100644 %b\0" % name + b"\1" * 20
    tree = one + other if is_first else other + one
    assert [finding.id for finding in findings(TREE, tree)] == ([found] if found else [])


@pytest.mark.parametrize("kind", [COMMIT, TAG])
@pytest.mark.parametrize("piece", [b"a <", b"<", b"a> ", b"\n", b"parent ", b"tagger ", b" "])
def test_checks_of_long_lines_take_one_go(kind: int, piece: bytes) -> None:
    start = COMMIT_START if kind == COMMIT else b"object " + b"a" * 40 + b"\ntype commit\ntag "
    assert list(findings(kind, start + piece * MANY))


# what a property says of all


@UNHURRIED
@given(kind=st.integers(1, 7), size=st.integers(0, 2**63 - 1), tail=st.binary(max_size=30))
def test_heads_of_entries_are_read_as_they_are_written(kind: int, size: int, tail: bytes) -> None:
    before = bytes(PACK_HEADER_BYTES)
    head = entry_head(kind, size)
    if kind == OFS_DELTA:
        head, before = head + b"\x05", bytes(PACK_HEADER_BYTES + 5)
    base = {OFS_DELTA: len(before) - 5, REF_DELTA: tail[:20]}.get(kind)
    found = read_entry_head(before + head + tail, len(before))  # type: ignore[arg-type]
    assert found[:3] == (kind, size, base)
    assert found[3] == len(before + head) + (20 if kind == REF_DELTA else 0)


@UNHURRIED
@given(data=st.binary(max_size=40) | st.lists(st.integers(128, 255), max_size=40).map(bytes))
def test_any_bytes_are_a_head_of_an_entry_or_none(data: bytes) -> None:
    before = bytes(PACK_HEADER_BYTES)
    try:
        _, size, base, at = read_entry_head(before + data, len(before))  # type: ignore[arg-type]
    except (IndexError, ValueError):
        return
    assert size < 2**70
    assert at - len(before) <= HEAD_BYTES_MAX + (20 if isinstance(base, bytes) else 0)


@UNHURRIED
@given(data=st.binary(max_size=40) | st.lists(st.integers(128, 255), max_size=40).map(bytes))
def test_any_bytes_are_sizes_of_a_delta_or_none(data: bytes) -> None:
    try:
        assert all(0 <= size < 2**63 for size in delta_sizes(data))
    except RepositoryCorruptError:
        return


NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)
MODES = st.sampled_from(
    [b"100644", b"100755", b"40000", b"120000", b"0100644", b"040000", b"160000", b"0160000"]
)
ENTRIES = st.lists(st.tuples(MODES, NAMES, st.binary(min_size=20, max_size=20)), max_size=20)


@UNHURRIED
@given(entries=ENTRIES, damage=st.integers(0, 4000), byte=st.integers(0, 255))
def test_a_tree_links_to_what_was_put_into_it(
    entries: list[tuple[bytes, bytes, bytes]], damage: int, byte: int
) -> None:
    data = b"".join(mode + b" " + name + b"\0" + oid for mode, name, oid in entries)
    trees, blobs = map(list, tree_links(data))
    assert trees == [oid for mode, _, oid in entries if mode.endswith(b"40000")]
    assert blobs == [oid for mode, _, oid in entries if not mode.endswith((b"40000", b"160000"))]
    assert [*tree_entries(data)] == [(m.lstrip(b"0"), name, oid) for m, name, oid in entries]
    assert sorted(links_of(TREE, data)) == sorted(trees + blobs)
    if damage < len(data):
        damaged = data[:damage] + bytes([byte]) + data[damage + 1 :]
        try:
            tree_links(damaged)
        except RepositoryCorruptError:
            return


@UNHURRIED
@given(data=st.binary(max_size=200))
def test_any_bytes_behind_a_committer_make_a_commit(data: bytes) -> None:
    assert 0 <= parse_commit(COMMIT_START + data).time < 2**63


def loose(
    folder: Path, head: bytes, content: bytes, more: bytes = b""
) -> tuple[ObjectStore, bytes]:
    """Put a loose object that says of itself what it likes under the id of what it says."""
    oid = hashlib.sha1(head + content).digest()
    path = folder / oid.hex()[:2] / oid.hex()[2:]
    path.parent.mkdir()
    path.write_bytes(zlib.compress(head + content) + more)
    return ObjectStore(folder), oid


def test_no_more_of_a_loose_object_is_inflated_than_its_head_says(tmp_path: Path) -> None:
    store, oid = loose(tmp_path, b"blob 10\0", bytes(200 * MANY))
    tracemalloc.start()
    with pytest.raises(RepositoryCorruptError, match="wrong size"):
        store.get(oid)
    with pytest.raises(RepositoryCorruptError, match="wrong size"):
        b"".join(store.stream(oid))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_a_loose_object_is_as_large_as_its_head_says_or_refused(tmp_path: Path) -> None:
    store, oid = loose(tmp_path, b"blob %d\0" % MANY, bytes(MANY))
    assert store.get(oid, MANY) == (BLOB, bytes(MANY))
    assert b"".join(store.stream(oid)) == bytes(MANY)
    with pytest.raises(PackOutgrownError):
        store.get(oid, MANY - 1)


@pytest.mark.parametrize(
    ("size", "more", "says"),
    [(6, b"", "wrong size"), (4, b"", "wrong size"), (5, b"x", "behind its end")],
)
def test_a_loose_object_ends_where_its_head_says(
    tmp_path: Path, size: int, more: bytes, says: str
) -> None:
    store, oid = loose(tmp_path, b"blob %d\0" % size, b"12345", more)
    with pytest.raises(RepositoryCorruptError, match=says):
        store.get(oid)
    with pytest.raises(RepositoryCorruptError, match=says):
        b"".join(store.stream(oid))


def test_a_literal_cannot_run_into_what_is_put_behind_a_delta(tmp_path: Path) -> None:
    """Each delta is applied once, with an instruction more behind it that shows the end."""
    base = entry(BLOB, b"12345")
    for lacking in range(1, 20):
        for last in (7, 8, 127):
            literal = bytes((lacking + 3, 1, 2, last))
            for size in (lacking + 3, 3, lacking + 10):
                delta = b"\5" + bytes((size,)) + literal
                with pytest.raises(PackInvalidError, match="failed to apply delta"):
                    indexed(tmp_path, 2, base + entry(OFS_DELTA, delta, bytes([len(base)])))
    for last in range(256):
        delta = b"\5\3\3xy" + bytes((last,))
        found = indexed(tmp_path, 2, base + entry(OFS_DELTA, delta, bytes([len(base)])))
        assert hashlib.sha1(b"blob 3\0xy" + bytes((last,))).digest() in found.oids


def result_as_git_makes_it(base: bytes, delta: bytes) -> bytes | None:
    """Read a delta instruction by instruction; None for one that does not apply.

    Source: git's patch-delta.c.
    """
    (_, size), at, made = delta_sizes(delta), 2, b""
    while at < len(delta):
        code = delta[at]
        at += 1
        if code & 128:
            numbers = []
            for bits in (0, 1, 2, 3), (4, 5, 6):
                places = [bit for bit in bits if code >> bit & 1]
                values = delta[at : at + len(places)]
                if len(values) < len(places):
                    return None
                at += len(places)
                pairs = zip(places, values, strict=True)
                numbers.append(sum(value << 8 * (bit - bits[0]) for bit, value in pairs))
            start, length = numbers[0], numbers[1] or 0x10000
            if start + length > len(base):
                return None
            made += base[start : start + length]
        else:
            if not 0 < code <= len(delta) - at:
                return None
            made += delta[at : at + code]
            at += code
    return made if len(made) == size else None


@pytest.mark.parametrize("seed", range(4))
def test_no_delta_is_taken_that_git_would_not_apply(seed: int) -> None:
    """Instructions that lack some of their bytes, or have too many, or point elsewhere."""
    numbers = random.Random(seed)
    taken = 0
    for _ in range(3000):
        base = bytes(numbers.choices((0, 7, 8, 0x90, 255), k=numbers.randrange(12)))
        body = b""
        for _ in range(numbers.randrange(1, 4)):
            lacking = numbers.choice((0, 0, 0, 1, 3, 7, 8, 9))
            if numbers.randrange(2):
                count = numbers.randrange(1, 14)
                body += bytes((count,))
            else:
                code = 128 | numbers.choice((0, 1, 0x10, 0x11, 0x7F))
                count = (code & 127).bit_count()
                body += bytes((code,))
            body += bytes(numbers.choices((0, 1, 2, 7), k=max(count - lacking, 0)))
        for size in range(26):
            delta = bytes((len(base), size)) + body
            expected = result_as_git_makes_it(base, delta) if len(delta) > 3 else None
            try:
                made = patched_anew(base, delta, delta_head(delta))
            except RepositoryCorruptError:
                made = None
            assert made == expected, (base, delta)
            taken += made is not None
    assert taken > 100
