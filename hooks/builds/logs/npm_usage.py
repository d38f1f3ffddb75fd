"""Usage: the list of its options that npm prints below what is wrong, and that says nothing of it.

Source: npm 11 `lib/utils/error-message.js` (`EUSAGE`), and `lib/base-cmd.js` (`get usage`). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

PREFIXES = ("npm error", "npm ERR!")
_BEGINS = tuple(f"{prefix} Usage:" for prefix in PREFIXES)
_ENDS = 'Run "npm help '


class UsageFilter:
    """Leaves the usage out of what a program prints, and says so in a line."""

    def __init__(self) -> None:
        self._is_usage = False

    def rest(self, lines: Sequence[str]) -> list[str]:
        """Return the lines without those of a usage, which may go on in the next ones."""
        return [kept for line in lines if (kept := self._kept(line)) is not None]

    def _kept(self, line: str) -> str | None:
        if line.startswith(_BEGINS):
            self._is_usage = True
            return f"{line.rstrip()} (npm's list of its options is left out)"
        if self._is_usage and not line.startswith(PREFIXES):
            self._is_usage = False
        if not self._is_usage:
            return line
        self._is_usage = _ENDS not in line
        return None
