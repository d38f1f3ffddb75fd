"""The release folders of one environment: unpacked, proven, kept for a while, put aside."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from hooks.deploys.host.foresight import Foreseen
from hooks.deploys.host.rollout_tools import RolloutTools, to_the_end
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState, remove_folders
from storage.errors import ArtifactCorruptError, ArtifactMissingError
from storage.proof_archive import write_proof
from storage.reader import VerifiedArtifact
from storage.unpacked import verify_tree

TIDY_AFTER_S: Final = 0.5
_log = structlog.get_logger()


class ReleaseFolders:
    """They, and the state that names them.

    `making`: held by whoever makes folders, or removes them; one at a time does.
    """

    def __init__(
        self, folder: EnvironmentFolder, state: EnvironmentState, tools: RolloutTools
    ) -> None:
        self.state = state
        self.making = asyncio.Lock()
        self._folder = folder
        self._tools = tools
        self._changing = asyncio.Lock()
        self._noting = threading.Lock()  # threads that make folders note them in the state
        self._tidying: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def prepare(self) -> None:
        """Make what is missing, and remove what a crash left."""
        await self._tools.in_thread(self._folder.prepare, self.state)

    async def change(self, change: Callable[[EnvironmentState], EnvironmentState]) -> None:
        """Change the environment's state, on the disk first; one change after the other.

        `change` is asked again for what was noted meanwhile: of folders, and of nothing else.
        """
        await to_the_end(self._change(change))

    async def _change(self, change: Callable[[EnvironmentState], EnvironmentState]) -> None:
        async with self._changing:
            before = self.state
            after = change(before)
            if after != before:
                await self._tools.in_thread(self._folder.replace, before, after)
                self._note(change)

    def _note(self, change: Callable[[EnvironmentState], EnvironmentState]) -> EnvironmentState:
        with self._noting:
            self.state = change(self.state)
            return self.state

    async def unpack(
        self,
        verified: VerifiedArtifact,
        *,
        release: str | None,
        is_roll: bool = True,
        foreseen: Foreseen | None = None,
    ) -> str:
        """Return the name of a folder that holds exactly the artifact, byte by byte.

        Beside it lies a proof, with the release statement: anybody can check it without this host.
        A roll reads the store's files too where it has them unpacked already: what was tampered
        with there is not deployed. What served before a start of the host serves on without that.
        """

        def unpack() -> str:
            # Asked here again: it may have waited for other environments meanwhile.
            fresh = foreseen
            if fresh is not None and not fresh.is_fresh:
                fresh.discard()
                fresh = None
            folder = self._unpack_blocking(verified, fresh, is_roll=is_roll)
            self._prove_blocking(verified, folder, release)
            return folder

        async with self._tools.unpacking:
            return await self._tools.in_thread(unpack)

    async def prove(self, verified: VerifiedArtifact, folder: str, release: str | None) -> None:
        """Put the proof of a folder beside it again, by another release statement."""
        async with self.making:
            await self._tools.in_thread(self._prove_blocking, verified, folder, release)

    async def prune(self) -> None:
        """Put aside the folders that are not kept; nobody waits for their removal."""
        aside = await self._tools.in_thread(self._folder.put_aside, self.state)
        if aside:
            task = asyncio.get_running_loop().create_task(self._remove_aside(aside))
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    def begin_close(self) -> None:
        """Remove at once what is put aside: nobody is served meanwhile."""
        self._closing.set()

    @property
    def tidying(self) -> set[asyncio.Task[None]]:
        """The removals under way."""
        return self._tidying

    def _unpack_blocking(
        self, verified: VerifiedArtifact, foreseen: Foreseen | None, *, is_roll: bool
    ) -> str:
        kept = self.state.folder_of(verified.digest)
        if kept is not None:
            if foreseen is not None and foreseen.kept == kept and foreseen.is_of(verified.digest):
                return kept
            if self._is_whole(kept, verified, is_roll=is_roll):
                return kept
            self._note(lambda state: state.without_folder(kept))
        sequence = self._note(EnvironmentState.with_a_folder_more).sequence
        folder = f"{sequence:06d}-{verified.digest.hex()[:8]}"
        releases = self._folder.releases
        if foreseen is not None and foreseen.place(verified.manifest, releases / folder):
            return folder
        served = self.state.served
        beside = releases / served.folder if served is not None else None
        self._tools.reader.materialise(verified, releases / folder, beside=beside)
        return folder

    def _is_whole(self, kept: str, verified: VerifiedArtifact, *, is_roll: bool) -> bool:
        """Hold a folder that was kept against the artifact; for a roll, the store's files too."""
        reader = self._tools.reader
        with contextlib.ExitStack() as stack:
            blobs = stack.enter_context(reader.reading_blobs(verified)) if is_roll else None
            try:
                verify_tree(self._folder.releases / kept, verified.manifest)
            except (ArtifactCorruptError, ArtifactMissingError) as error:
                _log.warning("release_folder_damaged", folder=kept, reason=str(error))
                return False
            if blobs is not None:
                blobs.verify()
            return True

    def _prove_blocking(self, verified: VerifiedArtifact, folder: str, release: str | None) -> None:
        releases = [release.encode()] if release is not None else []
        parts = self._tools.reader.proof(verified.manifest, [verified.envelope_sha256], releases)
        self._folder.write_proof(folder, b"".join(write_proof(parts, files=None)))

    async def _remove_aside(self, aside: list[Path]) -> None:
        """Remove folders a while later: now the roll is being reported, on the same disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIDY_AFTER_S):
                await self._closing.wait()
        await self._tools.in_thread(remove_folders, aside)
