"""Pushes through nginx, as docs/service.md sets it up, with nginx's own times otherwise."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.scenarios.conftest import Answer, WorkTree, fetch, wait_until

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
PAGE = Path(__file__).parents[2] / "docs" / "service.md"
SETTINGS = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {lines}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; }} }}
}}
"""
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


def documented_lines() -> str:
    """What the page says to write, but for the time between two bytes: 60 s have to do."""
    (lines,) = re.findall(r"for nginx that is:\n\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    left = [line for line in lines.splitlines() if not line.startswith("proxy_read_timeout")]
    assert len(left) == len(lines.splitlines()) - 1
    return "\n  ".join(left)


class Front:
    """An nginx before a server's git endpoint."""

    def __init__(self, folder: Path, behind: int) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        text = SETTINGS.format(
            folder=folder, port=self.port, behind=behind, lines=documented_lines()
        )
        (folder / "nginx.conf").write_text(text)
        self.process = subprocess.Popen([NGINX, "-c", folder / "nginx.conf", "-e", "stderr"])

    def answer(self, path: str, **how: object) -> Answer:
        return fetch(self.port, path, **how)

    def errors(self) -> str:
        return (self.folder / "error.log").read_text()

    def keeps_bodies(self) -> bool:
        """Say whether it wrote a body to its disk first, which takes as much room there."""
        return "is buffered to a temporary file" in self.errors()


@pytest.fixture
def front(server, tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path / "nginx", server.port)
    try:
        wait_until(lambda: made.answer("/").status == 200, "nginx answers")
        yield made
    finally:
        made.process.terminate()
        made.process.wait(30)


def through(front: Front, work: WorkTree) -> WorkTree:
    work.git("remote", "set-url", "managed", f"http://127.0.0.1:{front.port}/{work.site}.git")
    return work


def test_pushes_and_clones_pass_in_every_form_of_body(server, front, tmp_path: Path) -> None:
    work = through(front, server.work())
    work.commit({"index.html": "through nginx", "large": random.Random(3).randbytes(300_000)})
    assert "production is live" in work.push()  # with a known length
    work.git("config", "http.postBuffer", "65536")
    work.commit({"large": random.Random(4).randbytes(300_000)})
    assert "production is live" in work.push("main", "main:topic")  # in chunks
    assert server.serves("through nginx")
    url = f"http://x:{server.token}@127.0.0.1:{front.port}/acme-store.git"
    work.git("clone", "-q", "--mirror", url, str(tmp_path / "copy.git"))

    tip = work.git("rev-parse", "main").stdout.strip()
    command = f"{tip} {'0' * 40} refs/heads/topic\0report-status\n".encode()
    body = f"{len(command) + 4:04x}".encode() + command + b"0000"
    (tmp_path / "body").write_bytes(gzip.compress(body))
    sent = ["Content-Encoding: gzip", "Expect: 100-continue", "Transfer-Encoding: chunked"]
    sent += ["Content-Type: application/x-git-receive-pack-request"]
    headers = [word for header in sent for word in ("-H", header)]
    asked = ["--data-binary", f"@{tmp_path / 'body'}", "-u", f"x:{server.token}"]
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "-v",
            *asked,
            *headers,
            f"{url.replace(f'x:{server.token}@', '')}/git-receive-pack",
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"ok refs/heads/topic" in done.stdout, done.stderr
    assert b"100 Continue" in done.stderr
    assert not front.keeps_bodies()
    assert " [error] " not in front.errors()


@pytest.mark.soak
@pytest.mark.own_server
@pytest.mark.timeout(1800)
def test_a_gigabyte_passes_without_being_kept(server, front) -> None:
    work = through(front, server.work())
    numbers = random.Random(5)
    for number in range(20):
        (work.path / f"big{number}").write_bytes(numbers.randbytes(50 << 20))
    work.git("config", "core.compression", "0")
    work.git("config", "core.bigFileThreshold", "1m")
    for words in (
        ("add", "--all"),
        ("commit", "-q", "-m", "large"),
        ("push", "managed", "main:refs/tags/large"),
    ):
        subprocess.run(["git", *words], cwd=work.path, env=server.environ, check=True, timeout=900)
    tip = work.git("rev-parse", "main").stdout.strip()
    assert tip in work.git("ls-remote", "managed", "refs/tags/large").stdout
    assert not front.keeps_bodies()
