"""Git LFS: files whose contents are not in the repository, found before anything is built of them.

Source: git-lfs/git-lfs, "docs/spec.md", "The Pointer"; its older host name too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hooks.builds.errors import BuildFailedError

POINTER_BYTES_MAX = 1023
LFS_POINTERS = "build.lfs_pointers"
NAMES_COUNT_MAX = 10
_POINTER = re.compile(
    rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v1\n"
    rb"(?:ext-[0-9]-[^\n]*\n)*"
    rb"oid sha256:[0-9a-f]{64}\nsize [0-9]+\n?"
)


def is_pointer(content: bytes) -> bool:
    """Say whether a file's content stands for another that LFS keeps elsewhere."""
    return len(content) <= POINTER_BYTES_MAX and _POINTER.fullmatch(content) is not None


def pointers_found(paths: Sequence[str]) -> BuildFailedError:
    """Return the failure of a build in whose source these files are pointers."""
    named = ", ".join(paths[:NAMES_COUNT_MAX])
    more = len(paths) - NAMES_COUNT_MAX
    rest = f" and {more:,} more" if more > 0 else ""
    are = "1 file is a pointer" if len(paths) == 1 else f"{len(paths):,} files are pointers"
    return BuildFailedError(
        LFS_POINTERS,
        f"{are} of Git LFS, whose contents are not in the commit: {named}{rest}. This server keeps"
        " no LFS objects. Commit the files themselves (`git lfs migrate export` turns pointers"
        ' back), or, when the pointers are what is wanted, set [build] lfs = "ignore" in'
        " managed.toml.",
    )
