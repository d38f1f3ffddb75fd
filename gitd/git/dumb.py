"""The dumb protocol: a repository's files as they are, for clients that ask for nothing else.

Only for repositories whose operator wants it (`http.getanyfile`): whoever has the files has every
object, those of hidden refs too.
Source: gitprotocol-http(5), "Dumb Clients"; git's http-backend.c.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path

from aiohttp import hdrs, web

from gitd.git.access import Service
from gitd.git.advertisement import RefViews
from gitd.git.errors import NotFoundError
from storage.git.repository import Repository

YEAR_S = 31_536_000
_TEXT = "text/plain"
_NEVER_CHANGING = (
    (re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{38,62}"), "application/x-git-loose-object"),
    (re.compile(r"objects/pack/pack-[0-9a-f]{40,64}\.pack"), "application/x-git-packed-objects"),
    (re.compile(r"objects/pack/pack-[0-9a-f]{40,64}\.idx"), "application/x-git-packed-objects-toc"),
)


def dumb_response(
    repository: Repository, views: RefViews, name: str, no_cache: Mapping[str, str]
) -> web.StreamResponse:
    """Answer a GET of a file of a repository. Blocking.

    Args:
        repository: whose file it is.
        views: what shows its refs.
        name: the path below it, one that git's own server offers.
        no_cache: headers for what changes.

    Raises:
        NotFoundError: there is no such file.
    """
    if name == "HEAD":
        return _text(_head(repository), no_cache)
    if name == "info/refs":
        return _text(_refs(repository, views), no_cache)
    if name == "objects/info/packs":
        names = sorted(
            pack.path.with_suffix(".pack").name for pack in repository.objects.own_packs()
        )
        return _text("".join(f"P {pack}\n" for pack in names) + "\n", no_cache)
    for pattern, content_type in _NEVER_CHANGING:
        if pattern.fullmatch(name):
            headers: dict[str, str] = {
                hdrs.CONTENT_TYPE: content_type,
                hdrs.EXPIRES: formatdate(time.time() + YEAR_S, usegmt=True),
                hdrs.CACHE_CONTROL: f"public, max-age={YEAR_S}",
            }
            return _file(repository.path / name, headers)
    return _file(repository.path / name, {**no_cache, hdrs.CONTENT_TYPE: _TEXT})


def _text(text: str, no_cache: Mapping[str, str]) -> web.Response:
    return web.Response(
        body=text.encode("utf-8", "surrogateescape"),
        headers={**no_cache, hdrs.CONTENT_TYPE: _TEXT},
    )


def _file(path: Path, headers: Mapping[str, str]) -> web.StreamResponse:
    if not path.is_file():
        raise NotFoundError
    return web.FileResponse(path, headers=headers)


def _head(repository: Repository) -> str:
    snapshot = repository.refs.snapshot()
    if snapshot.head_target is not None:
        return f"ref: {snapshot.head_target.decode('utf-8', 'surrogateescape')}\n"
    if snapshot.head is None:
        raise NotFoundError
    return f"{snapshot.head.hex()}\n"


def _refs(repository: Repository, views: RefViews) -> str:
    view = views.visible(repository, Service.UPLOAD_PACK)
    lines = []
    for name, oid in view.values.items():
        shown = name.decode("utf-8", "surrogateescape")
        lines.append(f"{oid.hex()}\t{shown}\n")
        if oid in view.peeled:
            lines.append(f"{view.peeled[oid].hex()}\t{shown}^{{}}\n")
    return "".join(lines)
