"""A push as its receiver sees it: the product's end of receive-pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

NO_OBJECT = "0" * 40


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One wish of the pusher. `old` and `new` are 40 hex digits, all zero for absence.

    Attributes:
        name: the full name; bytes that are not UTF-8 are escaped (`os.fsencode` gives them back).
    """

    name: str
    old: str
    new: str

    @property
    def is_delete(self) -> bool:
        return self.new == NO_OBJECT


SHALLOW_REFUSED = "shallow update not allowed"  # git's own words
CURRENT_REFUSED = "deletion of the current branch prohibited"  # git's own words


@dataclass(frozen=True, slots=True)
class RefOutcome:
    """What became of one update: `reason` is None when it was made.

    `may_be_undone`: it was made too, and `reason` says that a power cut may undo it.
    """

    update: RefUpdate
    reason: str | None = None
    may_be_undone: bool = False

    @property
    def is_ok(self) -> bool:
        return self.reason is None

    @property
    def has_moved(self) -> bool:
        return self.is_ok or self.may_be_undone


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Push:
    """One `git push`, as far as it concerns who receives it. Each is equal to itself alone.

    Attributes:
        path: the repository's path in the URL, as the access saw it.
        repository: its git directory.
        actor: whatever the access returned for who pushes.
        options: `git push -o` values, in order.
        is_quiet: the client asked for no progress. git does so for `--quiet`, and also whenever
            its standard error is no terminal: the wire does not tell the two apart.
        agent: the client's own name, unverified.
    """

    path: str
    repository: Path
    actor: object
    updates: tuple[RefUpdate, ...]
    options: tuple[str, ...]
    is_quiet: bool
    remote_addr: str
    agent: str


class Remote(Protocol):
    """The way back to the person who pushes."""

    @property
    def is_gone(self) -> bool:
        """Whether the client has left; true for ever then."""

    async def say(self, *lines: str) -> None:
        """Show `remote: line` for each, all at once. Raises nothing when the client is gone."""


class PushReceiver(Protocol):
    """What happens around the moment at which refs move."""

    async def accept(self, push: Push, /) -> Mapping[str, str]:
        """Judge a push before any ref moves, while its pack is still being checked.

        Not called for a push whose pack did not arrive whole; `landed` is, even then.

        Returns:
            Refused refs, name -> reason; the others go on (none does in an atomic push).

        Raises:
            PushRefusedError: all of it is refused.
        """

    async def broken_off(self, push: Push, /) -> None:
        """Forget a push that was accepted: its client left, or its pack could not be read.

        No ref has moved, and neither `moved` nor `landed` follows.
        """

    def moved(self, push: Push, outcomes: Sequence[RefOutcome], /) -> None:
        """Begin to act on refs that have just moved, before any other push can move them.

        Called on the event loop while the repository's refs are locked: it does not wait. `landed`
        may come much later, when the client is slow to read its report.
        """

    async def landed(self, push: Push, outcomes: Sequence[RefOutcome], remote: Remote, /) -> None:
        """Act on a push whose refs are durable and whose report was sent.

        Runs also when every ref was refused and when the client is gone. The request ends when it
        returns.
        """


class SilentReceiver:
    """Takes every push and does nothing with it."""

    async def accept(self, _push: Push) -> Mapping[str, str]:
        return {}

    async def broken_off(self, _push: Push) -> None:
        return

    def moved(self, _push: Push, _outcomes: Sequence[RefOutcome]) -> None:
        return

    async def landed(self, _push: Push, _outcomes: Sequence[RefOutcome], _remote: Remote) -> None:
        return
