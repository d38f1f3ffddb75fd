"""The scrub beside the server: it reads on, and hears of what others stumble over.

Whatever it finds is said in the log with what it hurts, and what was done about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import structlog

from hooks.background import for_ever
from storage.consequences import Consequences
from storage.digest import Digest
from storage.errors import StorageError
from storage.model import Deployment
from storage.records import artifacts, damage
from storage.records.damage import Damage
from storage.records.db import Records
from storage.repair import Mended
from storage.scrub import DAY_MS, Scrubber, Turn

T = TypeVar("T")
log = structlog.get_logger(__name__)

IDLE_S = 60.0  # between two looks for something to read
FAILED_S = 300.0  # after a turn that failed: a disk that is in trouble is left alone for a while
TIDY_EVERY_S = DAY_MS / 1000
TRUST_ADVICE = "put store/trust/root.*.json back from a backup, or from trust/ in an export"


class Scrubbing:
    """The scrub of one server. Belongs to one event loop."""

    def __init__(self, scrubber: Scrubber, records: Records) -> None:
        self._scrubber = scrubber
        self._records = records
        self._working: set[asyncio.Future[Any]] = set()
        self._is_reading = False
        self._tidied_at = float("-inf")
        self._trust_fault: str | None = None  # as it was said

    async def keep(self) -> None:
        """Scrub, for ever."""
        await for_ever(self._turn_and_rest, failed="scrub_failed", pause_s=FAILED_S)

    async def _turn_and_rest(self) -> None:
        await asyncio.sleep(await self.turn())

    async def turn(self) -> float:
        """Read some seconds' worth; return after how many seconds to go on."""
        try:
            await self._tidy()
            turn = await self._in_thread(self._scrubber.turn)
        except StorageError as error:
            log.warning("scrub_failed", reason=str(error))
            return FAILED_S
        say_damage(self._records, turn.found, turn.mended)
        self._say_trust(turn.trust_fault)
        await self._say_progress(turn)
        if turn.trouble is not None:
            log.warning("mending_failed", reason=turn.trouble)
            return FAILED_S
        return IDLE_S if turn.is_idle else 0.0

    async def examine(self, deployment: Deployment) -> str:
        """Look at an artifact that could not be rolled: condemn what is damaged, and repair it.

        Returns what became of it, for people; nothing when there is nothing to say.
        """
        artifact = artifacts.get(self._records.reader(), deployment.artifact_id)
        assert artifact is not None, "kept by a foreign key"
        digest = Digest.parse(artifact.digest)
        try:
            found, mending = await self._in_thread(
                lambda: self._scrubber.examine(digest, deployment.envelope_sha256)
            )
        except StorageError as error:
            log.warning("examination_failed", artifact_id=artifact.id, reason=str(error))
            return ""
        say_damage(self._records, found, mending.mended)
        if mending.trouble is not None:
            log.warning("examination_failed", artifact_id=artifact.id, reason=mending.trouble)
        return await asyncio.to_thread(self._outcome, digest, mending.mended)

    def is_whole(self, artifact_id: str) -> bool:
        """Whether nothing of an artifact is known to be damaged."""
        artifact = artifacts.get(self._records.reader(), artifact_id)
        return artifact is None or damage.is_whole(self._records.reader(), artifact.digest)

    async def close(self) -> None:
        """End the turn under way, within a moment and for good."""
        self._scrubber.stop()
        await asyncio.gather(*self._working, return_exceptions=True)

    # -- pieces ---------------------------------------------------------------------------------

    def _outcome(self, digest: Digest, mended: Sequence[Mended]) -> str:
        db = self._records.reader()
        left = [one for one in damage.every(db) if digest in damage.trees_of(db, one.part)]
        if left:
            advice = Consequences(db).of(left[0].part).advice
            return (
                f"{len(left)} of its files in the store {'is' if len(left) == 1 else 'are'} damaged"
                f" and in quarantine, and no other copy was found. To do: {advice}."
            )
        if not mended:
            return ""
        sources = ", ".join(sorted({one.source for one in mended}))
        return f"What was damaged was repaired from {sources}: deploy it again."

    def _say_trust(self, fault: str | None) -> None:
        """Log it once, and when it is over: nothing can be rolled meanwhile."""
        if fault is not None and fault != self._trust_fault:
            log.error("trust_damaged", reason=fault, advice=TRUST_ADVICE)
        elif fault is None and self._trust_fault is not None:
            log.info("trust_whole")
        self._trust_fault = fault

    async def _say_progress(self, turn: Turn) -> None:
        """Say once that everything was read, when it was."""
        if not turn.is_idle:
            self._is_reading = True
        elif self._is_reading:
            self._is_reading = False
            progress = await asyncio.to_thread(self._scrubber.progress)
            log.info("scrubbed", parts=progress.parts, found=progress.found, mended=progress.mended)

    async def _tidy(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._tidied_at < TIDY_EVERY_S:
            return
        self._tidied_at = now
        if removed := await asyncio.to_thread(self._scrubber.tidy):
            log.info("quarantine_tidied", files=removed)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run it to its end, whoever stops waiting: `close` waits."""
        running = asyncio.get_running_loop().run_in_executor(None, work)
        self._working.add(running)
        running.add_done_callback(self._working.discard)
        return await asyncio.shield(running)


def say_damage(records: Records, found: Sequence[Damage], mended: Sequence[Mended] = ()) -> None:
    """Log what was found and mended: the errors are whatever is damaged still."""
    if not found and not mended:
        return
    consequences = Consequences(records.reader())
    whole = {one.part for one in mended}
    for one in found:
        consequence = consequences.of(one.part)
        (log.warning if one.part in whole else log.error)(
            "damage_found",
            part=str(one.part),
            why=one.why,
            artifacts=list(consequence.artifacts),
            environments=list(consequence.environments),
            advice=None if one.part in whole else consequence.advice,
        )
    for mend in mended:
        log.info("damage_mended", part=str(mend.part), source=mend.source)
