"""Properties of the pack engine: what goes in comes out, and damage is always noticed."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.git.config import GitConfig
from storage.git.delta import line_delta
from storage.git.delta_formats import delta_sizes, patched
from storage.git.errors import PackInvalidError, RepositoryCorruptError
from storage.git.fsck import FsckRules, Severity, findings
from storage.git.indexer import index_pack
from storage.git.object_formats import BLOB, COMMIT, TREE
from storage.git.objects import ObjectStore
from storage.git.pack import Pack, entry_head
from storage.git.pack_index import index_row, write_index
from storage.git.pack_scan import PackLimits
from storage.git.refs import is_valid_name

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"a longer line\n", b"x" * 200 + b"\n"]))
RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(LINES, LINES, st.binary(max_size=20))
def test_a_delta_makes_the_result_of_the_base(
    old: list[bytes], new: list[bytes], tail: bytes
) -> None:
    base, result = b"".join(old), b"".join(new) + tail
    delta = line_delta(base, result)
    if delta is not None:
        assert delta_sizes(delta) == (len(base), len(result))
        assert patched(base, delta) == result


def test_a_delta_of_two_versions_is_small() -> None:
    lines = [b"line %d of a file\n" % number for number in range(5000)]
    changed = [*lines[:100], b"new\n", *lines[100:3000], *lines[3010:]]
    delta = line_delta(b"".join(lines), b"".join(changed))
    assert delta is not None
    assert len(delta) < 60


@given(st.binary(max_size=60))
def test_a_wild_delta_is_an_error_or_a_result(delta: bytes) -> None:
    try:
        sizes = delta_sizes(delta)
        if sizes[1] < 1 << 20:
            assert len(patched(b"base" * 10, delta)) == sizes[1]
    except RepositoryCorruptError:
        pass


def pack_of(*blobs: bytes) -> bytes:
    body = b"PACK" + struct.pack(">LL", 2, len(blobs))
    for blob in blobs:
        body += entry_head(BLOB, len(blob)) + zlib.compress(blob)
    return body + hashlib.sha1(body).digest()


@RELAXED
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20, unique=True))
def test_an_indexed_pack_gives_back_its_objects(tmp_path: Path, blobs: list[bytes]) -> None:
    folder = tmp_path / os.urandom(4).hex()
    folder.mkdir()
    (folder / "x").write_bytes(pack_of(*blobs))
    indexed = index_pack(folder / "x", bases=ObjectStore.over([]), limits=PackLimits())
    pack = Pack(indexed.path.with_suffix(".idx"))
    store = ObjectStore.over([pack])
    for blob in blobs:
        oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).digest()
        assert store.get(oid) == (BLOB, blob)
        assert b"".join(store.stream(oid)) == blob
        assert store.kind_and_size(oid) == (BLOB, len(blob))
    assert sorted(pack.oids()) == list(pack.oids()) == indexed.oids
    assert subprocess.run(
        ["git", "verify-pack", indexed.path.with_suffix(".idx")], check=False
    ).returncode == 0  # fmt: skip


class _Racing(ObjectStore):
    """A store in whose searches something else happens between the packs and the loose files."""

    meanwhile: Callable[[], None] | None = None

    def _loose_path(self, oid: bytes) -> str | None:
        if self.meanwhile is not None:
            self.meanwhile()
        return super()._loose_path(oid)


@pytest.mark.parametrize("look", ["contains", "get", "kind_and_size"])
def test_a_pack_that_another_thread_saw_first_is_searched_too(tmp_path: Path, look: str) -> None:
    (tmp_path / "pack").mkdir()
    store = _Racing(tmp_path)

    def comes() -> None:
        store.meanwhile = None
        (tmp_path / "pack/x").write_bytes(pack_of(b"here"))
        index_pack(tmp_path / "pack/x", bases=ObjectStore.over([]), limits=PackLimits())
        store.refresh()

    store.meanwhile = comes
    assert getattr(store, look)(hashlib.sha1(b"blob 4\0here").digest())


@RELAXED
@given(st.data())
def test_a_damaged_pack_is_refused_and_nothing_worse(tmp_path: Path, data: Any) -> None:
    """Bytes are changed and the checksum made right again: only the structure can tell."""
    numbers = random.Random(5)
    whole = pack_of(*(numbers.randbytes(50) * 3 for _ in range(5)))
    body = bytearray(whole[:-20])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(4, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    damaged = bytes(body[: len(body) - cut * 7])
    path = tmp_path / os.urandom(4).hex()
    path.write_bytes(damaged + hashlib.sha1(damaged).digest())
    try:
        indexed = index_pack(path, bases=ObjectStore.over([]), limits=PackLimits())
    except PackInvalidError:
        return
    pack = Pack(indexed.path.with_suffix(".idx"))
    for oid in pack.oids():
        kind, content = ObjectStore.over([pack]).get(oid)
        name = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}[kind]
        assert hashlib.sha1(b"%b %d\0" % (name, len(content)) + content).digest() == oid


def test_an_object_of_the_same_id_and_another_content_is_refused(tmp_path: Path) -> None:
    """The stored object is another one on purpose: an arriving one of its id differs from it."""
    folder = tmp_path / "objects" / "pack"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(pack_of(b"content one"))
    indexed = index_pack(folder / "x", bases=ObjectStore.over([]), limits=PackLimits())
    forged = pack_of(b"content two")
    index = indexed.path.with_suffix(".idx")
    data = bytearray(index.read_bytes())
    data[-40:-20] = forged[-20:]
    data[-48:-44] = zlib.crc32(forged[12:-20]).to_bytes(4, "big")  # else it is only damaged
    index.chmod(0o644)
    index.write_bytes(data)
    indexed.path.chmod(0o644)
    indexed.path.write_bytes(forged)
    store = ObjectStore(tmp_path / "objects")
    (tmp_path / "y").write_bytes(pack_of(b"content one"))
    with pytest.raises(PackInvalidError, match="SHA1 COLLISION FOUND WITH"):
        index_pack(tmp_path / "y", bases=store, limits=PackLimits())


@pytest.mark.parametrize(
    "text",
    [
        "[a]\n\tb = c\n",
        '[a "Sub.x"]\nb = "quoted # not a comment" # a comment\n',
        "[a]\nb\n[c]d=1\n",
        "[a]\nb = one \\\n  two\nB = three ; end\n",
        '[a]\nb = "x\\ty\\n\\"z\\\\"\n',
        "# nothing\n; here\n",
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[http]\n\treceivepack = true\n",
        "[a.b]\nc = 1\n",
        "[a]\nb =\nc = ''\n",
    ],
)
def test_config_reads_as_git_reads_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    listed = subprocess.run(
        ["git", "config", "-z", "-f", path, "--list"], capture_output=True, text=True, check=True
    ).stdout
    expected: dict[str, list[str]] = {}
    for entry in filter(None, listed.split("\0")):
        key, _, value = entry.partition("\n")
        expected.setdefault(key, []).append(value)
    config = GitConfig.read(path)
    for key, values in expected.items():
        found = [value for value in [config.text(key) or ""] if value is not None]
        assert found[-1] == values[-1], key


def test_config_units_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("[a]\nk = 10k\nm = 2M\nyes\nno = off\nbad = x\n")
    config = GitConfig.read(path)
    assert config.number("a.k") == 10_240
    assert config.number("a.m") == 2 << 20
    assert config.flag("a.yes") is True
    assert config.flag("a.no") is False
    assert config.flag("a.absent", default=True) is True
    with pytest.raises(RepositoryCorruptError):
        config.flag("a.bad")


NAMES = st.text(alphabet=st.sampled_from("ab/.@{~^: \\*?[\x7f-\u00fc"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_names_of_refs_are_valid_as_git_says(name: str) -> None:
    full = f"refs/heads/{name}"
    done = subprocess.run(["git", "check-ref-format", full], check=False)
    assert is_valid_name(full.encode()) is (done.returncode == 0)


def test_fsck_grades_as_git_does() -> None:
    rules = FsckRules({"missingemail": Severity.WARN})
    good = b"tree " + b"1" * 40 + b"\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n"
    assert list(findings(COMMIT, good)) == []
    (found,) = findings(COMMIT, good.replace(b"author A <a@b>", b"author A"))
    assert found.id == "missingEmail"
    assert rules.severity(found) is Severity.WARN
    assert FsckRules().severity(found) is Severity.ERROR
    entry = b"100644 b\0" + b"x" * 20 + b"100644 a\0" + b"x" * 20
    assert [f.id for f in findings(TREE, entry)] == ["treeNotSorted"]
    assert [f.id for f in findings(TREE, entry[:29] + entry[:29])] == ["duplicateEntries"]
    assert [f.id for f in findings(TREE, b"100644 ..\0" + b"x" * 20)] == ["hasDotdot"]
    assert [f.id for f in findings(TREE, b"nonsense")] == ["badTree"]


@pytest.mark.parametrize("far", [(), (5,), (0, 7, 99)])
def test_git_reads_the_index_of_a_pack_of_any_size(tmp_path: Path, far: tuple[int, ...]) -> None:
    numbers = random.Random(3)
    rows, expected = [], []
    for number in range(100):
        oid, crc = numbers.randbytes(20), numbers.getrandbits(32)
        offset = numbers.randrange(12, 1 << 31)
        if number in far:
            offset = numbers.choice([1 << 31, (1 << 32) - 1, 1 << 32, 1 << 45])
        rows.append(index_row(oid, crc, offset))
        expected.append(f"{offset} {oid.hex()} ({crc:08x})")
    write_index(tmp_path / "x.idx", sorted(rows), numbers.randbytes(20))
    with (tmp_path / "x.idx").open("rb") as file:
        shown = subprocess.run(["git", "show-index"], stdin=file, capture_output=True, check=True)
    assert sorted(shown.stdout.decode().splitlines()) == sorted(expected)
