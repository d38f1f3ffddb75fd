"""A job followed to its end: over breaks, outages and interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
import time

import pytest

from tests.ports import free_port

PLACE = ("--site", "acme-store", "--env", "production")
HERE = "/v1/sites/acme-store/environments/production"
BELOW = "/v1/sites/site_01/environments/env_01"
RESOURCE = {"type": "build", "id": "build_01", "site_id": "site_01", "env_id": "env_01"}
ROLL = {"type": "deployment", "id": "dep_01", "site_id": "site_01", "env_id": "env_01"}


def log(text: str, stage: str = "build") -> tuple[str, dict[str, object]]:
    return "log", {"line": text, "at": "2026-06-23T12:00:00.000Z", "stage": stage}


def state(status: str, progress: int = 0, **more: object) -> tuple[str, dict[str, object]]:
    job = {"id": "job_01", "type": "build.run", "resource": RESOURCE, "status": status}
    return "job", {**job, "progress": progress, **more}


def roll(status: str, progress: int = 0, **more: object) -> tuple[str, dict[str, object]]:
    more = {"id": "job_02", "type": "deployment.roll", "resource": ROLL, **more}
    return state(status, progress, **more)


END = ("end", {})
MADE = {"artifact_id": "art_01", "build_id": "build_01"}
GOOD = [
    state("queued"),
    state("running", 5),
    log("Cloning", "fetch"),
    log("npm run build"),
    state("running", 80),
    log("done"),
    state("succeeded", 100, result=MADE),
    END,
]
GONE_ON = [*GOOD[:-2], state("succeeded", 100, result={**MADE, "deployment_id": "dep_01"}), END]
LIVE = [
    roll("running"),
    log("verified", "verify"),
    roll("succeeded", 100, result={"deployment_id": "dep_01", "release_id": "rel_01"}),
    END,
]
BAD = [
    state("running", 5),
    log("make: *** [all] Error 2"),
    state(
        "failed",
        60,
        error={"code": "build.command_failed", "message": "make failed", "exit_status": 2},
    ),
    END,
]


def build_of(peer, stream):
    job = peer.job("job_01", stream, resource=RESOURCE)
    peer.on("POST", f"{HERE}/builds", peer.one(job, 202))
    return job


def roll_of(peer, stream):
    peer.on("GET", f"{BELOW}/deployments/dep_01", peer.one({"id": "dep_01", "job_id": "job_02"}))
    environment = {"slug": "production", "preview_url": "http://acme-store.localhost:8081"}
    peer.on("GET", BELOW, peer.one(environment))
    return peer.job("job_02", stream, type="deployment.roll", resource=ROLL)


def test_wait_shows_the_log_and_ends_with_the_artifact(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD))
    ran = mf("build", *PLACE, "--ref", "main", "--wait")
    assert (ran.code, ran.out) == (0, "build_01 made art_01\n")
    assert ran.err.splitlines() == [
        "build job_01 queued",
        "build job_01 running",
        "[fetch] Cloning",
        "[build] npm run build",
        "[build] done",
        "build job_01 succeeded",
    ]


def test_wait_shows_the_place_in_the_queue_as_it_moves(mf, peer, stream_of) -> None:
    places = [state("queued"), *(state("queued", queue_position=n) for n in (3, 3, 1))]
    job = build_of(peer, stream_of([*places, *GOOD[1:]]))
    peer.on("POST", f"{HERE}/builds", peer.one({**job, "queue_position": 3}, 202))
    ran = mf("build", *PLACE, "--wait")
    assert ran.code == 0
    assert ran.err.splitlines()[:4] == [
        "build job_01 queued",
        "build job_01 queued, number 3 in the queue",
        "build job_01 queued, number 1 in the queue",
        "build job_01 running",
    ]
    assert "queued, number 3 in the queue as job_01" in mf("build", *PLACE).out


def test_failed_job_is_code_1_and_says_why(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(BAD))
    ran = mf("build", *PLACE, "--wait")
    assert ran.code == 1
    assert ran.out == ("build_01 failed: build.command_failed: make failed (exit status 2)\n")
    assert "Error 2" in ran.err
    assert "mf logs job_01" in ran.err


LOCK = "package-lock.json does not fit package.json"
LONG = {
    "code": "build.command_failed",
    "message": f"The command ended with exit status 2.\n{LOCK}\nIts last lines:\n\x1b[2Jnpm\nend",
    "exit_status": 2,
}
LONG_BAD = [state("running"), log("npm"), log("end"), state("failed", error=LONG), END]


def test_reason_of_many_lines_is_said_line_by_line_and_once(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(LONG_BAD))
    head = "build_01 failed: build.command_failed: The command ended with exit status 2."
    ran = mf("jobs", "wait", "job_01")
    assert ran.out.splitlines() == [head, LOCK]
    ran = mf("jobs", "wait", "job_01", "--quiet")
    assert ran.out.splitlines() == [head, LOCK, "Its last lines:", "npm", "end"]
    ran = mf("logs", "job_01", "--follow")
    assert ran.err.splitlines() == [head, LOCK]


def test_last_line_of_a_reason_is_kept_where_the_log_has_said_nothing_of_it(
    mf, peer, stream_of
) -> None:
    error = {"code": "build.command_failed", "message": "make failed\nNot found:"}
    build_of(peer, stream_of([log("other"), state("failed", error=error), END]))
    ran = mf("jobs", "wait", "job_01")
    assert ran.out.splitlines() == [
        "build_01 failed: build.command_failed: make failed",
        "Not found:",
    ]


def test_canceled_job_is_code_1(mf, peer, stream_of) -> None:
    build_of(peer, stream_of([state("canceled"), END]))
    assert mf("build", *PLACE, "--wait").code == 1


def test_wait_with_json_prints_the_finished_job_alone(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD))
    ran = mf("build", *PLACE, "--wait", "--json")
    assert ran.json == GOOD[-2][1]
    build_of(peer, stream_of(BAD))
    ran = mf("build", *PLACE, "--wait", "--json", "--quiet")
    assert (ran.code, ran.json, ran.err) == (1, BAD[-2][1], "")


def test_build_that_goes_on_to_deploy_is_followed_until_live(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GONE_ON))
    roll_of(peer, stream_of(LIVE))
    ran = mf("build", *PLACE, "--deploy", "--wait")
    assert ran.code == 0
    assert ran.out == "rel_01 is live on production: http://acme-store.localhost:8081\n"
    assert ran.err.splitlines()[-4:] == [
        "build job_01 succeeded",
        "roll job_02 running",
        "[verify] verified",
        "roll job_02 succeeded",
    ]


def test_deployment_after_a_good_build_decides_the_code(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GONE_ON))
    error = {"code": "deployment.health_check_failed", "message": "no answer"}
    roll_of(peer, stream_of([roll("failed", error=error), END]))
    ran = mf("build", *PLACE, "--deploy", "--wait")
    assert ran.code == 1
    assert "deployment.health_check_failed" in ran.out
    assert "goes on serving" in ran.err


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ([], "Nothing ran on production before, and nothing does now."),
        (
            [{"id": "rel_01", "current": True, "commit": "a1b2c3d4e5f6a7b8"}],
            "production still serves rel_01 (a1b2c3d4e5f6): http://acme-store.localhost:8081",
        ),
    ],
)
def test_failed_roll_says_what_serves(mf, peer, stream_of, releases, said) -> None:
    error = {"code": "deployment.start_failed", "message": "it ended"}
    roll_of(peer, stream_of([roll("failed", error=error), END]))
    peer.on("GET", f"{BELOW}/releases", peer.many(releases))
    ran = mf("jobs", "wait", "job_02")
    assert ran.code == 1
    assert f"{said}\n" in ran.err


def test_finished_job_can_be_waited_for(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GONE_ON))
    roll_of(peer, stream_of(LIVE))
    ran = mf("jobs", "wait", "job_01")
    assert ran.code == 0
    assert ran.out.startswith("rel_01 is live")


@pytest.mark.parametrize("first", [0, 1, 3, 6])
def test_broken_stream_goes_on_without_gap_or_repeat(mf, peer, stream_of, first) -> None:
    stream = stream_of(GOOD, breaks=[first, 1, 0, 2])
    build_of(peer, stream)
    ran = mf("jobs", "wait", "job_01")
    assert ran.code == 0
    assert [line for line in ran.err.splitlines() if line.startswith("[")] == [
        "[fetch] Cloning",
        "[build] npm run build",
        "[build] done",
    ]
    assert stream.resumed_from[:2] == ["", str(first or "")]


def test_stream_that_ends_without_an_end_is_taken_up_again(mf, peer, stream_of) -> None:
    """A proxy may close a connection politely in the middle."""
    stream = stream_of(GOOD[:3])
    job = build_of(peer, stream)

    def go_on() -> None:
        while len(stream.resumed_from) < 2:
            time.sleep(0.01)
        stream.events.extend(GOOD[3:])

    threading.Thread(target=go_on, daemon=True).start()
    ran = mf("jobs", "wait", job["id"])
    assert ran.code == 0
    assert len(stream.resumed_from) > 1
    assert ran.err.count("Cloning") == 1


def test_final_state_at_the_end_of_a_stream_is_enough(mf, peer, stream_of) -> None:
    stream = stream_of(GOOD[:-1])
    build_of(peer, stream)
    assert mf("jobs", "wait", "job_01").code == 0
    assert len(stream.resumed_from) == 1


def test_end_without_a_final_state_asks_for_the_job(mf, peer, stream_of) -> None:
    build_of(peer, stream_of([log("x"), END]))
    peer.on(
        "GET",
        "/v1/jobs/job_01",
        peer.one(state("running")[1]),
        peer.one(GOOD[-2][1]),
    )
    assert mf("jobs", "wait", "job_01").code == 0


def test_log_that_lost_its_newest_lines_is_read_again(mf, peer, stream_of) -> None:
    """After a power cut the position may be gone: what was shown is not shown again."""
    stream = stream_of(GOOD, breaks=[4], refuse_position=True)
    build_of(peer, stream)
    ran = mf("jobs", "wait", "job_01")
    assert ran.code == 0
    assert ran.err.count("Cloning") == 1
    assert ran.err.count("[build] done") == 1
    assert stream.resumed_from == ["", "4", ""]


def test_garbage_between_events_is_passed_over(mf, peer, stream_of) -> None:
    async def garbled(request):
        lines = "data: not json\n\nevent: job\ndata: nope\n\nevent: log\ndata: 3\n\n"
        lines += 'event: log\ndata: {"line": "kept"}\n\nevent: job\ndata: {"id": 3}\n\n'
        lines += "event: news\ndata: {}\n\n"
        for kind, data in GOOD:
            lines += f"event: {kind}\ndata: {json.dumps(data)}\n\n"
        return await peer.raw(lines, headers={"Content-Type": "text/event-stream"})(request)

    build_of(peer, stream_of(GOOD))
    peer.on("GET", "/v1/jobs/job_01/stream", garbled)
    ran = mf("jobs", "wait", "job_01")
    assert ran.code == 0
    assert ran.err.splitlines()[0] == "kept"
    assert len([seen for seen in peer.seen if seen.path.endswith("/stream")]) == 1


def test_proxy_page_instead_of_the_stream_is_tried_again(mf, peer, stream_of) -> None:
    build_of(peer, stream_of([]))
    events = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in GOOD)
    peer.on(
        "GET",
        "/v1/jobs/job_01/stream",
        peer.raw("<html>", headers={"Content-Type": "text/html"}),
        peer.raw("busy", status=503),
        peer.raw(events, headers={"Content-Type": "text/event-stream; charset=utf-8"}),
    )
    ran = mf("jobs", "wait", "job_01")
    assert ran.code == 0
    assert "trying again" in ran.err


def test_server_that_stays_away_is_code_4_and_says_how_to_go_on(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD, breaks=[2] + [0] * 50, comments_first=False))
    ran = mf("build", *PLACE, "--wait", "--patience", "0.5")
    assert ran.code == 4
    assert "mf jobs wait job_01" in ran.err


def test_server_that_comes_back_is_found_again(mf_at, new_peer, stream_of) -> None:
    first, second = new_peer(), new_peer()
    first.start(free_port())  # which nobody else has before it is listened on again
    build_of(first, stream_of(GOOD[:4], hold=True))
    process = mf_at(first.url).begin("build", *PLACE, "--wait")
    assert process.stderr is not None
    while "npm" not in process.stderr.readline():
        pass
    first.stop()
    time.sleep(0.5)
    rest = stream_of(GOOD)
    build_of(second, rest)
    second.start(port=first.port)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "build_01 made art_01\n")
    assert "Cloning" not in err
    assert rest.resumed_from == ["4"]


def test_job_that_vanishes_is_a_refusal(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD))
    peer.on("GET", "/v1/jobs/job_01/stream", peer.refusal(404, "job.not_found", "gone"))
    ran = mf("build", *PLACE, "--wait")
    assert ran.code == 3
    assert "job.not_found" in ran.err


@pytest.mark.parametrize("place", [(), PLACE])
def test_job_is_named_by_its_build_too(mf, peer, stream_of, place) -> None:
    job = finished(peer, stream_of)
    peer.on("GET", f"{HERE}/builds/build_01", peer.one({"id": "build_01", "job_id": "job_01"}))
    peer.on("POST", "/v1/jobs/job_01/cancel", peer.one(job))
    assert mf("jobs", "wait", "build_01", *place).out == "build_01 made art_01\n"
    assert mf("jobs", "show", "build_01", *place, "--json").json["id"] == "job_01"
    assert mf("jobs", "cancel", "build_01", *place).out == "job_01 is succeeded\n"


def test_newest_job_of_an_environment_is_waited_for(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD))
    roll_of(peer, stream_of(LIVE))
    build = {"id": "build_01", "job_id": "job_01", "created_at": "2026-06-23T12:00:01.000Z"}
    deployment = {"id": "dep_01", "job_id": "job_02", "created_at": "2026-06-23T12:00:00.000Z"}
    peer.on("GET", f"{HERE}/builds", peer.many([build, {"id": "build_00", "job_id": "job_00"}]))
    peer.on("GET", f"{HERE}/deployments", peer.many([deployment]))
    assert mf("jobs", "wait", *PLACE).out == "build_01 made art_01\n"
    later = {**deployment, "created_at": "2026-06-23T12:00:02.000Z"}
    peer.on("GET", f"{HERE}/deployments", peer.many([later]))
    assert "rel_01 is live" in mf("jobs", "wait", *PLACE).out
    for kind in ("builds", "deployments"):
        peer.on("GET", f"{HERE}/{kind}", peer.many([]))
    ran = mf("jobs", "wait", *PLACE)
    assert (ran.code, "Nothing was ever built for production" in ran.err) == (3, True)
    assert mf("jobs", "wait").code == 2


def test_failed_roll_of_a_suspended_environment_is_not_said_to_serve(mf, peer, stream_of) -> None:
    job = roll_of(peer, stream_of([roll("failed"), END]))
    peer.on("POST", f"{HERE}/deployments", peer.one(job, 202))
    peer.on("GET", BELOW, peer.one({"slug": "production", "status": "suspended"}))
    peer.on("GET", f"{BELOW}/releases", peer.many([{"id": "rel_01", "current": True}]))
    ran = mf("deploy", "art_01", *PLACE, "--wait")
    assert ran.code == 1
    resume = "mf env resume production --site site_01"
    assert f"production is suspended and serves nothing ({resume})" in ran.err


def test_interrupt_leaves_the_job_running(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD[:4], hold=True))
    process = mf.begin("build", *PLACE, "--wait")
    assert process.stderr is not None
    while "npm" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "mf jobs wait job_01" in err
    assert "mf jobs cancel job_01" in err
    assert "Traceback" not in err
    assert not [seen for seen in peer.seen if "cancel" in seen.path]


def test_interrupt_of_a_request_is_code_130(mf, peer) -> None:
    asked = threading.Event()

    async def slow(request):
        asked.set()
        import asyncio

        await asyncio.sleep(60)
        return await peer.many([])(request)

    peer.on("GET", "/v1/sites", slow)
    process = mf.begin("sites")
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_log_lines_cannot_command_the_terminal(mf, peer, stream_of) -> None:
    nasty = log("\x1b]52;c;eA==\x07\x1b[2Jhello\x1b[31m red", stage="\x1b[2Jx")
    build_of(peer, stream_of([nasty, *GOOD]))
    ran = mf("jobs", "wait", "job_01")
    assert "[x] hello red" in ran.err
    assert "\x1b" not in ran.err


# -- mf logs -------------------------------------------------------------------------------------


def finished(peer, stream_of, events=GOOD):
    job = build_of(peer, stream_of(events))
    over = {**job, "status": "succeeded"}
    peer.on("GET", "/v1/jobs/job_01", peer.one(over))
    peer.on("GET", "/v1/jobs", peer.many([{**over, "id": "job_00", "resource": {}}, over]))
    return over


@pytest.mark.parametrize("name", ["job_01", "build_01"])
def test_log_of_a_finished_job_is_printed_whole(mf, peer, stream_of, name) -> None:
    finished(peer, stream_of)
    ran = mf("logs", name)
    assert (ran.code, ran.out, ran.err) == (0, "Cloning\nnpm run build\ndone\n", "")
    assert mf("logs", name, "--stages").out.startswith("[fetch] Cloning\n[build] ")
    assert mf("logs", name, "--json").json == [data for kind, data in GOOD if kind == "log"]


def test_log_of_a_failed_job_is_no_failure_of_mf(mf, peer, stream_of) -> None:
    finished(peer, stream_of, BAD)
    assert mf("logs", "job_01").code == 0


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_followed_log_goes_on_into_the_roll_and_ends_as_that_ends(
    mf, peer, stream_of, options
) -> None:
    build_of(peer, stream_of(GONE_ON))
    error = {"code": "deployment.start_failed", "message": "it crashed"}
    roll_of(peer, stream_of([log("starting", "start"), roll("failed", error=error), END]))
    ran = mf("logs", "job_01", "--follow", *options)
    assert ran.code == 1
    assert "done" in ran.out.splitlines()[-2]
    assert "starting" in ran.out.splitlines()[-1]
    assert ran.err == "dep_01 failed: deployment.start_failed: it crashed\n"
    roll_of(peer, stream_of(LIVE))
    assert mf("logs", "job_01", "--follow").code == 0


def test_followed_log_of_a_failed_build_is_code_1(mf, peer, stream_of) -> None:
    finished(peer, stream_of, BAD)
    ran = mf("logs", "build_01", "--follow")
    assert ran.code == 1
    assert "build.command_failed" in ran.err


def test_roll_of_a_build_is_followed_by_a_key_that_may_read_jobs_alone(mf, peer, stream_of) -> None:
    result = {**MADE, "deployment_id": "dep_01", "deployment_job_id": "job_02"}
    build_of(peer, stream_of([*GOOD[:-2], state("succeeded", 100, result=result), END]))
    peer.job("job_02", stream_of(LIVE), type="deployment.roll", resource=ROLL)
    assert mf("logs", "job_01", "--follow").out.endswith("done\nverified\n")
    assert mf("jobs", "wait", "job_01").code == 0
    assert not [seen for seen in peer.seen if "/deployments/" in seen.path]


def test_build_is_looked_for_among_the_jobs_of_builds(mf, peer, stream_of) -> None:
    finished(peer, stream_of)
    mf("logs", "build_01")
    assert peer.seen[0].query == {"resource_type": "build", "limit": "100"}
    ran = mf("logs", "build_99")
    assert ran.code == 3
    assert "--site" in ran.err


@pytest.mark.parametrize(("name", "kind"), [("build_01", "builds"), ("dep_01", "deployments")])
def test_build_or_deployment_is_found_where_it_is_said_to_be(
    mf, peer, stream_of, name, kind
) -> None:
    finished(peer, stream_of)
    peer.on("GET", f"{HERE}/{kind}/{name}", peer.one({"id": name, "job_id": "job_01"}))
    assert mf("logs", name, *PLACE).out.startswith("Cloning")
    assert "/v1/jobs" not in [seen.path for seen in peer.seen]


def test_log_of_a_running_build_is_printed_so_far(mf, peer, stream_of) -> None:
    job = build_of(peer, stream_of(GOOD[:4], hold=True))
    peer.on("GET", f"{BELOW}/builds/build_01/log", peer.raw("Cloning\n\x1b[31mnpm\x1b[0m\n"))
    assert mf("logs", job["id"]).out == "Cloning\nnpm\n"
    assert mf("logs", job["id"], "--json").json == [
        {"line": "Cloning"},
        {"line": "\x1b[31mnpm\x1b[0m"},
    ]


def test_log_of_a_running_roll_needs_to_be_followed(mf, peer, stream_of) -> None:
    peer.job("job_02", stream_of(LIVE), type="deployment.roll", resource=ROLL)
    ran = mf("logs", "job_02")
    assert ran.code == 2
    assert "--follow" in ran.err
    assert mf("logs", "job_02", "--follow").out == "verified\n"


def test_followed_log_comes_line_by_line(mf, peer, stream_of) -> None:
    stream = stream_of(GOOD[:4])
    build_of(peer, stream)
    stream.hold = True
    process = mf.begin("logs", "job_01", "--follow", "--json")
    assert process.stdout is not None
    first = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [line["line"] for line in first] == ["Cloning", "npm run build"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


# -- on a terminal -------------------------------------------------------------------------------


class Terminal:
    """Runs `mf` with a terminal of its own, and keeps what it showed there."""

    def __init__(self, mf, *arguments: str, **environ: str) -> None:
        self.shown = ""
        env = {**mf.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environ}
        self._fd, theirs = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", mf.program, *arguments],
            env=env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._fd, 65536)
            except OSError:  # the other end is closed
                return
            self.shown += piece.decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def until(self, text: str) -> None:
        end = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Press Ctrl-C until it ends: right before Python waits for a line, one is not seen."""
        end = time.monotonic() + 30
        while self._process.poll() is None:
            assert time.monotonic() < end, self.shown
            with contextlib.suppress(OSError):  # it ends just now
                self.type("\x03")
            time.sleep(0.3)

    def end(self) -> int:
        code = self._process.wait(30)
        self._reader.join(10)
        os.close(self._fd)
        return code


