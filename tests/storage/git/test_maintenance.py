"""Care of repositories that others made and look after too: judged by the real git."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from storage.git.check import check_repository
from storage.git.errors import RepositoryCorruptError
from storage.git.maintenance import (
    PACK_COUNT_MAX,
    may_need_care,
    needs_care,
    packs_to_join,
    take_care,
)
from storage.git.multi_pack_index import packs_of_indexes
from storage.git.pack import Pack
from storage.git.pack_index import index_row, write_index
from storage.git.repository import Repository

ENVIRON = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(*arguments: str | Path, cwd: Path, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=ENVIRON, input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


def import_commits(bare: Path, ref: str, count: int) -> None:
    """Put commits on a ref, each with a file of its own; all objects stay loose."""
    stream = []
    for number in range(count):
        text = f"{ref} {number}\n" * 30
        stream.append(
            f"commit {ref}\ncommitter A <a@b> {1700000000 + number} +0000\ndata 1\nx\n"
            + (f"from {ref}^0\n" if number == 0 and git("for-each-ref", ref, cwd=bare) else "")
            + f"M 644 inline f{number}\ndata {len(text)}\n{text}\n"
        )
    git("-c", "fastimport.unpackLimit=100000", "fast-import", "--quiet", cwd=bare,
        stdin="".join(stream))  # fmt: skip


def add_packs(bare: Path, ref: str, count: int = 20) -> set[str]:
    """Put commits on a ref, each in a pack of its own; return the packs' names."""
    import_commits(bare, ref, count)
    names = {
        git("pack-objects", "-q", "--revs", "objects/pack/pack", cwd=bare,
            stdin=f"{ref}~{number}\n" + (f"^{ref}~{number + 1}\n" if number + 1 < count else ""))
        for number in range(count)
    }  # fmt: skip
    git("prune-packed", "-q", cwd=bare)
    return {f"pack-{name}" for name in names}


def packs(bare: Path) -> set[str]:
    return {path.stem for path in (bare / "objects/pack").glob("*.pack")}


def care(bare: Path) -> int:
    """Take care as the server does, and have git look at all of it."""
    repository = Repository(bare)
    assert needs_care(repository)
    gone = take_care(repository)
    assert not needs_care(Repository(bare))
    git("fsck", "--full", "--strict", cwd=bare)
    return gone


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "-b", "main", "r.git", cwd=tmp_path)
    return tmp_path / "r.git"


def test_small_packs_become_one(bare: Path) -> None:
    names = add_packs(bare, "refs/heads/main")
    before = git("rev-list", "--objects", "--all", cwd=bare)
    assert care(bare) == 20
    assert len(packs(bare)) == 1
    assert not packs(bare) & names
    assert git("rev-list", "--objects", "--all", cwd=bare) == before


def test_packs_of_a_partial_clone_stay_what_they_are(bare: Path, tmp_path: Path) -> None:
    """What links out of a `.promisor` pack may be missing; out of another one nothing may."""
    add_packs(bare, "refs/heads/main", 4)
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    git("clone", "-q", "--bare", "--filter=blob:none", f"file://{bare}", "partial.git",
        cwd=tmp_path)  # fmt: skip
    partial = tmp_path / "partial.git"
    (promised,) = packs(partial)
    bare.rename(tmp_path / "away.git")  # nothing can be fetched later
    add_packs(partial, "refs/heads/other")
    assert care(partial) == 20
    assert promised in packs(partial)
    assert (partial / f"objects/pack/{promised}.promisor").exists()


@pytest.mark.parametrize("with_bitmaps", [False, True])
def test_packs_of_a_multi_pack_index_stay(bare: Path, *, with_bitmaps: bool) -> None:
    named = add_packs(bare, "refs/heads/main")
    git("multi-pack-index", "write", *(["--bitmap"] if with_bitmaps else []), cwd=bare)
    assert not needs_care(Repository(bare))
    add_packs(bare, "refs/heads/other")
    assert care(bare) == 20
    assert packs(bare) > named
    assert len(packs(bare)) == len(named) + 1
    git("multi-pack-index", "verify", cwd=bare)
    count = git("rev-list", "--count", "--use-bitmap-index", "--all", cwd=bare)
    assert count == git("rev-list", "--count", "--all", cwd=bare)


