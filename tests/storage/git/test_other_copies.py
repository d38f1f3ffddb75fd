"""An object that is damaged in one place and whole in another, beside what the real git reads.

As git's t5303, "... but having a redundant copy ...".
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.git.check import check_repository
from storage.git.check_processes import check_repositories
from storage.git.errors import PackInvalidError, PackOutgrownError, RepositoryCorruptError
from storage.git.indexer import index_pack
from storage.git.maintenance import take_care
from storage.git.object_formats import BLOB, COMMIT, OFS_DELTA, TAG, TREE
from storage.git.objects import ObjectStore
from storage.git.pack import Pack
from storage.git.pack_scan import PackLimits
from storage.git.pack_writer import PackWriter
from storage.git.repository import Repository
from storage.git.selection import Selection

ENVIRON = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(*arguments: str | Path, cwd: Path, stdin: bytes = b"", check: bool = True) -> bytes:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=ENVIRON, input=stdin, capture_output=True
    )
    assert not check or done.returncode == 0, (arguments, done.stderr)
    return done.stdout if done.returncode == 0 else b""


class Damaged:
    """A bare repository: one pack of a file's ten versions, each a delta of the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        git("init", "-q", "--bare", path, cwd=path.parent)
        numbers = random.Random(1)
        lines = [f"line {number} {numbers.random()}\n" for number in range(2000)]
        self.contents: dict[bytes, bytes] = {}
        for number in range(10):
            content = "".join(lines[: 1990 + number]).encode()
            digits = git("hash-object", "-w", "--stdin", cwd=path, stdin=content).strip()
            self.contents[bytes.fromhex(digits.decode())] = content
        names = b"".join(oid.hex().encode() + b" f\n" for oid in self.contents)
        git("pack-objects", "-q", "objects/pack/pack", cwd=path, stdin=names)
        git("prune-packed", "-q", cwd=path)
        (index,) = (path / "objects/pack").glob("*.idx")
        self.pack = Pack(index)
        by_depth = sorted(self.contents, key=lambda oid: len(self._chain(oid)))
        self.base, self.middle, self.top = by_depth[0], by_depth[4], by_depth[-1]

    def _chain(self, oid: bytes) -> list[int]:
        offset = self.pack.find(oid)
        assert offset is not None
        found = [offset]
        while (base := self.pack.header(found[-1])[2]) is not None:
            at = self.pack.find(base) if isinstance(base, bytes) else base
            assert at is not None
            found.append(at)
        return found

    def copy(self, kind: str, *oids: bytes) -> None:
        """Put a second copy of some objects beside the pack, before it is damaged."""
        if kind == "pack":
            names = b"".join(oid.hex().encode() + b" f\n" for oid in oids)
            git("pack-objects", "-q", "objects/pack/pack", cwd=self.path, stdin=names)
            return
        for oid in oids:
            other = self.path.parent / "other.git"
            git("init", "-q", "--bare", other, cwd=self.path)
            git("hash-object", "-w", "--stdin", cwd=other, stdin=self.contents[oid])
            place = f"objects/{oid.hex()[:2]}"
            (self.path / place).mkdir(exist_ok=True)
            shutil.copy(other / place / oid.hex()[2:], self.path / place)

    def damage(self, oid: bytes, where: str = "data") -> None:
        """Change a byte of the object's entry, in its head or its deflated bytes."""
        offset = self._chain(oid)[0]
        data_at = self.pack.header(offset)[3]
        at = offset if where == "head" else data_at + 12
        self.pack.path.chmod(0o644)
        with self.pack.path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(
                bytes([byte & 0x8F if where == "head" else byte ^ 0xFF])
            )  # a type that is none

    def store(self) -> ObjectStore:
        return Repository(self.path).objects


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    return Damaged(tmp_path / "r.git")


@pytest.mark.parametrize("where", ["data", "head"])
@pytest.mark.parametrize("kind", ["pack", "loose"])
@pytest.mark.parametrize("which", ["base", "middle", "top"])
def test_a_whole_copy_is_read_as_by_git(
    damaged: Damaged, which: str, kind: str, where: str
) -> None:
    """Whatever part of a chain of deltas is damaged: all that it is a base of can be read too."""
    oid = getattr(damaged, which)
    damaged.copy(kind, oid)
    damaged.damage(oid, where)
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=damaged.path) == content
        store = damaged.store()  # anew, as it would remember what it made
        assert store.get(name)[1] == content
        assert store.kind_and_size(name)[1] == len(content)
        assert b"".join(store.stream(name)) == content
        assert b"".join(damaged.store().stream(name)) == content


