"""The real package managers, in a build, through its proxy, from this machine's registries."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import zipfile
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from hooks.builds.registries import EgressRules
from hooks.builds.wire import Egress

BUILD_PATH = "/usr/local/bin:/usr/bin:/bin"
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
PYPROJECT = b"""[project]
name = "site"
version = "1.0"
requires-python = ">=3.9"
dependencies = ["six==1.17.0"]
"""
PACKAGE = {"name": "site", "version": "1.0.0", "dependencies": {"is-number": "7.0.0"}}


def locked():
    """The lock file of `PACKAGE`, as npm writes it on this machine: with the registry's address."""
    asked = ["npm", "config", "get", "registry"]
    registry = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    is_number = {
        "version": "7.0.0",
        "resolved": f"{registry.rstrip('/')}/is-number/-/is-number-7.0.0.tgz",
        "integrity": "sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK"
        "9cGvNp6NZWZUBlbGXYxxng==",
    }
    return {
        "name": "site",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "packages": {"": PACKAGE, "node_modules/is-number": is_number},
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


def reached(job):
    """The hosts that a build had connections to, and how many bytes came from each."""
    found = {}
    for line in job.stage("network"):
        if told := re.fullmatch(r"egress: (\S+): .* up, ([\d.]+) (\w+) down", line):
            found[told[1]] = float(told[2]) * UNITS[told[3]]
    return found


async def built_again(control, files, before):
    """Build with what an earlier build of the same left in its cache."""
    control.cache, control.is_cache_hit = before.cache_kept, True
    again = await built(control, files)
    assert "hit" in again.stage("cache")
    assert again.cache_kept is None, "it has nothing to add"
    return again


async def built(control, files):
    job = control.queue(files, timeout_s=100)
    await asyncio.wait_for(job.finished.wait(), 110)
    assert job.outcome["status"] == "succeeded", "\n".join(job.text)
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
    assert set() < reached(job).keys() <= set(hosts)


@needs("npm")
async def test_npm_ci_as_the_node_profile_runs_it(control, slot, registry, unpacked):
    (host,) = registry("npm")
    use = 'node -e "console.log(require(\\"is-number\\")(7))" > dist/answer'
    made = site(
        f"mkdir dist && {use}",
        **{
            "package.json": json.dumps(PACKAGE).encode(),
            "package-lock.json": json.dumps(locked()).encode(),
        },
    )
    job = await built(control, made)
    assert unpacked(job.output)["answer"] == b"true\n"
    assert reached(job).keys() == {host}
    again = await built_again(control, made, job)
    assert unpacked(again.output)["answer"] == b"true\n"
    assert reached(again) == {}, "everything was kept"


@pytest.fixture
async def mirror():
    """A Python index of our own with the wheel of acme-hello, for who has the password."""
    wheel, name = io.BytesIO(), "acme_hello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("acme_hello.py", "word = 'hello'\n")
        info = "acme_hello-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: acme-hello\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    page = f'<a href="/files/{name}">{name}</a>'.encode()
    answers = {
        "/simple/acme-hello/": (page, "text/html"),
        f"/files/{name}": (wheel.getvalue(), "application/octet-stream"),
    }
    async with serving(answers) as url:
        yield url


async def test_pip_uses_the_machines_mirror_and_never_sees_its_password(control, slot, mirror):
    """What the machine's pip is set to: plain HTTP, and a password that mirrors may ask for."""
    environ = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{mirror.replace('//', '//user:s3cret@')}/simple",
        "PIP_TRUSTED_HOST": "127.0.0.2",
    }
    rules = EgressRules(Egress(), with_registries=True, environ=environ, path="/nonexistent")
    control.egress = msgspec.to_builtins(rules.read())
    has_pip = shutil.which("pip3", path=BUILD_PATH) is not None
    pip = "pip3" if has_pip else "python3 -m venv /tmp/venv && /tmp/venv/bin/pip"
    install = f"{pip} install --target /tmp/site acme-hello"
    look = "env; cat ~/.config/pip/pip.conf ~/.config/uv/uv.toml"
    use = 'PYTHONPATH=/tmp/site python3 -c "import acme_hello; print(acme_hello.word)" > dist/said'
    job = await built(control, site(f"mkdir dist && {install} && {use} && {look}"))
    assert f"index-url = {mirror}/simple" in job.text
    assert job.stage("network")[0].startswith(f"egress: {mirror.removeprefix('http://')}: ")
    assert "s3cret" not in str(control.egress) + str(job.lines)


@asynccontextmanager
async def serving(answers, asked=None, *, tls=None):
    """A web server at 127.0.0.2, since builds do not ask their proxy for 127.0.0.1.

    `tls`: a file with a certificate for it and its key.
    """

    async def answer(request):
        if asked is not None:
            asked.append(request.path)
        if request.path not in answers:
            raise web.HTTPNotFound
        body, kind = answers[request.path]
        return web.Response(body=body, content_type=kind)

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/{path:.*}", answer)
    await runner.setup()
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
    await web.TCPSite(runner, "127.0.0.2", 0, ssl_context=context).start()
    scheme = "http" if tls is None else "https"
    yield f"{scheme}://127.0.0.2:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def certified(open_dir):
    """A certificate of 127.0.0.2's own with its key, and the certificate alone, for all to read."""
    key, certificate = open_dir / "key.pem", open_dir / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2"),
            *("-subj", "/CN=acme", "-addext", "subjectAltName=IP:127.0.0.2"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    certificate.chmod(0o644)
    both = open_dir / "both.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    return both, certificate


@pytest.fixture
async def repository(packed, certified):
    """A Composer repository of our own with the package acme/hello: its URL, what it is asked."""
    asked = []
    archive = packed({"hello.php": b"<?php return 'hello';", "composer.json": b"{}"})
    answers = {"/hello.tar": (archive, "application/x-tar")}
    async with serving(answers, asked, tls=certified[0]) as url:
        dist = {"type": "tar", "url": f"{url}/hello.tar"}
        package = {"name": "acme/hello", "version": "1.0.0", "dist": dist}
        root = json.dumps({"packages": {"acme/hello": {"1.0.0": package}}})
        answers["/packages.json"] = (root.encode(), "application/json")
        yield url, asked


@needs("composer")
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here")
async def test_composer_install(control, slot, repository, certified, unpacked):
    """By TLS, through the proxy's tunnel, with the certificates that the machine trusts."""
    url, asked = repository
    host, port = url.removeprefix("https://").split(":")
    allowed = {"host": host, "port": int(port), "source": "composer", "reach": "loopback"}
    control.egress = {"allow": [allowed], "ca_bundle": str(certified[1])}
    project = {
        "name": "acme/site",
        "repositories": [{"type": "composer", "url": url}],
        "require": {"acme/hello": "1.0.0"},
    }
    use = 'php -r "echo require \\"vendor/acme/hello/hello.php\\";" > dist/said'
    made = site(
        f"mkdir dist && composer install --no-interaction && {use}",
        **{"composer.json": json.dumps(project).encode()},
    )
    job = await built(control, made)
    assert unpacked(job.output)["said"] == b"hello"
    assert reached(job).keys() == {f"{host}:{port}"}
    assert "/hello.tar" in asked
    asked.clear()
    again = await built_again(control, made, job)
    assert unpacked(again.output)["said"] == b"hello"
    assert "/hello.tar" not in asked, "it was kept"
