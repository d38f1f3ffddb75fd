"""What a site can do on this server, and the key that asks on it. Source: contract §5 "Sites"."""

from __future__ import annotations

from gitd.api import answers
from gitd.api.endpoint import Call, Reply
from gitd.api.jobs import WAIT_S_MAX
from gitd.api.paging import LIMIT_MAX
from gitd.api.reading import BODY_BYTES_MAX, NoBody, NoQuery
from hooks.builds.profiles.managed_toml import Profile
from hooks.domains import DOMAINS_COUNT_MAX
from hooks.sites import Sites
from storage.model import EnvironmentKind, RouteTarget

HAS = (
    "artifact_signatures",
    "audit_log",
    "branch_previews",
    "custom_domains",
    "program_logs",
    "promotion",
    "rollback",
    "secrets",
    "suspension",
    "variables",
    "webhooks",
)


class Capabilities:
    def __init__(self, sites: Sites, *, has_build_cache: bool, has_rate_limits: bool) -> None:
        self._sites = sites
        features = dict.fromkeys(HAS, True)
        features["build_cache"] = has_build_cache
        features["rate_limits"] = has_rate_limits
        self._features = dict(sorted(features.items()))

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        limits = self._sites.preview_limits
        return Reply(
            answers.Capabilities(
                site_id=call.site.id,
                features=self._features,
                profiles=[profile.value for profile in Profile],
                environment_kinds=[kind.value for kind in EnvironmentKind],
                route_targets=[target.value for target in RouteTarget],
                limits=answers.CapabilityLimits(
                    previews=limits.count_max or None,
                    preview_idle_s=limits.idle_s_max or None,
                    domains=DOMAINS_COUNT_MAX,
                    page_items=LIMIT_MAX,
                    body_bytes=BODY_BYTES_MAX,
                    wait_s=WAIT_S_MAX,
                ),
                scopes=sorted(call.actor.granted),
            )
        )
