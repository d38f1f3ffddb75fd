"""`make demo`: the whole path on this machine, with the commands that you would type.

It starts a server in a fresh folder, pushes an example site with the real git, changes it, promotes
it and rolls it back, and looks at the site from outside after each step. What stands behind a `$`
can be pasted into a shell and does the same there. Standard library only.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

BIN = Path(sys.executable).parent
SITE = Path(__file__).resolve().parent / "static"
CONTROL_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
CREDENTIALS = "!f() { echo username=demo; echo password=$FORGE_TOKEN; }; f"
ROOT_MODE = 0o711  # builders and the site host are users of their own and walk through it
REMOVE_S = 10.0
WHAT = """\
This starts a gitd server in a folder of its own, pushes a small site to it with git, and promotes it
and rolls it back; after each step it looks at the site as a visitor would. It takes some seconds.
The lines with a $ are the commands that it runs: you can repeat them in a shell of your own."""


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
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    @contextlib.contextmanager
    def start(self, command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command line; it does not outlive what is done with it."""
        folder = self.work if self.work.exists() else self.root
        with subprocess.Popen(
            shlex.split(command), env=self.environ, cwd=folder, **options
        ) as process:
            try:
                yield process
            except BaseException:
                process.terminate()
                raise

    def run(self, command: str) -> None:
        """Run a command line; the reader sees it and what it prints."""
        say(f"$ {command}")
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            assert process.stdout
            for line in process.stdout:
                say(f"  {line.decode().rstrip()}")
        self.require(command, process)

    def ask(self, command: str) -> str:
        """Run a command line that is shown otherwise, or not at all; return what it printed."""
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout
            answer = process.stdout.read().decode().strip()
        self.require(command, process)
        return answer

    def require(self, command: str, process: subprocess.Popen[bytes]) -> None:
        if process.returncode != 0:
            raise DemoError(f"`{command}` exited with {process.returncode}")

    def push(self, branch: str) -> None:
        """Push as at a terminal: git then shows progress, and waits until the release is live."""
        command = f"git push managed {branch}"
        say(f"$ {command}")
        ours, theirs = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as screen:
            with self.start(command, stdout=theirs, stderr=theirs) as process:
                os.close(theirs)
                for line in lines_of(screen):
                    say(f"  {line}")
        self.require(command, process)

    def export(self, name: str, value: str) -> None:
        say(f"$ export {name}={value}")
        self.environ[name] = value

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
        if old not in page.read_text():
            raise DemoError(f"{page} has no {old!r}")
        self.run(f"sed -i 's/{old}/{new}/' index.html")

    def count(self, command: str) -> int:
        return len(json.loads(self.ask(command)))

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        command = (
            f"gitd serve --data {self.data} --listen 127.0.0.1:{self.api} "
            f"--sites 127.0.0.1:{self.sites}"
        )
        say(f"$ {command} 2> {self.log} &")
        with (
            self.log.open("wb") as log,
            # A session of its own: Ctrl-C is for this program, which then ends the server.
            self.start(
                command, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                assert process.stdout
                for _ in range(2):
                    line = process.stdout.readline().decode()
                    if not line:
                        raise DemoError(f"gitd ended: {self.log.read_text()}")
                    say(f"  {line.rstrip()}")
                yield
            finally:
                process.terminate()
                if process.wait(30) != 0:
                    say(f"gitd exited with {process.returncode}; see {self.log}")

    @property
    def log(self) -> Path:
        return self.root / "gitd.log"


def main(*, once: bool) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT may come ignored
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C
    say(WHAT)
    demo = Demo(Path(tempfile.gettempdir(), f"gitd-demo-{os.getpid()}"))
    kept = False
    try:
        title("A server")
        say(f"$ export PATH={BIN}:$PATH")
        make_folder(demo)
        with demo.server():
            began = time.monotonic()
            show(demo)
            say("")
            say(f"All of it took {time.monotonic() - began:.1f} s.")
            if not once:
                wait(demo)
    except KeyboardInterrupt:
        say("\nStopped in the middle; everything is removed.")
        return 130
    except (DemoError, subprocess.TimeoutExpired, OSError) as error:
        kept = True
        say(f"\nThe demo failed: {error}")
        say(f"Everything is kept in {demo.root}; the log is {demo.log}.")
        return 1
    finally:
        if not kept:
            remove(demo.root)
    return 0


def remove(folder: Path) -> None:
    """Remove the folder; what a command that was broken off still writes goes with it."""
    end = time.monotonic() + REMOVE_S
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def make_folder(demo: Demo) -> None:
    demo.root.mkdir()
    demo.root.chmod(ROOT_MODE)
    say(f"$ mkdir -m {ROOT_MODE:o} {demo.root}")


def show(demo: Demo) -> None:
    title("A site, and a key to push to it with")
    demo.run(f"gitd site create acme-store --data {demo.data}")
    command = f"gitd key create --data {demo.data} --label demo --preset deploy-bot"
    say(f"$ export FORGE_TOKEN=$({command})")
    demo.environ["FORGE_TOKEN"] = demo.ask(command)
    demo.export("FORGE_URL", f"http://127.0.0.1:{demo.api}")

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
    demo.run(f"cp -r {SITE} {demo.work}")
    say(f"$ cd {demo.work}")
    demo.run("git init --quiet --initial-branch main")
    demo.run("git config user.name Demo")
    demo.run("git config user.email demo@example.com")
    demo.run("git add .")
    demo.run("git commit --quiet --message one")
    demo.run(f"git remote add managed http://127.0.0.1:{demo.api}/acme-store.git")
    demo.run(f"git config credential.helper {shlex.quote(CREDENTIALS)}")


def wait(demo: Demo) -> None:
    """Leave it running until Ctrl-C."""
    say("")
    say(f"Production:  http://acme-store.localhost:{demo.sites}")
    say(f"Staging:     http://acme-store--staging.localhost:{demo.sites}")
    say(f"Repository:  {demo.work} (edit, commit, git push managed main)")
    say("")
    say("To go on in another shell:")
    say(f"  cd {demo.work}; export PATH={BIN}:$PATH FORGE_URL={demo.environ['FORGE_URL']}")
    say(f"  export FORGE_TOKEN={demo.environ['FORGE_TOKEN']}")
    say("")
    with contextlib.suppress(KeyboardInterrupt):
        say("Ctrl-C ends it and removes everything.")
        signal.pause()
    say("\nStopping the server; everything is removed.")


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
    sys.exit(main(once=parser.parse_args().once))
