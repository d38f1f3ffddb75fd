"""What the site host does: verify, unpack, verify again; and everything that must be refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore
from storage.digest import Digest
from storage.envelope import encode_json, seal
from storage.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactMissingError,
    SignatureInvalidError,
    StorageError,
    StorageIoError,
    StoreUnusableError,
)
from storage.layout import blob_mtime
from storage.manifest import HEADER, FileEntry, Manifest
from storage.provenance import SANDBOX_BUILDER, RunCommands, build_provenance
from storage.reader import StoreReader
from storage.signing import SigningKey
from storage.source import SourceDirectory, SourceLink
from storage.trust import establish, revoke
from storage.trust_memory import TrustMemory
from storage.unpacked import verify_tree
from tests.power import disk_of
from tests.spoiling import flip, rewrite

LARGE = b"0123456789abcdef" * (3 << 16)


@pytest.fixture
def site(shop, source_files):
    """An ingested tree with every kind of entry in it."""
    files = source_files(
        {"a/page.html": b"hello", "a/run*": b"#!/bin/sh\n", "empty": b"", "large": LARGE}
    )
    return shop.ingest([*files, SourceDirectory(b"void"), SourceLink(b"link", b"a/page.html")])


# -- what is right -----------------------------------------------------------------------------


def test_verified_artifact_says_what_was_built_from_what(shop) -> None:
    run = RunCommands(web="python3 app.py", release="./migrate", health="/up")
    ingested = shop.ingest({"app.py": b"x"}, profile="procfile", run=run, builder=SANDBOX_BUILDER)
    verified = shop.verify(ingested, site="acme-store")
    assert verified.provenance.run == run
    assert verified.provenance.profile == "procfile"
    assert verified.provenance.commit == "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"
    assert verified.key_id == shop.signing_key.key_id
    assert verified.manifest.digest == ingested.digest


def test_build_of_a_bare_commit_has_no_ref(shop) -> None:
    assert shop.verify(shop.ingest({"a": b"x"}, ref=None)).provenance.ref is None


def test_unpacked_tree_is_the_tree(shop, site, tmp_path: Path) -> None:
    dest = tmp_path / "release"
    shop.reader.materialise(shop.verify(site), dest)
    assert {p.relative_to(dest).as_posix() for p in dest.rglob("*")} == {
        *("a", "a/page.html", "a/run", "empty", "large", "link", "void"),
    }
    assert (dest / "large").read_bytes() == LARGE
    assert (dest / "link").readlink() == Path("a/page.html")
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_and_times_follow_from_the_manifest(shop, site, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        shop.reader.materialise(shop.verify(site), tmp_path / "release")
    finally:
        os.umask(before)
    for name, mode in (("", 0o755), ("a", 0o755), ("a/page.html", 0o444), ("a/run", 0o555)):
        assert stat.S_IMODE((tmp_path / "release" / name).stat().st_mode) == mode
    page = (tmp_path / "release" / "a" / "page.html").stat()
    assert int(page.st_mtime) == blob_mtime(Digest.of(b"hello"))
    assert page.st_nlink == 1
    verify_tree(tmp_path / "release", shop.verify(site).manifest)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_reader_needs_nothing_but_its_group(shop, site, tmp_path: Path) -> None:
    ArtifactStore.open(shop.folder / "store", shop.records, group=60600)
    # Where everybody may look, and on the same disk: a copy would lose its group.
    work = Path(tempfile.gettempdir()) / f"reader-{os.getpid()}"
    work.mkdir(mode=0o711)
    try:
        (shop.folder / "store").rename(work / "store")
        (work / "host").mkdir()
        os.chown(work / "host", 60600, 60600)
        for gid, want in ((60600, 0), (60601, 1)):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.setgroups([])
                    os.setresgid(gid, gid, gid)
                    os.setresuid(60600, 60600, 60600)
                    reader = StoreReader(work / "store")
                    verified = reader.verify(site.digest, site.envelope_sha256)
                    reader.materialise(verified, work / "host" / "release")
                    code = 0
                except StorageError:
                    code = 1
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == want
        assert (work / "host" / "release" / "a" / "page.html").stat().st_uid == 60600
    finally:
        shutil.rmtree(work)


def test_taken_destination_is_left_alone(shop, site, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("x")
    with pytest.raises(StorageIoError):
        shop.reader.materialise(shop.verify(site), tmp_path / "release")
    assert [p.name for p in (tmp_path / "release").iterdir()] == ["mine"]


# -- tampering with the store ------------------------------------------------------------------


def test_flipped_bit_in_a_blob_stops_the_unpacking(shop, site, tmp_path: Path) -> None:
    for contents, name in ((b"hello", "a/page.html"), (LARGE, "large")):
        path = shop.blob(contents)
        flip(path, len(contents) // 2)
        with pytest.raises(ArtifactCorruptError) as caught:
            shop.reader.materialise(shop.verify(site), tmp_path / "release")
        assert caught.value.path == name
        flip(path, len(contents) // 2)
    assert list(tmp_path.glob("*release*")) == []
    shop.reader.materialise(shop.verify(site), tmp_path / "release")


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: data * 2],
    ids=["shorter", "longer", "empty", "twice"],
)
@pytest.mark.parametrize("contents", [b"hello", LARGE])
def test_blob_of_another_length_stops_the_unpacking(
    shop, site, tmp_path: Path, change: Callable[[bytes], bytes], contents: bytes
) -> None:
    rewrite(shop.blob(contents), change(contents))
    with pytest.raises(ArtifactCorruptError):
        shop.reader.materialise(shop.verify(site), tmp_path / "release")


def test_missing_blob_stops_the_unpacking(shop, site, tmp_path: Path) -> None:
    shop.blob(b"#!/bin/sh\n", executable=True).unlink()
    with pytest.raises(ArtifactMissingError, match="a/run"):
        shop.reader.materialise(shop.verify(site), tmp_path / "release")


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_blob_that_is_no_file_stops_the_unpacking(shop, site, tmp_path: Path, what: str) -> None:
    path = shop.blob(b"hello")
    path.unlink()
    if what == "link":
        (tmp_path / "elsewhere").write_bytes(b"hello")
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(ArtifactError):
        shop.reader.materialise(shop.verify(site), tmp_path / "release")


@pytest.mark.parametrize("at", range(0, 500, 23))
def test_flipped_bit_in_the_manifest_is_refused(shop, site, at: int) -> None:
    flip(shop.store.layout.tree(site.digest), at)
    with pytest.raises(ArtifactCorruptError):
        shop.verify(site)


def test_manifest_of_another_artifact_is_refused(shop, site) -> None:
    other = shop.ingest({"evil.html": b"x"})
    manifest = Path(shop.store.layout.tree(other.digest)).read_bytes()
    rewrite(shop.store.layout.tree(site.digest), manifest)
    with pytest.raises(ArtifactCorruptError):
        shop.verify(site)


def test_manifest_that_was_read_for_another_artifact_is_not_gone_by(shop, site) -> None:
    other = shop.reader.manifest(shop.ingest({"a": b"other"}).digest)
    found = shop.reader.verify(site.digest, site.envelope_sha256, manifest=other)
    assert found == shop.verify(site)


def test_envelope_of_another_build_of_the_same_tree_is_refused(shop) -> None:
    """It holds by itself, and says that something else is run."""
    one = shop.ingest({"a": b"a"})
    other = shop.ingest({"a": b"a"}, profile="procfile", run=RunCommands(web="./serve"))
    assert (one.digest, shop.verify(other).provenance.run.web) == (other.digest, "./serve")
    envelope = shop.store.layout.envelope
    rewrite(envelope(one.envelope_sha256), Path(envelope(other.envelope_sha256)).read_bytes())
    with pytest.raises(SignatureInvalidError, match="is not what"):
        shop.verify(one)


def test_missing_manifest_or_envelope_is_said(shop, site) -> None:
    with pytest.raises(ArtifactMissingError):
        shop.reader.verify(site.digest, "0" * 64)
    Path(shop.store.layout.tree(site.digest)).unlink()
    with pytest.raises(ArtifactMissingError):
        shop.verify(site)


@pytest.mark.parametrize("at", range(0, 2000, 89))
def test_flipped_bit_in_the_envelope_is_refused(shop, site, at: int) -> None:
    flip(shop.store.layout.envelope(site.envelope_sha256), at)
    with pytest.raises(SignatureInvalidError):
        shop.verify(site)


@pytest.mark.parametrize(
    "name", ["", "..", "0" * 63, "0" * 65, "G" * 64, "../" * 21 + "x", "0" * 64 + "/../x"]
)
def test_name_that_is_no_envelope_is_refused(shop, site, name: str) -> None:
    with pytest.raises(SignatureInvalidError):
        shop.reader.verify(site.digest, name)


def test_provenance_of_another_artifact_is_refused(shop, site) -> None:
    """Case 30."""
    other = shop.ingest({"other.html": b"x"})
    with pytest.raises(SignatureInvalidError):
        shop.reader.verify(site.digest, other.envelope_sha256)


def test_artifact_of_another_site_is_refused(shop, site) -> None:
    """Case 30."""
    with pytest.raises(SignatureInvalidError, match="another site"):
        shop.verify(site, site="not-acme")


def plant(shop, body: bytes, key: SigningKey) -> str:
    """Put an envelope into the store, as who could write there would."""
    envelope = seal(body, key)
    Path(shop.store.layout.envelope(envelope.sha256)).write_bytes(envelope.data)
    return envelope.sha256


def test_signature_by_an_unknown_key_is_refused(shop, site) -> None:
    manifest = shop.reader.manifest(site.digest)
    body = build_provenance(shop.verify(site).provenance, manifest)
    assert shop.reader.verify(site.digest, plant(shop, body, shop.signing_key))
    with pytest.raises(SignatureInvalidError, match="no trusted key"):
        shop.reader.verify(site.digest, plant(shop, body, SigningKey.generate()))
    with pytest.raises(SignatureInvalidError, match="no trusted key"):
        shop.reader.verify(site.digest, plant(shop, body, shop.root_key))


def edit(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(statement: dict) -> None:
        *parents, last = path
        inner = statement
        for key in parents:
            inner = inner[key]
        inner[last] = value

    return change


DEFINITION = ("predicate", "buildDefinition")
UNSOUND = {
    "statement type": edit("_type", value="https://in-toto.io/Statement/v0.1"),
    "predicate type": edit("predicateType", value="https://slsa.dev/provenance/v0.2"),
    "no subject": edit("subject", value=[]),
    "subject is no list": edit("subject", value=None),
    "wrong blake3": edit("subject", 0, "digest", "blake3", value="0" * 64),
    "wrong sha256": edit("subject", 0, "digest", "sha256", value="0" * 64),
    "one digest only": edit("subject", 0, "digest", value={"blake3": "0" * 64}),
    "build type": edit(*DEFINITION, "buildType", value="urn:other"),
    "unknown parameter": edit(*DEFINITION, "externalParameters", "more", value=1),
    "unknown command": edit(*DEFINITION, "externalParameters", "run", "worker", value="x"),
    "command left out": lambda statement: statement["predicate"]["buildDefinition"][
        "externalParameters"
    ]["run"].pop("health"),
    "command is no text": edit(*DEFINITION, "externalParameters", "run", "web", value=["x"]),
    "source of another site": edit(*DEFINITION, "externalParameters", "source", value="git+x"),
    "unknown profile": edit(*DEFINITION, "externalParameters", "profile", value="docker"),
    "build type as a list": edit(*DEFINITION, "buildType", value=[]),
    "setting is no text": edit(*DEFINITION, "externalParameters", "settings", "output", value=1),
    "settings are no mapping": edit(*DEFINITION, "externalParameters", "settings", value=[]),
    "tree is none": edit(*DEFINITION, "resolvedDependencies", 0, "digest", "gitTree", value="x"),
    "toolchain is another": edit(
        *DEFINITION, "resolvedDependencies", 1, "annotations", "node", value="1.2.3"
    ),
    "facts twice": lambda statement: statement["predicate"]["buildDefinition"][
        "resolvedDependencies"
    ].append(statement["predicate"]["buildDefinition"]["resolvedDependencies"][1]),
    "version is no text": edit("predicate", "runDetails", "builder", "version", value={"gitd": 1}),
    "no commit": edit(*DEFINITION, "resolvedDependencies", value=[]),
    "commit is none": edit(
        *DEFINITION, "resolvedDependencies", 0, "digest", "gitCommit", value="main"
    ),
    "commit and more": edit(
        *DEFINITION, "resolvedDependencies", 0, "digest", "gitCommit", value="0" * 41
    ),
    "unknown builder": edit("predicate", "runDetails", "builder", "id", value="urn:other"),
    "no builder": edit("predicate", "runDetails", "builder", value={}),
    "no predicate": edit("predicate", value=[]),
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_statement_is_refused_even_when_it_is_signed(
    shop, site, change: Callable[[dict], None]
) -> None:
    manifest = shop.reader.manifest(site.digest)
    statement = json.loads(build_provenance(shop.verify(site).provenance, manifest))
    change(statement)
    with pytest.raises(SignatureInvalidError):
        shop.reader.verify(site.digest, plant(shop, encode_json(statement), shop.signing_key))


def test_two_subjects_are_refused(shop, site) -> None:
    """Case 29."""
    manifest = shop.reader.manifest(site.digest)
    statement = json.loads(build_provenance(shop.verify(site).provenance, manifest))
    statement["subject"] *= 2
    with pytest.raises(SignatureInvalidError):
        shop.reader.verify(site.digest, plant(shop, encode_json(statement), shop.signing_key))


def test_signed_manifest_with_an_escaping_link_is_refused(shop) -> None:
    data = HEADER + b"a\tf\t1\t%s\nl\tl\t11\t/etc/passwd\n" % Digest.of(b"x").hex().encode()
    manifest = Manifest.parse(data)
    Path(shop.store.layout.tree(manifest.digest)).write_bytes(data)
    envelope = shop.attest(manifest, "build_x")
    Path(shop.store.layout.envelope(envelope.sha256)).write_bytes(envelope.data)
    with pytest.raises(ArtifactCorruptError, match="leads out"):
        shop.reader.verify(manifest.digest, envelope.sha256)


@pytest.mark.parametrize("is_known", [False, True])
def test_trusted_keys_that_were_tampered_with_are_refused(shop, site, *, is_known: bool) -> None:
    if is_known:
        assert shop.verify(site)
    flip(shop.store.layout.trust / "root.1.json", 200)
    with pytest.raises(SignatureInvalidError):
        shop.verify(site)


def test_removed_trusted_keys_trust_nobody(shop, site) -> None:
    assert shop.verify(site)
    (shop.store.layout.trust / "root.1.json").unlink()
    with pytest.raises(SignatureInvalidError):
        shop.verify(site)


def test_revocation_is_seen_by_a_reader_that_is_open(shop, site) -> None:
    assert shop.verify(site)
    key_id = shop.signing_key.key_id
    revoke(shop.store.layout.trust, root=shop.root_key, key_id=key_id, reason="stolen")
    with pytest.raises(SignatureInvalidError, match="no trusted key"):
        shop.verify(site)


def test_revocation_that_is_taken_back_by_deleting_it_is_seen(shop, site) -> None:
    revoke(
        shop.store.layout.trust, root=shop.root_key, key_id=shop.signing_key.key_id, reason="stolen"
    )
    assert shop.reader.keyring().version == 2
    (shop.store.layout.trust / "root.2.json").unlink()
    with pytest.raises(SignatureInvalidError, match="taken away"):
        shop.verify(site)


def test_generations_that_its_memory_refuses_are_refused_as_often_as_it_is_asked(
    shop, site, tmp_path: Path
) -> None:
    memory = TrustMemory(tmp_path / "seen")
    establish(shop.store.layout.trust, root=shop.root_key, signing=SigningKey.generate())
    assert StoreReader(shop.store.layout.root, memory=memory).keyring().version == 2
    (shop.store.layout.trust / "root.2.json").unlink()
    reader = StoreReader(shop.store.layout.root, memory=memory)
    for _ in range(2):
        with pytest.raises(SignatureInvalidError, match="generation 2 was seen before"):
            reader.verify(site.digest, site.envelope_sha256)


def test_rotation_keeps_old_artifacts_and_takes_new_ones(shop, site) -> None:
    shop.signing_key = SigningKey.generate()
    with pytest.raises(SignatureInvalidError):
        shop.verify(shop.ingest({"a": b"too early"}))
    establish(shop.store.layout.trust, root=shop.root_key, signing=shop.signing_key)
    assert shop.verify(site)
    assert shop.verify(shop.ingest({"a": b"x"})).key_id == shop.signing_key.key_id


def test_pinned_root_refuses_a_store_with_keys_of_its_own(shop, site) -> None:
    folder = shop.folder / "store"
    pinned = StoreReader(folder, root_key_ids=frozenset({shop.root_key.key_id}))
    assert pinned.verify(site.digest, site.envelope_sha256)
    thief = StoreReader(folder, root_key_ids=frozenset({SigningKey.generate().key_id}))
    with pytest.raises(SignatureInvalidError):
        thief.verify(site.digest, site.envelope_sha256)


def test_store_of_an_unknown_format_or_none_is_refused(shop, site) -> None:
    rewrite(shop.store.layout.format, b"cas-store 2\n")
    with pytest.raises(StoreUnusableError):
        shop.verify(site)
    shop.store.layout.format.unlink()
    with pytest.raises(StoreUnusableError):
        shop.verify(site)


# -- tampering with what was unpacked ----------------------------------------------------------

CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "written in place": ("a/page.html", lambda d: rewrite(d / "a/page.html", b"hellO")),
    "longer": ("a/page.html", lambda d: rewrite(d / "a/page.html", b"hello!")),
    "large one flipped": ("large", lambda d: flip(d / "large", 2 << 20)),
    "missing": ("a/run", lambda d: (d / "a/run").unlink()),
    "extra file": ("a/evil", lambda d: (d / "a/evil").write_text("x")),
    "extra file at the root": (".hidden", lambda d: (d / ".hidden").write_text("x")),
    "extra in an empty folder": ("void/x", lambda d: (d / "void/x").mkdir()),
    "mode": ("a/page.html", lambda d: (d / "a/page.html").chmod(0o644)),
    "pipe for an empty file": (
        "empty",
        lambda d: ((d / "empty").unlink(), os.mkfifo(d / "empty"), (d / "empty").chmod(0o444)),
    ),
    "executable": ("empty", lambda d: (d / "empty").chmod(0o555)),
    "set-uid": ("a/run", lambda d: (d / "a/run").chmod(0o4555)),
    "folder mode": ("a", lambda d: (d / "a").chmod(0o777)),
    "folder gone": ("void", lambda d: (d / "void").rmdir()),
    "folder to file": ("void", lambda d: ((d / "void").rmdir(), (d / "void").write_text(""))),
    "folder to link": ("void", lambda d: ((d / "void").rmdir(), (d / "void").symlink_to("a"))),
    "file to link": (
        "a/page.html",
        lambda d: (
            (d / "a/page.html").rename(d.parent / "p"),
            (d / "a/page.html").symlink_to(d.parent / "p"),
        ),
    ),
    "file to fifo": ("empty", lambda d: ((d / "empty").unlink(), os.mkfifo(d / "empty"))),
    "link elsewhere": ("link", lambda d: ((d / "link").unlink(), (d / "link").symlink_to("/etc"))),
    "link to file": ("link", lambda d: ((d / "link").unlink(), (d / "link").write_bytes(b"hello"))),
}


@pytest.mark.parametrize(("path", "change"), CHANGES.values(), ids=CHANGES)
def test_changed_release_folder_is_found_out(
    shop, site, tmp_path: Path, path: str, change: Callable[[Path], object]
) -> None:
    dest = tmp_path / "release"
    shop.reader.materialise(shop.verify(site), dest)
    verify_tree(dest, shop.verify(site).manifest)
    change(dest)
    with pytest.raises(ArtifactCorruptError) as caught:
        verify_tree(dest, shop.verify(site).manifest)
    assert caught.value.path == path


def test_folder_that_is_not_read_is_held_by_sizes_and_times(shop, site, tmp_path: Path) -> None:
    manifest, page = shop.verify(site).manifest, tmp_path / "out/a/page.html"
    shop.reader.materialise(shop.verify(site), tmp_path / "out")
    flip(page)
    verify_tree(tmp_path / "out", manifest, reads=False)
    rewrite(page, b"hello!")
    with pytest.raises(ArtifactCorruptError, match="its size"):
        verify_tree(tmp_path / "out", manifest, reads=False)
    rewrite(page, b"hello", is_hidden=False)
    with pytest.raises(ArtifactCorruptError, match="was written to"):
        verify_tree(tmp_path / "out", manifest, reads=False)
    verify_tree(tmp_path / "out", manifest)


def test_release_folder_that_is_gone_is_missing(shop, site, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        verify_tree(tmp_path / "nothing", shop.verify(site).manifest)


def test_release_folder_that_is_a_link_is_refused(shop, site, tmp_path: Path) -> None:
    shop.reader.materialise(shop.verify(site), tmp_path / "release")
    (tmp_path / "link").symlink_to("release")
    with pytest.raises(ArtifactCorruptError):
        verify_tree(tmp_path / "link", shop.verify(site).manifest)


def test_small_and_large_trees_unpack_alike(shop, tmp_path: Path) -> None:
    for count in (1, 15, 17, 400):
        ingested = shop.ingest({f"f{n}": b"%d" % n for n in range(count)})
        verified = shop.verify(ingested)
        shop.reader.materialise(verified, tmp_path / str(count))
        verify_tree(tmp_path / str(count), verified.manifest)
        assert sum(type(e) is FileEntry for e in verified.manifest.entries) == count


def test_anybody_can_check_an_envelope_with_nothing_of_ours(shop, site, tmp_path: Path) -> None:
    """The check as docs/store.md words it, in a process that imports nothing of ours."""
    code = """
