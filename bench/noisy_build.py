"""What visitors of a site notice of hostile builds on the same machine: p99, with them and without.

Each kind of hog runs in both slots at once, as large as the limits let it be, and is started again
whenever it is ended. Windows with and without take turns, so that a drifting machine drifts for
both; of each kind the median counts, so that neither does what else the machine did in some of
them. The first row has nothing in either: what it is off 1 is noise. A first turn does not count:
in it a build writes as fast as it can, for as long as it may. What the machine itself does to
visitors while processors or the disk are busy is measured beside that: the same commands outside of
any build, on those processors that builds run on, of the kernel's idle class, which gives way to
all others at once. And what builds cost that do nothing, begun as often as bombs are. Needs root:
builds and site host are users of their own, with control groups.

`--apart` measures what docs/service.md has for builds that write much: the site host on the
processors that builds leave free, and the kernel's own workers on the others. It changes that for
the whole machine while it runs. Other arguments are words of the rows wanted.

One visit of a hundred is three a second, so that whatever happens as often is what is measured. So
the bench itself does nothing meanwhile but visit: whoever starts the hogs waits for each one's end
at an answer that control holds, and a window begins when they run, since begun they are once in a
quarter of an hour. The visitor stands for somebody elsewhere: no processor is waited for by it, in
windows of both kinds, but by the site host and the site.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from bench.daemon import Api, Daemon
from hooks.builds.phase import PROGRESS, Phase

SLOTS = 2  # as the settings have it
PROCESSORS_FREE = 1  # likewise
ROUNDS = 8
WINDOW_S = 3.0
PAUSE_S = 0.002  # between two visits: some 300 a second
ASK_EVERY_S = 0.05  # whether the builds begin, before a window
SETTLE_S = 0.5  # what begins them is over by then
PUSHED_EVERY_S = 1.0  # where somebody pushes a bomb after the other
TARGET = 1.2
WORKERS = Path("/sys/devices/virtual/workqueue/cpumask")  # of the kernel, in hexadecimal digits
BURNER = "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
FILLER = "while :; do head -c 900M /dev/zero > x; sync x; head -c 900M /dev/zero > y; rm x y; done"
OUTSIDE = ("no build, nothing", "no build, an idle class", "no build, a disk filled")
FLOORS = (*OUTSIDE, "harmless, each second")
FORK_BOMB = "python3 -c 'import os\nwhile True:\n    try: os.fork()\n    except OSError: pass'"
HOGS = {  # each below the floor that it is compared with
    "no build, nothing": "exec sleep 60",
    "no build, an idle class": BURNER,
    "processor burner": BURNER,
    "memory hog, at its limit": (
        "python3 -c 'while True:\n"
        "    x = bytearray(900 << 20)\n"
        "    for at in range(0, len(x), 4096): x[at] = 1\n"
        "    del x'"
    ),
    "memory hog, beyond it": "python3 -c 'x = []\nwhile True: x.append(bytes([1]) * (1 << 20))'",
    "fork churn, at its limit": (
        "python3 -c 'import os, time\nwhile True:\n"
        "    for _ in range(400): os.fork() or (time.sleep(0.05), os._exit(0))\n"
        "    for _ in range(400): os.wait()'"
    ),
    "harmless, each second": "true",
    "fork bomb, each second": FORK_BOMB,
    "fork bomb, at once again": FORK_BOMB,
    "no build, a disk filled": FILLER,
    "disk filler, at its limit": FILLER,
    "disk filler, beyond it": "i=0; while :; do i=$((i+1)); head -c 900M /dev/zero > $i; done",
}
PAGE = "<h1>Shop</h1>\n" + "<p>All that there is to buy.</p>\n" * 150
APP = """
import http.server, os
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    def do_GET(self):
        body = b"<p>made for you</p>" * 200
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Page).serve_forever()
"""
SITES = {
    "static": {"index.html": PAGE},
    "web": {"app.py": APP, "Procfile": "web: python3 app.py\n"},
}


def push(daemon: Daemon, folder: Path, site: str, files: dict[str, str]) -> None:
    """Make a site of these files, and begin its first build."""
    url = daemon.new_site(site)
    work = folder / site
    work.mkdir()
    for name, text in files.items():
        (work / name).write_text(text)
    helper = "credential.helper=!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"
    person = ("-c", "user.name=Bench", "-c", "user.email=bench@example.com")
    for arguments in (
        ("init", "-q", "-b", "main"),
        ("add", "-A"),
        (*person, "commit", "-q", "-m", "site"),
        ("-c", helper, "push", url, "main"),
    ):
        subprocess.run(
            ["git", *arguments], cwd=work, env=daemon.environ, check=True, capture_output=True
        )


def wait_until_live(daemon: Daemon) -> None:
    while any(j["status"] in ("queued", "running") for j in daemon.api("GET", "/jobs?limit=9")):
        time.sleep(0.05)
    assert daemon.look("static") == PAGE.encode()
    assert b"made for you" in daemon.look("web")


class Hogs:
    """Builds of some sites, started again and again. Nothing is asked while they run."""

    def __init__(self, daemon: Daemon, sites: list[str], *, every_s: float) -> None:
        """`every_s`: each begins so long after the last one of its site, at the soonest."""
        self._daemon = daemon
        self._sites = sites
        self._every_s = every_s
        self._stopped = threading.Event()
        self._begun = threading.Semaphore(0)
        self.ended_count = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(site,)) for site in self._sites]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert self._begun.acquire(timeout=30), "the builds do not begin"
            time.sleep(SETTLE_S)
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                while thread.is_alive():  # it may begin one more
                    end_builds(self._daemon)
                    thread.join(0.1)

    def _run(self, site: str) -> None:
        with closing(self._daemon.new_api()) as api:
            job, began = self._begin(api, site), time.monotonic()
            while not has_begun(api("GET", f"/jobs/{job}")):
                time.sleep(ASK_EVERY_S)
            self._begun.release()
            while True:
                while api("GET", f"/jobs/{job}?wait=60")["status"] in ("queued", "running"):
                    pass
                if self._stopped.is_set():
                    return
                self.ended_count += 1
                if self._stopped.wait(began + self._every_s - time.monotonic()):
                    return
                job, began = self._begin(api, site), time.monotonic()

    def _begin(self, api: Api, site: str) -> str:
        job = api("POST", f"/sites/{site}/environments/production/builds")
        return str(job["id"])


def has_begun(job: dict[str, Any]) -> bool:
    """Say whether its command runs, or did."""
    progress = job["progress"] or 0
    return progress >= PROGRESS[Phase.BUILD] or job["status"] not in ("queued", "running")


def end_builds(daemon: Daemon) -> None:
    while jobs := [
        job for job in daemon.api("GET", "/jobs?limit=50") if job["status"] in ("queued", "running")
    ]:
        for job in jobs:
            with suppress(AssertionError):  # it may have ended by itself
                daemon.api("POST", f"/jobs/{job['id']}/cancel")
        time.sleep(0.05)


def processors_of_builds() -> set[int]:
    processors = sorted(os.sched_getaffinity(0))
    return set(processors[min(PROCESSORS_FREE, len(processors) - 1) :])


@contextmanager
def outside(command: str, folder: Path) -> Iterator[None]:
    """Run a hog for each slot that has the processors of builds while nobody else wants them."""
    where = ",".join(map(str, processors_of_builds()))
    with ExitStack() as ending:
        for _ in range(SLOTS):
            scratch = tempfile.mkdtemp(dir=folder)
            ending.callback(shutil.rmtree, scratch, ignore_errors=True)
            hog = subprocess.Popen(
                ["chrt", "--idle", "0", "taskset", "-c", where, "sh", "-c", command],
                cwd=scratch,
                process_group=0,  # and no session: it would have a share of its own (sched(7))
            )
            ending.callback(hog.wait)
            ending.callback(os.killpg, hog.pid, signal.SIGKILL)
        time.sleep(SETTLE_S)
        yield


@contextmanager
def apart(daemon: Daemon) -> Iterator[None]:
    """Keep the site host off the processors of builds, and the kernel's own workers to them."""
    builds, before = processors_of_builds(), WORKERS.read_text()
    for process in host_processes(daemon):
        for thread in (process / "task").iterdir():
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0) - builds)
    WORKERS.write_text(f"{sum(1 << processor for processor in builds):x}")
    try:
        yield
    finally:
        WORKERS.write_text(before)


