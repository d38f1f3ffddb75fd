"""Reflogs: how a ref has moved, a line for each move, where the repository wants them.

Source: gitrepository-layout(5), "logs"; git's refs/files-backend.c.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from storage.git.object_formats import NULL_OID
from storage.git.ref_folders import prune_folders
from storage.git.repository import Repository

_LOGGED = (b"refs/heads/", b"refs/remotes/", b"refs/notes/")


@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """What a reflog line says beside the ids: `who` is `Name <email>`."""

    who: bytes
    message: bytes


class Reflogs:
    """Those of one repository, while refs move that somebody has locked.

    `entry`: what each line says; None writes none. `head_target`: the ref that HEAD stands for: its
    moves are HEAD's, too.
    """

    def __init__(
        self, repository: Repository, entry: ReflogEntry | None, head_target: bytes | None
    ) -> None:
        self._repository = repository
        self._root = os.fsencode(repository.path) + b"/"
        self._sharing = repository.sharing
        self._entry = entry
        self._head_target = head_target

    def note(self, name: bytes, old: bytes, new: bytes) -> None:
        """Write down a move; the log of a ref that is deleted goes with it."""
        if new == NULL_OID:
            log_path = self._root + b"logs/" + name
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                os.unlink(log_path)  # noqa: PTH108
            prune_folders(self._root + b"logs/", name)
            return
        if self._entry is None or old == new:
            return
        self._append(name, old, new)
        if self._head_target == name:
            self._append(b"HEAD", old, new)

    def _append(self, name: bytes, old: bytes, new: bytes) -> None:
        assert self._entry is not None
        path = self._root + b"logs/" + name
        if not os.path.exists(path) and not self._is_logged(name):  # noqa: PTH110
            return
        line = b"%s %s %s %d +0000\t%s\n" % (
            old.hex().encode(),
            new.hex().encode(),
            self._entry.who,
            int(time.time()),
            self._entry.message,
        )
        # A log that cannot be written keeps no ref from moving.
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(path, "ab") as file:  # noqa: PTH123
                file.write(line)
            self._sharing.apply(path)
            self._sharing.apply_up(os.path.dirname(path), self._root)  # noqa: PTH120

    def _is_logged(self, name: bytes) -> bool:
        config = self._repository.config
        wish = (config.text("core.logallrefupdates") or "").lower()
        if wish == "always":
            return True
        is_on = config.flag("core.logallrefupdates", default=not self._repository.is_bare)
        return bool(is_on) and (name == b"HEAD" or name.startswith(_LOGGED))
