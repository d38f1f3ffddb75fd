"""Web processes: real programs in the real sandbox."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import re
import sys
from pathlib import Path

import pytest

from hooks.deploys.host.control import OUTPUT_LINES_MAX
from hooks.deploys.processes import web_process
from hooks.deploys.wire import Running

APP = """
import http.server, os, sys, json, signal, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        if self.path == "/slow":
            print("slow is asked", flush=True)
            time.sleep(1)
        body = VERSION.encode()
        if self.path == "/facts":
            body = json.dumps({"environ": dict(os.environ), "cwd": os.getcwd(),
                               "uid": os.getuid(), "pid": os.getpid()}).encode()
        if self.path == "/client":
            body = self.headers.get("X-Forwarded-For", "").encode()
        if self.path.startswith("/write"):
            try:
                with open(self.path.removeprefix("/write"), "a") as f:
                    f.write("x")
                body = open(self.path.removeprefix("/write")).read().encode()
            except OSError as error:
                body = str(error).encode()
        if self.path.startswith("/lock"):
            folder = self.path.removeprefix("/lock")
            os.mkdir(folder)
            open(folder + "/note", "w").close()
            os.chmod(folder, 0)
        if self.path.startswith("/read"):
            try:
                body = open(self.path.removeprefix("/read"), "rb").read()
            except OSError as error:
                body = str(error).encode()
        self.send_response(int(os.environ.get("STATUS", 200)) if self.path == "/up" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): print("asked", self.path, flush=True)

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
    block_on_close = True

BEFORE
server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("listening", flush=True)
server.serve_forever(poll_interval=0.05)
server.server_close()
print("stopped cleanly", flush=True)
"""


def app(version: str, before: str = "") -> str:
    return APP.replace("VERSION", repr(version)).replace("BEFORE", before)


def web_log(host, env="env_1") -> str:
    path = host.directory / "environments" / env / "logs/web.log"
    return path.read_text() if path.exists() else ""


def sandboxes_of(host) -> list[int]:
    """The pids of bwrap processes that this host started."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                status = (path / "status").read_text()
            except OSError:
                continue
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if facts["Name"] == "bwrap" and int(facts["PPid"]) == host.process.pid:
                found.append(int(path.name))
    return found