def test_what_is_damaged_everywhere_is_refused_in_the_words_of_ever(damaged: Damaged) -> None:
    """In two packs with the same chain: each place is tried once."""
    damaged.copy("pack", *damaged.contents)  # the same pack under the same name
    damaged.copy("pack", *list(damaged.contents)[1:])
    store = damaged.store()
    for pack in store.packs():
        damaged.pack = pack
        damaged.damage(damaged.base)
    for name in damaged.contents:
        if git("cat-file", "blob", name.hex(), cwd=damaged.path, check=False):
            assert store.get(name)[1] == damaged.contents[name]
            continue
        with pytest.raises(RepositoryCorruptError, match=r"pack-.*\.pack: "):
            store.get(name)
        with pytest.raises(RepositoryCorruptError, match=r"pack-.*\.pack: "):
            b"".join(store.stream(name))


def test_a_damaged_file_is_read_from_an_alternates_pack(damaged: Damaged, tmp_path: Path) -> None:
    borrower = tmp_path / "borrower.git"
    git("init", "-q", "--bare", borrower, cwd=tmp_path)
    (borrower / "objects/info/alternates").write_text(f"{damaged.path}/objects\n")
    damaged.copy("loose", damaged.top)
    place = f"objects/{damaged.top.hex()[:2]}"
    (borrower / place).mkdir()
    (borrower / place / damaged.top.hex()[2:]).write_bytes(b"no object")
    for pack in (damaged.path / "objects/pack").iterdir():
        pack.unlink()
    store = Repository(borrower).objects
    assert store.get(damaged.top)[1] == damaged.contents[damaged.top]
    assert store.kind_and_size(damaged.top)[1] == len(damaged.contents[damaged.top])
    assert b"".join(store.stream(damaged.top)) == damaged.contents[damaged.top]


def test_a_damaged_pack_is_named_once(damaged: Damaged, caplog: pytest.LogCaptureFixture) -> None:
    damaged.copy("loose", damaged.base, damaged.top)
    damaged.damage(damaged.base)
    damaged.damage(damaged.top)
    store = damaged.store()
    with caplog.at_level(logging.WARNING):
        for name in damaged.contents:
            store.get(name)
            store.get(name)
    (line,) = caplog.messages
    assert damaged.pack.path.name in line
    assert "another copy of it is used: 'gitd check'" in line


def test_threads_read_around_damage_at_once(damaged: Damaged) -> None:
    damaged.copy("loose", damaged.base)
    damaged.damage(damaged.base)
    store = damaged.store()
    wrong: list[bytes] = []

    def read(seed: int) -> None:
        names = list(damaged.contents)
        random.Random(seed).shuffle(names)
        wrong.extend(name for name in names if store.get(name)[1] != damaged.contents[name])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("which", ["base", "middle", "top"])
def test_the_bad_one_is_not_copied_into_another_pack(damaged: Damaged, which: str) -> None:
    """What is sent, or joined, has the whole copy in it."""
    damaged.copy("loose", getattr(damaged, which))
    damaged.damage(getattr(damaged, which))
    made = bytearray()
    PackWriter(damaged.store(), Selection(oids=list(damaged.contents)), made.extend).write()
    other = damaged.path.parent / "sent.git"
    git("init", "-q", "--bare", other, cwd=damaged.path)
    git("index-pack", "--strict", "--stdin", cwd=other, stdin=bytes(made))
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=other) == content


def add_small_packs(path: Path) -> None:
    for number in range(17):
        oid = git("hash-object", "-w", "--stdin", cwd=path, stdin=b"%d" % number)
        git("pack-objects", "-q", "objects/pack/pack", cwd=path, stdin=oid)
    git("prune-packed", "-q", cwd=path)


@pytest.mark.parametrize("kind", ["pack", "loose"])
def test_care_leaves_the_bad_one_behind(damaged: Damaged, kind: str) -> None:
    add_small_packs(damaged.path)
    damaged.copy(kind, damaged.base)
    damaged.damage(damaged.base)
    assert take_care(Repository(damaged.path)) > 17
    assert not damaged.pack.path.exists()
    assert check_repository(damaged.path, is_whole=True).is_sound
    git("fsck", "--full", cwd=damaged.path)
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=damaged.path) == content


