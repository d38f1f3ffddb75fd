"""Changes of jobs, and of what they belong to, in one transaction of the records."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator

from hooks.audit_log import Asker
from hooks.clock import Clock
from storage.ids import new_id
from storage.model import (
    SYSTEM,
    Action,
    ActorRef,
    AuditEntry,
    Deployment,
    Failure,
    Job,
    JobStatus,
    JobType,
)
from storage.records import audit_log, webhooks
from storage.records import jobs as job_rows
from storage.records.db import savepoint


class JobChanges:
    """A transaction's hand on jobs: it keeps what it touched, to be published after the commit."""

    def __init__(
        self,
        db: sqlite3.Connection,
        clock: Clock,
        begin: Callable[[JobChanges, Deployment], None],
        asker: Asker | None = None,
    ) -> None:
        self.db = db
        self.now = clock()
        self._begin = begin
        self._asker = asker
        self.touched: list[Job] = []
        self.environments: list[str] = []

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """A part of the transaction that may fail by itself: only what it did is undone."""
        touched, changed = len(self.touched), len(self.environments)
        try:
            with savepoint(self.db):
                yield
        except BaseException:
            del self.touched[touched:], self.environments[changed:]
            raise

    def note(
        self,
        action: Action,
        target: str,
        *,
        site_id: str | None = None,
        env_id: str | None = None,
        actor: ActorRef | None = None,
    ) -> None:
        """Write a change into the audit log. It is `actor`'s; or else who asks for it now."""
        who = self._asker
        if who is not None and actor is not None and who.actor != actor:
            who = None  # it happens in another's request
        entry = AuditEntry(
            id=new_id("evt"),
            created_at=self.now,
            actor=actor or (SYSTEM if who is None else who.actor),
            action=action,
            target=target,
            site_id=site_id,
            env_id=env_id,
            address=None if who is None else who.address,
            request_id=None if who is None else who.request_id,
        )
        audit_log.add(self.db, entry)

    def environment_changed(self, env_id: str) -> None:
        """Say that an environment came, went, or is to be served otherwise."""
        self.environments.append(env_id)

    def deployment_queued(self, deployment: Deployment) -> None:
        """Say that a deployment and its job are written: it may begin in this transaction."""
        self._begin(self, deployment)

    def add(
        self,
        job_type: JobType,
        *,
        resource_type: str,
        resource_id: str,
        site_id: str,
        env_id: str,
    ) -> Job:
        """Queue a new job."""
        job = Job(
            id=new_id("job"),
            type=job_type,
            status=JobStatus.QUEUED,
            progress=0,
            resource_type=resource_type,
            resource_id=resource_id,
            site_id=site_id,
            env_id=env_id,
            result=None,
            error=None,
            version=1,
            owner=None,
            lease_id=None,
            attempts=0,
            losses=0,
            created_at=self.now,
            started_at=None,
            finished_at=None,
        )
        job_rows.add(self.db, job)
        self.touched.append(job)
        return job

    def start(
        self, job_id: str, *, owner: str | None = None, lease_id: str | None = None
    ) -> Job | None:
        started = job_rows.start(self.db, job_id, owner=owner, lease_id=lease_id, at=self.now)
        return self._keep(started)

    def requeue(self, job_id: str, *, is_loss: bool) -> Job | None:
        return self._keep(job_rows.requeue(self.db, job_id, is_loss=is_loss))

    def advance(self, job_id: str, progress: int) -> Job | None:
        return self._keep(job_rows.advance(self.db, job_id, progress))

    def succeed(self, job_id: str, result: dict[str, str]) -> Job | None:
        return self._finish(job_id, JobStatus.SUCCEEDED, result=result)

    def fail(self, job_id: str, error: Failure) -> Job | None:
        return self._finish(job_id, JobStatus.FAILED, error=error)

    def cancel(
        self, job_id: str, error: Failure | None = None, *, by: ActorRef | None = None
    ) -> Job | None:
        """`by`: whose work takes its place; or else who asks for it now."""
        ended = self._finish(job_id, JobStatus.CANCELED, error=error)
        if ended is not None:
            self.note(
                Action.JOB_CANCELED, job_id, site_id=ended.site_id, env_id=ended.env_id, actor=by
            )
        return ended

    def _finish(
        self,
        job_id: str,
        status: JobStatus,
        *,
        result: dict[str, str] | None = None,
        error: Failure | None = None,
    ) -> Job | None:
        ended = job_rows.finish(self.db, job_id, status, result=result, error=error, at=self.now)
        if ended is not None:
            asker = self._asker
            request_id = None if asker is None else asker.request_id
            webhooks.note_end(self.db, ended, self.now, request_id)
        return self._keep(ended)

    def _keep(self, job: Job | None) -> Job | None:
        if job is not None:
            self.touched.append(job)
        return job
