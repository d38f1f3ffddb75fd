"""What a repository's own rules say about each ref of a push.

Source: git-config(1), `receive.*`; git's builtin/receive-pack.c, update().
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection

from gitd.git.push import CURRENT_REFUSED
from gitd.git.push_request import Command
from storage.git.errors import RepositoryCorruptError
from storage.git.object_formats import COMMIT, NULL_OID
from storage.git.refs import HEADS, RefSnapshot, is_valid_name, is_writable_name, show
from storage.git.repository import Repository
from storage.git.walk import is_ancestor


class RefChecks:
    """Judges the commands of one push, before any of them is applied.

    Args:
        snapshot: all refs as they are now.
        refs_max: how many refs the repository may have.
        new_borders: commits at which the history may end too.
    """

    def __init__(
        self,
        repository: Repository,
        snapshot: RefSnapshot,
        *,
        refs_max: int,
        new_borders: Collection[bytes] = (),
    ) -> None:
        self._repository = repository
        self._refs_max = refs_max
        self._config = repository.config
        self._inconsistent: set[bytes] = set()
        self._snapshot = snapshot
        self._checked_out = _checked_out(repository, self._snapshot.head_target)
        self._new_borders = new_borders

    def judge_all(self, commands: list[Command]) -> list[str]:
        """Set the error of each command that is refused; return words for the user. Blocking."""
        self._find_twins(commands)
        words = []
        for command in commands:
            if command.error is None:
                message, command.error = self._judge(command)
                if message:
                    words.append(message)
        refuse_beyond(self._refs_max, commands, self._snapshot)
        return words

    def _borders(self) -> set[bytes]:
        return {*self._repository.shallow(), *self._new_borders}

    def _find_twins(self, commands: list[Command]) -> None:
        """Find names that are wished for twice, directly or behind symbolic refs."""
        counts = Counter(command.name for command in commands)
        for command in commands:
            if counts[command.name] > 1:
                command.error = command.error or "multiple updates for ref not allowed"
        symbolic = self._snapshot.symrefs
        wished = {command.name: command for command in commands}
        for command in commands:
            target = symbolic.get(command.name)
            other = wished.get(target) if target is not None else None
            if other is not None and (other.new, other.old) != (command.new, command.old):
                self._inconsistent |= {command.name, other.name}
            elif other is not None:
                command.is_skipped = True  # its target's own update does it

    def _judge(self, command: Command) -> tuple[str, str | None]:
        """Return words for the user and, if the ref is refused, the report's reason."""
        name, shown = command.name, show(command.name)
        if name in self._inconsistent:
            return (
                f"error: refusing inconsistent update between symref '{shown}' and its target",
                "inconsistent aliased update",
            )
        if not self._is_good_name(command):
            return f"error: refusing to update funny ref '{shown}' remotely", "funny refname"
        if self._is_broken_symref(name):
            return f"error: refusing update to broken symref '{shown}'", "broken symref"
        current = self._snapshot.values.get(name)
        if command.is_delete:
            return self._judge_delete(command, shown, current)
        try:
            return self._judge_update(command, shown, current)
        except RepositoryCorruptError as error:
            return f"error: {error}", "bad ref"

    def _is_broken_symref(self, name: bytes) -> bool:
        """Say whether a ref names others in a circle, or in the end something that is no ref."""
        symbolic = self._snapshot.symrefs
        if name not in symbolic:
            return False
        end, _ = self._repository.refs.resolve_symbolic(name)
        return end in symbolic or not end.startswith(b"refs/")

    def _is_good_name(self, command: Command) -> bool:
        if command.is_delete:
            return command.name.startswith(b"refs/") and is_valid_name(command.name)
        return is_writable_name(command.name)

    def _judge_delete(
        self, command: Command, shown: str, current: bytes | None
    ) -> tuple[str, str | None]:
        if self._config.flag("receive.denydeletes") and command.name.startswith(HEADS):
            return f"error: denying ref deletion for {shown}", "deletion prohibited"
        if current is None and command.old == NULL_OID:
            command.is_absent = True
            return f"warning: deleting a non-existent ref {shown}", None
        if command.name == self._snapshot.head_target or command.name in self._checked_out:
            return self._judge_delete_current(shown)
        return "", None

    def _judge_delete_current(self, shown: str) -> tuple[str, str | None]:
        match (self._config.text("receive.denydeletecurrent") or "refuse").lower():
            case "ignore" | "false" | "no" | "off":
                return "", None
            case "warn":
                return "warning: deleting the current branch", None
            case _:
                return (
                    f"error: refusing to delete the current branch: {shown}",
                    CURRENT_REFUSED,
                )

    def _judge_update(
        self, command: Command, shown: str, current: bytes | None
    ) -> tuple[str, str | None]:
        if command.new == command.old and current == command.new:
            return "", None
        if not command.name.startswith(HEADS):
            return "", None
        objects = self._repository.objects
        if objects.kind_and_size(command.new)[0] != COMMIT:
            return (
                (
                    f"error: cannot update ref '{shown}': trying to write non-commit object "
                    f"{command.new.hex()} to branch '{shown}'"
                ),
                "invalid new value provided",
            )
        refused = self._judge_checked_out(command, shown)
        if refused[1] is not None:
            return refused
        is_rewind = (
            command.old != NULL_OID
            and not is_ancestor(objects, command.old, command.new, cut=self._borders())
            if self._config.flag("receive.denynonfastforwards")
            else False
        )
        if is_rewind:
            return (
                f"error: denying non-fast-forward {shown} (you should pull first)",
                "non-fast-forward",
            )
        return refused

    def _judge_checked_out(self, command: Command, shown: str) -> tuple[str, str | None]:
        if command.name not in self._checked_out:
            return "", None
        match (self._config.text("receive.denycurrentbranch") or "refuse").lower():
            case "ignore" | "false" | "no" | "off":
                return "", None
            case "warn":
                return "warning: updating the current branch", None
            case _:
                return (
                    f"error: refusing to update checked out branch: {shown}",
                    "branch is currently checked out",
                )


def refuse_beyond(refs_max: int, commands: list[Command], snapshot: RefSnapshot) -> None:
    """Refuse new refs from where a push would leave more than `refs_max`; what it deletes makes
    room for them. Where a deletion was refused since, this may be asked again.
    """
    taken = [command for command in commands if command.error is None]
    there = snapshot.values
    # Of one that has another value by now the deletion fails, and makes no room.
    gone = sum(c.is_delete and c.name in there and there[c.name] == c.old for c in taken)
    room = refs_max - len(there) + gone
    for command in taken:
        if command.is_delete or command.name in there:
            continue
        room -= 1
        if room < 0:
            bound = f"a repository may have {refs_max} refs at most (git.refs_max)"
            command.error = f"{bound}: delete others first"


def _checked_out(repository: Repository, head_target: bytes | None) -> set[bytes]:
    """Find the branches whose files somebody has before them, in linked work trees too."""
    found = set() if repository.is_bare or head_target is None else {head_target}
    if not (work_trees := repository.path / "worktrees").is_dir():
        return found
    for path in work_trees.glob("*/HEAD"):
        with contextlib.suppress(OSError):
            target = path.read_bytes().strip()
            if target.startswith(b"ref: "):
                found.add(target[5:].strip())
    return found
