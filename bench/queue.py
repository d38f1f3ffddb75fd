"""The queue: how long after a cancel, or after a newer push, the next build begins.

One slot. The build that is canceled minds no SIGTERM, has left two processes behind in a session of
their own, and has a tree of 20,000 files to be removed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.daemon import Daemon
from bench.measure import quantiles

ROUNDS = 15
FILES = 20_000
QUICK = '[build]\ncommand = "true"\noutput = "."\n'  # plain files would not wait for the slot
STUBBORN = (
    "trap : TERM; (setsid sleep 900 &); (setsid sleep 900 &); "
    f"mkdir t; cd t; seq {FILES} | xargs touch; echo up; sleep 900"
)


def site(daemon: Daemon, root: Path, name: str, files: dict[str, str]) -> str:
    """Make a site with one commit on a branch that goes nowhere; return its builds' path."""
    url = daemon.new_site(name)
    work = root / name
    work.mkdir()
    for path, content in files.items():
        (work / path).write_text(content)
    helper = "!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"
    for arguments in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        ("-c", "user.name=Bench", "-c", "user.email=b@example.com", "commit", "-q", "-m", "x"),
        ("-c", f"credential.helper={helper}", "push", "-q", "-o", "nowait", url, "main:kept"),
    ):
        subprocess.run(
            ["git", *arguments], cwd=work, env=daemon.environ, check=True, capture_output=True
        )
    return f"/sites/{name}/environments/staging/builds"


def build(daemon: Daemon, path: str) -> dict[str, Any]:
    job: dict[str, Any] = daemon.api("POST", path, {"ref": "kept", "clean": True})
    return job


def until(daemon: Daemon, job: dict[str, Any], *statuses: str) -> None:
    while daemon.api("GET", f"/jobs/{job['id']}")["status"] not in statuses:
        time.sleep(0.001)


def until_it_says(daemon: Daemon, job: dict[str, Any], text: bytes) -> None:
    path = daemon.data / "joblogs" / job["id"][-2:] / f"{job['id']}.ndjson"
    while text not in path.read_bytes():
        time.sleep(0.005)


def cancels(daemon: Daemon, stubborn: str, quick: str) -> tuple[list[float], list[float]]:
    """Seconds until a cancel is answered, and until the next build runs."""
    answered, began = [], []
    for _ in range(ROUNDS):
        running = build(daemon, stubborn)
        until_it_says(daemon, running, b'"up"')
        waiting = build(daemon, quick)
        start = time.perf_counter()
        daemon.api("POST", f"/jobs/{running['id']}/cancel")
        answered.append(time.perf_counter() - start)
        until(daemon, waiting, "running", "succeeded")
        began.append(time.perf_counter() - start)
        until(daemon, waiting, "succeeded")
    return answered, began


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="gitd-bench-"))
    root.chmod(0o711)
    try:
        daemon = Daemon(root / "daemon")
        daemon.environ["GITD_BUILDERS_SLOTS"] = "1"
        with daemon:
            settings = f'[build]\ncommand = """{STUBBORN}"""\noutput = "t"\n'
            stubborn = site(daemon, root, "stubborn", {"managed.toml": settings})
            for job in daemon.api("GET", "/jobs?limit=9"):
                daemon.api("POST", f"/jobs/{job['id']}/cancel")
            quick = site(daemon, root, "quick", {"managed.toml": QUICK, "index.html": "hi"})
            answered, began = cancels(daemon, stubborn, quick)
            print("after a cancel (target: the next build begins within a second)")
            print(quantiles("canceled", answered))
            print(quantiles("next build", began))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
