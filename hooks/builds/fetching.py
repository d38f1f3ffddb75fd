"""Fetching: the site's folder of a commit comes from control, and is unpacked while it comes.

Where the slot has kept an earlier commit of the site, only what is another in this one comes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from hooks.builds.build_log import BuildLog
from hooks.builds.control import LeasedJob
from hooks.builds.errors import BuilderError
from hooks.builds.kept_sources import KeptSources, KeptTree, SourceKey
from hooks.builds.phase import Phase
from hooks.builds.phases import Workspace, limits_of
from hooks.builds.plan import Plan
from hooks.builds.tree import TreeSize, remove_paths, remove_tree, unpack
from hooks.builds.unpacking import Unpacking, UnpackingEndedError
from hooks.builds.wire import SourceHead
from hooks.pipes import PIPE_BYTES
from storage.files import FULL

log = structlog.get_logger(__name__)


class KeptTreeError(BuilderError):
    """The tree that was kept is not what it was: the commit has to come whole."""


async def fetch_source(
    plan: Plan, job: LeasedJob, workspace: Workspace, log: BuildLog, kept: KeptSources
) -> None:
    """Unpack the site's folder of the commit. A clean build begins with nothing that was kept.

    Raises:
        BuildFailedError: See `tree.unpack`, and `LeasedJob.fetch_source`.
    """
    lease = job.lease
    key = SourceKey(lease.site, plan.root, plan.ignores_submodules, plan.ignores_lfs)
    limits = limits_of(lease)
    taken = None
    if lease.clean:
        await kept.give_way(limits)
    else:
        taken = await kept.take(key, workspace.root / "kept", limits)
    fetch = _Fetch(workspace, taken, wants=lambda head: kept.wants(head, limits), plan=plan)
    unpacking = Unpacking(workspace.tree, fetch.unpack)

    async def run(base: str | None) -> TreeSize:
        with contextlib.suppress(UnpackingEndedError):  # `end` says why
            await job.fetch_source(
                plan.root, unpacking, base=base, ignores_submodules=plan.ignores_submodules
            )
        return await unpacking.end()

    try:
        try:
            size = await run(None if taken is None else taken.tree)
        except KeptTreeError as error:
            _warn(lease.site, error)
            size = await run(None)
    finally:
        await unpacking.close()
    if fetch.archive is not None:
        kept.keep(key, fetch.archive, fetch.head, limits)
    elif not fetch.is_difference:
        kept.forget(key)
    came = f"; {fetch.came} of them fetched, the others were here" if fetch.is_difference else ""
    log.line(Phase.SOURCE, f"{size}, commit {lease.commit[:12]}{came}")


def _warn(site: str, error: KeptTreeError) -> None:
    log.warning("kept_source_unfit", site=site, reason=str(error), instead="fetching it whole")


class _Fetch:
    """What comes, on its way into the tree of a workspace."""

    def __init__(
        self,
        workspace: Workspace,
        taken: KeptTree | None,
        *,
        wants: Callable[[SourceHead], bool],
        plan: Plan,
    ) -> None:
        self._workspace = workspace
        self._taken = taken
        self._wants = wants
        self._plan = plan
        self.head = SourceHead()
        self.archive: Path | None = None
        """What came whole, if it is to be kept."""
        self.came = ""
        """How many files came of a difference."""

    @property
    def is_difference(self) -> bool:
        return self.head.removed_bytes is not None

    def unpack(
        self, stream: BinaryIO, head: SourceHead, is_stopped: Callable[[], bool]
    ) -> TreeSize:
        """Make the tree of what comes. Blocking; it may be called again."""
        self.head, self.archive = head, None
        self._workspace.allowance.clear()
        self._workspace.originals.clear()
        if head.removed_bytes is not None:
            return self._change(stream, head, head.removed_bytes, is_stopped)
        if self._taken is not None:
            remove_tree(self._taken.path)  # of no use, and counted by nobody
        with self._copied(stream) if self._wants(head) else contextlib.nullcontext(stream) as tar:
            return self._unpack(tar, is_stopped)

    def _unpack(
        self, tar: BinaryIO, is_stopped: Callable[[], bool], *, is_new: bool = True
    ) -> TreeSize:
        return unpack(
            tar,
            self._workspace.tree,
            allowance=self._workspace.allowance,
            is_stopped=is_stopped,
            ignores_lfs=self._plan.ignores_lfs,
            on_file=self._workspace.originals.note,
            is_new=is_new,
        )

    def _change(
        self,
        stream: BinaryIO,
        head: SourceHead,
        removed_bytes: int,
        is_stopped: Callable[[], bool],
    ) -> TreeSize:
        """Make the tree of the one that was kept."""
        taken, workspace = self._taken, self._workspace
        assert taken is not None, "control was told of no other"
        workspace.originals.take_over(taken.originals)
        workspace.allowance.take_over(taken.taken_bytes)
        removed = stream.read(removed_bytes)

        def forget(path: bytes) -> None:
            workspace.allowance.give_back(workspace.originals.forget(path))

        try:
            taken.path.rename(workspace.tree)
            remove_paths(workspace.tree, removed.split(b"\0")[:-1], forget, is_stopped=is_stopped)
            came = self._unpack(stream, is_stopped, is_new=False)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise KeptTreeError(f"{error.strerror}: {error.filename!r}") from error
        files = came.files
        self.came = f"{files:,}"
        return TreeSize(head.files, head.size_bytes)

    @contextlib.contextmanager
    def _copied(self, stream: BinaryIO) -> Iterator[BinaryIO]:
        """Write what is read of a stream to the archive as well, as long as the disk takes it."""
        assert isinstance(stream, io.BufferedReader), "it reads a pipe"
        path = self._workspace.root / "source.tar"
        with path.open("wb", buffering=0) as archive:
            copy = _Copied(stream.raw, archive)
            yield io.BufferedReader(copy, PIPE_BYTES)
        if copy.is_whole:
            self.archive = path


class _Copied(io.RawIOBase):
    """A stream whose bytes are written to a file too."""

    def __init__(self, stream: io.RawIOBase, file: io.RawIOBase) -> None:
        super().__init__()
        self._stream = stream
        self._file = file
        self.is_whole = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._stream.readinto(buffer)
        if count and self.is_whole:
            try:
                self.is_whole = self._file.write(memoryview(buffer)[:count]) == count
            except OSError:
                self.is_whole = False
        return count
