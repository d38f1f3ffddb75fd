"""A process that does heavy pack work for a server: `python -m storage.git.worker [SERVER]`.

It reads tasks from standard input and writes answers to standard output, each a MessagePack value
behind its length in four bytes. It ends with its standard input; and where it is told the id of its
server's process, the system kills it with that one, in the middle of whatever it does. A repository
whose locks are forgotten after a crash has nobody then who still writes under one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from storage.git.errors import RepositoryCorruptError, RepositoryError
from storage.git.ingest import Ingested, IngestTask, ingest
from storage.git.maintenance import take_care
from storage.git.object_filter import FilterError
from storage.git.pack_builder import BuiltPack, PackTask, build_pack
from storage.git.repository import RepositoryCache

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of work; exactly one field is set."""

    ingest: IngestTask | None = None
    pack: PackTask | None = None
    care: str | None = None  # the git directory of a repository to take care of


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message about a task; `is_last` ends it.

    Attributes:
        error: the task failed as a whole.
        is_damage: it failed for what is stored in the repository.
    """

    is_last: bool = True
    ingested: Ingested | None = None
    built: BuiltPack | None = None
    error: str | None = None
    is_damage: bool = False


def encode_frame(value: Task | Answer) -> bytes:
    """Encode a value behind its length."""
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(4, "big") + data


def main() -> None:
    """Serve tasks until standard input ends."""
    if len(sys.argv) > 1:
        _end_with(int(sys.argv[1]))
    # Whatever writes to standard output by mistake must not end up between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    cache = RepositoryCache()
    with contextlib.suppress(BrokenPipeError):  # the server has died: nobody waits for the answer
        while (task := _read(sys.stdin.buffer)) is not None:
            answers.write(encode_frame(_done(task, cache)))
            answers.flush()
    with contextlib.suppress(BrokenPipeError):
        answers.close()


def _end_with(server: int) -> None:
    """Let the system kill this process when the thread ends that started it. Source: prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")
    if os.getppid() != server:  # it died before this
        sys.exit(1)


def _done(task: Task, cache: RepositoryCache) -> Answer:
    try:
        if task.ingest is not None:
            repository = cache.open(Path(task.ingest.repository))
            with _without_collector():
                return Answer(ingested=ingest(task.ingest, repository, may_fork=True))
        if task.pack is not None:
            repository = cache.open(Path(task.pack.repository))
            return Answer(built=build_pack(task.pack, repository))
        if task.care is not None:
            take_care(cache.open(Path(task.care)))
            return Answer()
    except RepositoryCorruptError as error:
        return Answer(error=str(error), is_damage=True)
    except (RepositoryError, FilterError) as error:
        return Answer(error=str(error))
    except OSError as error:
        return Answer(error=error.strerror or "input/output error")
    except MemoryError:
        return Answer(error="out of memory")
    return Answer(error="unknown task")


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Let objects go by their counts alone: a large pack makes many, and hardly a circle."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read(source: BinaryIO) -> Task | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "big")
    data = source.read(length)
    return msgspec.msgpack.decode(data, type=Task) if len(data) == length else None


if __name__ == "__main__":
    main()
