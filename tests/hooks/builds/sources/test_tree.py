"""A commit's tar onto the disk, and a folder into a tar again."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hooks.builds.errors import BuilderError, BuildFailedError
from hooks.builds.sandbox.disk_allowance import DiskAllowance, Spool
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sources.tree import (
    StoppedError,
    TreeSize,
    filled_folder,
    find_output,
    remove_paths,
    remove_tree,
    unpack,
)
from storage.source import SourceFile
from storage.tar import scan_tar


def unpacked_to(folder, tar, *, is_stopped=lambda: False, ignores_lfs=False, **limits):
    allowance = DiskAllowance(folder.parent, Limits(**limits))
    return unpack(
        io.BytesIO(tar),
        folder,
        allowance=allowance,
        is_stopped=is_stopped,
        ignores_lfs=ignores_lfs,
    )


def output_of(tree, folder=".", size_bytes_max=1 << 30, is_shown=lambda _: True):
    return find_output(
        tree,
        folder,
        size_bytes_max=size_bytes_max,
        is_shown=is_shown,
        is_stopped=lambda: False,
    )


def test_tree_comes_out_as_it_went_in(tmp_path, packed, unpacked):
    files = {
        "a.txt": b"a",
        "deep/er/b.bin": bytes(range(256)) * 9000,
        "run": (b"#!/bin/sh\n", 0o755),
        "link": "deep/er/b.bin",
        "umläut/ß.txt": b"",
        "x" * 200 + "/" + "y" * 200: b"long",
    }
    size = unpacked_to(tmp_path / "app", packed(files))
    assert size == TreeSize(5, 1 + 256 * 9000 + 10 + 4)
    assert os.access(tmp_path / "app/run", os.X_OK)
    assert not os.access(tmp_path / "app/a.txt", os.X_OK)
    output = output_of(tmp_path / "app")
    assert output.size == size
    tar = b"".join(output.chunks())
    again = unpacked(tar)
    assert again["deep/er/b.bin"] == files["deep/er/b.bin"]
    assert again["link"] == "deep/er/b.bin"
    assert {name for name, content in again.items() if content is not None} == set(files)
    assert b"".join(output.chunks()) == tar  # as often as wanted


def test_output_is_what_controls_reader_takes(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").write_bytes(b"x")
    (tmp_path / "run").chmod(0o711)
    entries = {
        entry.path: entry for entry in scan_tar(io.BytesIO(b"".join(output_of(tmp_path).chunks())))
    }
    assert set(entries) == {b"empty", b"run"}
    assert isinstance(entries[b"run"], SourceFile)
    assert entries[b"run"].executable


def test_large_output_comes_in_chunks(tmp_path):
    (tmp_path / "big").write_bytes(bytes(5 << 20))
    sizes = [len(chunk) for chunk in output_of(tmp_path).chunks()]
    assert len(sizes) >= 5
    assert max(sizes) < 3 << 20


@pytest.mark.parametrize(
    "files",
    [
        {"../out": b"x"},
        {"/abs": b"x"},
        {"a/../../out": b"x"},
        {"up": "..", "up/out": b"x"},
        {"up": b"", "up/out": b"x"},
        {"bad\nname": b"x"},
    ],
)
def test_hostile_source_is_refused_and_writes_nothing_outside(tmp_path, packed, files):
    app = tmp_path / "inner" / "app"
    app.parent.mkdir()
    with pytest.raises(BuildFailedError) as caught:
        unpacked_to(app, packed(files))
    assert caught.value.code == "build.output_invalid"
    assert not (tmp_path / "out").exists()
    assert [path.name for path in app.parent.iterdir()] == ["app"]


def test_source_cut_short_is_refused(tmp_path, packed):
    tar = packed({"a": b"x" * 5000})
    with pytest.raises(BuildFailedError, match="cut short"):
        unpacked_to(tmp_path / "app", tar[:3000])


@pytest.mark.parametrize(
    ("files", "limits", "setting"),
    [
        ({"a": bytes(3 << 20)}, {"disk_bytes": 2 << 20}, "disk_bytes_max"),
        ({f"{n}": b"" for n in range(600)}, {"disk_bytes": 2 << 20}, "disk_bytes_max"),
        ({"a": b"a"}, {"disk_free_bytes": 1 << 60}, "disk_free_bytes_min"),
    ],
)
def test_source_takes_no_more_of_the_disk_than_its_build_may(
    tmp_path, packed, files, limits, setting
):
    with pytest.raises(BuildFailedError, match=rf"^disk: .* \(builders\.{setting}\)\.$") as caught:
        unpacked_to(tmp_path / "app", packed(files), **limits)
    assert caught.value.code == "build.limit_exceeded"
    written = sum(path.stat().st_size for path in (tmp_path / "app").iterdir())
    assert written <= 2 << 20


def test_full_disk_is_told_as_a_limit_and_never_as_a_connection_that_failed(tmp_path):
    allowance = DiskAllowance(tmp_path, Limits(disk_free_bytes=1))
    with Path("/dev/full").open("r+b", buffering=0) as full:
        spool = Spool(full, allowance)
        with pytest.raises(BuildFailedError, match=r"builders\.disk_free_bytes_min") as caught:
            spool.write(b"x")
    assert caught.value.code == "build.limit_exceeded"
    with Path("/dev/null").open("rb", buffering=0) as read_only, pytest.raises(BuilderError):
        Spool(read_only, allowance).write(b"x")


def test_removing_stops_when_told(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    gone = []
    with pytest.raises(StoppedError):
        remove_paths(tmp_path, [b"a", b"b", b"c"], gone.append, is_stopped=lambda: bool(gone))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_unpacking_and_looking_stop_when_told(tmp_path, packed):
    with pytest.raises(StoppedError):
        unpacked_to(tmp_path / "app", packed({"a": b""}), is_stopped=lambda: True)
    asked = []
    with pytest.raises(StoppedError):  # in the midst of a file too
        unpacked_to(
            tmp_path / "half",
            packed({"a": bytes(5 << 20)}),
            is_stopped=lambda: asked.append(1) or len(asked) > 3,
        )
    assert (tmp_path / "half/a").stat().st_size < 5 << 20
    (tmp_path / "x").touch()
    with pytest.raises(StoppedError):
        find_output(
            tmp_path,
            ".",
            size_bytes_max=9,
            is_shown=lambda _: True,
            is_stopped=lambda: True,
        )


def test_output_counts_only_what_is_shown(tmp_path):
    (tmp_path / "keep").write_bytes(b"1234")
    (tmp_path / "hide").write_bytes(b"12345")
    output = output_of(tmp_path, size_bytes_max=4, is_shown=lambda path: path != "hide")
    assert str(output.size) == "1 file, 4 bytes"


def test_what_is_no_part_of_the_output_may_be_of_any_kind(tmp_path):
    (tmp_path / "page").touch()
    (tmp_path / "cache").mkdir()
    os.mkfifo(tmp_path / "cache/daemon")
    output = output_of(tmp_path, is_shown=lambda path: not f"{path}/".startswith("cache/"))
    assert [entry.path for entry in output.entries] == [b"page"]
    with pytest.raises(BuildFailedError, match="cache/daemon"):
        output_of(tmp_path)


def test_links_inside_the_output_are_kept_and_those_that_leave_it_refused(tmp_path):
    (tmp_path / "dist/a").mkdir(parents=True)
    (tmp_path / "dist/file").touch()
    (tmp_path / "dist/a/fine").symlink_to("../file")
    (tmp_path / "dist/python").symlink_to("/usr/bin/python3")
    output_of(tmp_path, "dist")
    (tmp_path / "dist/a/up").symlink_to("..")
    output_of(tmp_path, "dist")
    (tmp_path / "dist/sly").symlink_to("a/up/../x")
    with pytest.raises(BuildFailedError, match="sly"):
        output_of(tmp_path, "dist")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda tree: None, "build.output_missing"),
        (lambda tree: (tree / "dist").mkdir(), "build.output_missing"),
        (lambda tree: (tree / "dist/sub").mkdir(parents=True), "build.output_missing"),
        (lambda tree: (tree / "dist").symlink_to("/etc"), "build.output_invalid"),
        (lambda tree: (tree / "dist").touch(), "build.output_invalid"),
        (lambda tree: os.mkfifo(tree / "dist"), "build.output_invalid"),
    ],
    ids=["nothing", "empty", "folders alone", "link", "file", "pipe"],
)
def test_output_that_is_no_folder_with_files_is_refused(tmp_path, make, code):
    make(tmp_path)
    with pytest.raises(BuildFailedError) as caught:
        output_of(tmp_path, "dist")
    assert caught.value.code == code


@pytest.mark.root
def test_strangers_file_is_no_part_of_an_output(tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).write_bytes(b"x")
    os.chown(tmp_path / "theirs", 60690, 60690)
    with pytest.raises(BuildFailedError, match=r"^theirs: belongs to another user") as caught:
        output_of(tmp_path)
    assert caught.value.code == "build.output_invalid"


@pytest.mark.parametrize(
    ("path", "found"),
    [("out/a/b", "out/a/b"), ("out/a/b/c", None), ("dist/a", "dist/a"), ("out", "out")],
)
def test_output_is_found_in_folders_that_are_alone_as_deep_as_tools_put_it(tmp_path, path, found):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "index.html").touch()
    if found is None:
        with pytest.raises(BuildFailedError, match=r"^None of dist, out holds an index\.html"):
            filled_folder(tmp_path, ("dist", "out"))
    else:
        assert filled_folder(tmp_path, ("dist", "out")) == found


def test_output_too_large_names_the_bound(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    with pytest.raises(BuildFailedError) as caught:
        output_of(tmp_path, size_bytes_max=99)
    assert caught.value.code == "build.output_too_large"
    assert "99" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (TreeSize(0, 0), "0 files, 0 bytes"),
        (TreeSize(1, 999), "1 file, 999 bytes"),
        (TreeSize(1200, 1500), "1,200 files, 1.5 kB"),
        (TreeSize(2, 2_500_000), "2 files, 2.5 MB"),
        (TreeSize(2, 3_000_000_000), "2 files, 3.0 GB"),
    ],
)
def test_size_reads_well(size, text):
    assert str(size) == text


NESTED = """
import os
for _ in range(3000):
    os.mkdir("deep")
    os.chdir("deep")
"""


def test_any_tree_can_be_removed(tmp_path):
    tree = tmp_path / "tree"
    (tree / "locked/in").mkdir(parents=True)
    (tree / "locked/in/x").touch()
    (tree / "link").symlink_to("/etc")
    (tree / "locked/in").chmod(0)
    (tree / "locked").chmod(0)
    subprocess.run([sys.executable, "-c", NESTED], cwd=tree, check=True)
    remove_tree(tree)
    assert not tree.exists()
    remove_tree(tree)
