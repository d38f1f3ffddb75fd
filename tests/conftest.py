"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import memory

gc.disable()  # until all tests are known: what is made till then is no garbage
memory.use()
# A machine that does other things besides is slow, which says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# What `.ci/run` installs, or asks: a test that says that one of these is missing was to run.
IS_INSTALLED = re.compile(
    "builds have no |is not here|not installed|no curl|registry|registries|this machine has no "
    r"(npm|pip|uv|yarn|composer)|needs (b3sum|nginx|node|php|strace|systemd-analyze|/usr/bin/node)"
)


def pytest_collection_finish() -> None:
    """Let the garbage collector look but once through the tests themselves, which stay."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no test go silent where all that it needs was to be installed: a whole run, as root."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and must_run(os.environ, os.geteuid()):
        told = report.longrepr
        reason = (told[2] if isinstance(told, tuple) else str(told)).removeprefix("Skipped: ")
        if IS_INSTALLED.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} was to run here, and did not: {reason}"
    return report


def must_run(environ: Mapping[str, str], uid: int) -> bool:
    return environ.get("CI") == "true" and uid == 0


@pytest.fixture(scope="session", autouse=True)
def loggers_are_not_bound_for_good() -> Iterator[None]:
    """Let a command that is run in this process configure the log for a while only."""
    configure = structlog.configure

    def configure_for_now(**wanted: Any) -> None:
        configure(**{**wanted, "cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_for_now)
        yield


@pytest.fixture(autouse=True)
def log_is_as_it_was() -> Iterator[None]:
    """Leave no other test the log as this one, or a command that it ran, configured it."""
    yield
    structlog.reset_defaults()
