"""storage.repos against what the system's git made."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import repository_folders
from storage.errors import StorageFullError
from storage.git.errors import RefNotFoundError, RepositoryCorruptError
from storage.repos import Graft, Repositories, ResolvedRef
from storage.trees import EntryKind, Folder, RootEntry, write_tar

IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **IDENTITY},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    return Repositories(tmp_path / "repos")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_full_disk_is_said_and_leaves_no_half_repository(
    repositories: Repositories,
) -> None:
    repositories.root.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "nr_inodes=4", "tmpfs", repositories.root]
    if subprocess.run(small, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(StorageFullError):
            repositories.create("site_1", "main")
        assert list(repositories.root.iterdir()) == []
    finally:
        subprocess.run(["umount", repositories.root], check=True)


@pytest.fixture
def work(tmp_path: Path, repositories: Repositories) -> Path:
    """A clone whose every kind of entry is pushed to site_1."""
    bare = repositories.create("site_1", "main")
    work = tmp_path / "work"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    (work / "index.html").write_text("<h1>hello</h1>")
    (work / "bin").mkdir()
    (work / "bin" / "run").write_text("#!/bin/sh\n")
    (work / "bin" / "run").chmod(0o755)
    (work / "deep" / "er").mkdir(parents=True)
    (work / "deep" / "er" / "b.txt").write_bytes(b"b" * 300_000)
    (work / "link").symlink_to("index.html")
    git("add", "-A", cwd=work)
    git("update-index", "--add", "--cacheinfo", f"160000,{'12' * 20},sub", cwd=work)
    git("commit", "-q", "-m", "one", cwd=work)
    git("tag", "-a", "v1", "-m", "v1", cwd=work)
    git("branch", "feature/checkout", cwd=work)
    git("push", "-q", "--all", bare, cwd=work)
    git("push", "-q", "--tags", bare, cwd=work)
    return work


def test_a_new_repository_is_one_that_git_accepts(repositories: Repositories) -> None:
    path = repositories.create("site_1", "trunk")
    assert repositories.exists("site_1")
    assert git("symbolic-ref", "HEAD", cwd=path) == "refs/heads/trunk"
    assert git("config", "receive.advertisePushOptions", cwd=path) == "true"
    assert git("fsck", cwd=path) == ""
    assert repositories.default_branch("site_1") == "trunk"
    assert path.stat().st_mode & 0o777 == 0o700


def test_creating_twice_keeps_the_first(repositories: Repositories) -> None:
    first = repositories.create("site_1", "main")
    assert repositories.create("site_1", "other") == first
    assert repositories.default_branch("site_1") == "main"
    assert [path.name for path in repositories.root.iterdir()] == ["site_1.git"]


@pytest.mark.parametrize("branch", ["", "a..b", "x.lock", "sp ace", "-\n"])
def test_a_default_branch_must_be_a_valid_name(repositories: Repositories, branch: str) -> None:
    with pytest.raises(ValueError, match="branch"):
        repositories.create("site_1", branch)


@pytest.mark.parametrize("site_id", ["", "..", "../x", "a/b", "-x" * 60])
def test_a_site_id_never_leaves_the_root(repositories: Repositories, site_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        repositories.path(site_id)


def test_removing_takes_all_of_it(repositories: Repositories, work: Path) -> None:
    repositories.remove("site_1")
    assert not repositories.exists("site_1")
    assert list(repositories.root.iterdir()) == []
    repositories.remove("site_1")


def test_folders_that_a_crash_left_are_removed_and_no_others(repositories: Repositories) -> None:
    repositories.create("site_1", "main")
    (repositories.root / ".new-site_2-1-00000000" / "objects").mkdir(parents=True)
    (repositories.root / ".gone-site_3-00000000" / "objects").mkdir(parents=True)
    (repositories.root / ".gone-somebody").symlink_to(repositories.root / "site_1.git")
    with repository_folders.coming(repositories.root, "site_4") as being_made:
        assert len(repositories.left_behind()) == 2
        assert repositories.remove_left_behind() == []
        assert being_made.is_dir()
    assert repositories.exists("site_1")
    names = {path.name for path in repositories.root.iterdir()}
    assert names == {"site_1.git", ".gone-somebody"}


def test_many_who_make_and_delete_beside_one_who_tidies_all_get_what_they_want(
    repositories: Repositories,
) -> None:
    repositories.root.mkdir()
    is_over = threading.Event()

    def tidy() -> int:
        times = 0
        while not is_over.is_set():
            repositories.remove_left_behind()
            times += 1
        return times

    def make(number: int) -> bool:
        path = repositories.create(f"site_{number}", "main")
        if number % 2:
            repositories.remove(f"site_{number}")
        return path.exists()

    with ThreadPoolExecutor(4) as threads:
        tidying = threads.submit(tidy)
        made = list(threads.map(make, range(60)))
        is_over.set()
        assert tidying.result() > 0
    assert made == [number % 2 == 0 for number in range(60)]
    assert repositories.remove_left_behind() == []
    assert len(list(repositories.root.iterdir())) == 30


@pytest.mark.parametrize("form", ["loose", "packed"])
def test_names_resolve_as_git_resolves_them(
    repositories: Repositories, work: Path, form: str
) -> None:
    if form == "packed":
        git("gc", "-q", cwd=repositories.path("site_1"))
    commit = git("rev-parse", "HEAD", cwd=work)
    tag = git("rev-parse", "v1", cwd=work)
    expected = {
        "main": "refs/heads/main",
        "HEAD": "refs/heads/main",
        "refs/heads/main": "refs/heads/main",
        "feature/checkout": "refs/heads/feature/checkout",
        "v1": "refs/tags/v1",
        "refs/tags/v1": "refs/tags/v1",
        commit: None,
        commit[:7]: None,
        commit[:13]: None,
        tag: None,
    }
    for name, ref in expected.items():
        wanted = ResolvedRef(ref, commit, is_whole_id=len(name) == 40)
        assert repositories.resolve("site_1", name) == wanted, name
    assert repositories.branches("site_1") == {"feature/checkout": commit, "main": commit}


@pytest.mark.parametrize(
    "name", ["nope", "", "refs/heads/../x", "0" * 40, "0000000", "a\0b", "refs/heads/main/x"]
)
def test_what_is_not_there_does_not_resolve(
    repositories: Repositories, work: Path, name: str
) -> None:
    with pytest.raises(RefNotFoundError):
        repositories.resolve("site_1", name)


def test_a_blob_is_no_commit(repositories: Repositories, work: Path) -> None:
    with pytest.raises(RefNotFoundError):
        repositories.resolve("site_1", git("rev-parse", "HEAD:index.html", cwd=work))


def test_the_root_lists_every_kind(repositories: Repositories, work: Path) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    tree = git("rev-parse", "HEAD^{tree}", cwd=work)
    assert repositories.folder("site_1", commit) == Folder(
        tree,
        (
            RootEntry("bin", EntryKind.DIR),
            RootEntry("deep", EntryKind.DIR),
            RootEntry("index.html", EntryKind.FILE),
            RootEntry("link", EntryKind.LINK),
            RootEntry("sub", EntryKind.SUBMODULE),
        ),
    )


def test_a_folder_has_the_id_of_its_tree_alone(repositories: Repositories, work: Path) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    found = repositories.folder("site_1", commit, "bin")
    assert found is not None
    assert found.oid == git("rev-parse", "HEAD:bin", cwd=work)
    assert {entry.kind for entry in found.entries} == {EntryKind.FILE}


@pytest.mark.parametrize(
    "path", ["nope", "index.html", "link", "sub", "bin/nope", "../x", "bin/.."]
)
def test_what_is_no_folder_has_no_names(repositories: Repositories, work: Path, path: str) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    assert repositories.folder("site_1", commit, path) is None


def test_one_file_reads_within_its_bound(repositories: Repositories, work: Path) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    read = lambda path, limit: repositories.read_file("site_1", commit, path, limit)  # noqa: E731
    assert read("index.html", 14) == b"<h1>hello</h1>"
    assert read("index.html", 13) is None
    assert read("bin/run", 100) == b"#!/bin/sh\n"
    for path in ("link", "bin", "absent", "index.html/x", "../x", "/index.html"):
        assert read(path, 100) is None, path


@pytest.mark.parametrize("form", ["loose", "packed"])
def test_a_walk_yields_what_ls_tree_lists(
    repositories: Repositories, work: Path, form: str
) -> None:
    if form == "packed":
        git("gc", "-q", cwd=repositories.path("site_1"))
    commit = git("rev-parse", "HEAD", cwd=work)
    files = list(repositories.walk_tree("site_1", commit))
    lines = git("ls-tree", "-r", "-l", "HEAD", cwd=work).splitlines()
    assert [f.path for f in files] == [line.split("\t")[1] for line in lines]
    assert [f.oid for f in files] == [line.split()[2] for line in lines]
    assert [f.size for f in files] == [int(s) if (s := x.split()[3]) != "-" else 0 for x in lines]
    by_path = {f.path: f for f in files}
    assert by_path["bin/run"].is_executable
    assert not by_path["index.html"].is_executable
    assert by_path["link"].read() == b"index.html"
    assert b"".join(by_path["deep/er/b.txt"].chunks()) == b"b" * 300_000
    assert [f.path for f in repositories.walk_tree("site_1", commit, "deep/er")] == ["b.txt"]
    assert list(repositories.walk_tree("site_1", commit, "absent")) == []


def test_the_tar_unpacks_to_the_work_tree(
    repositories: Repositories, work: Path, tmp_path: Path
) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    out = io.BytesIO()
    files = repositories.walk_tree("site_1", commit)
    write_tar(files, out, time=repositories.commit_time("site_1", commit))
    out.seek(0)
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=out.getvalue(), check=True)
    with tarfile.open(fileobj=out) as tar:
        members = {member.name: member for member in tar}
    assert (target / "link").readlink() == Path("index.html")
    assert (target / "bin" / "run").stat().st_mode & 0o777 == 0o755
    assert (target / "deep" / "er" / "b.txt").read_bytes() == b"b" * 300_000
    assert (target / "sub").is_dir()
    assert members["index.html"].mtime == 1700000000
    assert members["index.html"].uid == 0


@pytest.mark.parametrize("name", ["..", ".", ".git", ".GIT"])
def test_a_tree_that_would_leave_its_folder_is_refused(
    repositories: Repositories, work: Path, name: str
) -> None:
    bare = repositories.path("site_1")
    blob = git("rev-parse", "HEAD:index.html", cwd=work)
    content = f"100644 {name}\0".encode() + bytes.fromhex(blob)
    tree = subprocess.run(
        ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
        cwd=bare,
        input=content,
        check=True,
        capture_output=True,
    ).stdout.decode()
    commit = git("commit-tree", "-m", "bad", tree.strip(), cwd=bare)
    with pytest.raises(RepositoryCorruptError):
        list(repositories.walk_tree("site_1", commit))


def test_two_hundred_files_are_walked_and_read_in_milliseconds(
    repositories: Repositories, work: Path
) -> None:
    for number in range(200):
        (work / f"page-{number}.html").write_text(f"<h1>{number}</h1>" * 50)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "many", cwd=work)
    git("push", "-q", repositories.path("site_1"), "main", cwd=work)
    git("gc", "-q", cwd=repositories.path("site_1"))
    commit = git("rev-parse", "HEAD", cwd=work)
    took_ms = []
    for _ in range(5):
        start = time.perf_counter()
        total = sum(len(file.read()) for file in repositories.walk_tree("site_1", commit))
        took_ms.append((time.perf_counter() - start) * 1e3)
        assert total > 200_000
    print(f"walked and read in {min(took_ms):.1f} ms")
    assert min(took_ms) < 100, took_ms  # 4 ms on a quiet machine


def test_only_commits_that_branches_and_tags_lead_to_are_reachable(
    repositories: Repositories, work: Path
) -> None:
    first = git("rev-parse", "HEAD", cwd=work)
    git("commit", "-q", "--amend", "-m", "two", cwd=work)
    second = git("rev-parse", "HEAD", cwd=work)
    git("push", "-q", "--force", repositories.path("site_1"), "main", cwd=work)
    git("branch", "-q", "-D", "feature/checkout", cwd=work)
    bare = repositories.path("site_1")
    git("push", "-q", bare, ":feature/checkout", cwd=work)
    tree = git("rev-parse", "HEAD^{tree}", cwd=work)
    tag = git("rev-parse", "v1", cwd=work)
    asked = [first, second, tree, tag, "12" * 20]
    assert repositories.reachable("site_1", asked) == {first, second}, "the tag keeps the first"
    git("push", "-q", bare, ":v1", cwd=work)
    assert repositories.reachable("site_1", asked) == {second}


def test_walk_goes_into_what_lies_in_a_submodules_place(
    repositories: Repositories, work: Path
) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    grafts = {"sub": Graft("site_1", commit), "sub/sub": Graft("site_1", commit)}
    paths = [file.path for file in repositories.walk_tree("site_1", commit, ".", grafts)]
    assert {"sub/index.html", "sub/sub/index.html", "sub/sub/deep/er/b.txt"} <= set(paths)
    assert "sub/sub/sub" in paths, "the innermost has none"
    assert list(repositories.submodules("site_1", commit)) == [("sub", "12" * 20)]


def random_tree(work: Path, numbers: random.Random) -> str:
    """Write files, programs, links and submodules of few names into the index; the tree's id."""
    git("rm", "-rfq", "--cached", "--ignore-unmatch", ".", cwd=work)
    names: set[str] = set()
    for _ in range(numbers.randrange(1, 25)):
        name = "/".join(numbers.choices("abc", k=numbers.randrange(1, 4)))
        if not any(f"{name}/".startswith(f"{e}/") or e.startswith(f"{name}/") for e in names):
            names.add(name)
    contents = [
        ("100644", git("hash-object", "-w", "index.html", cwd=work)),
        ("100755", git("hash-object", "-w", "index.html", cwd=work)),
        ("100644", git("hash-object", "-w", "bin/run", cwd=work)),
        ("120000", git("hash-object", "-w", "index.html", cwd=work)),
        ("160000", "12" * 20),
    ]
    for name in names:
        mode, oid = numbers.choice(contents)
        git("update-index", "--add", "--cacheinfo", f"{mode},{oid},{name}", cwd=work)
    return git("write-tree", cwd=work)


