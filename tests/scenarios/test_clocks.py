"""A site host whose clock is wrong, beside a control whose clock is right. Case 25."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.scenarios.conftest import Server
from tests.scenarios.test_trust import PLACE, pushed, served_state

pytestmark = pytest.mark.own_server

TEN_YEARS_S = 10 * 365 * 24 * 3600
# What Python loads at the start of each process of a server: the host's clock, and no other's.
SHIFTED = """
import sys, time
if "host" in sys.orig_argv:
    _real, _real_ns = time.time, time.time_ns
    time.time = lambda: _real() + {shift_s}
    time.time_ns = lambda: _real_ns() + {shift_s} * 1_000_000_000
"""


def start(server: Server, folder: Path, shift_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SHIFTED.format(shift_s=shift_s))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        server.is_anew = True  # a process of its own, which loads that
        server.start()


def written_at(server: Server) -> float:
    """What the host took for the time of its last switch."""
    return served_state(server)["served"]["modified_s"] - 2


@pytest.mark.timeout(200)
def test_host_whose_clock_is_wrong_rolls_and_goes_back_as_ever(
    stopped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead by ten years, then behind by as many, then right: the sequence alone decides."""
    start(stopped, tmp_path / "clock", 0, monkeypatch)
    stopped.new_site()
    work = stopped.work()
    pushed(stopped, work, "right")
    before, serves = served_state(stopped)["release_sequence"], "right"
    for name, shift_s in (("ahead", TEN_YEARS_S), ("behind", -TEN_YEARS_S), ("right again", 0)):
        stopped.stop()
        start(stopped, tmp_path / "clock", shift_s, monkeypatch)
        stopped.wait_for(serves)  # whenever that was
        pushed(stopped, work, name)
        assert served_state(stopped)["release_sequence"] > before
        if shift_s > 0:
            assert written_at(stopped) > time.time() + TEN_YEARS_S / 2, "the clock is wrong"
        stopped.mf("rollback", *PLACE, "--wait")
        assert not stopped.serves(name)
        serves = f"{name}, once more"
        pushed(stopped, work, serves)
        sequence = served_state(stopped)["release_sequence"]
        assert sequence == before + 3
        before = sequence
        stopped.gitd("check")
    releases = json.loads(stopped.mf("releases", *PLACE, "--json").stdout)
    assert len(releases) == 1 + 3 * 3
