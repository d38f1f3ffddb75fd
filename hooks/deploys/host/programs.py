"""What the releases of one environment answer with, and run: files, a web process, a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hooks.commands import shown_command
from hooks.deploys.errors import RollFailedError
from hooks.deploys.host import configs
from hooks.deploys.host.configs import ConfigFiles
from hooks.deploys.host.control import RollJournal
from hooks.deploys.host.rollout_tools import RolloutTools
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState
from hooks.deploys.processes.health import HealthCheck
from hooks.deploys.processes.run_values import RunValues
from hooks.deploys.processes.web_process import Program, WebProcess, WebSite, run_release_command
from hooks.deploys.web.serving import Responder
from hooks.deploys.web.static import StaticSite
from hooks.deploys.web.static_index import StaticIndex
from storage.reader import VerifiedArtifact
from storage.release_statement import ReleaseStatement

COMMIT_CHARS: Final = 12


@dataclass(frozen=True, slots=True)
class Placed:
    """A release that lies complete in `folder`, with what its programs are `given`."""

    deployment_id: str
    verified: VerifiedArtifact
    folder: str
    given: RunValues


class Programs:
    """They, with what they are given: the variables and secrets that the release names."""

    def __init__(
        self, folder: EnvironmentFolder, tools: RolloutTools, on_change: Callable[[], None]
    ) -> None:
        """`on_change` is called whenever a web process of them stands otherwise."""
        self._folder = folder
        self._on_change = on_change
        self._configs = ConfigFiles(folder.path, tools.vault)
        self._tools = tools

    # -- what they are given --------------------------------------------------------------------

    async def given(
        self, deployment_id: str, verified: VerifiedArtifact, statement: ReleaseStatement
    ) -> RunValues:
        """Ask control what the release's programs are given, and keep it for later starts."""
        if statement.config is None or not _runs_something(verified):
            return RunValues()
        config = configs.check(await self._tools.config_of(deployment_id), statement.config)
        await self._tools.in_thread(self._configs.write, deployment_id, config)
        return RunValues.of(config)

    async def kept(
        self, deployment_id: str, verified: VerifiedArtifact, statement: ReleaseStatement | None
    ) -> RunValues:
        """Return what the served release's programs were given."""
        if statement is None or statement.config is None or not _runs_something(verified):
            return RunValues()
        config = await self._tools.in_thread(self._configs.read, deployment_id)
        return RunValues.of(configs.check(config, statement.config))

    async def keep_only(self, deployment_id: str | None) -> None:
        """Forget what programs of other deployments were given."""
        await self._tools.in_thread(self._configs.keep_only, deployment_id)

    # -- run ------------------------------------------------------------------------------------

    async def run_release_command(
        self, placed: Placed, state: EnvironmentState, journal: RollJournal
    ) -> None:
        """Run the command that goes before the switch.

        Raises:
            RollFailedError: It failed, or took too long.
        """
        command = placed.verified.provenance.run.release
        assert command is not None, "asked for only when there is one"
        journal.say(f"$ {shown_command(command)}", stage="release")
        await run_release_command(
            self._program(command, placed, state),
            sandboxes=self._tools.sandboxes,
            timeout_s=self._tools.release_command_timeout_s,
            on_line=lambda line: journal.say_output(line, stage="release"),
        )

    async def start(
        self,
        placed: Placed,
        state: EnvironmentState,
        journal: RollJournal,
        *,
        modified_s: int,
        index: StaticIndex | None,
    ) -> Responder:
        """Make what answers for a new release; a web process is healthy then.

        Raises:
            RollFailedError: It is not, or ended.
        """
        if _serves_files(placed.verified):
            return await self._static_site(placed, modified_s, index)
        process = self._web_process(placed, state)
        web = placed.verified.provenance.run.web or ""
        journal.say(f"$ {shown_command(web)}", stage="start", progress=70)
        try:
            await process.start(timeout_s=self._tools.health_timeout_s)
        except RollFailedError as error:
            journal.say_all(error.output, stage="start")
            raise
        journal.say("healthy", stage="start", progress=90)
        if process.running.is_broken:
            journal.say(f"GET / answers {process.running.first_answer}", stage="start")
        return WebSite(process, trusted=self._tools.trusted)

    async def resume(
        self, placed: Placed, state: EnvironmentState, *, modified_s: int
    ) -> Responder:
        """Make what answers for a release that was healthy once."""
        if _serves_files(placed.verified):
            return await self._static_site(placed, modified_s)
        process = self._web_process(placed, state)
        process.keep()
        return WebSite(process, trusted=self._tools.trusted)

    async def _static_site(
        self, placed: Placed, modified_s: int, index: StaticIndex | None = None
    ) -> StaticSite:
        if index is None:
            index = await self._tools.in_thread(StaticIndex, placed.verified.manifest)
        return StaticSite(self._folder.releases / placed.folder, index, modified_s=modified_s)

    def _web_process(self, placed: Placed, state: EnvironmentState) -> WebProcess:
        run = placed.verified.provenance.run
        if run.web is None:
            raise RollFailedError("deployment.start_failed", "the release has no web process")
        check = HealthCheck(run.health, host=next(iter(state.hostnames), "localhost"))
        program = self._program(run.web, placed, state)
        return WebProcess(
            program,
            check,
            sandboxes=self._tools.sandboxes,
            web_log=self._folder.web_log,
            starting=self._tools.starting,
            ports=self._tools.ports,
            on_change=self._on_change,
        )

    def _program(self, command: str, placed: Placed, state: EnvironmentState) -> Program:
        provenance = placed.verified.provenance
        return Program(
            command=command,
            release_dir=self._folder.releases / placed.folder,
            data_dir=self._folder.data,
            limits=self._tools.web_limits,
            hostname=state.slug,
            given=placed.given,
            title=f"{placed.deployment_id} (commit {provenance.commit[:COMMIT_CHARS]})",
            names={
                "env_id": state.env_id,
                "site": state.site,
                "environment": state.slug,
                "deployment_id": placed.deployment_id,
            },
            environ={
                "GITD_SITE": state.site,
                "GITD_ENVIRONMENT": state.slug,
                "GITD_ENVIRONMENT_KIND": state.kind,
                "GITD_URL": state.url,
                "GITD_DEPLOYMENT": placed.deployment_id,
                "GITD_ARTIFACT": str(placed.verified.digest),
                "GITD_REF": provenance.ref or "",
                "GITD_COMMIT": provenance.commit,
            },
        )


def _serves_files(verified: VerifiedArtifact) -> bool:
    """Say whether visitors get the artifact's own files. Never those of a program without its
    command: they may be its sources.
    """
    provenance = verified.provenance
    return provenance.run.web is None and provenance.profile != "procfile"


def _runs_something(verified: VerifiedArtifact) -> bool:
    run = verified.provenance.run
    return run.web is not None or run.release is not None
