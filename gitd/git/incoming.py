"""The objects of a push on their way in: spooled, indexed and checked in quarantine.

A tiny pack stays in memory until one thread does all of it; a larger one is written to disk as it
comes and indexed in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from gitd.git.body import BodyReader
from gitd.git.errors import (
    BodyInvalidError,
    BodyStalledError,
    BodyTooLargeError,
    GitRequestError,
)
from gitd.git.limits import GitLimits
from gitd.git.push_request import Wish
from gitd.git.workers import PackWorkers, WorkerLostError
from storage.git.errors import PackOutgrownError, RepositoryError
from storage.git.ingest import (
    SPOOL_NAME,
    Ingested,
    IngestTask,
    StagedPack,
    discard_quarantine,
    ingest,
    make_quarantine,
    migrate_quarantine,
    write_loose,
)
from storage.git.object_formats import BLOB
from storage.git.pack_keeps import PackKeeps
from storage.git.repository import Repository
from storage.room import size_in_words

SPOOL_BUFFER_BYTES = 1 << 20
_FATAL_FINDINGS = ("nulinheader", "unterminatedheader")  # what follows cannot be read then
_ABNORMAL_EXIT = "index-pack abnormal exit"
_OID = re.compile(r"[0-9a-fA-F]{40}")


class Incoming:
    """The pack of one push.

    Args:
        is_looked_at: a hook will see what came before it is taken in.
        is_kept: others may tidy up the repository between that and the moving of the refs.
    """

    def __init__(
        self,
        repository: Repository,
        wish: Wish,
        limits: GitLimits,
        workers: PackWorkers,
        *,
        is_looked_at: bool,
        is_kept: bool,
    ) -> None:
        self._repository = repository
        self._wish = wish
        self._limits = limits
        self._workers = workers
        self._is_looked_at = is_looked_at
        self._keeps = PackKeeps() if is_kept else None
        self.quarantine: Path | None = None
        self._staged: StagedPack | None = None
        self._has_pack = False
        self._is_over = False

    async def receive(self, body: BodyReader, on_arrival: Callable[[], None]) -> Ingested:
        """Read and check the pack; nothing outside of the quarantine changes.

        Never raises for what the client sent: then the answer has an error. `on_arrival` is called
        when the last byte is here and the checks begin.
        """
        if not self._wish.needs_pack:
            on_arrival()
            return Ingested()
        try:
            ingested = await self._receive(body, on_arrival)
            self._has_pack = ingested.object_count > 0
            return ingested
        except GitRequestError as error:
            await drain(body, self._limits.drain_bytes_max, error)
            return Ingested(error=error.message, unpack_status=error.message)
        except OSError as error:
            await drain(body, self._limits.drain_bytes_max)
            reason = error.strerror or "input/output error"
            return Ingested(error=f"cannot store the pack: {reason}", unpack_status=reason)
        except (WorkerLostError, RepositoryError) as error:
            return Ingested(error=str(error), unpack_status=_ABNORMAL_EXIT)

    async def _receive(self, body: BodyReader, on_arrival: Callable[[], None]) -> Ingested:
        bytes_max, setting = self._limits.pack_bytes_max, "git.pack_bytes_max"
        configured = self._repository.config.number("receive.maxinputsize", default=0) or 0
        if 0 < configured < bytes_max:
            bytes_max, setting = configured, "receive.maxInputSize"
        total_bytes = 0
        waiting: list[bytes] = []
        waiting_bytes = 0
        with contextlib.ExitStack() as stack:
            file: BinaryIO | None = None
            async for piece in body.rest():
                total_bytes += len(piece)
                if total_bytes > bytes_max:
                    raise BodyTooLargeError(
                        f"pack exceeds maximum allowed size ({size_in_words(bytes_max)}, "
                        f"{setting}): push older commits first"
                    )
                waiting.append(piece)
                waiting_bytes += len(piece)
                if total_bytes > self._limits.thread_bytes_max and file is None:
                    file = stack.enter_context(await asyncio.to_thread(self._open_spool))
                if file is not None and waiting_bytes >= SPOOL_BUFFER_BYTES:
                    await asyncio.to_thread(_write_all, file, waiting)
                    waiting, waiting_bytes = [], 0
            on_arrival()
            if file is not None:
                await asyncio.to_thread(_write_all, file, waiting)
                return await self._ingest_elsewhere(os.dup(file.fileno()))
            if (ingested := await asyncio.to_thread(self._ingest_here, waiting)) is not None:
                return ingested
        return await self._workers.ingest(self._task())

    async def _ingest_elsewhere(self, spool: int) -> Ingested:
        """Index a large pack in a worker, and have the disk write it meanwhile; closes `spool`."""
        syncing = asyncio.create_task(asyncio.to_thread(_sync_and_close, spool))
        ingested = await self._workers.ingest(self._task())
        await syncing
        return ingested

    def add_blob(self, data: bytes) -> bytes:
        """Put a blob of our own beside what came; return its id. Blocking."""
        return write_loose(self._quarantine(), BLOB, data)

    def _quarantine(self) -> Path:
        if self.quarantine is None:
            self.quarantine = make_quarantine(self._repository.path)
        return self.quarantine

    def _open_spool(self) -> BinaryIO:
        return (self._quarantine() / "pack" / SPOOL_NAME).open("wb", buffering=0)

    def _ingest_here(self, pieces: list[bytes]) -> Ingested | None:
        """Index a small pack in this process; None when it inflates to too much for that."""
        staged = None
        if self._needs_quarantine():
            self._spool(pieces)
        else:
            staged = self._staged = StagedPack(self._repository.path, b"".join(pieces))
        task = replace(self._task(), memory_bytes_max=self._limits.thread_inflated_bytes_max)
        try:
            return ingest(task, self._repository, staged=staged)
        except PackOutgrownError:
            if staged is not None:
                self._staged = None
                self._spool(pieces)
            return None
        finally:
            if self._is_over and staged is not None:  # the request was broken off meanwhile
                staged.discard()

    def _needs_quarantine(self) -> bool:
        """Say whether anybody will look at what came, or add to it, before it is taken in."""
        return (
            self._wish.certificate is not None
            or self._is_looked_at
            or not (self._repository.path / "objects/pack").is_dir()
        )

    def _spool(self, pieces: list[bytes]) -> None:
        with self._open_spool() as file:
            _write_all(file, pieces)

    def _task(self) -> IngestTask:
        config = self._repository.config
        fsck = None
        if config.flag("receive.fsckobjects", default=config.flag("transfer.fsckobjects")):
            fsck = config.section("receive.fsck.")
        skip = fsck.pop("skiplist", None) if fsck is not None else None
        return IngestTask(
            repository=os.fspath(self._repository.path),
            quarantine=os.fspath(self.quarantine) if self.quarantine is not None else None,
            tips=[
                command.new
                for command in self._wish.commands
                if command.is_going and not command.is_delete
            ],
            shallow=self._wish.shallow,
            fsck=_severities(fsck) if fsck is not None else None,
            fsck_skip=_read_skip_list(self._repository.path / skip) if skip else [],
            objects_max=self._limits.objects_max,
            object_bytes_max=self._limits.object_bytes_max,
        )

    def take_in(self) -> set[Path]:
        """Make the objects part of the store; return directories to sync. Blocking.

        The packs may be kept from then on: call `let_go` when refs name them.

        Raises:
            FileNotFoundError: somebody has removed them.
            OSError: the disk is full, or something like it; or the push was broken off, and the
                objects are gone.
        """
        if self._is_over:
            raise OSError(errno.ECANCELED, "the push was broken off")
        if self._staged is not None:
            migrated = self._staged.take_in(self._repository.sharing, self._keeps)
            self._staged = None
        elif self.quarantine is not None:
            migrated = migrate_quarantine(
                self.quarantine, self._repository.sharing, self._keeps, has_pack=self._has_pack
            )
            self.quarantine = None
        else:
            return set()
        for index in migrated.indexes:
            self._repository.objects.note_pack(index)
        return migrated.directories

    def let_go(self) -> None:
        """Keep the packs no longer; a second call does nothing. Blocking, for a moment."""
        if self._keeps is not None:
            self._keeps.drop()

    async def tidy(self) -> None:
        """Drop what was not taken in; a second call does nothing."""
        self._is_over = True
        self.let_go()
        staged, self._staged = self._staged, None
        if staged is not None:
            await asyncio.to_thread(staged.discard)
        quarantine, self.quarantine = self.quarantine, None
        if quarantine is not None:
            await asyncio.to_thread(discard_quarantine, quarantine)


async def drain(body: BodyReader, bytes_max: int, error: GitRequestError | None = None) -> None:
    """Read what the client still sends, so that it hears the answer; not when it stalls."""
    if isinstance(error, (BodyStalledError, BodyInvalidError)):
        return
    with contextlib.suppress(GitRequestError, ConnectionError):
        await body.drain(bytes_max)


def _write_all(file: BinaryIO, pieces: list[bytes]) -> None:
    data = memoryview(b"".join(pieces))
    while data:
        data = data[file.write(data) :]


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _severities(section: Mapping[str, str]) -> dict[str, str]:
    found = {name: value.lower() for name, value in section.items()}
    for name, value in found.items():
        if value not in ("error", "warn", "ignore"):
            raise GitRequestError(f"Unknown fsck message type: '{value}'")
        if name in _FATAL_FINDINGS and value != "error":
            raise GitRequestError(f"Cannot demote {name} to {value}")
    return found


def _read_skip_list(path: Path) -> list[bytes]:
    found = []
    try:
        text = path.read_text("ascii", "replace")
    except OSError as error:
        raise GitRequestError(f"could not open object name list: {path.name}") from error
    for line in text.splitlines():
        digits = line.split("#")[0].strip()
        if _OID.fullmatch(digits):
            found.append(bytes.fromhex(digits))
        elif digits:
            raise GitRequestError(f"invalid object name: {digits[:200]}")
    return found
