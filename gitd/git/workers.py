"""Pack work outside of the event loop: tiny ones in a thread, heavy ones in other processes.

Inflating and hashing let other threads run only in short pauses, so that a large pack in this
process would delay every answer. A worker is this program again (`python -m storage.git.worker`),
keeps its repositories open, and ends after some idle time; a task that breaks it breaks nothing
else. The system kills it with the thread that runs this event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from storage.git.errors import RepositoryCorruptError, RepositoryError
from storage.git.ingest import Ingested, IngestTask
from storage.git.pack_builder import BuiltPack, PackTask
from storage.git.worker import Answer, Task, encode_frame

IDLE_S = 60.0
_HEAD_BYTES = 4


class WorkerLostError(Exception):
    """A worker ended in the middle of a task: killed, or out of memory."""


class _Worker:
    """One process, one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.expiry: asyncio.TimerHandle | None = None

    @classmethod
    async def start(cls) -> _Worker:
        root = Path(__file__).parents[2]
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "storage.git.worker",
                str(os.getpid()),
                cwd=root,
                env={"PATH": os.defpath, "PYTHONPATH": os.fspath(root), "TMPDIR": _tmp()},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        )

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def run(self, task: Task) -> AsyncIterator[Answer]:
        """Yield the answers to a task; the last one is not a progress."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(encode_frame(task))
            await self._process.stdin.drain()
            while True:
                head = await self._process.stdout.readexactly(_HEAD_BYTES)
                data = await self._process.stdout.readexactly(int.from_bytes(head, "big"))
                answer = msgspec.msgpack.decode(data, type=Answer)
                yield answer
                if answer.is_last:
                    return
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise WorkerLostError("a pack worker ended unexpectedly") from error

    async def stop(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _tmp() -> str:
    return tempfile.gettempdir()


class PackWorkers:
    """A few worker processes, started when needed."""

    def __init__(self, count_max: int) -> None:
        self._free: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._slots = asyncio.Semaphore(count_max)
        self._stopping: set[asyncio.Task[None]] = set()

    async def warm(self) -> None:
        """Have one worker ready, so that the first large push need not wait for it."""
        if not self._free:
            self._park(await self._start())

    async def ingest(self, task: IngestTask) -> Ingested:
        """Index and check a large pack.

        Raises:
            WorkerLostError: the worker died of it.
        """
        async for answer in self.run(Task(ingest=task)):
            if answer.ingested is not None:
                return answer.ingested
            raise RepositoryError(answer.error or "a pack worker gave no answer")
        raise WorkerLostError("a pack worker gave no answer")

    async def pack(self, task: PackTask) -> BuiltPack:
        """Make a large pack.

        Raises:
            WorkerLostError: the worker died of it.
            RepositoryCorruptError: an object is missing or damaged.
            RepositoryError: it cannot be made, for want of room for instance.
        """
        async for answer in self.run(Task(pack=task)):
            if answer.built is not None:
                return answer.built
            kind = RepositoryCorruptError if answer.is_damage else RepositoryError
            raise kind(answer.error or "a pack worker gave no answer")
        raise WorkerLostError("a pack worker gave no answer")

    async def care(self, repository: Path) -> None:
        """Consolidate a repository.

        Raises:
            WorkerLostError: the worker died of it.
            RepositoryError: it is damaged.
        """
        async for answer in self.run(Task(care=os.fspath(repository))):
            if answer.error is not None:
                raise RepositoryError(answer.error)

    async def run(self, task: Task) -> AsyncIterator[Answer]:
        """Run a task in a worker; leaving early ends that worker.

        Raises:
            WorkerLostError: the worker died of it.
        """
        async with self._slots:
            worker = self._take() or await self._start()
            is_whole = False
            answers = worker.run(task)
            try:
                async for answer in answers:
                    is_whole = answer.is_last
                    yield answer
            finally:
                if is_whole and worker.is_alive:
                    self._park(worker)
                else:
                    self._retire(worker)

    async def _start(self) -> _Worker:
        worker = await _Worker.start()
        self._all.add(worker)
        return worker

    def _take(self) -> _Worker | None:
        while self._free:
            worker = self._free.pop()
            if worker.expiry is not None:
                worker.expiry.cancel()
            if worker.is_alive:
                return worker
            self._retire(worker)
        return None

    def _park(self, worker: _Worker) -> None:
        worker.expiry = asyncio.get_running_loop().call_later(IDLE_S, self._expire, worker)
        self._free.append(worker)

    def _expire(self, worker: _Worker) -> None:
        if worker in self._free:
            self._free.remove(worker)
            self._retire(worker)

    def _retire(self, worker: _Worker) -> None:
        self._all.discard(worker)
        task = asyncio.create_task(worker.stop())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """End all workers."""
        self._free.clear()
        workers, self._all = self._all, set()
        await asyncio.gather(*(worker.stop() for worker in workers))
        if self._stopping:
            await asyncio.gather(*self._stopping)
