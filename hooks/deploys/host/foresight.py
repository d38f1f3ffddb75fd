"""Foresight, a prefetch: what control says is coming is unpacked before it is wanted.

While control still packs, signs and writes down, the host has nothing to do. So it unpacks what it
serves into a draft beside, verified byte by byte, and amends that once it hears which tree is
coming; or it reads the folder that it kept of that tree, and the store's copy. The roll then has to
check who vouches for it, and to switch.

Nothing depends on it: what was not foreseen, or too long ago, is verified and unpacked in the roll.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState
from hooks.deploys.web.static_index import StaticIndex
from storage.digest import Digest
from storage.drafts import Draft
from storage.errors import StorageError
from storage.manifest import Manifest
from storage.reader import StoreReader
from storage.stored_blobs import verify_blobs
from storage.unpacked import verify_tree

FRESH_S: Final = 1.0
"""What was read longer ago is read again in the roll."""
FILES_COUNT_MAX: Final = 5_000
SIZE_BYTES_MAX: Final = 64 << 20
"""Larger trees are read once, when they are wanted for sure."""
SERVED_COUNT_MAX: Final = 16
"""So many manifests of what is served are remembered, of all environments."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Foreseen:
    """A tree that was verified from `since` on: in a draft, or in a folder that was kept.

    `since` is a monotonic time. `index` is there when the tree is the one that is coming; its
    manifest was read in the store then.
    """

    manifest: Manifest
    since: float
    index: StaticIndex | None = None
    draft: Draft | None = None
    kept: str | None = None

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.since < FRESH_S

    def is_of(self, digest: Digest) -> bool:
        return self.manifest.digest == digest

    @property
    def read_manifest(self) -> Manifest | None:
        return self.manifest if self.index is not None else None

    def index_of(self, digest: Digest) -> StaticIndex | None:
        return self.index if self.is_of(digest) else None

    def discard(self) -> None:
        """Remove the draft, unless it was placed. Blocks."""
        if self.draft is not None:
            self.draft.discard()
            self.draft = None

    def place(self, manifest: Manifest, dest: Path) -> bool:
        """Let the draft be the new folder `dest`, and hold this tree; say whether it does. Blocks.

        What is wrong with the tree is for an ordinary unpacking to find and to tell.
        """
        if self.draft is None:
            return False
        try:
            if not self.is_of(manifest.digest):
                self.draft.amend(manifest)
            self.draft.place(dest)
        except StorageError as error:
            _log.info("draft_not_used", reason=str(error))
            self.discard()
            return False
        self.draft = None
        return True


class Served:
    """The manifests of what was switched to last, of all environments: drafts begin with those."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()

    def note(self, manifest: Manifest) -> None:
        if manifest.files > FILES_COUNT_MAX:
            return
        with self._lock:
            self._manifests[manifest.digest] = manifest
            self._manifests.move_to_end(manifest.digest)
            if len(self._manifests) > SERVED_COUNT_MAX:
                self._manifests.popitem(last=False)

    def find(self, digest: Digest) -> Manifest | None:
        with self._lock:
            return self._manifests.get(digest)


class Foresight:
    """What one environment foresees, in `folder`. One roll at a time takes it.

    `state` tells the environment's state as it is now. `folders` is the lock under which release
    folders come and go, `unpacking` bounds how many environments unpack at once, `in_thread` runs
    blocking work to its end. `served` is shared by all environments.
    """

    def __init__(
        self,
        folder: EnvironmentFolder,
        reader: StoreReader,
        state: Callable[[], EnvironmentState],
        folders: asyncio.Lock,
        unpacking: asyncio.Semaphore,
        in_thread: Callable[[Callable[[], None]], Awaitable[None]],
        *,
        served: Served,
    ) -> None:
        self._folder = folder
        self._reader = reader
        self._state = state
        self._folders = folders
        self._unpacking = unpacking
        self._in_thread = in_thread
        self._foreseen: Foreseen | None = None
        self._served = served
        self._coming: deque[tuple[Digest | None, float]] = deque(maxlen=1)
        self._is_new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, digest: Digest | None) -> None:
        """Begin to unpack what is coming; None when that is not known yet."""
        self._coming.append((digest, time.monotonic()))
        self._is_new.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def take(self) -> Foreseen | None:
        """Return what was foreseen, and leave it to the caller, who holds the lock."""
        foreseen, self._foreseen = self._foreseen, None
        return foreseen

    async def close(self) -> None:
        """Stop. A draft that is left is removed at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._coming or self._foreseen is not None:
            async with self._folders, self._unpacking:
                self._is_new.clear()
                await self._in_thread(self._look)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRESH_S):
                    await self._is_new.wait()

    def _look(self) -> None:
        """Unpack what is coming, and drop what nobody took in time. Whatever fails, rolls do not
        depend on it.
        """
        before, self._foreseen = self._foreseen, None
        digest, told_at = self._coming.popleft() if self._coming else (None, -FRESH_S)
        try:
            if before is not None and not before.is_fresh:
                before.discard()
                before = None
            if time.monotonic() - told_at >= FRESH_S:  # it waited for a roll, or nothing is new
                self._foreseen = before
            else:
                self._foreseen = self._unpacked(before, digest)
        except StorageError as error:  # a roll would say what is wrong
            _log.debug("not_foreseen", reason=str(error))
            _drop(before)
        except Exception:  # noqa: BLE001 - the ring of what nothing depends on
            _log.exception("foresight_failed")
            _drop(before)

    def _unpacked(self, before: Foreseen | None, digest: Digest | None) -> Foreseen | None:
        state, since = self._state(), time.monotonic()
        serves = Digest.parse(state.served.artifact.digest) if state.served is not None else None
        wanted = digest or serves
        if wanted is None or digest == serves or (before is not None and before.is_of(wanted)):
            return before
        # What is remembered will do for a draft to begin with; what is coming is read in the store.
        remembered = self._served.find(wanted) if digest is None else None
        manifest = remembered or self._reader.manifest(wanted)
        if manifest.files > FILES_COUNT_MAX or manifest.size_bytes > SIZE_BYTES_MAX:
            return before
        index = StaticIndex(manifest) if digest is not None else None
        kept = state.folder_of(wanted) if digest is not None else None
        if kept is not None:
            if before is not None:
                before.discard()
            verify_tree(self._folder.releases / kept, manifest)
            verify_blobs(self._reader.layout, manifest.entries)
            return Foreseen(manifest, since, index, kept=kept)
        if before is not None and before.draft is not None:
            before.draft.amend(manifest)
            return Foreseen(manifest, before.since, index, draft=before.draft)
        served = state.served
        beside = self._folder.releases / served.folder if served is not None else None
        draft = Draft.unpack(
            self._reader.layout, manifest, self._folder.draft_path(), beside=beside
        )
        return Foreseen(manifest, since, index, draft=draft)


def _drop(foreseen: Foreseen | None) -> None:
    """Remove a draft after a failure. What is left of it is removed at the next start."""
    if foreseen is not None:
        with contextlib.suppress(OSError):
            foreseen.discard()
