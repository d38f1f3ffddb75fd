"""upload-pack, protocol versions 0 and 1, stateless: every request tells all wants again.

Source: gitprotocol-pack(5), "Packfile Negotiation"; git's upload-pack.c, get_common_commits().
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gitd.git.access import Service
from gitd.git.advertisement import RefViews, upload_capabilities
from gitd.git.body import BodyReader
from gitd.git.errors import BodyInvalidError
from gitd.git.fetch import (
    DepthWish,
    FetchRefusedError,
    FetchRequest,
    find_borders,
    is_ready,
    parse_oid,
    require_reachable,
    shallow_lines,
    take_filter,
    too_many,
)
from gitd.git.limits import GitLimits
from gitd.git.pack_sender import PackSender
from gitd.git.pkt_line import (
    FLUSH,
    SIDE_BAND_64K_BYTES_MAX,
    SIDE_BAND_BYTES_MAX,
    Marker,
    pkt_line,
)
from gitd.git.side_band import DATA, SideBandAnswer
from storage.git.repository import Repository
from storage.git.shallow import Depth

_NAK = pkt_line(b"NAK\n")
_LOOKS_AT_EACH = 32


class UploadV0:
    """Answers one request of version 0 or 1."""

    def __init__(
        self, repository: Repository, views: RefViews, sender: PackSender, limits: GitLimits
    ) -> None:
        self._repository = repository
        self._views = views
        self._sender = sender
        self._limits = limits
        self._capabilities: frozenset[bytes] = frozenset()

    async def run(self, body: BodyReader, answer: SideBandAnswer) -> None:
        """Read a request and answer it.

        Raises:
            FetchRefusedError: it is wrong; perhaps some lines were answered already.
            BodyInvalidError, BodyTooLargeError, BodyStalledError: see `BodyReader`.
        """
        fetch = await self._read_wants(body)
        if fetch is None:
            await answer.finish()
            return
        repository = self._repository
        borders = await asyncio.to_thread(find_borders, repository, fetch)
        if fetch.deepens:
            lines = b"".join(map(pkt_line, shallow_lines(borders)))
            await answer.write(lines + FLUSH)
        common = await self._negotiate(body, fetch, answer)
        if common is None:
            await answer.finish()
            return
        if b"side-band-64k" in self._capabilities:
            answer.use_bands(SIDE_BAND_64K_BYTES_MAX)
        elif b"side-band" in self._capabilities:
            answer.use_bands(SIDE_BAND_BYTES_MAX)
        answer.keep_alive(band=DATA)
        await self._sender.send(repository, fetch, common, borders, answer)

    async def _read_wants(self, body: BodyReader) -> FetchRequest | None:
        fetch = FetchRequest()
        depth = DepthWish()
        view = await asyncio.to_thread(self._views.visible, self._repository, Service.UPLOAD_PACK)
        while not isinstance(line := await body.pkt(), Marker):
            text = line.removesuffix(b"\n")
            if text.startswith(b"want "):
                if not fetch.wants:
                    self._take_capabilities(text[45:])
                    text = text[:45]
                fetch.wants.append(parse_oid(text[5:45], "want"))
                if len(fetch.wants) > self._limits.wants_max:
                    raise too_many("wants", self._limits.wants_max)
            elif text.startswith(b"shallow "):
                fetch.shallow.append(parse_oid(text[8:], "shallow"))
            elif text.startswith(b"filter ") and b"filter" in self._capabilities:
                take_filter(fetch, text[7:], self._repository)
            elif not depth.take(text, view):
                shown = text[:200].decode("utf-8", "replace")
                raise FetchRefusedError(
                    f"upload-pack: protocol error, expected to get object ID, not '{shown}'"
                )
        if not fetch.wants:
            return None
        if line is Marker.END:
            raise BodyInvalidError("the request ends before its first flush")
        fetch.depth = self._whole_depth(depth)
        can = self._capabilities.__contains__
        fetch.may_thin, fetch.may_offset = can(b"thin-pack"), can(b"ofs-delta")
        fetch.no_progress, fetch.with_tags = can(b"no-progress"), can(b"include-tag")
        fetch.wants = list(dict.fromkeys(fetch.wants))
        await asyncio.to_thread(require_reachable, self._repository, view, fetch.wants)
        return fetch

    def _whole_depth(self, wish: DepthWish) -> Depth:
        depth = wish.depth()
        if b"deepen-relative" in self._capabilities:
            return replace(depth, is_relative=True)
        return depth

    def _take_capabilities(self, text: bytes) -> None:
        offered = {name.split(b"=")[0] for name in upload_capabilities(self._repository)}
        asked = frozenset(text.split())
        ours = b"object-format=" + self._repository.object_format.encode()
        for capability in asked:
            if capability.startswith(b"object-format=") and capability != ours:
                raise FetchRefusedError("upload-pack: unsupported object format")
        self._capabilities = frozenset(name for name in asked if name in offered)

    # negotiation

    async def _negotiate(
        self, body: BodyReader, fetch: FetchRequest, answer: SideBandAnswer
    ) -> list[bytes] | None:
        """Answer the haves; return what is common, or None when the client will ask again."""
        talk = _Talk(self._repository, fetch, self._capabilities)
        haves: list[bytes] = []
        while True:
            line = await body.pkt()
            if line is Marker.FLUSH:
                reply, is_over = await asyncio.to_thread(talk.batch, haves)
                haves.clear()
            elif line is Marker.END:
                await answer.write(await asyncio.to_thread(talk.replies_to, haves))
                return None
            elif isinstance(line, Marker):
                raise FetchRefusedError("upload-pack: expected SHA1 list, got a marker")
            else:
                text = line.removesuffix(b"\n")
                if text == b"done":
                    if haves:
                        await answer.write(await asyncio.to_thread(talk.replies_to, haves))
                    await answer.write(talk.done())
                    return talk.common
                if not text.startswith(b"have "):
                    shown = text[:200].decode("utf-8", "replace")
                    raise FetchRefusedError(f"upload-pack: expected SHA1 list, got '{shown}'")
                haves.append(parse_oid(text[5:], "have"))
                if len(talk.common) + len(haves) > self._limits.haves_max:
                    raise too_many("haves", self._limits.haves_max)
                continue
            await answer.write(reply)
            if is_over:
                return talk.common


class _Talk:
    """One round of acknowledgments, as git's get_common_commits gives them."""

    def __init__(
        self, repository: Repository, fetch: FetchRequest, capabilities: frozenset[bytes]
    ) -> None:
        self._repository = repository
        self._fetch = fetch
        self._is_detailed = b"multi_ack_detailed" in capabilities
        self._is_multi = self._is_detailed or b"multi_ack" in capabilities
        self._no_done = b"no-done" in capabilities
        self.common: list[bytes] = []
        self._seen: set[bytes] = set()
        self._replies: list[bytes] = []
        self._got_common = self._got_other = self._sent_ready = False
        self._look_count = self._looked_at = 0
        self._found_ready = False

    def replies_to(self, haves: list[bytes]) -> bytes:
        """Take haves behind which no flush stands; return what is to be said. Blocking."""
        for oid in haves:
            self._have(oid)
        return self._take_replies()

    def _have(self, oid: bytes) -> None:
        if not self._repository.objects.contains(oid):
            self._got_other = True
            if self._is_multi and self._is_ready():
                self._sent_ready |= self._is_detailed
                self._ack(oid, b" ready" if self._is_detailed else b" continue")
            return
        self._got_common = True
        if oid not in self._seen:
            self._seen.add(oid)
            self.common.append(oid)
        if self._is_detailed:
            self._ack(oid, b" common")
        elif self._is_multi:
            self._ack(oid, b" continue")
        elif len(self.common) == 1:
            self._ack(oid, b"")

    def batch(self, haves: list[bytes]) -> tuple[bytes, bool]:
        """Take haves and a flush: the reply, and whether the pack follows at once. Blocking."""
        for oid in haves:
            self._have(oid)
        last = self.common[-1] if self.common else None
        if self._is_detailed and self._got_common and not self._got_other and self._is_ready():
            assert last is not None
            self._sent_ready = True
            self._ack(last, b" ready")
        if not self.common or self._is_multi:
            self._replies.append(_NAK)
        is_over = self._no_done and self._sent_ready
        if is_over and last is not None:
            self._ack(last, b"")
        self._got_common = self._got_other = False
        return self._take_replies(), is_over

    def done(self) -> bytes:
        """Answer `done`."""
        if not self.common:
            return _NAK
        if self._is_multi:
            return pkt_line(b"ACK " + self.common[-1].hex().encode() + b"\n")
        return b""

    def _take_replies(self) -> bytes:
        replies, self._replies = self._replies, []
        return b"".join(replies)

    def _ack(self, oid: bytes, status: bytes) -> None:
        self._replies.append(pkt_line(b"ACK " + oid.hex().encode() + status + b"\n"))

    def _is_ready(self) -> bool:
        """Look again when more is common: at first each time, then when it has grown by a part.

        Each look may walk the whole history, and a client may say one have after the other.
        """
        step = 1 if self._look_count < _LOOKS_AT_EACH else self._looked_at // 4
        if not self._found_ready and len(self.common) >= self._looked_at + step:
            self._looked_at = len(self.common)
            self._look_count += 1
            self._found_ready = is_ready(self._repository, self._fetch, self.common)
        return self._found_ready
