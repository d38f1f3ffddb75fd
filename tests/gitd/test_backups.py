"""`gitd backup` and `gitd restore`, as people and programs use them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gitd.__main__ import cli
from gitd.backup_note import last_backup_at
from gitd.config import Config
from gitd.control import Control
from gitd.errors import StartError
from gitd.layout import DataFolder
from hooks.clock import rfc3339
from storage.errors import BackupError
from storage.records import audit_log
from tests.storage.backup.conftest import Small


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a server that was started once."""
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    return folder.root


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def gitd(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def well(*words: str | Path) -> str:
    done = gitd(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_backup_says_what_is_not_in_it_and_what_that_means(data: Path, backups: Path) -> None:
    said = well("backup", backups, "--data", data)
    assert "private keys are not in it (--with-keys)" in said
    assert "what web processes keep in /data is not in it" in said
    assert said.splitlines()[-1].startswith("digest blake3:")
    said = well("backup", backups, "--data", data, "--with-keys", "--keep", "1")
    assert "whoever reads it can sign as this server" in said
    assert "removed  " in said
    assert len(well("backup", backups, "--list").splitlines()) == 1


def test_backup_keeps_the_head_of_the_audit_log(data: Path, backups: Path) -> None:
    well("key", "create", "--label", "ci", "--scope", "*", "--data", data)
    head = json.loads(well("check", "--data", data, "--json"))["audit_head"]
    assert head.startswith("1:blake3:")
    assert f"the audit log's head is {head}" in well("backup", backups, "--data", data)
    (listed,) = json.loads(well("backup", backups, "--list", "--json"))
    assert listed["audit_head"] == head


def test_backups_are_listed_and_verified_without_a_server(data: Path, backups: Path) -> None:
    assert gitd("backup", backups, "--list").exit_code == 1
    made = [json.loads(well("backup", backups, "--data", data, "--json")) for _ in range(2)]
    listed = json.loads(well("backup", backups, "--list", "--json"))
    assert [item["name"] for item in listed] == [item["name"] for item in made]
    verified = json.loads(well("backup", backups, "--verify", "--deep", "--json"))
    assert [item["digest"] for item in verified["backups"]] == [item["digest"] for item in made]
    victim = max((backups / "pool").glob("*/*"), key=lambda path: path.stat().st_size)
    victim.unlink()
    done = gitd("backup", backups, "--verify", "--at", made[1]["name"])
    assert done.exit_code == 1
    assert f"WRONG: backup {made[1]['name']}: " in done.stdout
    assert str(victim) in done.stdout


def test_new_key_of_a_restored_server_is_noted_once(
    data: Path, backups: Path, tmp_path: Path
) -> None:
    """By the restore, and not by the first start again."""
    well("backup", backups, "--data", data)
    new = tmp_path / "new"
    made = json.loads(well("restore", backups, "--data", new, "--new-keys", "--json"))
    control = Control(DataFolder(new), Config(), None)
    log = audit_log.page(
        control.records.reader(), site_id=None, env_id=None, before=None, limit_count=20
    )
    control.close()
    noted = [each.target for each in log.items if each.action == "signing_key.rotated"]
    assert noted == [made["new_signing_key"]]


def test_server_starts_from_what_was_restored_with_new_keys(
    data: Path, backups: Path, tmp_path: Path
) -> None:
    well("backup", backups, "--data", data)
    new = tmp_path / "new"
    assert isinstance(gitd("restore", backups, "--data", new).exception, BackupError)
    said = well("restore", backups, "--data", new, "--new-keys")
    assert "Trust begins with a new root key" in said
    assert f"gitd serve --data {new}" in said
    folder = DataFolder(new)
    Control(folder, Config(), None).close()
    assert well("check", "--data", new).endswith("all well\n")
    assert "is not empty" in str(gitd("restore", backups, "--data", new, "--new-keys").exception)


def test_no_server_starts_in_half_a_restore(data: Path, backups: Path, tmp_path: Path) -> None:
    made = json.loads(well("backup", backups, "--data", data, "--json"))
    victim = max((backups / "pool").glob("*/*"), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    victim.unlink()
    new = tmp_path / "new"
    words = ("restore", backups, "--data", new, "--new-keys", "--digest", made["digest"])
    assert gitd(*words).exit_code == 1
    folder = DataFolder(new)
    folder.prepare()
    with pytest.raises(StartError, match="did not come to its end"):
        folder.check_whole()
    victim.write_bytes(content)
    assert json.loads(well(*words, "--json"))["is_trust_new"]
    folder.check_whole()


def test_backups_and_what_they_are_of_stay_apart(data: Path, backups: Path) -> None:
    for inside in (data, data / "backups", data / "x" / ".." / "y"):
        assert "is in the data folder" in str(gitd("backup", inside, "--data", data).exception)
    assert "is in" in str(gitd("backup", data.parent, "--data", data).exception)
    well("backup", backups, "--data", data)
    done = gitd("restore", backups, "--data", backups / "data")
    assert "keep backups in a folder of their own" in str(done.exception)


@pytest.mark.parametrize(
    "options",
    [(), ("--list", "--verify"), ("--deep",), ("--at", "x"), ("--keep", "0", "--data", "x")],
)
def test_wrong_usage_exits_2(backups: Path, options: tuple[str, ...]) -> None:
    assert gitd("backup", backups, *options).exit_code == 2
    assert not backups.exists()


def test_backup_is_told_to_the_servers_metrics_and_to_no_copy_of_it(
    data: Path, backups: Path, tmp_path: Path
) -> None:
    made = json.loads(well("backup", backups, "--data", data, "--with-keys", "--json"))
    at = last_backup_at(DataFolder(data))
    assert at is not None
    assert rfc3339(at) == made["made_at"]
    well("restore", backups, "--data", tmp_path / "copy")
    assert last_backup_at(DataFolder(tmp_path / "copy")) is None


def test_backup_without_what_is_damaged_is_made_and_has_failed(
    data: Path, backups: Path, tmp_path: Path
) -> None:
    small = Small.open(tmp_path)
    bad = small.ingest({"bad": b"bad"}, "build_2")
    small.close()
    Path(small.store.layout.tree(bad.digest)).unlink()
    done = gitd("backup", backups, "--data", data)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith("digest blake3:")
    said = "NOT COMPLETE: this is damaged and not in it: manifest "
    assert said in str(done.exception)
    assert last_backup_at(DataFolder(data)) is None
    assert "1 damaged part left out" in well("backup", backups, "--list")
    assert "WRONG" not in well("backup", backups, "--verify", "--deep")
    done = gitd("backup", backups, "--data", data, "--json")
    assert done.exit_code == 1
    made = json.loads(done.stdout)
    assert (len(made["found_damaged"]), made["damaged"]) == (1, 1)


def test_backup_that_cannot_be_told_is_one_all_the_same(data: Path, backups: Path) -> None:
    (data / "run" / "backup.json").mkdir()
    done = gitd("backup", backups, "--data", data, "--json")
    assert done.exit_code == 0
    assert "note: /metrics does not tell of this backup" in done.stderr
    assert json.loads(done.stdout)["name"]
