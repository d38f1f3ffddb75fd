"""The table of the API: what there is, who may, what goes in, what comes out.

The router and `/v1/openapi.json` are both made from it.
"""

from __future__ import annotations

from gitd.api import answers
from gitd.api.api_keys import PATH as API_KEYS
from gitd.api.api_keys import ApiKeyBody, ApiKeyChange, ApiKeys, DeleteQuery, RollBody
from gitd.api.artifacts import ENVELOPE_TYPE, MANIFEST_TYPE, Artifacts
from gitd.api.audit_log import PATH as AUDIT_LOG
from gitd.api.audit_log import AuditLog
from gitd.api.builds import BuildBody, Builds, LogQuery
from gitd.api.capabilities import Capabilities
from gitd.api.deployments import DeploymentBody, Deployments, PromotionBody, RollbackBody
from gitd.api.domains import DomainBody, EnvironmentDomains
from gitd.api.endpoint import Endpoint, Form, Reach
from gitd.api.environments import EnvironmentBody, Environments, EnvironmentsQuery
from gitd.api.exports import TAR_TYPE, Exports
from gitd.api.jobs import JobQuery, Jobs, JobsQuery, StreamQuery
from gitd.api.paging import PageQuery
from gitd.api.program_logs import ProgramLogQuery, ProgramLogs, ProgramLogStreamQuery
from gitd.api.sites import PolicyBody, RoutesBody, SiteBody, SiteChangeBody, Sites
from gitd.api.stream import EVENT_STREAM
from gitd.api.variables import RollQuery, VariableBody, Variables, VariablesBody
from gitd.api.webhooks import PATH as WEBHOOKS
from gitd.api.webhooks import WebhookBody, WebhookChange, Webhooks

SITES = "/v1/sites"
SITE = SITES + "/{site}"
ENVIRONMENTS = SITE + "/environments"
ENVIRONMENT = ENVIRONMENTS + "/{env}"
DOMAINS = ENVIRONMENT + "/domains"
DOMAIN = DOMAINS + "/{domain}"
JOBS = "/v1/jobs"
JOB = JOBS + "/{job}"
API_KEY = API_KEYS + "/{key}"
WEBHOOK = WEBHOOKS + "/{webhook}"
DELIVERIES = WEBHOOK + "/deliveries"
OF_WHAT_STAYS = "Production and staging want environments:admin or deployments:write too"
BOUNDS_OF_KEYS = ("permission.beyond_key", "permission.secret_rolled")


def jobs_table(jobs: Jobs) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            JOBS,
            jobs.list,
            "List jobs, newest first",
            scope="jobs:read",
            query=JobsQuery,
            answer=answers.Job,
            form=Form.LIST,
            is_live=True,
        ),
        Endpoint(
            "GET",
            JOB,
            jobs.show,
            "Show a job, or wait for it to change",
            scope_note="jobs:read, or deployments:read for a job of the key's own",
            query=JobQuery,
            answer=answers.Job,
            admit=jobs.admit_reader,
        ),
        Endpoint(
            "GET",
            JOB + "/stream",
            jobs.stream,
            "Follow a job as Server-Sent Events",
            scope_note="jobs:read, or deployments:read for a job of the key's own",
            query=StreamQuery,
            form=Form.RAW,
            media_type=EVENT_STREAM,
            admit=jobs.admit_reader,
            errors=("stream.position_invalid",),
        ),
        Endpoint(
            "POST",
            JOB + "/cancel",
            jobs.cancel,
            "Cancel a queued or running job",
            scope_note="deployments:write",
            answer=answers.Job,
            admit=jobs.admit_canceler,
        ),
    )


