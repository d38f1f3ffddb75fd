"""A large site whose slot keeps its commit: each build finds its own commit, and nothing else."""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path

import pytest

from tests.scenarios.conftest import Server, WorkTree, wait_until

FILES = 600
# It tells what it found, and leaves nothing as it was.
BUILD = """
set -e
python3 - > /tmp/found <<'END'
import hashlib, os, stat
def told(path):
    found = os.lstat(path)
    mode = format(stat.S_IMODE(found.st_mode), "o")
    if stat.S_ISLNK(found.st_mode):
        return f"{path} -> {os.readlink(path)}"
    if stat.S_ISDIR(found.st_mode):
        return f"{path}/ {mode} {len(os.listdir(path))}"
    with open(path, "rb") as file:
        return f"{path} {mode} {found.st_nlink} {hashlib.sha256(file.read()).hexdigest()}"
paths = [f"{top}/{name}" for top, folders, files in os.walk(".") for name in folders + files]
for path in sorted(paths):
    print(told(path))
END
echo poison >> 1/1
echo poison > 1/added
rm 2/2
mv 3 renamed
chmod 755 4/4
chmod 700 4
ln 5/5 5/second
ln -sfn /etc/passwd 6/6
mkdir out
cp /tmp/found out/index.html
"""
SETTINGS = '[build]\ncommand = "sh build.sh"\noutput = "out"\n'


def files_of(count: int) -> dict[str, str]:
    names = {f"{number % 20}/{number}": f"number {number}\n" for number in range(count)}
    return {**names, "managed.toml": SETTINGS, "build.sh": BUILD}


def found_in(commit: Path) -> str:
    """What the build of a work tree has to find: see `BUILD`."""
    lines = []
    paths = [path for path in commit.rglob("*") if ".git" not in path.relative_to(commit).parts]
    for path in sorted(paths, key=lambda path: f"./{path.relative_to(commit)}"):
        name = f"./{path.relative_to(commit)}"
        if path.is_symlink():
            lines.append(f"{name} -> {path.readlink()}")
        elif path.is_dir():
            lines.append(f"{name}/ 755 {len(list(path.iterdir()))}")
        else:
            mode = "755" if path.stat().st_mode & stat.S_IXUSR else "644"
            lines.append(f"{name} {mode} 1 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "".join(f"{line}\n" for line in lines)


def kept_trees(server: Server) -> list[Path]:
    """The trees that lie ready for the next builds."""
    sources = server.data.glob("**/sources/*")
    return [path for path in sources if path.is_dir() and (path / "managed.toml").exists()]


def pushed(server: Server, work: WorkTree) -> str:
    """Push, hold what the build found against the commit, and return its line about the source."""
    said = work.push()
    assert server.visit("large").body.decode() == found_in(work.path)
    line = re.search(r"source +(\d.*)", said)
    assert line, said
    return line[1]


@pytest.fixture
def large(stopped: Server) -> tuple[Server, WorkTree]:
    stopped.config = "[builders]\ndisk_bytes_max = 268435456\ndisk_free_bytes_min = 1048576\n"
    stopped.slots = 2
    stopped.start()
    stopped.new_site("large")
    return stopped, stopped.work("large")


def test_build_finds_its_commit_in_the_tree_that_was_kept_whatever_the_one_before_did(
    large: tuple[Server, WorkTree],
) -> None:
    server, work = large
    work.commit(files_of(FILES))
    assert pushed(server, work).startswith(f"{FILES + 2} files, ")
    wait_until(lambda: kept_trees(server), "a tree is kept for the next build")

    (work.path / "7/7").unlink()
    (work.path / "7/7").mkdir()
    (work.path / "8/8").unlink()
    (work.path / "8/8").symlink_to("../9/9")
    (work.path / "9/9").chmod(0o755)
    for path in (work.path / "10").iterdir():
        path.unlink()
    (work.path / "10").rmdir()
    (work.path / "11/11").unlink()
    for path in (work.path / "12").iterdir():
        path.unlink()
    (work.path / "12").rmdir()
    (work.path / "12").symlink_to("13")
    work.commit({"7/7/below": "b\n", "10": "a file now\n", "1/1": "another\n", "new/er": "n\n"})
    line = pushed(server, work)
    assert "; 5 of them fetched, the others were here" in line
    assert line.startswith(f"{sum(1 for _ in filter(is_plain, work.path.rglob('*')))} files, ")

    wait_until(lambda: kept_trees(server), "a tree is kept again")
    work.commit({"1/1": "yet another\n", "1/21": "as well\n"})
    assert "; 6 of them fetched, the others were here" in pushed(server, work)


def test_branches_with_little_in_common_each_get_the_tree_of_their_own(
    large: tuple[Server, WorkTree],
) -> None:
    server, work = large
    work.commit(files_of(FILES))
    pushed(server, work)
    wait_until(lambda: kept_trees(server), "a tree is kept for the next build")
    work.git("checkout", "--quiet", "--orphan", "other")
    work.git("rm", "-r", "--quiet", "--force", ".")
    other = {f"other/{name}": text for name, text in files_of(FILES).items()}
    work.commit({**other, "managed.toml": SETTINGS, "build.sh": "mkdir out; cp new out/index.html"})
    work.commit({"new": "first"})
    assert "fetched" not in work.push("other")
    wait_until(lambda: len(kept_trees(server)) > 1, "one is kept of each")
    for branch in ("other", "main"):
        work.git("checkout", "--quiet", branch)
        work.commit({"new": branch})
        assert "; 1 of them fetched, the others were here" in work.push(branch)
    assert server.visit("large").body.decode() == found_in(work.path)


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and ".git" not in path.parts
