"""A collector that keeps nothing, against processes that publish, roll and read all the time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from storage.check import check_store
from storage.model import Environment, EnvironmentKind, EnvironmentStatus, Site
from storage.records import environments, sites
from tests.warm import loading, warm

CHILD = Path(__file__).with_name("race_child.py")
OTHERS = ("publish", "publish", "roll", "read", "export")


class Racer:
    """A process of the race, and the lines that it has printed."""

    def __init__(self, role: str, folder: Path, seed: int) -> None:
        self.role = role
        self.lines: list[str] = []
        self.grew = threading.Event()
        self.process = warm(loading(CHILD))(
            [sys.executable, CHILD, role, folder, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [threading.Thread(target=self._hear), threading.Thread(target=self._fail)]
        self.errors = ""
        for thread in self._threads:
            thread.start()

    def _hear(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.strip())
            self.grew.set()
        self.grew.set()

    def _fail(self) -> None:
        self.errors = self.process.stderr.read()

    def wait_for(self, rounds: int) -> None:
        self._wait(lambda: len(self.lines) >= rounds)

    def wait_for_a_find(self) -> None:
        """Until one of the counts that it prints is not zero."""
        self._wait(lambda: any(map(int, self.lines)))

    def _wait(self, is_enough: Callable[[], bool]) -> None:
        while not is_enough() and self.process.poll() is None:
            self.grew.clear()
            self.grew.wait(1)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(60)
        for thread in self._threads:
            thread.join()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()


def prepare(shop) -> None:
    environment = Environment(
        "env_1",
        "site_1",
        "production",
        EnvironmentKind.PRODUCTION,
        "main",
        ephemeral=False,
        status=EnvironmentStatus.ACTIVE,
        hostname="acme-store",
        created_at=0,
    )
    shop.records.write(lambda db: sites.add(db, Site("site_1", "acme-store", "main", 0)))
    shop.records.write(lambda db: environments.add(db, environment))


def race(
    shop, collector: str, *, rounds: int, least_s: float, others: Sequence[str] = OTHERS
) -> list[Racer]:
    prepare(shop)
    roles: Sequence[str] = (collector, *others)
    racers = [Racer(role, shop.folder, seed) for seed, role in enumerate(roles, 1)]
    try:
        end = time.monotonic() + least_s
        for racer in racers:
            racer.wait_for(rounds)
        racers[0].wait_for_a_find()
        while time.monotonic() < end and all(racer.process.poll() is None for racer in racers):
            time.sleep(0.1)
    finally:
        for racer in racers:
            racer.end()
    return racers


def expect_unbroken(shop, racers: list[Racer]) -> None:
    for racer in racers:
        assert racer.process.returncode == 0, f"{racer.role}: {racer.errors}"
    shop.store.recover()
    assert check_store(shop.folder / "store", shop.records).problems == ()


def said(racers: list[Racer]) -> dict[str, object]:
    collector, *others = racers
    counts = {f"{r.role} {n}": len(r.lines) for n, r in enumerate(others)}
    outcomes = Counter(
        line for r in others if r.role in ("roll", "read", "export") for line in r.lines
    )
    return {"swept": sum(map(int, collector.lines)), **counts, **outcomes}


@pytest.mark.timeout(300)
def test_nothing_that_is_in_use_is_taken_and_nobody_starves(shop) -> None:
    racers = race(shop, "collect", rounds=3, least_s=0)
    found = said(racers)
    print(found)
    expect_unbroken(shop, racers)
    assert found["swept"]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nothing_that_is_in_use_is_taken_in_a_long_race(shop) -> None:
    racers = race(shop, "collect", rounds=100, least_s=60)
    found = said(racers)
    print(found)
    expect_unbroken(shop, racers)
    assert found["swept"] > 500
    assert found["rolled"] > 20
    assert found["read"] > 20
    assert found["exported"] > 20


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_race_is_lost_without_the_gate(shop) -> None:
    # The proof that the races above can fail.
    racers = race(shop, "reckless", rounds=1, least_s=60)
    print(said(racers))
    with pytest.raises(AssertionError):
        expect_unbroken(shop, racers)
