"""Hooks that a repository's config names, as git has them since 2.54.

Source: git-config(1), "hook.<friendly-name>"; git's hook.c.
"""

from __future__ import annotations

import re

from storage.git.config import GitConfig, as_flag
from storage.git.errors import RepositoryCorruptError

_NUMBER = re.compile(r"[+-]?[0-9]+")


def hook_commands(config: GitConfig, event: str) -> list[str]:
    """Return the shell commands that are to run at an event (`pre-receive`), in their order.

    Raises:
        RepositoryCorruptError: a setting has no value, or a hook that is on has no command.
    """
    lines = config.lines("hook.")
    if not lines:  # nearly always
        return []
    named: dict[str, None] = {}  # hooks of this event, the one that was named last at the end
    others, off, commands = set[str](), set[str](), dict[str, str]()
    for key, value in lines:
        name, _, field = key.rpartition(".")
        if not name or field not in ("event", "command", "enabled", "parallel"):
            continue
        if value is None:
            raise RepositoryCorruptError(f"'hook.{key}' has no value")
        if field == "command":
            commands[name] = value
        elif field == "parallel":
            others.add(name)
        elif field == "enabled":
            _switch(off, name, value)
        else:
            if value in ("", event):
                named.pop(name, None)
            if value == event:
                named[name] = None
            elif value:
                others.add(name)
    is_event_off = event in off and not (event in named or event in others or event in commands)
    on = [] if is_event_off else [name for name in named if name not in off]
    for name in on:
        if name not in commands:
            raise RepositoryCorruptError(f"'hook.{name}.command' must be configured")
    return [commands[name] for name in on]


def _switch(off: set[str], name: str, value: str) -> None:
    """Note whether a hook is off; what is neither yes nor no changes nothing, as with git."""
    is_on = as_flag(value)
    if is_on is None and _NUMBER.fullmatch(value):
        is_on = int(value) != 0
    if is_on is not None:
        (off.discard if is_on else off.add)(name)