def test_care_leaves_all_as_it_was_where_no_copy_is_whole(damaged: Damaged) -> None:
    add_small_packs(damaged.path)
    damaged.damage(damaged.base)
    before = sorted((damaged.path / "objects/pack").iterdir())
    with pytest.raises(RepositoryCorruptError, match=r"is damaged in pack-.*\.pack"):
        take_care(Repository(damaged.path))
    assert sorted((damaged.path / "objects/pack").iterdir()) == before


def refer_to_all(damaged: Damaged) -> None:
    lines = b"".join(
        b"100644 blob %b\tf%d\n" % (oid.hex().encode(), number)
        for number, oid in enumerate(damaged.contents)
    )
    tree = git("mktree", cwd=damaged.path, stdin=lines).decode().strip()
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    commit = git(*who, "commit-tree", "-m", "x", tree, cwd=damaged.path).decode().strip()
    git("update-ref", "refs/heads/main", commit, cwd=damaged.path)


ADVICE = "another copy is whole: stop the server and run 'git repack -a -d -k' to drop this one"


def packed_damage(damaged: Damaged) -> None:
    damaged.copy("loose", damaged.base)
    damaged.damage(damaged.base)


def loose_damage(damaged: Damaged) -> None:
    place = damaged.path / "objects" / damaged.top.hex()[:2]
    place.mkdir(exist_ok=True)
    (place / damaged.top.hex()[2:]).write_bytes(b"no object")


def damage_of_both_kinds(damaged: Damaged) -> None:
    """Here `git prune-packed` would remove the file of the one whose packed copy is damaged."""
    damaged.copy("loose", damaged.base, damaged.middle)
    damaged.damage(damaged.middle)
    oid = damaged.base
    path = damaged.path / "objects" / oid.hex()[:2] / oid.hex()[2:]
    path.chmod(0o644)
    path.write_bytes(b"no object")


HARMS = [packed_damage, loose_damage, damage_of_both_kinds]


@pytest.mark.parametrize("harm", HARMS)
def test_check_says_what_to_do_and_that_helps(
    damaged: Damaged, harm: Callable[[Damaged], None]
) -> None:
    refer_to_all(damaged)
    harm(damaged)
    report = check_repository(damaged.path, is_whole=True)
    assert any(fault.endswith(ADVICE) for fault in report.faults), report.faults
    assert not any(fault.startswith("ref ") for fault in report.faults)
    for fault in report.faults:
        for command in fault.split("'")[1::2]:
            git(*command.split()[1:], cwd=damaged.path)
    assert check_repository(damaged.path, is_whole=True).faults == ()
    git("fsck", "--full", "--strict", cwd=damaged.path)
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=damaged.path) == content


@pytest.mark.parametrize("harm", HARMS)
def test_what_check_advises_drops_no_other_object(
    damaged: Damaged, harm: Callable[[Damaged], None]
) -> None:
    """Objects that no ref reaches yet may be those of a push."""
    refer_to_all(damaged)
    pushed = [
        git("hash-object", "-w", "--stdin", cwd=damaged.path, stdin=content)
        for content in (b"packed", b"loose")
    ]
    git("pack-objects", "-q", "objects/pack/pack", cwd=damaged.path, stdin=pushed[0])
    git("prune-packed", "-q", cwd=damaged.path)
    harm(damaged)
    report = check_repository(damaged.path, is_whole=True)
    (command,) = {word for fault in report.faults for word in fault.split("'")[1::2]}
    git(*command.split()[1:], cwd=damaged.path)
    for oid, content in zip(pushed, (b"packed", b"loose"), strict=True):
        assert git("cat-file", "blob", oid.decode().strip(), cwd=damaged.path) == content


