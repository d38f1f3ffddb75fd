"""The rows of the records, as values. Times are milliseconds since 1970, UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from storage.digest import Digest

FAILURE_CODE_CHARS_MAX = 100
FAILURE_CHARS_MAX = 16 * 1024


class EnvironmentKind(StrEnum):
    PRODUCTION = "production"
    STAGING = "staging"
    PREVIEW = "preview"


class EnvironmentStatus(StrEnum):
    ACTIVE = "active"
    PROVISIONING = "provisioning"
    SUSPENDED = "suspended"


class RouteTarget(StrEnum):
    LIVE = "live"
    STAGING = "staging"
    PREVIEW = "preview"
    IGNORE = "ignore"


class PushPolicy(StrEnum):
    """What a newer push does to the builds of older ones onto its environment."""

    OVERRIDE = "override"  # ends them, queued or running
    WAIT = "wait"  # ends those that are queued; the running one finishes first
    ALL = "all"  # every one is built, in order


class JobType(StrEnum):
    BUILD_RUN = "build.run"
    DEPLOYMENT_ROLL = "deployment.roll"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class Trigger(StrEnum):
    PUSH = "push"
    DEPLOY = "deploy"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    CONFIG = "config"  # a run-time variable or secret was changed


@dataclass(frozen=True, slots=True)
class ActorRef:
    """Who did it: `type` is `api_key`, `service_key` or `system`."""

    type: str
    id: str
    label: str


SYSTEM = ActorRef("system", "system", "gitd")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended badly: a dotted code that never changes, and a sentence for people.

    Both are cut, so that whoever sends what is too long gets it into no record and no log.
    """

    code: str
    message: str
    exit_status: int | None = None

    def __post_init__(self) -> None:
        if len(self.code) > FAILURE_CODE_CHARS_MAX:
            object.__setattr__(self, "code", self.code[:FAILURE_CODE_CHARS_MAX])
        if len(self.message) > FAILURE_CHARS_MAX:
            object.__setattr__(self, "message", f"{self.message[:FAILURE_CHARS_MAX]} [...]")


@dataclass(frozen=True, slots=True)
class Site:
    """`is_default_open`: nobody chose the default branch yet, and nothing was pushed."""

    id: str
    name: str
    default_branch: str
    created_at: int
    when_pushed_again: PushPolicy | None = None
    is_default_open: bool = False


@dataclass(frozen=True, slots=True)
class BranchRoute:
    """One rule of a site: branches that match `pattern` go to `target`; the first match wins."""

    pattern: str
    target: RouteTarget


@dataclass(frozen=True, slots=True)
class Environment:
    """`hostname` is one label, without the domain: the router adds that.

    `when_pushed_again`: None leaves it to the site, and that to the server.
    """

    id: str
    site_id: str
    slug: str
    kind: EnvironmentKind
    branch: str | None
    ephemeral: bool
    status: EnvironmentStatus
    hostname: str
    created_at: int
    when_pushed_again: PushPolicy | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A custom domain: a whole host name, in its one spelling, that leads to an environment."""

    id: str
    site_id: str
    env_id: str
    hostname: str
    actor: ActorRef
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`hint` is the secret's public head and tail; the secret itself is never kept.

    `previous_sha256`: of the secret that it had before it was rolled, good until `previous_until`.
    `created_by`: the id of the key that made it; None for one that was made on the server.
    """

    id: str
    family: str
    label: str
    secret_sha256: bytes = field(repr=False)
    hint: str
    scopes: tuple[str, ...]
    site_id: str | None
    env_id: str | None
    cidrs: tuple[str, ...]
    created_at: int
    expires_at: int
    revoked_at: int | None
    last_used_at: int | None
    previous_sha256: bytes | None = field(default=None, repr=False)
    previous_until: int | None = None
    created_by: str | None = None


