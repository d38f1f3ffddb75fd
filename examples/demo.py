"""`make demo`: the whole path on this machine, with the commands that you would type.

It starts a server in a fresh folder, pushes an example site with the real git, changes it, promotes
it and rolls it back, and looks at the site from outside after each step. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

BIN = Path(sys.executable).parent
SITE = Path(__file__).parent / "static"
CONTROL_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
CREDENTIALS = "!f() { echo username=demo; echo password=$FORGE_TOKEN; }; f"


class DemoError(Exception):
    """A step did not have the effect that it should have."""


class Demo:
    """One run. `environ` is what a shell that repeats the commands would have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.work = root / "acme-store"
        self.api = free_port(8080)
        self.sites = free_port(8081)
        self.environ = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FORGE_URL": f"http://127.0.0.1:{self.api}",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def run(self, command: str, *, shown: bool = True) -> str:
        """Run a command line and return what it printed; the reader sees both."""
        if shown:
            say(f"$ {command}")
        process = subprocess.Popen(
            shlex.split(command),
            env=self.environ,
            cwd=self.work if self.work.exists() else self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed = []
        assert process.stdout
        for line in process.stdout:
            printed.append(line)
            if shown:
                say(f"  {line.rstrip()}")
        if process.wait() != 0:
            raise DemoError(f"`{command}` exited with {process.returncode}: {''.join(printed)}")
        return "".join(printed)

    def push(self, branch: str) -> None:
        """Push as at a terminal: git then shows progress, and waits until the release is live."""
        command = f"git push managed {branch}"
        say(f"$ {command}")
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            process = subprocess.Popen(
                shlex.split(command), env=self.environ, cwd=self.work, stdout=theirs, stderr=theirs
            )
            os.close(theirs)
            for line in lines_of(screen):
                say(f"  {line}")
        if process.wait() != 0:
            raise DemoError(f"`{command}` exited with {process.returncode}")

    def look(self, host: str) -> tuple[int, str]:
        """What a visitor of `host` gets at /."""
        connection = http.client.HTTPConnection("127.0.0.1", self.sites, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Host": f"{host}:{self.sites}"})
            response = connection.getresponse()
            return response.status, response.read().decode()

    def expect(self, host: str, text: str) -> None:
        status, body = self.look(host)
        if status != 200 or text not in body:
            raise DemoError(f"{host} answered {status} without {text!r}")
        say(f"  checked: http://{host}:{self.sites} answers with “{text}”")

    def edit(self, old: str, new: str) -> None:
        page = self.work / "index.html"
        text = page.read_text()
        if old not in text:
            raise DemoError(f"{page} has no {old!r}")
        page.write_text(text.replace(old, new))
        say(f"$ sed -i 's/{old}/{new}/' index.html")

    def count(self, command: str) -> int:
        return len(json.loads(self.run(command, shown=False)))

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        command = [
            *("gitd", "serve", "--data", str(self.data)),
            *("--listen", f"127.0.0.1:{self.api}", "--sites", f"127.0.0.1:{self.sites}"),
        ]
        say(f"$ {shlex.join(command)} &")
        log = (self.root / "gitd.log").open("wb")
        with (
            log,
            subprocess.Popen(
                command, env=self.environ, stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            try:
                assert process.stdout
                for _ in range(2):
                    line = process.stdout.readline()
                    if not line:
                        raise DemoError(f"gitd ended: {(self.root / 'gitd.log').read_text()}")
                    say(f"  {line.rstrip()}")
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                if process.wait(30) != 0:
                    say(f"gitd exited with {process.returncode}; see {self.root}/gitd.log")


def main(*, once: bool) -> None:
    root = Path(tempfile.mkdtemp(prefix="gitd-demo-"))
    root.chmod(0o711)  # builders and the site host are users of their own and walk through it
    demo = Demo(root)
    kept = False
    try:
        with demo.server():
            began = time.monotonic()
            show(demo)
            say("")
            say(f"All of it took {time.monotonic() - began:.1f} s.")
            if not once:
                wait(demo)
    except (DemoError, subprocess.TimeoutExpired, OSError) as error:
        kept = True
        say(f"\nThe demo failed: {error}\nEverything is kept in {root}; the log is gitd.log there.")
        sys.exit(1)
    finally:
        if not kept:
            shutil.rmtree(root, ignore_errors=True)


def show(demo: Demo) -> None:
    title("A site, and a key to push to it with")
    demo.run(f"gitd site create acme-store --data {demo.data}")
    command = f"gitd key create --data {demo.data} --label demo --preset deploy-bot"
    say(f"$ export FORGE_TOKEN=$({command})")
    made = json.loads(demo.run(f"{command} --json", shown=False))
    demo.environ["FORGE_TOKEN"] = made["secret"]
    say(f"$ export FORGE_URL={demo.environ['FORGE_URL']}")

    title("Push main: it goes live")
    copy_site(demo)
    demo.push("main")
    demo.expect("acme-store.localhost", "Version one")

    title("Push staging: a second environment")
    demo.run("git checkout --quiet -b staging")
    demo.edit("Version one", "Version two")
    demo.run("git commit --quiet --all --message two")
    demo.push("staging")
    demo.expect("acme-store--staging.localhost", "Version two")
    demo.expect("acme-store.localhost", "Version one")

    title("Promote staging to production: the same artifact, no build")
    builds = demo.count("mf builds --site acme-store --env production --json")
    demo.run("mf promote --site acme-store --env staging --to production --wait")
    demo.expect("acme-store.localhost", "Version two")
    if demo.count("mf builds --site acme-store --env production --json") != builds:
        raise DemoError("the promotion built something")

    title("Roll production back")
    demo.run("mf rollback --site acme-store --env production --wait")
    demo.expect("acme-store.localhost", "Version one")
    demo.run("mf releases --site acme-store --env production")


def copy_site(demo: Demo) -> None:
    shutil.copytree(SITE, demo.work)
    demo.run("git init --quiet --initial-branch main", shown=False)
    for name, value in identity().items():
        demo.run(f"git config {name} {shlex.quote(value)}", shown=False)
    demo.run("git add .", shown=False)
    demo.run("git commit --quiet --message one", shown=False)
    say(f"$ cd {demo.work}")
    demo.run(f"git remote add managed http://127.0.0.1:{demo.api}/acme-store.git")
    demo.run(f"git config credential.helper {shlex.quote(CREDENTIALS)}")


def identity() -> Mapping[str, str]:
    return {"user.name": "Demo", "user.email": "demo@example.com"}


def wait(demo: Demo) -> None:
    say("")
    say(f"Production:  http://acme-store.localhost:{demo.sites}")
    say(f"Staging:     http://acme-store--staging.localhost:{demo.sites}")
    say(f"Repository:  {demo.work} (edit, commit, git push managed main)")
    say("")
    say("To go on in another shell:")
    say(f"  cd {demo.work}; export PATH={BIN}:$PATH FORGE_URL={demo.environ['FORGE_URL']}")
    say(f"  export FORGE_TOKEN={demo.environ['FORGE_TOKEN']}")
    say("")
    say("Ctrl-C ends it and removes everything.")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def lines_of(screen: BinaryIO) -> Iterator[str]:
    """The lines that stay on a screen: the last state of each, without its control codes."""
    pending = b""
    while True:
        try:
            chunk = screen.read(4096)
        except OSError:  # how a terminal says that nobody has it open any more
            break
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            states = [part for part in line.split(b"\r") if part.strip()]
            text = CONTROL_CODES.sub(b"", states[-1] if states else b"").decode(errors="replace")
            yield text.rstrip()


def free_port(wanted: int) -> int:
    """The usual port if nothing has it, else one that nothing has."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("no free port on 127.0.0.1")


def title(text: str) -> None:
    say(f"\n— {text}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit when all steps are checked")
    main(once=parser.parse_args().once)
