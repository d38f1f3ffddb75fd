"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import memory

memory.use()
# A machine that does other things besides is slow, which says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


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
