"""Who may do what with which repository: the room's way to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from aiohttp import web


class Service(StrEnum):
    UPLOAD_PACK = "git-upload-pack"
    RECEIVE_PACK = "git-receive-pack"


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository that the asker may use for the service.

    Attributes:
        repository: the git directory.
        actor: passed on to the push receiver.
        remote_user: the name for hooks and reflogs; None when nobody is logged in.
        path: the repository's path in the URL, as hooks and logs show it.
        shows: which refs a push may know of; None for all. The others are not listed to it, and
            refused by name, whatever objects are here. The objects themselves are shared: who
            knows the id of a commit can have a ref of their own point there.
        is_ours: no other program writes this repository: leftovers of a crash may be removed.
    """

    repository: Path
    actor: object = None
    remote_user: str | None = None
    path: str = ""
    shows: Callable[[bytes], bool] | None = None
    is_ours: bool = False


class GitAccess(Protocol):
    """Resolver and authoriser in one."""

    async def open(self, request: web.Request, path: str, service: Service, /) -> Opened:
        """Find the repository of a URL's path (`acme-store.git`), if the asker may use it.

        `path` is percent-decoded, has no leading slash, and is relative with no empty, `.` or
        `..` part.

        Raises:
            NotAuthenticatedError: somebody must log in first, whether it exists or not.
            NotAllowedError: the asker may know of it, and not do this.
            NotFoundError: it is not there, or the asker may not know of it.
            TooManyRequestsError: the asker has to wait.
            NoRoomError: there is no room for a push.
        """
