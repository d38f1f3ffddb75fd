"""A large pack is read in two processes: what they find is what one finds, whatever is in it."""

from __future__ import annotations

import hashlib
import mmap
import random
import struct
import subprocess
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from storage.git import pack_halves
from storage.git.delta_formats import DELTA_DEPTH_MAX
from storage.git.errors import PackInvalidError
from storage.git.fsck import FsckRules
from storage.git.indexer import index_pack
from storage.git.object_checks import ObjectChecks
from storage.git.object_formats import BLOB, OFS_DELTA, REF_DELTA, TREE
from storage.git.objects import ObjectStore
from storage.git.pack import entry_head
from storage.git.pack_scan import PackLimits, PackScan
from storage.git.pack_streams import PackStreams
from storage.git.second_process import has_second_core

FILL_COUNT = pack_halves.HALVED_COUNT_MIN // 2 + 100


class PackMaker:
    """Writes a pack entry by entry."""

    def __init__(self) -> None:
        self.body = bytearray(b"PACK" + bytes(8))
        self.offsets: list[int] = []

    def add(self, kind: int, data: bytes, base: bytes = b"", *, level: int = -1) -> int:
        self.offsets.append(len(self.body))
        self.body += entry_head(kind, len(data)) + base + zlib.compress(data, level)
        return self.offsets[-1]

    def blob(self, data: bytes, *, level: int = -1) -> int:
        return self.add(BLOB, data, level=level)

    def delta(self, base: int | bytes, old: bytes, line: bytes, *, base_size: int = -1) -> bytes:
        """Add a delta that puts a line behind a short base; return what it makes."""
        sizes = bytes([len(old) if base_size < 0 else base_size, len(old) + len(line)])
        data = sizes + bytes([0x90, len(old), len(line)]) + line
        if isinstance(base, bytes):
            self.add(REF_DELTA, data, base)
        else:
            self.add(OFS_DELTA, data, distance(len(self.body) - base))
        return old + line

    def fill(self, word: str, count: int = FILL_COUNT) -> None:
        for number in range(count):
            self.blob(b"%s %d" % (word.encode(), number))

    def whole(self) -> bytes:
        struct.pack_into(">LL", self.body, 4, 2, len(self.offsets))
        return bytes(self.body) + hashlib.sha1(self.body).digest()


def distance(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        number -= 1
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def found_in(folder: Path, pack: bytes, *, may_fork: bool) -> tuple[dict[str, Any], bytes]:
    folder.mkdir()
    (folder / "x").write_bytes(pack)
    indexed = index_pack(
        folder / "x",
        bases=ObjectStore.over([]),
        limits=PackLimits(),
        rules=FsckRules(),
        may_fork=may_fork,
    )
    index = indexed.path.with_suffix(".idx").read_bytes()
    found = asdict(indexed) | {"commits": dict(indexed.commits), "trees": dict(indexed.trees)}
    named = found["closure"]["named"]
    found["closure"]["named"] = {kind: sorted(oids) for kind, oids in named.items()}
    return found | {"path": None, "index_path": None}, index


def assert_two_find_what_one_finds(folder: Path, pack: bytes) -> dict[str, Any]:
    one = found_in(folder / "one", pack, may_fork=False)
    assert found_in(folder / "two", pack, may_fork=True) == one
    return one[0]


def streams_of(folder: Path, pack: bytes) -> PackStreams:
    (folder / "seen").write_bytes(pack)
    with (folder / "seen").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return PackStreams(mapped, len(mapped) - 20)


def chains(count: int, length: int, *, is_spoiled: bool = False) -> PackMaker:
    """Make blobs that each begin a chain of deltas; the last delta may not fit its base."""
    maker = PackMaker()
    for chain in range(count):
        content = b"chain %d\n" % chain * 4
        maker.blob(content)
        for link in range(length):
            is_bad = is_spoiled and chain == count - 1 and link == length - 1
            size = len(content) + is_bad
            content = maker.delta(
                maker.offsets[-1], content, b"%d %d\n" % (chain, link), base_size=size
            )
    return maker


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    maker = chains(1500, 4)
    found = assert_two_find_what_one_finds(tmp_path, maker.whole())
    assert found["delta_count"] == 6000
    assert pack_halves.find_middle(streams_of(tmp_path, maker.whole())) in maker.offsets


def test_two_processes_refuse_what_one_refuses(tmp_path: Path) -> None:
    """The spoiled delta is in the second one's half."""
    with pytest.raises(PackInvalidError, match="delta does not fit its base"):
        found_in(tmp_path / "x", chains(1500, 4, is_spoiled=True).whole(), may_fork=True)


def test_files_whose_content_is_checked_are_found_in_both_halves(tmp_path: Path) -> None:
    maker = PackMaker()
    for word in (b"a", b"z"):
        maker.add(TREE, b"100644 .gitmodules\0" + word * 20)
        maker.fill(word.decode())
    found = assert_two_find_what_one_finds(tmp_path, maker.whole())
    assert found["special_files"] == {(".gitmodules", word * 20) for word in (b"a", b"z")}


@pytest.mark.skipif(not has_second_core(), reason="one core only")
def test_the_second_process_reads_its_half(tmp_path: Path) -> None:
    pack = chains(1500, 4).whole()
    streams = streams_of(tmp_path, pack)
    middle = pack_halves.find_middle(streams)
    scan = PackScan(streams, PackLimits(), ObjectChecks(ObjectStore.over([]), None))
    pack_halves.scan_by_two(scan, 7500)
    assert middle is not None
    assert max(scan.kept) < middle
    assert (scan.entry_count, scan.at) == (7500, streams.end)


@pytest.mark.skipif(not has_second_core(), reason="one core only")
@pytest.mark.parametrize("may_fork", [False, True])
def test_a_thin_pack_of_two_halves_is_stored_as_git_reads_it(
    tmp_path: Path,
    *,
    may_fork: bool,
) -> None:
    """A base from elsewhere is added to what both processes have read."""
    bare = tmp_path / "r.git"
    subprocess.run(["git", "init", "-q", "--bare", bare], check=True)
    old = b"a stored line\n"
    stored = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], cwd=bare, input=old, capture_output=True
    )
    maker = PackMaker()
    maker.delta(bytes.fromhex(stored.stdout.decode()), old, b"a new line\n")
    maker.fill("a", 2 * FILL_COUNT)
    path = bare / "objects/pack/received"
    path.write_bytes(maker.whole())
    bases = ObjectStore(bare / "objects")
    found = index_pack(path, bases=bases, limits=PackLimits(), may_fork=may_fork)
    count = len(maker.offsets) + 1
    assert len(found.completed) == 1
    assert struct.unpack_from(">L", found.path.read_bytes(), 8) == (count,)
    index = ("index-pack", "-o", tmp_path / "i.idx", found.path)
    for command in (("verify-pack", found.path), index):
        done = subprocess.run(["git", *command], cwd=bare, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "i.idx").read_bytes() == found.index_path.read_bytes()


