"""The check of a repository, beside what the real git finds."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.git.check import FAULTS_MAX, RepositoryReport, check_repository
from storage.git.check_processes import check_repositories
from storage.git.indexer import index_pack
from storage.git.object_formats import BLOB, COMMIT, TREE
from storage.git.objects import ObjectStore
from storage.git.pack import Pack, entry_head
from storage.git.pack_index import index_row, write_index
from storage.git.pack_scan import PackLimits

ENVIRON = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER")
       for what in ("NAME", "EMAIL")},
}  # fmt: skip


def git(*arguments: str | Path, cwd: Path, stdin: str | bytes = b"", check: bool = True) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env=ENVIRON,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
    )
    assert not check or done.returncode == 0, (arguments, done.stderr)
    return done.stdout.decode().strip()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository with merges, tags, deltas, a submodule, packs, loose objects and refs."""
    root = tmp_path_factory.mktemp("checked")
    work = root / "w"
    git("init", "-q", "-b", "main", work, cwd=root)
    numbers = random.Random(1)
    for number in range(12):
        lines = [f"line {n} {numbers.random()}\n" for n in range(60)]
        (work / "a").write_text("".join(lines[: 40 + number]))
        (work / f"f{number % 5}").write_text(f"{number}\n")
        git("add", "-A", cwd=work)
        if number == 3:
            git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub", cwd=work)
        git("commit", "-q", "-m", str(number), cwd=work)
        if number == 5:
            git("branch", "side", "HEAD~2", cwd=work)
    git("checkout", "-q", "side", cwd=work)
    git("commit", "-q", "--allow-empty", "-m", "side", cwd=work)
    git("checkout", "-q", "main", cwd=work)
    git("merge", "-q", "-m", "merge", "side", cwd=work)
    git("tag", "-a", "-m", "t", "v1", cwd=work)
    bare = root / "r.git"
    git("clone", "-q", "--mirror", work, bare, cwd=root)
    git("repack", "-q", "-a", "-d", "-f", cwd=bare)
    git("pack-refs", "--all", cwd=bare)
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=bare)
    tip = git("commit-tree", "main^{tree}", "-p", "main", "-m", "loose", cwd=bare)
    git("update-ref", "refs/heads/loose", tip, cwd=bare)
    return bare


@pytest.fixture
def bare(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "r.git", symlinks=True))


def quick(bare: Path) -> RepositoryReport:
    return check_repository(bare, is_whole=False)


def whole(bare: Path) -> RepositoryReport:
    return check_repository(bare, is_whole=True)


def the_pack(bare: Path) -> Path:
    (found,) = (bare / "objects/pack").glob("*.pack")
    return found


def change_file(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o644)
    path.write_bytes(data)


def assert_named(report: RepositoryReport, *words: str) -> None:
    """One fault has all of these words."""
    assert any(all(word in fault for word in words) for fault in report.faults), report.faults


# what is sound


def assert_sound(bare: Path) -> None:
    git("fsck", "--full", cwd=bare)
    for report in (quick(bare), whole(bare)):
        assert report.faults == ()
        assert report.is_sound


def test_all_objects_and_refs_are_counted(bare: Path) -> None:
    assert_sound(bare)
    found = whole(bare)
    assert quick(bare).objects == found.objects
    listed = git("cat-file", "--batch-all-objects", "--batch-check", cwd=bare)
    assert found.objects == len(listed.splitlines())
    assert found.refs == len(git("for-each-ref", cwd=bare).splitlines())


def test_repositories_of_all_kinds_are_sound(bare: Path, tmp_path: Path) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=bare)
    for name, *options in (
        ("shallow", "--depth", "2"),
        ("partial", "--filter=blob:none"),
        ("borrowing", "--shared"),
        ("whole",),
    ):
        git("clone", "-q", "--bare", *options, f"file://{bare}" if name != "borrowing" else bare,
            name, cwd=tmp_path)  # fmt: skip
        assert_sound(tmp_path / name)
    git("init", "-q", "--bare", "empty", cwd=tmp_path)
    assert_sound(tmp_path / "empty")
    git("init", "-q", "w", cwd=tmp_path)
    (tmp_path / "w/big").write_bytes(random.Random(2).randbytes(9 << 20))
    git("add", "-A", cwd=tmp_path / "w")
    git("commit", "-q", "-m", "big", cwd=tmp_path / "w")
    assert_sound(tmp_path / "w/.git")
    git("repack", "-q", "-a", cwd=tmp_path / "w")  # all is there twice, packed and loose
    assert_sound(tmp_path / "w/.git")
    git("checkout", "-q", "--detach", cwd=tmp_path / "w")
    assert_sound(tmp_path / "w/.git")


def test_what_only_unreachable_objects_lack_is_no_fault(bare: Path) -> None:
    git("mktree", "--missing", cwd=bare, stdin=f"100644 blob {'1' * 40}\tgone\n")
    assert_sound(bare)


