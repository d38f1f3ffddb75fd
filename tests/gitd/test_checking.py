"""`gitd check` where the records themselves cannot be relied on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from gitd.__main__ import cli
from gitd.config import Config
from gitd.control import Control
from gitd.layout import DataFolder
from gitd.stores import note_settings, noted_settings
from hooks.deploys.host.state import EnvironmentState, HostFolder, ServedState
from hooks.deploys.wire import ArtifactPin
from storage.digest import Digest


def test_records_with_text_that_is_none_are_said_like_any_fault(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    with sqlite3.connect(folder.database) as db:
        db.execute(
            "INSERT INTO site(id, name, default_branch, created_at)"
            " VALUES('site_1', CAST(x'1b5d303b7807ff41' AS TEXT), 'main', 0)"  # sets a title
        )
    db.close()
    done = CliRunner().invoke(cli, ["check", "--data", str(folder.root)])
    assert done.exit_code == 1, done.output
    assert "a row of site has bytes that are no text as name" in done.output
    assert "the rest cannot be looked at" in done.output
    assert not {"\x1b", "\x07"} & set(done.output)


def test_records_with_values_that_cannot_be_are_said_like_any_fault(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    with sqlite3.connect(folder.database) as db:
        db.execute(
            "INSERT INTO blob(key, size_bytes, state) VALUES(?, '', 0)", (Digest.of(b"") + b"f",)
        )
    db.close()
    done = CliRunner().invoke(cli, ["check", "--deep", "--data", str(folder.root)])
    assert done.exit_code == 1, done.output
    assert "a row of blob has values of a kind that cannot be there" in done.output
    assert "the rest cannot be looked at" in done.output


def test_audit_log_that_was_changed_is_said_with_its_head(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    run = CliRunner().invoke
    at = ("--data", str(folder.root))
    for name in ("acme", "shop"):
        run(cli, ["key", "create", "--label", name, "--scope", "*", *at])
    well = run(cli, ["check", "--json", *at])
    assert well.exit_code == 0, well.output
    report = json.loads(well.output)
    assert report["counts"]["lines of the audit log"] == 2
    assert report["audit_head"].startswith("2:blake3:")
    assert f"the head is {report['audit_head']}" in run(cli, ["check", *at]).output
    with sqlite3.connect(folder.database) as db:
        db.execute("UPDATE audit_log SET actor_label = 'mallory' WHERE sequence = 1")
    db.close()
    done = run(cli, ["check", *at])
    assert done.exit_code == 1
    assert "WRONG: audit log: line 1 (evt_" in done.output


def test_environment_that_is_newer_than_the_records_is_said(tmp_path: Path) -> None:
    """Its data is all that is left of it, and the site host does not keep it for ever."""
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    pin = ArtifactPin("art_1", str(Digest.of(b"")), "0" * 64)
    state = EnvironmentState(
        "env_of_later",
        "later",
        "production",
        "production",
        (),
        served=ServedState("dep_1", pin, "000001-af1349b9", 0),
    )
    served = HostFolder(folder.host).environment(state.env_id)
    served.prepare(state)
    served.write(state)
    done = CliRunner().invoke(cli, ["check", "--data", str(folder.root)])
    assert done.exit_code == 1, done.output
    assert "environment env_of_later: the site host serves it" in done.output
    assert "copy its data away" in done.output


async def test_what_a_crash_left_of_repositories_is_counted_and_goes_at_the_next_start(
    tmp_path: Path,
) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    control = Control(folder, Config(), None)
    left = [folder.repositories / name for name in (".new-site_1-1-0000", ".gone-site_2-0000")]
    for path in left:
        (path / "objects").mkdir(parents=True)
    done = CliRunner().invoke(cli, ["check", "--data", str(folder.root)])
    assert done.exit_code == 0, done.output
    assert "2 broken-off repositories" in done.output
    await control.recover(slots_are_gone=True)
    async with asyncio.timeout(20):
        while any(path.exists() for path in left):
            await asyncio.sleep(0.01)
    await control.housekeeping.close()
    control.close()


@pytest.mark.parametrize("data", [b"", b"{", b'{"server": {"public_url": "\xff"}}'])
def test_noted_settings_that_are_damaged_are_none(tmp_path: Path, data: bytes) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    (folder.run / "settings.json").write_bytes(data)
    assert noted_settings(folder) is None


def test_settings_that_were_being_noted_at_a_crash_leave_nothing(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    (folder.run / ".settings.json.0123456789ab").touch()
    note_settings(folder, Config())
    assert [path.name for path in folder.run.iterdir()] == ["settings.json"]
