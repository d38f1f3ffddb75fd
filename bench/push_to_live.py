"""Push to live, rollback and promote, with a static site of 200 files.

The peer is the classic: a bare repository whose post-receive hook checks the files out, over git's
http-backend behind Apache, with a password as ours has. Needs apache2, and root: builders and site
host are users of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.apache import ApacheMissingError, http_backend
from bench.daemon import Daemon
from bench.measure import Pair, quantiles, report, timed

FILES = 200
ROUNDS = 15
FIRST_ROUNDS = 5
TURNS = 60
HOOK = "#!/bin/sh\nexec git --work-tree={live} checkout --quiet --force main\n"
CREDENTIALS = "!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"


class WorkTree:
    """A site of 200 files, with a way to see whether a version of it is live."""

    def __init__(self, path: Path, url: str, environ: dict[str, str]) -> None:
        self.path, self.environ = path, environ
        path.mkdir()
        for number in range(FILES - 1):
            page = path / f"section-{number % 10}" / f"page-{number}.html"
            page.parent.mkdir(exist_ok=True)
            page.write_text(f"<h1>Page {number}</h1>\n<p>{os.urandom(600).hex()}</p>\n")
        self.git("init", "-q", "-b", "main")
        for name, value in (
            ("user.name", "Bench"),
            ("user.email", "bench@example.com"),
            ("gc.auto", "0"),
            ("credential.helper", CREDENTIALS),
        ):
            self.git("config", name, value)
        self.git("remote", "add", "managed", url)

    def git(self, *arguments: str) -> None:
        subprocess.run(
            ["git", *arguments], cwd=self.path, env=self.environ, check=True, capture_output=True
        )

    def commit(self, version: str) -> None:
        (self.path / "index.html").write_text(version)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", version)

    def push(self) -> None:
        self.git("push", "--progress", "managed", "main")


def classic(repository: Path, live: Path) -> None:
    """Make the bare repository and the folder that its hook checks out into."""
    live.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(repository)], check=True)
    hook = repository / "hooks" / "post-receive"
    hook.write_text(HOOK.format(live=live))
    hook.chmod(0o755)
    for path in (repository, live):
        subprocess.run(["chown", "-R", "www-data:www-data", str(path)], check=True)


def first_pushes(root: Path, daemon: Daemon, url: str) -> Pair:
    """Whole sites, pushed for the first time."""
    ours_s, peer_s = [], []
    for number in range(FIRST_ROUNDS):
        name, version = f"first-{number}", f"first {number}"
        live = root / "live" / name
        classic(root / "repositories" / f"{name}.git", live)
        ours = WorkTree(root / f"ours-{number}", daemon.new_site(name), daemon.environ)
        peer = WorkTree(root / f"peer-{number}", f"{url}/{name}.git", daemon.environ)
        for tree in (ours, peer):
            tree.commit(version)
        ours_s.append(timed(ours.push))
        assert daemon.look(name) == version.encode(), "not live when the push ended"
        peer_s.append(timed(peer.push))
        assert (live / "index.html").read_text() == version
    return Pair(f"first push, {FILES} files", ours_s, peer_s)


def next_pushes(root: Path, daemon: Daemon, url: str) -> Pair:
    """One file changed, again and again."""
    live = root / "live" / "shop"
    classic(root / "repositories" / "shop.git", live)
    ours = WorkTree(root / "ours", daemon.new_site("shop"), daemon.environ)
    peer = WorkTree(root / "peer", f"{url}/shop.git", daemon.environ)
    ours_s, peer_s = [], []
    for number in range(ROUNDS + 1):
        version = f"version {number}"
        for tree in (ours, peer):
            tree.commit(version)
        ours_took = timed(ours.push)
        assert daemon.look("shop") == version.encode(), "not live when the push ended"
        peer_took = timed(peer.push)
        assert (live / "index.html").read_text() == version
        if number:  # the first one is another kind of push
            ours_s.append(ours_took)
            peer_s.append(peer_took)
    return Pair(f"push, {FILES} files, one changed", ours_s, peer_s)


def turns(daemon: Daemon, ask: Callable[[int], None], host: str) -> list[float]:
    """Seconds from a request to the moment at which a visitor gets other content."""
    took = []
    for number in range(TURNS):
        before = daemon.look(host)
        began = time.perf_counter()
        ask(number)
        while daemon.look(host) == before:
            pass
        took.append(time.perf_counter() - began)
        wait_for_jobs(daemon)
    return took


def wait_for_jobs(daemon: Daemon) -> None:
    while any(j["status"] in ("queued", "running") for j in daemon.api("GET", "/jobs?limit=3")):
        time.sleep(0.005)


def rollbacks(daemon: Daemon) -> list[float]:
    environment = "/sites/shop/environments/production"
    one, two, *_ = daemon.api("GET", f"{environment}/releases")

    def ask(number: int) -> None:
        release = (two, one)[number % 2]["id"]
        daemon.api("POST", f"{environment}/deployments/{release}/rollback")

    return turns(daemon, ask, "shop")


def promotions(daemon: Daemon) -> list[float]:
    """Staging gets one artifact or the other; what is timed is production."""
    artifacts = [a["id"] for a in daemon.api("GET", "/sites/shop/environments/staging/artifacts")]
    took = []
    for number in range(TURNS):
        daemon.api(
            "POST",
            "/sites/shop/environments/staging/deployments",
            {"artifact_id": artifacts[number % 2]},
        )
        wait_for_jobs(daemon)
        before = daemon.look("shop")
        if daemon.look("shop--staging") == before:
            continue
        began = time.perf_counter()
        daemon.api("POST", "/sites/shop/environments/staging/promote", {"to_env": "production"})
        while daemon.look("shop") == before:
            pass
        took.append(time.perf_counter() - began)
        wait_for_jobs(daemon)
    return took


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="gitd-bench-"))
    root.chmod(0o711)
    try:
        (root / "repositories").mkdir()
        with (
            Daemon(root / "daemon") as daemon,
            http_backend(root / "apache", root / "repositories", password=daemon.token) as url,
        ):
            pairs = [first_pushes(root, daemon, url), next_pushes(root, daemon, url)]
            report("push to live (target: at most x1.5)", pairs)
            print("\nfrom request to served content (target: median under 50 ms)")
            print(quantiles("rollback", rollbacks(daemon)))
            print(quantiles("promote", promotions(daemon)))
    except ApacheMissingError as error:
        sys.stderr.write(f"needs: {error}\n")
        return 1
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
