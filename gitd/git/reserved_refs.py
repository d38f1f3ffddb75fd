"""Refs that are for a `proc-receive` hook alone: no such hook is run here, so that none is taken.

Source: git-config(1), `receive.procReceiveRefs`; git's builtin/receive-pack.c,
proc_receive_ref_matches().
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from gitd.git.native_hooks import hook_path
from gitd.git.push_request import Command, Wish
from storage.git.object_formats import NULL_OID
from storage.git.repository import Repository

REASON = "fail to run proc-receive hook"  # git's words
_ALL_KINDS = "adm"


@dataclass(frozen=True, slots=True)
class _Pattern:
    """`[adm!]:prefix`: what is added, deleted or modified below it; or, with `!`, all the rest."""

    prefix: bytes
    kinds: str
    is_negative: bool

    @classmethod
    def of(cls, text: str) -> _Pattern:
        marks, colon, prefix = text.partition(":")
        if not colon:
            marks, prefix = _ALL_KINDS, text
        return cls(os.fsencode(prefix.rstrip("/")), marks.replace("!", ""), "!" in marks)

    def takes(self, command: Command) -> bool:
        kinds = ("a" if command.old == NULL_OID else "") + ("d" if command.is_delete else "")
        if not set(kinds or "m") <= set(self.kinds):
            return False
        is_below = (command.name + b"/").startswith(self.prefix + b"/")
        return is_below is not self.is_negative


def refuse_reserved(repository: Repository, wish: Wish) -> list[str]:
    """Refuse the refs of a push that are reserved, an atomic push as a whole; return words."""
    patterns = [_Pattern.of(text) for text in repository.config.texts("receive.procreceiverefs")]
    reserved = [
        command
        for command in wish.commands
        if command.is_going and any(pattern.takes(command) for pattern in patterns)
    ]
    if not reserved:
        return []
    for command in reserved:
        command.error = REASON
    if wish.can(b"atomic"):
        wish.refuse_all(REASON)
    if hook_path(repository, "proc-receive") is None:
        return ['error: cannot find hook "proc-receive"']
    return ["error: proc-receive hooks are not run by this server"]
