"""The git room beside `git http-backend` behind Apache: wall times of the real client, as ratios.

    .venv/bin/python -m bench.git [--objects 50000] [--rounds 5] [--only push]

Needs `git` and `apache2`. Both serve copies of the same repositories in the same run, taking
turns; the figures are medians, the ratios medians of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import getpass
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.apache import ApacheMissingError, http_backend
from bench.measure import Pair, timed

ROOT = Path(__file__).parents[1]
ENVIRON = {
    **os.environ,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
TARGETS = {
    "push 1 commit": 0.7,
    "20 pushes at once": 0.6,
    "push of the whole": 1.0,
    "the same from a clone": 1.0,
    "first clone": 1.2,
    "repeated clone": 0.8,
    "fetch 1 commit": 0.9,
    "fetch 1 commit, bytes": 1.3,
    "ls-remote, 10 refs": 0.6,
    "ls-remote, 50,000 refs": 1.0,
}


def git(*arguments: str | Path, cwd: Path, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)], cwd=cwd, env=ENVIRON, input=stdin, capture_output=True
    )
    if done.returncode:
        raise SystemExit(f"git {arguments} failed: {done.stderr.decode()}")
    return done.stdout.decode()


@dataclass
class Side:
    """One of the two servers."""

    name: str
    root: Path
    url: str
    noted: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, value: float) -> None:
        self.noted.setdefault(what, []).append(value)

    def time(self, what: str, work: Callable[[], object]) -> None:
        self.note(what, timed(work))

    def time_git(self, what: str, *arguments: str | Path, cwd: Path) -> None:
        self.time(what, lambda: git(*arguments, cwd=cwd))


# what is served


def make_history(path: Path, objects: int) -> None:
    """Make a repository of about that many objects: five for each commit."""
    numbers = random.Random(1)
    words = [f"word{n}" for n in range(2000)]
    files: dict[str, list[str]] = {}
    stream: list[str] = []
    for commit in range(objects // 5):
        name = f"d{numbers.randrange(20)}/s{numbers.randrange(10)}/f{numbers.randrange(10)}"
        lines = files.setdefault(name, [" ".join(numbers.choices(words, k=8)) for _ in range(40)])
        lines[numbers.randrange(40)] = " ".join(numbers.choices(words, k=8))
        content = "\n".join(lines) + "\n"
        stream.append(
            f"commit refs/heads/main\ncommitter Ada <ada@example.org> {1600000000 + commit} +0000\n"
            f"data 6\nchange\nM 100644 inline {name}\ndata {len(content)}\n{content}\n"
        )
    git("init", "-q", "--bare", "-b", "main", path, cwd=path.parent)
    git("fast-import", "--quiet", cwd=path, stdin="".join(stream).encode())
    git("repack", "-q", "-a", "-d", "-f", cwd=path)


def serve_copy(side: Side, name: str, source: Path | None, refs: int = 0) -> Path:
    path = side.root / name
    if path.exists():
        shutil.rmtree(path)
    if source is None:
        git("init", "-q", "--bare", "-b", "main", path, cwd=side.root)
    else:
        shutil.copytree(source, path)
    git("config", "http.receivepack", "true", cwd=path)
    if refs:
        tip = git("rev-parse", "main", cwd=path).strip()
        lines = [f"{tip} refs/tags/t{n:06}\n" for n in range(refs)]
        (path / "packed-refs").write_text(
            "# pack-refs with: peeled fully-peeled sorted \n"
            + "".join(sorted([*lines, f"{tip} refs/heads/main\n"], key=lambda line: line[41:]))
        )
        shutil.rmtree(path / "refs/heads")
        (path / "refs/heads").mkdir()
    return path


# the two servers


@contextmanager
def ours(root: Path) -> Iterator[tuple[str, int]]:
    """Serve the repositories; yields the URL below which they are, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gitd.git", "--root", str(root), "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+:\d+", process.stdout.readline())
    assert found
    try:
        yield found[0], process.pid
    finally:
        process.terminate()
        process.wait()


def open_to_apache(side: Side) -> None:
    if side.name == "apache" and getpass.getuser() == "root":
        subprocess.run(["chown", "-R", "www-data", str(side.root)], check=True)


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


# what is measured


def commit_file(clone: Path, content: str) -> None:
    (clone / "d0").mkdir(exist_ok=True)
    (clone / "d0/bench").write_text(content)
    git("add", "d0/bench", cwd=clone)
    git("commit", "-q", "-m", "bench", cwd=clone)


