"""Answers to hosts that refuse a release statement: a newer one, unless people have to decide.

A host that went by a newer statement than the one it gets refuses that. Mostly records were put
back from an old copy then. What somebody wants now is signed again, above what the host went by;
what the records merely call current is not, where the host serves something that they know nothing
of: that may be what people decided since.
"""

from __future__ import annotations

from collections import Counter

import structlog

from hooks.deploys.control.issuing import ReleaseIssuer
from hooks.deploys.control.wanted import Wanted
from hooks.deploys.wire import Report
from hooks.errors import RefusedError
from storage.errors import StorageError
from storage.model import Deployment

log = structlog.get_logger(__name__)

RELEASE_REFUSED = "release."  # how the codes begin with which a host refuses a statement
REISSUE_COUNT_MAX = 3  # statements in a row for what a host refuses


class Reissuer:
    """Decides whether there is to be one. Belongs to one event loop."""

    def __init__(self, issuer: ReleaseIssuer, wanted: Wanted) -> None:
        self._issuer = issuer
        self._wanted = wanted
        self._count: Counter[str] = Counter()

    def note_served(self, env_id: str) -> None:
        """Forget how often: the environment serves what it should."""
        self._count.pop(env_id, None)

    def refused(self, report: Report) -> Deployment | None:
        """Return the deployment whose statement the host refused, if it is to get another.

        Only what the environment is wanted to serve, and not for ever.
        """
        if report.error is None or not report.error.code.startswith(RELEASE_REFUSED):
            return None
        wanted = self._wanted.deployment(report.env_id)
        if wanted is None or wanted.id != report.deployment_id:
            return None
        if self._count[report.env_id] >= REISSUE_COUNT_MAX:
            return None
        self._count[report.env_id] += 1
        return wanted

    async def heal_current(self, report: Report, wanted: Deployment) -> bool:
        """Sign the current release again, and say whether that was done."""
        is_elsewhere = report.serves is not None and report.serves != wanted.id
        if is_elsewhere and self._issuer.is_behind(report.env_id):
            log.error(
                "records_older_than_environment",
                env_id=report.env_id,
                sequence=report.sequence,
                serves=report.serves,
                advice="it serves what it did; deploy or roll back to decide what it should serve",
            )
            return False
        try:
            return await self._issuer.again(wanted, rollback=is_elsewhere)
        except (RefusedError, StorageError) as error:
            log.error("release_unsigned", env_id=report.env_id, reason=str(error))  # noqa: TRY400 - a fact
            return False
