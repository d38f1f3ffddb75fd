"""`.keep` files beside packs that no ref needs yet: whoever tidies up meanwhile leaves those alone.

Between a pack's way into the store and the moving of its refs, `git repack -a -d` would take its
objects for those of nobody. Source: git's builtin/index-pack.c and receive-pack.c, `--keep`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

STAGED_KEEP_PREFIX = "tmp_keep_"  # as git names what it has not finished
TEXT = b"gitd: a push is moving refs to this pack\n"


class PackKeeps:
    """The `.keep` files of one push."""

    def __init__(self) -> None:
        self._paths: list[Path] = []

    def put(self, pack: Path) -> None:
        """Have a pack kept that is about to come, unless its owner keeps it already.

        Raises:
            OSError: the disk is full, or something like it.
        """
        path = pack.with_suffix(".keep")
        staged = path.with_name(f"{STAGED_KEEP_PREFIX}{os.urandom(6).hex()}")
        try:
            staged.write_bytes(TEXT)
            # Whole at once: an empty one, which a kill may leave, would be taken for its owner's.
            with contextlib.suppress(FileExistsError):
                _name(staged, path)
                self._paths.append(path)
        finally:
            staged.unlink(missing_ok=True)

    def drop(self) -> None:
        """Keep them no longer; a second call does nothing."""
        while self._paths:
            self._paths.pop().unlink(missing_ok=True)


def _name(staged: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError when another has that."""
    try:
        os.link(staged, path)
    except FileExistsError:
        raise
    except OSError:  # not every filesystem has second names
        if path.exists():
            raise FileExistsError(path) from None
        staged.rename(path)


def is_left_over(path: Path) -> bool:
    """Say whether a `.keep` file is one of these. An empty one is its owner's, who touched it."""
    with path.open("rb") as file:
        return file.read(len(TEXT) + 1) == TEXT