def host_processes(daemon: Daemon) -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if b"host" in command and os.fsencode(daemon.data / "run/hosts.sock") in command:
                yield process


def be_elsewhere() -> None:
    """Let this process wait for no processor: a visitor has one of their own, on another machine.

    It goes before all others, in all windows alike, on a processor that builds do not run on.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def visit(sites_port: int) -> dict[str, list[float]]:
    """Visit the sites in turn for a while; returns seconds by site. For a process of its own."""
    be_elsewhere()
    took_s: dict[str, list[float]] = {site: [] for site in SITES}
    connection = http.client.HTTPConnection("127.0.0.1", sites_port, timeout=60)
    end = time.perf_counter() + WINDOW_S
    while time.perf_counter() < end:
        for site in SITES:
            began = time.perf_counter()
            connection.request("GET", "/", headers={"Host": f"{site}.localhost"})
            connection.getresponse().read()
            took_s[site].append(time.perf_counter() - began)
            time.sleep(PAUSE_S)
    connection.close()
    return took_s


def p99(window: dict[str, list[float]], site: str) -> float:
    ordered = sorted(window[site])
    return ordered[int(len(ordered) * 0.99)]


Found = dict[str, float]  # by site, how many times the p99 without anything


def compare(daemon: Daemon, visitor: Executor, hog: str, number: int, floor: Found) -> Found:
    """Measure windows in turn, without the hog and with it; print a line for each site.

    `floor` is empty for a hog that is one. The figures are medians of the windows'.
    """
    idle_s, busy_s = [], []
    ended = 0
    every_s = PUSHED_EVERY_S if hog.endswith("each second") else 0
    for _ in range(1 + ROUNDS):
        idle_s.append(visitor.submit(visit, daemon.sites_port).result())
        hogs = Hogs(daemon, [f"hog-{number}-{slot}" for slot in range(SLOTS)], every_s=every_s)
        with hogs.running() if hog not in OUTSIDE else outside(HOGS[hog], daemon.data.parent):
            busy_s.append(visitor.submit(visit, daemon.sites_port).result())
        ended += hogs.ended_count
    found: Found = {}
    for site in SITES:
        idle, busy = (
            statistics.median(p99(window, site) for window in windows[1:])
            for windows in (idle_s, busy_s)
        )
        found[site] = busy / idle
        of_floor = f"{found[site] / floor[site]:8.2f}" if floor else " " * 8
        print(
            f"{hog:<28} {site:<7} {idle * 1000:9.2f} ms {busy * 1000:9.2f} ms  x{found[site]:.2f}"
            f" {of_floor}   {ended} builds ended",
            flush=True,
        )
    return found


def chosen(words: Sequence[str]) -> dict[str, str]:
    """Return the hogs with one of the words in their names, and their floors; else all."""
    hogs: dict[str, str] = {}
    floor = ""
    for name, command in HOGS.items():
        if name in FLOORS:
            floor = name
            if not words or any(word in name for word in words):
                hogs[name] = command
        elif not words or any(word in name for word in words):
            hogs[floor] = HOGS[floor]
            hogs[name] = command
    return hogs


def main(wanted: Sequence[str] = ()) -> int:
    if os.geteuid() != 0:
        sys.stderr.write("needs: root\n")
        return 1
    is_apart = "--apart" in wanted
    if is_apart and len(os.sched_getaffinity(0)) < 2:
        sys.stderr.write("--apart needs: two processors\n")
        return 1
    hogs = chosen([word for word in wanted if word != "--apart"])
    root = Path(tempfile.mkdtemp(prefix="gitd-bench-"))
    root.chmod(0o711)
    try:
        with (
            Daemon(root / "daemon") as daemon,
            ProcessPoolExecutor(1) as visitor,
            apart(daemon) if is_apart else nullcontext(),
        ):
            for site, files in SITES.items():
                push(daemon, root, site, files)
            wait_until_live(daemon)
            for number, (hog, command) in enumerate(hogs.items()):
                for slot in range(SLOTS if hog not in OUTSIDE else 0):
                    config = f"[build]\ncommand = '''{command}'''\noutput = \".\"\n"
                    push(daemon, root, f"hog-{number}-{slot}", {"managed.toml": config})
            end_builds(daemon)
            print(
                f"\np99 of visits (target: x{TARGET:.2f}){'idle':>19}{'hogs':>13}  ratio of floor"
            )
            floor: Found = {}
            for number, hog in enumerate(hogs):
                found = compare(daemon, visitor, hog, number, {} if hog in FLOORS else floor)
                floor = found if hog in FLOORS else floor
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
