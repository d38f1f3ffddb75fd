"""Backups of a running server, restored on an empty host while the server goes on."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backup.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run(server, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["gitd", *arguments], env=server.environ, capture_output=True, text=True, timeout=60
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


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
    made = server.gitd(
        *("key", "create", "--label", "all", "--scope", "*", "--json"),
        *("--scope", "credentials:read", "--scope", "credentials:write"),
    )
    server.token = json.loads(made)["secret"]
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
    server.mf("variables", "set", "PLAIN", "1", "--site", "acme-store")
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
