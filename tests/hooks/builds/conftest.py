from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from hooks.builds.wire import CONFIG_FILES, HINT_FILES, LEASE_HEADER, SOURCE_HEADER, VERSION_FILES
from tests.warm import warm

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
IMPORTS = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
UID = 60690 if os.geteuid() == 0 else None


@pytest.fixture(scope="session")
def sandbox_uid():
    """The uid that sandboxes run with here: None for this very user."""
    return UID


@pytest.fixture
def open_dir():
    """A folder that the sandboxes' uid can pass through, as the data folder is."""
    # Not in memory: limits go by what a filesystem has free, and other tests free much there.
    path = Path(tempfile.mkdtemp(prefix="gitd-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    # Through no link: a build may have made one to a folder of the machine's.
    folders = (each for each in path.rglob("*") if each.is_dir() and not each.is_symlink())
    for folder in [path, *folders]:
        folder.chmod(0o700)
    shutil.rmtree(path)


@pytest.fixture
def own_dir(open_dir):
    """A folder of the sandboxes' uid."""
    path = open_dir / "own"
    path.mkdir(mode=0o700)
    if UID is not None:
        os.chown(path, UID, UID)
    return path


@dataclass
class Ran:
    status: int = -1
    output: str = ""
    output_bytes: int = 0
    seconds: float = 0
    started_s: float = 0
    survivors: list[str] = field(default_factory=list)
    error: str | None = None
    exceeded: str | None = None
    halted_s: float = 0


def own(text):
    """Let the numbers that processes are told by, 4700 to 4899, be none of other tests' ones."""
    return re.sub(r"\b4[78]\d\d\b", rf"\g<0>.{os.getpid()}", text)


def order_for(
    command,
    *,
    kill_after_s=None,
    kill_at_bytes=None,
    terminate_after_s=None,
    cancel_after_s=None,
    **spec,
):
    spec["argv"] = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    spec["argv"] = [own(argument) for argument in spec["argv"]]
    order = {"spec": spec, "kill_after_s": kill_after_s, "terminate_after_s": terminate_after_s}
    order |= {"kill_at_bytes": kill_at_bytes, "cancel_after_s": cancel_after_s}
    return json.dumps(order) + "\n"


def start_runner(*, uid=UID, way="groups", env=None, pass_fds=(), owner=(), through=()):
    """`through`: a program that this one is started by."""
    as_uid = "" if uid is None else str(uid)
    return subprocess.Popen(
        [*through, sys.executable, str(HERE / "sandboxed.py"), as_uid, way, *owner],
        env={**os.environ, "PYTHONPATH": IMPORTS, **(env or {})},
        pass_fds=pass_fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end_runner(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.fixture(scope="session")
def runner():
    process = start_runner()
    yield process
    end_runner(process)


@pytest.fixture(scope="session")
def watching_runner():
    """The same without control groups, as where none can be made."""
    process = start_runner(way="watching")
    yield process
    end_runner(process)


@pytest.fixture
def in_sandbox(runner):
    """Run a command in a sandbox and wait for its end; text is for the shell."""

    def run(command, *, starter=runner, **rest):
        starter.stdin.write(order_for(command, **rest))
        starter.stdin.flush()
        return Ran(**json.loads(starter.stdout.readline()))

    return run


@pytest.fixture
def start_starter():
    """Start a process that starts sandboxes, for tests about what it has or how it ends."""
    started = []

    def start(**options):
        started.append(start_runner(**options))
        return started[-1]

    yield start
    for process in started:
        end_runner(process)


@pytest.fixture
def start_sandboxed(start_starter):
    """Start a sandbox and return the process that started it, both still running."""

    def start(command, *, way="groups", **rest):
        process = start_starter(way=way)
        process.stdin.write(order_for(command, **rest))
        process.stdin.flush()
        return process

    return start


def tar_of(files):
    """A tar as control sends it. Values: bytes, (bytes, mode) or a link's target as text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = {
            str(parent) for name in files for parent in Path(name).parents if str(parent) != "."
        }
        for name in sorted(folders):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
                continue
            data, member.mode = content if isinstance(content, tuple) else (content, 0o644)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def with_unchanged(tar_bytes, files, unchanged):
    """An output as control puts it together: the tar, and the files that are the commit's still."""
    inside = below(files, unchanged["folder"])
    rest = tar_of({path: inside[path] for path in unchanged["paths"]})
    return tar_bytes[: -2 * tarfile.BLOCKSIZE] + rest


def files_of(tar_bytes):
    """What a tar holds: text for links, bytes for files, None for folders."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tar_bytes), mode="r:") as tar:
        for member in tar:
            if member.issym():
                found[member.name] = member.linkname
            elif member.isdir():
                found[member.name] = None
            else:
                found[member.name] = tar.extractfile(member).read()
    return found


def changes_of(before, files):
    """What is to go of one tree, and to come, to make the other."""
    gone = [name for name in before if files.get(name) != before[name]]
    came = {name: file for name, file in files.items() if before.get(name) != file}
    return gone, came


def below(files, folder):
    """The files in a folder, by their paths there."""
    if folder == ".":
        return files
    start = f"{folder}/"
    return {name[len(start) :]: file for name, file in files.items() if name.startswith(start)}


def folder_of(files, folder):
    """A folder of the commit as `wire.Folder` has it, None where there is none."""
    inside = below(files, folder)
    if not inside:
        return None
    kinds = {}
    for name, content in inside.items():
        first, _, rest = name.partition("/")
        kinds[first] = "dir" if rest else "link" if isinstance(content, str) else "file"
    return {
        "tree": "7ee5" * 10,
        "entries": [{"name": name, "kind": kind} for name, kind in kinds.items()],
        "files": {
            name: inside[name].decode(errors="replace")
            for name in (*CONFIG_FILES, *VERSION_FILES, *HINT_FILES)
            if isinstance(inside.get(name), bytes)
        },
    }


@dataclass
class Job:
    """What control knows of a leased build."""

    id: str
    lease: dict
    files: dict
    lines: list = field(default_factory=list)
    beats: list = field(default_factory=list)
    sent: bytes | None = None
    output: bytes | None = None
    outcome: dict | None = None
    canceled: asyncio.Event = field(default_factory=asyncio.Event)
    given_back: asyncio.Event = field(default_factory=asyncio.Event)
    asked_for: list = field(default_factory=list)
    bases: list = field(default_factory=list)
    declared: list = field(default_factory=list)
    cache_asked: dict | None = None
    cache_kept: bytes | None = None
    is_lost: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    beaten: asyncio.Event = field(default_factory=asyncio.Event)
    spoken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self):
        """What it logged, without the marks of stages."""
        return [line["line"] for line in self.lines if "mark" not in line]

    def stage(self, name):
        return [line["line"] for line in self.lines if line["stage"] == name and "mark" not in line]

    @property
    def marks(self):
        return [(line["stage"], line["mark"]) for line in self.lines if "mark" in line]

    def take(self, batch):
        assert batch["first"] <= len(self.lines), "a gap in the log"
        self.lines += batch["lines"][len(self.lines) - batch["first"] :]
        self.spoken.set()

    async def said(self, text, timeout_s=60):
        """Wait until its command says so; not until the log has the command, before it runs."""
        async with asyncio.timeout(timeout_s):
            while not any(text in line for line in self.text if not line.startswith("$ ")):
                self.spoken.clear()
                await self.spoken.wait()


class ControlPeer:
    """Control's side of the wire protocol, as a builder slot meets it."""

    def __init__(self, socket):
        self.socket = socket
        self.jobs = {}
        self.leased = []
        self.slots = set()
        self.toolchains = []
        self.log_calls = []
        self.egress = {}  # what build commands may reach, as `wire.Egress`
        self.given = {}  # variables and secrets, as `wire.Given`
        self.failing = {}  # call -> how many times it answers 500 first
        self.breaking = {}  # call -> whether its answer breaks off before its end, once
        self.cache = None  # the tar that builds begin with
        self.is_cache_hit = False
        self.is_cache_borrowed = False
        self.refusing = {}  # call -> how many times it answers 413
        self.sends_whole = False  # whatever tree a slot has
        self.given_out = {}  # the files of trees that were sent
        self._queue = asyncio.Queue()
        self._runner = None

    async def start(self):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/lease", self._lease)
        app.router.add_get("/v1/jobs/{id}/folder", self._folder)
        app.router.add_get("/v1/jobs/{id}/source", self._source)
        app.router.add_get("/v1/jobs/{id}/egress", self._egress)
        app.router.add_post("/v1/jobs/{id}/variables", self._variables)
        app.router.add_post("/v1/jobs/{id}/cache", self._find_cache)
        app.router.add_get("/v1/jobs/{id}/cache", self._read_cache)
        app.router.add_put("/v1/jobs/{id}/cache", self._keep_cache)
        app.router.add_post("/v1/jobs/{id}/log", self._log)
        app.router.add_post("/v1/jobs/{id}/heartbeat", self._heartbeat)
        app.router.add_put("/v1/jobs/{id}/output", self._output)
        app.router.add_post("/v1/jobs/{id}/finish", self._finish)
        app.router.add_post("/v1/jobs/{id}/give-back", self._give_back)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()
        self.socket.chmod(0o666)

    async def stop(self):
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def queue(self, files, **changes):
        """Queue a build of `files` (see `tar_of`)."""
        if isinstance(files.get("managed.toml"), bytes):
            files = {**files, "managed.toml": own(files["managed.toml"].decode()).encode()}
        number = len(self.jobs)
        lease = {
            "job_id": f"job_{number:026d}",
            "lease_id": f"lease_{number:026d}",
            "build_id": f"build_{number:026d}",
            "site": "acme-store",
            "environment": "production",
            "ref": "refs/heads/main",
            "commit": "8c1f" * 10,
            "clean": False,
            "timeout_s": 30,
            "lease_s": 5.0,
            "output_bytes_max": 1 << 28,
            "limits": {"processors_free_min": 0},  # tests beside this one have builds, too
            **changes,
        }
        root = folder_of(files, ".")
        lease |= {"root_entries": root["entries"], "files": root["files"], "tree": root["tree"]}
        job = Job(lease["job_id"], lease, files)
        self.jobs[job.id] = job
        self._queue.put_nowait(job)
        return job

    async def build(self, files, **changes):
        """Queue a build and wait for its end."""
        job = self.queue(files, **changes)
        await asyncio.wait_for(job.finished.wait(), 30)
        return job

    async def taken(self, job):
        """Wait until a slot has leased it."""
        async with asyncio.timeout(20):
            while job.id not in self.leased:
                await asyncio.sleep(0.01)

    async def _lease(self, request):
        asked = await request.json()
        self.slots.add(asked["slot"])
        self.toolchains.append(asked["toolchain"])
        try:
            job = await asyncio.wait_for(self._queue.get(), asked["wait_s"])
        except TimeoutError:
            return web.Response(status=204)
        if request.transport is None:  # who asked was killed meanwhile
            self._queue.put_nowait(job)
            return web.Response(status=204)
        self.leased.append(job.id)
        return web.json_response(job.lease)

    def _held(self, request, call):
        if self.failing.get(call, 0) > 0:
            self.failing[call] -= 1
            raise web.HTTPInternalServerError
        job = self.jobs[request.match_info["id"]]
        assert request.headers[LEASE_HEADER] == job.lease["lease_id"]
        if self.refusing.get(call, 0) > 0:
            self.refusing[call] -= 1
            raise web.HTTPRequestEntityTooLarge(1, 2)
        if job.is_lost:
            raise web.HTTPGone
        return job

    async def _source(self, request):
        job = self._held(request, "source")
        job.asked_for.append(request.query["folder"])
        job.bases.append(bases := request.query.getall("base", []))
        files = below(job.files, request.query["folder"])
        plain = [file for file in files.values() if not isinstance(file, str)]
        sizes = [len(file[0] if isinstance(file, tuple) else file) for file in plain]
        tree = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        head = {"files": len(plain), "size_bytes": sum(sizes), "tree": tree}
        body = tar_of(files)
        if bases and not self.sends_whole:
            changes = [changes_of(self.given_out[base], files) for base in bases]
            gone, came = least = min(changes, key=lambda change: len(change[0]) + len(change[1]))
            removed = b"".join(os.fsencode(name) + b"\0" for name in gone)
            head |= {"removed_bytes": len(removed), "base": changes.index(least)}
            body = removed + tar_of(came)
        self.given_out[tree] = files
        headers = {SOURCE_HEADER: json.dumps(head)}
        if self.breaking.pop("source", None):
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            await response.write(body[: len(body) * 3 // 4])
            request.transport.close()
            return response
        return web.Response(body=body, headers=headers)

    async def _folder(self, request):
        found = folder_of(self._held(request, "folder").files, request.query["path"])
        return web.json_response(found) if found else web.Response(status=404)

    async def _egress(self, request):
        self._held(request, "egress")
        return web.json_response(self.egress)

    async def _variables(self, request):
        job = self._held(request, "variables")
        job.declared = (await request.json())["names"]
        return web.json_response(self.given)

    async def _find_cache(self, request):
        self._held(request, "cache").cache_asked = await request.json()
        if self.cache is None:
            return web.json_response({"said": "miss: first build"})
        hit = {"said": "hit", "digest": "blake3:" + "0" * 64, "is_hit": self.is_cache_hit}
        hit["is_borrowed"] = self.is_cache_borrowed
        return web.json_response(hit)

    async def _read_cache(self, request):
        self._held(request, "cache")
        return web.Response(body=self.cache)

    async def _keep_cache(self, request):
        self._held(request, "cache").cache_kept = await request.read()
        return web.json_response({"said": "kept"})

    async def _log(self, request):
        batch = await request.json()
        job = self.jobs[request.match_info["id"]]
        self.log_calls.append((batch["first"], len(batch["lines"])))
        job.take(batch)
        self._held(request, "log")
        return web.json_response({})

    async def _heartbeat(self, request):
        job = self._held(request, "heartbeat")
        beat = await request.json()
        job.beats.append(beat)
        job.beaten.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.canceled.wait(), beat["wait_s"])
        self._held(request, "heartbeat")
        return web.json_response({"canceled": job.canceled.is_set()})

    async def _give_back(self, request):
        self._held(request, "give-back").given_back.set()
        return web.json_response({})

    async def _output(self, request):
        job = self._held(request, "output")
        job.sent = job.output = await request.read()
        return web.json_response({})

    async def _finish(self, request):
        job = self._held(request, "finish")
        job.outcome = await request.json()
        if job.output is not None:
            source = below(job.files, job.outcome["folder"])
            job.output = with_unchanged(job.sent, source, job.outcome["unchanged"])
        if job.outcome["log"] is not None:
            job.take(job.outcome["log"])
        job.finished.set()
        return web.json_response({})


@pytest.fixture
async def control(open_dir):
    peer = ControlPeer(open_dir / "builders.sock")
    await peer.start()
    yield peer
    await peer.stop()


PRELOAD = """
import os, sys
from pathlib import Path
from gitd import starting  # first, as `gitd builder` does
starting.load_aiohttp()
import structlog
from hooks.builds.slot.builder import BuilderConfig, main
"""
SLOT = """
def on_event(event, args):  # what is loaded too late cannot be loaded at all without privileges
    if event == "import" and os.geteuid() != 0 and IS_ROOT:
        os.write(2, f"late import: {args[0]}\\n".encode())
IS_ROOT = os.geteuid() == 0
sys.addaudithook(on_event)
to_text = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
structlog.configure(processors=to_text)
socket, scratch, uid, weight = sys.argv[1:]
ids = int(uid) if uid else None
weight = int(weight) if weight else None
main(BuilderConfig(Path(socket), Path(scratch), uid=ids, gid=ids, cpu_weight=weight))
"""


STOPS_CLOCK = """
import asyncio, os, signal, sys, time
stopped_at = []
def stop(*_):
    stopped_at.append(time.monotonic())
    os.close(os.open(sys.argv[2] + "/clock-stands-still", os.O_CREAT))
signal.signal(signal.SIGUSR1, stop)
asyncio.BaseEventLoop.time = lambda _: stopped_at[0] if stopped_at else time.monotonic()
"""


class Slot:
    """A builder slot: the real process. One that `has_clock` can be told to let no timer go off."""

    def __init__(self, control, scratch, through=(), *, has_clock=False, cpu_weight=""):
        self.scratch = scratch
        uid = "" if UID is None else str(UID)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        popen = subprocess.Popen if through else warm(PRELOAD)
        self.process = popen(
            [
                *through,
                sys.executable,
                "-c",
                (STOPS_CLOCK if has_clock else "") + PRELOAD + SLOT,
                str(control.socket),
                str(scratch),
                uid,
                str(cpu_weight),
            ],
            cwd="/",
            env={**os.environ, "PYTHONPATH": IMPORTS, "SECRET_OF_CONTROL": "leakme"},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    @property
    def errors(self):
        """What it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def close(self):
        self.stop(signal.SIGKILL)
        errors = self.errors
        self._errors.close()
        assert errors == ""

    async def stop_clock(self):
        """What the slot does from here on, something else than time brings about."""
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(20):
            while not (self.scratch / "clock-stands-still").exists():
                await asyncio.sleep(0.01)

    @property
    def leftovers(self):
        return sorted(path.name for path in self.scratch.iterdir())

    async def cleaned(self):
        """Wait until the scratch folder is empty."""
        async with asyncio.timeout(20):
            while self.leftovers:
                await asyncio.sleep(0.01)

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def start_slot(control, open_dir):
    slots = []

    def start(name="slot-0", through=(), **options):
        slot = Slot(control, open_dir / name, through, **options)
        slots.append(slot)
        return slot

    yield start
    for slot in slots:
        slot.close()


@pytest.fixture
def slot(start_slot):
    return start_slot()


def processes_with(text):
    """The pids of processes whose command line has `text` in it."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                line = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            if own(text).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.fixture
def alive():
    return processes_with


@pytest.fixture
def gone():
    """Wait until no process has `text` in its command line."""

    def wait(text, timeout_s=30):
        deadline = time.monotonic() + timeout_s
        while found := processes_with(text):
            assert time.monotonic() < deadline, f"still alive: {found}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def unpacked():
    return files_of


@pytest.fixture
def packed():
    return tar_of