def test_terminal_shows_a_bar_under_the_log(mf, peer, stream_of) -> None:
    coloured = log("\x1b]0;title\x07\x1b[32mok\x1b[0m [red]x[/red]")
    stream = stream_of([*GOOD[:5], coloured], hold=True)
    build_of(peer, stream)
    terminal = Terminal(mf, "build", *PLACE, "--wait")
    terminal.until("80%")
    terminal.until("ok")
    stream.events.extend(GOOD[5:])
    stream.hold = False
    assert terminal.end() == 0
    assert "\x1b]0;title" not in terminal.shown
    assert "[red]x[/red]" in terminal.shown
    assert "\x1b[32m" in terminal.shown
    assert "build_01 made art_01" in terminal.shown
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


def test_no_color_takes_the_colours_away(mf, peer, stream_of) -> None:
    build_of(peer, stream_of([log("\x1b[32mok\x1b[0m"), *GOOD]))
    terminal = Terminal(mf, "build", *PLACE, "--wait", NO_COLOR="1")
    assert terminal.end() == 0
    assert "\x1b[32m" not in terminal.shown
    finished(peer, stream_of, [log("\x1b[32mok\x1b[0m"), *GOOD])
    terminal = Terminal(mf, "logs", "job_01", NO_COLOR="1")
    assert terminal.end() == 0
    assert "\x1b[" not in terminal.shown


