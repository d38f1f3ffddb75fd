"""The story of one push, from its pack to what it sets in motion."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Protocol

import structlog

from gitd.git.access import Opened, Service
from gitd.git.advertisement import HiddenRefs
from gitd.git.body import BodyReader
from gitd.git.errors import PushRefusedError
from gitd.git.incoming import Incoming
from gitd.git.limits import GitLimits
from gitd.git.push import SHALLOW_REFUSED, Push, PushReceiver, RefOutcome
from gitd.git.push_request import Wish
from gitd.git.push_scripts import PushScripts
from gitd.git.pusher import Pusher
from gitd.git.ref_moves import RefMoves
from gitd.git.report import send_report
from gitd.git.side_band import SideBandAnswer
from gitd.git.tally import GitTally, PushOutcome
from gitd.git.workers import PackWorkers
from storage.git.errors import RefNotDurableError, RefUpdateError, RepositoryError
from storage.git.ingest import Ingested
from storage.git.repository import Repository

UNKNOWN_REF = "this ref is not one for this key"

_log = structlog.get_logger(__name__)


class Taking(Protocol):
    """What all pushes share."""

    receiver: PushReceiver
    limits: GitLimits
    workers: PackWorkers
    environ: Mapping[str, str]
    tally: GitTally

    def ref_lock(self, repository: Repository, /) -> asyncio.Lock:
        """Return the lock under which this process moves a repository's refs."""


