"""Fetching: the site's folder of a commit comes from control, and is unpacked while it comes.

Where the slot has kept earlier commits of the site, only what is another in this one comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

import structlog

from hooks.builds.errors import BuilderError
from hooks.builds.logs.build_log import BuildLog
from hooks.builds.phase import Phase
from hooks.builds.profiles.plan import Plan
from hooks.builds.slot.control import LeasedJob
from hooks.builds.slot.phases import Workspace, limits_of
from hooks.builds.sources.archive import Copying, SourceArchive
from hooks.builds.sources.kept_sources import KeptSources, KeptTree, Offer, SourceKey
from hooks.builds.sources.tree import TreeSize, remove_paths, unpack
from hooks.builds.sources.unpacking import Unpacking, UnpackingEndedError
from hooks.builds.wire import SourceHead
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
    offer = Offer()
    if lease.clean:
        await kept.give_way(limits)
    else:
        offer = await kept.offer(key, limits)
    # Where a tree is kept that could not be offered, it may be one that this is like.
    fetch = _Fetch(
        workspace,
        offer.trees,
        wants=lambda head: offer.is_all and kept.wants(head, limits),
        plan=plan,
    )
    unpacking = Unpacking(workspace.tree, fetch.unpack)

    async def run(trees: Sequence[KeptTree]) -> TreeSize:
        bases = [each.tree for each in trees]
        with contextlib.suppress(UnpackingEndedError):  # `end` says why
            await job.fetch_source(
                plan.root, unpacking, bases=bases, ignores_submodules=plan.ignores_submodules
            )
        return await unpacking.end()

    try:
        try:
            size = await run(offer.trees)
        except KeptTreeError as error:
            _warn(lease.site, error)
            size = await run(())
    finally:
        await unpacking.close()
        if fetch.taken is not None:
            kept.take(fetch.taken)
    if lease.clean:
        kept.forget(key)  # now, since to remove a tree would have held up this one
    if fetch.archive is not None and fetch.head.tree is not None:
        taken = workspace.allowance
        kept.keep(
            key,
            fetch.archive,
            fetch.head.tree,
            limits,
            tree_bytes=taken.taken_bytes,
            tree_names=taken.taken_names,
        )
    came = f"; {fetch.came} of them fetched, the others were here" if fetch.is_difference else ""
    log.line(Phase.SOURCE, f"{size}, commit {lease.commit[:12]}{came}")


def _warn(site: str, error: KeptTreeError) -> None:
    log.warning("kept_source_unfit", site=site, reason=str(error), instead="fetching it whole")


class _Fetch:
    """What comes, on its way into the tree of a workspace."""

    def __init__(
        self,
        workspace: Workspace,
        trees: Sequence[KeptTree],
        *,
        wants: Callable[[SourceHead], bool],
        plan: Plan,
    ) -> None:
        """`trees`: those that may be taken, as control was told of them."""
        self._workspace = workspace
        self._trees = trees
        self._wants = wants
        self._plan = plan
        self.head = SourceHead()
        self.taken: KeptTree | None = None
        """The tree that the workspace's is made of, or was to be."""
        self.archive: SourceArchive | None = None
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
        if not self._wants(head):
            return self._unpack(stream, is_stopped)
        copying = Copying(self._workspace.root / "source.tar")
        with copying.copied(stream) as tar:
            size = self._unpack(tar, is_stopped)
        self.archive = copying.archive
        return size

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
        taken, workspace = self._trees[head.base], self._workspace
        self.taken = taken
        workspace.originals.take_over(taken.originals)
        workspace.allowance.take_over(taken.taken_bytes, taken.taken_names)
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
