"""A rollout: a release is put in place on an environment.

Verify, unpack, run the release command, start, check health, switch, drain the old one. Until the
switch the old release is not touched; when anything fails it goes on serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
import structlog

from hooks.builds.limits import Limits
from hooks.clock import now_ms
from hooks.deploys import configs
from hooks.deploys.configs import ConfigFiles, RunValues
from hooks.deploys.control import RollJournal
from hooks.deploys.errors import HOST_FAILED, RollFailedError
from hooks.deploys.foresight import Foreseen, Foresight, Served
from hooks.deploys.forwarding import TrustedProxies
from hooks.deploys.health import TIMEOUT_S as HEALTH_TIMEOUT_S
from hooks.deploys.health import HealthCheck
from hooks.deploys.runtime import WEB_LIMITS, Program, WebProcess, WebSite, run_release_command
from hooks.deploys.serving import Absence, Responder, ServedRelease, Serving
from hooks.deploys.state import (
    EnvironmentFolder,
    EnvironmentState,
    ServedState,
    remove_folders,
)
from hooks.deploys.static import StaticSite
from hooks.deploys.static_index import StaticIndex
from hooks.deploys.wire import ArtifactPin, Config, Desired
from storage.digest import Digest
from storage.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    DigestInvalidError,
    ReleaseElsewhereError,
    ReleaseExpiredError,
    ReleaseInvalidError,
    ReleaseKeyRetiredError,
    ReleaseReplayedError,
    SignatureInvalidError,
    StorageError,
)
from storage.manifest import Manifest
from storage.proof_archive import write_proof
from storage.reader import StoreReader, VerifiedArtifact
from storage.release_statement import ReleaseStatement
from storage.sealing import Vault
from storage.unpacked import verify_tree

DRAIN_S: Final = 10.0
STOP_GRACE_S: Final = 10.0
"""What a process of a release that is over gets between SIGTERM and SIGKILL."""
SHUTDOWN_GRACE_S: Final = 3.0
"""The same when the host ends: with the drain before it less than who stops services waits."""
RELEASE_COMMAND_TIMEOUT_S: Final = 600.0
TIDY_AFTER_S: Final = 0.5
UNPACK_COUNT_MAX: Final = 4
"""So many environments unpack at once; the others wait their turn."""
START_COUNT_MAX: Final = 8
"""So many web processes start at once after a start of the host."""
THREADS: Final = 2 * UNPACK_COUNT_MAX

_RELEASE_CODES: Final[Mapping[type[ReleaseInvalidError], str]] = {
    ReleaseInvalidError: "release.statement_invalid",
    ReleaseKeyRetiredError: "release.key_retired",
    ReleaseElsewhereError: "release.wrong_environment",
    ReleaseReplayedError: "release.replayed",
    ReleaseExpiredError: "release.expired",
}
P = ParamSpec("P")
T = TypeVar("T")
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RolloutTools:
    """What every environment's rollout works with.

    `vault` seals what is kept of configs; `config_of` asks control for a deployment's.
    """

    reader: StoreReader
    vault: Vault
    config_of: Callable[[str], Awaitable[Config | None]]
    threads: ThreadPoolExecutor
    unpacking: asyncio.Semaphore
    starting: asyncio.Semaphore
    trusted: TrustedProxies
    health_timeout_s: float = HEALTH_TIMEOUT_S
    release_command_timeout_s: float = RELEASE_COMMAND_TIMEOUT_S
    drain_s: float = DRAIN_S
    web_limits: Limits = WEB_LIMITS
    served: Served = field(default_factory=Served)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work to its end: a cancellation waits for it, and then counts."""
        call = functools.partial(function, *args, **kwargs)
        return await _to_the_end(asyncio.get_running_loop().run_in_executor(self.threads, call))


