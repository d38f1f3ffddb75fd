"""The objects of the API: what a record looks like to a client.

Source: contract §1, §3, §4, §5.
"""

from __future__ import annotations

from typing import Literal, cast
from urllib.parse import quote

import msgspec

from gitd.families import Family
from hooks.clock import rfc3339
from hooks.deploys.wire import Running
from hooks.follow import Addresses
from hooks.jobs import QueuePlace
from storage import model
from storage.model import (
    Action,
    EnvironmentKind,
    EnvironmentStatus,
    JobStatus,
    JobType,
    PushPolicy,
    RouteTarget,
    Trigger,
    VariableUse,
)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a job ended badly. `exit_status` is that of the user's command, if one failed."""

    code: str
    message: str
    exit_status: int | None = None


class Actor(msgspec.Struct, frozen=True):
    type: str
    id: str
    label: str


class JobResource(msgspec.Struct, frozen=True):
    """What the job works on."""

    type: str
    id: str
    site_id: str
    env_id: str


class JobLinks(msgspec.Struct, frozen=True):
    self: str
    stream: str


class Job(msgspec.Struct, frozen=True):
    """The handle of work that goes on. `progress` is 0 to 100 and never falls.

    `queue_position`: of a build that is queued, 1 for the next one to start; else null.
    """

    id: str
    type: JobType
    status: JobStatus
    progress: int
    queue_position: int | None
    created_at: str
    resource: JobResource
    result: dict[str, str] | None
    error: Failure | None
    links: JobLinks


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The data of a stream's `log` event.

    `mark`: the stage begins or ends with this line, after so many `seconds`.
    """

    line: str
    at: str
    stage: str
    mark: Literal["", "begin", "end"] = ""
    seconds: float | None = None


class Variable(msgspec.Struct, frozen=True):
    """A value that builds or what runs are given. `scope` says where it is set.

    `jobs`: of the rolls that setting it asked for, so that what runs is given it.
    """

    name: str
    value: str
    used_in: VariableUse
    scope: Literal["site", "environment"]
    updated_at: str
    jobs: list[str]


class Secret(msgspec.Struct, frozen=True):
    """As a variable; its value is never shown."""

    name: str
    used_in: VariableUse
    scope: Literal["site", "environment"]
    updated_at: str
    jobs: list[str]


class ChangedVariables(msgspec.Struct, frozen=True):
    """Variables that were set in one change. `jobs`: of the rolls that it asked for."""

    variables: list[Variable]
    jobs: list[str]


class ChangedSecrets(msgspec.Struct, frozen=True):
    """Secrets that were set in one change. `jobs`: as of variables."""

    secrets: list[Secret]
    jobs: list[str]


class DeletedValue(msgspec.Struct, frozen=True):
    """A variable or secret that is no more. `jobs`: as of a variable that is set."""

    id: str
    jobs: list[str]
    deleted: bool = True


class BuildLinks(msgspec.Struct, frozen=True):
    self: str
    log: str
    job: str


class Build(msgspec.Struct, frozen=True):
    """A run that turns a commit into an artifact. `timings` are seconds by phase.

    `superseded_by`: the build of the newer push that took its place.
    """

    id: str
    site_id: str
    env_id: str
    job_id: str
    status: JobStatus
    ref: str | None
    commit: str
    profile: str | None
    clean: bool
    cached: bool
    artifact_id: str | None
    deployment_id: str | None
    superseded_by: str | None
    error: Failure | None
    timings: dict[str, float]
    actor: Actor
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: BuildLinks


class ArtifactLinks(msgspec.Struct, frozen=True):
    self: str
    manifest: str
    provenance: str


class Artifact(msgspec.Struct, frozen=True):
    """A build's signed output. `size` is in bytes; the same content always has the same id.

    `status` is `ready` when it can be deployed; `expired` when it is not kept any more; `revoked`
    when the key that vouched for it was; `damaged` when something of it is, in the store, until it
    is built again or mended. `pinned`: it is kept until it is unpinned.
    """

    id: str
    status: str
    digest: str
    signature: str
    key_id: str
    size: int
    files: int
    profile: str
    ref: str | None
    commit: str
    build_id: str
    created_at: str
    pinned: bool
    links: ArtifactLinks


class Deployment(msgspec.Struct, frozen=True):
    """A request to roll one artifact onto one environment.

    `config_version`: which version of the environment's config its programs are given; 0 for no
    variables at all, null while it is not settled.
    """

    id: str
    site_id: str
    env_id: str
    job_id: str
    status: JobStatus
    trigger: Trigger
    artifact_id: str
    release_id: str | None
    ref: str | None
    commit: str | None
    config_version: int | None
    error: Failure | None
    actor: Actor
    created_at: str
    started_at: str | None
    finished_at: str | None


class Release(msgspec.Struct, frozen=True):
    """What ran on an environment, and since when. `available`: whether it can be brought back.

    `config_version` and `trigger`: as of its deployment.
    """

    id: str
    artifact_id: str
    deployment_id: str
    trigger: Trigger
    ref: str | None
    commit: str | None
    deployed_at: str
    actor: Actor
    current: bool
    available: bool
    config_version: int | None


class Site(msgspec.Struct, frozen=True):
    """`when_pushed_again`: null means the server's setting."""

    id: str
    name: str
    default_branch: str
    git_url: str
    when_pushed_again: PushPolicy | None
    created_at: str


