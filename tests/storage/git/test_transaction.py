"""Changes of refs, in a repository that the real git made and reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.git.locks import create_lock, forget_locks
from storage.git.object_formats import NULL_OID
from storage.git.pack_keeps import PackKeeps
from storage.git.packed_refs import pack_loose_refs, prune_loose_refs
from storage.git.reflog import ReflogEntry
from storage.git.repository import Repository
from storage.git.transaction import LOOSE_COUNT_MAX, RefChange, change_refs
from tests.warm import loading, run_warm

CHILD = Path(__file__).with_name("atomic_child.py")
CHANGING = Path(__file__).with_name("changing_child.py")
KEEPS = (
    "import sys; from pathlib import Path; from storage.git.pack_keeps import PackKeeps;"
    "PackKeeps().put(Path(sys.argv[1]))"
)
UNSURE = "moved, but a power cut may undo it"
FAILED = "failed to update ref"
MANY = [f"many{number}" for number in range(LOOSE_COUNT_MAX + 1)]
ENVIRON = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER")
       for what in ("NAME", "EMAIL")},
}  # fmt: skip


needs_strace = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode,
    reason="strace cannot trace here",
)


def git(*arguments: str | Path, cwd: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=ENVIRON, check=True, capture_output=True, text=True
    ).stdout.strip()


def refs_of(bare: Path) -> dict[str, str]:
    """The refs as the real git sees them; it fails where one is another one's folder."""
    git("fsck", cwd=bare)
    lines = git("for-each-ref", "--format=%(refname) %(objectname)", cwd=bare).splitlines()
    return {name.removeprefix("refs/heads/"): oid for name, oid in map(str.split, lines)}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "-b", "main", tmp_path / "r.git", cwd=tmp_path)
    return tmp_path / "r.git"


@pytest.fixture
def one(bare: Path) -> str:
    tree = git("hash-object", "-t", "tree", "-w", "--stdin", cwd=bare)
    return git("commit-tree", tree, "-m", "one", cwd=bare)


@pytest.fixture
def two(bare: Path, one: str) -> str:
    return git("commit-tree", f"{one}^{{tree}}", "-p", one, "-m", "two", cwd=bare)


def make(bare: Path, names: Iterable[str], oid: str, *, packed: bool = False) -> None:
    for name in names:
        git("update-ref", f"refs/heads/{name}", oid, cwd=bare)
    if packed:
        git("pack-refs", "--all", cwd=bare)


def change(bare: Path, *wishes: tuple[str, str, str], is_atomic: bool = False) -> list[str | None]:
    """Make changes (name, old, new; "" for absence) and return their reasons."""
    changes = [
        RefChange(
            f"refs/heads/{name}".encode(),
            bytes.fromhex(old) or NULL_OID,
            bytes.fromhex(new) or NULL_OID,
        )
        for name, old, new in wishes
    ]
    errors = change_refs(Repository(bare), changes, is_atomic=is_atomic)
    assert not list(bare.rglob("*.lock"))
    return [error and error.reason for error in errors]


@pytest.mark.parametrize("more", [0, LOOSE_COUNT_MAX])
@pytest.mark.parametrize("names", [("bt", "bt/1"), ("bt/1", "bt")])
def test_of_two_new_names_in_each_others_way_the_first_wins(
    bare: Path, one: str, names: tuple[str, str], more: int
) -> None:
    others = [f"many/{n}" for n in range(more)]
    reasons = change(bare, *((name, "", one) for name in (*names, *others)))
    assert reasons == [None, "refname conflict", *(None for _ in others)]
    assert set(refs_of(bare)) == {names[0], *others}


@pytest.mark.parametrize("more", [0, LOOSE_COUNT_MAX])
@pytest.mark.parametrize("names", [("bt", "bt/1"), ("bt/1", "bt"), ("z", "bt/1/2", "bt")])
def test_atomic_change_with_such_names_makes_nothing(
    bare: Path, one: str, names: tuple[str, ...], more: int
) -> None:
    names = (*names, *(f"many/{n}" for n in range(more)))
    reasons = change(bare, *((name, "", one) for name in names), is_atomic=True)
    assert set(reasons) == {"atomic transaction failed"}
    assert refs_of(bare) == {}