def api_keys_table(keys: ApiKeys) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            API_KEYS,
            keys.list,
            "List API keys, newest first",
            scope="keys:write",
            query=PageQuery,
            answer=answers.ApiKey,
            form=Form.LIST,
        ),
        Endpoint(
            "POST",
            API_KEYS,
            keys.create,
            "Make an API key, and show its secret once",
            scope="keys:write",
            body=ApiKeyBody,
            answer=answers.NewApiKey,
            status=201,
            is_creating=True,
            errors=(
                "site.not_found",
                "environment.not_found",
                "api_key.too_many",
                *BOUNDS_OF_KEYS,
            ),
        ),
        Endpoint(
            "GET", API_KEY, keys.show, "Show an API key", scope="keys:write", answer=answers.ApiKey
        ),
        Endpoint(
            "PATCH",
            API_KEY,
            keys.change,
            "Change what an API key is called, or where it works from",
            scope="keys:write",
            body=ApiKeyChange,
            answer=answers.ApiKey,
            errors=BOUNDS_OF_KEYS,
        ),
        Endpoint(
            "DELETE",
            API_KEY,
            keys.delete,
            "End an API key at once",
            scope="keys:write",
            query=DeleteQuery,
            answer=answers.Deleted,
            errors=("permission.secret_rolled",),
        ),
        Endpoint(
            "POST",
            API_KEY + "/roll",
            keys.roll,
            "Give an API key another secret, and show it once",
            scope="keys:write",
            body=RollBody,
            answer=answers.NewApiKey,
            is_creating=True,
            errors=BOUNDS_OF_KEYS,
        ),
    )


def audit_log_table(audit_log: AuditLog) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            AUDIT_LOG,
            audit_log.list,
            "List who changed what, newest first",
            scope="sites:admin",
            query=PageQuery,
            answer=answers.AuditEntry,
            form=Form.LIST,
        ),
    )


def webhooks_table(webhooks: Webhooks) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            WEBHOOKS,
            webhooks.list,
            "List webhooks, newest first",
            scope="webhooks:read",
            query=PageQuery,
            answer=answers.Webhook,
            form=Form.LIST,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "POST",
            WEBHOOKS,
            webhooks.create,
            "Make a webhook, and show its secret once",
            scope="webhooks:write",
            body=WebhookBody,
            answer=answers.NewWebhook,
            status=201,
            is_creating=True,
            errors=("site.not_found", "webhook.too_many"),
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "GET",
            WEBHOOK,
            webhooks.show,
            "Show a webhook",
            scope="webhooks:read",
            answer=answers.Webhook,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "PATCH",
            WEBHOOK,
            webhooks.change,
            "Change where a webhook leads, or what it is told of",
            scope="webhooks:write",
            body=WebhookChange,
            answer=answers.Webhook,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "DELETE",
            WEBHOOK,
            webhooks.delete,
            "Tell a webhook nothing more",
            scope="webhooks:write",
            answer=answers.Deleted,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "POST",
            WEBHOOK + "/roll",
            webhooks.roll,
            "Give a webhook another secret, and show it once",
            scope="webhooks:write",
            answer=answers.NewWebhook,
            is_creating=True,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "GET",
            DELIVERIES,
            webhooks.list_deliveries,
            "List what a webhook was told, newest first",
            scope="webhooks:read",
            query=PageQuery,
            answer=answers.Delivery,
            form=Form.LIST,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "POST",
            DELIVERIES + "/{delivery}/redeliver",
            webhooks.redeliver,
            "Send once more what was sent",
            scope="webhooks:write",
            answer=answers.Delivery,
            status=201,
            is_creating=True,
            reach=Reach.WHOLE_SITE,
        ),
    )