def test_dumb_terminal_gets_plain_lines(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD))
    terminal = Terminal(mf, "build", *PLACE, "--wait", TERM="dumb")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.shown
    assert "[build] npm run build" in terminal.shown


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(mf, peer, stream_of) -> None:
    build_of(peer, stream_of(GOOD[:4], hold=True))
    terminal = Terminal(mf, "build", *PLACE, "--wait")
    terminal.until("npm run build")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "mf jobs wait job_01" in terminal.shown
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


@pytest.mark.parametrize(("answer", "code"), [("y\r", 0), ("n\r", 130), ("", 130)])
def test_terminal_is_asked_before_a_site_is_deleted(mf, peer, answer, code) -> None:
    site = {"id": "site_01", "name": "acme-store"}
    peer.on("GET", "/v1/sites/acme-store", peer.one(site))
    peer.on("DELETE", "/v1/sites/site_01", peer.one(site))
    terminal = Terminal(mf, "sites", "delete", "acme-store")
    terminal.until("[y/N]")
    terminal.type(answer)
    if not answer:
        terminal.interrupt()
    assert terminal.end() == code
    assert ("DELETE" in [seen.method for seen in peer.seen]) == (code == 0)


@pytest.mark.parametrize("columns", ["20", "55", "100", "200"])
def test_table_on_a_terminal_keeps_ids_whole(mf, peer, columns) -> None:
    job_id = "job_01J9ZZZZZZZ[red]xZZZZZZZZZ"
    job = {
        "id": job_id,
        "status": "failed",
        "type": "build.run",
        "created_at": "2020-01-01T00:00:00Z",
    }
    peer.on("GET", "/v1/jobs", peer.many([job]))
    terminal = Terminal(mf, "jobs", COLUMNS=columns)
    assert terminal.end() == 0
    assert job_id in terminal.shown
    assert (" d ago" in terminal.shown) == (int(columns) > 60)
    assert "\x1b[31mfailed" in terminal.shown


