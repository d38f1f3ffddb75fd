"""Commands of the shell, as lines of a log."""

from __future__ import annotations

import re

# What ends a command that another line began. Source: POSIX, "Shell Command Language", 2.4.
_CLOSING = re.compile(r"\s*(?:fi|done|esac|;;|[})])[\s;&)}]*")


def shown_command(command: str) -> str:
    """Return a command as one line of a log: the last one that runs something, between dots.

    That is what serves; what stands before it prepares that.
    """
    before = command.strip().splitlines() or [""]
    after = []
    while len(before) > 1 and _CLOSING.fullmatch(before[-1]):
        after.append(before.pop())
    last = before.pop().strip()
    return f"{'... ' if before else ''}{last}{' ...' if after else ''}"
