"""receive-pack: take a push, whole or not at all.

The order of work is git's: commands, options, the pack into quarantine, connectivity, pre-receive,
out of quarantine, the checks and the update hook of each ref, the transaction, the report, and
only then whatever a push sets in motion.
Source: gitprotocol-pack(5), "Pushing Data To a Server"; git's builtin/receive-pack.c.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from gitd.git.access import Opened, Service
from gitd.git.advertisement import HiddenRefs
from gitd.git.body import BodyReader
from gitd.git.errors import (
    BodyInvalidError,
    BodyStalledError,
    BodyTooLargeError,
    GitRequestError,
    PushRefusedError,
)
from gitd.git.limits import GitLimits
from gitd.git.native_hooks import HookRunner, option_environ, quarantine_environ
from gitd.git.pkt_line import (
    FLUSH,
    SIDE_BAND_64K_BYTES_MAX,
    Marker,
    pkt_line,
    pkt_lines,
)
from gitd.git.push import Push, PushReceiver, RefOutcome, RefUpdate
from gitd.git.ref_checks import RefChecks
from gitd.git.side_band import SideBandAnswer
from gitd.git.workers import PackWorkers, WorkerLostError, ingest_here
from storage.git.errors import RepositoryError
from storage.git.ingest import (
    SPOOL_NAME,
    Ingested,
    IngestTask,
    discard_quarantine,
    make_quarantine,
    migrate_quarantine,
)
from storage.git.maintenance import needs_care
from storage.git.object_formats import NULL_OID
from storage.git.refs import show
from storage.git.repository import Repository
from storage.git.transaction import RefChange, ReflogEntry, change_refs, forget_locks

SPOOL_BUFFER_BYTES = 1 << 20
_KNOWN_WITH_VALUE = (b"agent=", b"object-format=", b"session-id=")


@dataclass(slots=True)
class Command:
    """One line of a push, and what became of it."""

    name: bytes
    old: bytes
    new: bytes
    error: str | None = None
    is_skipped: bool = False  # accepted, and nothing to do: hooks do not hear of it

    @property
    def update(self) -> RefUpdate:
        return RefUpdate(os.fsdecode(self.name), self.old.hex(), self.new.hex())

    @property
    def is_delete(self) -> bool:
        return self.new == NULL_OID


@dataclass(slots=True)
class Wish:
    """A push as it was asked for, before any pack."""

    commands: list[Command] = field(default_factory=list)
    shallow: list[bytes] = field(default_factory=list)
    capabilities: frozenset[bytes] = frozenset()
    options: list[str] | None = None

    def can(self, capability: bytes) -> bool:
        return capability in self.capabilities

    @property
    def needs_pack(self) -> bool:
        return any(not command.is_delete for command in self.commands)

    @property
    def agent(self) -> str:
        for capability in self.capabilities:
            if capability.startswith(b"agent="):
                return capability[6:].decode("utf-8", "replace")
        return ""


class ReceivePack:
    """Answers pushes."""

    def __init__(self, receiver: PushReceiver, limits: GitLimits, workers: PackWorkers) -> None:
        self._receiver = receiver
        self._limits = limits
        self._workers = workers
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
        body = BodyReader(request, idle_s=self._limits.idle_s, bytes_max=None)
        wish = await self._read_wish(body)
        answer = SideBandAnswer(
            request,
            response,
            bytes_max=SIDE_BAND_64K_BYTES_MAX if wish.can(b"side-band-64k") else 0,
            keepalive_s=self._keepalive_s(repository),
            stall_s=self._limits.idle_s,
        )
        if not wish.commands:
            await answer.finish()
            return response
        await self._tidy_once(opened, repository)
        one = _OnePush(self, request, opened, repository, wish, answer)
        async with answer:
            await one.take_objects(body)
            # From here on the push ends, whatever becomes of its request: refs that moved must
            # not go unnoticed.
            await asyncio.shield(self._in_background(one.conclude()))
        if opened.is_ours and one.is_landed:
            self._in_background(self._take_care(repository))
        return response

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
                await self._workers.care(repository.path)
        except (WorkerLostError, RepositoryError, OSError):
            return  # the next push tries again; `gitd check` tells what is wrong
        finally:
            self._in_care.discard(repository.path)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait for pushes that are being concluded, for a while."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _keepalive_s(self, repository: Repository) -> float:
        configured = repository.config.number("receive.keepalive")
        return self._limits.keepalive_s if configured is None else float(configured)

    async def _tidy_once(self, opened: Opened, repository: Repository) -> None:
        """Remove what a crash left, before the first push that this process takes."""
        if not opened.is_ours:
            return
        async with self.ref_lock(repository):
            if opened.repository not in self._tidied:
                await asyncio.to_thread(forget_locks, repository.path)
                self._tidied.add(opened.repository)

    def ref_lock(self, repository: Repository) -> asyncio.Lock:
        """Return the lock under which this process moves a repository's refs."""
        return self._locks.setdefault(repository.path, asyncio.Lock())

    # the request

    async def _read_wish(self, body: BodyReader) -> Wish:
        wish = Wish()
        is_certified = False
        while not isinstance(line := await body.pkt(), Marker):
            line = line.removesuffix(b"\n")
            if line.startswith(b"shallow "):
                wish.shallow.append(_oid(line[8:]))
            elif line.startswith(b"push-cert\0"):
                is_certified = True
            elif not is_certified:
                if not wish.commands:
                    line, _, capabilities = line.partition(b"\0")
                    wish.capabilities = frozenset(capabilities.split())
                wish.commands.append(_command(line))
            if len(wish.commands) > self._limits.refs_max:
                raise BodyTooLargeError(f"a push may update {self._limits.refs_max} refs at most")
        if line is Marker.END and wish.commands:
            raise BodyInvalidError("the request ends before its first flush")
        if is_certified:
            return Wish()  # no nonce was offered, so that git itself ignores such a push
        _require_sha1(wish.capabilities)
        if wish.can(b"push-options") and wish.commands:
            wish.options = await self._read_options(body)
        return wish

    async def _read_options(self, body: BodyReader) -> list[str]:
        options: list[str] = []
        total_bytes = 0
        while not isinstance(line := await body.pkt(), Marker):
            total_bytes += len(line)
            options.append(line.removesuffix(b"\n").decode("utf-8", "replace"))
            if (
                len(options) > self._limits.push_options_max
                or total_bytes > self._limits.push_options_bytes_max
            ):
                raise BodyTooLargeError("too many push options")
        return options

    @property
    def limits(self) -> GitLimits:
        return self._limits

    @property
    def receiver(self) -> PushReceiver:
        return self._receiver

    @property
    def workers(self) -> PackWorkers:
        return self._workers


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
        self._limits = service.limits
        self._opened = opened
        self._repository = repository
        self._wish = wish
        self._commands = wish.commands
        self._answer = answer
        self._remote_addr = request.remote or "unknown"
        self._quarantine: Path | None = None
        self._is_migrated = False
        self._new_borders: list[bytes] = []
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
            repository, self._environ(), answer.progress, timeout_s=self._limits.hook_s
        )

    async def take_objects(self, body: BodyReader) -> None:
        """Read the pack and check it; nothing outside of the quarantine changes."""
        try:
            await self._receive_objects(body)
        except BaseException:
            await self._tidy()
            raise
        self._answer.keep_alive()

    async def conclude(self) -> None:
        """Ask, move refs, report, and act on it."""
        try:
            if self._unpack_status == "ok":
                await self._ask_before()
                await self._move_refs()
        finally:
            await self._tidy()
        await self._report()
        await self._act_after()
        await self._answer.end()

    async def _tidy(self) -> None:
        quarantine, self._quarantine = self._quarantine, None
        if quarantine is not None and not self._is_migrated:
            await asyncio.to_thread(discard_quarantine, quarantine)

    @property
    def is_landed(self) -> bool:
        """Whether a ref has moved."""
        return any(command.error is None for command in self._commands)

    def _environ(self) -> dict[str, str]:
        user = self._opened.remote_user or "anonymous"
        environ = {
            "GIT_COMMITTER_NAME": user,
            "GIT_COMMITTER_EMAIL": f"{user}@http.{self._remote_addr}",
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

    # objects

    async def _receive_objects(self, body: BodyReader) -> None:
        try:
            spooled_bytes = await self._spool(body) if self._wish.needs_pack else 0
            ingested = await self._ingest(spooled_bytes)
        except GitRequestError as error:
            await body_drained(body, self._limits.drain_bytes_max, error)
            ingested = Ingested(error=error.message, unpack_status=error.message)
        except OSError as error:
            await body_drained(body, self._limits.drain_bytes_max, None)
            reason = error.strerror or "input/output error"
            ingested = Ingested(error=f"cannot store the pack: {reason}", unpack_status=reason)
        except WorkerLostError as error:
            ingested = Ingested(error=str(error), unpack_status="index-pack abnormal exit")
        await self._tell(ingested)
        if ingested.error is not None:
            self._unpack_status = ingested.unpack_status
            self._refuse_all("unpacker error")
            return
        self._judge_tips(ingested)

    async def _spool(self, body: BodyReader) -> int:
        """Write the pack into quarantine as it comes; return its size in bytes."""
        self._quarantine = await asyncio.to_thread(make_quarantine, self._repository.path)
        configured = self._repository.config.number("receive.maxinputsize", default=0) or None
        bytes_max = min(configured or self._limits.pack_bytes_max, self._limits.pack_bytes_max)
        total_bytes = 0
        waiting: list[bytes] = []
        waiting_bytes = 0
        with (self._quarantine / "pack" / SPOOL_NAME).open("wb", buffering=0) as file:
            async for piece in body.rest():
                total_bytes += len(piece)
                if total_bytes > bytes_max:
                    raise BodyTooLargeError("pack exceeds maximum allowed size")
                waiting.append(piece)
                waiting_bytes += len(piece)
                if waiting_bytes >= SPOOL_BUFFER_BYTES:
                    await asyncio.to_thread(_write_all, file, waiting)
                    waiting, waiting_bytes = [], 0
            _write_all(file, waiting)
        return total_bytes

    async def _ingest(self, spooled_bytes: int) -> Ingested:
        config = self._repository.config
        fsck = None
        if config.flag("receive.fsckobjects", default=config.flag("transfer.fsckobjects")):
            fsck = config.section("receive.fsck.")
        skip = fsck.pop("skiplist", None) if fsck is not None else None
        task = IngestTask(
            repository=os.fspath(self._repository.path),
            quarantine=os.fspath(self._quarantine) if self._quarantine is not None else None,
            tips=[command.new for command in self._commands if not command.is_delete],
            shallow=self._wish.shallow,
            fsck=_severities(fsck) if fsck is not None else None,
            fsck_skip=_read_skip_list(self._repository.path / skip) if skip else [],
            objects_max=self._limits.objects_max,
            object_bytes_max=self._limits.object_bytes_max,
        )
        if not task.tips:
            return Ingested()
        if spooled_bytes <= self._limits.thread_bytes_max:
            return await ingest_here(task, self._repository)
        self._answer.keep_alive()
        return await self._service.workers.ingest(task)

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
        if lines:
            await self._answer.progress("".join(f"{line}\n" for line in lines).encode())

    def _judge_tips(self, ingested: Ingested) -> None:
        for command in self._commands:
            if command.new in ingested.broken:
                command.error = "missing necessary objects"
        if not ingested.needs_shallow:
            return
        if self._repository.config.flag("receive.shallowupdate"):
            self._new_borders = ingested.needs_shallow
            return
        # Which refs need the missing parents is not worth a walk: a push that would make the
        # repository shallow is refused whole.
        for command in self._commands:
            if not command.is_delete:
                command.error = command.error or "shallow update not allowed"

    # before refs move

    async def _ask_before(self) -> None:
        hidden = HiddenRefs.of(self._repository, Service.RECEIVE_PACK)
        for command in self._commands:
            if hidden.hides(command.name):
                action = "deleting" if command.is_delete else "updating"
                command.error = f"deny {action} a hidden ref"
        await self._ask_receiver()
        await self._run_pre_receive()
        if self._quarantine is not None and any(not command.error for command in self._commands):
            try:
                await asyncio.to_thread(self._take_in, self._quarantine)
            except OSError as error:
                await self._answer.say(f"error: cannot keep the objects: {error.strerror}")
                self._refuse_all("unable to migrate objects to permanent storage")

    def _take_in(self, quarantine: Path) -> None:
        migrate_quarantine(quarantine)
        self._is_migrated = True
        if self._new_borders:
            self._repository.extend_shallow(self._new_borders)
        self._repository.objects.refresh()

    async def _ask_receiver(self) -> None:
        try:
            refused: Mapping[str, str] = await self._service.receiver.accept(self._push)
        except PushRefusedError as error:
            self._refuse_all(error.reason)
            return
        for command in self._commands:
            reason = refused.get(os.fsdecode(command.name))
            if reason is not None:
                command.error = command.error or reason

    async def _run_pre_receive(self) -> None:
        if not self._hooks.has("pre-receive"):
            return
        lines = self._hook_lines()
        if not lines:
            return
        environ = option_environ(self._wish.options)
        if self._quarantine is not None:
            environ |= quarantine_environ(self._repository, self._quarantine)
        if not await self._hooks.run("pre-receive", stdin=lines, environ=environ):
            self._refuse_all("pre-receive hook declined")

    def _hook_lines(self) -> bytes:
        return b"".join(
            b"%s %s %s\n" % (command.old.hex().encode(), command.new.hex().encode(), command.name)
            for command in self._commands
            if command.error is None and not command.is_skipped
        )

    # the refs

    async def _move_refs(self) -> None:
        is_atomic = self._wish.can(b"atomic")
        async with self._service.ref_lock(self._repository):
            words = await asyncio.to_thread(self._judge_refs)
            if words:
                await self._answer.progress("".join(f"{word}\n" for word in words).encode())
            await self._run_update()
            if is_atomic and any(command.error for command in self._commands):
                self._refuse_all("atomic push failure")
            await self._apply(is_atomic=is_atomic)

    def _judge_refs(self) -> list[str]:
        return RefChecks(self._repository).judge_all(self._commands)

    async def _run_update(self) -> None:
        if not self._hooks.has("update"):
            return
        for command in self._commands:
            if command.error is not None or command.is_skipped:
                continue
            arguments = (command.name, command.old.hex().encode(), command.new.hex().encode())
            if not await self._hooks.run("update", *arguments):
                name = show(command.name)
                await self._answer.say(f"error: hook declined to update {name}")
                command.error = "hook declined"

    async def _apply(self, *, is_atomic: bool) -> None:
        going = [c for c in self._commands if c.error is None and not c.is_skipped]
        if not going:
            return
        user = self._opened.remote_user or "anonymous"
        log = ReflogEntry(f"{user} <{user}@http.{self._remote_addr}>".encode(), b"push")
        changes = [RefChange(c.name, c.old, c.new) for c in going]
        # Shielded: once begun, the transaction ends, whatever becomes of the client.
        errors = await asyncio.shield(
            asyncio.to_thread(change_refs, self._repository, changes, is_atomic=is_atomic, log=log)
        )
        for command, error in zip(going, errors, strict=True):
            if error is not None:
                command.error = error.reason
                if str(error):
                    await self._answer.say(f"error: {error}")

    # after

    async def _report(self) -> None:
        is_v2 = self._wish.can(b"report-status-v2")
        if not is_v2 and not self._wish.can(b"report-status"):
            return
        lines = [f"unpack {self._unpack_status}\n".encode()]
        for command in self._commands:
            if command.error is None:
                lines.append(b"ok %s\n" % command.name)
            else:
                reason = command.error.replace("\n", " ").encode("utf-8", "replace")
                lines.append(b"ng %s %s\n" % (command.name, reason))
        await self._answer.send(pkt_lines(lines) + FLUSH)

    async def _act_after(self) -> None:
        lines = self._hook_lines()
        if lines and self._unpack_status == "ok":
            environ = option_environ(self._wish.options)
            await self._hooks.run("post-receive", stdin=lines, environ=environ)
            if self._hooks.has("post-update"):
                names = [c.name for c in self._commands if c.error is None and not c.is_skipped]
                await self._hooks.run("post-update", *names)
        outcomes = [RefOutcome(command.update, command.error) for command in self._commands]
        await self._service.receiver.landed(self._push, outcomes, self._answer)


def refusal(wish: Wish, reason: str) -> bytes:
    """Render a report that refuses everything, for clients without a side band."""
    lines = [f"unpack {reason}\n".encode()]
    lines += [b"ng %s %s\n" % (c.name, reason.encode()) for c in wish.commands]
    return b"".join(map(pkt_line, lines)) + FLUSH


async def body_drained(body: BodyReader, bytes_max: int, error: GitRequestError | None) -> None:
    """Read what the client still sends, so that it hears the answer; not when it stalls."""
    if isinstance(error, (BodyStalledError, BodyInvalidError)):
        return
    try:
        await body.drain(bytes_max)
    except (GitRequestError, ConnectionError):
        return


def _command(line: bytes) -> Command:
    old, _, rest = line.partition(b" ")
    new, space, name = rest.partition(b" ")
    if not space or not name:
        raise BodyInvalidError(f"protocol error: expected old/new/ref, got {line!r}")
    return Command(name=name, old=_oid(old), new=_oid(new))


def _oid(digits: bytes) -> bytes:
    try:
        oid = bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise BodyInvalidError(f"protocol error: expected an object id, got {digits!r}") from error
    if len(oid) != len(NULL_OID):
        raise BodyInvalidError(f"protocol error: expected an object id, got {digits!r}")
    return oid


def _require_sha1(capabilities: frozenset[bytes]) -> None:
    for capability in capabilities:
        if capability.startswith(b"object-format=") and capability != b"object-format=sha1":
            raise BodyInvalidError("error: unsupported object format")


def _write_all(file: BinaryIO, pieces: list[bytes]) -> None:
    data = memoryview(b"".join(pieces))
    while data:
        data = data[file.write(data) :]


def _severities(section: Mapping[str, str]) -> dict[str, str]:
    known = {"error", "warn", "ignore"}
    return {name: value.lower() for name, value in section.items() if value.lower() in known}


def _read_skip_list(path: Path) -> list[bytes]:
    found = []
    for line in path.read_text("ascii", "replace").splitlines():
        digits = line.split("#")[0].strip()
        if len(digits) == 40:
            found.append(bytes.fromhex(digits))
    return found