def sites_table(sites: Sites) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            SITES,
            sites.list,
            "List sites, newest first",
            scope="sites:read",
            query=PageQuery,
            answer=answers.Site,
            form=Form.LIST,
        ),
        Endpoint(
            "POST",
            SITES,
            sites.create,
            "Make a site with its repository, production and staging",
            scope="sites:write",
            body=SiteBody,
            answer=answers.Site,
            status=201,
            is_creating=True,
            reach=Reach.SERVER,
            errors=("site.name_taken",),
        ),
        Endpoint("GET", SITE, sites.show, "Show a site", scope="sites:read", answer=answers.Site),
        Endpoint(
            "PATCH",
            SITE,
            sites.change,
            "Change the default branch, and what newer pushes do to older builds",
            scope="sites:write",
            body=SiteChangeBody,
            answer=answers.Site,
            reach=Reach.WHOLE_SITE,
            errors=("site.branch_routed_elsewhere",),
        ),
        Endpoint(
            "DELETE",
            SITE,
            sites.delete,
            "Delete a site with its repository and environments",
            scope="sites:admin",
            answer=answers.Deleted,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "GET",
            SITE + "/branch-routes",
            sites.show_routes,
            "Show which branch goes where",
            scope="sites:read",
            answer=answers.Routes,
        ),
        Endpoint(
            "PUT",
            SITE + "/branch-routes",
            sites.replace_routes,
            "Replace all branch routes",
            scope="sites:write",
            body=RoutesBody,
            answer=answers.Routes,
            reach=Reach.WHOLE_SITE,
        ),
    )


def capabilities_table(capabilities: Capabilities) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            SITE + "/capabilities",
            capabilities.show,
            "Show what the site can do here, and the asking key on it",
            scope="sites:read",
            answer=answers.Capabilities,
        ),
    )


def environments_table(environments: Environments) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            ENVIRONMENTS,
            environments.list,
            "List a site's environments, newest first",
            scope="environments:read",
            query=EnvironmentsQuery,
            answer=answers.Environment,
            form=Form.LIST,
            is_live=True,
        ),
        Endpoint(
            "POST",
            ENVIRONMENTS,
            environments.create,
            "Make a preview for a branch",
            scope="environments:write",
            body=EnvironmentBody,
            answer=answers.Environment,
            status=201,
            is_creating=True,
            reach=Reach.WHOLE_SITE,
            errors=("environment.exists", "environment.routed_elsewhere"),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT,
            environments.show,
            "Show an environment",
            scope="environments:read",
            answer=answers.Environment,
            is_live=True,
        ),
        Endpoint(
            "PATCH",
            ENVIRONMENT,
            environments.change,
            "Change what newer pushes do to older builds onto it",
            scope="environments:write",
            body=PolicyBody,
            answer=answers.Environment,
        ),
        Endpoint(
            "DELETE",
            ENVIRONMENT,
            environments.delete,
            "Tear a preview down",
            scope="environments:write",
            answer=answers.Deleted,
            errors=("environment.permanent",),
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/renew",
            environments.renew,
            "Begin the time anew after which an unused preview is removed",
            scope="environments:write",
            answer=answers.Environment,
            errors=("environment.permanent",),
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/suspend",
            environments.suspend,
            "Serve nothing until it is resumed. " + OF_WHAT_STAYS,
            scope="environments:write",
            answer=answers.Environment,
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/resume",
            environments.resume,
            "Serve again what was served. " + OF_WHAT_STAYS,
            scope="environments:write",
            answer=answers.Environment,
        ),
    )


def domains_table(domains: EnvironmentDomains) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            DOMAINS,
            domains.list,
            "List the custom domains of an environment, newest first",
            scope="domains:read",
            query=PageQuery,
            answer=answers.Domain,
            form=Form.LIST,
        ),
        Endpoint(
            "POST",
            DOMAINS,
            domains.create,
            "Let a host name lead to production or staging",
            scope="domains:write",
            body=DomainBody,
            answer=answers.Domain,
            status=201,
            is_creating=True,
            errors=(
                "domain.exists",
                "domain.taken",
                "domain.reserved",
                "domain.too_many",
                "domain.not_for_previews",
            ),
        ),
        Endpoint(
            "GET",
            DOMAIN,
            domains.show,
            "Show a custom domain, by its id or its host name",
            scope="domains:read",
            answer=answers.Domain,
        ),
        Endpoint(
            "DELETE",
            DOMAIN,
            domains.delete,
            "Let a host name lead there no more",
            scope="domains:write",
            answer=answers.Deleted,
        ),
    )


