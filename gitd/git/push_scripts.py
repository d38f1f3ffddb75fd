"""The operator's hooks around one push: which of them run, when, and what they are told.

Source: githooks(5); git's builtin/receive-pack.c.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from gitd.git.incoming import Incoming
from gitd.git.native_hooks import (
    HookRunner,
    certificate_environ,
    option_environ,
    quarantine_environ,
)
from gitd.git.push_certificate import SEED_KEY, SLOP_KEY, Certificate, judge_nonce
from gitd.git.push_request import Command, Wish
from gitd.git.pusher import Pusher
from gitd.git.side_band import SideBandAnswer
from gitd.git.signatures import SignatureCheck
from storage.git.refs import show
from storage.git.repository import Repository

NOT_KEPT = "unable to migrate objects to permanent storage"  # git's words


class PushScripts:
    """The hooks of one push. What they decline is written to its commands.

    Attributes:
        has_pre_receive: asked once: where the objects wait depends on it.
    """

    def __init__(
        self,
        repository: Repository,
        wish: Wish,
        answer: SideBandAnswer,
        pusher: Pusher,
        *,
        timeout_s: float,
    ) -> None:
        self._repository = repository
        self._wish = wish
        self._answer = answer
        self._timeout_s = timeout_s
        self._hooks = HookRunner(repository, pusher.environ, answer.progress, timeout_s=timeout_s)
        self._certified: Mapping[str, str] = {}
        self.has_pre_receive = self._hooks.has("pre-receive")

    @property
    def has_update(self) -> bool:
        return self._hooks.has("update")

    async def run_pre_receive(self, incoming: Incoming) -> None:
        """Ask about all of the push, while its objects wait."""
        await self._look_at_certificate(incoming)
        lines = self._wish.hook_lines()
        if not lines or not self.has_pre_receive:
            return
        environ = self._environ()
        if incoming.quarantine is not None:
            environ |= quarantine_environ(self._repository, incoming.quarantine)
        if not await self._hooks.run("pre-receive", stdin=lines, environ=environ):
            self._wish.refuse_all("pre-receive hook declined")

    async def run_update(self) -> None:
        """Ask about each ref, all of them before any moves, in the order of git since 2.51.

        Deletions come first. Of refs that move together or not at all, none is asked about behind
        one that is refused.
        """
        is_atomic = self._wish.can(b"atomic")
        commands = self._wish.commands
        if not is_atomic:
            commands = sorted(commands, key=lambda command: not command.is_delete)
        for command in commands:
            if command.error is None and not command.is_skipped:
                await self._ask_update(command)
            if is_atomic and command.error is not None:
                return

    async def _ask_update(self, command: Command) -> None:
        arguments = (command.name, command.old.hex().encode(), command.new.hex().encode())
        if not await self._hooks.run("update", *arguments):
            await self._answer.say(f"error: hook declined to update {show(command.name)}")
            command.error = "hook declined"

    async def run_after(self) -> None:
        """Tell of the refs that have moved."""
        lines = self._wish.hook_lines()
        if not lines:
            return
        await self._hooks.run("post-receive", stdin=lines, environ=self._environ())
        if self._hooks.has("post-update"):
            names = [command.name for command in self._wish.commands if command.is_going]
            await self._hooks.run("post-update", *names)

    def _environ(self) -> dict[str, str]:
        return {**option_environ(self._wish.options), **self._certified}

    async def _look_at_certificate(self, incoming: Incoming) -> None:
        """Keep the certificate of a signed push and see who signed it, if a hook would ask."""
        certificate = self._wish.certificate
        if certificate is None or not self._wish.hook_lines():
            return
        if not self.has_pre_receive and not self._hooks.has("post-receive"):
            return
        try:
            oid = await asyncio.to_thread(incoming.add_blob, certificate.content)
        except OSError as error:
            await self._answer.say(f"error: cannot keep the push certificate: {error.strerror}")
            self._wish.refuse_all(NOT_KEPT)
            return
        self._certified = await self._judged(certificate, oid.hex())

    async def _judged(self, certificate: Certificate, oid: str) -> dict[str, str]:
        config = self._repository.config
        check = SignatureCheck(config, self._hooks.environ, self._timeout_s)
        signer = await check.signer_of(certificate.payload, certificate.signature)
        verdict = judge_nonce(
            certificate,
            seed=config.text(SEED_KEY) or "",
            repository=self._repository.path,
            now_s=int(time.time()),
            slop_s_max=config.number(SLOP_KEY) or 0,
        )
        return certificate_environ(oid, signer, verdict)
