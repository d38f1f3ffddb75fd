"""Whole checks of repositories, in processes of their own: each reads a large pack on two cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from storage.git.check import RepositoryReport, check_repository

PROCESS_COUNT_MAX = 2
KILLED = "its check was killed, as where memory is short: run it again"


def check_repositories(paths: Sequence[Path], *, is_whole: bool) -> Iterator[RepositoryReport]:
    """Check repositories; yield a report of each, in their order. See `check_repository`.

    Whole checks do not run in this process: it may have threads, and a fork would find their locks
    held.
    """
    if not is_whole or not paths:
        yield from (check_repository(path, is_whole=False) for path in paths)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESS_COUNT_MAX, len(paths)), mp_context=spawn) as processes:
        checks = [
            processes.submit(check_repository, path, is_whole=True, may_fork=True) for path in paths
        ]
        for check in checks:
            try:
                yield check.result()
            except BrokenProcessPool:
                yield RepositoryReport(refs=0, objects=0, faults=(KILLED,), is_whole=False)