@pytest.mark.parametrize("has_file", [False, True])
def test_check_gives_no_advice_where_no_copy_is_whole(damaged: Damaged, *, has_file: bool) -> None:
    """A damaged file may yet be mended by hand, when its packed copy is damaged too."""
    refer_to_all(damaged)
    if has_file:
        damaged.copy("loose", damaged.base)
        path = damaged.path / "objects" / damaged.base.hex()[:2] / damaged.base.hex()[2:]
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-9])
    damaged.damage(damaged.base)
    report = check_repository(damaged.path, is_whole=True)
    assert any(damaged.base.hex() in fault for fault in report.faults)
    assert any(fault.startswith("ref refs/heads/main") for fault in report.faults)
    assert any("(loose)" in fault for fault in report.faults) is has_file
    assert not any("copy" in fault or "pack has it" in fault for fault in report.faults)


def write_at(pack: Pack, offset: int, data: bytes) -> None:
    pack.path.chmod(0o644)
    with pack.path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def make_another_type(damaged: Damaged, *, is_data_too: bool) -> None:
    """Make the base a tree by its head, which still is a head."""
    offset = damaged.pack.find(damaged.base)
    assert offset is not None
    data_at = damaged.pack.header(offset)[3]
    assert damaged.pack.header(offset)[0] == BLOB
    write_at(damaged.pack, offset, bytes([(damaged.pack.bytes_map[offset] & 0x8F) | TREE << 4]))
    if is_data_too:
        write_at(damaged.pack, data_at, bytes(range(50, 58)))


@pytest.mark.parametrize("is_data_too", [False, True])
@pytest.mark.parametrize("kind", ["pack", "loose"])
def test_a_damaged_head_that_is_another_head_is_not_believed(
    damaged: Damaged, kind: str, *, is_data_too: bool
) -> None:
    """A base says which type all of its deltas have."""
    damaged.copy(kind, damaged.base)
    make_another_type(damaged, is_data_too=is_data_too)
    for name, content in damaged.contents.items():
        assert damaged.store().kind_and_size(name) == (BLOB, len(content))
        made = bytearray()
        PackWriter(damaged.store(), Selection(oids=[name]), made.extend).write()
        other = damaged.path.parent / f"{name.hex()}.git"
        git("init", "-q", "--bare", other, cwd=damaged.path)
        git("index-pack", "--strict", "--stdin", cwd=other, stdin=bytes(made))
        assert git("cat-file", "blob", name.hex(), cwd=other) == content


def test_nothing_is_made_of_a_base_that_has_another_type_everywhere(damaged: Damaged) -> None:
    make_another_type(damaged, is_data_too=False)
    for name in damaged.contents:
        store, made = damaged.store(), bytearray()
        with pytest.raises(RepositoryCorruptError, match="not as its sum in the index"):
            store.kind_and_size(name)
        with pytest.raises(RepositoryCorruptError, match="damaged"):
            PackWriter(store, Selection(oids=[name]), made.extend).write()


def test_a_head_with_a_size_beyond_all_bounds_is_damage(damaged: Damaged) -> None:
    """`zlib` takes no such number, and its error is none of a repository's."""
    refer_to_all(damaged)
    offset = damaged.pack.find(damaged.base)
    assert offset is not None
    first = bytes([damaged.pack.bytes_map[offset] | 0x80])
    write_at(damaged.pack, offset, first + b"\xff" * 8 + b"\x7f")
    with pytest.raises(RepositoryCorruptError, match="size of an object is out of bound"):
        damaged.store().get(damaged.base)
    (report,) = check_repositories([damaged.path], is_whole=True)
    assert any(damaged.base.hex() in fault for fault in report.faults), report.faults


def test_a_size_that_is_damage_is_not_taken_for_too_large(damaged: Damaged) -> None:
    damaged.copy("loose", damaged.base)
    offset = damaged.pack.find(damaged.base)
    assert offset is not None
    (byte,) = damaged.pack.bytes_map[offset + 2 : offset + 3]  # the last of the size
    assert damaged.pack.header(offset)[3] == offset + 3
    write_at(damaged.pack, offset + 2, bytes([byte | 0x7F]))
    bytes_max = len(damaged.contents[damaged.base])
    assert damaged.pack.header(offset)[1] > bytes_max
    found = damaged.store().get(damaged.base, bytes_max)
    assert found == (BLOB, damaged.contents[damaged.base])
    with pytest.raises(PackOutgrownError):
        damaged.store().get(damaged.base, bytes_max - 1)


def put_another_content(damaged: Damaged, oid: bytes) -> None:
    """Give an object a file of its own, with another content."""
    content = damaged.contents[oid].replace(b"line", b"LINE")
    place = damaged.path / "objects" / oid.hex()[:2]
    place.mkdir(exist_ok=True)
    (place / oid.hex()[2:]).write_bytes(zlib.compress(b"blob %d\0" % len(content) + content))