def test_bases_are_found_across_the_middle(tmp_path: Path) -> None:
    """A chain that begins before the middle and ends behind it, with links by id in both halves."""
    maker = PackMaker()
    old = b"the first line\n"
    at = maker.blob(old)
    old = maker.delta(at, old, b"and one in the first half\n")
    at = maker.offsets[-1]
    last = old + b"second half\n"
    last_id = hashlib.sha1(b"blob %d\0%b" % (len(last), last)).digest()
    maker.fill("a")
    maker.delta(last_id, last, b"by id, before\n")
    maker.fill("b")
    assert maker.delta(at, old, b"second half\n") == last
    maker.delta(last_id, last, b"by id, behind\n")
    found = assert_two_find_what_one_finds(tmp_path, maker.whole())
    assert len(found["oids"]) == 2 * FILL_COUNT + 5


def test_streams_inside_of_a_blob_do_not_mislead_the_second_process(tmp_path: Path) -> None:
    """The middle lies in a blob that is stored as it is and is full of whole streams."""
    maker = PackMaker()
    maker.fill("a")
    inner = b"".join(zlib.compress(b"inner %d" % number) for number in range(8000))
    begin = maker.blob(inner, level=0)
    end = len(maker.body)
    maker.fill("b")
    middle = pack_halves.find_middle(streams_of(tmp_path, maker.whole()))
    assert middle is not None
    assert begin < middle < end
    assert_two_find_what_one_finds(tmp_path, maker.whole())


def test_a_base_that_is_no_entry_is_refused(tmp_path: Path) -> None:
    """An entry inside of a stored blob of the first half, as a base in the second half."""
    maker = PackMaker()
    hidden = b"a hidden base\n"
    entry = entry_head(BLOB, len(hidden)) + zlib.compress(hidden)
    maker.blob(b"before" + entry, level=0)
    inside = bytes(maker.body).index(entry)
    maker.fill("a")
    maker.fill("b")
    maker.delta(inside, hidden, b"a line\n")
    for may_fork in (False, True):
        with pytest.raises(PackInvalidError, match="unresolved deltas"):
            found_in(tmp_path / str(may_fork), maker.whole(), may_fork=may_fork)


def test_what_does_not_fit_in_memory_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = chains(1500, 4).whole()
    one = found_in(tmp_path / "all at once", pack, may_fork=False)
    monkeypatch.setattr("storage.git.pack_scan.KEPT_BYTES_MAX", 20_000)
    assert found_in(tmp_path / "one", pack, may_fork=False) == one
    assert found_in(tmp_path / "two", pack, may_fork=True) == one


@pytest.mark.parametrize("kept_bytes_max", [0, 64 << 20])
def test_a_chain_of_deltas_that_could_not_be_read_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes_max: int
) -> None:
    monkeypatch.setattr("storage.git.pack_scan.KEPT_BYTES_MAX", kept_bytes_max)
    maker = PackMaker()
    content = b"%064d" % 0
    maker.blob(content)
    for number in range(1, DELTA_DEPTH_MAX + 2):
        data = bytes([64, 64, 0x90, 56, 8]) + b"%08d" % number
        maker.add(OFS_DELTA, data, distance(len(maker.body) - maker.offsets[-1]))
    with pytest.raises(PackInvalidError, match="chain of deltas is longer"):
        found_in(tmp_path / "x", maker.whole(), may_fork=False)


def test_a_damaged_half_is_refused_in_the_same_words(tmp_path: Path) -> None:
    numbers = random.Random(7)
    whole = chains(1500, 3).whole()
    for turn in range(6):
        body = bytearray(whole[:-20])
        body[numbers.randrange(12, len(body))] ^= 1 << numbers.randrange(8)
        pack = bytes(body) + hashlib.sha1(body).digest()
        words = []
        for may_fork in (False, True):
            try:
                words.append(str(found_in(tmp_path / f"{turn}{may_fork}", pack, may_fork=may_fork)))
            except PackInvalidError as error:
                words.append(str(error))
        assert words[0] == words[1]
