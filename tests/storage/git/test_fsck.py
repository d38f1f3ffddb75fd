"""What `receive.fsckObjects` refuses: the same as the real git, for the same reason."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.git import fsck_files
from storage.git.fsck import FsckRules, Severity, findings, special_files
from storage.git.fsck_files import file_findings, modules_findings
from storage.git.ingest import IngestTask, StagedPack, ingest
from storage.git.object_formats import TREE
from storage.git.pack import entry_head
from storage.git.repository import Repository

FINDING = re.compile(r"object ([0-9a-f]{40}): (\w+):")
KINDS = {"tree": 2, "blob": 3}
PLAIN = b'[submodule "a"]\n\tpath = a\n\turl = https://example.org/a.git\n'
NAMES = [
    *(("100644", name) for name in (
        ".git", "a\\.git", "a\\b\\.GIT . ", "git~1 ", "GIT~1.", "git~1\\x", "git~2", "a~", "a\\b",
        ".git\u200c", ".gi\u200ct", ".git\udcff", "x.git", ".gita", ".git x", "\\git~1.x",
    )),
    *(("40000", name) for name in ("git~1::$INDEX_ALLOCATION", ".git:x", "a\\.git:x")),
    *(("120000", name) for name in (
        ".gitmodules", "gitmod~1", "GITMOD~4 .", "gitmod~5", "GI7EBA~1", "gi7eb~10", "gi7e~1",
        "~1000000", "~100000", "gi7d29~1", "gi250a~9", "MABA30~1", ".gitmodules:x", "a\\gitmod~2",
        ".gitmodules\\a", ".gitattributes", ".gitignore", ".mailmap ", ".gitignore\u200d", "x",
    )),
]  # fmt: skip
MODULES = [
    b"",
    b'[submodule "../../x"]\n\tpath = x\n',
    b'[submodule "a/../b"]\npath = x',
    b'[submodule "a\\\\..\\\\b"]\npath = x',
    b'[submodule "..a/b.."]\npath = x',
    b"[submodule....]\npath = x",
    b'[submodule ""]\npath = x',
    b"[submodule]\nurl = -x",
    b'[SubModule "a"] URL = -u./p',
    b'[submodule "a"]\nurl = "" -x',
    b'[submodule "a"]\nurl = "\\\n" "-"x',
    b'[submodule "a"]\nurl = " -x"',
    b'[submodule "a"]\nurl = \\\n\t-x',
    b'[submodule "a"]\nurl = a\\\\-x # -y',
    b'[submodule "a"]\nurl = ../../:x',
    b'[submodule "a"]\nurl = ../.:x',
    b'[submodule "a"]\nurl = ./.././/x',
    b'[submodule "a"]\nurl = ./x//y',
    b'[submodule "a"]\nurl = ../x%0ay',
    b'[submodule "a"]\nurl = https://x/a%0ahost=y',
    b'[submodule "a"]\nurl = https:///x',
    b'[submodule "a"]\nurl = https://u@/x',
    b'[submodule "a"]\nurl = https://u:p@h/x@y',
    b'[submodule "a"]\nurl = https::example.org/x',
    b'[submodule "a"]\nurl = http::https://example.org/x',
    b'[submodule "a"]\nurl = ftp://?x',
    b'[submodule "a"]\nurl = git@host:x%0a',
    b'[submodule "a"]\npath = -x',
    b'[submodule "a"]\npath = x-',
    b'[submodule "a"]\nupdate = !x',
    b'[submodule "a"]\nupdate = rebase',
    b'[submodule "a"]\nupdate\nurl = -x',
    b'[submodule "a"]\r\n; c\r\nurl = -x\r\n',
    b'[submodule "a"]\nurl = a\\q\nurl = -x',
    b'[submodule "a"]\nurl = "a\nurl = -x',
    b'[submodule "a]\nurl = -x',
    b'[submodule "a" ]\nurl = -x',
    b'[submodule\n"a"]\nurl = -x',
    b'[submodule "a"]\n1url = -x',
    b'[submodule "a"]\nurl x = -x',
    b'[submodule "a"]\nurl # x\nurl = -x',
    b'[submodule "a"]\nurl = -x\n[',
    b"key = x\n[a]\nb",
    b"\xef\xbb[a]",
]


def oid_of(kind: str, data: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).digest()


def pack_of(*objects: tuple[str, bytes]) -> bytes:
    body = b"PACK" + struct.pack(">LL", 2, len(objects))
    for kind, data in objects:
        body += entry_head(KINDS[kind], len(data)) + zlib.compress(data)
    return body + hashlib.sha1(body).digest()


def tree_of(*entries: tuple[str, str, bytes]) -> bytes:
    return b"".join(
        b"%s %s\0%s" % (mode.encode(), name.encode("utf-8", "surrogateescape"), oid)
        for mode, name, oid in entries
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "r.git"], check=True)
    return tmp_path / "r.git"


def refusal(bare: Path, pack: bytes, tip: bytes = b"") -> str:
    """Check a pack as a push with `receive.fsckObjects` does; return the id of what refuses it."""
    staged = StagedPack(bare, pack)
    task = IngestTask(repository=str(bare), quarantine=None, tips=[tip] if tip else [], fsck={})
    done = ingest(task, Repository(bare), staged=staged)
    if done.error is None:
        staged.take_in(Repository(bare).sharing)
        return ""
    staged.discard()
    found = FINDING.search(done.error)
    assert found is not None, done.error
    return found[2]


def objects() -> Iterator[tuple[str, bytes]]:
    """Blobs, and trees that name them."""
    inner = tree_of(("100644", "x", oid_of("blob", PLAIN)))
    yield "tree", inner
    for mode, name in NAMES:
        target = oid_of("tree", inner) if mode == "40000" else oid_of("blob", PLAIN)
        yield "tree", tree_of((mode, name, target))
    for name, content in [
        *((".gitmodules", content) for content in (PLAIN, *MODULES)),
        (".gitattributes", b"a text\n"),
        (".gitattributes", b"a" * 2047 + b"\nb"),
        (".gitattributes", b"b\n" + b"a" * 2048),
        (".gitattributes ", b"a" * 3000),
        ("gi7d29~1", b"a" * 4000),
        ("GITMOD~1 ", b'[submodule ".."]\nx'),
        ("a\\.gitmodules:x", b'[submodule "a/.."]\nx'),
        (".gitmodules\\x", b'[submodule "../.."]\nx'),
    ]:
        yield "blob", content
        yield "tree", tree_of(("100644", name, oid_of("blob", content)))
    for name in (".gitmodules", ".gitattributes"):
        yield "tree", tree_of(("40000", name, oid_of("tree", inner)))


def found_by_git(bare: Path) -> set[tuple[str, str, str]]:
    """What git has against the objects of a repository, graded as for a push."""
    done = subprocess.run(
        ["git", "fsck", "--strict", "--no-dangling"], cwd=bare, capture_output=True
    )
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    found = [re.match(r"(error|warning) in \w+ ([0-9a-f]{40}): (\w+):", line) for line in lines]
    return {(line[2], line[3], line[1]) for line in found if line is not None}


def test_8_27_git_refuses_the_same_for_the_same_reason(bare: Path) -> None:
    pack = pack_of(*dict.fromkeys(objects()))
    subprocess.run(
        ["git", "index-pack", "--stdin"], cwd=bare, input=pack, check=True, capture_output=True
    )
    store = Repository(bare).objects
    graded = FsckRules()
    found = set()
    for kind, data in dict.fromkeys(objects()):
        if kind == "tree":
            seen = [(oid_of("tree", data), finding) for finding in findings(TREE, data)]
            for name, oid in special_files(data):
                seen += [(oid, finding) for finding in file_findings(store, name, oid)]
            for oid, finding in seen:
                grade = "error" if graded.severity(finding) is Severity.ERROR else "warning"
                found.add((oid.hex(), finding.id, grade))
    assert found == found_by_git(bare)
    assert len({finding for _, finding, _ in found}) > 12


def test_8_27_a_file_that_is_stored_already_is_looked_at(bare: Path) -> None:
    content = b'[submodule ".."]\npath = x\n'
    blob = oid_of("blob", content)
    assert refusal(bare, pack_of(("blob", content)), blob) == ""
    assert refusal(bare, pack_of(("tree", tree_of(("100644", ".gitmodules", blob))))) == (
        "gitmodulesName"
    )


def test_8_27_a_file_that_is_not_there_is_refused_but_in_a_partial_repository(bare: Path) -> None:
    pack = pack_of(("tree", tree_of(("100644", ".gitmodules", b"x" * 20))))
    assert refusal(bare, pack) == "gitmodulesMissing"
    (bare / "objects/pack/pack-x.promisor").touch()
    assert refusal(bare, pack) == ""


def test_8_27_a_gitmodules_too_large_is_refused(bare: Path) -> None:
    content = b"#" * (fsck_files.MODULES_BYTES_MAX + 1)
    tree = tree_of(("100644", ".gitmodules", oid_of("blob", content)))
    assert refusal(bare, pack_of(("tree", tree), ("blob", content))) == "gitmodulesLarge"


def test_words_of_a_finding_are_one_short_line() -> None:
    (found,) = modules_findings(b'[submodule "a"]\nurl = "-\\n\\b' + b"x" * 1000 + b'"')
    assert found.message.startswith("disallowed submodule url: -??xxx")
    assert len(found.message) < 300


def test_a_gitmodules_may_begin_with_a_mark_of_byte_order() -> None:
    """git's clients take it, though its checks do not in every version."""
    (found,) = modules_findings(b'\xef\xbb\xbf[submodule "a"]\nurl = -x')
    assert found.id == "gitmodulesUrl"