class Rollout:
    """The releases of one environment: the one that is served, and the next.

    One call at a time, but for `close`.
    """

    def __init__(
        self, folder: EnvironmentFolder, state: EnvironmentState, *, tools: RolloutTools
    ) -> None:
        self.state = state
        absence = Absence.STARTING if state.served else Absence.NOTHING_RELEASED
        self.serving = Serving(absence)
        self._folder = folder
        self._configs = ConfigFiles(folder.path, tools.vault)
        self._tools = tools
        self._retiring: dict[ServedRelease, asyncio.Task[None]] = {}
        self._tidying: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._folders = asyncio.Lock()  # one at a time makes or removes release folders
        self._foresight = Foresight(
            folder,
            tools.reader,
            lambda: self.state,
            self._folders,
            tools.unpacking,
            tools.in_thread,
            served=tools.served,
        )

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
        async with self._folders:
            foreseen = await self._take_foreseen()
            try:
                with _as_roll_failures():
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
            folder = await self._unpack(verified, release=desired.release, foreseen=foreseen)
        journal.say(f"release folder {folder} is complete", stage="unpack", progress=50)
        given = await self._given(deployment_id, verified, statement)
        if self._wants_release_command(desired, verified):
            with timings.of("release"):
                await self._run_release_command(desired, verified, folder, given, journal)
        served = self._next_served(desired, deployment_id, artifact, folder)
        with timings.of("start"):
            index = foreseen.index_of(verified.digest) if foreseen is not None else None
            responder = await self._start(desired, verified, served, given, journal, index)
        with timings.of("switch"):
            await _to_the_end(self._switch(served, responder, statement.sequence))
        self._tools.served.note(verified.manifest)
        journal.say("switched", stage="switch", progress=100)

    async def resume(self) -> None:
        """After a start of the host: verify what the environment served, and serve it again.

        An environment whose release does not hold serves nothing, and says why.
        """
        served = self.state.served
        try:
            with _as_roll_failures():
                await self._tools.in_thread(self._folder.prepare, self.state)
                if served is None:
                    return
                verified = await self._verify(self.state.site, served.artifact)
                statement = await self._verify_served(served, verified)
                given = await self._kept(served.deployment_id, verified, statement)
                folder = await self._unpack(verified, release=served.release, is_roll=False)
                served = msgspec.structs.replace(served, folder=folder)
                responder = await self._resumed(verified, served, given)
                await _to_the_end(self._switch(served, responder, self.state.release_sequence))
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
        return hashlib.sha256(served.release.encode()).hexdigest()

    async def adopt(self, desired: Desired) -> None:
        """Go by another release statement for what is served: nothing else changes.

        Raises:
            RollFailedError: It does not hold; the one before stays.
        """
        served = self.state.served
        assert served is not None, "it is served"
        with _as_roll_failures():
            verified, statement = await self._verify_to_run(desired, served.artifact)
            await self._kept(served.deployment_id, verified, statement)
            adopted = msgspec.structs.replace(served, release=desired.release)
            async with self._folders:
                await self._tools.in_thread(
                    self._prove_blocking, verified, adopted.folder, adopted.release
                )
            await self._write(self.state.serving(adopted, statement.sequence))

    async def withdraw(self) -> None:
        """Serve nothing any more; the data stays."""
        if self.state.served is not None:
            await self._write(msgspec.structs.replace(self.state, served=None))
        self._retire(self.serving.take_down(Absence.NOTHING_RELEASED))

    async def name(self, desired: Desired) -> None:
        """Take over the environment's names."""
        state = self.state.named_as(desired)
        if state != self.state:
            await self._write(state)

    def hurry(self) -> None:
        """End the visits that have no end of their own, such as WebSockets."""
        current = [self.serving.current] if self.serving.current is not None else []
        for release in (*current, *self._retiring):
            release.responder.hurry()

    async def close(self) -> None:
        """Stop what is served and what is still draining."""
        self._closing.set()
        await self._foresight.close()
        self._retire(self.serving.take_down(Absence.STARTING), is_shutdown=True)
        while tasks := {*self._retiring.values(), *self._tidying}:
            await asyncio.wait(tasks)

    async def remove(self) -> None:
        """Stop everything and delete the environment's folder."""
        await self.close()
        await self._tools.in_thread(self._folder.remove)

    # -- verify and unpack ----------------------------------------------------------------------

    async def _verify(self, site: str, artifact: ArtifactPin) -> VerifiedArtifact:
        return await self._tools.in_thread(self._verify_blocking, site, artifact)

    def _verify_blocking(
        self, site: str, artifact: ArtifactPin, manifest: Manifest | None = None
    ) -> VerifiedArtifact:
        digest = Digest.parse(artifact.digest)
        return self._tools.reader.verify(digest, artifact.envelope, site=site, manifest=manifest)

    async def _verify_to_run(
        self, desired: Desired, artifact: ArtifactPin, foreseen: Foreseen | None = None
    ) -> tuple[VerifiedArtifact, ReleaseStatement]:
        """Check who vouches for the artifact, and that control says that it is to run here, and
        runs here not yet.
        """
        above = None if self.goes_by(desired) else self.state.release_sequence
        manifest = foreseen.read_manifest if foreseen is not None else None

        def verify() -> tuple[VerifiedArtifact, ReleaseStatement]:
            verified = self._verify_blocking(desired.site, artifact, manifest)
            if desired.release is None:
                raise RollFailedError(
                    "release.statement_missing", "control sent no statement with the release"
                )
            return verified, self._check_release_blocking(desired.release, verified, above)

        return await self._tools.in_thread(verify)

    async def _verify_served(
        self, served: ServedState, verified: VerifiedArtifact
    ) -> ReleaseStatement | None:
        """Check the statement that the environment went by before this start.

        One that was served before statements were signed has none; once there was one there must be
        one.
        """
        if served.release is not None:
            return await self._tools.in_thread(
                self._check_release_blocking, served.release, verified, None
            )
        if self.state.release_sequence:
            raise RollFailedError(
                "release.statement_missing", "the statement of what was served is gone"
            )
        return None

    def _check_release_blocking(
        self, envelope: str, verified: VerifiedArtifact, above: int | None
    ) -> ReleaseStatement:
        return self._tools.reader.verify_release(
            envelope.encode(), verified, env_id=self.state.env_id, above=above, now_ms=now_ms()
        )

    async def _unpack(
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

    def _unpack_blocking(
        self, verified: VerifiedArtifact, foreseen: Foreseen | None, *, is_roll: bool
    ) -> str:
        kept = self.state.folder_of(verified.digest)
        if kept is not None:
            if foreseen is not None and foreseen.kept == kept and foreseen.is_of(verified.digest):
                return kept
            try:
                verify_tree(self._folder.releases / kept, verified.manifest)
            except (ArtifactCorruptError, ArtifactMissingError) as error:
                _log.warning("release_folder_damaged", folder=kept, reason=str(error))
                self.state = self.state.without_folder(kept)
            else:
                if is_roll:
                    self._tools.reader.verify_blobs(verified)
                return kept
        sequence = self.state.sequence + 1
        self.state = msgspec.structs.replace(self.state, sequence=sequence)
        folder = f"{sequence:06d}-{verified.digest.hex()[:8]}"
        releases = self._folder.releases
        if foreseen is not None and foreseen.place(verified.manifest, releases / folder):
            return folder
        served = self.state.served
        beside = releases / served.folder if served is not None else None
        self._tools.reader.materialise(verified, releases / folder, beside=beside)
        return folder

    def _prove_blocking(self, verified: VerifiedArtifact, folder: str, release: str | None) -> None:
        releases = [release.encode()] if release is not None else []
        parts = self._tools.reader.proof(verified.manifest, [verified.envelope_sha256], releases)
        self._folder.write_proof(folder, b"".join(write_proof(parts, files=None)))

    # -- what programs are given ----------------------------------------------------------------

    async def _given(
        self, deployment_id: str, verified: VerifiedArtifact, statement: ReleaseStatement
    ) -> RunValues:
        """Ask control what the release's programs are given, and keep it for later starts."""
        if statement.config is None or not _runs_something(verified):
            return RunValues()
        config = configs.check(await self._tools.config_of(deployment_id), statement.config)
        await self._tools.in_thread(self._configs.write, deployment_id, config)
        return RunValues.of(config)

    async def _kept(
        self, deployment_id: str, verified: VerifiedArtifact, statement: ReleaseStatement | None
    ) -> RunValues:
        """Return what the served release's programs were given."""
        if statement is None or statement.config is None or not _runs_something(verified):
            return RunValues()
        config = await self._tools.in_thread(self._configs.read, deployment_id)
        return RunValues.of(configs.check(config, statement.config))

    # -- run ------------------------------------------------------------------------------------

    def _wants_release_command(self, desired: Desired, verified: VerifiedArtifact) -> bool:
        """Say whether to run it: once per deployment, so not for one that was switched to."""
        served = self.state.served
        return (
            desired.release_command
            and verified.provenance.run.release is not None
            and (served is None or served.deployment_id != desired.deployment_id)
        )

    async def _run_release_command(
        self,
        desired: Desired,
        verified: VerifiedArtifact,
        folder: str,
        given: RunValues,
        journal: RollJournal,
    ) -> None:
        command = verified.provenance.run.release
        assert command is not None, "asked for only when there is one"
        journal.say(f"$ {command}", stage="release")
        await run_release_command(
            self._program(
                command,
                verified,
                folder,
                self.state.named_as(desired),
                desired.deployment_id,
                given,
            ),
            timeout_s=self._tools.release_command_timeout_s,
            on_line=lambda line: journal.say_output(line, stage="release"),
        )

    async def _start(
        self,
        desired: Desired,
        verified: VerifiedArtifact,
        served: ServedState,
        given: RunValues,
        journal: RollJournal,
        index: StaticIndex | None,
    ) -> Responder:
        if _serves_files(verified):
            return await self._static_site(verified, served, index)
        process = self._web_process(self.state.named_as(desired), verified, served, given)
        journal.say(f"$ {verified.provenance.run.web}", stage="start", progress=70)
        try:
            await process.start(timeout_s=self._tools.health_timeout_s)
        except RollFailedError as error:
            journal.say_all(error.output, stage="start")
            raise
        journal.say("healthy", stage="start", progress=90)
        return WebSite(process, trusted=self._tools.trusted)

    async def _resumed(
        self, verified: VerifiedArtifact, served: ServedState, given: RunValues
    ) -> Responder:
        """Make what answers for a release that was healthy once."""
        if _serves_files(verified):
            return await self._static_site(verified, served)
        process = self._web_process(self.state, verified, served, given)
        process.keep()
        return WebSite(process, trusted=self._tools.trusted)

    async def _static_site(
        self, verified: VerifiedArtifact, served: ServedState, index: StaticIndex | None = None
    ) -> StaticSite:
        if index is None:
            index = await self._tools.in_thread(StaticIndex, verified.manifest)
        root = self._folder.releases / served.folder
        return StaticSite(root, index, modified_s=served.modified_s)

    def _web_process(
        self,
        state: EnvironmentState,
        verified: VerifiedArtifact,
        served: ServedState,
        given: RunValues,
    ) -> WebProcess:
        run = verified.provenance.run
        if run.web is None:
            raise RollFailedError("deployment.start_failed", "the release has no web process")
        check = HealthCheck(run.health, host=next(iter(state.hostnames), "localhost"))
        program = self._program(
            run.web, verified, served.folder, state, served.deployment_id, given
        )
        return WebProcess(
            program, check, web_log=self._folder.web_log, starting=self._tools.starting
        )

    def _program(
        self,
        command: str,
        verified: VerifiedArtifact,
        folder: str,
        state: EnvironmentState,
        deployment_id: str | None,
        given: RunValues,
    ) -> Program:
        provenance = verified.provenance
        return Program(
            command=command,
            release_dir=self._folder.releases / folder,
            data_dir=self._folder.data,
            limits=self._tools.web_limits,
            hostname=state.slug,
            given=given,
            environ={
                "GITD_SITE": state.site,
                "GITD_ENVIRONMENT": state.slug,
                "GITD_ENVIRONMENT_KIND": state.kind,
                "GITD_URL": state.url,
                "GITD_DEPLOYMENT": deployment_id or "",
                "GITD_ARTIFACT": str(verified.digest),
                "GITD_REF": provenance.ref or "",
                "GITD_COMMIT": provenance.commit,
            },
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
            after = self.state.serving(served, release_sequence)
            if after != self.state:
                await self._write(after)
        except BaseException:
            await responder.close(grace_s=0)
            raise
        self._retire(self.serving.switch(release))

    async def _write(self, state: EnvironmentState) -> None:
        await self._tools.in_thread(self._folder.replace, self.state, state)
        self.state = state

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
        async with self._folders:
            await self._prune()

    async def _prune(self) -> None:
        """Put aside the folders that are not kept; nobody waits for their removal."""
        aside = await self._tools.in_thread(self._folder.put_aside, self.state)
        served = self.state.served
        kept = served.deployment_id if served is not None else None
        await self._tools.in_thread(self._configs.keep_only, kept)
        if aside:
            task = asyncio.get_running_loop().create_task(self._remove_aside(aside))
            self._tidying.add(task)
            task.add_done_callback(self._tidying.discard)

    async def _remove_aside(self, aside: list[Path]) -> None:
        """Remove folders a while later: now the roll is being reported, on the same disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIDY_AFTER_S):
                await self._closing.wait()
        await self._tools.in_thread(remove_folders, aside)


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


def _serves_files(verified: VerifiedArtifact) -> bool:
    """Say whether visitors get the artifact's own files. Never those of a program without its
    command: they may be its sources.
    """
    provenance = verified.provenance
    return provenance.run.web is None and provenance.profile != "procfile"


def _runs_something(verified: VerifiedArtifact) -> bool:
    run = verified.provenance.run
    return run.web is not None or run.release is not None


def _verified_line(verified: VerifiedArtifact) -> str:
    files = verified.manifest.files
    return f"verified {files} file{'' if files == 1 else 's'}, key {verified.key_id[:16]}…"


@contextlib.contextmanager
def _as_roll_failures() -> Iterator[None]:
    """Say of storage's errors what they mean for a roll."""
    try:
        yield
    except ReleaseInvalidError as error:
        raise RollFailedError(_RELEASE_CODES[type(error)], str(error)) from error
    except SignatureInvalidError as error:
        raise RollFailedError("artifact.signature_invalid", str(error)) from error
    except ArtifactMissingError as error:
        raise RollFailedError("artifact.missing", str(error)) from error
    except (ArtifactCorruptError, DigestInvalidError) as error:
        raise RollFailedError("artifact.corrupt", str(error)) from error
    except (StorageError, OSError) as error:
        raise RollFailedError(HOST_FAILED, str(error)) from error


async def _to_the_end(work: asyncio.Future[T] | Coroutine[None, None, T]) -> T:
    """Await work that must not stop half way: a cancellation counts once it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
