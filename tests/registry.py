"""A registry of packages: whether it answers this machine."""

from __future__ import annotations

import socket
import time

_PAUSES_S = (0, 2, 5)
_ANSWERS_S = 5


def in_the_way(host: str, port: int) -> OSError | None:
    """Say why there is no connection, after some tries; None when there is one."""
    failed = None
    for pause_s in _PAUSES_S:
        time.sleep(pause_s)
        try:
            socket.create_connection((host, port), _ANSWERS_S).close()
        except OSError as error:
            failed = error
        else:
            return None
    return failed