def variables_table(variables: Variables) -> tuple[Endpoint, ...]:
    return tuple(
        endpoint
        for where, place, reach in (
            (SITE, "a site", Reach.WHOLE_SITE),
            (ENVIRONMENT, "an environment", Reach.PART),
        )
        for is_secret in (False, True)
        for endpoint in _variables_at(variables, where, place, reach, is_secret=is_secret)
    )


def _variables_at(
    variables: Variables, where: str, place: str, reach: Reach, *, is_secret: bool
) -> tuple[Endpoint, ...]:
    kind = "secret" if is_secret else "variable"
    answer = answers.Secret if is_secret else answers.Variable
    all_of_them, one = f"{where}/{kind}s", f"{where}/{kind}s/{{{kind}}}"
    never_shown = ", without their values" if is_secret else ""
    return (
        Endpoint(
            "GET",
            all_of_them,
            variables.lister(is_secret=is_secret),
            f"List the {kind}s of {place}{never_shown}",
            scope="credentials:read",
            query=PageQuery,
            answer=answer,
            form=Form.LIST,
            reach=reach,
        ),
        Endpoint(
            "PATCH",
            all_of_them,
            variables.several_setter(is_secret=is_secret),
            f"Set some {kind}s of {place}, all of them or none, in one change",
            scope="credentials:write",
            query=RollQuery,
            body=VariablesBody,
            answer=answers.ChangedSecrets if is_secret else answers.ChangedVariables,
            reach=reach,
            errors=("variable.other_kind", "variable.too_many"),
        ),
        Endpoint(
            "PUT",
            one,
            variables.setter(is_secret=is_secret),
            f"Set a {kind} of {place}",
            scope="credentials:write",
            query=RollQuery,
            body=VariableBody,
            answer=answer,
            reach=reach,
            errors=("variable.other_kind", "variable.too_many"),
        ),
        Endpoint(
            "DELETE",
            one,
            variables.deleter(is_secret=is_secret),
            f"Delete a {kind} of {place}",
            scope="credentials:write",
            query=RollQuery,
            answer=answers.DeletedValue,
            reach=reach,
        ),
    )


def builds_table(builds: Builds) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "POST",
            ENVIRONMENT + "/builds",
            builds.start,
            "Build a ref",
            scope="deployments:write",
            body=BuildBody,
            answer=answers.Job,
            status=202,
            is_creating=True,
            errors=("ref.not_found",),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/builds",
            builds.list,
            "List builds, newest first",
            scope="deployments:read",
            query=PageQuery,
            answer=answers.Build,
            form=Form.LIST,
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/builds/{build}",
            builds.show,
            "Show a build",
            scope="deployments:read",
            answer=answers.Build,
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/builds/{build}/log",
            builds.log,
            "Read a build's log as text, or follow it",
            scope="deployments:read",
            query=LogQuery,
            form=Form.RAW,
            media_type="text/plain",
            errors=("log.offset_invalid",),
        ),
    )


