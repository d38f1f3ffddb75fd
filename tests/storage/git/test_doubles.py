"""Packs that have an object more than once: taken, and kept with each once."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from storage.git.errors import PackInvalidError, PackOutgrownError
from storage.git.fsck import FsckRules
from storage.git.indexer import Unwritten, index_pack
from storage.git.object_formats import BLOB, COMMIT, OFS_DELTA, REF_DELTA
from storage.git.objects import ObjectStore
from storage.git.pack import Pack
from storage.git.pack_halves import HALVED_COUNT_MIN
from storage.git.pack_scan import PackLimits
from storage.git.pack_writer import offset_distance
from tests.gitd.git.conftest import run_git
from tests.storage.git.test_hostile_objects import entry
from tests.storage.git.test_pack_fuzz import blob_oid, number

TWICE = "the same object appears twice in the pack"


def insert(base: bytes, data: bytes) -> bytes:
    """A delta that takes nothing of its base."""
    return number(len(base)) + number(len(data)) + bytes([len(data)]) + data


def write(path: Path, *entries: bytes) -> bytes:
    body = b"PACK\0\0\0\2" + len(entries).to_bytes(4, "big") + b"".join(entries)
    content = body + hashlib.sha1(body).digest()
    path.write_bytes(content)
    return content


def store_of(path: Path, *entries: bytes) -> ObjectStore:
    write(path, *entries)
    pack = index_pack(path, bases=ObjectStore.over([]), limits=PackLimits())
    return ObjectStore.over([Pack(pack.index_path)])


@pytest.fixture
def received(tmp_path: Path) -> Path:
    (tmp_path / "received").mkdir()
    return tmp_path / "received/tmp_pack"


@pytest.mark.parametrize(("count", "may_fork"), [(60, False), (HALVED_COUNT_MIN, True)])
def test_pack_with_an_object_twice_is_kept_with_each_once(
    received: Path, tmp_path: Path, count: int, *, may_fork: bool
) -> None:
    texts = [b"%d" % n for n in range(count)]
    whole = [entry(BLOB, text) for text in texts]
    write(received, *whole, *whole[::-1], *whole[:7])
    bases = ObjectStore.over([])
    found = index_pack(received, bases=bases, limits=PackLimits(), may_fork=may_fork)
    assert found.oids == sorted(map(blob_oid, texts))
    assert sorted(path.suffix for path in received.parent.iterdir()) == [".idx", ".pack"]
    pack = Pack(found.index_path)
    assert pack.has_only_indexed()
    run_git("verify-pack", str(found.path), cwd=tmp_path)
    anew = ("index-pack", "--strict", "-o", str(tmp_path / "x.idx"), str(found.path))
    run_git(*anew, cwd=tmp_path)


def test_what_is_bounded_by_memory_is_left_for_a_worker(received: Path, tmp_path: Path) -> None:
    content = write(received, *[entry(BLOB, b"12345")] * 2)
    bases, limits = ObjectStore.over([]), PackLimits()
    unwritten = Unwritten(content, tmp_path / "tmp_idx")
    with pytest.raises(PackOutgrownError):
        index_pack(received, bases=bases, limits=limits, unwritten=unwritten)
    with pytest.raises(PackOutgrownError):
        index_pack(received, bases=bases, limits=PackLimits(memory_bytes_max=1 << 20))
    assert received.read_bytes() == content


def test_objects_that_come_twice_are_checked(received: Path) -> None:
    twice = [entry(COMMIT, b"tree " + b"a" * 40 + b"\nauthor A <a@b> 1 +0000\n\n")] * 2
    write(received, *twice)
    with pytest.raises(PackInvalidError, match="missingCommitter"):
        index_pack(received, bases=ObjectStore.over([]), limits=PackLimits(), rules=FsckRules({}))


def test_of_two_entries_the_one_that_needs_no_other_is_kept(received: Path) -> None:
    """Many with the same first digits: their place in the index is looked for by halves."""
    texts = [b"%d" % n for n in range(160_000)]
    texts = [text for text in texts if blob_oid(text)[0] == 0]
    base = entry(BLOB, b"base")
    entries, at = [base], 12 + len(base)
    for text in texts:
        delta = entry(OFS_DELTA, insert(b"base", text), offset_distance(at - 12))
        entries += [delta, entry(BLOB, text)]
        at += len(entries[-1]) + len(delta)
    write(received, *entries)
    found = index_pack(received, bases=ObjectStore.over([]), limits=PackLimits())
    pack = Pack(found.index_path)
    assert pack.count == len(texts) + 1
    assert [pack.header(offset)[2] for offset in pack.offsets()] == [None] * pack.count


@pytest.mark.parametrize("is_thin", [False, True])
def test_deltas_on_either_of_two_entries_are_kept(
    received: Path, tmp_path: Path, *, is_thin: bool
) -> None:
    base, one, other = b"a base", b"one of it", b"another of it"
    first = entry(REF_DELTA, insert(base, one), blob_oid(base))
    on_first = entry(OFS_DELTA, insert(one, other), offset_distance(len(first)))
    on_id = entry(REF_DELTA, insert(other, b"last"), blob_oid(other))
    entries = [first, on_first, first, on_first, on_id, on_id]
    bases = ObjectStore.over([])
    if is_thin:
        bases = store_of(tmp_path / "tmp_base", entry(BLOB, base))
    else:
        entries.append(entry(BLOB, base))
    write(received, *entries)
    found = index_pack(received, bases=bases, limits=PackLimits())
    assert found.oids == sorted(map(blob_oid, (base, one, other, b"last")))
    assert found.completed == ({blob_oid(base)} if is_thin else set())
    store = ObjectStore.over([Pack(found.index_path)])
    for data in (base, one, other, b"last"):
        assert store.get(blob_oid(data)) == (BLOB, data)
    run_git("verify-pack", str(found.path), cwd=tmp_path)


def test_objects_that_only_lead_to_themselves_are_refused(received: Path, tmp_path: Path) -> None:
    """Each of them has an entry that could be read; which it is, no index says."""
    base = entry(BLOB, b"base")
    x_by_y = entry(REF_DELTA, insert(b"yyy", b"xxx"), blob_oid(b"yyy"))
    y_by_x = entry(REF_DELTA, insert(b"xxx", b"yyy"), blob_oid(b"xxx"))
    at = len(base) + len(x_by_y) + len(y_by_x)
    x_by_base = entry(OFS_DELTA, insert(b"base", b"xxx"), offset_distance(at))
    content = write(received, base, x_by_y, y_by_x, x_by_base)
    with pytest.raises(PackInvalidError, match=f"{TWICE}, and cannot be told apart"):
        index_pack(received, bases=ObjectStore.over([]), limits=PackLimits())
    assert [path.name for path in received.parent.iterdir()] == [received.name]
    assert received.read_bytes() == content


def test_pack_that_would_grow_much_is_refused(received: Path) -> None:
    """Its deltas stand before what they need."""
    base = random.Random(2).randbytes(400_000)
    made_of_most = number(len(base)) + number(399_000) + b"\xf1%c" + (399_000).to_bytes(3, "little")
    deltas = [entry(REF_DELTA, made_of_most % n, blob_oid(base)) for n in range(60)]
    write(received, *deltas, *[entry(BLOB, base)] * 2)
    with pytest.raises(PackInvalidError, match=f"^{TWICE}$"):
        index_pack(received, bases=ObjectStore.over([]), limits=PackLimits())
    assert [path.name for path in received.parent.iterdir()] == [received.name]
