"""Ordinary repositories below a directory, for `python -m gitd.git`."""

from __future__ import annotations

import os
from pathlib import Path

from aiohttp import web

from gitd.git.access import Opened, Service
from gitd.git.errors import NotFoundError
from storage.git.repository import is_repository

_FORMS = ("/.git", "", ".git/.git", ".git")  # in the order of git's enter_repo


class PlainAccess:
    """Serves every repository below `root` to everybody.

    Args:
        root: nothing outside of it is ever served, not by links either.
        remote_user_header: names the header that carries who a front has authenticated; its
            presence allows pushes where `http.receivepack` is not set.
    """

    def __init__(self, root: Path, remote_user_header: str | None = None) -> None:
        self._root = root.resolve()
        self._remote_user_header = remote_user_header

    async def open(self, request: web.Request, path: str, _service: Service, /) -> Opened:
        user = request.headers.get(self._remote_user_header) if self._remote_user_header else None
        return Opened(repository=self._find(path), remote_user=user or None, path=path)

    def _find(self, path: str) -> Path:
        for form in _FORMS:
            candidate = f"{self._root}/{path}{form}"
            if not is_repository(candidate):
                continue
            found = Path(os.path.realpath(candidate))
            if found == self._root or not found.is_relative_to(self._root):
                raise NotFoundError
            return found
        raise NotFoundError
