"""What a service manager hands to us and hears from us. Source: sd_listen_fds(3), sd_notify(3)."""

from __future__ import annotations

import os
import socket

_FIRST_FD = 3


def is_given_sockets() -> bool:
    """Whether the service manager opened sockets for this process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def inherited_sockets() -> dict[str, socket.socket]:
    """The listening sockets that the service manager opened for this process, by name."""
    if not is_given_sockets():
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for index in range(count):
        os.set_inheritable(_FIRST_FD + index, False)
        name = names[index] if index < len(names) and names[index] else f"fd{index}"
        found[name] = socket.socket(fileno=_FIRST_FD + index)
    return found


def watchdog_every_s() -> float | None:
    """How often the service manager wants to hear `WATCHDOG=1`; None when it does not.

    Twice as often as it must be. Source: sd_watchdog_enabled(3).
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdigit() and int(usec) > 0 else None


def notify(state: str) -> None:
    """Tell the service manager, if there is one, such as `READY=1` or `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    path = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(state.encode(), path)