def bench_single(sides: list[Side], folder: Path, history: Path, _small: Path, rounds: int) -> None:
    clones = {}
    for side in sides:
        serve_copy(side, "one.git", history)
        open_to_apache(side)
        clone = clones[side.name] = folder / f"{side.name}-clone"
        git("clone", "-q", f"{side.url}/one.git", clone, cwd=folder)
        git("clone", "-q", f"{side.url}/one.git", f"{side.name}-reader", cwd=folder)
    sizes: dict[str, list[int]] = {side.name: [] for side in sides}
    for number in range(rounds * 3):
        for side in sides:
            clone, reader = clones[side.name], folder / f"{side.name}-reader"
            commit_file(clone, "".join(f"{number} {line}\n" for line in range(50)))
            side.time_git("push 1 commit", "push", "-q", "origin", "main", cwd=clone)
            before = {path.name for path in (reader / ".git/objects").rglob("*")}
            keep = ("-c", "fetch.unpackLimit=1")
            side.time_git("fetch 1 commit", *keep, "fetch", "-q", cwd=reader)
            packs = [p for p in (reader / ".git/objects").rglob("*.pack") if p.name not in before]
            sizes[side.name].append(sum(pack.stat().st_size for pack in packs))
    for side in sides:
        side.noted["fetch 1 commit, bytes"] = [float(size) for size in sizes[side.name]]


def bench_crowd(sides: list[Side], folder: Path, _history: Path, small: Path, rounds: int) -> None:
    for side in sides:
        for number in range(20):
            serve_copy(side, f"crowd{number}.git", small)
        open_to_apache(side)
        for number in range(20):
            git(
                "clone",
                "-q",
                f"{side.url}/crowd{number}.git",
                f"{side.name}-crowd{number}",
                cwd=folder,
            )
    for turn in range(rounds):
        for side in sides:
            clones = [folder / f"{side.name}-crowd{number}" for number in range(20)]
            for clone in clones:
                commit_file(clone, f"{turn}\n" * 20)

            def push_all(clones: list[Path] = clones) -> None:
                running = [
                    subprocess.Popen(["git", "push", "-q", "origin", "main"], cwd=c, env=ENVIRON)
                    for c in clones
                ]
                assert all(process.wait() == 0 for process in running)

            side.time("20 pushes at once", push_all)


def bench_whole(sides: list[Side], folder: Path, history: Path, _small: Path, rounds: int) -> None:
    """Pushes come from a bare repository, whose bitmap spares its client all counting, and from a
    clone of it, as people have them.
    """
    clone = folder / "clone"
    git("clone", "-q", "--no-local", "--no-checkout", history, clone, cwd=folder)
    for turn in range(rounds):
        for side in sides:
            serve_copy(side, "empty.git", None)
            serve_copy(side, f"fresh{turn}.git", history)
            open_to_apache(side)
            url = f"{side.url}/empty.git"
            side.time_git("push of the whole", "push", "-q", url, "main", cwd=history)
            serve_copy(side, "empty.git", None)
            open_to_apache(side)
            side.time_git("the same from a clone", "push", "-q", url, "main", cwd=clone)
            for what in ("first clone", "repeated clone"):
                target = folder / "cloned"
                url = f"{side.url}/fresh{turn}.git"
                side.time_git(what, "clone", "-q", "--bare", url, target, cwd=folder)
                shutil.rmtree(target)


def bench_refs(sides: list[Side], _folder: Path, history: Path, small: Path, rounds: int) -> None:
    for count, what in ((10, "ls-remote, 10 refs"), (50_000, "ls-remote, 50,000 refs")):
        for side in sides:
            serve_copy(side, "refs.git", small, refs=count)
            open_to_apache(side)
        for _ in range(rounds * 3):
            for side in sides:
                side.time_git(what, "ls-remote", f"{side.url}/refs.git", cwd=history)


BENCHES = {"one": bench_single, "crowd": bench_crowd, "whole": bench_whole, "refs": bench_refs}


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=BENCHES, action="append")
    wished = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-git-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        history, small = folder / "history.git", folder / "small.git"
        make_history(history, wished.objects)
        make_history(small, 1000)
        roots = [folder / "apache-served", folder / "ours-served"]
        for root in roots:
            root.mkdir()
        try:
            with (
                http_backend(folder / "apache", roots[0], password=None) as their_url,
                ours(roots[1]) as (url, pid),
            ):
                theirs, mine = Side("apache", roots[0], their_url), Side("gitd", roots[1], url)
                for bench in wished.only or BENCHES:
                    BENCHES[bench]([theirs, mine], folder, history, small, wished.rounds)
                peak = peak_mib(pid)
        except ApacheMissingError as error:
            sys.stderr.write(f"needs: {error}\n")
            return 1
    report(theirs, mine)
    print(f"peak memory of the server process: {peak:.0f} MiB")
    return 0


def report(theirs: Side, mine: Side) -> None:
    """Print each figure beside its target."""
    print(f"{'':26}{'apache':>12}{'gitd':>12}{'ratio':>8}{'target':>8}")
    for what, target in TARGETS.items():
        if what not in mine.noted:
            continue
        pair = Pair(what, mine.noted[what], theirs.noted[what])
        shown = [
            f"{number:.0f} B" if what.endswith("bytes") else f"{number * 1000:.0f} ms"
            for number in map(statistics.median, (pair.peer_s, pair.ours_s))
        ]
        mark = "" if pair.ratio <= target else "  <- missed"
        print(f"{what:26}{shown[0]:>12}{shown[1]:>12}{pair.ratio:8.2f}{target:8.2f}{mark}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
