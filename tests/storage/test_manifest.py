"""The manifest: one spelling per tree, and no other is read."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.digest import Digest
from storage.errors import ManifestInvalidError
from storage.manifest import (
    HEADER,
    MANIFEST_BYTES_MAX,
    DirectoryEntry,
    Entry,
    FileEntry,
    LinkEntry,
    Manifest,
    encode,
)

SCRIPT = b"#!/bin/sh\necho hi\n"
HEX = b"a" * 64
VECTOR = [
    DirectoryEntry(b"bin"),
    FileEntry(b"bin/app", executable=True, size_bytes=len(SCRIPT), digest=Digest.of(SCRIPT)),
    DirectoryEntry(b"share"),
    FileEntry(b"share/empty", executable=False, size_bytes=0, digest=Digest.of(b"")),
    FileEntry(
        b"share/hello.txt", executable=False, size_bytes=12, digest=Digest.of(b"hello world\n")
    ),
    LinkEntry(b"share/link", b"hello.txt"),
]


def test_vector() -> None:
    manifest = Manifest.of(VECTOR)
    assert len(manifest.data) == 310
    assert str(manifest.digest) == (
        "blake3:51d45b24c3c7f752017426dca62b3cc54cc1fd7cc6155d5f74f05f365750437f"
    )
    assert manifest.sha256 == "6c8c73ea6b775dea8389c8f2cfc051e341308f3a497adce371880993255e0e6c"
    assert (manifest.files, manifest.size_bytes) == (3, 30)
    assert manifest.entries == tuple(VECTOR)


def test_order_of_the_entries_does_not_matter() -> None:
    assert {Manifest.of(order).digest for order in itertools.permutations(VECTOR)} == {
        Manifest.of(VECTOR).digest
    }


def test_tree_without_files_is_a_manifest() -> None:
    assert Manifest.parse(HEADER).entries == ()


HOSTILE = {
    "dotdot": b"../x\tf\t1\t%s\n" % HEX,
    "absolute": b"/x\tf\t1\t%s\n" % HEX,
    "dot": b".\td\t-\t-\n",
    "twice": b"a\td\t-\t-\na\td\t-\t-\n",
    "out of order": b"b\td\t-\t-\na\td\t-\t-\n",
    "child of a link": b"a\tl\t4\t/etc\na/passwd\tf\t1\t%s\n" % HEX,
    "child of a file": b"a\tf\t1\t%s\na/b\tf\t1\t%s\n" % (HEX, HEX),
    "no parent": b"a/b\tf\t1\t%s\n" % HEX,
    "double slash": b"a\td\t-\t-\na//b\tf\t1\t%s\n" % HEX,
    "trailing slash": b"a/\td\t-\t-\n",
    "inner dotdot": b"a\td\t-\t-\na/..\td\t-\t-\n",
    "no end of line": b"a\td\t-\t-",
    "five fields": b"a\td\t-\t-\tq\n",
    "unknown kind": b"a\tp\t-\t-\n",
    "not hexadecimal": b"a\tf\t1\t%s\n" % (b"zz" * 32),
    "negative size": b"a\tf\t-1\t%s\n" % HEX,
    "upper case": b"a\tf\t1\t%s\n" % (b"A" * 64),
    "short digest": b"a\tf\t1\taa\n",
    "long digest": b"a\tf\t1\t%s\n" % (b"a" * 66),
    "plus size": b"a\tf\t+1\t%s\n" % HEX,
    "leading zero": b"a\tf\t01\t%s\n" % HEX,
    "underscore in size": b"a\tf\t1_0\t%s\n" % HEX,
    "huge size": b"a\tf\t1%s\t%s\n" % (b"0" * 15, HEX),
    "nul": b"a\0b\tf\t1\t%s\n" % HEX,
    "directory with size": b"a\td\t1\t-\n",
    "empty line": b"\n",
    "empty last line": b"a\td\t-\t-\n\n",
    "carriage return": b"a\r\td\t-\t-\n",
    "delete": b"a\x7f\td\t-\t-\n",
    "not utf-8": b"a\xff\td\t-\t-\n",
    "surrogate": b"a\xed\xa0\x80\td\t-\t-\n",
    "target length": b"a\tl\t3\tabcd\n",
    "empty target": b"a\tl\t0\t\n",
    "long target": b"a\tl\t4096\t%s\n" % (b"t" * 4096),
    "control byte in target": b"a\tl\t3\ta\x01b\n",
    "long name": b"%s\td\t-\t-\n" % (b"n" * 256),
    "too deep": b"".join(b"%s\td\t-\t-\n" % b"/".join([b"d"] * n) for n in range(1, 66)),
    "only white space": b" \n",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        Manifest.parse(HEADER + body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        HEADER[:-1],
        HEADER.replace(b"1", b"2"),
        HEADER.replace(b"blake3", b"sha256"),
        b"\xef\xbb\xbf" + HEADER,
        HEADER.replace(b"\n", b"\r\n"),
        HEADER + HEADER,
    ],
)
def test_other_header_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalidError):
        Manifest.parse(data)


def test_limits_are_exact() -> None:
    def many(count: int) -> bytes:
        return encode(
            FileEntry(b"%06d" % n, executable=False, size_bytes=0, digest=Digest(bytes(32)))
            for n in range(count)
        )

    assert Manifest.parse(many(100_000)).files == 100_000
    with pytest.raises(ManifestInvalidError, match="too many files"):
        Manifest.parse(many(100_001))
    folders = [DirectoryEntry(b"%06d" % n) for n in range(200_001)]
    assert len(Manifest.of(folders[:-1]).entries) == 200_000
    with pytest.raises(ManifestInvalidError, match="too many entries"):
        Manifest.of(folders)
    with pytest.raises(ManifestInvalidError, match="too long"):
        Manifest.parse(bytes(MANIFEST_BYTES_MAX + 1))
    long = [DirectoryEntry(b"/".join([b"n" * 255] * n)) for n in range(1, 17)]
    assert len(long[-1].path) == 4095
    assert Manifest.of(long).entries
    with pytest.raises(ManifestInvalidError, match="its path too long"):
        Manifest.of(
            [
                *long[:-1],
                DirectoryEntry(long[-2].path + b"/o"),
                LinkEntry(long[-2].path + b"/o/" + b"p" * 254, b"t"),
            ]
        )
    deep = [DirectoryEntry(b"/".join([b"d"] * n)) for n in range(1, 65)]
    assert len(Manifest.of(deep).entries) == 64
    assert Manifest.of([DirectoryEntry(b"n" * 255)]).entries
    assert Manifest.of([LinkEntry(b"l", b"t" * 4095)]).entries


NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\x7f"),
    min_size=1,
    max_size=8,
).filter(lambda name: name not in (".", ".."))


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    entries: dict[bytes, Entry] = {}
    directories = [b""]
    for name in draw(st.lists(NAMES, max_size=12)):
        parent = draw(st.sampled_from(directories))
        path = (parent + b"/" if parent else b"") + name.encode()
        if path in entries:
            continue
        kind = draw(st.sampled_from("dfxl"))
        if kind == "d":
            entries[path] = DirectoryEntry(path)
            directories.append(path)
        elif kind == "l":
            entries[path] = LinkEntry(path, draw(NAMES).encode())
        else:
            size = draw(st.integers(0, 10**15 - 1))
            digest = Digest(draw(st.binary(min_size=32, max_size=32)))
            entries[path] = FileEntry(path, kind == "x", size, digest)
    return list(entries.values())


@given(trees(), st.randoms())
def test_any_tree_reads_back_as_itself_whatever_its_order(tree: list[Entry], random) -> None:
    manifest = Manifest.of(tree)
    random.shuffle(tree)
    assert Manifest.of(tree) == manifest
    assert Manifest.parse(manifest.data).entries == tuple(sorted(tree, key=lambda e: e.path))


@settings(max_examples=300)
@given(trees(), st.data())
def test_mutated_manifest_is_refused_or_another_tree(
    tree: list[Entry], data: st.DataObject
) -> None:
    good = bytearray(Manifest.of(tree).data)
    at = data.draw(st.integers(0, len(good) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "swap"])):
        case "flip":
            good[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del good[at : at + data.draw(st.integers(1, 10))]
        case "insert":
            good[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        case _:
            lines = bytes(good).split(b"\n")
            one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            lines[one], lines[other] = lines[other], lines[one]
            good = bytearray(b"\n".join(lines))
    try:
        manifest = Manifest.parse(bytes(good))
    except ManifestInvalidError:
        return
    assert encode(manifest.entries) == good


@given(st.binary(max_size=300))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    try:
        manifest = Manifest.parse(HEADER + rubbish)
    except ManifestInvalidError:
        return
    assert manifest.data == HEADER + rubbish


def test_large_manifest_is_read_in_good_time() -> None:
    folders = [DirectoryEntry(b"d%03d" % n) for n in range(200)]
    entries = [
        FileEntry(b"%s/file%06d.js" % (folder.path, n), False, 1234, Digest(b"\xab" * 32))
        for folder in folders
        for n in range(499)
    ]
    data = encode(sorted([*folders, *entries], key=lambda e: e.path))
    started = time.process_time()
    assert Manifest.parse(data).files == 99_800
    assert time.process_time() - started < 4
