"""receive-pack: take a push, whole or not at all.

The order of work is git's: commands, options, the pack into quarantine, connectivity, pre-receive,
out of quarantine, the checks and the update hook of each ref, the transaction, the report, and
only then whatever a push sets in motion. Its place among other pushes it gets with its refs.
Source: gitprotocol-pack(5), "Pushing Data To a Server"; git's builtin/receive-pack.c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path

import structlog
from aiohttp import web

from gitd.git.access import Opened
from gitd.git.advertisement import receive_capabilities
from gitd.git.body import BodyReader
from gitd.git.incoming import drain
from gitd.git.limits import GitLimits
from gitd.git.one_push import OnePush
from gitd.git.pkt_line import SIDE_BAND_64K_BYTES_MAX
from gitd.git.push import PushReceiver
from gitd.git.push_request import read_wish
from gitd.git.report import send_report
from gitd.git.side_band import SideBandAnswer
from gitd.git.tally import GitTally, PushOutcome
from gitd.git.workers import PackWorkers, WorkerLostError
from storage.git.errors import RepositoryError
from storage.git.locks import forget_locks
from storage.git.maintenance import may_need_care, needs_care
from storage.git.repository import Repository
from storage.git.shallow import forget_unreached_borders

LAST_WORDS_S = 2.0  # for what is broken off to tidy up

_log = structlog.get_logger(__name__)


class ReceivePack:
    """Answers pushes."""

    def __init__(
        self,
        receiver: PushReceiver,
        limits: GitLimits,
        workers: PackWorkers,
        environ: Mapping[str, str],
        tally: GitTally,
    ) -> None:
        self.tally = tally
        self.environ = environ
        self.receiver = receiver
        self.limits = limits
        self.workers = workers
        self._locks: dict[Path, asyncio.Lock] = {}
        self._tidied: set[Path] = set()
        self._in_care: set[Path] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(
        self,
        request: web.Request,
        opened: Opened,
        repository: Repository,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        """Take one push from its request, and answer it."""
        body = BodyReader(request, idle_s=self.limits.idle_s, bytes_max=None)
        wish = await read_wish(body, self.limits, offered=receive_capabilities(repository))
        answer = SideBandAnswer(
            request,
            response,
            bytes_max=SIDE_BAND_64K_BYTES_MAX if wish.can(b"side-band-64k") else 0,
            keepalive_s=self._keepalive_s(repository),
            stall_s=self.limits.idle_s,
        )
        if not wish.commands:
            await answer.finish()
            return response
        if wish.refusal is not None:
            self.tally.pushes[PushOutcome.REFUSED] += 1
            wish.refuse_all(wish.refusal)
            await drain(body, self.limits.drain_bytes_max)
            await send_report(answer, wish, unpack_status=wish.refusal)
            await answer.end()
            return response
        await self._tidy_once(opened, repository)
        addr = request.remote or "unknown"
        one = OnePush(self, opened, repository, wish, answer, remote_addr=addr)
        async with answer:
            try:
                await one.take_objects(body)
            except BaseException:
                await asyncio.shield(self._in_background(one.break_off()))
                raise
            # From here on the push ends, whatever becomes of its request: refs that moved must
            # not go unnoticed.
            await asyncio.shield(self._in_background(one.conclude()))
        is_for_us = opened.is_ours or _wants_care(repository)
        if one.is_landed and is_for_us and may_need_care(repository):
            self._in_background(self._take_care(repository))
        return response

    def _keepalive_s(self, repository: Repository) -> float:
        configured = repository.config.number("receive.keepalive")
        return self.limits.keepalive_s if configured is None else float(configured)

    async def _tidy_once(self, opened: Opened, repository: Repository) -> None:
        """Remove what a crash left, before the first push that this process takes."""
        if not opened.is_ours or opened.repository in self._tidied:
            return
        async with self.ref_lock(repository):
            if opened.repository not in self._tidied:
                await asyncio.to_thread(_tidy, repository)
                self._tidied.add(opened.repository)

    def ref_lock(self, repository: Repository) -> asyncio.Lock:
        """Return the lock under which this process moves a repository's refs."""
        return self._locks.setdefault(repository.path, asyncio.Lock())

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take_care(self, repository: Repository) -> None:
        if repository.path in self._in_care:
            return
        self._in_care.add(repository.path)
        try:
            if await asyncio.to_thread(needs_care, repository):
                await self.workers.care(repository.path)
        except (WorkerLostError, RepositoryError, OSError):
            return  # the next push tries again; `gitd check` tells what is wrong
        finally:
            self._in_care.discard(repository.path)

    async def close(self, timeout_s: float) -> None:
        """Wait for pushes that are being concluded, for so long; then end their hooks too."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            _log.warning("pushes_broken_off", count=len(late))
            await asyncio.wait(late, timeout=LAST_WORDS_S)


def _tidy(repository: Repository) -> None:
    """`repository`: nobody else writes it, and nothing is being pushed to it."""
    forget_locks(repository.path)
    name = repository.path.name
    try:
        gone = forget_unreached_borders(repository)
    except (OSError, RepositoryError) as error:  # no reason to refuse a push
        _log.warning("shallow_borders_not_forgotten", repository=name, reason=str(error))
        return
    if gone:
        _log.warning("shallow_borders_forgotten", repository=name, count=gone)


def _wants_care(repository: Repository) -> bool:
    """Say whether git itself would tidy up after a push to this repository."""
    config = repository.config
    return bool(config.flag("receive.autogc", default=True)) and config.number("gc.auto") != 0
