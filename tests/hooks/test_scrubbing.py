"""What the scrub says in the server's log."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from hooks.scrubbing import Scrubbing
from storage.repair import Repairer
from storage.scrub import Scrubber, ScrubLimits
from storage.scrub_round import TRUST_EVERY_MS
from tests.spoiling import flip
from tests.storage.conftest import Clock, make_shop


async def test_trust_that_does_not_hold_is_said_once_and_so_is_its_end(tmp_path: Path) -> None:
    shop, clock = make_shop(tmp_path / "shop"), Clock()
    trust = shop.store.layout.trust
    repairer = Repairer(shop.store, shop.records, clock=clock)
    limits = ScrubLimits(bytes_per_s=1 << 40)
    scrubber = Scrubber(repairer, shop.records, [], trust, limits=limits, clock=clock)
    scrubbing = Scrubbing(scrubber, shop.records)
    with capture_logs() as logs:
        flip(trust / "root.1.json")
        await scrubbing.turn()
        clock.now += TRUST_EVERY_MS
        await scrubbing.turn()
        flip(trust / "root.1.json")
        clock.now += TRUST_EVERY_MS
        await scrubbing.turn()
    await scrubbing.close()
    shop.records.close()
    assert [entry["event"] for entry in logs] == ["trust_damaged", "trust_whole"]
    assert "from a backup" in logs[0]["advice"]