class CapabilityLimits(msgspec.Struct, frozen=True):
    """`previews` and `preview_idle_s`: null is without bound. `domains`: of one environment.
    `wait_s`: of `?wait=`.
    """

    previews: int | None
    preview_idle_s: int | None
    domains: int
    page_items: int
    body_bytes: int
    wait_s: int


class Capabilities(msgspec.Struct, frozen=True):
    """What a site can do here. `scopes`: all that the asking key may, implied ones too."""

    site_id: str
    features: dict[str, bool]
    profiles: list[str]
    environment_kinds: list[str]
    route_targets: list[str]
    limits: CapabilityLimits
    scopes: list[str]


class Environment(msgspec.Struct, frozen=True):
    """`when_pushed_again`: null means the site's. `expires_at`: when it is removed at the
    earliest, unless it is pushed to, built or rolled until then; null for those that stay.
    `domains`: the custom domains that lead to it besides, the oldest first.
    `running`: how its program stands; null where none runs, or the site host is away.
    """

    id: str
    site_id: str
    slug: str
    kind: EnvironmentKind
    branch: str | None
    ephemeral: bool
    status: EnvironmentStatus
    when_pushed_again: PushPolicy | None
    preview_url: str
    domains: list[str]
    created_at: str
    expires_at: str | None
    running: Running | None


class DomainDns(msgspec.Struct, frozen=True):
    """What makes the name lead here: a CNAME record to `cname`, or, where a name can have none
    (as example.com itself), A and AAAA records with `addresses`. Null and empty where the server's
    settings do not say.
    """

    cname: str | None
    addresses: list[str]