# -- mf logs of what runs ------------------------------------------------------------------------


def printed(text: str) -> tuple[str, dict[str, object]]:
    return log(text, "run")


def test_what_runs_is_read_on_production_unless_another_is_named(mf, peer) -> None:
    at = "2026-06-23T12:00:00.000Z"
    peer.on("GET", f"{HERE}/logs", peer.raw(f"{at} up\n{at} \x1b[31mred\x1b[0m \x07\n"))
    ran = mf("logs", "--site", "acme-store")
    assert (ran.code, ran.out, ran.err) == (0, f"{at} up\n{at} red \n", "")
    assert peer.seen[-1].query == {"lines": "100"}
    ran = mf("logs", *PLACE, "--lines", "2", "--json")
    assert ran.json[0] == {"line": "up", "at": at, "stage": "run"}
    assert peer.seen[-1].query == {"lines": "2"}


def test_what_runs_is_followed_over_breaks_and_while_the_host_is_away(mf, peer, stream_of) -> None:
    stream = stream_of([printed("one"), printed("two"), printed("three"), END], breaks=[1, 1])
    away = peer.refusal(409, "host.away", "The site host is not connected just now.")
    path = f"{HERE}/logs/stream"
    peer.job("job_09", stream)
    streams = peer._answers["GET", "/v1/jobs/job_09/stream"][0]
    peer.on("GET", path, streams, away, streams)
    ran = mf("logs", *PLACE, "--follow")
    assert ran.code == 0
    assert [line.split(" ", 1)[1] for line in ran.out.splitlines()] == ["one", "two", "three"]
    assert stream.resumed_from == ["", "1", "2"]
    assert "not connected just now" in ran.err


