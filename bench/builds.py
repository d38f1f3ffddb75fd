"""Builds: one that does nothing against copying its files, cached against clean, and the memo.

    a site of 10,000 files      target: built within twice the time of `cp -a` of them; without
                                a step, with one that does nothing, and the same built clean
    builds behind one another   what the source takes of each, in one slot; a step that does
                                nothing, and one that waits for a second
    an answer of the memo       target: under 100 ms from the job to its artifact
    cached against clean        the examples of node and python, each time with another commit

The examples are installed from the registries that the machine's own clients use. Words on the
command line choose what is measured: `files`, `behind`, `memo`, `node`, `python`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.daemon import Daemon
from bench.disk import journalled
from bench.measure import Pair, in_turn, quantiles, report, timed

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES, FOLDERS, FILE_BYTES = 10_000, 100, 4_000
ROUNDS = 3
MEMO_ROUNDS = 40
CACHED_ROUNDS = 7
WAIT_S = 60
DISK_BYTES = 8 << 30
COPY_TARGET = 2.0
MEMO_TARGET_S = 0.1
NOTHING = '[build]\ncommand = "true"\noutput = "."\n'  # it goes through a sandbox, and comes back
# What a build is told, and whether it is clean, and so fetches all of its commit anew.
NO_OPS = {
    "no step": ("", True),
    "a step that does nothing": (NOTHING, False),
    "the same, clean": (NOTHING, True),
}
BEHIND_COUNT = 5
STEPS = ("true", "sleep 1")  # of builds behind one another
REST_S = 1.0  # a slot that has nothing to do unpacks what the next build begins with


class BuiltSite:
    """A site whose commits are built when it is asked, and never by a push."""

    def __init__(self, daemon: Daemon, root: Path, name: str) -> None:
        self._daemon = daemon
        self.work = root / name
        self._url = daemon.new_site(name)
        self._builds = f"/sites/{name}/environments/{{}}/builds"
        routes = {"routes": [{"pattern": "*", "target": "ignore"}]}
        daemon.api("PUT", f"/sites/{name}/branch-routes", routes)

    def begin(self) -> None:
        """Make a repository of the files in the work folder."""
        self._git("init", "-q", "-b", "main")
        self.push()

    def push(self) -> None:
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "another")
        self._git("push", "-q", "-o", "nowait", self._url, "main")

    def push_branch(self, name: str) -> None:
        """Push what is in the work folder as another branch."""
        self._git("checkout", "-q", "-b", name)
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "another")
        self._git("push", "-q", "-o", "nowait", self._url, name)

    def build(self, *, clean: bool, environment: str = "production") -> dict[str, Any]:
        """Build what was pushed last, to its end; returns the build."""
        return self.built(self.ask("main", clean=clean, environment=environment), environment)

    def ask(self, ref: str, *, clean: bool = False, environment: str = "production") -> Any:
        """Ask for a build; returns its job."""
        return self._daemon.api(
            "POST", self._builds.format(environment), {"ref": ref, "clean": clean}
        )

    def built(self, job: Any, environment: str = "production") -> dict[str, Any]:
        """Wait for the end of a build; returns it."""
        api = self._daemon.api
        while job["status"] in ("queued", "running"):
            job = api("GET", f"/jobs/{job['id']}?wait={WAIT_S}")
        assert job["status"] == "succeeded", job
        path = self._builds.format(environment)
        built: dict[str, Any] = api("GET", f"{path}/{job['resource']['id']}")
        return built

    def _git(self, *arguments: str) -> None:
        helper = "!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"
        settings = ("user.name=Bench", "user.email=b@example.com", f"credential.helper={helper}")
        subprocess.run(
            ["git", *(word for each in settings for word in ("-c", each)), *arguments],
            cwd=self.work,
            env=self._daemon.environ,
            check=True,
            capture_output=True,
        )


def many_files(folder: Path, settings: str) -> None:
    for number in range(FILES):
        path = folder / f"{number % FOLDERS:02d}" / f"{number}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(FILE_BYTES // 2).hex().encode())
    (folder / "index.html").write_text("<h1>hello</h1>")
    if settings:
        (folder / "managed.toml").write_text(settings)


def no_op(daemon: Daemon, root: Path, number: int, name: str) -> Pair:
    """A build of many files, of which one is another each time, over a copy of them all; the first,
    which fills the store, counts not. Nothing else goes on while either is timed.
    """
    settings, clean = NO_OPS[name]
    site = BuiltSite(daemon, root, f"files-{number}")
    many_files(site.work, settings)
    site.begin()
    files = root / "files"
    shutil.copytree(site.work, files, ignore=shutil.ignore_patterns(".git"))

    def push_another(round_number: int) -> None:
        (site.work / "round").write_text(f"{round_number} {time.monotonic_ns()}")
        site.push()
        time.sleep(REST_S)

    def build(_: int) -> None:
        assert not site.build(clean=clean)["cached"]

    def copy(round_number: int) -> None:
        target = root / f"copy-{number}-{round_number}"
        subprocess.run(["cp", "-a", str(files), str(target)], check=True)

    pair = in_turn(f"{FILES:,} files, {name}", build, copy, rounds=ROUNDS, before=push_another)
    shutil.rmtree(files)
    return pair


def behind(daemon: Daemon, root: Path, number: int) -> None:
    """Builds of branches of many files, all asked for at once, after one that rested: print what
    the source of each took, and all of them together.
    """
    command = STEPS[number]
    site = BuiltSite(daemon, root, f"behind-{number}")
    many_files(site.work, f'[build]\ncommand = "{command}"\noutput = "."\n')
    site.begin()
    site.build(clean=False)
    names = [f"branch-{each}" for each in range(BEHIND_COUNT)]
    for name in names:
        (site.work / "round").write_text(name)
        site.push_branch(name)
    time.sleep(REST_S)
    began = time.perf_counter()
    jobs = [site.ask(name) for name in names]
    took_s = [site.built(job)["timings"]["source"] for job in jobs]
    each = "  ".join(f"{seconds * 1000:.0f} ms" for seconds in took_s)
    all_s = time.perf_counter() - began
    print(f"{BEHIND_COUNT} builds behind one another, {command!r}: {all_s:.2f} s; sources {each}")


def memo(daemon: Daemon, root: Path) -> list[float]:
    """Seconds from the request for a build that was built before to its artifact."""
    site = BuiltSite(daemon, root, "memo")
    site.work.mkdir()
    (site.work / "index.html").write_text("<h1>hello</h1>")
    site.begin()
    site.build(clean=False)

    def ask(environment: str) -> None:
        assert site.build(clean=False, environment=environment)["cached"]

    environments = ("staging", "production")
    return [timed(lambda: ask(environments[n % 2])) for n in range(MEMO_ROUNDS)]  # noqa: B023


def cached(daemon: Daemon, root: Path, name: str) -> Pair:
    """A build with its cache over a clean one, of an example with another commit each time; print
    where their time went, by the medians of their phases.
    """
    site = BuiltSite(daemon, root, name)
    shutil.copytree(EXAMPLES / name, site.work)
    site.begin()
    timings: dict[bool, list[dict[str, float]]] = {False: [], True: []}

    def push_another(number: int) -> None:
        (site.work / "round").write_text(f"{number} {time.monotonic_ns()}")
        site.push()

    def build(*, clean: bool) -> Callable[[int], None]:
        def run(number: int) -> None:
            built = site.build(clean=clean)
            assert not built["cached"]
            if number:
                timings[clean].append(built["timings"])

        return run

    pair = in_turn(
        f"{name}, cached over clean",
        build(clean=False),
        build(clean=True),
        rounds=CACHED_ROUNDS,
        before=push_another,
    )
    for clean, found in timings.items():
        medians = {phase: statistics.median(each[phase] for each in found) for phase in found[0]}
        told = "  ".join(f"{phase} {seconds * 1000:.0f}" for phase, seconds in medians.items())
        print(f"{name}, {'clean' if clean else 'cached'}, ms: {told}")
    return pair


def main(wanted: Sequence[str] = ()) -> int:
    if os.geteuid() != 0:
        sys.stderr.write("needs: root\n")
        return 1
    with journalled(DISK_BYTES) as root, Daemon(root / "daemon") as daemon:
        if not wanted or "files" in wanted:
            for number, name in enumerate(NO_OPS):
                pair = no_op(daemon, root, number, name)
                report(f"build over cp -a (target: at most x{COPY_TARGET:g})", [pair])
        if not wanted or "memo" in wanted:
            took_s = memo(daemon, root)
            print(quantiles(f"memo (target: under {MEMO_TARGET_S * 1000:.0f} ms)", took_s))
            print(f"{'':<48} {statistics.mean(took_s) * 1000:.1f} ms on average")
        for name in ("node-static", "python-deps"):
            if not wanted or name.partition("-")[0] in wanted:
                report("cached over clean (no target: the gain)", [cached(daemon, root, name)])
    if not wanted or "behind" in wanted:
        with (
            journalled(DISK_BYTES) as root,
            Daemon(root / "daemon", GITD_BUILDERS_SLOTS="1") as daemon,
        ):
            for number in range(len(STEPS)):
                behind(daemon, root, number)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