class Action(StrEnum):
    """What the audit log tells of."""

    SITE_CREATED = "site.created"
    SITE_CHANGED = "site.changed"
    SITE_DELETED = "site.deleted"
    ROUTES_REPLACED = "routes.replaced"
    ENVIRONMENT_CREATED = "environment.created"
    ENVIRONMENT_CHANGED = "environment.changed"
    ENVIRONMENT_RENEWED = "environment.renewed"
    ENVIRONMENT_SUSPENDED = "environment.suspended"
    ENVIRONMENT_RESUMED = "environment.resumed"
    ENVIRONMENT_DELETED = "environment.deleted"
    DOMAIN_ADDED = "domain.added"
    DOMAIN_REMOVED = "domain.removed"
    VARIABLE_SET = "variable.set"
    VARIABLE_DELETED = "variable.deleted"
    SECRET_SET = "secret.set"  # noqa: S105 - no secret
    SECRET_DELETED = "secret.deleted"  # noqa: S105 - no secret
    PUSH_RECEIVED = "push.received"
    BUILD_QUEUED = "build.queued"
    DEPLOYMENT_QUEUED = "deployment.queued"
    RELEASE_MADE = "release.made"
    ARTIFACT_PINNED = "artifact.pinned"
    ARTIFACT_UNPINNED = "artifact.unpinned"
    JOB_CANCELED = "job.canceled"
    API_KEY_CREATED = "api_key.created"
    API_KEY_CHANGED = "api_key.changed"
    API_KEY_ROLLED = "api_key.rolled"
    API_KEY_REVOKED = "api_key.revoked"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_CHANGED = "webhook.changed"
    WEBHOOK_ROLLED = "webhook.rolled"
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_REDELIVERED = "webhook.redelivered"
    SIGNING_KEY_ROTATED = "signing_key.rotated"
    SIGNING_KEY_REVOKED = "signing_key.revoked"
    STATEMENTS_RESIGNED = "statements.resigned"
    BACKUP_RESTORED = "backup.restored"


@dataclass(frozen=True, slots=True)
class AuditLink:
    """The place of a line of the audit log among the others: see `storage.audit_chain`."""

    sequence: int
    previous: Digest
    digest: Digest


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A line of the audit log. `target`: the id of what was changed, or a variable's or domain's
    name. `action`: an `Action`; one that was read may have another.

    `address` and `request_id`: None when no request asked for it at that moment.
    """

    id: str
    created_at: int
    actor: ActorRef
    action: str
    target: str
    site_id: str | None
    env_id: str | None
    address: str | None
    request_id: str | None
    link: AuditLink | None = None


class EventType(StrEnum):
    """What webhooks can hear of."""

    SITE_DEPLOYED = "site.deployed"
    DEPLOYMENT_FAILED = "deployment.failed"
    BUILD_SUCCEEDED = "build.succeeded"
    BUILD_FAILED = "build.failed"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told of `events`, of one site or of all. `sealed`: its secret."""

    id: str
    url: str
    events: tuple[str, ...]
    site_id: str | None
    is_enabled: bool
    sealed: bytes = field(repr=False)
    created_at: int


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A job that ended, of which webhooks are to be told. `request_id`: of who ended it, if any."""

    id: str
    job_id: str
    created_at: int
    request_id: str | None


class DeliveryStatus(StrEnum):
    QUEUED = "queued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event on its way to a webhook. `next_at`: when it is tried next; None when it is over.

    `http_status` and `error`: of the last attempt.
    """

    id: str
    webhook_id: str
    event_id: str
    event_type: str
    body: bytes
    status: DeliveryStatus
    attempts: int
    next_at: int | None
    http_status: int | None
    error: str | None
    created_at: int
    attempted_at: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """`version` grows with every change.

    Attributes:
        owner: the builder slot that holds the lease.
        lease_id: the lease: only calls that name it count.
        attempts: how often it was started.
        losses: how often its owner was lost.
    """

    id: str
    type: JobType
    status: JobStatus
    progress: int
    resource_type: str
    resource_id: str
    site_id: str
    env_id: str
    result: dict[str, str] | None
    error: Failure | None
    version: int
    owner: str | None
    lease_id: str | None
    attempts: int
    losses: int
    created_at: int
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True)
class RefMove:
    """A ref that a push moves. `old` and `new` are object ids; all zeros mean absent."""

    ref: str
    old: str
    new: str

    @property
    def is_delete(self) -> bool:
        return set(self.new) == {"0"}


@dataclass(frozen=True, slots=True)
class PushRecord:
    """A push: written before its refs move, so that a crash between them loses nothing."""

    id: str
    site_id: str
    actor: ActorRef
    moves: tuple[RefMove, ...]
    options: tuple[str, ...]
    created_at: int
    landed_at: int | None


