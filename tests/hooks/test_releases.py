"""Control's side of release statements: issued for each roll, renewed, and never rolled back by
records that were put back from an old copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from hooks.builds.wire import Finish
from hooks.deploys.control.issuing import LEAD_MAX
from hooks.deploys.control.reissuing import REISSUE_COUNT_MAX
from hooks.deploys.wire import Changed, Desired, Report, RollFailure, Snapshot
from storage.check import check_store
from storage.digest import Digest
from storage.model import ActorRef, JobStatus
from storage.reader import StoreReader
from storage.records import attestations, deployments, release_statements, releases
from storage.release_statement import SEQUENCE_MAX, ReleaseStatement
from storage.resign import resign

ACTOR = ActorRef("api_key", "key_1", "tests")
DONE = Finish("slot-0", "succeeded", profile="static", output="source", folder=".")


class Site:
    """A site with production, and a host that says what a test tells it to."""

    def __init__(self, world, commit, made) -> None:
        self.world = world
        self.made = made
        self.commit = commit
        self.env_id = world.environment(made).id

    async def queue(self, content: bytes) -> str:
        """Build a commit and queue its deployment; returns the deployment's id."""
        self.commit(self.world.repositories.path(self.made.id), {"index.html": content})
        environment = self.world.environment(self.made)
        await self.world.pipeline.start_build(environment, ACTOR, ref="main", deploy=True)
        lease = await self.world.builds.lease("slot-0", 5)
        await self.world.builds.finish(lease.job_id, DONE)
        waiting = deployments.unfinished(self.world.records.reader(), self.env_id)
        return waiting[-1].id

    async def told(self, deployment_id: str, *, above: int = 0) -> Desired:
        """What a host is told, once it is this deployment by a statement above a sequence."""
        async with contextlib.aclosing(self.world.rolls.desired()) as news, asyncio.timeout(20):
            async for message in news:
                told = message.environments if isinstance(message, Snapshot) else ()
                for desired in (message.environment,) if isinstance(message, Changed) else told:
                    if (desired.env_id, desired.deployment_id) != (self.env_id, deployment_id):
                        continue
                    if desired.release and sequence_of(desired) > above:
                        return desired
        raise AssertionError(f"{deployment_id} was not told")

    async def serve(self, desired: Desired) -> None:
        sequence = self.read(desired).sequence
        await self.world.rolls.report(
            Report(
                self.env_id,
                desired.deployment_id,
                "serving",
                sequence=sequence,
                statement=sha256(desired.release.encode()).hexdigest(),
                serves=desired.deployment_id,
            )
        )

    async def refuse(
        self,
        desired: Desired,
        code: str,
        *,
        sequence: int,
        serves: str | None,
        by: Desired | None = None,
    ) -> None:
        """Refuse a statement; the host went `by` another, or by one that nobody here knows."""
        went_by = sha256(by.release.encode()).hexdigest() if by is not None else "0" * 64
        await self.world.rolls.report(
            Report(
                self.env_id,
                desired.deployment_id,
                "failed",
                RollFailure(code, "the host said so"),
                sequence=sequence,
                statement=went_by,
                serves=serves,
            )
        )

    async def roll(self, content: bytes) -> Desired:
        desired = await self.told(await self.queue(content))
        await self.serve(desired)
        return desired

    async def roll_back(self, deployment_id: str) -> Desired:
        environment = self.world.environment(self.made)
        job = (await self.world.pipeline.start_rollback(environment, deployment_id, ACTOR)).value
        return await self.told(job.resource_id)

    def read(self, desired: Desired) -> ReleaseStatement:
        """Verify a statement as a host would, but for the sequence; return what it says."""
        reader = StoreReader(self.world.store.layout.root)
        digest = Digest.parse(desired.artifact.digest)
        verified = reader.verify(digest, desired.artifact.envelope, site="acme-store")
        return reader.verify_release(
            desired.release.encode(), verified, env_id=self.env_id, above=None, now_ms=0
        )

    def statements(self) -> list[sqlite3.Row]:
        rows = self.world.records.reader().execute(
            "SELECT * FROM release_statement WHERE env_id = ? ORDER BY sequence", (self.env_id,)
        )
        return rows.fetchall()

    def deployment(self, deployment_id: str):
        return deployments.get(self.world.records.reader(), deployment_id)

    def current(self) -> str:
        return releases.current(self.world.records.reader(), self.env_id).deployment_id


def sequence_of(desired: Desired) -> int:
    body = b64decode(json.loads(desired.release)["payload"])
    return json.loads(body)["predicate"]["sequence"]


