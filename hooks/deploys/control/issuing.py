"""Issuing release statements: control's word, for each roll, that it is to happen.

Each has the environment's next sequence, is signed and written down in one transaction, and only
then told to a site host. A copy lies in the store, beside the provenance that it names.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from hooks.clock import rfc3339
from hooks.configs import NOTHING, Configs, line_of
from hooks.errors import RefusedError
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.orders import standing, statement_of
from storage.custody import Custody
from storage.digest import Digest
from storage.envelope import Envelope
from storage.errors import StorageError
from storage.files import mapped_errors, write_atomic
from storage.layout import STATEMENT_MODE, Layout
from storage.model import Deployment, Environment, JobStatus, Trigger
from storage.records import (
    artifacts,
    damage,
    deployments,
    environments,
    release_statements,
    releases,
    sites,
)
from storage.records.release_statements import IssuedStatement
from storage.records.statements import data_version
from storage.release_statement import ReleaseStatement, build_release

CONFIG_STAGE = "config"
KEEP_COUNT = 100
"""Statements kept per environment: what an inquiry could want to see."""
LEAD_MAX = 1_000_000
"""So many statements an environment can have had since the records were copied that are there."""

log = structlog.get_logger(__name__)


class ReleaseIssuer:
    """Issues statements for the environments of one server. Belongs to one event loop."""

    def __init__(self, jobs: Jobs, custody: Custody, layout: Layout, configs: Configs) -> None:
        self._jobs = jobs
        self._configs = configs
        self._custody = custody
        self._layout = layout
        self._floors: dict[str, int] = {}
        self._went_by: dict[str, str | None] = {}
        self._renewed: tuple[int, str] = (-1, "")
        self._not_renewed: dict[str, str] = {}  # why, by deployment, as it was said
        self._copying: set[asyncio.Task[None]] = set()
        self._said: dict[str, list[str]] = {}  # of deployments that have just begun, for their logs
        self._foretell: Callable[[str, str], None] = lambda *_: None
        jobs.begin_by(self._begin_where_queued)

    def watch_beginnings(self, foretell: Callable[[str, str], None]) -> None:
        """Call `foretell` with the environment and the artifact's digest where a deployment begins
        in a transaction that is not committed yet. From the thread that commits.
        """
        self._foretell = foretell

    def recover(self) -> None:
        """After a start: lay the copies into the store that a crash prevented."""
        self._spawn(lambda: _write(self._layout, release_statements.newest(self._reader())))

    async def begin(self, deployment: Deployment) -> bool:
        """Sign that a deployment is to happen now, and write down that it has begun.

        One that began in the transaction that queued it, or before a restart, has its statement.
        False: it was canceled meanwhile, or its environment is gone.

        Raises:
            RefusedError: `artifact.revoked`: nothing vouches for the artifact any more.
            ReleaseInvalidError: The environment has had every sequence that there is.
            StorageError: The signing key cannot be used, or the database refused.
        """
        has = release_statements.of_deployment(self._reader(), deployment.id)
        if has is not None:
            self._copy([has])
            self._tell_settled(deployment)
            return True
        try:
            issued = await self._commit(lambda changes: self._begin(changes, deployment))
            if issued:
                self._tell_settled(deployment)
            return bool(issued)
        finally:
            self._said.pop(deployment.id, None)

    def _begin_where_queued(self, changes: JobChanges, deployment: Deployment) -> None:
        """Begin a deployment in the transaction that queues it: one commit less to wait for.

        Unless another one goes before it, or its artifact has to be mended first. What cannot be
        signed, or given its config, stays queued: `begin` says why.
        """
        artifact = artifacts.get(changes.db, deployment.artifact_id)
        is_next = deployments.unfinished(changes.db, deployment.env_id) == [deployment]
        if not is_next or artifact is None or not damage.is_whole(changes.db, artifact.digest):
            return
        try:
            with changes.apart():
                self._begin(changes, deployment)
            self._foretell(deployment.env_id, artifact.digest)
        except (RefusedError, StorageError):
            log.debug("release_not_begun_where_queued", deployment_id=deployment.id)

    def _begin(self, changes: JobChanges, deployment: Deployment) -> list[IssuedStatement]:
        if deployment.status is JobStatus.QUEUED:
            if changes.start(deployment.job_id) is None:
                return []
            deployments.start(changes.db, deployment.id, changes.now)
            if deployment.trigger is Trigger.CONFIG:
                _aim_at_what_runs(changes.db, deployment)
        begun = deployments.get(changes.db, deployment.id) or deployment
        self._said[deployment.id] = self._settle(changes, begun)
        return self._issue(changes, begun, rollback=_is_rollback(begun))

    def _tell_settled(self, deployment: Deployment) -> None:
        if said := self._said.pop(deployment.id, []):
            self._jobs.log.add(deployment.job_id, said, stage=CONFIG_STAGE)

    async def again(self, deployment: Deployment, *, rollback: bool) -> bool:
        """Sign another statement for a deployment, above all that its environment went by.

        Raises:
            RefusedError, StorageError: As for `begin`.
        """
        return bool(
            await self._commit(
                lambda changes: self._issue(
                    changes, deployment, rollback=rollback or _is_rollback(deployment)
                )
            )
        )

    async def renew(self) -> list[str]:
        """See that every current release has a statement by the key that signs now.

        They lack one after an update from a version that signed none, after a rotation, and when
        their provenance was signed again. Returns the environments that got one; costs nothing
        while nothing was committed. Left out are environments that went by what the records know
        nothing of: what they call current there may be long gone. One that is refused a statement
        keeps the one that it has, and no other from getting its own: the log says why.

        Raises:
            StorageError: As for `begin`.
        """
        seen = (data_version(self._reader()), self._custody.signing_key().key_id)
        if seen == self._renewed:
            return []
        # Looks at every environment: the loop has better things to do meanwhile.
        found = await asyncio.to_thread(
            lambda: release_statements.outdated(self._reader(), seen[1])
        )

        refused: dict[str, str] = {}

        def change(changes: JobChanges) -> list[IssuedStatement]:
            issued = []
            refused.clear()
            for deployment_id in found:
                deployment = deployments.get(changes.db, deployment_id)
                if deployment is None or self._is_behind(changes.db, deployment.env_id):
                    continue
                try:
                    with changes.apart():
                        rollback = _is_rollback(deployment)
                        issued += self._issue(changes, deployment, rollback=rollback)
                except RefusedError as error:
                    refused[deployment_id] = str(error)
            return issued

        issued = await self._commit(change) if found else []
        self._renewed = seen
        self._say_not_renewed(refused)
        if issued:
            log.info("releases_renewed", count=len(issued), key_id=seen[1])
        return [one.env_id for one in issued]

    def _say_not_renewed(self, refused: dict[str, str]) -> None:
        """Say it once of each, and not at every look."""
        for deployment_id, reason in refused.items():
            if self._not_renewed.get(deployment_id) != reason:
                log.error("release_not_renewed", deployment_id=deployment_id, reason=reason)
        self._not_renewed = refused

    def note(self, env_id: str, *, sequence: int, statement: str | None) -> bool:
        """Note by which statement a site host went, as the envelope's SHA-256, and its sequence.

        None is issued any more that is not above that, whatever the records say, which may have
        been put back from an old copy. False: it cannot be so, however old they are. To believe it
        would use up the sequences, and nothing could be rolled there any more.
        """
        if sequence > release_statements.last_sequence(self._reader(), env_id) + LEAD_MAX:
            return False
        self._floors[env_id] = max(sequence, self._floors.get(env_id, 0))
        self._went_by[env_id] = statement
        return True

    def is_behind(self, env_id: str) -> bool:
        """Say whether the environment went by a statement that the records know nothing of."""
        return self._is_behind(self._reader(), env_id)

    # -- pieces ---------------------------------------------------------------------------------

    async def _commit(
        self, change: Callable[[JobChanges], list[IssuedStatement]]
    ) -> list[IssuedStatement]:
        issued = await self._jobs.commit(change)
        if issued:
            self._copy(issued)
        return issued

    def _settle(self, changes: JobChanges, deployment: Deployment) -> list[str]:
        """Decide what the deployment's programs are given; say what is new in that."""
        version = self._configs.settle(changes, deployment)
        changed = self._configs.changed(changes.db, deployment.env_id, version)
        return [line_of(version, changed)] if changed else []

    def _copy(self, issued: Sequence[IssuedStatement]) -> None:
        self._spawn(lambda: _write(self._layout, issued))

    def _issue(
        self, changes: JobChanges, deployment: Deployment, *, rollback: bool
    ) -> list[IssuedStatement]:
        """Sign the next statement of the deployment's environment and write it down.

        Where the provenance that the deployment names was revoked, it names another from then on.
        Nothing is signed when the environment is gone.
        """
        environment = environments.get(changes.db, deployment.env_id)
        if environment is None:
            return []
        sequence = 1 + max(
            release_statements.last_sequence(changes.db, environment.id),
            self._floors.get(environment.id, 0),
        )
        artifact = artifacts.get(changes.db, deployment.artifact_id)
        assert artifact is not None, "kept by a foreign key"
        statement = ReleaseStatement(
            site=_site_name(changes.db, environment),
            env_id=environment.id,
            environment=environment.slug,
            sequence=sequence,
            deployment_id=deployment.id,
            provenance_sha256=_provenance(changes.db, deployment, environment),
            previous=_current_digest(changes.db, environment.id),
            rollback=rollback,
            issued_at=rfc3339(changes.now),
            config=self._configs.pin(
                changes.db, environment.id, _config_version(changes, deployment)
            ),
        )
        body = build_release(
            statement,
            digest=Digest.parse(artifact.digest),
            manifest_sha256=artifact.manifest_sha256,
        )
        issued = _issued(statement, self._custody.seal(body), changes.now)
        release_statements.add(changes.db, issued)
        # The copies of those that are forgotten are leftovers then, and collected as such.
        release_statements.prune(changes.db, environment.id, keep_count=KEEP_COUNT)
        return [issued]

    def _is_behind(self, db: sqlite3.Connection, env_id: str) -> bool:
        # Not by the sequence: the same can have been given twice, before and after the copy.
        statement = self._went_by.get(env_id)
        return statement is not None and not release_statements.is_known(db, statement)

    def _reader(self) -> sqlite3.Connection:
        return self._jobs.records.reader()

    def _spawn(self, work: Callable[[], None]) -> None:
        """Do it in a thread, without waiting for it."""
        task = asyncio.create_task(asyncio.to_thread(work))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)


