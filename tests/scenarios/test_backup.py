"""Backups of a running server, restored on an empty host while the server goes on."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.own_server

ALL_SCOPES = (
    *("key", "create", "--label", "all", "--json"),
    *("--scope", "*", "--scope", "credentials:read", "--scope", "credentials:write"),
)
PAGE = Path(__file__).parents[2] / "docs" / "backup.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run(server, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return server.run("gitd", *arguments, check=check)


def back_up(server, *options: str) -> dict:
    dest = str(server.root / "backups")
    return json.loads(server.gitd("backup", dest, "--json", *options))


def restore(server, other, *options: str) -> dict:
    source = str(server.root / "backups")
    other.token = server.token
    return json.loads(other.gitd("restore", source, "--json", *options))


def releases(server, env: str = "production") -> list[dict]:
    where = ("--site", "acme-store", "--env", env)
    return json.loads(server.mf("releases", *where, "--json").stdout)


def test_restored_server_serves_every_environment_while_the_source_goes_on(server, other) -> None:
    server.token = json.loads(server.gitd(*ALL_SCOPES))["secret"]
    work = server.work()
    for number in (1, 2):
        work.commit({"index.html": f"<h1>live {number}</h1>"})
        work.push()
    work.git("checkout", "-q", "-b", "staging")
    work.commit({"index.html": "<h1>staged</h1>"})
    work.push("staging")
    work.git("checkout", "-q", "-b", "feature/x")
    work.commit({"index.html": "<h1>preview</h1>"})
    work.push("feature/x")
    environments = json.loads(server.mf("env", "list", "--site", "acme-store", "--json").stdout)
    server.mf("variables", "set", "PLAIN", "1", "--for", "run", "--site", "acme-store")
    taken = back_up(server, "--with-keys")
    assert taken["artifacts"] == 4
    work.git("checkout", "-q", "main")
    work.commit({"index.html": "<h1>live 3</h1>"})
    work.push()

    restore(server, other)
    other.start()

    for environment in environments:
        name = environment["preview_url"].removeprefix("http://").partition(".")[0]
        text = {"production": "live 2", "staging": "staged"}.get(environment["slug"], "preview")
        other.wait_for(text, name)
    server.wait_for("live 3")
    # Nothing was built for it.
    builds = other.api("GET", "/sites/acme-store/environments/production/builds").json["data"]
    assert [build["status"] for build in builds] == ["succeeded", "succeeded"]
    variables = other.mf("variables", "list", "--site", "acme-store", "--json").stdout
    assert [item["value"] for item in json.loads(variables)] == ["1"]
    there = ("--site", "acme-store", "--env", "production")
    other.mf("rollback", *there, "--wait")
    other.wait_for("live 1")
    other.mf("promote", "--site", "acme-store", "--env", "staging", "--to", "production", "--wait")
    other.wait_for("staged")
    # What the source got meanwhile is pushed here as well, and goes live.
    work.git("remote", "set-url", "managed", f"{other.url}/acme-store.git")
    work.push()
    other.wait_for("live 3")
    assert other.gitd("check", "--deep").endswith("all well\n")


def test_page_is_right_about_every_step(server, other, tmp_path) -> None:
    work = server.work()
    work.commit({"index.html": "<h1>kept</h1>"})
    work.push()
    places = {
        "GITD_DATA": str(server.data),
        "BACKUPS": str(tmp_path / "backups"),
        "SAFE": str(tmp_path / "safe"),
        "NEW_DATA": str(other.data),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)],
        env={**server.environ, **places},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "private keys are not in it" in done.stdout
    assert " is whole: " in done.stdout
    assert done.stdout.endswith("all well\n")
    other.start()
    other.wait_for("kept")


def test_without_any_key_environments_serve_on_and_roll_back(server, other) -> None:
    server.token = json.loads(server.gitd(*ALL_SCOPES))["secret"]
    server.mf("variables", "set", "PLAIN", "1", "--for", "run", "--site", "acme-store")
    work = server.work()
    for number in (1, 2):
        work.commit({"index.html": f"<h1>live {number}</h1>"})
        work.push()
    back_up(server)
    restored = restore(server, other, "--new-keys", "--without-variables")
    assert restored["is_trust_new"]
    assert restored["forgotten_variables"] == 2  # the value, and the config that had it
    other.start()
    other.wait_for("live 2")
    other.mf("rollback", "--site", "acme-store", "--env", "production", "--wait")
    other.wait_for("live 1")
    assert other.gitd("check").endswith("all well\n")


@pytest.mark.soak
def test_backups_in_the_middle_of_pushes_restore_to_what_their_refs_say(server, other) -> None:
    work = server.work()
    work.commit({"index.html": "<h1>main 0</h1>"})
    work.push()
    is_over = threading.Event()
    taken: list[dict] = []

    def back_up_again_and_again() -> None:
        while not is_over.is_set():
            taken.append(back_up(server, "--with-keys"))

    thread = threading.Thread(target=back_up_again_and_again)
    thread.start()
    for number in range(1, 25):
        work.commit({"index.html": f"<h1>main {number}</h1>"})
        work.git("push", "--quiet", "managed", "main", f"main:topic-{number % 3}", "--force")
    is_over.set()
    thread.join()
    said = run(server, "backup", str(server.root / "backups"), "--verify", "--deep", "--json")
    assert json.loads(said.stdout)["ok"]
    late = [one for one in taken if one["late_pushes"]]
    print(f"{len(taken)} backups, {len(late)} of them with pushes in their middle")
    # The last one that had a push in its middle serves what its refs say, or else the very last.
    chosen = (late or taken)[-1]
    restore(server, other, "--at", chosen["name"])
    (bare,) = other.data.glob("repos/*.git")
    page = subprocess.run(
        ["git", "-C", bare, "show", "main:index.html"], capture_output=True, text=True, check=True
    ).stdout
    other.start()
    other.wait_for(page)