@pytest.fixture
async def site(world, commit) -> Site:
    return Site(world, commit, await world.site())


async def test_each_roll_has_a_statement_with_the_next_sequence(site) -> None:
    first, second = await site.roll(b"one"), await site.roll(b"two")
    back = await site.roll_back(second.deployment_id)
    await site.serve(back)
    said = [site.read(desired) for desired in (first, second, back)]
    assert [one.sequence for one in said] == [1, 2, 3]
    assert [one.rollback for one in said] == [False, False, True]
    assert [one.previous for one in said] == [
        None,
        Digest.parse(first.artifact.digest),
        Digest.parse(second.artifact.digest),
    ]
    assert back.artifact == first.artifact


async def test_deployment_begins_in_the_commit_that_queues_it_unless_another_goes_before(
    site,
) -> None:
    first, second = await site.queue(b"one"), await site.queue(b"two")
    reader = site.world.records.reader()
    assert deployments.get(reader, first).status is JobStatus.RUNNING
    assert release_statements.of_deployment(reader, first).sequence == 1
    assert deployments.get(reader, second).status is JobStatus.QUEUED
    assert release_statements.of_deployment(reader, second) is None


async def test_host_hears_what_is_coming_before_it_is_wanted_if_it_cares(site) -> None:
    heard: dict[bool, list[str]] = {True: [], False: []}

    async def listen(*, cares: bool) -> None:
        async for message in site.world.rolls.desired(hears_coming=cares):
            heard[cares].append(type(message).__name__)
            if isinstance(message, Changed) and message.environment.deployment_id is not None:
                return

    listening = [asyncio.create_task(listen(cares=cares)) for cares in (True, False)]
    await asyncio.sleep(0)
    await site.queue(b"one")
    async with asyncio.timeout(20):
        await asyncio.gather(*listening)
    assert heard == {True: ["Snapshot", "Coming", "Changed"], False: ["Snapshot", "Changed"]}


async def test_environments_count_for_themselves(site) -> None:
    await site.roll(b"one")
    await site.roll(b"two")
    staging = site.world.environment(site.made, "staging")
    job = (
        await site.world.pipeline.start_promotion(
            site.world.environment(site.made), "staging", ACTOR
        )
    ).value
    site.env_id = staging.id
    assert site.read(await site.told(job.resource_id)).sequence == 1


async def test_statements_lie_in_the_records_and_in_the_store(site) -> None:
    await site.roll(b"one")
    await site.roll(b"two")
    layout = site.world.store.layout
    paths = [Path(layout.envelope(row["envelope_sha256"])) for row in site.statements()]
    async with asyncio.timeout(20):
        while not all(path.exists() for path in paths):
            await asyncio.sleep(0.01)
    assert [path.read_text() for path in paths] == [row["envelope"] for row in site.statements()]
    report = check_store(layout.root, site.world.records)
    assert (report.problems, report.leftovers) == ((), ())


async def test_copy_that_a_crash_prevented_is_made_at_the_next_start(site) -> None:
    await site.roll(b"one")
    (row,) = site.statements()
    path = Path(site.world.store.layout.envelope(row["envelope_sha256"]))
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)
    path.unlink()
    site.world.rolls.recover()
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)


async def test_roll_under_way_keeps_its_statement_over_a_restart(site) -> None:
    before = await site.told(await site.queue(b"one"))
    site.world = site.world.reopen()
    site.world.rolls.recover()
    after = await site.told(before.deployment_id)
    assert after == before
    await site.serve(after)
    assert site.current() == before.deployment_id
    site.world.records.close()


async def test_only_so_many_statements_are_kept(site, monkeypatch) -> None:
    monkeypatch.setattr("hooks.deploys.control.issuing.KEEP_COUNT", 2)
    for content in (b"one", b"two", b"three", b"four"):
        await site.roll(content)
    assert [row["sequence"] for row in site.statements()] == [3, 4]


# -- a host that knows better --------------------------------------------------------------------


async def test_wanted_roll_gets_a_sequence_above_the_hosts(site) -> None:
    """The records are older than the host, and somebody deploys."""
    told = await site.told(await site.queue(b"one"))
    await site.refuse(told, "release.replayed", sequence=41, serves="dep_lost")
    again = await site.told(told.deployment_id, above=41)
    assert site.read(again).sequence == 42
    await site.serve(again)
    assert site.deployment(told.deployment_id).status is JobStatus.SUCCEEDED
    assert site.read(await site.roll(b"two")).sequence == 43