@dataclass(frozen=True, slots=True)
class Build:
    id: str
    site_id: str
    env_id: str
    job_id: str
    ref: str | None
    commit: str
    status: JobStatus
    clean: bool
    deploys: bool
    pushed: bool
    cached: bool
    profile: str | None
    artifact_id: str | None
    deployment_id: str | None
    superseded_by: str | None
    error: Failure | None
    timings: dict[str, float]
    actor: ActorRef
    created_at: int
    started_at: int | None
    finished_at: int | None

    @property
    def waited(self) -> dict[str, float]:
        """How long it was queued, in seconds, as the first of its timings."""
        if self.started_at is None:
            return {}
        return {"queued": (self.started_at - self.created_at) / 1000}


@dataclass(frozen=True, slots=True)
class Artifact:
    """`expired_at`: since when it is in no list any more; `dropped_at`: since when it is gone."""

    id: str
    digest: str
    manifest_sha256: str
    files: int
    size_bytes: int
    created_at: int
    expired_at: int | None = None
    dropped_at: int | None = None

    @property
    def is_available(self) -> bool:
        """Whether it can be deployed."""
        return self.expired_at is None


@dataclass(frozen=True, slots=True)
class Attestation:
    """One signed statement that a build of a site gave an artifact.

    `sequence`: its place in the order that statements were taken in, from 1; the records give it.
    `is_revoked`: its key was revoked, so that it proves nothing.
    """

    envelope_sha256: str
    artifact_id: str
    site_id: str
    build_id: str
    key_id: str
    signature: str
    profile: str
    ref: str | None
    commit: str
    created_at: int
    sequence: int = 0
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class SiteArtifact:
    """An artifact as an environment of a site sees it: with the statement that it goes by.

    `is_damaged`: something of it was found damaged in the store, and is not mended yet.
    `is_trusted`: not previews alone, and other ones than the environment, say how it is run.
    """

    artifact: Artifact
    attestation: Attestation
    is_damaged: bool = False
    is_trusted: bool = True


class VariableUse(StrEnum):
    """Where a variable's value goes: into builds that declare it, into what runs, or into both."""

    BUILD = "build"
    RUN = "run"
    BOTH = "both"

    @property
    def is_build(self) -> bool:
        return self is not VariableUse.RUN

    @property
    def is_run(self) -> bool:
        return self is not VariableUse.BUILD


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable or a secret of a site (`env_id` is None), or of an environment, where it wins.

    `sealed`: its value, encrypted.
    """

    site_id: str
    env_id: str | None
    name: str
    is_secret: bool
    used_in: VariableUse
    sealed: bytes = field(repr=False)
    updated_at: int

    @property
    def place(self) -> str:
        """What its sealed value is bound to."""
        return f"{self.site_id}/{self.env_id or ''}/{self.name}"


@dataclass(frozen=True, slots=True)
class BuildCache:
    """A tree that builds of a site keep for later builds with the same key."""

    id: str
    site_id: str
    profile: str
    cache_key: str
    tree_digest: str
    files: int
    size_bytes: int
    created_at: int
    used_at: int


@dataclass(frozen=True, slots=True)
class EnvironmentConfig:
    """What the programs of an environment are given: one version of it, which never changes.

    `version` counts from 1 for each environment. `digest`: of the values, under the server's key,
    so that it tells nothing of them; equal for equal ones. `pin`: their digest as release
    statements have it, another one for each version. `sealed`: the values, encrypted.
    """

    env_id: str
    version: int
    digest: str
    pin: str
    sealed: bytes = field(repr=False)
    created_at: int


def config_place(env_id: str, version: int) -> str:
    """What the sealed values of a config are bound to."""
    return f"{env_id}/config/{version}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """`config_version`: of the environment's config; 0 is none at all, None not settled yet."""

    id: str
    site_id: str
    env_id: str
    job_id: str
    artifact_id: str
    envelope_sha256: str
    trigger: Trigger
    status: JobStatus
    runs_release_command: bool
    release_id: str | None
    error: Failure | None
    ref: str | None
    commit: str | None
    actor: ActorRef
    created_at: int
    started_at: int | None
    finished_at: int | None
    config_version: int | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """`config_version`: as of its deployment; None for one that is older than configs."""

    id: str
    site_id: str
    env_id: str
    deployment_id: str
    artifact_id: str
    ref: str | None
    commit: str | None
    actor: ActorRef
    deployed_at: int
    is_current: bool
    config_version: int | None = None
