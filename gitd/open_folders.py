"""The folders that every build and every site can read: nothing of the server's may lie there."""

from __future__ import annotations

from pathlib import Path

from gitd.errors import StartError
from hooks.builds.sandbox import bwrap


def require_outside(path: Path, what: str) -> None:
    """Refuse a place that sandboxes can look into. It need not be there yet.

    Raises:
        StartError: Its own path, or where its links lead, lies in such a folder.
    """
    real = path.resolve()
    for folder in bwrap.shown_folders():
        if real.is_relative_to(folder):
            raise StartError(
                f"{what} {path} lies in {folder}, which every build and site can read: choose"
                " another place, such as /var/lib/gitd."
            )