class Domain(msgspec.Struct, frozen=True):
    """A custom domain of an environment. `hostname`: in lower case, other scripts as `xn--`.

    `status` is `active`; or `reserved`, while the settings have it among the server's own names, so
    that it leads nowhere. `dns`: whether it was set is not looked at.
    """

    id: str
    site_id: str
    env_id: str
    hostname: str
    url: str
    status: Literal["active", "reserved"]
    dns: DomainDns
    actor: Actor
    created_at: str


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Branches that match `pattern` (a name, or a glob such as `release/*`) go to `target`."""

    pattern: str
    target: RouteTarget


class Routes(msgspec.Struct, frozen=True):
    """The first route that matches wins; a branch that matches none is ignored."""

    routes: list[Route]


class ApiKey(msgspec.Struct, frozen=True):
    """Who may do what. `hint`: the head and the tail of its secret.

    `previous_secret_until`: how long the secret works that it had before it was rolled.
    `created_by`: the key that made it; null for one that was made on the server.
    """

    id: str
    label: str
    hint: str
    family: str
    scopes: list[str]
    site_id: str | None
    env_id: str | None
    cidrs: list[str]
    created_at: str
    expires_at: str
    last_used_at: str | None
    previous_secret_until: str | None
    created_by: str | None


class NewApiKey(ApiKey, frozen=True):
    """A key and its secret, which is shown once: null in the answer to a repeated request."""

    secret: str | None


class AuditEntry(msgspec.Struct, frozen=True):
    """Who changed what. `target`: the id of what was changed; of a variable, a secret or a
    domain, its name.

    `address` and `request_id`: null where no request asked for it at that moment. `digest` is that
    of this line and, through `previous`, of all before it: the one before has `sequence` - 1.
    """

    id: str
    created_at: str
    actor: Actor
    action: Action
    target: str
    site_id: str | None
    env_id: str | None
    address: str | None
    request_id: str | None
    sequence: int
    previous: str
    digest: str


class Webhook(msgspec.Struct, frozen=True):
    """Who is told of what. `site_id`: null for all sites."""

    id: str
    url: str
    events: list[str]
    site_id: str | None
    enabled: bool
    created_at: str


class NewWebhook(Webhook, frozen=True):
    """A webhook and its secret, which is shown once: null in the answer to a repeated request."""

    secret: str | None


class Delivery(msgspec.Struct, frozen=True):
    """An event on its way. `response_status` and `error` are of the last attempt; `next_attempt_at`
    is null when there is no other.
    """

    id: str
    webhook_id: str
    event_id: str
    event_type: str
    status: str
    attempts: int
    response_status: int | None
    error: str | None
    created_at: str
    attempted_at: str | None
    next_attempt_at: str | None


class Deleted(msgspec.Struct, frozen=True):
    id: str
    deleted: bool = True


# -- from records ---------------------------------------------------------------------------------


def time_of(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def failure(error: model.Failure | None) -> Failure | None:
    return None if error is None else Failure(error.code, error.message, error.exit_status)


def actor(ref: model.ActorRef) -> Actor:
    return Actor(ref.type, ref.id, ref.label)


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{job_id}"


def job(row: model.Job, place: QueuePlace | None = None) -> Job:
    path = job_path(row.id)
    return Job(
        id=row.id,
        type=row.type,
        status=row.status,
        progress=row.progress,
        queue_position=None if place is None else place.before + 1,
        created_at=rfc3339(row.created_at),
        resource=JobResource(row.resource_type, row.resource_id, row.site_id, row.env_id),
        result=row.result,
        error=failure(row.error),
        links=JobLinks(path, f"{path}/stream"),
    )


def environment_path(site: model.Site, environment: model.Environment) -> str:
    return f"/v1/sites/{site.name}/environments/{environment.slug}"


def build(site: model.Site, environment: model.Environment, row: model.Build) -> Build:
    path = f"{environment_path(site, environment)}/builds/{row.id}"
    return Build(
        id=row.id,
        site_id=row.site_id,
        env_id=row.env_id,
        job_id=row.job_id,
        status=row.status,
        ref=row.ref,
        commit=row.commit,
        profile=row.profile,
        clean=row.clean,
        cached=row.cached,
        artifact_id=row.artifact_id,
        deployment_id=row.deployment_id,
        superseded_by=row.superseded_by,
        error=failure(row.error),
        timings=row.timings,
        actor=actor(row.actor),
        created_at=rfc3339(row.created_at),
        started_at=time_of(row.started_at),
        finished_at=time_of(row.finished_at),
        links=BuildLinks(path, f"{path}/log", job_path(row.job_id)),
    )


def artifact(
    site: model.Site,
    environment: model.Environment,
    found: model.SiteArtifact,
    *,
    is_pinned: bool,
) -> Artifact:
    row, made_by = found.artifact, found.attestation
    path = f"{environment_path(site, environment)}/artifacts/{row.id}"
    return Artifact(
        id=row.id,
        status=_status(found),
        digest=row.digest,
        signature=made_by.signature,
        key_id=made_by.key_id,
        size=row.size_bytes,
        files=row.files,
        profile=made_by.profile,
        ref=made_by.ref,
        commit=made_by.commit,
        build_id=made_by.build_id,
        created_at=rfc3339(made_by.created_at),  # another site may have made the same before
        pinned=is_pinned,
        links=ArtifactLinks(path, f"{path}/manifest", f"{path}/provenance"),
    )


def _status(found: model.SiteArtifact) -> str:
    if not found.artifact.is_available:
        return "expired"
    if found.attestation.is_revoked:
        return "revoked"
    return "damaged" if found.is_damaged else "ready"


def deployment(row: model.Deployment) -> Deployment:
    return Deployment(
        id=row.id,
        site_id=row.site_id,
        env_id=row.env_id,
        job_id=row.job_id,
        status=row.status,
        trigger=row.trigger,
        artifact_id=row.artifact_id,
        release_id=row.release_id,
        ref=row.ref,
        commit=row.commit,
        config_version=row.config_version,
        error=failure(row.error),
        actor=actor(row.actor),
        created_at=rfc3339(row.created_at),
        started_at=time_of(row.started_at),
        finished_at=time_of(row.finished_at),
    )


def release(row: model.Release, trigger: Trigger, *, is_available: bool) -> Release:
    return Release(
        id=row.id,
        artifact_id=row.artifact_id,
        deployment_id=row.deployment_id,
        trigger=trigger,
        ref=row.ref,
        commit=row.commit,
        deployed_at=rfc3339(row.deployed_at),
        actor=actor(row.actor),
        current=row.is_current,
        available=is_available,
        config_version=row.config_version,
    )


def site(addresses: Addresses, row: model.Site) -> Site:
    return Site(
        id=row.id,
        name=row.name,
        default_branch=row.default_branch,
        git_url=f"{addresses.server}/{quote(row.name)}.git",
        when_pushed_again=row.when_pushed_again,
        created_at=rfc3339(row.created_at),
    )


def api_key(row: model.ApiKey) -> ApiKey:
    return ApiKey(
        id=row.id,
        label=row.label,
        hint=row.hint,
        family=Family(row.family).word,
        scopes=list(row.scopes),
        site_id=row.site_id,
        env_id=row.env_id,
        cidrs=list(row.cidrs),
        created_at=rfc3339(row.created_at),
        expires_at=rfc3339(row.expires_at),
        last_used_at=time_of(row.last_used_at),
        previous_secret_until=time_of(row.previous_until),
        created_by=row.created_by,
    )


def new_api_key(row: model.ApiKey, secret: str | None) -> NewApiKey:
    return NewApiKey(**msgspec.structs.asdict(api_key(row)), secret=secret)


def audit_entry(row: model.AuditEntry) -> AuditEntry:
    assert row.link is not None, "it was read"
    return AuditEntry(
        id=row.id,
        created_at=rfc3339(row.created_at),
        actor=actor(row.actor),
        action=cast("Action", row.action),  # which it is in a log that is whole
        target=row.target,
        site_id=row.site_id,
        env_id=row.env_id,
        address=row.address,
        request_id=row.request_id,
        sequence=row.link.sequence,
        previous=str(row.link.previous),
        digest=str(row.link.digest),
    )


def webhook(row: model.Webhook) -> Webhook:
    return Webhook(
        id=row.id,
        url=row.url,
        events=list(row.events),
        site_id=row.site_id,
        enabled=row.is_enabled,
        created_at=rfc3339(row.created_at),
    )


def new_webhook(row: model.Webhook, secret: str | None) -> NewWebhook:
    return NewWebhook(**msgspec.structs.asdict(webhook(row)), secret=secret)


def delivery(row: model.Delivery) -> Delivery:
    return Delivery(
        id=row.id,
        webhook_id=row.webhook_id,
        event_id=row.event_id,
        event_type=row.event_type,
        status=row.status.value,
        attempts=row.attempts,
        response_status=row.http_status,
        error=row.error,
        created_at=rfc3339(row.created_at),
        attempted_at=time_of(row.attempted_at),
        next_attempt_at=time_of(row.next_at),
    )


def variable(row: model.Variable, value: str, jobs: list[str]) -> Variable:
    return Variable(row.name, value, row.used_in, _scope(row), rfc3339(row.updated_at), jobs)


def secret(row: model.Variable, jobs: list[str]) -> Secret:
    return Secret(row.name, row.used_in, _scope(row), rfc3339(row.updated_at), jobs)


def _scope(row: model.Variable) -> Literal["site", "environment"]:
    return "site" if row.env_id is None else "environment"


def environment(
    addresses: Addresses,
    row: model.Environment,
    *,
    domains: list[str],
    expires_at: int | None,
    running: Running | None,
) -> Environment:
    return Environment(
        id=row.id,
        site_id=row.site_id,
        slug=row.slug,
        kind=row.kind,
        branch=row.branch,
        ephemeral=row.ephemeral,
        status=row.status,
        when_pushed_again=row.when_pushed_again,
        preview_url=addresses.of_environment(row),
        domains=domains,
        created_at=rfc3339(row.created_at),
        expires_at=None if expires_at is None else rfc3339(expires_at),
        running=running if row.status is EnvironmentStatus.ACTIVE else None,
    )


def domain(addresses: Addresses, row: model.Domain, dns: DomainDns) -> Domain:
    return Domain(
        id=row.id,
        site_id=row.site_id,
        env_id=row.env_id,
        hostname=row.hostname,
        url=addresses.of_domain(row.hostname),
        status="reserved" if addresses.platform.include(row.hostname) else "active",
        dns=dns,
        actor=actor(row.actor),
        created_at=rfc3339(row.created_at),
    )