def test_of_many_changes_the_few_that_can_be_made_are_made_each_by_itself(
    bare: Path, one: str, two: str
) -> None:
    make(bare, [f"there/{n}" for n in range(LOOSE_COUNT_MAX)], one)
    there = [(f"there/{n}", "", two) for n in range(LOOSE_COUNT_MAX)]
    reasons = change(bare, *there, ("new/one", "", one), ("new/two", "", two))
    assert reasons == ["reference already exists"] * LOOSE_COUNT_MAX + [None, None]
    refs = refs_of(bare)
    assert (refs.pop("new/one"), refs.pop("new/two")) == (one, two)
    assert refs == {name: one for name, _, _ in there}


def test_locks_are_taken_where_a_file_may_have_but_few_names(tmp_path: Path) -> None:
    held = os.fsencode(tmp_path / "held.lock")
    create_lock(held)
    names = [os.fsencode(tmp_path / f"{n}.lock") for n in range(3)]
    create_lock(names[0], held)
    assert os.path.samefile(names[0], held)  # noqa: PTH121
    create_lock(names[1], b"/proc/self/status")  # no link leads out of a filesystem
    create_lock(names[2], held + b".gone")
    for taken in names:
        with pytest.raises(FileExistsError):
            create_lock(taken, held)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("more", [0, LOOSE_COUNT_MAX])
@pytest.mark.parametrize(("old", "new"), [("x", "x/a"), ("x/a", "x"), ("x/a/b", "x/a")])
def test_name_that_goes_makes_room_in_the_same_push(
    bare: Path, one: str, old: str, new: str, more: int, *, packed: bool
) -> None:
    make(bare, [old], one, packed=packed)
    others = [f"many/{n}" for n in range(more)]
    wishes = [(new, "", one), *((name, "", one) for name in others), (old, one, "")]
    assert change(bare, *wishes) == [None] * len(wishes)
    assert set(refs_of(bare)) == {new, *others}


def test_name_makes_room_only_if_it_goes(bare: Path, one: str, two: str) -> None:
    make(bare, ["x"], one)
    assert change(bare, ("x", two, ""), ("x/a", "", one)) == [
        "incorrect old value provided",
        "refname conflict",
    ]
    assert refs_of(bare) == {"x": one}


def test_atomic_change_makes_no_room(bare: Path, one: str) -> None:
    """As git has it."""
    make(bare, ["x"], one)
    reasons = change(bare, ("x", one, ""), ("x/a", "", one), is_atomic=True)
    assert reasons == ["atomic transaction failed"] * 2
    assert refs_of(bare) == {"x": one}


@pytest.mark.parametrize("packed", [False, True])
def test_atomic_change_does_all_that_it_is_asked(
    bare: Path, one: str, two: str, *, packed: bool
) -> None:
    make(bare, ["gone", "moved", "same"], one, packed=packed)
    wishes = [("gone", one, ""), ("moved", one, two), ("new/deep", "", two), ("same", one, one)]
    assert change(bare, *wishes, is_atomic=True) == [None] * 4
    assert refs_of(bare) == {"moved": two, "new/deep": two, "same": one}


def test_atomic_change_that_meets_a_held_lock_makes_nothing(bare: Path, one: str) -> None:
    lock = bare / "packed-refs.lock"
    lock.touch()
    changes = [RefChange(b"refs/heads/%c" % name, NULL_OID, bytes.fromhex(one)) for name in b"ab"]
    errors = change_refs(Repository(bare), changes, is_atomic=True)
    assert [error and error.reason for error in errors] == ["atomic transaction failed"] * 2
    assert lock.exists(), "it is somebody else's"
    assert refs_of(bare) == {}


