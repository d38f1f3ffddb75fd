"""The git room beside `git http-backend` behind Apache: wall times of the real client, as ratios.

    .venv/bin/python bench/git.py [--objects 50000] [--rounds 5]

Needs `git` and `apache2` (with mpm_event, cgid, alias, env, setenvif, authz_core). Both serve
copies of the same repositories in the same run, taking turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = "/usr/lib/apache2/modules"
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
    pid: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)

    def median(self, what: str) -> float:
        return statistics.median(self.seconds[what])


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
def apache(folder: Path) -> Iterator[Side]:
    root = folder / "apache-served"
    root.mkdir()
    port = 18_431
    config = folder / "apache.conf"
    user = getpass.getuser()
    config.write_text(
        f"""ServerRoot {folder}
PidFile {folder}/apache.pid
ServerName localhost
Listen 127.0.0.1:{port}
{"User www-data" if user == "root" else ""}
LoadModule mpm_event_module {MODULES}/mod_mpm_event.so
LoadModule authz_core_module {MODULES}/mod_authz_core.so
LoadModule alias_module {MODULES}/mod_alias.so
LoadModule env_module {MODULES}/mod_env.so
LoadModule cgid_module {MODULES}/mod_cgid.so
LoadModule setenvif_module {MODULES}/mod_setenvif.so
ErrorLog {folder}/apache.log
ScriptSock {folder}/cgid.sock
SetEnv GIT_PROJECT_ROOT {root}
SetEnv GIT_HTTP_EXPORT_ALL 1
SetEnv GIT_CONFIG_NOSYSTEM 1
SetEnv HOME {root}
SetEnvIf Git-Protocol ".*" GIT_PROTOCOL=$0
ScriptAlias / {git("--exec-path", cwd=folder).strip()}/git-http-backend/
<Directory {git("--exec-path", cwd=folder).strip()}>
Require all granted
</Directory>
"""
    )
    (root / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    process = subprocess.Popen(["apache2", "-f", str(config), "-D", "FOREGROUND"])
    time.sleep(1)
    yield Side("apache", root, f"http://127.0.0.1:{port}", process.pid)
    process.terminate()
    process.wait()


@contextmanager
def ours(folder: Path) -> Iterator[Side]:
    root = folder / "ours-served"
    root.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "gitd.git", "--root", str(root), "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+:\d+", process.stdout.readline())
    assert found
    yield Side("gitd", root, found[0], process.pid)
    process.terminate()
    process.wait()


def open_to_apache(side: Side) -> None:
    if side.name == "apache" and getpass.getuser() == "root":
        subprocess.run(["chown", "-R", "www-data", str(side.root)], check=True)


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


# what is measured


def timed(side: Side, what: str, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    side.note(what, time.perf_counter() - start)


def timed_git(side: Side, what: str, *arguments: str | Path, cwd: Path) -> None:
    timed(side, what, lambda: git(*arguments, cwd=cwd))


def commit_file(clone: Path, content: str) -> None:
    (clone / "d0").mkdir(exist_ok=True)
    (clone / "d0/bench").write_text(content)
    git("add", "d0/bench", cwd=clone)
    git("commit", "-q", "-m", "bench", cwd=clone)


def bench_single(sides: list[Side], folder: Path, history: Path, rounds: int) -> None:
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
            timed_git(side, "push 1 commit", "push", "-q", "origin", "main", cwd=clone)
            before = {path.name for path in (reader / ".git/objects").rglob("*")}
            keep = ("-c", "fetch.unpackLimit=1")
            timed_git(side, "fetch 1 commit", *keep, "fetch", "-q", cwd=reader)
            packs = [p for p in (reader / ".git/objects").rglob("*.pack") if p.name not in before]
            sizes[side.name].append(sum(pack.stat().st_size for pack in packs))
    for side in sides:
        side.note("fetch 1 commit, bytes", statistics.median(sizes[side.name]))


def bench_crowd(sides: list[Side], folder: Path, rounds: int) -> None:
    small = folder / "small.git"
    make_history(small, 1000)
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

            timed(side, "20 pushes at once", push_all)


def bench_whole(sides: list[Side], folder: Path, history: Path, rounds: int) -> None:
    for turn in range(rounds):
        for side in sides:
            serve_copy(side, "empty.git", None)
            serve_copy(side, f"fresh{turn}.git", history)
            open_to_apache(side)
            url = f"{side.url}/empty.git"
            timed_git(side, "push of the whole", "push", "-q", url, "main", cwd=history)
            for what in ("first clone", "repeated clone"):
                target = folder / "cloned"
                url = f"{side.url}/fresh{turn}.git"
                timed_git(side, what, "clone", "-q", "--bare", url, target, cwd=folder)
                shutil.rmtree(target)


def bench_refs(sides: list[Side], folder: Path, history: Path, rounds: int) -> None:
    for count, what in ((10, "ls-remote, 10 refs"), (50_000, "ls-remote, 50,000 refs")):
        for side in sides:
            serve_copy(side, "refs.git", folder / "small.git", refs=count)
            open_to_apache(side)
        for _ in range(rounds * 3):
            for side in sides:
                timed_git(side, what, "ls-remote", f"{side.url}/refs.git", cwd=history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-git-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        history = folder / "history.git"
        make_history(history, arguments.objects)
        with apache(folder) as theirs, ours(folder) as mine:
            sides = [theirs, mine]
            bench_single(sides, folder, history, arguments.rounds)
            bench_crowd(sides, folder, arguments.rounds)
            bench_whole(sides, folder, history, arguments.rounds)
            bench_refs(sides, folder, history, arguments.rounds)
            peak = peak_mib(mine.pid)
    report(theirs, mine, peak, as_json=arguments.json)


def report(theirs: Side, mine: Side, peak: float, *, as_json: bool) -> None:
    rows = []
    for what, target in TARGETS.items():
        ratio = mine.median(what) / theirs.median(what)
        rows.append((what, theirs.median(what), mine.median(what), ratio, target))
    if as_json:
        print(json.dumps({"rows": rows, "peak_mib": peak}))
        return
    print(f"{'':26}{'apache':>10}{'gitd':>10}{'ratio':>8}{'target':>8}")
    for what, one, other, ratio, target in rows:
        mark = "" if ratio <= target else "  <- missed"
        is_bytes = what.endswith("bytes")
        shown = (
            [f"{one:.0f} B", f"{other:.0f} B"] if is_bytes else [f"{one:.3f} s", f"{other:.3f} s"]
        )
        print(f"{what:26}{shown[0]:>10}{shown[1]:>10}{ratio:8.2f}{target:8.2f}{mark}")
    print(f"peak memory of the server process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