def _write(layout: Layout, issued: Sequence[IssuedStatement]) -> None:
    """Lay copies of statements into the store."""
    for one in issued:
        path = Path(layout.envelope(one.envelope_sha256))
        try:
            with mapped_errors("copy a release statement"):
                if not path.exists():
                    data = one.envelope.encode()
                    write_atomic(path, data, mode=STATEMENT_MODE, replace=False)
        except StorageError as error:
            log.warning("release_statement_not_copied", path=str(path), reason=str(error))


def _issued(statement: ReleaseStatement, envelope: Envelope, at: int) -> IssuedStatement:
    return IssuedStatement(
        envelope_sha256=envelope.sha256,
        env_id=statement.env_id,
        sequence=statement.sequence,
        deployment_id=statement.deployment_id,
        key_id=envelope.key_id,
        provenance_sha256=statement.provenance_sha256,
        envelope=envelope.data.decode(),
        issued_at=at,
    )


def _is_rollback(deployment: Deployment) -> bool:
    return deployment.trigger is Trigger.ROLLBACK


def _config_version(changes: JobChanges, deployment: Deployment) -> int:
    """What was settled; nothing for what began before there were configs."""
    settled = deployments.get(changes.db, deployment.id)
    return (settled.config_version if settled is not None else None) or NOTHING


def _aim_at_what_runs(db: sqlite3.Connection, deployment: Deployment) -> None:
    """Let a roll for a changed config roll what runs now: that may be newer than the change."""
    running = releases.current(db, deployment.env_id)
    environment = environments.get(db, deployment.env_id)
    if running is not None and environment is not None:
        deployments.retarget(db, deployment.id, running, statement_of(db, running, environment))


def _provenance(db: sqlite3.Connection, deployment: Deployment, environment: Environment) -> str:
    """Return the envelope of provenance to go by: the deployment's own, unless that was revoked."""
    envelope = standing(db, deployment, environment)
    if envelope != deployment.envelope_sha256:
        deployments.go_by(db, deployment.id, envelope)
    return envelope


def _site_name(db: sqlite3.Connection, environment: Environment) -> str:
    site = sites.find(db, environment.site_id)
    assert site is not None, "kept by a foreign key"
    return site.name


def _current_digest(db: sqlite3.Connection, env_id: str) -> Digest | None:
    current = releases.current(db, env_id)
    artifact = artifacts.get(db, current.artifact_id) if current is not None else None
    return Digest.parse(artifact.digest) if artifact is not None else None