async def eventually(condition, seconds=30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_web_release_is_started_and_served(shelf, control, host, visitor, wanted):
    roll = wanted(pin=shelf.put_web(app("one")))
    report = await control.roll(roll)
    assert report.status == "serving", report
    assert await visitor.text() == "one"
    assert [line.stage for line in control.lines[roll.deployment_id]] == [
        "verify",
        "unpack",
        "start",
        "start",
        "switch",
    ]
    print(report.timings)


def turn_ns(pid):
    """How long a turn on the processor a process has; 0 where the kernel does not tell."""
    attributes = ctypes.create_string_buffer(56)
    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
    assert ctypes.CDLL(None).syscall(number, pid, attributes, len(attributes), 0) == 0
    return int.from_bytes(attributes[24:32], sys.byteorder)


def below(pid):
    """The processes that a process has started, and those that they have."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield int(child)
            yield from below(child)


async def test_host_and_web_processes_take_short_turns(shelf, control, host, wanted):
    usual_ns = turn_ns(os.getpid())
    if not usual_ns:
        pytest.skip("the kernel grants no turns (before Linux 6.12)")
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    pids = [host.process.pid, *below(host.process.pid)]
    assert len(pids) >= 3, "bubblewrap, and what it runs"
    assert {turn_ns(pid) for pid in pids} == {100_000}
    assert usual_ns > 100_000


async def test_a_web_process_sees_its_release_its_data_and_nothing_else(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    facts = json.loads(await visitor.text("/facts"))
    environ = facts["environ"]
    assert facts["cwd"] == "/app"
    assert facts["uid"] != 0
    assert environ["GITD_SITE"] == "acme-store"
    assert environ["GITD_ENVIRONMENT"] == "env-1"
    assert environ["GITD_COMMIT"] == "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"
    assert "PYTHONPATH" not in environ
    assert "Permission denied" in await visitor.text("/write/app/app.py")
    assert "Read-only" in await visitor.text("/write/app/new.txt")
    assert await visitor.text("/write/data/note") == "x"
    for path in (host.directory, host.root / "store", host.root / "signing.key", "/etc/shadow"):
        assert "No such file" in await visitor.text(f"/read{path}")


async def test_the_settings_of_a_service_name_the_proxies_that_are_trusted(
    shelf, control, host, open_dir, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    said = {"X-Forwarded-For": "203.0.113.7"}
    assert (await visitor.ask("/client", headers=said)).body == b"127.0.0.1"
    host.kill()
    settings = open_dir / "gitd.toml"
    settings.write_text('[server]\ntrusted_proxies = ["127.0.0.1"]\n')
    host.start_by_command("--config", str(settings))
    assert (await visitor.ask("/client", headers=said)).body == b"203.0.113.7, 127.0.0.1"


async def test_data_outlives_releases(shelf, control, host, visitor, wanted):
    for version in ("one", "two"):
        await control.roll(wanted(pin=shelf.put_web(app(version))))
        data = await visitor.text("/write/data/note")
    assert data == "xx"


async def test_the_old_process_is_stopped_after_the_switch(shelf, control, host, visitor, wanted):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    slow = asyncio.create_task(visitor.text("/slow"))
    await eventually(lambda: "slow is asked" in web_log(host))
    await control.roll(wanted(pin=shelf.put_web(app("two"))))
    assert await visitor.text() == "two"
    assert await slow == "one"
    await eventually(lambda: len(sandboxes_of(host)) == 1)
    assert "stopped cleanly" in web_log(host)


@pytest.mark.parametrize(
    ("source", "run", "code", "said"),
    [
        ("import sys; print('no luck'); sys.exit(7)", {}, "deployment.start_failed", "no luck"),
        ("raise ValueError('broken')", {}, "deployment.start_failed", "ValueError: broken"),
        (
            "import time; print('idle'); time.sleep(60)",
            {},
            "deployment.health_check_failed",
            "idle",
        ),
        (
            app("x", "os.environ['STATUS'] = '500'"),
            {"health": "/up"},
            "deployment.health_check_failed",
            "asked /up",
        ),
        ("", {"web": "no-such-program"}, "deployment.start_failed", "not found"),
        ("", {"web": None}, "deployment.start_failed", None),
    ],
)
async def test_a_release_that_is_not_healthy_gets_no_traffic(
    shelf, control, host, visitor, wanted, source, run, code, said
):
    host.kill()
    host.start(health_timeout_s=4.0)
    await control.roll(wanted(pin=shelf.put_web(app("old"))))
    answers = []

    async def visit():
        while True:
            answers.append(await visitor.text("/"))
            await asyncio.sleep(0.005)

    visiting = asyncio.create_task(visit())
    failing = wanted(pin=shelf.put_web(source, **run))
    report = await control.roll(failing)
    visiting.cancel()
    assert (report.status, report.error.code) == ("failed", code), report
    assert set(answers) <= {"old"}
    assert await visitor.text() == "old"
    if said is not None:
        await eventually(lambda: said in "\n".join(control.log_of(failing.deployment_id)))
    await eventually(lambda: len(sandboxes_of(host)) == 1)


async def test_what_could_not_be_resumed_is_tried_again_when_it_is_resumed_again(
    shelf, control, host, visitor, wanted
):
    broken = host.directory / "environments/env_1/data/broken"
    roll = wanted(pin=shelf.put_web(app("one", "os.path.exists('/data/broken') and sys.exit(4)")))
    assert (await control.roll(roll)).status == "serving"
    await visitor.text("/write/data/broken")
    control.want(wanted(is_suspended=True))
    await visitor.until(503)
    assert (await control.roll(roll)).status == "failed"
    broken.unlink()
    control.want(wanted(is_suspended=True))  # at once, so that the host may hear both together
    assert (await control.roll(roll)).status == "serving"
    assert await visitor.text() == "one"


async def test_a_program_that_listens_elsewhere_is_told_where(shelf, control, host, wanted):
    host.kill()
    host.start(health_timeout_s=6.0)
    source = "import socket, time; own = socket.create_server(('127.0.0.1', 0)); time.sleep(60)"
    report = await control.roll(wanted(pin=shelf.put_web(source)))
    assert report.error.code == "deployment.health_check_failed"
    assert "your program listens on 127.0.0.1:" in report.error.message
    assert "let it take the port from the environment variable PORT" in report.error.message


async def test_a_program_that_answers_its_front_page_with_an_error_is_told_of(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put_web(
        app("one")
        .replace('self.path == "/up"', 'self.path == "/"')
        .replace('os.environ.get("STATUS", 200)', "500")
    )
    roll = wanted(pin=pin)
    report = await control.roll(roll)
    assert (report.status, report.running.first_answer) == ("serving", 500)
    assert "GET / answers 500" in control.log_of(roll.deployment_id)
    assert (await visitor.ask("/")).status == 500


async def test_a_program_that_takes_long_for_its_front_page_is_live_soon(
    shelf, control, host, wanted
):
    source = (
        app("one")
        .replace('self.path == "/slow"', 'self.path == "/"')
        .replace("sleep(1)", "sleep(20)")
    )
    report = await control.roll(wanted(pin=shelf.put_web(source)))
    assert (report.status, report.running.first_answer) == ("serving", None)
    assert 1 <= report.timings["start"] < 10


async def test_a_health_path_is_asked_with_the_environments_host_name(
    shelf, control, host, visitor, wanted
):
    source = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.path != "/up" or self.headers["Host"] == "env-1.localhost"
        self.send_response(302 if ok else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
    report = await control.roll(wanted(pin=shelf.put_web(source, health="/up")))
    assert report.status == "serving"


async def test_a_web_process_that_ends_is_started_again_and_requests_wait(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    for _ in range(2):
        assert (await visitor.ask("/die")).status == 502
        assert await visitor.text() == "one"
    assert web_log(host).count("ended with status 3") == 2


async def test_a_process_that_keeps_ending_is_started_with_growing_pauses(
    shelf, control, host, visitor, wanted
):
    source = app("one", "import random; os.path.exists('/data/broken') and sys.exit(4)")
    await control.roll(wanted(pin=shelf.put_web(source)))
    await visitor.text("/write/data/broken")
    await visitor.ask("/die")
    answer = await visitor.ask("/")
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert web_log(host).count("ended with status 4") <= 8  # while the visitor waited
    await eventually(lambda: web_log(host).count("starting again in") >= 5)
    pauses = re.findall(r"starting again in (\S+) s", web_log(host))
    assert pauses[:5] == ["0.1", "0.2", "0.4", "0.8", "1.6"]
    (host.directory / "environments/env_1/data/broken").unlink()
    await visitor.until("one")


async def test_a_program_that_keeps_ending_is_reported_so(shelf, control, host, visitor, wanted):
    source = app("one", "import random; os.path.exists('/data/broken') and sys.exit(4)")
    roll = wanted(pin=shelf.put_web(source))
    report = await control.roll(roll)
    assert report.running == Running("serving", 0, None, first_answer=200)
    await visitor.text("/write/data/broken")
    await visitor.ask("/die")
    await eventually(lambda: (control.reports[-1].running or report.running).restarts >= 4)
    last = control.reports[-1]
    assert (last.status, last.serves) == ("serving", roll.deployment_id)
    assert last.running.state == "restarting"
    assert last.running.last_exit.status == 4
    answer = await visitor.ask("/")
    assert answer.status == 503
    assert b"Its program ended" in answer.body
    assert 1 <= int(answer.headers["Retry-After"]) <= 30
    said = [line for line in host.log.read_text().splitlines() if "web_process_ended" in line]
    assert all("env_1" in line and "acme-store" in line for line in said)
    assert ["warning" in line for line in said[:4]] == [False, False, True, True]
    (host.directory / "environments/env_1/data/broken").unlink()
    await eventually(lambda: control.reports[-1].running.state == "serving")
    assert control.reports[-1].running.restarts >= 4


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("gunicron app:app", "127: the shell did not find the command"),
        ("./app.py", "126: the shell may not execute the command"),
        ("true", "0: it has to run on, in the foreground"),
        ("exit 5", "5"),
    ],
)
async def test_what_an_exit_status_means_is_said(shelf, control, host, wanted, command, hint):
    report = await control.roll(wanted(pin=shelf.put_web(app("one"), web=command)))
    assert report.error.code == "deployment.start_failed"
    assert report.error.message.startswith(f"the web process ended with status {hint}")


async def test_the_log_says_which_release_begins_and_ends(shelf, control, host, wanted):
    rolls = [wanted(pin=shelf.put_web(app(version))) for version in ("one", "two")]
    for roll in rolls:
        await control.roll(roll)
    failing = wanted(pin=shelf.put_web("", web="no-such-program"))
    await control.roll(failing)
    await eventually(lambda: "[gitd] stopped" in web_log(host))
    ours = [line.partition("[gitd] ")[2] for line in web_log(host).splitlines() if "[gitd]" in line]
    one, two, bad = (roll.deployment_id for roll in [*rolls, failing])
    commit = "(commit 7fd1a60b01f9)"
    assert ours[:4] == [
        f"starting {one} {commit}",
        "healthy",
        f"starting {two} {commit}",
        "healthy",
    ]
    assert f"stopped {one} {commit}" in ours
    assert ours.index(f"starting {bad} {commit}") > 3
    assert any(line.startswith("the web process ended with status 127: ") for line in ours)
    assert not any("[gitd]" in line for line in control.log_of(bad))


async def test_a_release_command_runs_once_before_the_switch(shelf, control, host, visitor, wanted):
    pin = shelf.put_web(app("one"), release="echo migrating $GITD_SITE; echo x >> /data/migrated")
    roll = wanted(pin=pin, release_command=True)
    await control.roll(roll)
    assert "migrating acme-store" in control.log_of(roll.deployment_id)
    assert await visitor.text("/read/data/migrated") == "x\n"
    await control.roll(wanted(pin=pin, release_command=False))
    host.kill()
    host.start()
    await visitor.until("one")
    assert await visitor.text("/read/data/migrated") == "x\n"


async def test_a_failing_release_command_leaves_the_old_release(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("old"))))
    pin = shelf.put_web(app("new"), release="echo so not; exit 9")
    failing = wanted(pin=pin, release_command=True)
    report = await control.roll(failing)
    assert report.error.code == "deployment.release_command_failed"
    assert "status 9" in report.error.message
    assert "so not" in control.log_of(failing.deployment_id)
    assert await visitor.text() == "old"


async def test_a_release_command_has_its_time(shelf, control, host, wanted):
    host.kill()
    host.start(release_command_timeout_s=0.5)
    pin = shelf.put_web(app("new"), release="setsid sleep 300 & sleep 300")
    report = await control.roll(wanted(pin=pin, release_command=True))
    assert report.error.code == "deployment.timed_out"
    await eventually(lambda: not sandboxes_of(host))


async def test_a_chatty_release_command_has_a_bounded_log(shelf, control, host, wanted):
    pin = shelf.put_web(app("new"), release="seq 1 20000")
    roll = wanted(pin=pin, release_command=True)
    assert (await control.roll(roll)).status == "serving"
    lines = control.log_of(roll.deployment_id)
    assert len(lines) < OUTPUT_LINES_MAX + 100
    assert any("bytes left out" in line for line in lines)
    assert lines.index("1") < lines.index("20000") < lines.index("switched")


async def test_a_release_command_is_abandoned_with_its_roll(shelf, control, host, visitor, wanted):
    await control.roll(wanted(pin=shelf.put_web(app("old"))))
    pin = shelf.put_web(app("slow"), release="sleep 300")
    abandoned = control.want(wanted(pin=pin, release_command=True))
    await eventually(lambda: "$ sleep 300" in control.log_of(abandoned.deployment_id))
    report = await control.roll(wanted(pin=shelf.put_web(app("new"))))
    assert report.status == "serving"
    assert await visitor.text() == "new"
    await eventually(lambda: len(sandboxes_of(host)) == 1)
    assert abandoned.deployment_id not in [one.deployment_id for one in control.reports]


async def test_static_and_web_releases_replace_each_other(shelf, control, host, visitor, wanted):
    pins = [shelf.put_web(app("web")), shelf.put({"index.html": "static"})]
    for pin, text in zip(pins * 2, ["web", "static"] * 2, strict=True):
        await control.roll(wanted(pin=pin))
        assert await visitor.text() == text
    await eventually(lambda: not sandboxes_of(host))


async def test_a_port_that_another_program_took_gets_no_visitor(
    shelf, control, host, visitor, wanted
):
    before = (
        'open("/data/port", "w").write(os.environ["PORT"])\n'
        'while not os.path.exists("/data/go"): time.sleep(0.01)'
    )
    rolling = asyncio.ensure_future(
        control.roll(wanted(pin=shelf.put_web(app("own", before=before))))
    )
    data = host.directory / "environments/env_1/data"
    await eventually(lambda: (data / "port").exists() and (data / "port").read_text())

    async def steal(_, writer):
        writer.close()

    thief = await asyncio.start_server(steal, "127.0.0.1", int((data / "port").read_text()))
    await asyncio.sleep(0.5)
    assert not rolling.done()
    thief.close()
    await thief.wait_closed()
    (data / "go").touch()
    assert (await rolling).status == "serving"
    assert await visitor.text() == "own"


async def test_a_program_whose_port_another_site_joins_moves_to_another_port(
    shelf, control, host, visitor, wanted
):
    before = (
        "http.server.HTTPServer.allow_reuse_port = True\n"
        'open("/data/port", "w").write(os.environ["PORT"])'
    )
    await control.roll(wanted(pin=shelf.put_web(app("own", before=before))))
    data = host.directory / "environments/env_1/data"
    port = (data / "port").read_text()
    robbing = (
        "import socket\n"
        "thief = socket.socket()\n"
        "thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        f'thief.bind(("127.0.0.1", {port}))\n'
        "thief.listen()"
    )
    await control.roll(wanted("env_2", pin=shelf.put_web(app("thief", before=robbing))))
    await eventually(lambda: f"another program listens on port {port} too" in web_log(host))
    assert await visitor.text() == "own"
    assert (data / "port").read_text() != port


async def test_no_process_gets_the_port_of_another_that_lives_and_listens_no_more(
    shelf, control, host, visitor, wanted
):
    first = web_process.free_port()
    host.kill()
    host.start(ports=[first, first + 1])
    deaf = (
        "import socket\n"
        "own = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "while not os.path.exists('/data/go'): time.sleep(0.01)\n"
        "own.close()\n"
        "print('deaf', flush=True)\n"
        "time.sleep(300)"
    )
    await control.roll(wanted(pin=shelf.put_web(app("deaf", before=deaf))))
    (host.directory / "environments/env_1/data/go").touch()
    await eventually(lambda: "deaf" in web_log(host))
    other = shelf.put_web(app("other"))
    report = await control.roll(wanted("env_2", pin=other))
    assert report.error.message.startswith(f"no port from {first} to {first} is free")
    await control.roll(wanted(pin=shelf.put({"index.html": "static"})))
    await eventually(lambda: not sandboxes_of(host))
    assert (await control.roll(wanted("env_2", pin=other))).status == "serving"


async def test_port_of_a_process_that_has_ended_gets_no_visitor(
    shelf, control, host, visitor, wanted
):
    before = 'open("/data/port", "w").write(os.environ["PORT"])'
    await control.roll(wanted(pin=shelf.put_web(app("own", before=before))))
    port = int((host.directory / "environments/env_1/data/port").read_text())
    (pid,) = sandboxes_of(host)
    output = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)  # for its end is waited for a second then
    robbed = []

    async def steal(_, writer):
        robbed.append(True)
        writer.close()

    assert (await visitor.ask("/die")).status == 502
    await eventually(lambda: not Path(f"/proc/{pid}").exists())
    thief = await asyncio.start_server(steal, "127.0.0.1", port)
    assert await visitor.text() == "own"
    assert robbed == []
    thief.close()
    await thief.wait_closed()
    os.close(output)


async def test_each_start_of_a_web_process_has_a_port_of_its_own(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    ports = set()
    for _ in range(2):
        ports.add(json.loads(await visitor.text("/facts"))["environ"]["PORT"])
        await visitor.ask("/die")
    ports.add(json.loads(await visitor.text("/facts"))["environ"]["PORT"])
    assert len(ports) == 3


async def test_web_processes_end_with_a_killed_host_and_start_again_with_it(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    pids = sandboxes_of(host)
    assert len(pids) == 1
    host.kill()
    await control.stop()
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    host.start()
    assert await visitor.text() == "one"


@pytest.mark.parametrize("delay_ms", [5, 30, 80, 120, 200])
async def test_a_host_killed_during_a_web_roll_finishes_it_after_its_start(
    shelf, control, host, visitor, wanted, delay_ms
):
    await control.roll(wanted(pin=shelf.put_web(app("old"))))
    pin = shelf.put_web(app("new"), release="echo x >> /data/migrated")
    newer = control.want(wanted(pin=pin, release_command=True))
    await asyncio.sleep(delay_ms / 1000)
    host.kill()
    host.start()
    assert await visitor.text() in ("old", "new")
    assert (await control.reported(newer.deployment_id)).status == "serving"
    assert await visitor.text() == "new"
    await eventually(lambda: len(sandboxes_of(host)) == 1)


async def test_a_host_asked_to_end_stops_its_processes_cleanly(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    slow = asyncio.create_task(visitor.text("/slow"))
    await eventually(lambda: "slow is asked" in web_log(host))
    pids = sandboxes_of(host)
    assert await host.stop() == 0
    assert await slow == "one"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "stopped cleanly" in web_log(host)


async def test_a_shell_that_runs_several_commands_stops_cleanly_too(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"), web="true && cd . && python3 app.py")))
    assert await visitor.text() == "one"
    assert await host.stop() == 0
    assert "stopped cleanly" in web_log(host)


async def test_a_removed_environment_leaves_no_process_and_no_data(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put_web(app("one"))))
    await visitor.text("/write/data/note")
    await visitor.text("/lock/data/locked")
    control.remove("env_1")
    await visitor.until(404)
    await eventually(lambda: not sandboxes_of(host))
    await eventually(lambda: not (host.directory / "environments/env_1").exists())


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.soak)])
async def test_web_rolls_fail_no_request(shelf, control, host, visitor, wanted, count):
    pins = [shelf.put_web(app("a")), shelf.put_web(app("b"))]
    await control.roll(wanted(pin=pins[0]))
    rolling = True
    answered = itertools.count()

    async def visit(**how):
        while rolling:
            answer = await visitor.ask("/", **how)
            assert answer.status == 200
            assert answer.body in (b"a", b"b")
            next(answered)

    visits = [asyncio.create_task(visit()) for _ in range(3)]
    try:
        for number in range(count):
            report = await control.roll(wanted(pin=pins[(number + 1) % 2]))
            assert report.status == "serving"
    finally:
        rolling = False
        await asyncio.gather(*visits)
    print("requests answered:", next(answered))


async def test_the_host_has_given_up_every_right(shelf, control, host, wanted):
    if os.geteuid() != 0:
        pytest.skip("needs root: otherwise there are no rights to give up")
    await control.roll(wanted(pin=shelf.put({"index.html": "x"})))
    status = Path(f"/proc/{host.process.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["60680"] * 4
    assert facts["Gid"].split() == ["60680"] * 4
    assert facts["Groups"].split() == []
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == 0
    assert facts["NoNewPrivs"] == "1"


async def test_many_web_processes_come_back_after_a_restart(shelf, control, host, visitor, wanted):
    pin = shelf.put_web(app("one"))
    names = [f"env_{number}" for number in range(12)]
    rolls = [control.want(wanted(name, pin)) for name in names]
    for roll in rolls:
        assert (await control.reported(roll.deployment_id)).status == "serving"
    host.kill()
    host.start()
    for name in names:  # a busy machine says for some time that they are starting
        await visitor.until("one", host=f"{name.replace('_', '-')}.localhost")
    await eventually(lambda: len(sandboxes_of(host)) == 12)
