"""A canary: one secret through a whole server, and the places where it must not sing."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

PRODUCTION = "/sites/acme-store/environments/production"
CANARY = "ca?>nary/8f3a+61c $x'\"\u00e9"  # its two spellings in base 64 differ
SPELLINGS = [
    CANARY,
    base64.b64encode(CANARY.encode()).decode(),
    base64.urlsafe_b64encode(CANARY.encode()).decode(),
    CANARY.encode().hex(),
    quote(CANARY, safe=""),
    quote(CANARY, safe="!'()*"),
    quote(CANARY, safe="!$%&'()*+,"),
    json.dumps(CANARY)[1:-1],
    json.dumps(CANARY, ensure_ascii=False)[1:-1],
]
# Envelopes of statements carry base64, and so may whatever a build makes of what it was given.
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
SAYS = """
import base64, json, os, time, urllib.parse
token = os.environ["TOKEN"]
data = token.encode()
quote = urllib.parse.quote
urls = [quote(token, safe=safe) for safe in ("", "!'()*", "!$%&'()*+,")]
for text in (token, json.dumps(token), *urls, data.hex(), repr(token)):
    print(text, flush=True)
for encode in (base64.b64encode, base64.urlsafe_b64encode):
    print(encode(data).decode(), encode(b"u:" + data).decode(), flush=True)
