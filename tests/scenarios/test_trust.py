"""Keys and releases of a running server: rotated, revoked, handed over, and records put back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from storage.signing import SigningKey
from tests.scenarios.conftest import Server, WorkTree, wait_until

pytestmark = pytest.mark.own_server

PLACE = ("--site", "acme-store", "--env", "production")


def keys(server: Server) -> dict[str, list[str]]:
    """Ids of the signing keys by their state, as the command lists them."""
    found: dict[str, list[str]] = {}
    for key in json.loads(server.gitd("signing-key", "list", "--json"))["keys"]:
        found.setdefault(key["state"], []).append(key["key_id"])
    return found


def served_state(server: Server) -> dict:
    """What the host wrote of the one environment that serves something."""
    current = next(server.data.glob("host/environments/*/current"))
    return json.loads((current.parent / "state.json").read_text())


def release_key(server: Server) -> str:
    """The key that vouches for what is served."""
    return json.loads(served_state(server)["served"]["release"])["signatures"][0]["keyid"]


def provenance_key(server: Server) -> str:
    """The key that vouches for the build of what is served."""
    name = served_state(server)["served"]["artifact"]["envelope"]
    path = server.data / "store" / "attest" / name[:2] / f"{name}.dsse.json"
    return json.loads(path.read_text())["signatures"][0]["keyid"]


def pushed(server: Server, work: WorkTree, text: str) -> None:
    work.commit({"index.html": text})
    work.push()
    server.wait_for(text)


def test_keys_change_under_a_running_server(server) -> None:
    """Cases 26 and 27: a rotation and a revocation, with a push, a rollback and a restart."""
    work = server.work()
    pushed(server, work, "one")
    (first,) = keys(server)["active"]
    server.gitd("signing-key", "rotate")
    (second,) = keys(server)["active"]
    wait_until(lambda: release_key(server) == second, "the release is vouched for by the new key")
    pushed(server, work, "two")
    server.mf("rollback", *PLACE, "--wait")
    server.wait_for("one")  # what the first key vouched for is still good

    said = json.loads(server.gitd("signing-key", "revoke", first, "--reason", "lost", "--json"))
    assert [item["environment"] for item in said["environments"]] == ["production"]
    assert server.serves("one")
    listed = json.loads(server.mf("artifacts", *PLACE, "--json").stdout)
    assert [item["status"] for item in listed] == ["ready", "revoked"]
    refused = server.mf("deploy", listed[1]["id"], *PLACE, check=False)
    assert refused.returncode == 3
    assert "artifact.revoked" in refused.stderr

    server.gitd("signing-key", "resign", first, "--artifact", listed[1]["id"])
    wait_until(
        lambda: provenance_key(server) == second, "the release goes by what was signed again"
    )
    server.stop()
    server.start()
    server.wait_for("one")
    pushed(server, work, "three")
    server.gitd("check")


def test_records_from_an_old_backup_roll_nothing_back(server) -> None:
    """Case 33: the site serves on, the log says so, and the next push goes above."""
    work = server.work()
    pushed(server, work, "one")
    server.stop()
    backup = server.root / "backup.db"
    shutil.copy(server.data / "gitd.db", backup)
    server.start()
    pushed(server, work, "two")
    work.commit({"index.html": "three"})
    work.push()
    server.wait_for("three")
    server.stop()
    for name in ("gitd.db", "gitd.db-wal", "gitd.db-shm"):
        (server.data / name).unlink(missing_ok=True)
    shutil.copy(backup, server.data / "gitd.db")
    server.start()
    server.wait_for("three")
    wait_until(
        lambda: "records_older_than_environment" in server.log(), "control says that it knows less"
    )
    assert server.serves("three")
    assert served_state(server)["release_sequence"] == 3
    server.mf("build", *PLACE, "--deploy", "--wait")
    assert served_state(server)["release_sequence"] == 4
    server.kill()
    for name in ("gitd.db-wal", "gitd.db-shm"):  # as a copy of the one file would be
        (server.data / name).unlink(missing_ok=True)
    server.start()
    server.wait_for("three")
    server.mf("build", *PLACE, "--deploy", "--wait")
    assert served_state(server)["release_sequence"] == 5


def test_key_that_is_handed_over_signs_and_stays_in_memory(
    stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    key = SigningKey.load_or_create(credentials / "signing.key")
    (credentials / "signing.key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    stopped.start()
    stopped.new_site()
    pushed(stopped, stopped.work(), "one")
    assert release_key(stopped) == key.key_id
    assert keys(stopped) == {"active": [key.key_id]}
    assert not (stopped.data / "keys" / "signing.key").exists()
    private = (credentials / "signing.key").read_bytes()
    stopped.stop()  # so that no file goes while it is read
    for path in stopped.data.rglob("*"):
        if path.is_file():
            assert private not in path.read_bytes(), path
