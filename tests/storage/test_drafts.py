"""Drafts: amended to another tree they are what unpacking that tree would have made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.drafts import Draft
from storage.errors import ArtifactCorruptError, StorageIoError
from storage.layout import blob_mtime
from storage.manifest import FileEntry
from storage.source import SourceDirectory, SourceLink
from storage.unpacked import verify_tree

BEFORE = {
    "a/page.html": b"one",
    "a/run*": b"#!/bin/sh\n",
    "b": b"b",
    "same": b"same",
    "x/y/z": b"z",
}


@pytest.fixture
def manifest_of(shop, source_files):
    def make(files, *others):
        ingested = shop.ingest([*source_files(files), *others])
        return shop.verify(ingested).manifest

    return make


AFTER = {
    "another content": ({**BEFORE, "a/page.html": b"two"}, ()),
    "a new file": ({**BEFORE, "a/new/deep": b"new"}, ()),
    "a file gone": ({"same": b"same"}, ()),
    "a file that may be executed": ({"a/run": b"sh", "b*": b"b", "same": b"same"}, ()),
    "a file for a folder": ({"a": b"a", "same": b"same"}, ()),
    "a folder for a file": ({"b/c": b"c", "same": b"same"}, ()),
    "an empty folder": ({"same": b"same"}, (SourceDirectory(b"x"),)),
    "a link for a file": ({"same": b"same"}, (SourceLink(b"b", b"same"),)),
    "nothing else": (BEFORE, ()),
}


@pytest.mark.parametrize("what", AFTER)
def test_amended_draft_is_the_other_tree(shop, manifest_of, tmp_path: Path, what: str) -> None:
    files, others = AFTER[what]
    before, after = manifest_of(BEFORE, SourceLink(b"l", b"same")), manifest_of(files, *others)
    draft = Draft.unpack(shop.reader.layout, before, tmp_path / "draft", beside=None)
    verify_unplaced(tmp_path / "draft", before)
    kept = (tmp_path / "draft" / "same").stat().st_ino
    draft.amend(after)
    draft.place(tmp_path / "release")
    verify_tree(tmp_path / "release", after)
    assert (tmp_path / "release" / "same").stat().st_ino == kept
    assert [path.name for path in tmp_path.iterdir() if path.name == "draft"] == []


def verify_unplaced(path: Path, manifest) -> None:
    assert path.stat().st_mode & 0o777 == 0o700, "only its owner enters it"
    path.chmod(0o755)
    verify_tree(path, manifest)
    path.chmod(0o700)


def test_draft_links_what_the_folder_beside_it_has(shop, manifest_of, tmp_path: Path) -> None:
    manifest = manifest_of(BEFORE)
    layout = shop.reader.layout
    Draft.unpack(layout, manifest, tmp_path / "1", beside=None).place(tmp_path / "one")
    Draft.unpack(layout, manifest, tmp_path / "2", beside=tmp_path / "one").place(tmp_path / "two")
    verify_tree(tmp_path / "two", manifest)
    assert (tmp_path / "one" / "b").samefile(tmp_path / "two" / "b")


def tamper(shop, entry: FileEntry) -> None:
    path = Path(shop.reader.layout.blob(entry.digest, executable=entry.executable))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, (blob_mtime(entry.digest),) * 2)


def entry_of(manifest, path: bytes) -> FileEntry:
    return next(entry for entry in manifest.entries if entry.path == path)


def test_tampered_store_makes_no_draft(shop, manifest_of, tmp_path: Path) -> None:
    manifest = manifest_of(BEFORE)
    layout = shop.reader.layout
    Draft.unpack(layout, manifest, tmp_path / "1", beside=None).place(tmp_path / "one")
    tamper(shop, entry_of(manifest, b"b"))
    for beside in (None, tmp_path / "one"):
        with pytest.raises(ArtifactCorruptError):
            Draft.unpack(layout, manifest, tmp_path / "2", beside=beside)
        assert not (tmp_path / "2").exists()


def test_tampered_store_amends_no_draft(shop, manifest_of, tmp_path: Path) -> None:
    before, after = manifest_of(BEFORE), manifest_of({**BEFORE, "b": b"other"})
    draft = Draft.unpack(shop.reader.layout, before, tmp_path / "draft", beside=None)
    tamper(shop, entry_of(after, b"b"))
    with pytest.raises(ArtifactCorruptError):
        draft.amend(after)
    draft.discard()
    assert not (tmp_path / "draft").exists()


def test_taken_place_is_left_alone(shop, manifest_of, tmp_path: Path) -> None:
    draft = Draft.unpack(shop.reader.layout, manifest_of(BEFORE), tmp_path / "d", beside=None)
    (tmp_path / "release").mkdir()
    with pytest.raises(StorageIoError):
        draft.place(tmp_path / "release")
    assert list((tmp_path / "release").iterdir()) == []
