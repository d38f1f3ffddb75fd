"""The moment at which a push takes effect: its objects are kept, its refs judged and moved.

All of it blocks. Only what is asked under the repository's lock (`gitd.git.receive`) is sure to
find the refs as it has read them, as far as this process is concerned.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gitd.git.incoming import Incoming
from gitd.git.push_request import Command, Wish
from gitd.git.push_scripts import NOT_KEPT
from gitd.git.pusher import Pusher
from gitd.git.ref_checks import RefChecks, refuse_beyond
from gitd.git.reserved_refs import refuse_reserved
from storage.git.errors import RefNotDurableError, RefUpdateError
from storage.git.ingest import TIDIED_UP
from storage.git.object_formats import NULL_OID
from storage.git.reflog import ReflogEntry
from storage.git.refs import RefSnapshot
from storage.git.repository import Repository
from storage.git.shallow import borders_behind
from storage.git.transaction import RefChange, change_refs


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found before any ref moves.

    Attributes:
        words: for the user.
        to_sync: directories that must be durable before any ref moves.
        snapshot: the refs as they were read.
    """

    words: list[str]
    to_sync: set[Path]
    snapshot: RefSnapshot | None = None


class RefMoves:
    """Moves the refs of one push. What is refused is written to its commands."""

    def __init__(
        self,
        repository: Repository,
        wish: Wish,
        incoming: Incoming,
        pusher: Pusher,
        *,
        refs_max: int,
    ) -> None:
        self._repository = repository
        self._wish = wish
        self._incoming = incoming
        self._pusher = pusher
        self._refs_max = refs_max
        self._has_begun = False
        self._judged_by = RefSnapshot({})

    def do_all(self) -> list[str]:
        """Keep the objects, judge the refs and move them, in one go; return words for the user."""
        judged = self.take_in_and_judge()
        return judged.words + self.apply(judged.to_sync, judged.snapshot)

    def take_in_and_judge(self) -> Judged:
        """Make the objects part of the store, and let the repository's own rules have their say."""
        try:
            to_sync = self._incoming.take_in()
        except OSError as error:
            self._wish.refuse_all(NOT_KEPT)
            is_gone = isinstance(error, FileNotFoundError)
            why = TIDIED_UP if is_gone else error.strerror
            return Judged([f"error: cannot keep the objects: {why}"], set())
        words = refuse_reserved(self._repository, self._wish)
        snapshot = self._judged_by = self._repository.refs.snapshot()
        borders = self._wish.new_borders
        checks = RefChecks(self._repository, snapshot, refs_max=self._refs_max, new_borders=borders)
        return Judged(words + checks.judge_all(self._wish.commands), to_sync, snapshot)

    def apply(self, to_sync: set[Path], snapshot: RefSnapshot | None = None) -> list[str]:
        """Move the refs that nobody refused; return words for the user.

        `snapshot`: of the refs, for who has held the lock since it was made.
        """
        refuse_beyond(self._refs_max, self._wish.commands, self._judged_by)
        is_atomic = self._wish.can(b"atomic")
        if is_atomic and any(command.error for command in self._wish.commands):
            self._wish.refuse_all("atomic push failure")
        going = [command for command in self._wish.commands if command.is_going]
        self._has_begun = True
        name, email = self._pusher.committer
        errors = change_refs(
            self._repository,
            [RefChange(command.name, command.old, command.new) for command in going],
            is_atomic=is_atomic,
            log=ReflogEntry(os.fsencode(f"{name} <{email}>"), b"push"),
            sync_first=to_sync,
            prepare=self._extend_shallow if self._wish.shallow_tips else None,
            snapshot=snapshot,
        )
        self._incoming.let_go()
        return _noted(going, errors)

    def _extend_shallow(self, changes: Sequence[RefChange]) -> dict[bytes, RefUpdateError]:
        """Let the history end where that of a ref does which is about to move, and nowhere else:
        what comes whole later would end there too. Return what is wrong with which ref.
        """
        tips = {change.new for change in changes}.intersection(self._wish.shallow_tips)
        if not tips:
            return {}
        repository, new_borders = self._repository, self._wish.new_borders
        try:
            borders = borders_behind(
                repository.objects, tips, new_borders, server=repository.shallow()
            )
            repository.extend_shallow(borders)
        except OSError as error:
            names = [change.name for change in changes if change.new in tips]
            words = [f"cannot note where the history ends: {error.strerror}", *("" for _ in names)]
            return {
                name: RefUpdateError(text, reason="shallow error")  # git's words
                for name, text in zip(names, words, strict=False)
            }
        return {}

    def refuse_unmoved(self, reason: str, *, of_moved: str | None = None) -> None:
        """After a failure: refuse each ref that is not where it was to go.

        `of_moved`: what stands at the others, when a power cut may undo them.
        """
        for command in self._wish.commands:
            if not command.is_going or command.may_be_undone:
                continue
            if not (self._has_begun and self._is_moved(command)):
                command.error = reason
            elif of_moved is not None:
                command.error, command.may_be_undone = of_moved, True

    def _is_moved(self, command: Command) -> bool:
        try:
            return (self._repository.refs.resolve(command.name) or NULL_OID) == command.new
        except (RefUpdateError, OSError):  # it cannot be read: none that was just written
            return False


def _noted(commands: list[Command], errors: list[RefUpdateError | None]) -> list[str]:
    """Write the errors of a transaction to its commands; return the words for the user."""
    words = []
    for command, error in zip(commands, errors, strict=True):
        if error is not None:
            command.error = error.reason
            command.may_be_undone = isinstance(error, RefNotDurableError)
            if str(error):
                words.append(f"error: {error}")
    return words
