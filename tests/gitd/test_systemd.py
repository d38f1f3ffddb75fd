"""The units: what the service manager's own checker says of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_units_pass_the_verifier(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "gitd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    names = []
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = unit.read_text().replace("/opt/gitd", str(tmp_path))
        (tmp_path / unit.name).write_text(text)
        names.append(str(tmp_path / unit.name.replace("@.", "@0.")))
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_of_the_service_are_valid_and_name_the_users_it_makes() -> None:
    from gitd.config import load

    config = load(UNITS / "gitd.toml", {})
    users = {
        line.split()[1]
        for line in (UNITS / "gitd.sysusers").read_text().splitlines()
        if line.startswith("u ")
    }
    assert {"gitd", config.host.user, *config.builders.users} == users