def test_atomic_change_that_is_refused_at_its_commit_leaves_reflogs_as_they_were(
    bare: Path, one: str, two: str
) -> None:
    git("config", "core.logAllRefUpdates", "true", cwd=bare)
    make(bare, ["gone", "moved"], one)
    logs = {path: path.read_bytes() for path in (bare / "logs/refs/heads").iterdir()}
    (bare / "refs/heads/new").mkdir()
    (bare / "refs/heads/new/odd").symlink_to("nowhere")  # no ref, and in the way of one
    ids = bytes.fromhex(one), bytes.fromhex(two)
    changes = [
        RefChange(b"refs/heads/gone", ids[0], NULL_OID),
        RefChange(b"refs/heads/moved", *ids),
        RefChange(b"refs/heads/new", NULL_OID, ids[0]),
    ]
    who = ReflogEntry(b"a <a@example.org>", b"push")
    errors = change_refs(Repository(bare), changes, is_atomic=True, log=who)
    assert [error and error.reason for error in errors] == ["atomic transaction failed"] * 3
    (bare / "refs/heads/new/odd").unlink()
    assert refs_of(bare) == {"gone": one, "moved": one}
    assert len(logs) == 2
    assert {path: path.read_bytes() for path in (bare / "logs/refs/heads").iterdir()} == logs


@pytest.mark.parametrize("packed", [False, True])
def test_many_names_are_no_folder_of_what_git_makes_meanwhile(
    bare: Path, one: str, *, packed: bool
) -> None:
    """A ref that comes after the names were compared, while `packed-refs` is waited for."""
    names = ["dir", *(f"many/{n}" for n in range(LOOSE_COUNT_MAX))]
    lock = bare / "packed-refs.lock"
    lock.touch()

    def come_between() -> None:
        while not (bare / f"refs/heads/{names[-1]}.lock").exists():
            time.sleep(0.001)
        if packed:
            (bare / "packed-refs").write_text(f"{one} refs/heads/dir/leaf\n")
        else:
            (bare / "refs/heads/dir").mkdir()
            (bare / "refs/heads/dir/leaf").write_text(f"{one}\n")
        lock.unlink()

    with ThreadPoolExecutor(1) as git_itself:
        done = git_itself.submit(come_between)
        reasons = change(bare, *((name, "", one) for name in names))
        done.result()
    assert reasons == ["refname conflict", *(None for _ in names[1:])]
    assert set(refs_of(bare)) == {"dir/leaf", *names[1:]}


def test_atomic_change_that_dies_anywhere_leaves_all_old_or_all_new(
    bare: Path, one: str, two: str, tmp_path: Path
) -> None:
    make(bare, ["packed", "gone/packed"], one, packed=True)
    make(bare, ["loose", "gone/loose"], one)
    old = refs_of(bare)
    new = {"packed": two, "loose": two, "new/deep": two}
    seen, status, steps = [], 1, 0
    while status:
        steps += 1
        copy = tmp_path / str(steps)
        shutil.copytree(bare, copy)
        words = [sys.executable, CHILD, copy, one, two, str(steps)]
        status = run_warm(loading(CHILD), words, env=os.environ).returncode
        assert status in (0, 9)
        forget_locks(copy)
        seen.append(refs_of(copy))
    assert [found for found in seen if found not in (old, new)] == []
    assert seen == sorted(seen, key=lambda found: found == new)
    assert seen[0] == old
    assert seen[-1] == new
    assert steps > 10