def test_a_host_that_is_away_from_the_beginning_is_a_refusal(mf, peer) -> None:
    for path in (f"{HERE}/logs", f"{HERE}/logs/stream"):
        peer.on("GET", path, peer.refusal(409, "host.away", "The site host is not connected."))
    for options in ((), ("--follow",)):
        ran = mf("logs", *PLACE, *options)
        assert (ran.code, ran.out) == (3, "")
        assert "host.away" in ran.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "--site"),
        ((*PLACE, "--stages"), "--stages"),
        (("job_01", "--lines", "3"), "--lines"),
        ((*PLACE, "--lines", "100000"), "--lines"),
    ],
)
def test_wrong_use_of_logs_says_what_is_wrong(mf, arguments, hint) -> None:
    ran = mf("logs", *arguments)
    assert ran.code == 2
    assert hint in ran.err


def test_nothing_printed_where_nothing_ever_ran_is_not_called_a_static_site(mf, peer) -> None:
    peer.on("GET", f"{HERE}/logs", peer.raw(""))
    peer.on("GET", f"{HERE}/releases", peer.many([]))
    assert mf("logs", *PLACE).err == "Nothing runs on production yet.\n"
    peer.on("GET", f"{HERE}/releases", peer.many([{"id": "rel_01", "current": True}]))
    static = "Nothing was printed on production. A static site has no program that could.\n"
    assert mf("logs", *PLACE).err == static
    peer.on("GET", f"{HERE}/releases", peer.refusal(403, "scope.insufficient", "no"))
    assert (mf("logs", *PLACE).code, mf("logs", *PLACE).err) == (0, static)


def test_log_of_a_build_that_no_job_is_for_is_a_refusal_as_the_servers(mf, peer) -> None:
    peer.on("GET", "/v1/jobs", peer.many([]))
    ran = mf("logs", "build_09", "--json")
    assert (ran.code, ran.out) == (3, "")
    said = json.loads(ran.err)
    assert said["request_id"] == "req_01J9ZZZZZZZZZZZZZZZZZZZZZZ"
    assert (said["error"]["type"], said["error"]["code"]) == ("not_found", "build.not_found")
    assert said["error"]["message"].startswith("No job of build_09 is to be seen")
