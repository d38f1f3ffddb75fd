"""`.keep` files beside packs that no ref needs yet: whoever tidies up meanwhile leaves those alone.

Between a pack's way into the store and the moving of its refs, `git repack -a -d` would take its
objects for those of nobody. Source: git's builtin/index-pack.c and receive-pack.c, `--keep`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

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
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            self._paths.append(path)
            file.write(TEXT)

    def drop(self) -> None:
        """Keep them no longer; a second call does nothing."""
        while self._paths:
            self._paths.pop().unlink(missing_ok=True)


def is_left_over(path: Path) -> bool:
    """Say whether a `.keep` file is one of these. An empty one is its owner's, who touched it."""
    with path.open("rb") as file:
        return file.read(len(TEXT) + 1) == TEXT
