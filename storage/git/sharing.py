"""Who may use a repository's files beside their owner: `core.sharedRepository`.

Source: git-config(1), "core.sharedRepository"; git's path.c, calc_shared_perm().
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from storage.git.config import GitConfig
from storage.git.errors import RepositoryCorruptError

KEY = "core.sharedrepository"
_OWNER = 0o600
_NAMED = {
    "umask": 0, "0": 0, "group": 0o660, "1": 0o660,
    "all": 0o664, "world": 0o664, "everybody": 0o664, "2": 0o664,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sharing:
    """What files get beyond the process's umask.

    Attributes:
        bits: read and write bits that files have at least; 0 leaves all to the umask.
        is_exact: they have these bits and no others.
    """

    bits: int = 0
    is_exact: bool = False

    @classmethod
    def of(cls, config: GitConfig) -> Sharing:
        """Read a repository's wish.

        Raises:
            RepositoryCorruptError: it is none, or keeps the owner out.
        """
        text = config.text(KEY)
        if text is None or text in _NAMED:
            return cls(_NAMED[text] if text is not None else 0)
        try:
            number = int(text, 8)
        except ValueError:
            return cls(_NAMED["group"] if config.flag(KEY) else 0)
        if number & _OWNER != _OWNER:
            raise RepositoryCorruptError(f"bad value '{text}' of {KEY}: the owner needs rw")
        return cls(number & 0o666, is_exact=number != 0)

    def apply(self, path: bytes | str | Path) -> None:
        """Give a file or directory of ours the bits."""
        if not self.bits:
            return
        before = os.stat(path).st_mode  # noqa: PTH116 - of either kind of path
        after = self.mode_of(before)
        if after != before:
            os.chmod(path, stat.S_IMODE(after))  # noqa: PTH101

    def apply_up(self, path: bytes | str, root: bytes | str) -> None:
        """Do so for a directory and those above it that are ours, up to `root` and without it."""
        if not self.bits:
            return
        place, stop = os.fsencode(path).rstrip(b"/"), os.fsencode(root).rstrip(b"/")
        while len(place) > len(stop):
            if os.stat(place).st_uid == os.geteuid():  # noqa: PTH116
                self.apply(place)
            place = os.path.dirname(place)  # noqa: PTH120

    def mode_of(self, mode: int) -> int:
        """Return what becomes of a mode."""
        bits = self.bits if mode & stat.S_IWUSR else self.bits & ~0o222
        if mode & stat.S_IXUSR:
            bits |= (bits & 0o444) >> 2
        found = (mode & ~0o777) | bits if self.is_exact else mode | bits
        if stat.S_ISDIR(mode):
            found |= (found & 0o444) >> 2
            if found & 0o060:
                found |= stat.S_ISGID
        return found