import base64, hashlib, json, sys
from nacl.signing import VerifyKey
envelope = json.load(open(sys.argv[1]))
body = base64.b64decode(envelope["payload"])
kind = envelope["payloadType"].encode()
signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)
VerifyKey(bytes.fromhex(sys.argv[3])).verify(
    signed, base64.b64decode(envelope["signatures"][0]["sig"]))
subject, = json.loads(body)["subject"]
manifest = open(sys.argv[2], "rb").read()
assert subject["digest"]["sha256"] == hashlib.sha256(manifest).hexdigest()
"""
    layout = shop.store.layout
    paths = (layout.envelope(site.envelope_sha256), layout.tree(site.digest))
    public = shop.signing_key.public.hex()
    subprocess.run([sys.executable, "-I", "-c", code, *paths, public], check=True, cwd=tmp_path)


def test_unchanged_files_are_linked_from_the_folder_before(shop, tmp_path: Path) -> None:
    one = shop.verify(shop.ingest({"same": b"same", "dir/other": b"one", "gone": b"x"}))
    two = shop.verify(shop.ingest({"same": b"same", "dir/other": b"two", "empty": b""}))
    shop.reader.materialise(one, tmp_path / "one")
    shop.reader.materialise(two, tmp_path / "two", beside=tmp_path / "one")
    verify_tree(tmp_path / "two", two.manifest)
    assert (tmp_path / "one/same").samefile(tmp_path / "two/same")
    assert (tmp_path / "two/dir/other").read_bytes() == b"two"
    assert (tmp_path / "one/dir/other").read_bytes() == b"one"


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts")
def test_file_that_can_have_no_more_links_is_copied(shop) -> None:
    """Case 22: ext4 gives a file 65,000 names."""
    one = shop.verify(shop.ingest({"same": b"same", "other": b"one"}))
    two = shop.verify(shop.ingest({"same": b"same", "other": b"two"}))
    with disk_of("ext4", lambda where: None) as disk:
        where = disk.begin()
        shop.reader.materialise(one, where / "one")
        (where / "names").mkdir()
        names = os.open(where / "names", os.O_RDONLY | os.O_DIRECTORY)
        for number in range(65_000 - 1):
            os.link(where / "one/same", str(number), dst_dir_fd=names)
        os.close(names)
        with pytest.raises(OSError, match="Too many links"):
            os.link(where / "one/same", where / "another")
        for beside in (where / "one", None):
            shop.reader.materialise(two, where / "two", beside=beside)
            verify_tree(where / "two", two.manifest)
            assert (where / "two/same").stat().st_nlink == 1
            shutil.rmtree(where / "two")
        (where / "names/0").unlink()
        shop.reader.materialise(two, where / "two", beside=where / "one")
        assert (where / "one/same").samefile(where / "two/same")


@pytest.mark.parametrize("how", ["bytes", "mode", "link", "gone"])
def test_damaged_folder_before_is_not_believed(shop, tmp_path: Path, how: str) -> None:
    one = shop.verify(shop.ingest({"same": b"same", "dir/other": b"one"}))
    two = shop.verify(shop.ingest({"same": b"same", "dir/other": b"two"}))
    shop.reader.materialise(one, tmp_path / "one")
    file = tmp_path / "one" / "same"
    status = file.stat()
    if how == "bytes":
        file.chmod(0o644)
        file.write_bytes(b"evil")
        file.chmod(0o444)
        os.utime(file, (status.st_mtime, status.st_mtime))
    elif how == "mode":
        file.chmod(0o666)
    else:
        file.unlink()
    if how == "link":
        (tmp_path / "evil").write_bytes(b"same")
        file.symlink_to(tmp_path / "evil")
    shop.reader.materialise(two, tmp_path / "two", beside=tmp_path / "one")
    verify_tree(tmp_path / "two", two.manifest)
    assert (tmp_path / "two/same").read_bytes() == b"same"
    assert not (tmp_path / "two/same").is_symlink()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts")
def test_store_that_cannot_be_written_is_read(shop, tmp_path: Path) -> None:
    verified = shop.verify(shop.ingest({"a": b"a"}))
    where = tmp_path / "read-only"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", where]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    try:
        shutil.copytree(shop.folder / "store", where / "store")
        subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        reader = StoreReader(where / "store")
        found = reader.verify(verified.digest, verified.envelope_sha256)
        reader.materialise(found, tmp_path / "out")
        verify_tree(tmp_path / "out", verified.manifest)
        # And onto it nothing is unpacked: that is said, and leaves nothing.
        with pytest.raises(StorageIoError, match="Read-only"):
            shop.reader.materialise(verified, where / "out")
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts")
@pytest.mark.parametrize(
    "names", [("page", "Page"), ("\u00e9", "e\u0301")], ids=["case", "composition"]
)
def test_two_names_that_are_one_on_the_disk_stop_the_unpacking(
    shop, tmp_path: Path, names: tuple[str, str]
) -> None:
    image, where = tmp_path / "image", tmp_path / "disk"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    make = ["mkfs.ext4", "-q", "-F", "-O", "casefold", image]
    if not shutil.which("mkfs.ext4") or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("no such filesystem here")
    if subprocess.run(["mount", "-o", "loop", image, where], capture_output=True).returncode:
        pytest.skip("the kernel cannot fold names")
    try:
        folder = where / "releases"
        folder.mkdir()
        subprocess.run(["chattr", "+F", folder], check=True)
        before = shop.verify(shop.ingest({names[0]: b"1"}))
        shop.reader.materialise(before, folder / "old")
        verified = shop.verify(shop.ingest(dict.fromkeys(names, b"1")))
        with pytest.raises(StorageIoError, match="exists"):
            shop.reader.materialise(verified, folder / "new")
        assert [path.name for path in folder.iterdir()] == ["old"]
        verify_tree(folder / "old", before.manifest)
    finally:
        subprocess.run(["umount", where], check=True)


def test_damage_to_one_artifact_leaves_the_others_be(shop, tmp_path: Path) -> None:
    damaged = shop.verify(shop.ingest({"shared": b"shared", "mine": b"mine"}))
    whole = shop.verify(shop.ingest({"shared": b"shared", "other": b"other"}))
    rewrite(shop.blob(b"mine"), b"MINE")
    with pytest.raises(ArtifactCorruptError):
        shop.reader.materialise(damaged, tmp_path / "one")
    shop.reader.materialise(whole, tmp_path / "two")
    verify_tree(tmp_path / "two", whole.manifest)


def test_stored_files_are_held_against_the_manifest(shop, site) -> None:
    verified = shop.verify(site)
    shop.reader.verify_blobs(verified)
    files = [e for e in verified.manifest.entries if isinstance(e, FileEntry) and e.size_bytes]
    for entry in files:
        blob = Path(shop.store.layout.blob(entry.digest, executable=entry.executable))
        whole = blob.read_bytes()
        for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], whole + b"x"):
            rewrite(blob, damaged)
            with pytest.raises(ArtifactCorruptError):
                shop.reader.verify_blobs(verified)
        blob.unlink()
        with pytest.raises(ArtifactMissingError):
            shop.reader.verify_blobs(verified)
        blob.write_bytes(whole)
    shop.reader.verify_blobs(verified)