def test_the_packs_of_a_chain_of_indexes_are_found(bare: Path) -> None:
    named = add_packs(bare, "refs/heads/main", 3)
    git("multi-pack-index", "write", cwd=bare)
    directory = bare / "objects/pack"
    chain = directory / "multi-pack-index.d"
    chain.mkdir()
    (directory / "multi-pack-index").rename(chain / "multi-pack-index-0123.midx")
    assert packs_of_indexes(directory) == named


@pytest.mark.parametrize("damage", [b"", b"MIDX", b"MIDX\1\1\0\0\0\0\0\0", b"JUNK" * 100])
def test_beside_a_damaged_multi_pack_index_nothing_is_touched(bare: Path, damage: bytes) -> None:
    names = add_packs(bare, "refs/heads/main")
    (bare / "objects/pack/multi-pack-index").write_bytes(damage)
    with pytest.raises(RepositoryCorruptError):
        take_care(Repository(bare))
    assert packs(bare) == names


def test_marked_packs_stay(bare: Path) -> None:
    """A `.keep` is its owner's wish; a `.mtimes` says of each object how old it is."""
    names = sorted(add_packs(bare, "refs/heads/main"))
    kept = bare / f"objects/pack/{names[0]}"
    kept.with_suffix(".keep").touch()
    import_commits(bare, "refs/heads/gone", 1)
    git("update-ref", "-d", "refs/heads/gone", cwd=bare)
    git("repack", "-q", "--cruft", "--cruft-expiration=never", "-d", cwd=bare)
    (cruft,) = [path.stem for path in (bare / "objects/pack").glob("*.mtimes")]
    add_packs(bare, "refs/heads/other")
    care(bare)
    assert {names[0], cruft} <= packs(bare)
    assert (bare / f"objects/pack/{cruft}.mtimes").exists()


def test_the_owners_wish_for_no_care_is_heard(bare: Path) -> None:
    add_packs(bare, "refs/heads/main")
    for number in range(70):
        (bare / f"refs/tags/t{number}").write_text((bare / "refs/heads/main").read_text())
    git("config", "gc.autoPackLimit", "0", cwd=bare)
    repository = Repository(bare)
    assert packs_to_join(repository) == []
    assert needs_care(repository)  # for its refs
    for wish, may_pack in (("false", False), ("notbare", False), ("true", True)):
        git("config", "gc.packRefs", wish, cwd=bare)
        assert needs_care(Repository(bare)) == may_pack
    assert take_care(Repository(bare)) == 0
    assert len(packs(bare)) > PACK_COUNT_MAX
    assert not needs_care(Repository(bare))


def test_a_pack_that_counts_itself_wrongly_is_written_anew(bare: Path) -> None:
    """As one was left by a server that counted only half of what it had received."""
    names = add_packs(bare, "refs/heads/main", 2)
    before = git("rev-list", "--objects", "--all", cwd=bare)
    pack, index = (bare / "objects/pack" / f"{min(names)}{end}" for end in (".pack", ".idx"))
    body = bytearray(pack.read_bytes()[:-20])
    body[11] -= 1
    trailer = hashlib.sha1(body).digest()
    table = index.read_bytes()[:-40] + trailer
    name = f"pack-{trailer.hex()}"
    for path, data in ((pack, body + trailer), (index, table + hashlib.sha1(table).digest())):
        path.unlink()
        path.with_stem(name).write_bytes(data)
    assert not check_repository(bare, is_whole=False).is_sound
    assert may_need_care(Repository(bare))
    assert care(bare) == 1
    assert len(packs(bare)) == 2
    assert name not in packs(bare)
    assert git("rev-list", "--objects", "--all", cwd=bare) == before
    assert check_repository(bare, is_whole=True).is_sound


def test_a_pack_with_an_entry_that_its_index_lacks_stays(bare: Path) -> None:
    (name, *_) = add_packs(bare, "refs/heads/main", 1)
    index = bare / "objects/pack" / f"{name}.idx"
    pack = Pack(index)
    offsets = dict(zip(pack.oids(), pack.offsets(), strict=True))
    first = min(offsets, key=offsets.__getitem__)
    rows = [index_row(oid, pack.crc(oid), at) for oid, at in offsets.items() if oid != first]
    index.unlink()
    write_index(index, rows, pack.trailer)
    assert take_care(Repository(bare)) == 0
    assert packs(bare) == {name}
