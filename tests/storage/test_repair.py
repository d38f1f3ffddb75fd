"""Damage goes into quarantine and out of the way; good copies, from wherever, take its place."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.check import Report, check_store
from storage.collect import Collector, Order
from storage.copies import Source, anything_at, issued_statements, release_folders, twins
from storage.digest import Digest
from storage.errors import ArtifactError, StorageFullError
from storage.export import exporting
from storage.layout import blob_mtime
from storage.parts import Part
from storage.proof_archive import PROOF_SUFFIX, write_proof
from storage.quarantine import Quarantine
from storage.records import blobs, damage
from storage.reindex import rebuild_index
from storage.repair import Mended, Repairer
from storage.retention import Retention
from storage.unpacked import verify_tree
from tests.spoiling import flip, rewrite
from tests.storage.test_collect import make_stuck

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n", "a/b": b"b" * 3_000_000}


def check(shop) -> Report:
    return check_store(shop.folder / "store", shop.records)


def repairer_of(shop) -> Repairer:
    return Repairer(shop.store, shop.records)


def condemn_all(shop) -> Repairer:
    """Condemn what a check finds, as the scrub would."""
    repairer = repairer_of(shop)
    repairer.condemn([found.part for found in check(shop).findings if found.part is not None])
    return repairer


def mend(shop, *sources: Source) -> list[Mended]:
    return condemn_all(shop).mend(sources)


def unpack(shop, ingested, name: str = "out") -> Path:
    folder = shop.folder / name
    shop.reader.materialise(shop.verify(ingested), folder)
    return folder


@contextmanager
def release_of(shop, ingested) -> Iterator[Callable[[], dict[Digest, list[Path]]]]:
    """An unpacked release with its proof, as a site host keeps it."""
    folder = unpack(shop, ingested, "000001-release")
    parts = shop.reader.proof(shop.reader.manifest(ingested.digest), [ingested.envelope_sha256], [])
    proof = folder.with_name(folder.name + PROOF_SUFFIX)
    proof.write_bytes(b"".join(write_proof(parts, files=None)))
    yield lambda: {ingested.digest: [folder]}


def export(shop, ingested) -> Path:
    path = shop.folder / "export.tar"
    with exporting(
        shop.store,
        shop.reader,
        ingested.digest,
        provenance=[ingested.envelope_sha256],
        releases=[],
    ) as found:
        path.write_bytes(b"".join(found.pieces))
    return path


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: rewrite(path, path.read_bytes()[:-1]),
    "longer": lambda path: rewrite(path, path.read_bytes() + b"x"),
    "empty": lambda path: rewrite(path, b""),
    "missing": lambda path: path.unlink(),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage_it", DAMAGE.values(), ids=DAMAGE)
def test_damaged_blob_is_kept_aside_and_mended_by_taking_its_content_in(
    shop, damage_it: Callable[[Path], object]
) -> None:
    ingested = shop.ingest(SITE)
    path = shop.blob(b"hello")
    damage_it(path)
    found = os.lstat(path) if os.path.lexists(path) else None
    repairer = condemn_all(shop)
    assert not os.path.lexists(path)
    kept = repairer.quarantine.kept()
    if found is not None:
        (one,) = kept
        assert one.part == Part.of_blob(Digest.of(b"hello") + b"f")
        lying = os.lstat(shop.store.layout.quarantine / one.name)
        assert (lying.st_ino, lying.st_size) == (found.st_ino, found.st_size)
    assert ["it counts as absent" in problem for problem in check(shop).problems] == [True]
    with pytest.raises(ArtifactError):
        unpack(shop, ingested)
    shop.ingest({"elsewhere": b"hello"})
    assert check(shop).problems == ()
    verify_tree(unpack(shop, ingested), shop.reader.manifest(ingested.digest))
    assert repairer.quarantine.kept() == kept


def test_finding_names_what_is_hurt_and_what_to_do(world) -> None:
    shop = world.shop
    ingested = shop.ingest(SITE)
    world.release(ingested)
    flip(shop.blob(b"hello"))
    for _ in range(2):  # before it is in quarantine, and after
        (found,) = check(shop).findings
        assert found.consequence.artifacts == (ingested.artifact_id,)
        assert found.consequence.environments == ("acme-store/main",)
        assert found.consequence.hurts == (
            f"artifact {ingested.artifact_id} of acme-store; runs on acme-store/main; 1 release",
        )
        assert "gitd check --repair" in found.consequence.advice
        assert "build 7fd1a60b01f9 of acme-store again" in found.consequence.advice
        condemn_all(shop)


def sources_of(shop, ingested, how: str) -> list[Source]:
    if how == "twin":
        shop.ingest({"hello*": b"hello"})
        return [twins(shop.store.layout)]
    if how == "release folder":
        with release_of(shop, ingested) as folders:
            return [release_folders(shop.store.layout, shop.records, folders)]
    if how == "archive":
        return [anything_at(export(shop, ingested))]
    copy = shop.folder / "copy"
    (copy / "deep").mkdir(parents=True)
    (copy / "wrong").write_bytes(b"hellO")
    (copy / "deep/any-name").write_bytes(b"hello")
    return [anything_at(copy)]


@pytest.mark.parametrize("how", ["twin", "release folder", "archive", "folder"])
def test_damaged_blob_is_mended_from_another_copy(shop, how: str) -> None:
    ingested = shop.ingest(SITE)
    sources = sources_of(shop, ingested, how)
    flip(shop.blob(b"hello"))
    (mended,) = mend(shop, *sources)
    assert mended.part == Part.of_blob(Digest.of(b"hello") + b"f")
    assert check(shop).problems == ()
    assert list(shop.store.layout.tmp.iterdir()) == []
    verify_tree(unpack(shop, ingested), shop.reader.manifest(ingested.digest))
    assert len(repairer_of(shop).quarantine.kept()) == 1


def test_large_blob_is_mended_from_an_archive(shop) -> None:
    ingested = shop.ingest(SITE)
    archive = export(shop, ingested)
    flip(shop.blob(SITE["a/b"]))
    assert len(mend(shop, anything_at(archive))) == 1
    assert check(shop).problems == ()


@pytest.mark.parametrize("how", ["release folder", "archive", "folder"])
def test_manifest_and_envelope_are_mended_from_another_copy(shop, how: str) -> None:
    ingested = shop.ingest(SITE)
    manifest = Path(shop.store.layout.tree(ingested.digest))
    envelope = Path(shop.store.layout.envelope(ingested.envelope_sha256))
    sources = sources_of(shop, ingested, how)
    if how == "folder":
        shutil.copy(manifest, shop.folder / "copy/m")
        shutil.copy(envelope, shop.folder / "copy/e")
    flip(manifest)
    flip(envelope)
    flip(shop.blob(b"hello"))  # where a release folder has it stands in the manifest
    assert len(mend(shop, *sources)) == 3
    assert check(shop).problems == ()
    unpack(shop, ingested)


def test_release_folder_whose_proof_is_damaged_has_its_files_still(shop) -> None:
    ingested = shop.ingest(SITE)
    with release_of(shop, ingested) as folders:
        (folder,) = folders()[ingested.digest]
        flip(Path(shop.store.layout.envelope(ingested.envelope_sha256)))
        flip(shop.blob(b"hello"))
        proof = folder.with_name(folder.name + PROOF_SUFFIX)
        flip(proof, 0)  # in the head of its first member: it is no archive any more
        mended = mend(shop, release_folders(shop.store.layout, shop.records, folders))
    assert Part.of_blob(Digest.of(b"hello") + b"f") in {one.part for one in mended}


@pytest.mark.parametrize("how", ["mended", "taken in again"])
def test_known_tree_without_its_references_is_whole_again(shop, how: str) -> None:
    ingested = shop.ingest(SITE)
    shop.pin(ingested)
    archive = export(shop, ingested)
    shop.records.write(lambda db: db.execute("DELETE FROM ref"))
    flip(Path(shop.store.layout.tree(ingested.digest)))
    flip(shop.blob(b"hello"))
    repairer = condemn_all(shop)
    if how == "mended":
        assert len(repairer.mend([anything_at(archive)])) == 2
    else:
        shop.ingest(SITE)
    assert check(shop).problems == ()
    assert rebuild_index(shop.store, shop.records).changed == 0
    Collector(shop.store, shop.records, Retention()).run(Order(is_hurried=True))
    verify_tree(unpack(shop, ingested), shop.reader.manifest(ingested.digest))


def test_release_statement_is_mended_from_the_records(world) -> None:
    shop = world.shop
    shop.ingest(SITE)
    text = '{"payload":""}'
    name = Digest.of(b"").hex()  # any name that is not that of the text
    for envelope_sha256, is_good in ((name, False), (_sha256(text), True)):
        world.write(
            lambda db, of=envelope_sha256, number=is_good: db.execute(
                "INSERT INTO release_statement(envelope_sha256, env_id, sequence, deployment_id,"
                " key_id, provenance_sha256, envelope, issued_at)"
                " VALUES(?,'env_1',?,'d','','',?,0)",
                (of, int(number), text),
            )
        )
        part = Part.of_envelope(envelope_sha256)
        repairer = repairer_of(shop)
        repairer.condemn([part])
        mended = repairer.mend([issued_statements(shop.records)])
        assert [one.part for one in mended] == [part] * is_good


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_what_is_offered_is_never_believed(shop) -> None:
    ingested = shop.ingest(SITE)
    with release_of(shop, ingested) as folders:
        (folder,) = folders()[ingested.digest]
        flip(folder / "index.html")
        flip(shop.blob(b"hello"))
        assert mend(shop, release_folders(shop.store.layout, shop.records, folders)) == []
    archive = export_with(shop, ingested, b"hello", b"jello")
    assert repairer_of(shop).mend([anything_at(archive)]) == []
    assert repairer_of(shop).mend([anything_at(shop.folder / "nowhere")]) == []
    (shop.folder / "no tar").write_bytes(b"x" * 2000)
    assert repairer_of(shop).mend([anything_at(shop.folder / "no tar")]) == []
    assert not os.path.lexists(shop.blob(b"hello"))
    assert list(shop.store.layout.tmp.iterdir()) == []


def export_with(shop, ingested, old: bytes, new: bytes) -> Path:
    shop.blob(old).write_bytes(old)
    path = export(shop, ingested)
    shop.blob(old).unlink()
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


BESIDE: dict[str, Callable[[Path], object]] = {
    "mode": lambda path: path.chmod(0o644),
    "unreadable": lambda path: path.chmod(0),
    "time": lambda path: os.utime(path, (0, 0)),
}


@pytest.mark.parametrize("change", BESIDE.values(), ids=BESIDE)
def test_blob_that_only_lies_there_wrongly_is_set_right(shop, change) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    before = path.stat().st_ino
    with path.open("rb"):  # so that its number is not given away
        change(path)
        assert len(check(shop).problems) == 1
        assert mend(shop) == []
        assert path.stat().st_ino != before
    assert check(shop).problems == ()
    assert repairer_of(shop).quarantine.kept() == []


def test_content_that_was_put_in_its_place_by_hand_counts_once_it_was_read(shop) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    flip(path)
    condemn_all(shop)
    path.write_bytes(b"jello")
    assert repairer_of(shop).mend([]) == []
    rewrite(path, b"hello")
    (mended,) = repairer_of(shop).mend([])
    assert mended.source == "its own file"
    assert (path.stat().st_mode & 0o777, path.stat().st_mtime) == (
        0o444,
        blob_mtime(Digest.of(b"hello")),
    )
    assert check(shop).problems == ()


def test_place_that_cannot_be_filled_holds_up_no_other(shop) -> None:
    ingested = shop.ingest(SITE)
    archive = export(shop, ingested)
    for contents in (b"hello", SITE["a/b"]):
        flip(shop.blob(contents))
    condemn_all(shop)
    for contents in (b"hello", SITE["a/b"]):
        shop.blob(contents).mkdir()
    (shop.blob(b"hello") / "in it").touch()
    for _ in range(2):
        assert mend(shop, anything_at(archive)) == []
    for problem in check(shop).problems:
        assert problem.count("; a good copy cannot take its place: ") == 1
    shop.blob(SITE["a/b"]).rmdir()
    assert len(mend(shop, anything_at(archive))) == 1
    shutil.rmtree(shop.blob(b"hello"))
    assert len(mend(shop, anything_at(archive))) == 1
    assert check(shop).problems == ()


def test_damaged_file_that_cannot_be_moved_holds_up_no_other(shop) -> None:
    ingested = shop.ingest(SITE)
    archive = export(shop, ingested)
    flip(shop.blob(b"hello"))
    flip(shop.blob(SITE["a/b"]))
    shop.blob(SITE["run*"], executable=True).chmod(0o777)
    stuck = [shop.blob(b"hello"), shop.blob(SITE["run*"], executable=True)]
    release = [make_stuck(path, "immutable") for path in stuck]
    try:
        repairer = condemn_all(shop)
        assert len(repairer.mend([anything_at(archive)])) == 1
        said = sorted(problem.partition(": ")[2] for problem in check(shop).problems)
        assert said[0] == "has the mode 0777"
        assert "cannot be moved away: Operation not permitted" in said[1]
        assert len(said) == 2
    finally:
        for free in release:
            free()
    assert len(mend(shop, anything_at(archive))) == 1
    assert check(shop).problems == ()


def test_file_in_quarantine_that_can_be_read_after_all_is_a_copy(shop) -> None:
    ingested = shop.ingest(SITE)
    flip(shop.blob(b"hello"))
    (kept,) = condemn_all(shop).quarantine.kept()
    assert repairer_of(shop).mend([]) == []
    flip(shop.store.layout.quarantine / kept.name)  # as a disk that was unwell for a while
    (mended,) = repairer_of(shop).mend([])
    assert mended.source == "its own file, in quarantine"
    assert check(shop).problems == ()
    unpack(shop, ingested)


@pytest.mark.parametrize("what", ["blob", "tree"])
def test_file_in_quarantine_that_is_no_copy_is_read_once_and_written_nowhere(shop, what) -> None:
    ingested = shop.ingest(SITE)
    path = shop.blob(SITE["a/b"]) if what == "blob" else shop.store.layout.tree(ingested.digest)
    flip(Path(path))
    (kept,) = condemn_all(shop).quarantine.kept()
    lying = shop.store.layout.quarantine / kept.name
    tmp = shop.store.layout.tmp
    read: list[int] = []

    def pace(count: int) -> None:
        assert list(tmp.iterdir()) == []
        read.append(count)

    repairer = repairer_of(shop)
    for _ in range(3):
        assert repairer.mend([], pace=pace) == []
    size = lying.stat().st_size
    assert size <= sum(read) <= 2 * size, "once, piece by piece"
    before = lying.stat().st_ctime_ns
    while lying.stat().st_ctime_ns == before:  # a clock of few ticks
        rewrite(lying, lying.read_bytes())
    flip(lying)
    assert [one.source for one in repairer.mend([])] == ["its own file, in quarantine"]
    assert check(shop).problems == ()


def test_file_in_quarantine_that_cannot_be_read_is_tried_each_time(shop) -> None:
    shop.ingest(SITE)
    flip(shop.blob(b"hello"))
    repairer = condemn_all(shop)
    (kept,) = repairer.quarantine.kept()
    lying = shop.store.layout.quarantine / kept.name
    elsewhere = lying.rename(shop.folder / "elsewhere")
    lying.symlink_to("/proc/self/mem")  # not to be read
    assert repairer.mend([]) == []
    lying.unlink()
    elsewhere.rename(lying)
    flip(lying)
    assert len(repairer.mend([])) == 1


def test_file_in_quarantine_is_read_for_what_no_other_copy_mends(shop) -> None:
    ingested = shop.ingest(SITE)
    archive = export(shop, ingested)
    flip(shop.blob(SITE["a/b"]))
    read: list[int] = []
    repairer = condemn_all(shop)
    assert len(repairer.mend([anything_at(archive)], pace=read.append)) == 1
    assert read == []


def test_condemning_again_changes_nothing_and_crashes_in_between_are_taken_up(shop) -> None:
    shop.ingest(SITE)
    path, part = shop.blob(b"hello"), Part.of_blob(Digest.of(b"hello") + b"f")
    flip(path)
    repairer = repairer_of(shop)
    name = repairer.quarantine.secure(part, 1)
    assert repairer.quarantine.secure(part, 2) == name
    assert path.exists()  # killed here, it is found again
    assert len(repairer.condemn([part, part])) == 1
    assert [kept.name for kept in repairer.quarantine.kept()] == [name]
    assert repairer.condemn([part]) == []
    shop.records.write(lambda db: damage.heal(db, part, 0))
    path.write_bytes(b"jello")  # another damage of the same content is another file
    assert len(repairer.condemn([part])) == 1
    assert len(repairer.quarantine.kept()) == 2


@pytest.mark.parametrize("code", [errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES])
def test_damaged_file_that_takes_no_second_name_is_moved(
    shop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    flip(path)
    damaged = path.read_bytes()

    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    repairer = condemn_all(shop)
    (kept,) = repairer.quarantine.kept()
    assert (shop.store.layout.quarantine / kept.name).read_bytes() == damaged
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_damaged_file_that_quarantine_cannot_take_stays_where_it_is(
    shop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    flip(path)

    def link(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    part = Part.of_blob(Digest.of(b"hello") + b"f")
    if code == errno.ENOSPC:
        with pytest.raises(StorageFullError):
            repairer_of(shop).condemn([part])
    else:
        (found,) = repairer_of(shop).condemn([part])
        assert found.found_at is None
    assert path.exists()
    assert repairer_of(shop).quarantine.kept() == []


def test_file_that_is_gone_already_or_lies_there_as_a_link_is_put_away(shop) -> None:
    shop.ingest(SITE)
    path, part = shop.blob(b"hello"), Part.of_blob(Digest.of(b"hello") + b"f")
    path.unlink()
    path.symlink_to("nowhere")
    quarantine = Quarantine(shop.store.layout)
    name = quarantine.secure(part, 1)
    assert name is not None
    assert (shop.store.layout.quarantine / name).is_symlink()
    path.unlink()  # killed here, and done again
    quarantine.take(part, name)
    assert [kept.name for kept in quarantine.kept()] == [name]


def test_folders_in_the_place_of_files_are_put_away_and_forgotten(shop) -> None:
    shop.ingest(SITE)
    path, part = shop.blob(b"hello"), Part.of_blob(Digest.of(b"hello") + b"f")
    path.unlink()
    (path / "in it").mkdir(parents=True)
    quarantine = condemn_all(shop).quarantine
    assert [kept.part for kept in quarantine.kept()] == [part]
    assert len(quarantine.forget(1 << 60, but=())) == 1
    assert list(shop.store.layout.quarantine.iterdir()) == []
    path.parent.rmdir()
    path.parent.write_bytes(b"a file in the place of a folder")
    assert quarantine.secure(part, 1) is None
    shop.store.layout.quarantine.rmdir()
    assert quarantine.kept() == []


def test_quarantine_is_kept_while_damaged_and_for_a_time_after(world) -> None:
    shop, clock = world.shop, world.clock
    shop.ingest(SITE)
    flip(shop.blob(b"hello"))
    part = Part.of_blob(Digest.of(b"hello") + b"f")
    repairer = Repairer(shop.store, shop.records, clock=clock)
    repairer.condemn([part])
    clock.now += 1000
    assert repairer.forget_quarantined(older_than_ms=500) == []
    shop.ingest({"b": b"hello"})
    assert repairer.forget_quarantined(older_than_ms=1000) == []
    (gone,) = repairer.forget_quarantined(older_than_ms=500)
    assert gone.part == part
    assert repairer.quarantine.kept() == []


def test_damaged_parts_of_what_is_not_kept_are_collected(world) -> None:
    shop = world.shop
    ingested = shop.ingest(SITE)
    flip(shop.blob(b"hello"))
    flip(Path(shop.store.layout.tree(ingested.digest)))
    condemn_all(shop)
    world.collect()
    world.collect()
    shop.records.write(damage.tidy)
    report = check(shop)
    assert (report.problems, report.leftovers, report.blobs) == ((), (), 0)
    assert damage.every(shop.records.reader()) == []


def test_collector_goes_on_beside_a_damaged_manifest_and_keeps_its_blobs(world) -> None:
    shop = world.shop
    kept = shop.ingest(SITE)
    shop.pin(kept)
    shop.ingest({"gone": b"gone"})
    flip(Path(shop.store.layout.tree(kept.digest)))
    condemn_all(shop)
    world.collect()
    assert not shop.blob(b"gone").exists()
    assert shop.blob(b"hello").exists()
    shop.ingest(SITE)
    assert check(shop).problems == ()


def test_new_statement_vouches_where_the_old_one_is_damaged(shop) -> None:
    first = shop.ingest(SITE)
    flip(Path(shop.store.layout.envelope(first.envelope_sha256)))
    condemn_all(shop)
    again = shop.ingest(SITE)
    assert again.artifact_id == first.artifact_id
    unpack(shop, again)
    assert [problem.split()[0] for problem in check(shop).problems] == ["envelope"]


def test_damage_that_others_hear_of(world) -> None:
    shop = world.shop
    ingested, other = shop.ingest(SITE), shop.ingest({"other": b"other"})
    flip(shop.blob(b"hello"))
    condemn_all(shop)
    db = shop.records.reader()
    assert not damage.is_whole(db, str(ingested.digest))
    assert damage.is_whole(db, str(other.digest))
    assert blobs.size_of_live(db, Digest.of(b"hello") + b"f") is None
