"""What webhooks are told: the body of an event, with an object of the API as its data.

Source: contract §5 "Webhooks".
"""

from __future__ import annotations

import sqlite3

import msgspec

from gitd.api import answers
from gitd.api.envelope import ENCODER, VERSION
from hooks.clock import rfc3339
from storage.model import EventType, Job, JobType, WebhookEvent
from storage.records import builds, deployments, environments, sites


class Body(msgspec.Struct, frozen=True):
    """`request_id`: of the request that ended the job; null where none did."""

    id: str
    type: str
    created_at: str
    api_version: str
    data: object
    request_id: str | None


def render(
    db: sqlite3.Connection, event: WebhookEvent, job: Job, event_type: EventType, event_id: str
) -> bytes | None:
    """See `hooks.webhooks.Render`."""
    data = _data(db, job, event_type)
    if data is None:
        return None
    at = rfc3339(event.created_at)
    return ENCODER.encode(Body(event_id, event_type.value, at, VERSION, data, event.request_id))


def _data(db: sqlite3.Connection, job: Job, event_type: EventType) -> object | None:
    if event_type in (EventType.JOB_SUCCEEDED, EventType.JOB_FAILED):
        return answers.job(job)
    if job.type is JobType.DEPLOYMENT_ROLL:
        deployment = deployments.get(db, job.resource_id)
        return None if deployment is None else answers.deployment(deployment)
    build = builds.get(db, job.resource_id)
    site = sites.find(db, job.site_id)
    environment = environments.get(db, job.env_id)
    if build is None or site is None or environment is None:
        return None
    return answers.build(site, environment, build)