def test_only_what_is_no_ref_is_forgotten(bare: Path, one: str) -> None:
    """Branches may be called as what a crash leaves elsewhere."""
    names = ["pack/tmp_pack_fix", "pack/tmp_idx_fix", "tmp_objdir-incoming-fix/a"]
    names += ["objects/pack/tmp_pack_fix", "tmp_objdir-incoming-b"]
    make(bare, names, one)
    old = refs_of(bare)
    left = ["objects/pack/tmp_pack_a", "objects/pack/tmp_idx_a", "refs/heads/a.lock"]
    for name in (*left, "objects/pack/pack-b.keep"):
        (bare / name).touch()
    (bare / "objects/pack/pack-c.keep").write_text("its owner's")
    PackKeeps().put(bare / "objects/pack/pack-a.pack")
    left.append("objects/pack/pack-a.keep")
    (bare / "objects/tmp_objdir-incoming-a/pack").mkdir(parents=True)
    gone = forget_locks(bare)
    assert sorted(gone) == sorted([*left, "objects/tmp_objdir-incoming-a"])
    assert not any((bare / name).exists() for name in gone)
    kept = {path.name for path in (bare / "objects/pack").iterdir()}
    assert kept == {"pack-b.keep", "pack-c.keep"}
    assert refs_of(bare) == old


@needs_strace
@pytest.mark.parametrize("calls", ["write", "?link,?linkat", "?unlink,?unlinkat"])
def test_process_that_dies_as_it_keeps_a_pack_has_it_kept_no_longer_than_until_locks_are_forgotten(
    bare: Path, calls: str
) -> None:
    """An empty `.keep` would be its owner's, and its pack never be joined with others."""
    packs = bare / "objects/pack"
    before = set(packs.iterdir())
    faults = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGKILL:when=1")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *faults, sys.executable, "-c", KEEPS]
    environ = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([*command, packs / "pack-a.pack"], env=environ)
    assert done.returncode == -signal.SIGKILL
    assert set(packs.iterdir()) != before
    forget_locks(bare)
    assert set(packs.iterdir()) == before


def test_a_ref_that_is_made_anew_while_refs_are_packed_stays(bare: Path, one: str) -> None:
    """Deleted and pushed again as it was, between the writing of `packed-refs` and the pruning."""
    make(bare, ["a", "b"], one)
    repository = Repository(bare)
    assert pack_loose_refs(repository) == 2
    make(bare, ["b"], one)
    git("update-ref", "-d", "refs/heads/b", cwd=bare)
    make(bare, ["b"], one)
    names = [b"refs/heads/a", b"refs/heads/b"]
    assert prune_loose_refs(repository, dict.fromkeys(names, bytes.fromhex(one))) == 0
    assert set(refs_of(bare)) == {"a", "b"}


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_ref_right_below_refs_has_none_below_it(bare: Path, one: str, *, is_packed: bool) -> None:
    git("update-ref", "refs/stash", one, cwd=bare)
    if is_packed:
        git("pack-refs", "--all", cwd=bare)
    wish = RefChange(b"refs/stash/foo", NULL_OID, bytes.fromhex(one))
    (error,) = change_refs(Repository(bare), [wish])
    assert error is not None
    assert error.reason == "refname conflict"
    assert git("for-each-ref", "--format=%(refname)", cwd=bare) == "refs/stash"


def test_a_repository_with_relative_worktrees_is_read(bare: Path) -> None:
    git("config", "core.repositoryFormatVersion", "1", cwd=bare)
    git("config", "extensions.relativeWorktrees", "true", cwd=bare)
    assert Repository(bare).object_format == "sha1"


# -- a disk that fails to keep what it was given --------------------------------------------------


def change_on_bad_disk(
    bare: Path, failing: str, *wishes: tuple[str, str, str], is_atomic: bool = False
) -> list[list[str] | None]:
    """As `change`, with words too, where what is below `bare` at `failing` cannot be synced."""
    words = [word for wish in wishes for word in wish]
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "-P", bare / failing)
    inject = ("-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
    how = "atomic" if is_atomic else "each"
    child = (sys.executable, CHANGING, bare, how, *words)
    done = subprocess.run([*strace, *inject, *child], capture_output=True, check=True)
    told: list[list[str] | None] = json.loads(done.stdout)
    return told


@needs_strace
@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["new/deep"], MANY])
def test_moves_that_could_not_be_synced_are_told_apart_from_both_good_and_refused_ones(
    bare: Path, one: str, two: str, names: list[str]
) -> None:
    make(bare, [name for name in names if name in "ab"], one)
    failing = "refs/heads" if names is not MANY else ""
    wishes = [(name, one if name in "ab" else "", two) for name in names]
    told = change_on_bad_disk(bare, failing, *wishes)
    assert [each and each[0] for each in told] == [UNSURE for _ in names]
    assert any(each and "Input/output error" in each[1] for each in told)
    assert refs_of(bare) == dict.fromkeys(names, two)


