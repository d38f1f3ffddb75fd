"""The quarantine of a store: damaged files as they were found, kept for whoever wants to know why.

A file gets its second name there before the records call it damaged, and loses its first one after:
so whatever is put in its place, and whenever this process ends, what was found is not overwritten.
"""
# Plain strings, as in the rest of the store.
# ruff: noqa: PTH104, PTH108, PTH208

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.files import sync_directory
from storage.layout import Layout
from storage.parts import Part, PartKind

_NAME = re.compile(r"(blob|tree|envelope)-([0-9a-f]{64}(?:\.x)?)-(\d{8}T\d{6}\.\d{3}Z)")
# Not ours to link, too many links, no links here, or a folder in its place: it is renamed later.
_CANNOT_LINK = frozenset([errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES])


@dataclass(frozen=True, slots=True)
class Kept:
    """Something in quarantine. `found_at`: milliseconds since 1970."""

    name: str
    part: Part
    found_at: int


class Quarantine:
    """The quarantine of one store. Whoever changes something there is alone behind the gate."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def kept(self) -> list[Kept]:
        """Return what is in it, the oldest first. Other names are nobody's business."""
        try:
            names = os.listdir(self._layout.quarantine)
        except FileNotFoundError:
            return []
        found = [
            Kept(name, Part(PartKind(match[1]), match[2]), _milliseconds(match[3]))
            for name in names
            if (match := _NAME.fullmatch(name))
        ]
        return sorted(found, key=lambda kept: (kept.found_at, kept.name))

    def secure(self, part: Part, at: int) -> str | None:
        """Give the file of a part its name here, durably; it keeps the one that it has.

        Returns that name, or None when there is no such file. Done again it changes nothing.
        """
        path = part.path(self._layout)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        for kept in self.kept():
            if kept.part == part and self._is_same(kept.name, status):
                return kept.name
        name = f"{part.kind.value}-{part.name}-{_stamp(at)}"
        try:
            os.link(path, self.path(name), follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
        sync_directory(self._layout.quarantine)
        return name

    def take(self, part: Part, name: str) -> None:
        """Let the file of a part have the name that `secure` gave it, and no other."""
        path = part.path(self._layout)
        if os.path.lexists(self.path(name)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            os.rename(path, self.path(name))
            sync_directory(self._layout.quarantine)
        sync_directory(os.path.dirname(path))  # noqa: PTH120 - a plain string

    def forget(self, before: int, *, but: Collection[Part]) -> list[Kept]:
        """Remove what was found before a time, unless its part is damaged still."""
        old = [kept for kept in self.kept() if kept.found_at < before and kept.part not in but]
        for kept in old:
            path = self.path(kept.name)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return old

    def _is_same(self, name: str, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(os.lstat(self.path(name)), status)
        except FileNotFoundError:
            return False

    def path(self, name: str) -> str:
        """Where the file with that name here lies."""
        return f"{self._layout.quarantine}/{name}"


def _stamp(at: int) -> str:
    when = datetime.fromtimestamp(at / 1000, UTC)
    return f"{when:%Y%m%dT%H%M%S}.{at % 1000:03d}Z"


def _milliseconds(stamp: str) -> int:
    when = datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    return round(when.timestamp() * 1000)
