"""A scrub beside processes that damage, publish and collect all the time."""

from __future__ import annotations

import pytest

from storage.check import check_store
from storage.digest import Digest
from storage.repair import Repairer
from tests.storage.race_child import CONTENTS
from tests.storage.test_collect_race import race

OTHERS = ("publish", "publish", "collect", "flip")


def scrub_race(shop, *, rounds: int, least_s: float) -> dict[str, int]:
    racers = race(shop, "scrub", rounds=rounds, least_s=least_s, others=OTHERS)
    for racer in racers:
        assert racer.process.returncode == 0, f"{racer.role}: {racer.errors}"
    shop.store.recover()
    repairer = Repairer(shop.store, shop.records)
    findings = check_store(shop.folder / "store", shop.records).findings
    repairer.condemn([found.part for found in findings if found.part is not None])
    report = check_store(shop.folder / "store", shop.records)
    assert all("it counts as absent" in problem for problem in report.problems), report.problems
    assert list(shop.store.layout.tmp.iterdir()) == []
    # Whoever takes the same contents in again mends all of it.
    for first in range(0, CONTENTS, 50):
        tree = {f"f{n}": b"%d" % n * 50 for n in range(first, first + 50)}
        shop.ingest(tree)
    assert check_store(shop.folder / "store", shop.records).problems == ()
    for kept in repairer.quarantine.kept():
        data = (shop.store.layout.quarantine / kept.name).read_bytes()
        assert Digest.of(data) != kept.part.digest, "what is right is not put away"
    counts = {racer.role: len(racer.lines) for racer in racers}
    return {**counts, "found": sum(map(int, racers[0].lines))}


@pytest.mark.timeout(300)
def test_scrub_beside_publishers_and_the_collector_leaves_nothing_wrong(shop) -> None:
    found = scrub_race(shop, rounds=3, least_s=0)
    print(found)
    assert found["found"]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_scrub_in_a_long_race_leaves_nothing_wrong(shop) -> None:
    found = scrub_race(shop, rounds=100, least_s=60)
    print(found)
    assert found["found"] > 100