@needs_strace
def test_deletions_that_could_not_be_synced_are_told_so(bare: Path, one: str) -> None:
    """What is loose stays then: it might come back in `packed-refs`, with an old value."""
    make(bare, ["packed"], one, packed=True)
    make(bare, ["loose", "other"], one)
    told = change_on_bad_disk(bare, "", ("packed", one, ""), ("loose", one, ""))
    words = "cannot sync packed-refs: Input/output error"
    assert told == [[UNSURE, words], [FAILED, words]]
    assert refs_of(bare) == {"loose": one, "other": one}
    told = change_on_bad_disk(bare, "refs/heads", ("other", one, ""))
    assert told == [[UNSURE, "cannot sync the refs: Input/output error"]]
    assert refs_of(bare) == {"loose": one}


@needs_strace
def test_lock_that_could_not_be_synced_moves_nothing(bare: Path, one: str, two: str) -> None:
    make(bare, ["a"], one)
    told = change_on_bad_disk(bare, "refs/heads/a.lock", ("a", one, two), ("b", "", two))
    assert told == [[FAILED, "cannot update 'refs/heads/a': Input/output error"], None]
    assert refs_of(bare) == {"a": one, "b": two}


@needs_strace
@pytest.mark.parametrize("packed", [True, False])
def test_atomic_moves_that_could_not_be_synced_are_all_made_or_all_refused(
    bare: Path, one: str, two: str, *, packed: bool
) -> None:
    """Loose ones are packed first, as they are: where that fails, nothing has moved."""
    make(bare, "ab", one, packed=packed)
    told = change_on_bad_disk(bare, "", ("a", one, two), ("b", one, two), is_atomic=True)
    reasons = [each and each[0] for each in told]
    assert reasons == [UNSURE if packed else "atomic transaction failed"] * 2
    assert refs_of(bare) == dict.fromkeys("ab", two if packed else one)


@needs_strace
@pytest.mark.parametrize("refused", [0, 1, 2])
def test_atomic_change_that_is_refused_has_moved_nothing_on_a_bad_disk_either(
    bare: Path, one: str, refused: int
) -> None:
    """Folders were made for its locks, and could not be synced: that is no word about a ref."""
    make(bare, ["a"], one)
    names = ["n/x", "zz/y"]
    names.insert(refused, "a/x")
    told = change_on_bad_disk(bare, "refs", *((name, "", one) for name in names), is_atomic=True)
    words = "'refs/heads/a' exists; cannot create 'refs/heads/a/x'"
    failed = "atomic transaction failed"
    assert told[0] == [failed, f"cannot lock ref 'refs/heads/a/x': {words}"]
    assert told[1:] == [[failed, ""]] * 2
    assert refs_of(bare) == {"a": one}


@needs_strace
def test_change_that_fails_in_the_midst_tells_of_what_it_moved_before(
    bare: Path, one: str, two: str
) -> None:
    """What has gone is synced first: without that, the deletion would be told of as a good one."""
    make(bare, ["gone"], one)
    (bare / "logs").symlink_to("logs")  # no reflog can be removed
    with pytest.raises(subprocess.CalledProcessError) as failed:
        change_on_bad_disk(bare, "refs/heads", ("gone", one, ""), ("new", "", two))
    assert b"RefNotDurableError: cannot sync the refs: Input/output error" in failed.value.stderr
    assert refs_of(bare) == {}
