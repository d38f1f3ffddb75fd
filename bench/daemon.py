"""The installed daemon, started for a benchmark and ended after it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


KEPT_S = 30.0  # less than the server keeps a connection that nothing comes on


class Api:
    """The API of a daemon, on a kept connection: one for each thread."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
        self._token = token
        self._used_at = time.monotonic()

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """Call it; returns `data`."""
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        payload = None if body is None else json.dumps(body).encode()
        if time.monotonic() - self._used_at > KEPT_S:
            self._connection.close()  # it is opened again
        self._connection.request(method, f"/v1{path}", body=payload, headers=headers)
        answer = self._connection.getresponse()
        data = answer.read()
        self._used_at = time.monotonic()
        assert answer.status < 300, data
        return json.loads(data)["data"]

    def close(self) -> None:
        self._connection.close()


class Daemon:
    """`gitd serve` on free ports, with a key for everything."""

    def __init__(self, root: Path, **settings: str) -> None:
        """`settings`: more of its process's environment, as `gitd.config` reads it."""
        self.data = root / "data"
        self.port, self.sites_port = free_port(), free_port()
        root.mkdir(mode=0o711)
        root.chmod(0o711)
        self._log = (root / "gitd.log").open("wb")
        self.environ = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            **settings,
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *("gitd", "serve", "--data", str(self.data)),
                *("--listen", f"127.0.0.1:{self.port}"),
                *("--sites", f"127.0.0.1:{self.sites_port}"),
            ],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout
        for _ in range(2):
            assert self._process.stdout.readline(), f"it did not start: see {self._log.name}"
        made = self.gitd("key", "create", "--label", "bench", "--scope", "*", "--json")
        self.token = json.loads(made)["secret"]
        self.environ["FORGE_TOKEN"] = self.token
        self.api = self.new_api()
        self._sites = http.client.HTTPConnection("127.0.0.1", self.sites_port, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        self.api.close()
        self._sites.close()
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=30)
        self._log.close()

    def gitd(self, *arguments: str) -> str:
        return subprocess.run(
            ["gitd", *arguments, "--data", str(self.data)],
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def new_site(self, name: str) -> str:
        """Make a site; returns the URL to push to."""
        self.gitd("site", "create", name)
        return f"http://127.0.0.1:{self.port}/{name}.git"

    def new_api(self) -> Api:
        return Api(self.port, self.token)

    def look(self, name: str, path: str = "/") -> bytes:
        """What a visitor of the environment gets."""
        self._sites.request("GET", path, headers={"Host": f"{name}.localhost"})
        answer = self._sites.getresponse()
        return answer.read()