os.write(1, data[:7]); os.write(2, data[7:] + b"\\n")
os.makedirs(os.path.expanduser("~/.cache/tool")); os.mkdir("dist")
open(os.path.expanduser("~/.cache/tool/token"), "w").write(token)
open("dist/index.html", "w").write("length " + str(len(token)))
"""
TOML = "[build]\ncommand = 'python3 say.py{}'\noutput = 'dist'\nvariables = ['TOKEN']\n"


@pytest.fixture
def keeper(server):
    made = server.gitd(
        *("key", "create", "--label", "ops", "--json"),
        *("--scope", "credentials:read", "--scope", "credentials:write"),
    )
    return json.loads(made)["secret"]


def set_secret(server, keeper: str, *options: str) -> str:
    done = subprocess.run(
        ["mf", "secrets", "set", "TOKEN", "--site", "acme-store", *options],
        env={**server.environ, "FORGE_TOKEN": keeper},
        input=f"{CANARY}\n".encode(),
        capture_output=True,
        check=True,
    )
    return (done.stdout + done.stderr).decode()


def cmdlines() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def decoded(text: str) -> str:
    """All that is base64 in a text, or could be, decoded: from each of the places that it can
    begin at.
    """
    found = []
    for run in BASE64.findall(text):
        for start in range(4):
            part = run[start:].translate(str.maketrans("-_", "+/"))
            data = base64.b64decode(part[: len(part) - (len(part) % 4 == 1)] + "===")
            found.append(data.decode(errors="replace"))
    return "\n".join(found)


def silent(text: str, where: str) -> None:
    for each in (text, decoded(text)):
        for spelling in SPELLINGS:
            assert spelling not in each, where


def files_are_silent(server) -> None:
    """No file of the server holds the canary, statements of what was built among them."""
    statements = 0
    for path in server.root.rglob("*"):
        if path.is_file() and path.is_relative_to(server.data):
            text = path.read_bytes().decode(errors="replace")
            silent(text, str(path))
            statements += '"predicateType"' in decoded(text)
    assert statements, "the statements in their envelopes were not read"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("before", ["", "u", "u:"])
def test_canary_is_heard_in_an_envelope(spelling: str, before: str) -> None:
    payload = base64.b64encode(f'{{"x": "{before}{spelling}"}}'.encode()).decode()
    with pytest.raises(AssertionError, match="envelope"):
        silent(json.dumps({"payload": payload}), "envelope")
    bare = base64.urlsafe_b64encode(f"{before}{CANARY}".encode()).decode().rstrip("=")
    with pytest.raises(AssertionError, match="bare"):
        silent(f"x={bare}", "bare")
    silent(json.dumps({"payload": base64.b64encode(b'{"predicateType": 1}' * 9).decode()}), "none")


@pytest.mark.own_server
def test_canary_is_in_no_log_no_artifact_no_file_and_no_argument_list(server, keeper) -> None:
    work = server.work()
    work.commit({"managed.toml": TOML.format(""), "say.py": SAYS})
    refused = work.push(check=False)
    assert "TOKEN is not set" in refused
    silent(set_secret(server, keeper), "mf")
    work.commit({"say.py": SAYS + "print(open('/proc/1/cmdline').read())\ntime.sleep(0.5)\n"})
    pushing = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while pushing.poll() is None:
        silent(cmdlines(), "/proc")
    said, _ = pushing.communicate()
    assert "is live" in said, said
    silent(said, "push")
    assert server.serves(f"length {len(CANARY)}")

    work.commit({"managed.toml": TOML.format("; exit 3")})
    failed = work.push(check=False)
    assert "exit status 3" in failed
    silent(failed, "push of a failed build")
    work.commit({"managed.toml": TOML.format('; echo "$TOKEN" > dist/leaked.txt')})
    leaking = work.push(check=False)
    assert "leaked.txt holds the secret TOKEN" in leaking
    silent(leaking, "push of a leaking build")
    assert server.serves(f"length {len(CANARY)}")

    for build in server.api("GET", "/sites/acme-store/environments/production/builds").json["data"]:
        silent(json.dumps(build, ensure_ascii=False), "build")
        path = f"/sites/acme-store/environments/production/builds/{build['id']}/log"
        silent(server.api("GET", path).body.decode(), "log")
    silent(server.log(), "server's log")
    assert server.stop() == 0
    files_are_silent(server)


def test_previews_and_environments_have_secrets_of_their_own(server, keeper) -> None:
    set_secret(server, keeper, "--env", "production")
    work = server.work()
    work.commit({"managed.toml": TOML.format(""), "say.py": SAYS})
    assert "is live" in work.push()
    assert "TOKEN is not set" in work.push("main:refs/heads/feature", check=False)


RUNS = """
import http.server, os
token = os.environ.get("TOKEN", "")
print("begun with", token, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"length {len(token)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_what_runs_is_given_a_secret_and_its_release_keeps_it(server, keeper) -> None:
    work = server.work()
    work.commit({"Procfile": "web: python3 run.py\n", "run.py": RUNS})
    assert "is live" in work.push()
    assert server.serves("length 0")
    said = set_secret(server, keeper, "--for", "run")
    assert "what runs gets it" in said
    job_id = said.split()[-1]
    wait = ["mf", "jobs", "wait", job_id]
    assert subprocess.run(wait, env=server.environ, capture_output=True).returncode == 0
    assert server.serves(f"length {len(CANARY)}")
    silent(cmdlines(), "/proc")
    releases = server.api("GET", f"{PRODUCTION}/releases").json["data"]
    assert [release["config_version"] for release in releases] == [1, 0]
    assert releases[0]["artifact_id"] == releases[1]["artifact_id"]
    back = ["mf", "rollback", "--site", "acme-store", "--env", "production", "--wait"]
    assert subprocess.run(back, env=server.environ, capture_output=True).returncode == 0
    assert server.serves("length 0"), "the release before had none"
    said = set_secret(server, keeper, "--for", "run", "--no-roll")
    assert "rolling it out" not in said
    unset = ["mf", "secrets", "unset", "TOKEN", "--site", "acme-store", "--no-roll"]
    done = subprocess.run(unset, env={**server.environ, "FORGE_TOKEN": keeper}, capture_output=True)
    assert done.stdout == b"TOKEN for acme-store is no more\n", done.stderr
    assert not any(job["status"] in ("queued", "running") for job in server.jobs())
    assert len(server.api("GET", f"{PRODUCTION}/releases").json["data"]) == 3
    assert server.stop() == 0
    files_are_silent(server)
