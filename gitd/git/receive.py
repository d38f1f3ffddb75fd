"""receive-pack: take a push, whole or not at all.

The order of work is git's: commands, options, the pack into quarantine, connectivity, pre-receive,
out of quarantine, the checks and the update hook of each ref, the transaction, the report, and
only then whatever a push sets in motion. Its place among other pushes it gets with its refs.
Source: gitprotocol-pack(5), "Pushing Data To a Server"; git's builtin/receive-pack.c.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path

import structlog
from aiohttp import web

from gitd.git.access import Opened, Service
from gitd.git.advertisement import HiddenRefs, receive_capabilities
from gitd.git.body import BodyReader
from gitd.git.errors import PushRefusedError
from gitd.git.incoming import Incoming, drain
from gitd.git.limits import GitLimits
from gitd.git.native_hooks import (
    HookRunner,
    certificate_environ,
    option_environ,
    quarantine_environ,
)
from gitd.git.pkt_line import FLUSH, SIDE_BAND_64K_BYTES_MAX, pkt_lines
from gitd.git.push import Push, PushReceiver, RefOutcome
from gitd.git.push_certificate import SEED_KEY, SLOP_KEY, judge_nonce
from gitd.git.push_request import Command, Wish, read_wish
from gitd.git.ref_checks import RefChecks
from gitd.git.side_band import SideBandAnswer
from gitd.git.signatures import SignatureCheck
from gitd.git.workers import PackWorkers, WorkerLostError
from storage.git.errors import RefUpdateError, RepositoryError
from storage.git.ingest import Ingested
from storage.git.locks import forget_locks
from storage.git.maintenance import may_need_care, needs_care
from storage.git.refs import RefSnapshot, show
from storage.git.repository import Repository
from storage.git.transaction import RefChange, ReflogEntry, change_refs

LAST_WORDS_S = 2.0  # for what is broken off to tidy up
NOT_KEPT = "unable to migrate objects to permanent storage"  # git's words

_NOT_IN_NAMES = str.maketrans("", "", "<>\n")  # git leaves them out too

_log = structlog.get_logger(__name__)


class ReceivePack:
    """Answers pushes."""

    def __init__(
        self,
        receiver: PushReceiver,
        limits: GitLimits,
        workers: PackWorkers,
        environ: Mapping[str, str],
    ) -> None:
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
            for command in wish.commands:
                command.error = wish.refusal
            await drain(body, self.limits.drain_bytes_max)
            await send_report(answer, wish, unpack_status=wish.refusal)
            await answer.end()
            return response
        await self._tidy_once(opened, repository)
        one = _OnePush(self, request, opened, repository, wish, answer)
        async with answer:
            await one.take_objects(body)
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
                await asyncio.to_thread(forget_locks, repository.path)
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


class _OnePush:
    """The story of one push."""

    def __init__(
        self,
        service: ReceivePack,
        request: web.Request,
        opened: Opened,
        repository: Repository,
        wish: Wish,
        answer: SideBandAnswer,
    ) -> None:
        self._service = service
        self._opened = opened
        self._repository = repository
        self._wish = wish
        self._commands = wish.commands
        self._answer = answer
        self._remote_addr = request.remote or "unknown"
        self._new_borders: list[bytes] = []
        self._certified: Mapping[str, str] = {}
        self._asking: asyncio.Task[Mapping[str, str]] | None = None
        self._unpack_status = "ok"
        self._push = Push(
            path=opened.path,
            repository=opened.repository,
            actor=opened.actor,
            updates=tuple(command.update for command in wish.commands),
            options=tuple(wish.options or ()),
            is_quiet=wish.can(b"quiet"),
            remote_addr=self._remote_addr,
            agent=wish.agent,
        )
        self._hooks = HookRunner(
            repository, self._environ, answer.progress, timeout_s=service.limits.hook_s
        )
        # Asked once: where the objects wait depends on it.
        self._has_pre_receive = self._hooks.has("pre-receive")
        self._incoming = Incoming(
            repository,
            wish,
            service.limits,
            service.workers,
            is_looked_at=self._has_pre_receive,
            # Of a hosted one nothing goes but by its own maintenance, which loses no object.
            is_kept=not opened.is_ours or self._hooks.has("update"),
        )

    async def take_objects(self, body: BodyReader) -> None:
        """Read the pack and check it; nothing outside of the quarantine changes."""
        try:
            ingested = await self._incoming.receive(body, self._start_asking)
            self._answer.keep_alive()
            await self._tell(ingested)
        except BaseException:
            if self._asking is not None:
                self._asking.cancel()
            await self._incoming.tidy()
            raise
        if ingested.error is None:
            self._judge_tips(ingested)
        else:
            self._unpack_status = ingested.unpack_status
            self._refuse_all("unpacker error")

    async def conclude(self) -> None:
        """Ask, move refs, report, and act on it."""
        try:
            self._refuse_hidden()
            await self._hear_receiver()
            if self._unpack_status == "ok":
                await self._look_at_certificate()
                await self._run_pre_receive()
                await self._move_refs()
        finally:
            await self._incoming.tidy()
        await send_report(self._answer, self._wish, unpack_status=self._unpack_status)
        try:
            await self._act_after()
        except Exception:
            # The refs have moved and were reported: git must not take the push for a failed one.
            await self._answer.say("error: the server failed after it had moved the refs")
            raise
        finally:
            await self._answer.end()

    @property
    def is_landed(self) -> bool:
        """Whether a ref has moved."""
        return any(command.error is None for command in self._commands)

    @property
    def _committer(self) -> tuple[str, str]:
        """The name and address for reflogs: the operator's own, if the environment has one."""
        user = (self._opened.remote_user or "").translate(_NOT_IN_NAMES) or "anonymous"
        environ = self._service.environ
        return (
            environ.get("GIT_COMMITTER_NAME") or user,
            environ.get("GIT_COMMITTER_EMAIL") or f"{user}@http.{self._remote_addr}",
        )

    def _environ(self) -> dict[str, str]:
        name, email = self._committer
        environ = {
            **self._service.environ,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
            "REMOTE_ADDR": self._remote_addr,
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_NAME": socket.gethostname(),
        }
        if self._opened.remote_user is not None:
            environ["REMOTE_USER"] = self._opened.remote_user
        return environ

    def _refuse_all(self, reason: str) -> None:
        for command in self._commands:
            command.error = command.error or reason

    # what became of the objects

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

    def _judge_tips(self, ingested: Ingested) -> None:
        for command in self._commands:
            if command.new in ingested.broken:
                command.error = "missing necessary objects"
        if not ingested.shallow_tips:
            return
        if self._repository.config.flag("receive.shallowupdate"):
            self._new_borders = ingested.new_borders
            return
        for command in self._commands:
            if command.new in ingested.shallow_tips:
                command.error = command.error or "shallow update not allowed"

    # before refs move

    def _refuse_hidden(self) -> None:
        hidden = HiddenRefs.of(self._repository, Service.RECEIVE_PACK)
        for command in self._commands:
            if hidden.hides(command.name):
                action = "deleting" if command.is_delete else "updating"
                command.error = f"deny {action} a hidden ref"

    def _start_asking(self) -> None:
        """Ask the receiver while the pack is being checked: what it records costs no time then."""
        self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> Mapping[str, str]:
        return await self._service.receiver.accept(self._push)

    async def _hear_receiver(self) -> None:
        if self._asking is None:  # the pack never arrived whole
            return
        try:
            refused = await self._asking
        except PushRefusedError as error:
            self._refuse_all(error.reason)
            return
        for command in self._commands:
            reason = refused.get(os.fsdecode(command.name))
            if reason is not None:
                command.error = command.error or reason

    async def _look_at_certificate(self) -> None:
        """Keep the certificate of a signed push and see who signed it, if a hook would ask."""
        certificate = self._wish.certificate
        if certificate is None or not self._hook_lines():
            return
        if not self._has_pre_receive and not self._hooks.has("post-receive"):
            return
        config = self._repository.config
        check = SignatureCheck(config, self._hooks.environ, self._service.limits.hook_s)
        signer = await check.signer_of(certificate.payload, certificate.signature)
        verdict = judge_nonce(
            certificate,
            seed=config.text(SEED_KEY) or "",
            repository=self._repository.path,
            now_s=int(time.time()),
            slop_s_max=config.number(SLOP_KEY) or 0,
        )
        try:
            oid = await asyncio.to_thread(self._incoming.add_blob, certificate.content)
        except OSError as error:
            await self._answer.say(f"error: cannot keep the push certificate: {error.strerror}")
            self._refuse_all(NOT_KEPT)
            return
        self._certified = certificate_environ(oid.hex(), signer, verdict)

    async def _run_pre_receive(self) -> None:
        lines = self._hook_lines()
        if not lines or not self._has_pre_receive:
            return
        environ = {**option_environ(self._wish.options), **self._certified}
        if self._incoming.quarantine is not None:
            environ |= quarantine_environ(self._repository, self._incoming.quarantine)
        if not await self._hooks.run("pre-receive", stdin=lines, environ=environ):
            self._refuse_all("pre-receive hook declined")

    def _hook_lines(self) -> bytes:
        return b"".join(
            b"%s %s %s\n" % (command.old.hex().encode(), command.new.hex().encode(), command.name)
            for command in self._commands
            if command.is_going
        )

    # the refs

    async def _move_refs(self) -> None:
        if not any(command.is_going for command in self._commands):
            return
        lock = self._service.ref_lock(self._repository)
        if self._hooks.has("update"):
            # Hooks may take long, and push here themselves: others go on meanwhile, and what they
            # change is noticed when the refs are locked.
            words, touched, _ = await asyncio.to_thread(self._take_in_and_judge)
            await self._say(words)
            await self._run_update()
            async with lock:
                words = await asyncio.to_thread(self._apply, touched)
                self._tell_moved()
        else:
            async with lock:
                words = await asyncio.to_thread(self._do_all)
                self._tell_moved()
        await self._say(words)

    def _do_all(self) -> list[str]:
        """Keep the objects, judge the refs and move them, in one go."""
        words, touched, snapshot = self._take_in_and_judge()
        return words + self._apply(touched, snapshot)

    def _take_in_and_judge(self) -> tuple[list[str], set[Path], RefSnapshot | None]:
        """Return words for the user, what is to be synced, and the refs as they were read."""
        try:
            touched = self._incoming.take_in(self._new_borders)
        except OSError as error:
            self._refuse_all(NOT_KEPT)
            return [f"error: cannot keep the objects: {error.strerror}"], set(), None
        snapshot = self._repository.refs.snapshot()
        checks = RefChecks(self._repository, snapshot, refs_max=self._service.limits.refs_max)
        return checks.judge_all(self._commands), touched, snapshot

    async def _run_update(self) -> None:
        for command in self._commands:
            if command.error is not None or command.is_skipped:
                continue
            arguments = (command.name, command.old.hex().encode(), command.new.hex().encode())
            if not await self._hooks.run("update", *arguments):
                name = show(command.name)
                await self._answer.say(f"error: hook declined to update {name}")
                command.error = "hook declined"

    def _apply(self, touched: set[Path], snapshot: RefSnapshot | None = None) -> list[str]:
        """Move the refs; `touched` directories become durable before any of them moves."""
        is_atomic = self._wish.can(b"atomic")
        if is_atomic and any(command.error for command in self._commands):
            self._refuse_all("atomic push failure")
        going = [command for command in self._commands if command.is_going]
        name, email = self._committer
        log = ReflogEntry(os.fsencode(f"{name} <{email}>"), b"push")
        errors = change_refs(
            self._repository,
            [RefChange(command.name, command.old, command.new) for command in going],
            is_atomic=is_atomic,
            log=log,
            sync_first=touched,
            snapshot=snapshot,
        )
        self._incoming.let_go()
        return _noted(going, errors)

    def _tell_moved(self) -> None:
        """Whoever reads the report slowly holds up nobody's turn: that is settled here."""
        if self.is_landed:
            self._service.receiver.moved(self._push, self._outcomes)

    # after

    @property
    def _outcomes(self) -> list[RefOutcome]:
        return [RefOutcome(command.update, command.error) for command in self._commands]

    async def _act_after(self) -> None:
        lines = self._hook_lines()
        if lines and self._unpack_status == "ok":
            environ = {**option_environ(self._wish.options), **self._certified}
            await self._hooks.run("post-receive", stdin=lines, environ=environ)
            if self._hooks.has("post-update"):
                names = [command.name for command in self._commands if command.is_going]
                await self._hooks.run("post-update", *names)
        await self._service.receiver.landed(self._push, self._outcomes, self._answer)


async def send_report(answer: SideBandAnswer, wish: Wish, *, unpack_status: str) -> None:
    """Tell what became of each ref, if the client asked for it."""
    if not wish.can(b"report-status-v2") and not wish.can(b"report-status"):
        return
    lines = [f"unpack {unpack_status}\n".encode()]
    for command in wish.commands:
        if command.error is None:
            lines.append(b"ok %s\n" % command.name)
        else:
            reason = command.error.replace("\n", " ").encode("utf-8", "replace")
            lines.append(b"ng %s %s\n" % (command.name, reason))
    await answer.send(pkt_lines(lines) + FLUSH)


def _wants_care(repository: Repository) -> bool:
    """Say whether git itself would tidy up after a push to this repository."""
    config = repository.config
    return bool(config.flag("receive.autogc", default=True)) and config.number("gc.auto") != 0


def _noted(commands: list[Command], errors: list[RefUpdateError | None]) -> list[str]:
    """Write the errors of a transaction to its commands; return the words for the user."""
    words = []
    for command, error in zip(commands, errors, strict=True):
        if error is not None:
            command.error = error.reason
            if str(error):
                words.append(f"error: {error}")
    return words