def test_a_copy_that_is_another_object_is_none(damaged: Damaged) -> None:
    put_another_content(damaged, damaged.base)
    damaged.damage(damaged.base)
    for name in damaged.contents:
        with pytest.raises(RepositoryCorruptError):
            damaged.store().get(name)


def test_a_thin_pack_is_not_completed_with_another_object(damaged: Damaged) -> None:
    """Else what is made of it, and the base itself, would be stored under ids that lie."""
    content = damaged.contents[damaged.top].replace(b"line 7 ", b"line seven ")
    digits = git("hash-object", "-w", "--stdin", cwd=damaged.path, stdin=content)
    commits: list[str] = []
    for oid in (damaged.top.hex().encode(), digits.strip()):
        tree = git("mktree", cwd=damaged.path, stdin=b"100644 blob %b\tf\n" % oid).strip()
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        parents = [option for commit in commits for option in ("-p", commit)]
        made = git(*who, "commit-tree", *parents, "-m", "x", tree.decode(), cwd=damaged.path)
        commits.append(made.decode().strip())
    revisions = f"{commits[1]}\n^{commits[0]}\n".encode()
    thin = damaged.path.parent / "thin.pack"
    thin.write_bytes(
        git("pack-objects", "-q", "--thin", "--revs", "--stdout", cwd=damaged.path, stdin=revisions)
    )
    other = damaged.path.parent / "other.git"
    git("init", "-q", "--bare", other, cwd=damaged.path)
    damaged.path = other
    put_another_content(damaged, damaged.top)
    with pytest.raises(PackInvalidError, match=damaged.top.hex()):
        index_pack(thin, bases=damaged.store(), limits=PackLimits())
    (other / "objects" / damaged.top.hex()[:2] / damaged.top.hex()[2:]).unlink()
    git("hash-object", "-w", "--stdin", cwd=other, stdin=damaged.contents[damaged.top])
    assert index_pack(thin, bases=damaged.store(), limits=PackLimits())


def test_the_same_pack_of_an_alternate_is_another_copy(damaged: Damaged, tmp_path: Path) -> None:
    """Packs of the same objects have the same name."""
    shutil.copytree(damaged.path, tmp_path / "lender.git")
    (damaged.path / "objects/info/alternates").write_text(f"{tmp_path}/lender.git/objects\n")
    damaged.damage(damaged.base)
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=damaged.path) == content
        assert damaged.store().get(name) == (BLOB, content)


@pytest.mark.parametrize("which", ["base", "middle", "top"])
def test_a_wrong_sum_in_the_index_makes_no_object_unreadable(damaged: Damaged, which: str) -> None:
    oid = getattr(damaged, which)
    rank = damaged.pack.rank(oid)
    assert rank is not None
    index = damaged.pack.path.with_suffix(".idx")
    data = bytearray(index.read_bytes())
    data[8 + 1024 + 20 * damaged.pack.count + 4 * rank] ^= 1
    index.chmod(0o644)
    index.write_bytes(data)
    made = bytearray()
    PackWriter(damaged.store(), Selection(oids=list(damaged.contents)), made.extend).write()
    other = damaged.path.parent / "sent.git"
    git("init", "-q", "--bare", other, cwd=damaged.path)
    git("index-pack", "--strict", "--stdin", cwd=other, stdin=bytes(made))
    for name, content in damaged.contents.items():
        assert git("cat-file", "blob", name.hex(), cwd=other) == content
        assert damaged.store().kind_and_size(name) == (BLOB, len(content))


def test_a_small_object_is_looked_at_without_putting_its_pack_in_order(damaged: Damaged) -> None:
    """That takes a while in a large pack, and a tip's type is asked for at every listing."""
    refer_to_all(damaged)
    git("repack", "-adq", cwd=damaged.path)
    (index,) = (damaged.path / "objects/pack").glob("*.idx")
    damaged.pack = Pack(index)
    tip = bytes.fromhex(git("rev-parse", "main", cwd=damaged.path).strip().decode())
    store = damaged.store()
    assert store.kind_and_size(tip)[0] == COMMIT
    assert not any(pack.is_ordered for pack in store.packs())
    offset = damaged.pack.find(tip)
    assert offset is not None
    write_at(damaged.pack, offset, bytes([(damaged.pack.bytes_map[offset] & 0x8F) | TREE << 4]))
    with pytest.raises(RepositoryCorruptError):
        damaged.store().kind_and_size(tip)


