"""A socket that listens inside a sandbox's own network and is held by this process, outside.

So a build finds its proxy at an address of its loopback, and nothing of ours has to run in the
sandbox: no forwarder that the build could end, no socket file that another build could reach.

A process enters a network through the user namespace that owns it, and only while it has a single
thread; so a forked child goes in, opens the socket, hands it out and ends.

Source: setns(2), ioctl_ns(2), user_namespaces(7), unix(7) "SCM_RIGHTS".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import warnings
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_NS_GET_USERNS = 0xB701  # linux/nsfs.h
_IP_FREEBIND = 15  # linux/in.h: the loopback's address may not be there yet
BACKLOG = 128
CHILD_TIMEOUT_S = 10.0  # it takes a millisecond or two


def listen_inside(pid: int, port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port` of the network that the process `pid` is in.

    The process must be of this user, in a user namespace that this user has made. Takes
    milliseconds, and holds up the thread meanwhile.

    Raises:
        OSError: The process is gone, or its network cannot be entered.
    """
    with contextlib.ExitStack() as files:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        files.callback(os.close, network)
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
        files.callback(os.close, owner)
        ours, theirs = socket.socketpair()
        files.enter_context(ours)
        with theirs:
            child_pid = _fork()
            if child_pid == 0:
                _run_child(owner, network, theirs, port)
        return _received(ours, child_pid)


def _fork() -> int:
    with warnings.catch_warnings():
        # From Python 3.12 on a fork beside threads is warned of: the child might wait for a lock
        # that one of them holds. This one takes none: it makes five calls and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _run_child(owner: int, network: int, out: socket.socket, port: int) -> NoReturn:
    """In the child: open the socket and hand it out. The exit status is the error's number."""
    status = errno.EIO
    try:
        for namespace, kind in ((owner, _CLONE_NEWUSER), (network, _CLONE_NEWNET)):
            if _libc.setns(namespace, kind) != 0:
                os._exit(ctypes.get_errno())
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        socket.send_fds(out, [b"."], [listener.fileno()])
        status = 0
    except OSError as error:
        status = error.errno or errno.EIO
    finally:
        os._exit(status)


def _received(ours: socket.socket, child_pid: int) -> socket.socket:
    fds: list[int] = []
    ours.settimeout(CHILD_TIMEOUT_S)
    try:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        os.kill(child_pid, signal.SIGKILL)
        raise
    finally:
        number = os.waitstatus_to_exitcode(os.waitpid(child_pid, 0)[1])
    if not fds:
        number = number if number > 0 else errno.EIO
        raise OSError(number, os.strerror(number))
    return socket.socket(fileno=fds[0])
