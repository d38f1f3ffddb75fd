"""`gitd signing-key`: what it says, what it does, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gitd.__main__ import cli
from gitd.config import Config
from gitd.control import Control
from gitd.errors import GitdError
from gitd.layout import DataFolder
from hooks.environments import first_environments
from storage.artifacts import ArtifactStore, Ingested
from storage.custody import Custody
from storage.errors import KeyFileError, SignatureInvalidError
from storage.model import (
    SYSTEM,
    Action,
    Artifact,
    Attestation,
    Build,
    Environment,
    Release,
    Site,
)
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.reader import StoreReader
from storage.records import artifacts, audit_log, builds, environments, releases, sites
from storage.records.db import Records
from storage.source import Limits, SourceFile
from tests.rows import build_row

SITE = Site("site_1", "acme-store", "main", 0)


@dataclass
class Server:
    """The data folder of a server that runs, with one site."""

    folder: DataFolder
    records: Records
    store: ArtifactStore
    custody: Custody
    builds: int = 0
    ran: CliRunner = field(default_factory=CliRunner)

    def build(self, contents: bytes) -> Ingested:
        """Take in an artifact, signed by the key that signs now, and release it on production."""
        self.builds += 1
        build_id = f"build_{self.builds}"
        facts = Provenance(
            site=SITE.name,
            ref="refs/heads/main",
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            profile="static",
            run=RunCommands(),
            build_id=build_id,
            builder=SOURCE_BUILDER,
            started_at="2026-01-01T00:00:00.000Z",
            finished_at="2026-01-01T00:00:05.000Z",
            tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
            gitd_version="0.1.0",
        )

        def record(db, kept):
            digest = str(kept.digest)
            found = Artifact(kept.artifact_id, digest, kept.manifest_sha256, 1, 1, 0)
            artifacts.add(db, found)
            made_by = Attestation(
                envelope_sha256=kept.envelope_sha256,
                artifact_id=kept.artifact_id,
                site_id=SITE.id,
                build_id=build_id,
                key_id=kept.key_id,
                signature=kept.signature,
                profile="static",
                ref=None,
                commit=facts.commit,
                created_at=0,
            )
            artifacts.attest(db, made_by)
            builds.add(db, build_of(db, build_id))
            builds.succeed(db, build_id, made_by, deployment_id=None, timings={}, at=0)
            releases.add_current(db, release_of(db, kept.artifact_id, self.builds))

        entry = SourceFile(b"a", len(contents), False, lambda: contents)
        ingested, _ = self.store.ingest(
            [entry],
            limits=Limits(),
            attest=lambda manifest: self.custody.seal(build_provenance(facts, manifest)),
            record=record,
        )
        return ingested

    def run(self, *arguments: str) -> Result:
        done = self.ran.invoke(cli, ["signing-key", *arguments, "--data", str(self.folder.root)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def json(self, *arguments: str):
        return json.loads(self.run(*arguments, "--json").output)

    def key_in_state(self, state: str) -> str:
        (found,) = [key for key in self.json("list")["keys"] if key["state"] == state]
        return found["key_id"]

    def holds(self, ingested: Ingested) -> bool:
        """Whether what the records go by proves it."""
        made_by = artifacts.of_environment(
            self.records.reader(), production(self.records.reader()), ingested.artifact_id
        )
        try:
            reader = StoreReader(self.store.layout.root)
            reader.verify(ingested.digest, made_by.attestation.envelope_sha256)
        except SignatureInvalidError:
            return False
        return True


def production(db) -> Environment:
    return environments.find(db, SITE.id, "production")


def build_of(db, build_id: str) -> Build:
    return build_row(build_id, site_id=SITE.id, env_id=production(db).id, started_at=0)


def release_of(db, artifact_id: str, number: int) -> Release:
    return Release(
        id=f"rel_{number}",
        site_id=SITE.id,
        env_id=production(db).id,
        deployment_id=f"dep_{number}",
        artifact_id=artifact_id,
        ref=None,
        commit=None,
        actor=SYSTEM,
        deployed_at=0,
        is_current=True,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    with Records.open(folder.database) as records:
        store = ArtifactStore.open(folder.store, records, group=None)
        custody = Custody(folder.keys)
        custody.open(store.layout.trust)
        records.write(lambda db: sites.add(db, SITE))
        for environment in first_environments(SITE, 0):
            records.write(lambda db, made=environment: environments.add(db, made))
        yield Server(folder, records, store, custody)


def test_list_shows_which_key_signed_what(server: Server) -> None:
    server.build(b"one")
    server.build(b"two")
    first = server.custody.signing_key().key_id
    server.run("rotate")
    server.build(b"three")
    said = server.json("list")
    assert said["generation"] == 3
    assert [(key["key_id"], key["state"]) for key in said["keys"]] == [
        (server.custody.signing_key().key_id, "active"),
        (first, "retired"),
    ]
    assert [(key["first_sequence"], key["last_sequence"]) for key in said["keys"]] == [
        (3, 3),
        (1, 2),
    ]
    lines = server.run("list").output.splitlines()
    assert lines[0].endswith("root of trust, generation 3")
    assert lines[2] == f"{first}  retired  statements #1 to #2"


def test_rotation_keeps_what_the_old_key_signed(server: Server) -> None:
    old = server.build(b"one")
    said = server.json("rotate")
    assert said["key_id"] == server.custody.signing_key().key_id
    assert server.holds(old)
    assert server.holds(server.build(b"two"))


def test_revocation_says_what_it_takes_and_what_to_do(server: Server) -> None:
    lost = server.build(b"one")
    key_id = server.custody.signing_key().key_id
    said = server.run("revoke", key_id, "--reason", "laptop lost").output
    assert f"#1  {lost.artifact_id}" in said
    assert f"production of acme-store: {lost.artifact_id}" in said
    assert "mf build --site acme-store --env production --deploy --wait" in said
    assert not server.holds(lost)
    assert server.holds(server.build(b"two"))
    assert server.key_in_state("revoked") == key_id


def test_changes_of_keys_stand_in_the_audit_log(server: Server) -> None:
    old = server.key_in_state("active")
    server.build(b"one")
    server.run("rotate")
    following = server.custody.signing_key().key_id
    server.build(b"two")
    server.run("revoke", old, "--reason", "lost", "--since", "2")
    server.run("revoke", following, "--reason", "lost", "--dry-run")
    reader = server.records.reader()
    log = audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=10)
    assert [(each.action, each.target) for each in log.items][::-1] == [
        (Action.SIGNING_KEY_ROTATED, following),
        (Action.STATEMENTS_RESIGNED, old),
        (Action.SIGNING_KEY_REVOKED, old),
    ]
    assert {each.actor for each in log.items} == {SYSTEM}


def changes_of_keys(server: Server) -> list[tuple[str, str]]:
    log = audit_log.page(
        server.records.reader(), site_id=None, env_id=None, before=None, limit_count=20
    )
    return [(each.action, each.target) for each in log.items if "key" in each.action][::-1]


def test_change_of_keys_that_a_crash_kept_from_the_audit_log_is_noted_later(server: Server) -> None:
    """By the next start, or by the next command; once."""
    old = server.key_in_state("active")
    Control(server.folder, Config(), None).close()
    trust = server.store.layout.trust
    first = server.custody.rotate(trust).key_id
    server.custody.revoke(trust, old, reason="lost")
    assert changes_of_keys(server) == []
    noted = [(Action.SIGNING_KEY_ROTATED, first), (Action.SIGNING_KEY_REVOKED, old)]
    for _ in range(2):
        Control(server.folder, Config(), None).close()
        assert changes_of_keys(server) == noted
    second = server.custody.rotate(trust).key_id
    third = server.json("rotate")["key_id"]
    noted += [(Action.SIGNING_KEY_ROTATED, second), (Action.SIGNING_KEY_ROTATED, third)]
    assert changes_of_keys(server) == noted


def test_key_that_signs_is_said_when_it_cannot_be_noted(server: Server) -> None:
    Control(server.folder, Config(), None).close()
    server.records.write(
        lambda db: db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    )
    done = server.ran.invoke(cli, ["signing-key", "rotate", "--data", str(server.folder.root)])
    following = server.custody.signing_key().key_id
    assert done.exit_code != 0
    assert f"{following} signs from now on" in done.output
    server.records.write(lambda db: db.execute("DROP TRIGGER full"))
    Control(server.folder, Config(), None).close()
    assert changes_of_keys(server) == [(Action.SIGNING_KEY_ROTATED, following)]


def test_dry_run_says_the_same_and_does_nothing(server: Server) -> None:
    kept = server.build(b"one")
    server.build(b"two")
    key_id = server.custody.signing_key().key_id
    said = server.json("revoke", key_id, "--reason", "x", "--since", "2", "--dry-run")
    assert said["revoked"] is False
    assert [lost["sequence"] for lost in said["statements"]] == [2]
    assert [item["environment"] for item in said["environments"]] == ["production"]
    assert server.holds(kept)
    assert server.json("list")["generation"] == 1
    said = server.json("revoke", key_id, "--reason", "x", "--since", "3", "--dry-run")
    assert (said["statements"], said["environments"]) == ([], [])


def test_revocation_since_a_statement_saves_those_before(server: Server) -> None:
    before, after = server.build(b"one"), server.build(b"two")
    key_id = server.custody.signing_key().key_id
    said = server.json("revoke", key_id, "--reason", "stolen in March", "--since", "2")
    assert (said["signed_again"], said["failures"]) == (1, [])
    assert [lost["artifact_id"] for lost in said["statements"]] == [after.artifact_id]
    assert server.holds(before)
    assert not server.holds(after)


def test_operator_may_vouch_for_an_artifact_afterwards(server: Server) -> None:
    sound, other = server.build(b"one"), server.build(b"two")
    key_id = server.custody.signing_key().key_id
    server.run("revoke", key_id, "--reason", "x")
    said = server.json("resign", key_id, "--artifact", sound.artifact_id)
    assert said == {"signed_again": 1, "failures": []}
    assert server.holds(sound)
    assert not server.holds(other)


def test_key_may_be_named_by_the_beginning_of_its_id(server: Server) -> None:
    key_id = server.custody.signing_key().key_id
    server.run("revoke", key_id.removeprefix("ed25519:")[:12], "--reason", "x")
    assert server.key_in_state("revoked") == key_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("revoke", f"ed25519:{'0' * 16}", "--reason", "x"), "no such key"),
        (("revoke", "ed25519:", "--reason", "x"), "several keys"),
        (("resign", f"ed25519:{'0' * 16}", "--before", "3"), "no such key"),
    ],
)
def test_what_makes_no_sense_is_refused(
    server: Server, arguments: tuple[str, ...], message: str
) -> None:
    server.run("rotate")
    with pytest.raises(GitdError, match=message):
        server.run(*arguments)


def test_what_to_vouch_for_must_be_said(server: Server) -> None:
    done = server.run("resign", server.custody.signing_key().key_id)
    assert done.exit_code == 2
    assert "Say what to vouch for" in done.output


def test_key_that_signs_now_needs_no_second_signature(server: Server) -> None:
    key_id = server.custody.signing_key().key_id
    with pytest.raises(GitdError, match="signs now"):
        server.run("resign", key_id, "--before", "9")


def test_root_key_may_come_from_elsewhere(server: Server, tmp_path: Path) -> None:
    elsewhere = tmp_path / "stick" / "root.key"
    elsewhere.parent.mkdir()
    (server.folder.keys / "root.key").rename(elsewhere)
    with pytest.raises(KeyFileError, match="--root-key"):
        server.run("rotate")
    before = server.custody.signing_key().key_id
    server.run("rotate", "--root-key", str(elsewhere))
    server.run("revoke", before, "--reason", "x", "--root-key", str(elsewhere))
    assert server.key_in_state("revoked") == before