class OnePush:
    """One push: call `take_objects`, then `conclude`; where the first one fails, `break_off`."""

    def __init__(
        self,
        taking: Taking,
        opened: Opened,
        repository: Repository,
        wish: Wish,
        answer: SideBandAnswer,
        *,
        remote_addr: str,
    ) -> None:
        self._receiver = taking.receiver
        self._tally = taking.tally
        self._lock = taking.ref_lock(repository)
        self._repository = repository
        self._wish = wish
        self._shows = opened.shows
        self._commands = wish.commands
        self._answer = answer
        self._asking: asyncio.Task[Mapping[str, str]] | None = None
        self._unpack_status = "ok"
        self._has_failed = False
        self._push = Push(
            path=opened.path,
            repository=opened.repository,
            actor=opened.actor,
            updates=tuple(command.update for command in wish.commands),
            options=tuple(wish.options or ()),
            is_quiet=wish.can(b"quiet"),
            remote_addr=remote_addr,
            agent=wish.agent,
        )
        limits = taking.limits
        pusher = Pusher(opened.remote_user, remote_addr, taking.environ)
        self._scripts = PushScripts(repository, wish, answer, pusher, timeout_s=limits.hook_s)
        self._incoming = Incoming(
            repository,
            wish,
            limits,
            taking.workers,
            is_looked_at=self._scripts.has_pre_receive,
            # Of a hosted one nothing goes but by its own maintenance, which loses no object.
            is_kept=not opened.is_ours or self._scripts.has_update,
        )
        self._moves = RefMoves(repository, wish, self._incoming, pusher, refs_max=limits.refs_max)

    @property
    def is_landed(self) -> bool:
        """Whether a ref has moved."""
        return not all(command.is_refused for command in self._commands)

    @property
    def _outcomes(self) -> list[RefOutcome]:
        return [
            RefOutcome(command.update, command.error, command.may_be_undone)
            for command in self._commands
        ]

    def _count(self) -> None:
        if self.is_landed:
            is_whole = all(command.error is None for command in self._commands)
            outcome = PushOutcome.LANDED if is_whole else PushOutcome.PARTLY
        elif self._has_failed:
            outcome = PushOutcome.FAILED
        else:
            outcome = PushOutcome.BROKEN_OFF if self._answer.is_gone else PushOutcome.REFUSED
        self._tally.pushes[outcome] += 1

    # the objects

    async def take_objects(self, body: BodyReader) -> None:
        """Read the pack and check it; nothing outside of the quarantine changes."""
        self._refuse_unshown()
        ingested = await self._incoming.receive(body, self._has_arrived)
        self._answer.keep_alive()
        await self._tell(ingested)
        if ingested.error is None:
            self._judge_tips(ingested)
        else:
            self._unpack_status = ingested.unpack_status
            self._wish.refuse_all("unpacker error")

    async def break_off(self) -> None:
        """Forget a push whose request ended before its objects were here and known to be good."""
        self._tally.pushes[PushOutcome.BROKEN_OFF] += 1
        try:
            await self._incoming.tidy()
        finally:
            # What it began to record would stay open: it is told of the end, not just canceled.
            if self._asking is not None:
                await asyncio.wait([self._asking])
                if not self._asking.cancelled() and self._asking.exception() is None:
                    await self._receiver.broken_off(self._push)

    def _has_arrived(self) -> None:
        """Ask the receiver while the pack is being checked: what it records costs no time then.

        That of a large one takes longer than a proxy in between may wait for a word.
        """
        self._answer.keep_alive()
        self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> Mapping[str, str]:
        return await self._receiver.accept(self._push)

    async def _tell(self, ingested: Ingested) -> None:
        lines = [f"warning: {warning}" for warning in ingested.warnings]
        if ingested.error is not None:
            lines.append(f"fatal: {ingested.error}")
        if ingested.completed_count and not self._push.is_quiet:
            count, local = ingested.delta_count, ingested.completed_count
            lines.append(
                f"Resolving deltas: 100% ({count}/{count}), completed with {local} local "
                f"{'object' if local == 1 else 'objects'}."
            )
        await self._say(lines)

    async def _say(self, lines: list[str]) -> None:
        if lines:
            await self._answer.progress("".join(f"{line}\n" for line in lines).encode())

    def _refuse_unshown(self) -> None:
        """Refuse by name first: a refusal must not tell whether an object is here."""
        for command in self._commands:
            if self._shows is not None and not self._shows(command.name):
                command.error = command.error or UNKNOWN_REF

    def _judge_tips(self, ingested: Ingested) -> None:
        for command in self._commands:
            if command.new in ingested.broken:
                command.error = command.error or "missing necessary objects"
        if not ingested.shallow_tips:
            return
        if self._repository.config.flag("receive.shallowupdate"):
            self._wish.new_borders = ingested.new_borders
            self._wish.shallow_tips = ingested.shallow_tips
            return
        for command in self._commands:
            if command.new in ingested.shallow_tips:
                command.error = command.error or SHALLOW_REFUSED

    # the refs

    async def conclude(self) -> None:
        """Ask, move refs, report, and act on it: what fails on the way is a refusal too."""
        try:
            try:
                await self._ask_and_move()
            finally:
                await self._incoming.tidy()
        except Exception as error:  # noqa: BLE001 - the ring of a push: its receiver hears of the end
            _log.exception("push_failed", repository=str(self._repository.path))
            self._has_failed = True
            await self._own_up(error)
        if self.is_landed:
            self._count()
        await send_report(self._answer, self._wish, unpack_status=self._unpack_status)
        try:
            await self._act()
        except Exception:
            # The refs have moved and were reported: git must not take the push for a failed one.
            await self._answer.say("error: the server failed after it had moved the refs")
            raise
        finally:
            await self._answer.end()
            if not self.is_landed:  # now it is known whether there is anybody to hear of that
                self._count()

    async def _ask_and_move(self) -> None:
        await self._hear_receiver()
        self._refuse_hidden()
        if self._unpack_status == "ok":
            await self._scripts.run_pre_receive(self._incoming)
            await self._move_refs()

    async def _own_up(self, error: Exception) -> None:
        """Refuse what has not moved, and say why; and what of the rest a power cut may undo."""
        reason, words = _told(error)
        undone = error.reason if isinstance(error, RefNotDurableError) else None
        await asyncio.to_thread(self._moves.refuse_unmoved, reason, of_moved=undone)
        await self._say([f"error: {words}"])

    async def _act(self) -> None:
        try:
            await self._scripts.run_after()
        finally:
            await self._receiver.landed(self._push, self._outcomes, self._answer)

    def _refuse_hidden(self) -> None:
        hidden = HiddenRefs.of(self._repository, Service.RECEIVE_PACK)
        for command in self._commands:
            if hidden.hides(command.name):
                action = "deleting" if command.is_delete else "updating"
                command.error = f"deny {action} a hidden ref"

    async def _hear_receiver(self) -> None:
        if self._asking is None:  # the pack never arrived whole
            return
        try:
            refused = await self._asking
        except PushRefusedError as error:
            self._wish.refuse_all(error.reason)
            return
        for command in self._commands:
            reason = refused.get(os.fsdecode(command.name))
            if reason is not None and command.error in (None, UNKNOWN_REF):
                command.error = reason

    async def _move_refs(self) -> None:
        if not any(command.is_going for command in self._commands):
            return
        if self._scripts.has_update:
            # Hooks may take long, and push here themselves: others go on meanwhile, and what they
            # change is noticed when the refs are locked.
            judged = await asyncio.to_thread(self._moves.take_in_and_judge)
            await self._say(judged.words)
            await self._scripts.run_update()
            async with self._lock:
                words = await asyncio.to_thread(self._moves.apply, judged.to_sync)
                self._tell_moved()
        else:
            async with self._lock:
                words = await asyncio.to_thread(self._moves.do_all)
                self._tell_moved()
        await self._say(words)

    def _tell_moved(self) -> None:
        """Whoever reads the report slowly holds up nobody's turn: that is settled here."""
        if self.is_landed:
            self._receiver.moved(self._push, self._outcomes)


def _told(error: Exception) -> tuple[str, str]:
    """Return what the report and the user are told of a failure."""
    if isinstance(error, RefUpdateError) and not isinstance(error, RefNotDurableError):
        return error.reason, str(error)
    if isinstance(error, RepositoryError):
        return "failed to update ref", str(error)
    if isinstance(error, OSError):
        return "failed to update ref", error.strerror or "input/output error"
    return "the server failed", "the server failed before it had moved the refs; its log says why"