def test_links_are_looked_up_in_between_when_there_are_many(bare: Path) -> None:
    assert check_repository(bare, is_whole=True, links_max=3).is_sound
    git("update-ref", "refs/heads/lacking", lacking_commit(bare), cwd=bare)
    report = check_repository(bare, is_whole=True, links_max=3)
    assert_named(report, "refs/heads/lacking", f"missing object {'1' * 40}")


def lacking_commit(bare: Path) -> str:
    tree = git("mktree", "--missing", cwd=bare, stdin=f"100644 blob {'1' * 40}\tgone\n")
    return git("commit-tree", tree, "-m", "lacking", cwd=bare)


# refs


def test_a_ref_to_nothing_is_named(bare: Path) -> None:
    (bare / "refs/heads/bad").write_text("1" * 40 + "\n")
    for report in (quick(bare), whole(bare)):
        assert_named(report, "ref refs/heads/bad", f"object {'1' * 40} is missing")
        assert len(report.faults) == 1


def test_a_branch_of_no_commit_is_named(bare: Path) -> None:
    tag = git("rev-parse", "refs/tags/v1", cwd=bare)
    (bare / "refs/heads/bad").write_text(f"{tag}\n")
    assert_named(quick(bare), "ref refs/heads/bad", "not a commit")


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("refs/heads/bad", "", "refs/heads/bad"),
        ("refs/heads/bad", "1" * 39, "refs/heads/bad"),
        ("refs/heads/bad", "1" * 40 + "x", "refs/heads/bad"),
        ("refs/heads/bad", "ref: refs/../x", "refs/heads/bad"),
        ("refs/heads/bad..name", "{main}", "refs/heads/bad..name"),
        ("HEAD", "main", "HEAD"),
        ("packed-refs", "1" * 40 + "\n", "packed-refs: line 1"),
        ("config", "[core", "config"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(bare: Path, file: str, text: str, named: str) -> None:
    text = text.replace("{main}", git("rev-parse", "main", cwd=bare))
    (bare / file).write_text(text)
    assert_named(quick(bare), named)


def test_what_is_no_repository_is_said_to_be_none(tmp_path: Path) -> None:
    assert_named(quick(tmp_path), "no repository")


# packs and loose objects


@pytest.mark.parametrize("seed", range(6))
def test_no_flipped_bit_anywhere_is_missed(bare: Path, seed: int) -> None:
    """Of a pack, an index, or a loose object; what a quick check finds is no false alarm."""
    numbers = random.Random(seed)
    files = sorted(p for p in (bare / "objects").rglob("*") if p.suffix in ("", ".idx", ".pack"))
    files = [p for p in files if p.is_file() and p.parent.name != "info"]
    for path in files:
        before = path.read_bytes()
        at = numbers.randrange(len(before))

        def flip(data: bytearray, at: int = at) -> None:
            data[at] ^= 1 << numbers.randrange(8)

        change_file(path, flip)
        assert not whole(bare).is_sound, (path.name, at)
        change_file(path, lambda data: data.__setitem__(slice(None), before))  # noqa: B023
    assert_sound(bare)


def test_a_damaged_object_is_named_with_the_refs_that_need_it(bare: Path) -> None:
    pack = Pack(the_pack(bare).with_suffix(".idx"))
    tree = git("rev-parse", "main^{tree}", cwd=bare)
    offset = pack.find(bytes.fromhex(tree))
    assert offset is not None
    _, _, _, at = pack.header(offset)
    change_file(the_pack(bare), lambda data: data.__setitem__(at + 6, data[at + 6] ^ 0xFF))
    report = whole(bare)
    assert_named(report, the_pack(bare).name, "final sha1 did not match")
    assert_named(report, f"object {tree}: ")
    assert_named(report, "ref refs/heads/main: ", f"object {tree}")
    assert_named(report, "ref refs/tags/v1: ", f"object {tree}")
    assert not any("ref refs/heads/side" in fault for fault in report.faults)
    assert quick(bare).is_sound  # it reads no content


def test_a_missing_object_is_named_with_the_refs_that_need_it(bare: Path) -> None:
    git("update-ref", "refs/heads/lacking", lacking_commit(bare), cwd=bare)
    assert quick(bare).is_sound
    (fault,) = whole(bare).faults
    assert fault == f"ref refs/heads/lacking: missing object {'1' * 40}"


def test_a_loose_object_under_another_ones_id_is_named(bare: Path) -> None:
    tip = git("rev-parse", "refs/heads/loose", cwd=bare)
    other = bare / "objects" / "ab" / ("c" * 38)
    other.parent.mkdir(exist_ok=True)
    shutil.copy(bare / "objects" / tip[:2] / tip[2:], other)
    assert_named(whole(bare), f"object ab{'c' * 38} (loose)", "another object's")


def test_a_packed_object_under_another_ones_id_is_named(bare: Path) -> None:
    """The checksums of pack and index are right, and the index is not."""
    pack = Pack(the_pack(bare).with_suffix(".idx"))
    oids = list(pack.oids())
    wrong = [*oids[:3], oids[4], oids[3], *oids[5:]]
    rows = map(index_row, wrong, map(pack.crc, oids), pack.offsets())
    index = pack.path.with_suffix(".idx")
    index.unlink()
    write_index(index, sorted(rows), pack.trailer)
    assert_named(whole(bare), f"object {oids[3].hex()}", f"object {oids[4].hex()} in its place")


def test_the_files_of_a_pack_belong_together(bare: Path, tmp_path: Path) -> None:
    pack = the_pack(bare)
    kept = pack.read_bytes()
    pack.unlink()
    assert_named(quick(bare), f"{pack.name} is missing")
    pack.write_bytes(kept[: len(kept) // 2])
    assert_named(quick(bare), pack.with_suffix(".idx").name)
    pack.write_bytes(kept[:11] + b"\1" + kept[12:])
    assert_named(quick(bare), pack.name, "has 1 object,", "next push")
    pack.write_bytes(kept)
    assert_sound(bare)
    change_file(pack.with_suffix(".idx"), lambda data: data.__setitem__(1100, data[1100] ^ 1))
    assert_named(quick(bare), "the index of", pack.name)


def test_borrowed_objects_that_are_gone_are_named(bare: Path, tmp_path: Path) -> None:
    git("clone", "-q", "--bare", "--shared", bare, "b", cwd=tmp_path)
    bare.rename(tmp_path / "away")
    assert_named(quick(tmp_path / "b"), "borrows", str(bare))


def test_thousands_of_faults_are_told_briefly(bare: Path) -> None:
    text = "".join(f"{number:040x} refs/tags/t{number}\n" for number in range(1, 2001))
    (bare / "packed-refs").write_text(text)
    (bare / "refs/heads/loose").unlink()
    faults = quick(bare).faults
    assert len(faults) == FAULTS_MAX + 1
    assert faults[-1] == f"and {2000 - FAULTS_MAX:,} more faults like these"


def test_large_packs_are_checked_in_two_processes_with_the_same_result(tmp_path: Path) -> None:
    """More objects than one process reads alone, sound and with one byte changed in either half."""
    bare = tmp_path / "large.git"
    git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    numbers = random.Random(5)
    stream = "".join(
        f"commit refs/heads/main\ncommitter A <a@b> {1700000000 + n} +0000\ndata 1\nx\n"
        f"M 100644 inline d{n % 40}/f{n % 9}\ndata 30\n{numbers.random():<30}\n"
        for n in range(1500)
    )
    git("fast-import", "--quiet", cwd=bare, stdin=stream)
    damaged = []
    (pack,) = (bare / "objects/pack").glob("*.pack")
    for number, share in enumerate((0.2, 0.8)):
        copy = Path(shutil.copytree(bare, tmp_path / f"damaged{number}.git"))
        path = copy / "objects/pack" / pack.name
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        damaged.append(copy)
    paths = [bare, *damaged]
    together = list(check_repositories(paths, is_whole=True))
    assert together == [check_repository(path, is_whole=True) for path in paths]
    assert together[0].objects > 4000
    assert [report.is_sound for report in together] == [True, False, False]


def indexed_pack(bare: Path, *objects: tuple[int, bytes]) -> Pack:
    """Put a pack of these objects, in this order, into a repository."""
    body = b"PACK" + struct.pack(">LL", 2, len(objects))
    body += b"".join(entry_head(kind, len(data)) + zlib.compress(data) for kind, data in objects)
    path = bare / "objects/pack/received"
    path.write_bytes(body + hashlib.sha1(body).digest())
    return Pack(index_pack(path, bases=ObjectStore.over([]), limits=PackLimits()).index_path)


def test_what_the_second_process_reads_is_held_against_the_index(tmp_path: Path) -> None:
    """Two names exchanged, and a link to nothing, in its half."""
    bare = tmp_path / "r.git"
    git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    tree = b"100644 gone\0" + b"\x11" * 20
    tree_oid = hashlib.sha1(b"tree %d\0" % len(tree) + tree).hexdigest()
    commit = f"tree {tree_oid}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n".encode()
    blobs = [(BLOB, b"%d" % number) for number in range(4500)]
    pack = indexed_pack(bare, *blobs, (TREE, tree), (COMMIT, commit))
    tip = hashlib.sha1(b"commit %d\0" % len(commit) + commit).hexdigest()
    (bare / "refs/heads/main").write_text(f"{tip}\n")
    (report,) = check_repositories([bare], is_whole=True)
    assert report.faults == (f"ref refs/heads/main: missing object {'11' * 20}",)

    one, two = (hashlib.sha1(b"blob 4\0" + data).digest() for _, data in blobs[-2:])
    names = {one: two, two: one}
    places = zip(pack.oids(), pack.offsets(), strict=True)
    rows = [index_row(names.get(oid, oid), pack.crc(oid), at) for oid, at in places]
    index = pack.path.with_suffix(".idx")
    index.unlink()
    write_index(index, sorted(rows), pack.trailer)
    (report,) = check_repositories([bare], is_whole=True)
    assert_named(report, f"object {one.hex()}", f"object {two.hex()} in its place")
    assert_named(report, f"object {two.hex()}", f"object {one.hex()} in its place")
