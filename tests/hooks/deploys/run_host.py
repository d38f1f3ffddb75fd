"""Runs a site host as `gitd host` does: python run_host.py '{"socket": ..., ...}'."""

from __future__ import annotations

# isort: skip_file
# ruff: noqa: E402 - the first two lines come first, as in `gitd host`
from gitd import starting

starting.load_aiohttp()

import json
import sys
from pathlib import Path

import structlog

from hooks.deploys import foresight, runtime
from hooks.deploys.host import HostConfig, main

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    names = ("socket", "directory", "store", "credentials")
    paths = {name: Path(given.pop(name)) for name in names if name in given}
    level = given.pop("log_level", 20)
    foresight.FRESH_S = given.pop("fresh_s", foresight.FRESH_S)
    runtime.PORTS = range(*given.pop("ports", (runtime.PORTS.start, runtime.PORTS.stop)))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    main(HostConfig(**paths, **given))
