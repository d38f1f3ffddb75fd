"""The real package managers, in a build, through its proxy, from this machine's registries."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket

import msgspec
import pytest

from hooks.builds.registries import EgressRules
from hooks.builds.wire import Egress

BUILD_PATH = "/usr/local/bin:/usr/bin:/bin"
PYPROJECT = b"""[project]
name = "site"
version = "1.0"
requires-python = ">=3.9"
dependencies = ["six==1.17.0"]
"""
PACKAGE = {"name": "site", "version": "1.0.0", "dependencies": {"is-number": "7.0.0"}}
LOCK = {
    "name": "site",
    "version": "1.0.0",
    "lockfileVersion": 3,
    "packages": {
        "": PACKAGE,
        "node_modules/is-number": {
            "version": "7.0.0",
            "integrity": "sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK"
            "9cGvNp6NZWZUBlbGXYxxng==",
        },
    },
}


def site(command, **files):
    text = f"[build]\ncommand = '''{command}'''\noutput = \"dist\"\n"
    return {"managed.toml": text.encode(), **files}


@pytest.fixture(scope="session")
def machine():
    """What this machine's own package clients let builds reach."""
    return EgressRules(Egress(), with_registries=True, environ=dict(os.environ)).read()


@pytest.fixture
def registry(control, machine):
    """Let the builds reach the registries of a client, or skip where none answers."""

    def of(client):
        hosts = [each for each in machine.allow if each.source == client]
        if not hosts:
            pytest.skip(f"this machine has no {client}")
        for each in hosts:
            try:
                socket.create_connection((each.host, each.port), 5).close()
            except OSError as error:
                pytest.skip(f"the registry of {client} does not answer: {error}")
        control.egress = msgspec.to_builtins(machine)
        return [f"{each.host}:{each.port}" for each in hosts]

    return of


def needs(program):
    return pytest.mark.skipif(
        shutil.which(program, path=BUILD_PATH) is None, reason=f"builds have no {program} here"
    )


async def built(control, files):
    job = control.queue(files, timeout_s=100)
    await asyncio.wait_for(job.finished.wait(), 110)
    assert job.outcome["status"] == "succeeded", job.text
    return job


async def test_pip_install_and_uv_sync(control, slot, registry, unpacked):
    hosts = registry("pip")
    pip = "python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -r tools.txt"
    into = "UV_PROJECT_ENVIRONMENT=/tmp/synced"
    sync = f"{into} /tmp/venv/bin/uv sync --project web --no-install-project"
    use = '/tmp/synced/bin/python -c "import six; print(six.__version__)" > dist/version'
    files = {"web/pyproject.toml": PYPROJECT, "tools.txt": b"six==1.17.0\nuv\n"}
    job = await built(control, site(f"mkdir dist && {pip} && {sync} && {use}", **files))
    assert unpacked(job.output)["version"] == b"1.17.0\n"
    reached = [line.split(": ")[1] for line in job.stage("network")]
    assert set(reached) <= set(hosts)
    assert reached


@needs("npm")
async def test_npm_ci_as_the_node_profile_runs_it(control, slot, registry, unpacked):
    (host,) = registry("npm")
    use = 'node -e "console.log(require(\\"is-number\\")(7))" > dist/answer'
    job = await built(
        control,
        site(
            f"mkdir dist && {use}",
            **{
                "package.json": json.dumps(PACKAGE).encode(),
                "package-lock.json": json.dumps(LOCK).encode(),
            },
        ),
    )
    assert unpacked(job.output)["answer"] == b"true\n"
    (line,) = job.stage("network")
    assert line.startswith(f"egress: {host}: ")