async def test_host_that_refuses_for_ever_fails_the_deployment(site) -> None:
    told = await site.told(await site.queue(b"one"))
    sequence = 10
    for _ in range(REISSUE_COUNT_MAX):
        await site.refuse(told, "release.replayed", sequence=sequence, serves=None)
        told = await site.told(told.deployment_id, above=sequence)
        sequence += 10
    await site.refuse(told, "release.replayed", sequence=sequence, serves=None)
    ended = site.deployment(told.deployment_id)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "release.replayed")


async def test_report_that_cannot_be_so_leaves_the_environment_rollable(site) -> None:
    first = await site.roll(b"one")
    staging = site.world.environment(site.made, "staging")
    foreign = await site.told(await site.queue(b"two"))
    for env_id, deployment_id, sequence in (
        (site.env_id, first.deployment_id, SEQUENCE_MAX),
        (site.env_id, first.deployment_id, LEAD_MAX + 3),
        (site.env_id, "dep_made_up", 7),
        (staging.id, foreign.deployment_id, 7),
    ):
        report = Report(env_id, deployment_id, "serving", sequence=sequence, statement="0" * 64)
        await site.world.rolls.report(report)
    assert site.deployment(foreign.deployment_id).status is JobStatus.RUNNING
    await site.serve(foreign)
    assert site.read(await site.roll(b"three")).sequence == 3
    beyond = {**msgspec.to_builtins(report), "sequence": SEQUENCE_MAX + 1}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(beyond, Report)


async def test_host_that_switched_to_a_canceled_roll_is_told_to_go_back(site) -> None:
    """What the records know of, control decides on; also when the host was quicker."""
    first = await site.roll(b"one")
    second = await site.told(await site.queue(b"two"))
    job_id = site.deployment(second.deployment_id).job_id
    await site.world.pipeline.cancel_job(job_id)
    await site.refuse(first, "release.replayed", sequence=2, serves=second.deployment_id, by=second)
    back = await site.told(first.deployment_id, above=2)
    assert site.read(back).rollback
    assert back.artifact == first.artifact


async def test_old_records_are_told_by_the_statement_and_not_by_its_number(site) -> None:
    """A number was given twice, before the backup was put back and after."""
    await site.roll(b"one")
    current = await site.roll(b"two")
    await site.refuse(current, "release.replayed", sequence=2, serves="dep_of_before")
    assert [row["sequence"] for row in site.statements()] == [1, 2]


async def test_old_records_roll_nothing_back(site) -> None:
    """A database from an old backup; the host serves on until somebody decides."""
    first = await site.roll(b"one")
    await site.refuse(first, "release.replayed", sequence=9, serves="dep_of_later")
    assert [row["sequence"] for row in site.statements()] == [1]
    assert site.read(await site.roll(b"two")).sequence == 10


async def test_old_records_roll_nothing_back_by_a_rotation_either(site) -> None:
    """The backup is from before the rotation, so that its statement is outdated too."""
    first = await site.roll(b"one")
    await site.refuse(first, "release.key_retired", sequence=9, serves="dep_of_later")
    site.world.custody.rotate(site.world.store.layout.trust)
    staging = site.world.environment(site.made, "staging")
    job = (
        await site.world.pipeline.start_promotion(
            site.world.environment(site.made), "staging", ACTOR
        )
    ).value
    reaping = asyncio.create_task(site.world.rolls.reap())
    production, site.env_id = site.env_id, staging.id
    await site.serve(await site.told(job.resource_id))
    site.world.custody.rotate(site.world.store.layout.trust)
    await site.told(job.resource_id, above=1)  # staging was renewed, and production looked at
    reaping.cancel()
    site.env_id = production
    assert [row["sequence"] for row in site.statements()] == [1]


async def test_old_records_bring_back_what_they_know_where_nothing_is_served(site) -> None:
    """The backup had the store too, and so not what was served."""
    first = await site.roll(b"one")
    await site.refuse(first, "release.replayed", sequence=9, serves=None)
    assert site.read(await site.told(first.deployment_id, above=9)).sequence == 10


async def test_refusal_of_what_is_not_wanted_any_more_changes_nothing(site) -> None:
    first, _ = await site.roll(b"one"), await site.roll(b"two")
    await site.refuse(first, "release.replayed", sequence=2, serves=None)
    assert [row["sequence"] for row in site.statements()] == [1, 2]


# -- keys that change ----------------------------------------------------------------------------


