"""Ports for programs that are told where to listen, and cannot be handed a socket."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below those that the kernel gives to clients, which could have one before it is listened on, and
# below those that site hosts give to web processes.
FIRST, LAST = 10_000, 20_000
WORKERS_MAX = 64

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS_MAX
_ours = range(FIRST + _worker, LAST, WORKERS_MAX)
_in_turn = itertools.cycle(random.sample(_ours, len(_ours)))  # none is soon given a second time


def free_port() -> int:
    """Return a port that nobody has, and that no other test is given meanwhile."""
    for port in itertools.islice(_in_turn, len(_ours)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all ports are taken")