def artifacts_table(artifacts: Artifacts, exports: Exports) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            ENVIRONMENT + "/artifacts",
            artifacts.list,
            "List the artifacts that can be deployed here, newest build first",
            scope="deployments:read",
            query=PageQuery,
            answer=answers.Artifact,
            form=Form.LIST,
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/artifacts/{artifact}",
            artifacts.show,
            "Show an artifact",
            scope="deployments:read",
            answer=answers.Artifact,
        ),
        Endpoint(
            "PUT",
            ENVIRONMENT + "/artifacts/{artifact}/pin",
            artifacts.pin,
            "Keep an artifact until it is unpinned",
            scope="deployments:write",
            answer=answers.Artifact,
            reach=Reach.WHOLE_SITE,
            errors=("artifact.expired",),
        ),
        Endpoint(
            "DELETE",
            ENVIRONMENT + "/artifacts/{artifact}/pin",
            artifacts.unpin,
            "Keep an artifact only as long as anything else does",
            scope="deployments:write",
            answer=answers.Artifact,
            reach=Reach.WHOLE_SITE,
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/artifacts/{artifact}/manifest",
            artifacts.manifest,
            "Read the list of files that the artifact's digest is of",
            scope="deployments:read",
            form=Form.RAW,
            media_type=MANIFEST_TYPE,
            errors=("artifact.missing", "artifact.expired"),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/artifacts/{artifact}/provenance",
            artifacts.provenance,
            "Read the signed statement of what made the artifact",
            scope="deployments:read",
            form=Form.RAW,
            media_type=ENVELOPE_TYPE,
            errors=("artifact.missing",),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/artifacts/{artifact}/export",
            exports.show,
            "Read the artifact with all that proves it, as one archive",
            scope="deployments:read",
            form=Form.RAW,
            media_type=TAR_TYPE,
            errors=("artifact.expired", "artifact.revoked", "artifact.missing"),
        ),
    )


def deployments_table(deployments: Deployments) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "POST",
            ENVIRONMENT + "/deployments",
            deployments.start,
            "Roll an artifact onto the environment",
            scope="deployments:write",
            body=DeploymentBody,
            answer=answers.Job,
            status=202,
            is_creating=True,
            errors=(
                "artifact.not_found",
                "artifact.previews_only",
                "artifact.revoked",
                "artifact.expired",
            ),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/deployments",
            deployments.list,
            "List deployments, newest first",
            scope="deployments:read",
            query=PageQuery,
            answer=answers.Deployment,
            form=Form.LIST,
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/deployments/{deployment}",
            deployments.show,
            "Show a deployment",
            scope="deployments:read",
            answer=answers.Deployment,
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/deployments/{deployment}/rollback",
            deployments.roll_back,
            "Roll back: before a deployment, or to a release",
            scope="deployments:write",
            body=RollbackBody,
            answer=answers.Job,
            status=202,
            is_creating=True,
            errors=(
                "release.not_found",
                "release.no_previous",
                "release.already_current",
                "artifact.revoked",
                "release.unavailable",
                "release.config_gone",
            ),
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/restart",
            deployments.restart,
            "Roll what runs here once more",
            scope="deployments:write",
            answer=answers.Job,
            status=202,
            is_creating=True,
            errors=("environment.nothing_running", "deployment.under_way", "artifact.revoked"),
        ),
        Endpoint(
            "POST",
            ENVIRONMENT + "/promote",
            deployments.promote,
            "Roll what runs here onto another environment",
            scope="deployments:write",
            body=PromotionBody,
            answer=answers.Job,
            status=202,
            is_creating=True,
            errors=("environment.nothing_running", "environment.ambiguous", "artifact.revoked"),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/releases",
            deployments.list_releases,
            "List what ran here, newest first",
            scope="deployments:read",
            query=PageQuery,
            answer=answers.Release,
            form=Form.LIST,
        ),
    )


def program_logs_table(logs: ProgramLogs) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            "GET",
            ENVIRONMENT + "/logs",
            logs.text,
            "Read what the programs of an environment print, or follow it",
            scope="observability:read",
            query=ProgramLogQuery,
            form=Form.RAW,
            media_type="text/plain",
            errors=("host.away", "log.readers_too_many"),
        ),
        Endpoint(
            "GET",
            ENVIRONMENT + "/logs/stream",
            logs.stream,
            "Follow what the programs of an environment print as Server-Sent Events",
            scope="observability:read",
            query=ProgramLogStreamQuery,
            form=Form.RAW,
            media_type=EVENT_STREAM,
            errors=("host.away", "log.readers_too_many", "stream.position_invalid"),
        ),
    )