def test_changes_make_one_folder_of_another(work: Path, repositories: Repositories) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    commits = []
    for _ in range(7):
        tree = random_tree(work, numbers)
        commits.append((tree, git("commit-tree", "-m", "random", tree, cwd=work)))
    for number, (_, commit) in enumerate(commits):
        pushed = f"{commit}:refs/heads/random-{number}"
        git("push", "-q", repositories.path("site_1"), pushed, cwd=work)
    for tree, old in commits:
        for _, new in commits:
            files = {file.path: file for file in repositories.walk_tree("site_1", old)}
            wanted = {file.path: file for file in repositories.walk_tree("site_1", new)}
            changes = repositories.changes("site_1", tree, new)
            assert changes is not None
            for path in changes.removed:
                del files[os.fsdecode(path)]
            assert not files.keys() & {file.path for file in changes.files}
            files |= {file.path: file for file in changes.files}
            assert files == wanted
            assert {file.path for file in changes.files} <= wanted.keys()
            if old == new:
                assert (changes.removed, changes.files) == ((), ())
            for count_max in (changes.count, changes.count - 1):
                found = repositories.changes("site_1", tree, new, count_max=count_max)
                assert found == (changes if count_max == changes.count else None)


def test_changes_of_a_tree_that_is_not_there_are_not_known(
    work: Path, repositories: Repositories
) -> None:
    commit = git("rev-parse", "HEAD", cwd=work)
    blob = git("rev-parse", "HEAD:index.html", cwd=work)
    below = git("rev-parse", "HEAD:deep", cwd=work)
    for other in ("ab" * 20, blob, commit):
        assert repositories.changes("site_1", other, commit) is None
    changes = repositories.changes("site_1", below, commit, "deep/er")
    assert changes is not None
    assert (changes.removed, [file.path for file in changes.files]) == ((b"er/b.txt",), ["b.txt"])
    assert repositories.changes("site_1", below, commit, "absent") is None
