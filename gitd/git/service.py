"""The git room's door: smart HTTP on aiohttp.

Register `GitService.handler` for every method and path that may be a repository's
(`app.router.add_route("*", "/{path:.+}", service.handler)`) and call `close` at the end.
Source: gitprotocol-http(5); git's http-backend.c.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientConnectionError, hdrs, web

from gitd.git.access import GitAccess, Opened, Service
from gitd.git.advertisement import (
    RefViews,
    protocol_version,
    v2_advertisement,
)
from gitd.git.body import BodyReader
from gitd.git.dumb import dumb_response
from gitd.git.errors import (
    BodyInvalidError,
    BodyStalledError,
    BodyTooLargeError,
    GitRequestError,
    NoRoomError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    TooManyRequestsError,
    UnsupportedBodyError,
)
from gitd.git.fetch import FetchRefusedError, error_packet
from gitd.git.incoming import drain
from gitd.git.limits import GitLimits
from gitd.git.pack_sender import PackSender
from gitd.git.pkt_line import SIDE_BAND_64K_BYTES_MAX
from gitd.git.push import PushReceiver
from gitd.git.receive import ReceivePack
from gitd.git.side_band import SideBandAnswer, StreamedAnswer, write_pieces
from gitd.git.tally import GitTally
from gitd.git.upload import UploadV0
from gitd.git.upload_v2 import UploadV2
from gitd.git.workers import PackWorkers
from storage.git.errors import (
    RepositoryCorruptError,
    RepositoryError,
    RepositoryNotFoundError,
    RepositoryUnsupportedError,
)
from storage.git.repository import Repository, RepositoryCache

NO_CACHE = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}
CONCLUDE_S_MIN = 1.0  # for a push whose refs are just moving, when the time to stop is over
DUMB_REFUSAL = "Dumb HTTP is not supported; use git >= 1.6.6\n"
FEW_REFS = 100  # they are listed in less time than it takes to have a thread do it
_AT_ONCE_BYTES_MAX = 32 << 10  # what a connection takes in without waiting for its reader
_GET_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)
_FORBIDDEN_IN_PATH = re.compile(r"%(?:2f|5c|00)", re.IGNORECASE)
_DUMB_FILE = re.compile(
    r"(?P<path>.+)/(?P<name>HEAD|objects/(?:info/[^/]+|[0-9a-f]{2}/[0-9a-f]{38,62}"
    r"|pack/pack-[0-9a-f]{40,64}\.(?:pack|idx)))"
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a URL asks for.

    Attributes:
        service: None for info/refs, where the query names it, and for files.
        file: of the dumb protocol, below the repository.
    """

    path: str
    service: Service | None = None
    file: str | None = None


