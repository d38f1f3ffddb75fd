"""A rollout: a release is put in place on an environment.

Verify, unpack, run the release command, start, check health, switch, drain the old one. Until the
switch the old release is not touched; when anything fails it goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import structlog

from hooks.deploys.errors import RollFailedError
from hooks.deploys.host.control import RollJournal
from hooks.deploys.host.foresight import Foreseen, Foresight
from hooks.deploys.host.programs import Placed, Programs
from hooks.deploys.host.release_folders import ReleaseFolders
from hooks.deploys.host.rollout_tools import RolloutTools, to_the_end
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState, ServedState
from hooks.deploys.host.verifying import Verifier, as_roll_failures
from hooks.deploys.web.serving import Absence, Responder, ServedRelease, Serving
from hooks.deploys.wire import ArtifactPin, Desired
from storage.counted import counted
from storage.digest import Digest
from storage.reader import VerifiedArtifact
from storage.release_statement import ReleaseStatement

STOP_GRACE_S: Final = 10.0
"""What a process of a release that is over gets between SIGTERM and SIGKILL."""
SHUTDOWN_GRACE_S: Final = 3.0
"""The same when the host ends: with the drain before it less than who stops services waits."""

_log = structlog.get_logger()


class Rollout:
    """The releases of one environment: the one that is served, and the next.

    One call at a time, but for `close` and `name`.
    """

    def __init__(
        self,
        folder: EnvironmentFolder,
        state: EnvironmentState,
        *,
        tools: RolloutTools,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called whenever a web process of its releases stands otherwise."""
        absence = Absence.STARTING if state.served else Absence.NOTHING_RELEASED
        self.serving = Serving(absence)
        self._folder = folder
        self._folders = ReleaseFolders(folder, state, tools)
        self._verifier = Verifier(tools.reader, state.env_id)
        self._programs = Programs(folder, tools, on_change)
        self._tools = tools
        self._retiring: dict[ServedRelease, asyncio.Task[None]] = {}
        self._foresight = Foresight(
            folder,
            tools.reader,
            lambda: self.state,
            self._folders.making,
            tools.unpacking,
            tools.in_thread,
            served=tools.served,
        )

    @property
    def state(self) -> EnvironmentState:
        """What is served, and which folders are kept."""
        return self._folders.state

    # -- the stories ----------------------------------------------------------------------------

    async def roll(self, desired: Desired, journal: RollJournal) -> dict[str, float]:
        """Put the desired artifact in place and switch to it; return the seconds each step took.

        May be canceled until the switch. What was begun is undone then, as after a failure.

        Raises:
            RollFailedError: The release before goes on serving.
        """
        assert desired.artifact is not None, "there is something to roll"
        assert desired.deployment_id is not None, "a roll has a deployment"
        timings = Timings()
        async with self._folders.making:
            foreseen = await self._take_foreseen()
            try:
                with as_roll_failures():
                    await self._put_in_place(
                        desired, desired.deployment_id, desired.artifact, foreseen, journal, timings
                    )
            except BaseException:
                await self._prune()
                raise
            finally:
                if foreseen is not None and foreseen.draft is not None:
                    await self._tools.in_thread(foreseen.discard)
        return timings.seconds

    def foresee(self, digest: Digest | None) -> None:
        """Make ready for a roll that is likely to come, of the artifact `digest` if that is known.

        Nothing is served of it, and nothing has to be.
        """
        self._foresight.begin(digest)

    async def _take_foreseen(self) -> Foreseen | None:
        foreseen = self._foresight.take()
        if foreseen is None or foreseen.is_fresh:
            return foreseen
        await self._tools.in_thread(foreseen.discard)
        return None

    async def _put_in_place(
        self,
        desired: Desired,
        deployment_id: str,
        artifact: ArtifactPin,
        foreseen: Foreseen | None,
        journal: RollJournal,
        timings: Timings,
    ) -> None:
        with timings.of("verify"):
            verified, statement = await self._verify_to_run(desired, artifact, foreseen)
        journal.say(_verified_line(verified), stage="verify", progress=20)
        with timings.of("unpack"):
            folder = await self._folders.unpack(
                verified, release=desired.release, foreseen=foreseen
            )
        journal.say(f"release folder {folder} is complete", stage="unpack", progress=50)
        given = await self._programs.given(deployment_id, verified, statement)
        placed = Placed(deployment_id, verified, folder, given)
        named = self.state.named_as(desired)
        if self._wants_release_command(desired, verified):
            with timings.of("release"):
                await self._programs.run_release_command(placed, named, journal)
        served = self._next_served(desired, deployment_id, artifact, folder)
        with timings.of("start"):
            index = foreseen.index_of(verified.digest) if foreseen is not None else None
            responder = await self._programs.start(
                placed, named, journal, modified_s=served.modified_s, index=index
            )
        with timings.of("switch"):
            await to_the_end(self._switch(served, responder, statement.sequence))
        self._tools.served.note(verified.manifest)
        journal.say("switched", stage="switch", progress=100)

    async def resume(self) -> None:
        """After a start of the host: verify what the environment served, and serve it again.

        An environment whose release does not hold serves nothing, and says why.
        """
        served = self.state.served
        try:
            with as_roll_failures():
                await self._folders.prepare()
                if served is None:
                    return
                verified, statement = await self._tools.in_thread(self._verifier.served, self.state)
                given = await self._programs.kept(served.deployment_id, verified, statement)
                folder = await self._folders.unpack(verified, release=served.release, is_roll=False)
                served = msgspec.structs.replace(served, folder=folder)
                placed = Placed(served.deployment_id, verified, folder, given)
                responder = await self._programs.resume(
                    placed, self.state, modified_s=served.modified_s
                )
                await to_the_end(self._switch(served, responder, self.state.release_sequence))
        except RollFailedError as error:
            _log.error("release_refused", env_id=self.state.env_id, code=error.code, why=str(error))
            self.refuse(error.code)

    def refuse(self, code: str) -> None:
        """Serve nothing, because what should be served does not hold."""
        self._retire(self.serving.take_down(Absence.REFUSED, code=code))

    def goes_by(self, desired: Desired) -> bool:
        """Say whether the environment went by the desired release statement already."""
        served = self.state.served
        return desired.release is None or (served is not None and served.release == desired.release)

    @property
    def statement_sha256(self) -> str | None:
        """The name of the release statement that the environment went by, if it did by any."""
        served = self.state.served
        if served is None or served.release is None:
            return None
        return _sha256(served.release)

    async def adopt(self, desired: Desired) -> None:
        """Go by another release statement for what is served: nothing else changes.

        Raises:
            RollFailedError: It does not hold; the one before stays.
        """
        served = self.state.served
        assert served is not None, "it is served"
        with as_roll_failures():
            verified, statement = await self._verify_to_run(desired, served.artifact)
            await self._programs.kept(served.deployment_id, verified, statement)
            adopted = msgspec.structs.replace(served, release=desired.release)
            await self._folders.prove(verified, adopted.folder, adopted.release)
            await self._folders.change(lambda state: state.serving(adopted, statement.sequence))

    async def withdraw(self, absence: Absence) -> None:
        """Serve nothing any more; the data stays, and folders too, for when it is served again.

        That is so at once: a disk that is full keeps nothing up that is to be down.
        """
        self._retire(self.serving.take_down(absence))
        if self.state.served is not None:
            sha256 = self.statement_sha256
            await self._folders.change(
                lambda state: msgspec.structs.replace(state, served=None, withdrawn_sha256=sha256)
            )

    async def name(self, desired: Desired) -> None:
        """Take over the environment's names, also while it rolls."""
        await self._folders.change(lambda state: state.named_as(desired))

    def hurry(self) -> None:
        """End the visits that have no end of their own, such as WebSockets."""
        current = [self.serving.current] if self.serving.current is not None else []
        for release in (*current, *self._retiring):
            release.responder.hurry()

    async def close(self) -> None:
        """Stop what is served and what is still draining."""
        self._folders.begin_close()
        await self._foresight.close()
        self._retire(self.serving.take_down(Absence.STARTING), is_shutdown=True)
        while tasks := {*self._retiring.values(), *self._folders.tidying}:
            await asyncio.wait(tasks)

    async def remove(self) -> bool:
        """Stop everything and delete the environment's folder; say whether it is gone."""
        await self.close()
        return await self._tools.in_thread(self._folder.remove)

    async def _verify_to_run(
        self, desired: Desired, artifact: ArtifactPin, foreseen: Foreseen | None = None
    ) -> tuple[VerifiedArtifact, ReleaseStatement]:
        """Check who vouches for the artifact, and that control says that it is to run here, and
        runs here not yet.
        """
        is_known = self.goes_by(desired) or self._was_withdrawn(desired)
        above = None if is_known else self.state.release_sequence
        manifest = foreseen.read_manifest if foreseen is not None else None
        return await self._tools.in_thread(
            self._verifier.to_run, desired, artifact, above=above, manifest=manifest
        )

    def _was_withdrawn(self, desired: Desired) -> bool:
        """Say whether it went by that statement last, and what that let run was withdrawn: there
        was nothing newer that would be undone.
        """
        return desired.release is not None and self.state.withdrawn_sha256 == _sha256(
            desired.release
        )

    def _wants_release_command(self, desired: Desired, verified: VerifiedArtifact) -> bool:
        """Say whether to run it: once per deployment, so not for one that was switched to."""
        served = self.state.served
        return (
            desired.release_command
            and verified.provenance.run.release is not None
            and (served is None or served.deployment_id != desired.deployment_id)
        )

    # -- switch and drain -----------------------------------------------------------------------

    def _next_served(
        self, desired: Desired, deployment_id: str, artifact: ArtifactPin, folder: str
    ) -> ServedState:
        before = self.state.served
        # A whole second that has not begun when the switch happens: who fetched the release before
        # can hold no time as late as this.
        modified_s = max(int(time.time()) + 2, before.modified_s + 1 if before else 0)
        return ServedState(deployment_id, artifact, folder, modified_s, desired.release)

    async def _switch(
        self, served: ServedState, responder: Responder, release_sequence: int
    ) -> None:
        """Make it so on the disk, then for the next request."""
        release = ServedRelease(served.deployment_id, served.artifact, responder)
        try:
            await self._folders.change(lambda state: state.serving(served, release_sequence))
        except BaseException:
            await responder.close(grace_s=0)
            raise
        self._retire(self.serving.switch(release))

    def _retire(self, release: ServedRelease | None, *, is_shutdown: bool = False) -> None:
        """Let a release that gets no more requests finish those it has, then stop it."""
        if release is None:
            return
        draining = (
            self._drain(release, 0, SHUTDOWN_GRACE_S)
            if is_shutdown
            else self._drain(release, self._tools.drain_s, STOP_GRACE_S)
        )
        task = asyncio.get_running_loop().create_task(draining)
        self._retiring[release] = task
        task.add_done_callback(lambda _: self._retiring.pop(release))

    async def _drain(self, release: ServedRelease, drain_s: float, grace_s: float) -> None:
        if not await release.drain(timeout_s=drain_s):
            _log.info("drain_cut_short", deployment_id=release.deployment_id, seconds=drain_s)
        await release.responder.close(grace_s=grace_s)
        async with self._folders.making:
            await self._prune()

    async def _prune(self) -> None:
        """Let go of what is not kept: folders, and what was given to programs that are over."""
        await self._folders.prune()
        served = self.state.served
        await self._programs.keep_only(served.deployment_id if served is not None else None)


class Timings:
    """How long the steps of a roll took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def of(self, step: str) -> Iterator[None]:
        started_at = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(time.perf_counter() - started_at, 5)


def _sha256(statement: str) -> str:
    return hashlib.sha256(statement.encode()).hexdigest()


def _verified_line(verified: VerifiedArtifact) -> str:
    files = verified.manifest.files
    return f"verified {counted(files, 'file')}, key {verified.key_id[:16]}…"
