"""What the programs of an environment print: read, followed, and resumed, through the whole."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SITE = "talker"
LOGS = f"/sites/{SITE}/environments/production/logs"
SERVER = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked for", self.path, os.environ["TOKEN"], flush=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass

print("up", flush=True)
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
CONFIG = '[build]\nroot = "site"\n[run]\nweb = "exec python3 server.py"\n'


@pytest.fixture
def talker(shared):
    """A site whose program prints what it is asked for, and a secret of its."""
    shared.new_site(SITE)
    keeper = shared.gitd("key", "create", "--label", "ops", "--scope", "credentials:write")
    secret = next(word for word in keeper.split() if word.startswith("mf"))
    put = shared.api(
        "PUT",
        f"/sites/{SITE}/environments/production/secrets/TOKEN",
        {"value": "hunter2hunter2", "used_in": "run"},
        Authorization=f"Bearer {secret}",
    )
    assert put.status == 200, put.body
    work = shared.work(SITE, SITE)
    work.commit({"managed.toml": CONFIG, "site/server.py": SERVER})
    work.push()
    return shared


@contextmanager
def following(server, after: str = "", lines: int = 0) -> Iterator[Iterator[tuple[str, str]]]:
    """The events' ids and lines, as they come."""
    headers = {"Authorization": f"Bearer {server.token}"}
    if after:
        headers["Last-Event-ID"] = after
    request = urllib.request.Request(f"{server.url}/v1{LOGS}/stream?lines={lines}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"

        def events():
            event_id = ""
            for raw in answer:
                field, _, value = raw.decode().rstrip("\n").partition(": ")
                if field == "id":
                    event_id = value
                elif field == "data":
                    yield event_id, json.loads(value)["line"]

        yield events()


def test_what_a_program_prints_is_read_followed_and_resumed(talker) -> None:
    talker.visit(SITE, "/one")
    text = talker.mf("logs", "--site", SITE).stdout
    printed = [line.split(" ", 1)[1] for line in text.splitlines() if " [gitd] " not in line]
    assert printed == ["up", "asked for / ***", "asked for /one ***"]
    assert (
        talker.mf("logs", "--site", SITE, "--env", "production", "-n", "1").stdout
        == (text.splitlines(keepends=True)[-1])
    )
    heard = json.loads(talker.mf("logs", "--site", SITE, "-n", "1", "--json").stdout)
    assert heard[0]["line"] == "asked for /one ***"
    assert heard[0]["stage"] == "run"

    with following(talker) as events:
        talker.visit(SITE, "/two")
        place, line = next(events)
        assert line == "asked for /two ***"
    talker.visit(SITE, "/three")
    with following(talker, after=place) as events:
        assert next(events)[1] == "asked for /three ***"
        talker.visit(SITE, "/four")
        assert next(events)[1] == "asked for /four ***"


def test_an_environment_that_runs_nothing_says_so(talker) -> None:
    ran = talker.mf("logs", "--site", SITE, "--env", "staging")
    assert ran.stdout == ""
    assert "Nothing runs on staging yet" in ran.stderr


def test_anybody_may_ask_whether_the_server_is_well(shared) -> None:
    with urllib.request.urlopen(f"{shared.url}/healthz", timeout=30) as answer:
        assert (answer.status, json.load(answer)) == (200, {"status": "ok"})


def test_a_reader_is_told_that_the_environment_went(talker) -> None:
    made = talker.api(
        "POST", f"/sites/{SITE}/environments", {"kind": "preview", "branch": "short"}
    ).json["data"]
    path = f"/sites/{SITE}/environments/{made['id']}"
    headers = {"Authorization": f"Bearer {talker.token}"}
    request = urllib.request.Request(f"{talker.url}/v1{path}/logs?follow=1", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        talker.api("DELETE", path)
        assert answer.read() == b""
