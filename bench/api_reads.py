"""API reads per second against a bare aiohttp handler that returns the same bytes.

Two servers, each a process of its own; a third process asks them in turn over kept-open
connections, so that a drifting machine drifts for both. `python -m bench.api_reads`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from aiohttp import web

CONNECTIONS = 8
ROUNDS = 9
ROUND_S = 1.0
TARGET = 0.5  # of the bare handler's rate
JOBS = 40
LIST = "/v1/jobs?limit=20"
READS = ("one job", "one site", "one environment", "20 jobs")


# -- the servers ----------------------------------------------------------------------------------


async def _until_told(app: web.Application, hello: str) -> None:
    """Serve until standard input ends. The first line out has the port, then `hello`."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    print(listener.getsockname()[1], hello, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def serve_bare(body: bytes) -> None:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/", handle)
    await _until_told(app, "-")


async def serve_api(root: Path) -> None:
    """The API as `gitd serve` mounts it, logging to a file, over a site with some jobs."""
    from gitd import log
    from gitd.api.app import ApiDeps, build_api
    from gitd.api.domains import DnsHelp
    from gitd.api.webhook_bodies import render
    from gitd.api_keys import mint
    from gitd.auth import Authenticator
    from hooks.domains import Domains
    from hooks.follow import Addresses
    from hooks.hostnames import PlatformNames
    from hooks.jobs import Jobs
    from hooks.pipeline import Pipeline
    from hooks.queueing import BuildOrder, queue_build
    from hooks.sites import Sites
    from hooks.variables import Variables
    from hooks.webhooks import Messenger
    from storage.joblog import JobLogs
    from storage.model import SYSTEM
    from storage.records import api_keys, environments
    from storage.records.db import Records
    from storage.repos import Repositories
    from storage.sealing import KEY_BYTES, Vault

    with (root / "log").open("wb", buffering=0) as out:
        log.configure(stream=out, as_json=True)
        records = Records.open(root / "gitd.db")
        jobs = Jobs(records, JobLogs(root / "joblogs"))
        repositories = Repositories(root / "repos")
        sites = Sites(jobs, repositories)
        site = (await sites.create("acme-store")).value
        production = environments.of_site(records.reader(), site.id)[0]
        for number in range(JOBS):
            order = BuildOrder(production, "refs/heads/main", f"{number:040x}", SYSTEM)
            queued = await jobs.commit(functools.partial(queue_build, order=order))
        secret, key = mint("bench", ["*"])
        records.write(lambda db: api_keys.add(db, key))

        def absent(*_: object) -> NoReturn:
            raise NotImplementedError

        vault = Vault(bytes(KEY_BYTES))
        api = build_api(
            ApiDeps(
                records=records,
                jobs=jobs,
                sites=sites,
                pipeline=Pipeline(jobs, repositories),
                domains=Domains(jobs, PlatformNames()),
                dns=DnsHelp(PlatformNames()),
                variables=Variables(jobs, vault),
                messenger=Messenger(jobs, vault, render),
                authenticator=Authenticator(records),
                addresses=Addresses(
                    lambda env: f"http://{env.hostname}.localhost", "http://127.0.0.1"
                ),
                manifest_bytes=absent,
                envelope_bytes=absent,
                open_export=absent,
            )
        )
        app = web.Application()
        api.mount(app)
        await _until_told(app, f"{secret.reveal()} {queued.job.id}")
        records.close()


# -- the asker ------------------------------------------------------------------------------------


def request_of(path: str, secret: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()


def body_of(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as one:
        answer = _answer(one, request)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body


def rate(port: int, request: bytes, seconds: float) -> tuple[float, int]:
    """Return answers per second, and how many there were, over some connections.

    Each connection has one question at a time.
    """
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
    try:
        lengths = {len(_answer(one, request)) for one in sockets}
        (length,) = lengths  # answers differ in ids and dates, not in length
        return _rate(sockets, request, length, seconds)
    finally:
        for one in sockets:
            one.close()


def _rate(
    sockets: list[socket.socket], request: bytes, length: int, seconds: float
) -> tuple[float, int]:
    poll = select.epoll()
    by_number = {one.fileno(): one for one in sockets}
    missing = dict.fromkeys(by_number, length)
    for number, one in by_number.items():
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(number, select.EPOLLIN)
        one.send(request)
    answers, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for number, _ in poll.poll(1):
            missing[number] -= len(by_number[number].recv(1 << 16))
            if missing[number] == 0:
                answers += 1
                missing[number] = length
                by_number[number].send(request)
    poll.close()
    return answers / (now - began), answers


def _answer(one: socket.socket, request: bytes) -> bytes:
    one.send(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += one.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        more = one.recv(1 << 16)
        data, body = data + more, body + more
    return data


# -- the comparison -------------------------------------------------------------------------------


class Server:
    """One of the two servers, as a process."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.api_reads", *arguments],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        port, *self.hello = self._process.stdout.readline().decode().split()
        self.port = int(port)

    def cpu_s(self) -> float:
        """Seconds of processor time so far: what a busy machine does not change much."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.communicate(timeout=20)


def paths_of(job_id: str) -> dict[str, str]:
    """What is read, by its name in the table."""
    site = "/v1/sites/acme-store"
    environment = f"{site}/environments/production"
    return dict(zip(READS, (f"/v1/jobs/{job_id}", site, environment, LIST), strict=True))


def compare(rounds: int) -> list[float]:
    """Print a line per kind of read; return the ratios."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        api = Server("--api", folder)
        secret, job_id = api.hello
        print(f"{'':<18} {'reads per second':^31} {'processor time each':^26}")
        print(f"{'':<18} {'API':>9} {'bare':>9} {'ratio':>11} {'API':>14} {'bare':>11}")
        for name, path in paths_of(job_id).items():
            asked = request_of(path, secret)
            sample = Path(folder) / "body"
            sample.write_bytes(body_of(api.port, asked))
            bare = Server("--bare", str(sample))
            ratios.append(_compare(name, api, asked, bare, rounds))
            bare.stop()
        api.stop()
    return ratios


@dataclass
class Taken:
    """What one server did in all rounds that count."""

    server: Server
    request: bytes
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def run(self, *, counts: bool) -> None:
        began = self.server.cpu_s()
        per_second, answers = rate(self.server.port, self.request, ROUND_S)
        if counts:
            self.rates.append(per_second)
            self.cpu_us.append((self.server.cpu_s() - began) / answers * 1e6)


def _compare(name: str, api: Server, asked: bytes, bare: Server, rounds: int) -> float:
    ours, theirs = Taken(api, asked), Taken(bare, request_of("/", "x"))
    for number in range(rounds + 1):
        ours.run(counts=number > 0)  # the first round warms up
        theirs.run(counts=number > 0)
    median = statistics.median
    ratio = median(a / b for a, b in zip(ours.rates, theirs.rates, strict=True))
    print(
        f"{name:<18} {median(ours.rates):9.0f} {median(theirs.rates):9.0f} {ratio:11.2f}"
        f" {median(ours.cpu_us):11.0f} us {median(theirs.cpu_us):8.0f} us",
        flush=True,
    )
    return ratio


def main() -> int:
    """Return 1 when reading one job or one site is slower than the target."""
    ratios = compare(ROUNDS)
    print(f"target: one job and one site at {TARGET:.2f} or more")
    return int(min(ratios[:2]) < TARGET)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--api", type=Path)
    parser.add_argument("--bare", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.api:
        asyncio.run(serve_api(options.api))
    elif options.bare:
        asyncio.run(serve_bare(options.bare.read_bytes()))
    else:
        ROUNDS = options.rounds
        sys.exit(main())
