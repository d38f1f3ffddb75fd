"""Ingest: one artifact per tree, each content once, all of it or nothing."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import ingest
from storage.artifacts import ArtifactStore, Ingested
from storage.check import check_store
from storage.digest import Digest
from storage.errors import (
    ArtifactMissingError,
    StorageError,
    StorageFullError,
    StorageIoError,
    StoreChangedError,
    StoreUnusableError,
    TreeInvalidError,
    TreeTooLargeError,
)
from storage.files import Lease
from storage.gate import Gate
from storage.layout import blob_mtime
from storage.long_write import LONG_BYTES_MIN
from storage.materialise import materialise
from storage.records.db import Records
from storage.scan import scan_directory
from storage.source import Limits, SourceDirectory, SourceEntry, SourceFile, SourceLink
from storage.tar import scan_tar
from tests.power import KINDS, OF_THE_STORE, disk_of
from tests.warm import warm

SITE = {"index.html": b"<h1>hello</h1>", "bin/run*": b"#!/bin/sh\n", "empty": b""}
VECTOR = {
    "bin/app*": b"#!/bin/sh\necho hi\n",
    "share/empty": b"",
    "share/hello.txt": b"hello world\n",
}


def vector(files: Callable[[dict[str, bytes]], list[SourceEntry]]) -> list[SourceEntry]:
    return [*files(VECTOR), SourceLink(b"share/link", b"hello.txt")]


def is_clean(shop) -> bool:
    report = check_store(shop.folder / "store", shop.records)
    return report.is_sound and not report.leftovers and not list(shop.store.layout.tmp.iterdir())


# -- identity ----------------------------------------------------------------------------------


def test_vector_has_its_published_digest_and_id(shop, source_files) -> None:
    ingested = shop.ingest(vector(source_files))
    assert str(ingested.digest) == (
        "blake3:51d45b24c3c7f752017426dca62b3cc54cc1fd7cc6155d5f74f05f365750437f"
    )
    assert ingested.artifact_id == "art_A7A5P963RZVN40BM4VEACASWRN"
    assert (ingested.files, ingested.size_bytes, ingested.new_blobs) == (3, 30, 3)


def write_tree(folder: Path, order: random.Random) -> None:
    names = [*VECTOR, "share/link"]
    order.shuffle(names)
    for name in names:
        path = folder / name.rstrip("*")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "share/link":
            path.symlink_to("hello.txt")
        else:
            path.write_bytes(VECTOR[name])
            if name.endswith("*"):
                path.chmod(0o700)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_same_tree_is_the_same_artifact_whatever_its_order_umask_and_times(
    shop, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        folder = tmp_path / "tree"
        folder.mkdir()
        write_tree(folder, random.Random(umask))
        os.utime(folder / "bin/app", (umask, umask))
        ingested = shop.ingest(scan_directory(folder, owner_uid=os.getuid()))
    finally:
        os.umask(before)
    assert ingested.artifact_id == "art_A7A5P963RZVN40BM4VEACASWRN"
    blob = shop.blob(b"#!/bin/sh\necho hi\n", executable=True)
    assert blob.stat().st_mode & 0o7777 == 0o555


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_same_tree_of_another_user_is_the_same_artifact(shop, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    write_tree(folder, random.Random(1))
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 60999, 60999, follow_symlinks=False)
    ingested = shop.ingest(scan_directory(folder, owner_uid=60999))
    assert ingested.artifact_id == "art_A7A5P963RZVN40BM4VEACASWRN"
    assert shop.blob(b"hello world\n").stat().st_uid == 0


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts")
@pytest.mark.parametrize("kind", KINDS)
def test_same_tree_is_the_same_artifact_on_each_filesystem(shop, kind: str) -> None:
    with disk_of(kind, lambda where: write_tree(where / "tree", random.Random(3))) as disk:
        folder = disk.begin() / "tree"
        ingested = shop.ingest(scan_directory(folder, owner_uid=os.getuid()))
    assert ingested.artifact_id == "art_A7A5P963RZVN40BM4VEACASWRN"


def test_same_tree_from_an_archive_is_the_same_artifact(shop, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    write_tree(folder, random.Random(2))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(folder, arcname=".")
    out.seek(0)
    ingested = shop.ingest(scan_tar(out))
    assert ingested.artifact_id == "art_A7A5P963RZVN40BM4VEACASWRN"


def test_empty_directory_and_executable_bit_make_another_artifact(shop, source_files) -> None:
    plain = shop.ingest({"a": b"x"})
    executable = shop.ingest({"a*": b"x"})
    with_folder = shop.ingest([*source_files({"a": b"x"}), SourceDirectory(b"empty")])
    assert len({plain.digest, executable.digest, with_folder.digest}) == 3
    assert (executable.new_blobs, with_folder.new_blobs) == (1, 0)


# -- what is kept ------------------------------------------------------------------------------


def test_content_lies_there_once_and_keeps_its_file(shop) -> None:
    shop.ingest(SITE)
    inode = shop.blob(b"<h1>hello</h1>").stat().st_ino
    again = shop.ingest({**SITE, "copy.html": b"<h1>hello</h1>", "new": b"new"})
    assert (again.files, again.new_blobs, again.new_bytes) == (5, 1, 3)
    assert shop.blob(b"<h1>hello</h1>").stat().st_ino == inode
    assert is_clean(shop)


def test_blob_bears_mode_and_time_that_follow_from_its_content(shop) -> None:
    shop.ingest(SITE)
    status = shop.blob(b"<h1>hello</h1>").stat()
    assert status.st_mode & 0o7777 == 0o444
    assert int(status.st_mtime) == blob_mtime(Digest.of(b"<h1>hello</h1>"))
    assert shop.blob(b"#!/bin/sh\n", executable=True).stat().st_mode & 0o7777 == 0o555


def test_same_tree_by_two_builds_is_one_artifact_with_two_statements(shop) -> None:
    one, two = shop.ingest(SITE), shop.ingest(SITE, site="other-site")
    assert one.artifact_id == two.artifact_id
    assert one.envelope_sha256 != two.envelope_sha256
    assert (two.new_blobs, two.new_bytes) == (0, 0)
    assert shop.verify(one).provenance.site == "acme-store"
    assert shop.verify(two).provenance.site == "other-site"


def test_hard_link_to_a_stored_file_is_taken_in_as_a_copy(shop, tmp_path: Path) -> None:
    shop.ingest({"f": b"stored"})
    tree = tmp_path / "tree"
    tree.mkdir()
    os.link(shop.blob(b"stored"), tree / "f")
    (tree / "g").write_bytes(b"new")
    os.link(tree / "g", tree / "h")
    shop.ingest(scan_directory(tree, owner_uid=os.getuid()))
    assert not shop.blob(b"new").samefile(tree / "g")
    assert shop.blob(b"new").stat().st_nlink == 1
    shutil.rmtree(tree)
    assert shop.blob(b"stored").stat().st_nlink == 1


def test_same_tree_is_the_same_artifact_in_another_locale(shop, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("ä", "Z", "a/é", "a/\u65e5\u672c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    here = shop.ingest(scan_directory(tree, owner_uid=None)).digest
    program = (
        "import sys; from pathlib import Path; from storage.scan import scan_directory as scan;"
        "from storage.source import Draft, Limits, SourceFile; from storage.digest import Digest;"
        "draft = Draft(Limits())\n"
        "for e in scan(Path(sys.argv[1]), owner_uid=None):\n"
        "    draft.admit(e)\n"
        "    if isinstance(e, SourceFile): draft.add_file(e, Digest.of(e.read()))\n"
        "print(sys.getfilesystemencoding(), draft.manifest().digest)"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    found = subprocess.run(
        [sys.executable, "-c", program, tree], env=plain, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == ["ascii", str(here)]


def test_leftover_without_a_row_is_overwritten_and_not_trusted(shop) -> None:
    path = shop.blob(b"<h1>hello</h1>")
    path.write_bytes(b"<h1>torn!</h1>")
    ingested = shop.ingest(SITE)
    assert path.read_bytes() == b"<h1>hello</h1>"
    assert shop.verify(ingested)
    assert is_clean(shop)


def test_blob_that_was_found_corrupt_is_replaced(shop) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"<h1>hello</h1>")
    path.chmod(0o644)
    path.write_bytes(b"<h1>rotten</h1")
    shop.records.write(lambda db: db.execute("UPDATE blob SET state = 3"))
    assert shop.ingest(SITE).new_blobs == 3
    assert is_clean(shop)


def test_large_file_comes_in_in_pieces_and_once(shop, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(1 << 20) * 5)
    os.link(folder / "large", folder / "again")
    first = shop.ingest(scan_directory(folder, owner_uid=None))
    second = shop.ingest(scan_directory(folder, owner_uid=None))
    assert (first.files, first.new_blobs, second.new_blobs) == (2, 1, 0)
    assert is_clean(shop)


def test_large_file_that_is_known_is_not_written(shop) -> None:
    def large(letter: bytes) -> SourceFile:
        data = [letter * (1 << 20)] * 5
        return SourceFile(b"large", 5 << 20, executable=False, read=lambda: iter(data))

    first = shop.ingest([large(b"x")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
    try:
        assert shop.ingest([large(b"x")]).digest == first.digest
        with pytest.raises(StorageError):
            shop.ingest([large(b"y")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_clean(shop)


def test_long_file_is_read_once_unless_what_is_here_is_as_long(shop) -> None:
    readings: list[bytes] = []

    def long(letter: bytes, *, times: int = 9) -> SourceFile:
        """`times`: how often it can be read."""

        def read() -> Iterator[bytes]:
            readings.append(letter)
            count = LONG_BYTES_MIN >> 20 if readings.count(letter) <= times else 0
            return iter([letter * (1 << 20)] * count)

        return SourceFile(letter, LONG_BYTES_MIN, executable=False, read=read)

    assert shop.ingest([long(b"a")]).new_blobs == 1
    assert readings == [b"a"]
    with pytest.raises(TreeInvalidError, match="changed while it was read"):
        shop.ingest([long(b"b", times=1)])
    assert readings[1:] == [b"b", b"b"]
    shop.records.write(lambda db: db.execute("UPDATE blob SET state = 3"))
    with pytest.raises(TreeInvalidError, match="changed while it was read"):
        shop.ingest([long(b"a"), long(b"c", times=1)])
    assert readings[3:] == [b"a", b"c", b"c"], "what is damaged is not here, what is staged is"
    assert shop.ingest([long(b"a")]).new_blobs == 1
    assert is_clean(shop)


@pytest.mark.parametrize("pieces", [4, 6])
def test_large_file_that_is_not_as_long_as_it_was_is_refused(shop, pieces: int) -> None:
    data = [b"x" * (1 << 20)] * pieces
    entry = SourceFile(b"large", 5 << 20, executable=False, read=lambda: iter(data))
    with pytest.raises(TreeInvalidError, match="changed while it was read"):
        shop.ingest([entry])
    assert is_clean(shop)


def test_many_files_come_in_in_several_chunks(shop) -> None:
    tree = {f"d{n % 7}/f{n}": b"%d" % n for n in range(1300)}
    ingested = shop.ingest(tree)
    assert (ingested.files, ingested.new_blobs) == (1300, 1300)
    assert shop.verify(ingested).manifest.files == 1300


def test_contents_that_wait_to_be_written_are_bounded(
    shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def tree() -> Iterator[SourceFile]:
        for number in range(4):
            data = b"%06d" % number
            yield SourceFile(data, 6, executable=False, read=lambda data=data: data)
            written.append(len(list(shop.store.layout.tmp.glob("*/[0-9]*"))))

    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 10)
    shop.ingest(tree())
    assert written == [0, 2, 2, 4]


def test_contents_that_are_known_are_read_only_where_the_store_lacks_them(shop) -> None:
    shop.ingest({"a": b"one"})
    reads = []

    def file(path: bytes, content: bytes, digest: Digest) -> SourceFile:
        def read() -> bytes:
            reads.append(path)
            return content

        return SourceFile(path, len(content), executable=False, read=read, digest=digest)

    had, lacked = file(b"a", b"one", Digest.of(b"one")), file(b"b", b"two", Digest.of(b"two"))
    ingested = shop.ingest([had, lacked])
    assert reads == [b"b"]
    assert ingested.artifact_id == shop.ingest({"a": b"one", "b": b"two"}).artifact_id
    with pytest.raises(TreeInvalidError):
        shop.ingest([had, file(b"c", b"three", Digest.of(b"four"))])
    report = check_store(shop.store.layout.root, shop.records)
    assert (report.problems, report.leftovers) == ((), ())


def test_what_record_wrote_and_the_artifact_are_one_commit(shop) -> None:
    def refuse(db: sqlite3.Connection, ingested: Ingested) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        shop.store.ingest(
            [SourceFile(b"a", 1, executable=False, read=lambda: b"x")],
            limits=Limits(),
            attest=lambda manifest: shop.attest(manifest, "build_x"),
            record=refuse,
        )
    assert not shop.blob(b"x").exists()
    assert is_clean(shop)
    assert shop.records.reader().execute("SELECT COUNT(*) FROM tree").fetchone()[0] == 0


def test_answer_of_record_is_handed_on(shop) -> None:
    ingested, answer = shop.store.ingest(
        [SourceFile(b"a", 1, executable=False, read=lambda: b"x")],
        limits=Limits(),
        attest=lambda manifest: shop.attest(manifest, "build_x"),
        record=lambda db, ingested: (ingested.artifact_id, ingested.key_id),
    )
    assert answer == (ingested.artifact_id, shop.signing_key.key_id)


# -- trees that are no artifacts ---------------------------------------------------------------


def test_kept_tree_is_there_without_a_statement(shop, tmp_path: Path) -> None:
    kept = shop.keep_tree(SITE)
    assert (kept.files, kept.size_bytes, kept.new_blobs, kept.new_bytes) == (3, 24, 3, 24)
    with shop.store.reading(kept.digest) as manifest:
        assert manifest.digest == kept.digest
        materialise(shop.store.layout, manifest, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").read_bytes() == b"<h1>hello</h1>"
    assert shop.records.reader().execute("SELECT COUNT(*) FROM artifact").fetchone()[0] == 0
    assert is_clean(shop)


def test_kept_tree_shares_blobs_with_artifacts(shop) -> None:
    shop.ingest(SITE)
    assert shop.keep_tree({**SITE, "more": b"more"}).new_blobs == 1
    assert shop.ingest({**SITE, "more": b"more"}).new_blobs == 0
    assert is_clean(shop)


def test_kept_tree_and_its_row_are_one_commit(shop) -> None:
    with pytest.raises(ZeroDivisionError):
        shop.store.keep_tree(
            [SourceFile(b"a", 1, executable=False, read=lambda: b"x")],
            limits=Limits(),
            record=lambda db, kept: 1 / 0,
        )
    assert not shop.blob(b"x").exists()
    assert is_clean(shop)


def test_reading_a_tree_that_is_not_there_is_said(shop) -> None:
    with pytest.raises(ArtifactMissingError), shop.store.reading(Digest.of(b"absent")):
        pass
    assert is_clean(shop)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        [],
        [SourceDirectory(b"a")],
        [SourceFile(b"../a", 0, executable=False, read=lambda: b"")],
        [SourceFile(b"a", 3, executable=False, read=lambda: b"four")],
        [SourceFile(b"a", 3, executable=False, read=lambda: b"to")],
        [SourceFile(b"a", 3, executable=False, read=lambda: iter([b"fo", b"ur"]))],
        [SourceFile(b"a", 3, executable=False, read=lambda: iter([b"to"]))],
        [
            SourceFile(b"a", 1, executable=False, read=lambda: b"x"),
            SourceLink(b"l", b"../../etc/passwd"),
        ],
    ],
)
def test_bad_tree_is_refused_and_leaves_nothing(shop, tree: list[SourceEntry]) -> None:
    with pytest.raises(TreeInvalidError):
        shop.ingest(tree)
    assert is_clean(shop)


def test_tree_beyond_its_limits_is_refused_and_leaves_nothing(shop) -> None:
    with pytest.raises(TreeTooLargeError):
        shop.ingest({"a": b"x" * 60, "b": b"x" * 60}, limits=Limits(size_bytes_max=100))
    assert is_clean(shop)


def test_source_that_fails_leaves_nothing(shop) -> None:
    def broken() -> Iterator[SourceEntry]:
        yield SourceFile(b"a", 1, executable=False, read=lambda: b"x")
        raise OSError(5, "the disk under the source is broken")

    with pytest.raises(StorageIoError, match="broken"):
        shop.ingest(broken())
    assert is_clean(shop)


def test_attest_that_fails_leaves_nothing(shop) -> None:
    with pytest.raises(ZeroDivisionError):
        shop.store.ingest(
            [SourceFile(b"a", 1, executable=False, read=lambda: b"x")],
            limits=Limits(),
            attest=lambda manifest: 1 / 0,  # type: ignore[arg-type,return-value]
            record=lambda db, ingested: None,
        )
    assert is_clean(shop)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts a filesystem")
def test_full_disk_is_said_and_leaves_nothing(shop, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", shop.store.layout.tmp],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        big = [
            SourceFile(b"%d" % n, 100 << 20, executable=False, read=lambda n=n: pieces(n, 100))
            for n in range(5)
        ]
        with pytest.raises(StorageFullError):
            shop.ingest(big)
        assert not list(shop.store.layout.tmp.iterdir())
    finally:
        subprocess.run(["umount", shop.store.layout.tmp], check=True)
    assert is_clean(shop)


def pieces(seed: int, count: int) -> Iterator[bytes]:
    for n in range(count):
        yield random.Random(seed * 1000 + n).randbytes(1 << 20)


# -- opening -----------------------------------------------------------------------------------


def test_unknown_format_is_refused(shop, tmp_path: Path) -> None:
    path = shop.store.layout.format
    path.chmod(0o644)
    path.write_text("cas-store 2\n")
    with pytest.raises(StoreUnusableError):
        ArtifactStore.open(shop.folder / "store", shop.records, group=None)


def test_opening_again_keeps_the_store(shop) -> None:
    name = shop.store.layout.format.read_bytes()
    ingested = shop.ingest(SITE)
    ArtifactStore.open(shop.folder / "store", shop.records, group=None)
    assert shop.store.layout.format.read_bytes() == name
    assert shop.verify(ingested)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="gives the store to a group")
def test_group_may_read_the_store_and_others_may_not(shop, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = ArtifactStore.open(tmp_path / "open", shop.records, group=60600)
    finally:
        os.umask(before)
    status = store.layout.root.stat()
    assert (status.st_mode & 0o7777, status.st_gid) == (0o750, 60600)
    assert store.layout.tmp.stat().st_mode & 0o7777 == 0o700
    assert (store.layout.root / "blobs" / "00").stat().st_mode & 0o7777 == 0o755


# -- several at once ---------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_shop
shop = make_shop(Path(sys.argv[2]))
shop.builds = iter(range(int(sys.argv[3]), 10**9, 100))
print("ready", flush=True)
for turn in range(int(sys.argv[4])):
    sys.stdin.readline()
    tree = {f"f{n}": b"%d of %d" % (n, turn) * 50 for n in range(60)}
    ingested = shop.ingest(tree)
    inodes = [shop.blob(data).stat().st_ino for data in tree.values()]
    print(ingested.digest, ingested.envelope_sha256, *inodes, flush=True)
shop.records.close()
"""