class Various:
    """A bare repository with one small pack that has objects of each type, and deltas."""

    def __init__(self, path: Path) -> None:
        self.path = path
        git("init", "-q", "--bare", path, cwd=path.parent)
        big = b"".join(b"%d\n" % number for number in range(200))
        blobs = [
            git("hash-object", "-w", "--stdin", cwd=path, stdin=big + b"x" * n) for n in (0, 9)
        ]
        lines = b"".join(b"100644 blob %b\tf%d\n" % (blobs[n % 2][:40], n) for n in range(30))
        changed = lines.replace(b"\tf7", b"\tg7")
        trees = [git("mktree", cwd=path, stdin=text)[:40] for text in (lines, changed)]
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "tag.gpgSign=false")
        words = ("-m", "words " * 40)
        first = git(*who, "commit-tree", *words, trees[0].decode(), cwd=path).decode().strip()
        second = ("commit-tree", *words, "-p", first, trees[1].decode())
        tip = git(*who, *second, cwd=path).decode().strip()
        git("update-ref", "refs/heads/main", tip, cwd=path)
        git(*who, "tag", "-m", "t", "t", tip, cwd=path)
        git("repack", "-adfq", cwd=path)
        (index,) = (path / "objects/pack").glob("*.idx")
        self.pack = Pack(index)
        store = self.store()
        self.objects = {oid: store.get(oid) for oid in self.pack.oids()}
        self.links: dict[bytes, object] = {
            oid: store.links.commit(oid) if kind == COMMIT else store.links.tag(oid)
            for oid, (kind, _) in self.objects.items()
            if kind in (COMMIT, TAG)
        }

    def store(self) -> ObjectStore:
        return ObjectStore(self.path / "objects")

    def damages(self) -> Iterator[None]:
        """Flip each bit of each entry's head in turn; the pack is as it was behind the last."""
        self.pack.path.chmod(0o644)
        with self.pack.path.open("r+b", buffering=0) as file:
            for offset in self.pack.offsets():
                for at in range(offset, self.pack.header(offset)[3]):
                    (byte,) = os.pread(file.fileno(), 1, at)
                    for bit in range(8):
                        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
                        yield
                    os.pwrite(file.fileno(), bytes([byte]), at)

    def reads(self, store: ObjectStore) -> Iterator[tuple[Callable[[], object], object]]:
        """All ways to read an object whose content is made anew from a delta, or is parsed."""
        for oid, (kind, data) in self.objects.items():
            yield partial(store.get, oid), (kind, data)
            yield partial(lambda oid: b"".join(self.store().stream(oid)), oid), data
            if kind == TREE:
                yield partial(store.get_typed, oid, TREE), data
            elif kind == COMMIT:
                yield partial(store.links.commit, oid), self.links[oid]
            elif kind == TAG:
                yield partial(store.links.tag, oid), self.links[oid]


@pytest.fixture
def various(tmp_path: Path) -> Various:
    found = Various(tmp_path / "r.git")
    kinds = {kind for kind, _ in found.objects.values()}
    heads = {found.pack.header(offset)[0] for offset in found.pack.offsets()}
    assert kinds == {COMMIT, TREE, BLOB, TAG}
    assert OFS_DELTA in heads
    return found


def test_no_flipped_bit_of_a_head_makes_another_object(various: Various) -> None:
    """The data are whole, so that only the id can tell: of another type, or of another base."""
    refused_count = 0
    for _ in various.damages():
        for read, right in various.reads(various.store()):
            try:
                assert read() == right
            except RepositoryCorruptError:
                refused_count += 1
    assert refused_count
    git("fsck", "--full", "--strict", cwd=various.path)  # all bits were put back


def test_a_flipped_bit_of_a_head_hides_no_whole_copy(various: Various) -> None:
    other = various.path.parent / "other.git"
    shutil.copytree(various.path, other)
    (various.path / "objects/info/alternates").write_text(f"{other}/objects\n")
    for _ in various.damages():
        for read, right in various.reads(various.store()):
            assert read() == right
