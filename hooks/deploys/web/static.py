"""A static site: a release's files, answered over HTTP straight from its folder.

A request's path never touches the file system: it is looked up in the verified manifest, and only
a file that stands there is opened.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from hooks.deploys.web import pages
from hooks.deploys.web.preconditions import (
    ByteRange,
    RangeUnsatisfiableError,
    http_date,
    precondition_status,
    range_applies,
    wanted_range,
)
from hooks.deploys.web.static_index import Redirect, StaticFile, StaticIndex
from hooks.http_server import SERVER

CACHE_CONTROL: Final = "public, max-age=0, must-revalidate"
"""A release may be replaced at any moment, so a cache asks each time; the ETag makes that cheap."""
INLINE_BYTES_MAX: Final = 128 * 1024
"""Files up to this size are read at once; larger ones go out by sendfile."""
_BASE_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": CACHE_CONTROL,
    "Server": SERVER,
    "X-Content-Type-Options": "nosniff",
}

_log = structlog.get_logger()


class StaticSite:
    """A static release that answers requests.

    Args:
        root: The verified release folder.
        index: The files of its manifest.
        modified_s: `Last-Modified` of every file, in seconds since 1970: a whole second after the
            environment began to serve this release. The files' own times follow from their
            digests, and a rollback brings older ones back.
    """

    def __init__(self, root: Path, index: StaticIndex, *, modified_s: int) -> None:
        self._index = index
        self._modified_s = modified_s
        self._last_modified = http_date(modified_s)
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def running(self) -> None:
        """Nothing runs here."""

    def hurry(self) -> None:
        """Do nothing: every answer has an end."""

    async def close(self, *, grace_s: float) -> None:  # noqa: ARG002 - nothing runs here
        """Let go of the folder. A request in flight has opened its file already: nothing here
        waits before that.
        """
        os.close(self._root_fd)

    async def respond(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Answer a request for `target`: a raw path with its query."""
        if request.method not in ("GET", "HEAD"):
            return pages.method_not_allowed()
        path, mark, query = target.partition("?")
        found = self._index.find(path)
        if isinstance(found, Redirect):
            return self._redirect(found.location + mark + query)
        if found is None:
            found = self._index.fallback(path)
        if found is None:
            return await self._not_found(request)
        return await self._file(request, found)

    def _redirect(self, location: str) -> web.Response:
        return web.Response(
            status=HTTPStatus.MOVED_PERMANENTLY,
            headers={**_BASE_HEADERS, "Location": location},
        )

    async def _not_found(self, request: web.BaseRequest) -> web.StreamResponse:
        own = self._index.not_found_page()
        fd = self._open(own) if own is not None else None
        if own is None or fd is None:
            return pages.not_found()
        headers = {**_BASE_HEADERS, "Content-Type": own.content_type}
        whole = ByteRange(0, own.size_bytes - 1)
        return await _send(request, HTTPStatus.NOT_FOUND, headers, fd, whole)

    async def _file(self, request: web.BaseRequest, file: StaticFile) -> web.StreamResponse:
        headers = {**_BASE_HEADERS, "ETag": file.etag, "Accept-Ranges": "bytes"}
        last_modified = None
        if time.time() >= self._modified_s:  # never a time in the future
            headers["Last-Modified"] = last_modified = self._last_modified
        status = precondition_status(request.headers, file.etag, self._modified_s)
        if status is not None:
            return web.Response(status=status, headers=headers)
        try:
            part = (
                wanted_range(request.headers.get("Range"), file.size_bytes)
                if request.method == "GET"
                and range_applies(request.headers, file.etag, last_modified)
                else None
            )
        except RangeUnsatisfiableError:
            headers["Content-Range"] = f"bytes */{file.size_bytes}"
            return web.Response(status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
        headers["Content-Type"] = file.content_type
        if part is not None:
            headers["Content-Range"] = f"bytes {part.first}-{part.last}/{file.size_bytes}"
        return await self._body(request, file, part, headers)

    async def _body(
        self,
        request: web.BaseRequest,
        file: StaticFile,
        part: ByteRange | None,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        fd = self._open(file)
        if fd is None:
            return pages.damaged_file()
        status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
        return await _send(request, status, headers, fd, part or ByteRange(0, file.size_bytes - 1))

    def _open(self, file: StaticFile) -> int | None:
        """Open a file; None when `stat` already shows that it is not the released one any more.

        The full check was made at the roll and is made again at each boot. Size and time follow
        from the digest, so a stray write into a folder that is being served shows here.
        """
        try:
            fd = os.open(
                file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root_fd
            )
        except OSError as error:
            _log.error("released_file_unreadable", path=file.path, reason=str(error))
            return None
        found = os.fstat(fd)
        if found.st_size != file.size_bytes or int(found.st_mtime) != file.mtime_s:
            _log.error("released_file_damaged", path=file.path)
            os.close(fd)
            return None
        return fd


async def _send(
    request: web.BaseRequest, status: HTTPStatus, headers: dict[str, str], fd: int, part: ByteRange
) -> web.StreamResponse:
    """Answer with a part of a file, which is closed."""
    try:
        if request.method == "HEAD":
            headers["Content-Length"] = str(part.count)
            return web.Response(status=status, headers=headers)
        if part.count <= INLINE_BYTES_MAX:
            body = os.pread(fd, part.count, part.first)
            return web.Response(status=status, headers=headers, body=body)
        return await _send_file(request, status, headers, fd, part)
    finally:
        os.close(fd)


async def _send_file(
    request: web.BaseRequest, status: HTTPStatus, headers: dict[str, str], fd: int, part: ByteRange
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = part.count
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    with open(fd, "rb", buffering=0, closefd=False) as stream:  # noqa: ASYNC230 - already open
        await asyncio.get_running_loop().sendfile(transport, stream, part.first, part.count)
    await response.write_eof()
    return response
