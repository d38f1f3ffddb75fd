"""Run sandboxes as a user that is not root, and tell how they went. Started by the tests.

The arguments: the uid to become, or nothing; `groups` or `watching`, the way limits are kept, or
`weighed`, in groups of little weight; maybe the folder that sandboxes are named after.
Each line of input is a JSON object: spec, and kill_after_s, kill_at_bytes (of output),
terminate_after_s and cancel_after_s (the start), which may be null. Each is answered by a JSON
object in a line:
status or error, exceeded, halted_s, output, seconds, started_s, survivors; `(halted)` is in the
output where it was halted first.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import structlog

from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.builds.sandbox.spec import Bind, SandboxSpec
from hooks.process import drop_privileges


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uid = int(sys.argv[1]) if sys.argv[1] else None
    sandboxes = Sandboxes()
    if sys.argv[2] != "watching":
        owner = (uid, uid) if uid is not None else None
        weight = 10 if sys.argv[2] == "weighed" else None
        sandboxes.keep_in_groups("test", owner=owner, weight=weight)
    if uid is not None:
        drop_privileges(uid, uid)
    if len(sys.argv) > 3:
        sandboxes.end_leftovers(Path(sys.argv[3]))
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(sandboxes, json.loads(line)))), flush=True)


async def run(sandboxes: Sandboxes, order: dict[str, Any]) -> dict[str, object]:
    raw = order["spec"]
    spec = SandboxSpec(
        argv=tuple(raw.pop("argv")),
        binds=tuple(Bind(Path(a), b, writable=c) for a, b, c in raw.pop("binds", ())),
        limits=Limits(**raw.pop("limits", {})),
        cwd=raw.pop("cwd", "/"),
        **raw,
    )
    output = bytearray()
    began = time.perf_counter()
    loop = asyncio.get_running_loop()

    def take(data: bytes) -> None:
        output.extend(data)
        if (at_bytes := order.get("kill_at_bytes")) is not None and len(output) >= at_bytes:
            sandbox.kill()

    starting = asyncio.ensure_future(
        sandboxes.start(spec, on_output=take, on_halted=lambda: output.extend(b"(halted)\n"))
    )
    if (after_s := order.get("cancel_after_s")) is not None:
        await asyncio.wait({starting}, timeout=after_s)
        starting.cancel()
    try:
        sandbox = await starting
        started_s = time.perf_counter() - began
        if sandbox.listener is not None:
            greeting = loop.create_task(greet(sandbox.listener))
        if (after_s := order.get("kill_after_s")) is not None:
            loop.call_later(after_s, sandbox.kill)
        if (after_s := order.get("terminate_after_s")) is not None:
            loop.call_later(after_s, sandbox.terminate)
        status = await sandbox.wait()
        if sandbox.listener is not None:
            greeting.cancel()
    except asyncio.CancelledError:
        return {"seconds": time.perf_counter() - began, "survivors": survivors()}
    except SandboxUnavailableError as error:
        return {"error": str(error), "survivors": survivors()}
    return {
        "status": status,
        "exceeded": sandbox.exceeded,
        "halted_s": sandbox.halted_s,
        "output": output.decode(errors="replace"),
        "output_bytes": len(output),
        "seconds": time.perf_counter() - began,
        "started_s": started_s,
        "survivors": survivors(),
    }


async def greet(listener: socket.socket) -> None:
    """Say a word to who connects from inside."""
    with listener:
        listener.setblocking(False)
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        with connection:
            connection.sendall(b"from outside\n")


def survivors() -> list[str]:
    """What still runs below this process: nothing may."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            name, _, rest = stat.partition(" (")[2].rpartition(") ")
            if int(rest.split()[1]) == os.getpid():
                found.append(name)
    return found


main()
