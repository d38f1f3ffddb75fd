"""The pack that answers a fetch: made in a thread or a worker, and sent with progress."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog
from msgspec.structs import replace

from gitd.git.access import Service
from gitd.git.advertisement import RefViews
from gitd.git.fetch import FetchRequest
from gitd.git.kept_packs import KeptPacks, ReadyPack
from gitd.git.limits import GitLimits
from gitd.git.pack_sum import PackSum
from gitd.git.side_band import SEND_BYTES, SideBandAnswer
from gitd.git.tally import FetchOutcome, GitTally
from gitd.git.workers import PackWorkers, WorkerLostError
from storage.git.errors import PackOutgrownError, RepositoryCorruptError, RepositoryError
from storage.git.object_filter import FilterError
from storage.git.pack_builder import BuiltPack, PackTask, build_pack, ready_pack
from storage.git.repository import Repository
from storage.git.shallow import Borders

_log = structlog.get_logger(__name__)


class PackSender:
    """Makes packs and sends them.

    Args:
        folder: where large packs are written, on a disk with room for them.
    """

    def __init__(
        self,
        views: RefViews,
        limits: GitLimits,
        workers: PackWorkers,
        folder: Path,
        tally: GitTally,
    ) -> None:
        self._tally = tally
        self._views = views
        self._limits = limits
        self._workers = workers
        self._kept = KeptPacks(folder, limits.kept_packs_bytes_max)
        self._unsound: set[str] = set()  # files of stored packs that were found damaged when sent

    async def close(self) -> None:
        """Drop the packs that are kept."""
        await self._kept.close()

    async def send(
        self,
        repository: Repository,
        fetch: FetchRequest,
        common: list[bytes],
        borders: Borders,
        answer: SideBandAnswer,
        *,
        announce: Callable[[BuiltPack], bytes] | None = None,
    ) -> None:
        """Send the pack of a fetch, with progress, and end the answer.

        `announce` makes what stands before the pack, once it is known.
        """
        try:
            task, key = await asyncio.to_thread(self._task, repository, fetch, common, borders)
            ready = await self._ready(repository, task, key)
        except RepositoryCorruptError as error:
            self._tally.fetches[FetchOutcome.FAILED] += 1
            await answer.fail(_damage(repository.path, str(error)))
            await answer.finish()
            return
        except (RepositoryError, WorkerLostError, FilterError, OSError) as error:
            self._tally.fetches[FetchOutcome.FAILED] += 1
            await answer.fail(f"upload-pack: {error}")
            await answer.finish()
            return
        try:
            if announce is not None:
                await answer.write(announce(ready.built))
            if not fetch.no_progress:
                await answer.progress(_progress(ready.built))
            is_whole = await _send(repository.path, ready, answer)
            if not is_whole:
                self._unsound.add(ready.built.path or "")
        finally:
            ready.close()
        outcome = FetchOutcome.SENT if is_whole else FetchOutcome.FAILED
        self._tally.fetches[FetchOutcome.BROKEN_OFF if answer.is_gone else outcome] += 1
        await answer.end()

    def _task(
        self,
        repository: Repository,
        fetch: FetchRequest,
        common: list[bytes],
        borders: Borders,
    ) -> tuple[PackTask, bytes | None]:
        """Return what is to be packed, and for a clone its key among those that are kept."""
        tags: list[tuple[bytes, bytes]] = []
        if fetch.with_tags:
            view = self._views.visible(repository, Service.UPLOAD_PACK)
            tags = [
                (oid, view.peeled[oid])
                for name, oid in view.values.items()
                if oid in view.peeled and name.startswith(b"refs/tags/")
            ]
        task = PackTask(
            repository=os.fspath(repository.path),
            wants=[*dict.fromkeys([*fetch.wants, *borders.more_wants])],
            haves=common,
            cut=sorted({*borders.cut, *fetch.shallow}),
            tags=tags,
            filter_spec=fetch.filter_spec,
            leave_out=sorted(fetch.elsewhere),
            may_thin=fetch.may_thin,
            may_offset=fetch.may_offset,
            memory_bytes_max=self._limits.thread_answer_bytes_max,
            may_verbatim=self._may_send_files(repository),
        )
        return task, None if task.haves else _clone_key(task)

    def _may_send_files(self, repository: Repository) -> bool:
        """Say whether no pack is known as damaged: what is whole elsewhere is put in a new one."""
        if not self._unsound:
            return True
        return self._unsound.isdisjoint(os.fspath(p.path) for p in repository.objects.packs())

    async def _ready(self, repository: Repository, task: PackTask, key: bytes | None) -> ReadyPack:
        if key is None:
            return await self._make(repository, task)
        return await self._kept.shared(key, lambda: self._make(repository, task))

    async def _make(self, repository: Repository, task: PackTask) -> ReadyPack:
        built = await self._build(repository, task)
        with contextlib.suppress(FileNotFoundError):
            return self._kept.opened(built)
        # A stored pack that was joined with others meanwhile.
        built = await self._build(repository, replace(task, may_verbatim=False))
        return self._kept.opened(built)

    async def _build(self, repository: Repository, task: PackTask) -> BuiltPack:
        built = await asyncio.to_thread(self._build_here, repository, task)
        if built is not None:
            return built
        path = self._kept.new_path()
        try:
            return await self._workers.pack(replace(task, out_path=path))
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise

    def _build_here(self, repository: Repository, task: PackTask) -> BuiltPack | None:
        """Make a pack in this process, in memory; None when that is too much for it."""
        ready = None if task.haves else ready_pack(task, repository)
        if ready is not None:
            return ready
        limits = self._limits
        if not repository.objects.is_within(
            objects_max=limits.thread_objects_max, stored_bytes_max=limits.thread_pack_bytes_max
        ):
            return None
        try:
            return build_pack(task, repository)
        except PackOutgrownError:
            return None


def _clone_key(task: PackTask) -> bytes:
    """Name a clone by all that decides what is in its pack."""
    parts = [task.repository.encode(), *sorted(task.wants), b"|", *sorted(task.cut), b"|"]
    parts += [tag + target for tag, target in sorted(task.tags)]
    parts += [b"|", *task.leave_out, b"|"]
    parts += [(task.filter_spec or "").encode(), b"o" if task.may_offset else b""]
    parts += [b"v" if task.may_verbatim else b""]
    return hashlib.sha256(b"\0".join(parts)).digest()


async def _send(repository: Path, ready: ReadyPack, answer: SideBandAnswer) -> bool:
    """Send a pack piece by piece, as fast as its reader takes it; say whether it is a good one.

    A stored one is summed up the first time: its last piece is sent if it is what it was.
    """
    built, descriptor = ready.built, ready.descriptor
    if descriptor is None:
        await answer.send(built.data)
        return True
    total = None if ready.is_sound else PackSum(built.size_bytes)
    at = 0
    while at < built.size_bytes and not answer.is_gone:
        data = os.pread(descriptor, SEND_BYTES, at)
        if not data:
            await answer.fail("upload-pack: the pack ended early")
            return False
        at += len(data)
        if total is not None and not total.take(data):
            name = os.path.basename(built.path or "")  # noqa: PTH119
            await answer.fail(_damage(repository, f"{name} is damaged"))
            return False
        await answer.send(data)
    if at >= built.size_bytes:
        ready.note_sound()
    return True


def _damage(repository: Path, what: str) -> str:
    """Log what is damaged; return the sentence for who asked."""
    _log.error("repository_damaged", path=os.fspath(repository), what=what)
    name = repository.parent.name if repository.name == ".git" else repository.name
    return (
        f"upload-pack: {what}: only the server's operator can mend {name}; "
        "'gitd check' or 'git fsck' tells more"
    )


def _progress(built: BuiltPack) -> bytes:
    count, delta = built.object_count, built.delta_count
    return (
        f"Enumerating objects: {count}, done.\n"
        f"Counting objects: 100% ({count}/{count}), done.\n"
        f"Total {count} (delta {delta}), reused {built.reused_count} (delta {delta})\n"
    ).encode()