@pytest.mark.parametrize(("count", "turns"), [(2, 4), (10, 2)])
def test_processes_that_take_in_the_same_trees_get_the_same_artifacts(
    shop, count: int, turns: int
) -> None:
    """Case 8: one row and one file for a content, which stays when it comes in again."""
    shop.builds = iter(range(50, 10**9, 100))
    command = [sys.executable, "-c", WRITER, Path(__file__).parent, shop.folder]
    writers = [
        warm(OF_THE_STORE)(
            [*command, str(n), str(turns)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(1, count + 1)
    ]
    assert {line_of(writer) for writer in writers} == {"ready\n"}
    for turn in range(turns):
        for writer in writers:
            assert writer.stdin
            writer.stdin.write("go\n")
            writer.stdin.flush()
        said = [line_of(writer).split() for writer in writers]
        (digest,) = {words[0] for words in said}
        envelopes = {words[1] for words in said}
        assert len(envelopes) == count
        for envelope in envelopes:
            shop.reader.verify(Digest.parse(digest), envelope)
        contents = [b"%d of %d" % (n, turn) * 50 for n in range(60)]
        inodes = [shop.blob(data).stat().st_ino for data in contents]
        assert len(set(inodes)) == 60
        for number, inode in enumerate(inodes):  # one of those who came at once: of the last
            assert str(inode) in {words[2 + number] for words in said}
        row = shop.records.reader().execute("SELECT COUNT(*) FROM blob").fetchone()
        assert row[0] == 60 * (turn + 1)
        shop.ingest({f"f{n}": data for n, data in enumerate(contents)})  # one who comes later
        assert [shop.blob(data).stat().st_ino for data in contents] == inodes
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert is_clean(shop)


def line_of(writer: subprocess.Popen[Any]) -> str:
    assert writer.stdout
    return writer.stdout.readline()


def test_threads_that_take_in_overlapping_trees_do_not_disturb_each_other(shop) -> None:
    errors: list[Exception] = []

    def work(seed: int) -> None:
        pick = random.Random(seed)
        try:
            for _ in range(8):
                tree = {f"f{n}": b"%d" % n * 100 for n in pick.sample(range(80), 30)}
                shop.verify(shop.ingest(tree))
        except Exception as error:  # noqa: BLE001 - told by the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert is_clean(shop)


def sweep(shop, *, keep: set[bytes] = frozenset()) -> int:  # type: ignore[assignment]
    """What a collector does, in its order: forget trees, mark, unlink, drop the rows."""

    def mark(db: sqlite3.Connection) -> list[bytes]:
        db.execute("DELETE FROM ref")
        db.execute("DELETE FROM tree")
        db.execute("UPDATE blob SET state = 2")
        return [row[0] for row in db.execute("SELECT key FROM blob")]

    with Gate(shop.store.layout).collecting():
        keys = shop.records.write(mark)
        for key in keys:
            digest = Digest(key[:32])
            Path(shop.store.layout.blob(digest, executable=key[32:] == b"x")).unlink()
        shop.records.write(lambda db: db.execute("DELETE FROM blob"))
    return len(keys)


def test_blobs_that_are_collected_meanwhile_are_taken_in_again(shop) -> None:
    shop.ingest(SITE)

    def tree() -> Iterator[SourceEntry]:
        for name, data in SITE.items():
            yield SourceFile(
                name.rstrip("*").encode(), len(data), name.endswith("*"), lambda data=data: data
            )
        # All of it is known by now, and is looked up before this is asked for: too early.
        yield from (
            SourceFile(b"more%d" % n, 1, executable=False, read=lambda: b"x") for n in range(600)
        )
        assert sweep(shop) == 3

    ingested = shop.ingest(tree())
    assert (ingested.new_blobs, is_clean_but_statements(shop)) == (4, True)
    assert shop.verify(ingested)


def test_stream_whose_blobs_were_collected_asks_to_be_repeated(shop) -> None:
    shop.ingest({"a": b"y" * (1 << 20)})

    def attest(manifest):
        sweep(shop)
        return shop.attest(manifest, "build_x")

    entry = SourceFile(
        b"a", 1 << 20, executable=False, read=lambda: b"y" * (1 << 20), is_repeatable=False
    )
    with pytest.raises(StoreChangedError):
        shop.store.ingest([entry], limits=Limits(), attest=attest, record=lambda db, i: None)


def test_large_file_of_a_stream_is_kept_though_it_was_known(shop) -> None:
    data = b"y" * (1 << 20)
    shop.ingest({"a": data})

    def attest(manifest):
        sweep(shop)
        return shop.attest(manifest, "build_x")

    entry = SourceFile(
        b"a", len(data), executable=False, read=lambda: iter([data]), is_repeatable=False
    )
    shop.store.ingest([entry], limits=Limits(), attest=attest, record=lambda db, i: None)
    assert shop.blob(data).read_bytes() == data


def test_blob_that_goes_in_spite_of_the_gate_fails_the_commit(shop) -> None:
    """The rows are a guard of their own: a tree counts only with all of its blobs live."""

    class Late(ArtifactStore):
        def _commit(self, *said: Any) -> Any:
            shop.records.write(lambda db: db.execute("UPDATE blob SET state = 2"))
            return super()._commit(*said)

    shop.ingest({"a": b"a"})
    shop.store = Late.open(shop.folder / "store", shop.records, group=None)
    with pytest.raises(StoreChangedError):
        shop.ingest({"a": b"a", "b": b"b"})
    assert not shop.blob(b"b").exists()
    assert shop.records.reader().execute("SELECT COUNT(*) FROM artifact").fetchone()[0] == 1


def is_clean_but_statements(shop) -> bool:
    """The sweep above forgot a tree and left its manifest and its artifact's row."""
    report = check_store(shop.folder / "store", shop.records)
    return not [name for name in report.leftovers if name.startswith("blobs")]


# -- recovery ----------------------------------------------------------------------------------


def test_recovery_leaves_living_leases_alone(shop) -> None:
    lease = Lease.take(shop.store.layout.tmp)
    (Path(lease.path) / "0").write_text("being written")
    assert shop.store.recover().leases == 0
    assert (Path(lease.path) / "0").exists()
    lease.release()
    assert not Path(lease.path).exists()


def test_recovery_removes_what_dead_leases_left(shop) -> None:
    dead = shop.store.layout.tmp / "dead"
    dead.mkdir()
    (dead / "0").write_text("half")
    (shop.store.layout.tmp / "stray").write_text("")
    assert shop.store.recover().leases == 1
    assert not dead.exists()


def test_recovery_finishes_begun_deletions(shop) -> None:
    shop.ingest(SITE)
    key = Digest.of(b"") + b"f"
    shop.records.write(lambda db: db.execute("DELETE FROM ref"))
    shop.records.write(lambda db: db.execute("UPDATE blob SET state = 2 WHERE key = ?", (key,)))
    assert shop.store.recover().deletions == 1
    assert not shop.blob(b"").exists()
    rows = shop.records.reader().execute("SELECT 1 FROM blob WHERE key = ?", (key,)).fetchall()
    assert rows == []


def test_collector_gets_its_turn_among_many_publishers(shop) -> None:
    gate = Gate(shop.store.layout)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            with gate.publishing():
                time.sleep(0.005)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        started = time.monotonic()
        for _ in range(5):
            with gate.collecting():
                pass
        assert time.monotonic() - started < 30
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_records_that_are_closed_fail_the_ingest_cleanly(shop, tmp_path: Path) -> None:
    records = Records.open(tmp_path / "other.db")
    store = ArtifactStore.open(tmp_path / "store", records, group=None)
    records.close()
    with pytest.raises(StorageError):
        store.ingest(
            [SourceFile(b"a", 1, executable=False, read=lambda: b"x")],
            limits=Limits(),
            attest=lambda manifest: shop.attest(manifest, "build_x"),
            record=lambda db, ingested: None,
        )
