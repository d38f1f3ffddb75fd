"""Runs a site host as `gitd host` does: python run_host.py '{"socket": ..., ...}'."""

from __future__ import annotations

# isort: skip_file
# ruff: noqa: E402 - the first two lines come first, as in `gitd host`
from gitd import starting

starting.load_aiohttp()

import ctypes
import errno
import json
import platform
import struct
import sys
from pathlib import Path

import structlog

from hooks.deploys.host import foresight
from hooks.deploys.processes import web_process
from hooks.deploys.host.host import HostConfig, main

NO_NEW_PRIVS, SECCOMP, FILTER = 38, 22, 2  # of prctl(2)


def refuse_watches() -> None:
    """Have the kernel answer as where this user's processes have all epoll watches.

    Source: seccomp(2); linux/seccomp.h.
    """
    number = 233 if platform.machine() == "x86_64" else 21  # epoll_ctl
    steps = (
        *((0x20, 0, 0, 0), (0x15, 0, 3, number)),  # the call's number; others are let through
        *((0x20, 0, 0, 24), (0x15, 0, 1, 1)),  # what is asked for: EPOLL_CTL_ADD
        *((0x06, 0, 0, 0x50000 | errno.ENOSPC), (0x06, 0, 0, 0x7FFF0000)),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for asked in ((NO_NEW_PRIVS, 1, 0, 0, 0), (SECCOMP, FILTER, program)):
        if libc.prctl(*asked) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    names = ("socket", "directory", "store", "credentials")
    given |= {name: Path(given[name]) for name in names if name in given}
    level = given.pop("log_level", 20)
    if given.pop("no_watches", False):
        refuse_watches()
    if "fresh_s" in given:
        vars(foresight)["FRESH_S"] = given.pop("fresh_s")
    if "ports" in given:
        vars(web_process)["PORTS"] = range(*given.pop("ports"))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    main(HostConfig(**given))