async def test_rotation_gives_every_current_release_a_statement_by_the_next_key(site) -> None:
    first = await site.roll(b"one")
    second = await site.roll(b"two")
    reaping = asyncio.create_task(site.world.rolls.reap())
    rotated = site.world.custody.rotate(site.world.store.layout.trust)
    renewed = await site.told(second.deployment_id, above=2)
    reaping.cancel()
    assert renewed.artifact == second.artifact
    assert [row["key_id"] == rotated.key_id for row in site.statements()] == [False, False, True]
    assert site.statements()[-1]["deployment_id"] != first.deployment_id


async def test_environment_that_is_refused_a_statement_keeps_no_other_from_its_own(
    site, capsys
) -> None:
    """The config that production's release was given is gone from the records."""
    first = await site.roll(b"one")
    staging = site.world.environment(site.made, "staging")
    promoted = await site.world.pipeline.start_promotion(
        site.world.environment(site.made), "staging", ACTOR
    )
    production, site.env_id = site.env_id, staging.id
    await site.serve(await site.told(promoted.value.resource_id))
    site.world.records.write(
        lambda db: db.execute(
            "UPDATE deployment SET config_version = 7 WHERE id = ?", (first.deployment_id,)
        )
    )
    rotated = site.world.custody.rotate(site.world.store.layout.trust)
    reaping = asyncio.create_task(site.world.rolls.reap())
    await site.told(promoted.value.resource_id, above=1)
    again = await site.world.pipeline.start_deployment(  # and so another look at all of them
        staging, first.artifact.id, ACTOR
    )
    await site.serve(await site.told(again.value.resource_id))
    reaping.cancel()
    assert site.statements()[1]["key_id"] == rotated.key_id
    site.env_id = production
    assert [row["sequence"] for row in site.statements()] == [1]
    said = [line for line in capsys.readouterr().out.splitlines() if "release_not_renewed" in line]
    assert len(said) == 1
    assert first.deployment_id in said[0]


async def test_release_of_an_earlier_version_gets_its_first_statement_at_the_start(site) -> None:
    """gitd 0.1 signed no releases."""
    current = await site.roll(b"one")
    site.world.records.write(lambda db: db.execute("DELETE FROM release_statement"))
    site.world = site.world.reopen()
    site.world.rolls.recover()
    assert site.read(await site.told(current.deployment_id)).sequence == 1
    site.world.records.close()


async def test_statement_names_the_provenance_that_was_signed_again(site) -> None:
    current = await site.roll(b"one")
    world = site.world
    old_key = world.custody.signing_key().key_id
    world.custody.rotate(world.store.layout.trust)
    reader = StoreReader(world.store.layout.root)
    sound = attestations.signed_by(world.records.reader(), old_key)
    resign(world.records, reader, world.custody, sound)
    keyring = world.custody.revoke(world.store.layout.trust, old_key, reason="stolen")
    world.records.write(lambda db: attestations.revoke(db, keyring.revoked))
    reaping = asyncio.create_task(world.rolls.reap())
    renewed = await site.told(current.deployment_id, above=1)
    reaping.cancel()
    assert renewed.artifact.envelope != current.artifact.envelope
    assert site.read(renewed).provenance_sha256 == renewed.artifact.envelope


async def test_deployment_whose_artifact_was_revoked_meanwhile_fails(site) -> None:
    await site.told(await site.queue(b"one"))
    waiting = await site.queue(b"two")
    (key_id,) = StoreReader(site.world.store.layout.root).keyring().keys
    site.world.records.write(lambda db: attestations.revoke(db, {key_id}))
    under_way = deployments.unfinished(site.world.records.reader(), site.env_id)[0]
    await site.world.pipeline.cancel_job(under_way.job_id)
    ended = await _ended(site, waiting)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "artifact.revoked")


async def test_key_that_cannot_be_used_fails_the_deployment_and_not_the_server(site) -> None:
    key = site.world.root / "keys" / "signing.key"
    await site.roll(b"one")
    environment = site.world.environment(site.made)
    release = releases.current(site.world.records.reader(), site.env_id)
    key.chmod(0o444)
    job = (
        await site.world.pipeline.start_deployment(environment, release.artifact_id, ACTOR)
    ).value
    ended = await _ended(site, job.resource_id)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "release.unsigned")
    assert "signing.key" not in ended.error.message
    key.chmod(0o400)
    assert site.read(await site.roll(b"two")).sequence == 2


async def _ended(site: Site, deployment_id: str):
    async with asyncio.timeout(20):
        while (found := site.deployment(deployment_id)).finished_at is None:
            await asyncio.sleep(0.01)
    return found