class GitService:
    """Answers smart HTTP for whatever repositories its access opens.

    Args:
        access: finds repositories and says who may use them.
        receiver: judges pushes, and acts on those that landed.
        limits: bounds on everything that a client can make grow or wait.
        serves_files: speak the dumb protocol too, where `http.getanyfile` does not say no.
        repositories: open repositories; share it with whoever else reads the same ones.
        pack_folder: where packs for large fetches are made, on a disk with room for them; by
            default the system's place for temporary files.
        environ: what hooks find in their environment, beside what git adds; whose GIT_COMMITTER_*
            stands in reflogs.
    """

    def __init__(
        self,
        access: GitAccess,
        receiver: PushReceiver,
        limits: GitLimits | None = None,
        *,
        serves_files: bool = False,
        repositories: RepositoryCache | None = None,
        pack_folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._access = access
        self._serves_files = serves_files
        self._limits = limits or GitLimits()
        self._repositories = repositories or RepositoryCache()
        self.tally = GitTally()
        self._views = RefViews()
        self._workers = PackWorkers(self._limits.worker_count_max)
        folder = pack_folder or Path(tempfile.gettempdir())
        self._sender = PackSender(self._views, self._limits, self._workers, folder, self.tally)
        environ = {"PATH": os.defpath} if environ is None else environ
        self._receive = ReceivePack(receiver, self._limits, self._workers, environ, self.tally)
        self._stop_at = 0.0

    async def warm(self) -> None:
        """Start what the first large push would wait for. Optional."""
        await self._workers.warm()

    def begin_stop(self, drain_s: float) -> None:
        """Say that the server stops: pushes that are being concluded have this time left."""
        self._stop_at = asyncio.get_running_loop().time() + drain_s

    async def close(self) -> None:
        """Let pushes end that are being concluded, end the workers, drop kept packs."""
        left_s = self._stop_at - asyncio.get_running_loop().time()
        await self._receive.close(max(left_s, CONCLUDE_S_MIN))
        await self._workers.close()
        await self._sender.close()

    async def handler(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; never raises for what a client can do."""
        try:
            asked = _asked(request)
            if asked.file is not None:
                return await self._file(request, asked.path, asked.file)
            if asked.service is None:
                return await self._info_refs(request, asked.path)
            return await self._service(request, asked.path, asked.service)
        except GitRequestError as error:
            return _refusal(error)
        except RepositoryNotFoundError:
            return _text(404)
        except RepositoryUnsupportedError as error:
            return _text(403, f"{error}\n")
        except RepositoryError as error:
            return _text(500, f"{error}\n")

    async def _open(
        self, request: web.Request, path: str, service: Service
    ) -> tuple[Opened, Repository]:
        opened = await self._access.open(request, path, service)
        # Nearly always the request before this one has just opened it: no thread is needed then.
        repository = self._repositories.current(opened.repository)
        if repository is None:
            repository = await asyncio.to_thread(self._repositories.open, opened.repository)
        _require_allowed(repository, opened, service)
        return opened, repository

    # info/refs

    async def _info_refs(self, request: web.Request, path: str) -> web.StreamResponse:
        name = request.query.get("service")
        if name is None:
            return await self._file(request, path, "info/refs")
        try:
            service = Service(name)
        except ValueError:
            raise NotAllowedError(f"Unsupported service: '{name[:100]}'\n") from None
        opened = await self._access.open(request, path, service)
        version = protocol_version(request.headers.get("Git-Protocol", ""))
        parts = self._known_advertisement(opened, service, version)
        if parts is None:
            parts = await asyncio.to_thread(self._opened_advertisement, opened, service, version)
        content_type = f"application/x-{service.value}-advertisement"
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers={**NO_CACHE, hdrs.CONTENT_TYPE: content_type})
        return await _send_whole(request, parts, content_type, self._limits.idle_s)

    def _known_advertisement(
        self, opened: Opened, service: Service, version: int
    ) -> tuple[bytes, ...] | None:
        """Return what needs no more than a few calls of the system; None for all else."""
        repository = self._repositories.current(opened.repository)
        if repository is None or opened.shows is not None:
            return None
        _require_allowed(repository, opened, service)
        if service is Service.UPLOAD_PACK and version == 2:
            return (v2_advertisement(repository),)
        version = _refs_version(version)
        return self._views.known_advertisement(repository, service, version, refs_max=FEW_REFS)

    def _opened_advertisement(
        self, opened: Opened, service: Service, version: int
    ) -> tuple[bytes, ...]:
        repository = self._repositories.open(opened.repository)
        _require_allowed(repository, opened, service)
        if service is Service.UPLOAD_PACK and version == 2:
            return (v2_advertisement(repository),)
        version = _refs_version(version)
        return self._views.refs_advertisement(repository, service, version, shows=opened.shows)

    async def _file(self, request: web.Request, path: str, name: str) -> web.StreamResponse:
        opened = await self._access.open(request, path, Service.UPLOAD_PACK)
        if not self._serves_files:
            raise NotAllowedError(DUMB_REFUSAL)
        repository = await asyncio.to_thread(self._repositories.open, opened.repository)
        if not repository.config.flag("http.getanyfile", default=True):
            raise NotAllowedError
        return await asyncio.to_thread(dumb_response, repository, self._views, name, NO_CACHE)

    # the two services

    async def _service(
        self, request: web.Request, path: str, service: Service
    ) -> web.StreamResponse:
        opened, repository = await self._open(request, path, service)
        _require_type(request, service)
        response = StreamedAnswer(
            headers={**NO_CACHE, hdrs.CONTENT_TYPE: f"application/x-{service.value}-result"}
        )
        if service is Service.RECEIVE_PACK:
            return await self._receive.answer(request, opened, repository, response)
        return await self._upload(request, repository, response)

    async def _upload(
        self, request: web.Request, repository: Repository, response: web.StreamResponse
    ) -> web.StreamResponse:
        limits = self._limits
        body = BodyReader(request, idle_s=limits.idle_s, bytes_max=limits.request_bytes_max)
        is_v2 = protocol_version(request.headers.get("Git-Protocol", "")) == 2
        answer = SideBandAnswer(
            request,
            response,
            bytes_max=SIDE_BAND_64K_BYTES_MAX if is_v2 else 0,
            keepalive_s=float(repository.config.number("uploadpack.keepalive", default=5) or 0),
            stall_s=limits.idle_s,
        )
        upload = (UploadV2 if is_v2 else UploadV0)(repository, self._views, self._sender, limits)
        async with answer:
            try:
                await upload.run(body, answer)
            except FetchRefusedError as error:
                await drain(body, limits.request_bytes_max)
                await answer.write(error_packet(error.message))
                await answer.finish()
            except BodyInvalidError as error:
                if answer.has_begun or "damaged" not in error.message:
                    await answer.write(error_packet(f"upload-pack: {error.message}"))
                    await answer.finish()
                else:
                    raise
            except RepositoryCorruptError as error:
                await answer.write(error_packet(f"upload-pack: {error}"))
                await answer.finish()
        return response


def _refs_version(version: int) -> int:
    """Return the version in which refs are listed at once: version 2 has no push."""
    return 1 if version == 1 else 0


def _require_allowed(repository: Repository, opened: Opened, service: Service) -> None:
    """Let the repository's own config have its say.

    Raises:
        NotAllowedError: it does not want this service, for this asker.
    """
    wish = repository.config.flag(f"http.{service.value.removeprefix('git-').replace('-', '')}")
    is_pushing = service is Service.RECEIVE_PACK
    if wish is False or (wish is None and is_pushing and opened.remote_user is None):
        raise NotAllowedError
    if is_pushing and repository.object_format != "sha1":
        raise NotAllowedError("A repository with SHA-256 ids takes no pushes here.\n")


def _asked(request: web.Request) -> _Asked:
    """Take a URL apart.

    Raises:
        NotFoundError: it is none of git's, or could mean a place outside of its repository.
        NotAllowedError: it is an archive's.
    """
    path = request.path.removeprefix("/")
    if (
        _FORBIDDEN_IN_PATH.search(request.rel_url.raw_path)
        or "\0" in path
        or any(part in ("", ".", "..") for part in path.split("/"))
    ):
        raise NotFoundError
    if path.endswith("/info/refs"):
        _require_method(request, _GET_METHODS)
        return _Asked(path.removesuffix("/info/refs"))
    for service in Service:
        if path.endswith(f"/{service.value}"):
            _require_method(request, (hdrs.METH_POST,))
            return _Asked(path.removesuffix(f"/{service.value}"), service=service)
    if path.endswith("/git-upload-archive"):
        raise NotAllowedError("Unsupported service: 'git-upload-archive'\n")
    if file := _DUMB_FILE.fullmatch(path):
        _require_method(request, _GET_METHODS)
        return _Asked(file["path"], file=file["name"])
    raise NotFoundError


class _WrongMethodError(GitRequestError):
    def __init__(self, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self.allowed = allowed


def _require_method(request: web.Request, allowed: tuple[str, ...]) -> None:
    if request.method not in allowed:
        raise _WrongMethodError(allowed)


def _require_type(request: web.Request, service: Service) -> None:
    wanted = f"application/x-{service.value}-request"
    got = request.headers.get(hdrs.CONTENT_TYPE, "")
    if got != wanted:
        raise UnsupportedBodyError(
            f"Expected POST with Content-Type '{wanted}', but received '{got[:200]}' instead.\n"
        )


def _refusal(error: GitRequestError) -> web.Response:
    if isinstance(error, NotAuthenticatedError):
        response = _text(401, error.message)
        for challenge in error.challenges:
            response.headers.add(hdrs.WWW_AUTHENTICATE, challenge)
        return response
    if isinstance(error, TooManyRequestsError):
        return _text(429, error.message, error.headers)
    if isinstance(error, _WrongMethodError):
        return _text(405, headers={hdrs.ALLOW: ", ".join(error.allowed)})
    statuses: dict[type[GitRequestError], int] = {
        NotAllowedError: 403,
        NotFoundError: 404,
        UnsupportedBodyError: 415,
        BodyTooLargeError: 413,
        BodyStalledError: 408,
        NoRoomError: 507,
    }
    return _text(statuses.get(type(error), 400), error.message)


def _text(status: int, text: str = "", headers: Mapping[str, str] | None = None) -> web.Response:
    """Make a plain answer; git shows the lines of a text/plain one to its user."""
    if text and not text.endswith("\n"):
        text += "\n"
    response = web.Response(
        status=status,
        body=text.encode("utf-8", "backslashreplace"),  # words of the request may be no UTF-8
        headers={**NO_CACHE, **(headers or {})},
        content_type="text/plain",
        charset="utf-8",
    )
    if status in (400, 408, 413):
        response.force_close()
    return response


async def _send_whole(
    request: web.Request, parts: tuple[bytes, ...], content_type: str, stall_s: float
) -> web.StreamResponse:
    headers = {**NO_CACHE, hdrs.CONTENT_TYPE: content_type}
    size = sum(map(len, parts))
    if size <= _AT_ONCE_BYTES_MAX:
        return web.Response(headers=headers, body=b"".join(parts))
    response = StreamedAnswer(headers=headers)
    response.content_length = size
    try:
        await response.prepare(request)
        for part in parts:
            await write_pieces(response, part, stall_s=stall_s)
        await response.write_eof()
    except (ConnectionError, ClientConnectionError, TimeoutError):
        response.force_close()
    return response
