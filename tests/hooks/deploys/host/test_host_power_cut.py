"""A power cut at a switch: release folders are not synced, and verified at each start instead."""

from __future__ import annotations

import pytest

from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState
from tests.crashing import share
from tests.hooks.deploys.host.test_state import SWITCH_CHILD, Switch, expect_whole
from tests.power import KINDS, KINDS_IN_TURN, disk_of, needs_disks
from tests.recorded import record

ENVIRONMENT = "first/environments/env_1"

pytestmark = needs_disks


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_restless", [False, True], ids=["quiet", "restless"])
@pytest.mark.parametrize("kind", KINDS)
def test_power_cut_at_any_moment_of_a_switch_leaves_the_old_release_or_the_new(kind, is_restless):
    state = EnvironmentState("env_1", "acme-store", "production", "production", ("a.localhost",))
    made = []
    with disk_of(kind, lambda where: made.append(Switch(where, state))) as disk:
        (old, new) = made[0].names
        switching = record(
            disk,
            lambda where: [SWITCH_CHILD, where / ENVIRONMENT, new],
            is_restless=is_restless,
        )
        assert switching.status == 0
        for kept, is_done in switching.cuts(share(switching.moments)):
            served = expect_whole(EnvironmentFolder(kept / ENVIRONMENT), (old, new))
            assert served == new or not is_done


@pytest.mark.parametrize("kind", KINDS_IN_TURN)
async def test_a_release_serves_whole_after_a_power_cut_right_after_its_switch(
    shelf, control, another_host, visitors, wanted, kind
):
    host = another_host
    tree = {f"{number}.html": f"page {number}" * 100 for number in range(20)}
    old = shelf.put({**tree, "index.html": "old"})
    new = shelf.put({**{path: f"new {text}" for path, text in tree.items()}, "index.html": "new"})
    with disk_of(kind, lambda _: None) as disk:
        host.directory = disk.begin() / "host"
        host.start()
        for pin in (old, new):
            report = await control.roll(wanted(pin=pin))
            assert report.status == "serving", report
        kept = disk.cut() / "host"
        host.kill()
        await control.stop()
        host.directory = kept
        host.start()
        visitor = visitors(host.port)
        await visitor.until("new")
        for path, text in tree.items():
            assert await visitor.text(f"/{path}") == f"new {text}"
        assert (kept / "environments/env_1/current/index.html").read_text() == "new"
        host.kill()
