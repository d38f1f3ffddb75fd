"""What programs are given of variables and secrets, at the site host: real programs, real files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from hooks.deploys.host.configs import ConfigFiles
from hooks.deploys.wire import Config
from storage.sealing import VARIABLES_KEY, Vault

CANARY = 'canary $x \'q\' "d" \\ {"a": 1}\n\u00e9\U0001f511'
APP = """
import http.server, json, os
print("the secret is", repr(os.environ.get("TOKEN")), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"environ": dict(os.environ), "told": open("/proc/1/cmdline").read()
                           + open("/proc/self/cmdline").read()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def config(version: int = 1, *, token: str = CANARY, **plain: str) -> Config:
    return Config(version, f"{version:064x}", {"TOKEN": token}, plain)


@pytest.fixture
def wanted_with(wanted, control, shelf):
    """What is wanted, with a config: pinned by its statement, and given when it is asked for."""

    def make(config: Config | None, source: str = APP, **run):
        more = {"release_command": True, "url": "https://acme.example"} if run else {}
        roll = wanted(pin=shelf.put_web(source, **run), kind="staging", **more)
        if config is not None:
            control.configs[roll.deployment_id] = config
        return roll

    return make


def files_with(host, text: str) -> list[Path]:
    """The files of the host that hold a text."""
    return [
        path
        for path in host.directory.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


async def test_program_and_release_command_are_given_the_config_and_nobody_else(
    control, host, visitor, wanted_with
) -> None:
    roll = wanted_with(config(NODE_ENV="test"), release='echo "found $TOKEN"; echo "$NODE_ENV"')
    assert (await control.roll(roll)).status == "serving"
    heard = json.loads(await visitor.text())
    environ = heard["environ"]
    assert (environ["TOKEN"], environ["NODE_ENV"]) == (CANARY, "test")
    assert {name: environ[name] for name in environ if name.startswith("GITD_")} == {
        "GITD_SITE": "acme-store",
        "GITD_ENVIRONMENT": "env-1",
        "GITD_ENVIRONMENT_KIND": "staging",
        "GITD_URL": "https://acme.example",
        "GITD_DEPLOYMENT": roll.deployment_id,
        "GITD_ARTIFACT": roll.artifact.digest,
        "GITD_REF": "refs/heads/main",
        "GITD_COMMIT": "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
    }
    assert "canary" not in heard["told"]
    assert "found ***" in "\n".join(control.log_of(roll.deployment_id))
    assert files_with(host, "canary") == []
    log = (host.directory / "environments/env_1/logs/web.log").read_text()
    assert "the secret is" in log, "what it says is kept, but for the secret"


async def test_it_is_given_the_same_after_a_start_of_the_host_without_control(
    control, host, visitor, wanted_with
) -> None:
    await control.roll(wanted_with(config(A="1")))
    last = wanted_with(config(2, A="2"))
    await control.roll(last)
    kept = [path.name for path in (host.directory / "environments/env_1").glob("config-*")]
    assert f"config-{last.deployment_id}" in kept
    await control.stop()
    host.kill()
    host.start()
    environ = json.loads(await visitor.text())["environ"]
    assert (environ["TOKEN"], environ["A"]) == (CANARY, "2")
    assert control.configs_asked == list(control.configs), "each was asked for once"


async def test_key_that_the_service_manager_hands_over_seals_what_is_kept(
    control, host, visitor, wanted_with
) -> None:
    await control.roll(wanted_with(config()))
    key = bytes(range(32))
    folder = host.root / "credentials"
    folder.mkdir()
    (folder / VARIABLES_KEY).write_text(key.hex())
    (folder / VARIABLES_KEY).chmod(0o400)
    owner = host.directory.stat()
    os.chown(folder / VARIABLES_KEY, owner.st_uid, owner.st_gid)
    await host.stop()
    (host.directory / VARIABLES_KEY).unlink()
    host.start(credentials=str(folder))
    roll = wanted_with(config(2))
    await control.roll(roll)
    assert not (host.directory / VARIABLES_KEY).exists(), "it makes none of its own"
    kept = ConfigFiles(host.directory / "environments" / roll.env_id, Vault(key))
    assert kept.read(roll.deployment_id) == config(2)
    await control.stop()
    host.kill()
    host.start(credentials=str(folder))
    assert json.loads(await visitor.text())["environ"]["TOKEN"] == CANARY


async def test_config_that_the_statement_does_not_name_is_not_given(
    control, host, visitor, wanted_with
) -> None:
    await control.roll(wanted_with(config()))
    for other in (config(token="another secret"), config(2), config(EXTRA="1"), None):
        roll = wanted_with(config())
        control.want(roll)  # signed with the config that it has by now
        since = len(control.reports)
        if other is None:
            del control.configs[roll.deployment_id]
        else:
            control.configs[roll.deployment_id] = other
        report = await control.reported(roll.deployment_id, since=since)
        code = "release.config_unreadable" if other is None else "release.statement_invalid"
        assert (report.status, report.error.code) == ("failed", code), report
    assert json.loads(await visitor.text())["environ"]["TOKEN"] == CANARY


async def test_config_is_no_part_of_what_is_printed() -> None:
    assert "canary" not in repr(config()) + str(config())
    assert msgspec.json.decode(msgspec.json.encode(config()), type=Config) == config()
