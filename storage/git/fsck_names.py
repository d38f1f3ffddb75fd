"""Names of files that git acts on, as some file system or other spells them.

NTFS takes `git~1`, `.git ` and `.git::$INDEX_ALLOCATION` for `.git`, HFS ignores some characters,
and git on Windows takes a backslash for a slash. Source: git's path.c, `is_ntfs_dotgit` and
`is_ntfs_dot_generic`; utf8.c, `is_hfs_dotgit`; fsck.c, `fsck_tree`.
"""

from __future__ import annotations

import re

_IGNORED_BY_HFS = dict.fromkeys(
    (*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF)
)
_DOTGIT = re.compile(rb"(?:\A|\\)(?:\.git|git~1)[. ]*+(?:[\\/:]|\Z)", re.IGNORECASE)


def is_dotgit(name: bytes) -> bool:
    """Say whether some file system would take this name, or a part of it, for `.git`."""
    return _DOTGIT.search(name) is not None or _as_on_hfs(name) == ".git"


class SpecialName:
    """Recognizes one file that git reads.

    Args:
        name: as it should be spelt.
        short: the first letters of the short name that NTFS makes up when `name` is taken.
    """

    def __init__(self, name: str, short: str) -> None:
        self.name = name
        starts = [f"{name[1:7]}~[1-4]"]
        starts += [f"{short[:count]}~[1-9][0-9]{{{6 - count}}}" for count in range(7)]
        spelt = "|".join((re.escape(name), *starts))
        pattern = rf"(?:{spelt})[. ]*+(?::|\Z)".encode()
        self._first = re.compile(pattern, re.IGNORECASE)
        self._anywhere = re.compile(rb"(?:\A|\\)" + pattern, re.IGNORECASE)

    def is_meant_by(self, name: bytes) -> bool:
        """Say whether some file system would take a name for this one."""
        return self._first.match(name) is not None or _as_on_hfs(name) == self.name

    def is_meant_by_part_of(self, name: bytes) -> bool:
        """Say so of a name, or of what stands in it behind a backslash."""
        return self._anywhere.search(name) is not None or _as_on_hfs(name) == self.name


GITMODULES = SpecialName(".gitmodules", "gi7eba")
GITATTRIBUTES = SpecialName(".gitattributes", "gi7d29")
GITIGNORE = SpecialName(".gitignore", "gi250a")
MAILMAP = SpecialName(".mailmap", "maba30")


def _as_on_hfs(name: bytes) -> str:
    """Return what HFS sees of a name that is not plain ASCII; of no interest for others."""
    if name.isascii():
        return ""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:  # git takes the malformed rest for the end
        text = name[: error.start].decode("utf-8")
    visible = text.translate(_IGNORED_BY_HFS)
    return visible.lower() if visible.isascii() else ""
