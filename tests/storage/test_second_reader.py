"""A second process that reads the store's files: what it does not read, the first one does."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from pathlib import Path

import pytest

from storage import second_reader
from storage.blobs import blob_sizes
from storage.check import check_store
from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.records import blobs as records_of_blobs
from storage.second_reader import SecondReader, reading_halves
from storage.stored_blobs import reading_blobs
from storage.unpacked import verify_tree
from tests.power import disk_of, needs_disks

TREE = {"page": b"page", "run*": b"#!", "empty": b"", "d/large": b"x" * (5 << 20)}

needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
is_root, has_disks = needs_disks


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is to read."""
    monkeypatch.setattr(second_reader, "FILES_COUNT_MIN", 1)


@pytest.fixture
def verified(shop):
    return shop.verify(shop.ingest(TREE))


def overwrite(path: Path) -> None:
    """Other bytes, and nothing that `stat` could tell."""
    status = path.stat()
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_it_names_what_is_not_as_it_must_be(shop, verified) -> None:
    overwrite(shop.blob(TREE["d/large"]))
    shop.blob(TREE["run*"], executable=True).unlink()
    second = SecondReader(shop.store.layout)
    try:
        second.begin(blob_sizes(verified.manifest).items())
        found = second.result()
    finally:
        second.stop()
    large, run = shop.blob(TREE["d/large"]), shop.blob(TREE["run*"], executable=True)
    assert {(key[:32].hex(), key[32:]) for key in found} == {
        (large.parent.name + large.name, b"f"),
        (run.parent.name + run.name.removesuffix(".x"), b"x"),
    }


@needs_two
def test_damage_that_it_finds_stops_what_is_beside(shop, always, verified, tmp_path: Path) -> None:
    shop.reader.materialise(verified, tmp_path / "one")
    shop.reader.materialise(verified, tmp_path / "two", beside=tmp_path / "one")
    verify_tree(tmp_path / "two", verified.manifest)
    assert (tmp_path / "one/page").samefile(tmp_path / "two/page")
    overwrite(shop.blob(b"page"))
    with pytest.raises(ArtifactCorruptError) as caught:
        shop.reader.materialise(verified, tmp_path / "three", beside=tmp_path / "one")
    assert caught.value.path == "page"
    assert sorted(path.name for path in tmp_path.iterdir() if "three" in path.name) == []
    shop.blob(b"page").unlink()
    with (
        pytest.raises(ArtifactMissingError, match="page"),
        shop.reader.reading_blobs(verified) as blobs,
    ):
        blobs.verify()


@needs_two
@pytest.mark.parametrize(
    "how", ["killed before", "killed after", "no such program", "another one", "one that is silent"]
)
def test_what_it_did_not_read_is_read_without_it(
    shop, always, verified, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    programs = {
        "no such program": "/nowhere/python",
        "another one": "/bin/false",
        "one that is silent": "/bin/true",
    }
    monkeypatch.setattr(sys, "executable", programs.get(how, sys.executable))
    overwrite(shop.blob(b"page"))
    entries = verified.manifest.entries
    with reading_blobs(shop.store.layout, entries) as blobs:
        second = blobs._second
        assert (second is None) == (how == "no such program")
        if how == "killed before":
            second._process.kill()
            second._process.wait()
        blobs.begin(entries)
        if how == "killed after":
            second._process.kill()
        with pytest.raises(ArtifactCorruptError) as caught:
            blobs.verify()
    assert caught.value.path == "page"
    assert second is None or second._process.returncode is not None


@needs_two
@pytest.mark.parametrize("program", [sys.executable, "/bin/false"])
def test_check_finds_damage_in_either_half(
    shop, always, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    contents = [b"%d" % number for number in range(32)]
    shop.ingest({f"f{number}": data for number, data in enumerate(contents)})
    blobs = sorted((shop.blob(data) for data in contents), key=lambda path: path.parts[-2:])
    assert check_store(shop.store.layout.root, shop.records).is_sound
    monkeypatch.setattr(sys, "executable", program)
    with reading_halves(
        shop.store.layout, records_of_blobs.each_live(shop.records.reader())
    ) as halves:
        assert 10 < len(halves._ours) < 22
        assert len(halves._ours) + len(halves._theirs) == len(contents)
    for path in (blobs[0], blobs[-1]):
        overwrite(path)
    report = check_store(shop.store.layout.root, shop.records)
    assert sorted(str(finding.part) for finding in report.findings) == [
        f"blob blake3:{path.parent.name}{path.name}" for path in (blobs[0], blobs[-1])
    ]


@needs_two
@is_root
@has_disks
@pytest.mark.parametrize("program", [sys.executable, "/bin/false"])
def test_check_tells_what_the_medium_lost_and_memory_has(
    shop_at, always, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    contents = [b"%d" % number * 2048 for number in range(1000, 1032)]
    tree = {f"f{number}": data for number, data in enumerate(contents)}
    made: list[str] = []

    def fill(where: Path) -> None:
        shop = shop_at(where / "shop")
        made.append(shop.ingest(tree).envelope_sha256)
        shop.records.close()

    with disk_of("ext4", fill) as disk:
        shop = shop_at(disk.begin() / "shop")
        layout = shop.store.layout
        assert check_store(layout.root, shop.records).is_sound
        ordered = sorted(contents, key=Digest.of)
        manifest = next(layout.root.glob("trees/*/*")).read_bytes()
        statement = Path(layout.envelope(made[0])).read_bytes()
        for data in (ordered[0], ordered[-1], manifest, statement):
            spoil(disk.image, data)
        monkeypatch.setattr(sys, "executable", program)
        assert check_store(layout.root, shop.records).is_sound
        report = check_store(layout.root, shop.records, from_medium=True)
        shop.records.close()
    assert [str(finding.part) for finding in report.findings] == [
        f"blob {Digest.of(ordered[0])}",
        f"blob {Digest.of(ordered[-1])}",
        f"envelope {made[0]}",
        f"manifest {Digest.of(manifest)}",
    ]


def spoil(image: Path, data: bytes) -> None:
    """Change what lies on a disk, behind the back of whoever has it mounted."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
        place = disk.find(data)
        assert place > 0
        disk[place] ^= 1


@needs_two
def test_a_reader_that_was_killed_has_read_nothing_though_nobody_hears_of_it(
    shop, always, verified
) -> None:
    entries = verified.manifest.entries
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with reading_blobs(shop.store.layout, entries) as blobs:
            blobs._second._process.kill()
            blobs.begin(entries)
            shop.blob(b"page").unlink()
            with pytest.raises(ArtifactMissingError, match="page"):
                blobs.verify()
    finally:
        signal.signal(signal.SIGCHLD, before)
