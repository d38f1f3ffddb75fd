"""Reconciling: what an environment serves follows what control desires of it, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import structlog

from hooks.deploys.errors import HOST_FAILED, RollFailedError
from hooks.deploys.host.control import ControlLine, Outbox, RollJournal
from hooks.deploys.host.rollout import Rollout
from hooks.deploys.host.rollout_tools import RolloutTools
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState, HostFolder
from hooks.deploys.host.unclaimed import Unclaimed
from hooks.deploys.web.router import Router
from hooks.deploys.web.serving import Absence, Serving
from hooks.deploys.wire import (
    Changed,
    Coming,
    Desired,
    DesiredMessage,
    LogWanted,
    Ping,
    Removed,
    Report,
    RollFailure,
    Running,
    Snapshot,
)
from storage.digest import Digest
from storage.errors import DigestInvalidError, StorageError

_log = structlog.get_logger()


class EnvironmentKeeper:
    """Keeps one environment as desired. The newest desire wins: a roll for an older one is
    abandoned, unless it has switched already.
    """

    def __init__(
        self,
        folder: EnvironmentFolder,
        state: EnvironmentState,
        hostnames: Sequence[str],
        *,
        tools: RolloutTools,
        router: Router[Serving],
        line: ControlLine,
        predecessor: EnvironmentKeeper | None = None,
    ) -> None:
        """`hostnames`: by which it is served until control says."""
        self._rollout = Rollout(folder, state, tools=tools, on_change=self._tell_running)
        self._env_id = state.env_id
        self._router = router
        self._outbox = Outbox(line)
        self._desired: Desired | None = None
        self._failed: Report | None = None
        self._failed_release: str | None = None
        self._told: tuple[str, Running] | None = None
        self._is_removed = False
        self._is_forgotten = False
        self._is_resumed = False
        self._is_new = asyncio.Event()
        self._predecessor = predecessor
        router.put(state.env_id, hostnames, self._rollout.serving)
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def want(self, desired: Desired) -> None:
        """Take over what control wants, even where the next word comes before that is reached."""
        if desired.artifact is None:
            self._failed = self._failed_release = None  # what is wanted again is tried again
        self._desired = desired
        self._router.put(self._env_id, desired.hostnames, self._rollout.serving)
        self._is_new.set()

    def foresee(self, digest: Digest | None) -> None:
        """Make ready for a roll that is likely to come, of the artifact `digest` if that is known.

        Not before it is clear what is served.
        """
        if self._is_resumed and not self._is_removed:
            self._rollout.foresee(digest)

    def remove(self, *, is_forgotten: bool = False) -> None:
        """Stop serving at once; the folder goes as soon as it can.

        `is_forgotten`: control did not ask for it, so that the log says it once it is done.
        """
        self._is_removed, self._is_forgotten = True, is_forgotten
        self._router.remove(self._env_id)
        self._is_new.set()

    def hurry(self) -> None:
        self._rollout.hurry()

    @property
    def is_running(self) -> bool:
        return not self._task.done()

    async def removed(self) -> None:
        """Wait until the environment is gone, after `remove`."""
        await asyncio.wait({self._task})

    async def close(self) -> None:
        """Stop; what was served is served again after the next start."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._rollout.close()
        await self._outbox.close()

    async def _keep(self) -> None:
        if self._predecessor is not None:
            await self._predecessor.removed()
            self._predecessor = None
        try:
            await self._rollout.resume()
        except Exception:  # noqa: BLE001 - the ring around an environment: others go on
            _log.exception("environment_failed", env_id=self._env_id)
            self._rollout.refuse(HOST_FAILED)
        self._is_resumed = True
        while True:
            await self._is_new.wait()
            self._is_new.clear()
            if self._is_removed:
                is_gone = await self._rollout.remove()
                await self._outbox.close()
                if is_gone and self._is_forgotten:
                    _say_forgotten(self._env_id)
                return
            assert self._desired is not None, "something new is wanted"
            await self._reach_unless_obsolete(self._desired)

    async def _reach_unless_obsolete(self, desired: Desired) -> None:
        loop = asyncio.get_running_loop()
        reaching = loop.create_task(self._reach(desired))
        try:
            while not reaching.done():
                news = loop.create_task(self._is_new.wait())
                await asyncio.wait({reaching, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if self._is_obsolete(desired):
                    reaching.cancel()
                    break
                if self._is_new.is_set() and not reaching.done():
                    self._is_new.clear()  # only names differ: the rest is looked at afterwards
                    await self._note_names()
        finally:
            reaching.cancel()
            await asyncio.wait({reaching})
        if not reaching.cancelled():
            reaching.result()
        if self._desired is not desired or self._is_removed:
            self._is_new.set()

    async def _note_names(self) -> None:
        """Write the names down while a roll goes on, which can take its time: a name that is
        another environment's by now must not be this one's again after a crash.
        """
        if self._desired is not None:
            with contextlib.suppress(StorageError):  # after the roll it is tried again, and told
                await self._rollout.name(self._desired)

    def _is_obsolete(self, desired: Desired) -> bool:
        newest = self._desired
        return self._is_removed or (
            newest is not None
            and (newest.deployment_id, newest.artifact) != (desired.deployment_id, desired.artifact)
        )

    async def _reach(self, desired: Desired) -> None:
        """Make the environment what is desired, and tell control how that went."""
        try:
            await self._rollout.name(desired)
            if desired.artifact is None or desired.deployment_id is None:
                is_suspended = desired.is_suspended
                absence = Absence.SUSPENDED if is_suspended else Absence.NOTHING_RELEASED
                await self._rollout.withdraw(absence)
                return
            current = self._rollout.serving.current
            if (
                current is not None
                and current.deployment_id == desired.deployment_id
                and current.artifact == desired.artifact
            ):
                await self._adopt(desired, desired.deployment_id)
                return
            if self._has_failed_for_good(desired):
                return
            await self._roll(desired, desired.deployment_id)
        except Exception as error:  # noqa: BLE001 - as above
            _log.exception("environment_failed", env_id=self._env_id)
            if desired.deployment_id is not None:
                self._fail(desired, desired.deployment_id, HOST_FAILED, repr(error))

    async def _adopt(self, desired: Desired, deployment_id: str) -> None:
        """Go by the desired release statement for what is served already."""
        if not self._rollout.goes_by(desired):
            try:
                await self._rollout.adopt(desired)
            except RollFailedError as error:
                _log.warning("release_refused", env_id=self._env_id, code=error.code)
                self._fail(desired, deployment_id, error.code, str(error))
                return
        self._outbox.put(self._report(deployment_id))

    def _has_failed_for_good(self, desired: Desired) -> bool:
        """Say whether a roll failed already, and tell control again if so.

        What was wrong with the artifact may have been mended. That is looked at again where
        nothing is served that could go on. Another release statement makes it another roll.
        """
        failed = self._failed
        if failed is None or failed.error is None or failed.deployment_id != desired.deployment_id:
            return False
        if self._failed_release != desired.release:
            return False
        if self._rollout.serving.current is None and failed.error.code.startswith("artifact."):
            return False
        self._outbox.put(failed)
        return True

    def _fail(self, desired: Desired, deployment_id: str, code: str, message: str) -> None:
        self._failed = self._report(deployment_id, error=RollFailure(code, message))
        self._failed_release = desired.release
        self._outbox.put(self._failed)

    def _report(
        self,
        deployment_id: str,
        *,
        error: RollFailure | None = None,
        timings: dict[str, float] | None = None,
    ) -> Report:
        current = self._rollout.serving.current
        running = None
        if current is not None and current.deployment_id == deployment_id:
            running = current.responder.running
        self._told = (deployment_id, running) if running is not None else None
        return Report(
            self._env_id,
            deployment_id,
            "failed" if error is not None else "serving",
            error,
            timings or {},
            sequence=self._rollout.state.release_sequence,
            statement=self._rollout.statement_sha256,
            serves=current.deployment_id if current is not None else None,
            running=running,
        )

    def _tell_running(self) -> None:
        """Tell control how the program of what is served stands, where it does not know yet."""
        current = self._rollout.serving.current
        if current is None or self._is_removed or not self._is_resumed:
            return
        running = current.responder.running
        if running is not None and self._told != (current.deployment_id, running):
            self._outbox.put(self._report(current.deployment_id))

    async def _roll(self, desired: Desired, deployment_id: str) -> None:
        journal = RollJournal(self._outbox, deployment_id)
        log = _log.bind(env_id=self._env_id, deployment_id=deployment_id)
        try:
            timings = await self._rollout.roll(desired, journal)
        except RollFailedError as error:
            log.warning("roll_failed", code=error.code, reason=str(error))
            self._fail(desired, deployment_id, error.code, str(error))
        except asyncio.CancelledError:
            log.info("roll_abandoned")
            raise
        else:
            log.info("rolled", **timings)
            self._failed = None
            self._outbox.put(self._report(deployment_id, timings=timings))


class Reconciler:
    """All environments of the host, by id."""

    def __init__(
        self,
        folder: HostFolder,
        *,
        tools: RolloutTools,
        router: Router[Serving],
        line: ControlLine,
    ) -> None:
        self._folder = folder
        self._tools = tools
        self._router = router
        self._line = line
        self._keepers: dict[str, EnvironmentKeeper] = {}
        self._leaving: dict[str, EnvironmentKeeper] = {}
        self._unclaimed = Unclaimed(
            folder, tools=tools, line=line, forget=self._forget, is_leaving=self._is_leaving
        )

    def resume(self) -> None:
        """Begin to serve what was served before this start, without asking control.

        But not by a name that two environments had: it moved when the host was killed, and whose
        it is control has to say.
        """
        known = list(self._folder.known())
        claims = Counter(name for _, state in known for name in set(state.hostnames))
        for folder, state in known:
            names = tuple(name for name in state.hostnames if claims[name] == 1)
            if names != state.hostnames:
                _log.warning("names_in_doubt", env_id=state.env_id, names=state.hostnames)
            self._keepers[state.env_id] = self._keeper(folder, state, names)

    def take(self, message: DesiredMessage) -> None:
        """Take in what control desires to be served."""
        match message:
            case Snapshot(environments=environments):
                for desired in environments:
                    self._want(desired)
                self._unclaimed.hear_all([desired.env_id for desired in environments])
            case Changed(environment=desired):
                self._want(desired)
                self._unclaimed.hear(desired.env_id)
            case Removed(env_id=env_id):
                self._unclaimed.hear_removed(env_id)
                self._remove(env_id)
            case Coming(env_id=env_id, digest=digest):
                self._foresee(env_id, digest)
            case Ping():
                self._unclaimed.look_again()
            case LogWanted():
                pass

    def hurry(self) -> None:
        """End the visits that have no end of their own: the host is about to stop."""
        for keeper in self._keepers.values():
            keeper.hurry()

    async def close(self) -> None:
        """Stop all that is served; removals are finished first."""
        await self._unclaimed.close()
        await asyncio.gather(
            *(keeper.removed() for keeper in self._leaving.values()),
            *(keeper.close() for keeper in self._keepers.values()),
        )

    def _is_leaving(self, env_id: str) -> bool:
        leaving = self._leaving.get(env_id)
        return leaving is not None and leaving.is_running

    def _forget(self, env_id: str) -> None:
        """Remove what is not there any more: also what a crash left half removed."""
        if env_id in self._keepers:
            self._remove(env_id, is_forgotten=True)
        else:
            self._tools.threads.submit(_forget_stranger, self._folder.stranger(env_id))

    def _want(self, desired: Desired) -> None:
        keeper = self._keepers.get(desired.env_id)
        if keeper is None:
            try:
                folder = self._folder.environment(desired.env_id)
            except ValueError as error:
                _log.error("environment_refused", reason=str(error))
                return
            state = EnvironmentState(
                env_id=desired.env_id,
                site=desired.site,
                slug=desired.slug,
                kind=desired.kind,
                hostnames=desired.hostnames,
                url=desired.url,
            )
            keeper = self._keeper(folder, state, state.hostnames)
            self._keepers[desired.env_id] = keeper
        keeper.want(desired)

    def _foresee(self, env_id: str, digest: str | None) -> None:
        keeper = self._keepers.get(env_id)
        if keeper is not None:
            with contextlib.suppress(DigestInvalidError):
                keeper.foresee(Digest.parse(digest) if digest is not None else None)

    def _remove(self, env_id: str, *, is_forgotten: bool = False) -> None:
        keeper = self._keepers.pop(env_id, None)
        if keeper is not None:
            keeper.remove(is_forgotten=is_forgotten)
            self._leaving = {key: gone for key, gone in self._leaving.items() if gone.is_running}
            self._leaving[env_id] = keeper

    def _keeper(
        self, folder: EnvironmentFolder, state: EnvironmentState, hostnames: tuple[str, ...]
    ) -> EnvironmentKeeper:
        return EnvironmentKeeper(
            folder,
            state,
            hostnames,
            tools=self._tools,
            router=self._router,
            line=self._line,
            predecessor=self._leaving.pop(state.env_id, None),
        )


def _forget_stranger(folder: EnvironmentFolder) -> None:
    """Blocking."""
    if folder.remove():
        _say_forgotten(folder.path.name)


def _say_forgotten(env_id: str) -> None:
    _log.info("environment_forgotten", env_id=env_id)
