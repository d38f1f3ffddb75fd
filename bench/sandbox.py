"""The start of a sandbox over the start of a bare process: /bin/true in both, to its end.

Needs root, to give the sandboxes a user of their own and control groups.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from bench.measure import in_turn, quantiles, report
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.builds.sandbox.spec import SandboxSpec
from hooks.process import Process, drop_privileges

UID = 60689
ROUNDS = 60
TARGET_S = 0.015
SPEC = SandboxSpec(
    argv=("/bin/sh", "-c", "exec true"), cwd="/", is_background=True, limits=Limits(cpu_s=60)
)
WAYS = ("groups", "watching")


def unheard(_: bytes) -> None:
    """Drop what a process says."""


async def bare(_: int) -> None:
    process = Process.start(SPEC.argv, environ={}, on_output=unheard)
    assert await process.wait() == 0


async def sandboxed(sandboxes: Sandboxes) -> None:
    sandbox = await sandboxes.start(SPEC, on_output=unheard)
    assert await sandbox.wait() == 0


def measure(way: str) -> None:
    sandboxes = Sandboxes()
    if way == "groups":
        sandboxes.keep_in_groups("bench", owner=(UID, UID), weight=10)
    drop_privileges(UID, UID)
    with asyncio.Runner() as runner:
        pair = in_turn(
            f"limits by {way}",
            lambda _: runner.run(sandboxed(sandboxes)),
            lambda number: runner.run(bare(number)),
            rounds=ROUNDS,
        )
    report("start to end", [pair])
    over_s = [ours - peer for ours, peer in zip(pair.ours_s, pair.peer_s, strict=True)]
    print(quantiles("over a bare process (target: median under 15 ms)", over_s))


def main() -> int:
    if os.geteuid() != 0:
        sys.stderr.write("needs: root\n")
        return 1
    for way in WAYS:
        subprocess.run([sys.executable, "-m", "bench.sandbox", way], check=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        sys.exit(main())
