"""A power cut at a switch: release folders are not synced, and verified at each start instead."""

from __future__ import annotations

from tests.power import disk_of, needs_disks

pytestmark = needs_disks


async def test_a_release_serves_whole_after_a_power_cut_right_after_its_switch(
    shelf, control, another_host, visitors, wanted
):
    host = another_host
    tree = {f"{number}.html": f"page {number}" * 100 for number in range(20)}
    old = shelf.put({**tree, "index.html": "old"})
    new = shelf.put({**{path: f"new {text}" for path, text in tree.items()}, "index.html": "new"})
    with disk_of("ext4", lambda _: None) as disk:
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
