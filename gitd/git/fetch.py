"""What a client asks of upload-pack, and the sending of the pack that answers it.

Versions 0 and 2 differ in how they ask and acknowledge (`upload.py`, `upload_v2.py`); from the
wants to the last byte of the pack they are the same, and that is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from gitd.git.access import Service
from gitd.git.advertisement import RefViews, VisibleRefs
from gitd.git.errors import GitRequestError
from gitd.git.limits import GitLimits
from gitd.git.pkt_line import pkt_line
from gitd.git.side_band import SideBandAnswer
from gitd.git.workers import PackWorkers, WorkerLostError
from storage.git.errors import RepositoryError
from storage.git.object_filter import FilterError, parse_filter
from storage.git.object_formats import NULL_OID
from storage.git.pack_builder import BuiltPack, PackTask, build_pack, ready_pack
from storage.git.repository import Repository
from storage.git.shallow import Borders, DeepenError, Depth, all_reach_some, borders_after
from storage.git.walk import reachable_among

READ_BYTES = 60 * 1024 * 4
CACHED_COUNT_MAX = 32
CACHED_BYTES_MAX = 2 << 30


class FetchRefusedError(GitRequestError):
    """A fetch that is answered with `ERR <message>`."""


@dataclass(slots=True)
class FetchRequest:
    """A fetch, version-independent. Oids are raw.

    Attributes:
        shallow: the client's own borders.
        want_refs: names wanted instead of ids.
        is_done: the client negotiates no further.
        all_on_bands: every line of the answer goes on band 1 (`sideband-all`).
        uri_protocols: packs may be named by URLs of these.
        elsewhere: objects that a URL has -> `<pack hash> <url>`.
    """

    wants: list[bytes] = field(default_factory=list)
    want_refs: list[bytes] = field(default_factory=list)
    haves: list[bytes] = field(default_factory=list)
    shallow: list[bytes] = field(default_factory=list)
    depth: Depth = field(default_factory=Depth)
    filter_spec: str | None = None
    is_done: bool = False
    may_thin: bool = False
    may_offset: bool = False
    no_progress: bool = False
    with_tags: bool = False
    waits_for_done: bool = False
    all_on_bands: bool = False
    uri_protocols: list[str] = field(default_factory=list)
    elsewhere: dict[bytes, str] = field(default_factory=dict)

    @property
    def deepens(self) -> bool:
        return self.depth.commits is not None or self.depth.is_by_selection


class DepthWish:
    """Collects the deepen lines of a request."""

    def __init__(self) -> None:
        self._commits: int | None = None
        self._is_relative = False
        self._since: int | None = None
        self._without: list[bytes] = []

    def take(self, line: bytes, view: VisibleRefs) -> bool:
        """Take a line if it is about depth.

        Raises:
            FetchRefusedError: it is, and it is wrong.
        """
        word, _, value = line.partition(b" ")
        text = value.decode("utf-8", "replace")
        match word:
            case b"deepen":
                self._commits = _positive(text, f"Invalid deepen: {line.decode('latin-1')}")
            case b"deepen-since":
                self._since = _positive(text, f"Invalid deepen-since: {line.decode('latin-1')}")
            case b"deepen-not":
                self._without.append(_ref_named(value, view))
            case b"deepen-relative":
                self._is_relative = True
            case _:
                return False
        return True

    def depth(self) -> Depth:
        """Return the whole wish.

        Raises:
            FetchRefusedError: its parts exclude each other.
        """
        if self._commits is not None and (self._since is not None or self._without):
            raise FetchRefusedError(
                "upload-pack: deepen and deepen-since (or deepen-not) cannot be used together"
            )
        return Depth(self._commits, self._is_relative, self._since, tuple(self._without))


def _positive(text: str, message: str) -> int:
    if not text.isdigit() or len(text) > 18 or int(text) == 0:
        raise FetchRefusedError(f"upload-pack: {message}")
    return int(text)


def _ref_named(name: bytes, view: VisibleRefs) -> bytes:
    for full in (name, b"refs/" + name, b"refs/tags/" + name, b"refs/heads/" + name):
        oid = view.values.get(full)
        if oid is not None:
            return oid
    raise FetchRefusedError(
        f"upload-pack: deepen-not is not a ref: {name.decode('utf-8', 'replace')}"
    )


def parse_oid(digits: bytes, what: str) -> bytes:
    """Parse 40 hex digits.

    Raises:
        FetchRefusedError: they are none; `what` names the line.
    """
    try:
        oid = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        oid = b""
    if len(oid) != len(NULL_OID):
        shown = digits[:80].decode("latin-1")
        raise FetchRefusedError(f"upload-pack: protocol error, expected an id in '{what} {shown}'")
    return oid


def checked_filter(spec: bytes, repository: Repository) -> str:
    """Return a filter that is offered and understood.

    Raises:
        FetchRefusedError: it is not.
    """
    text = spec.decode("utf-8", "replace")
    try:
        parsed = parse_filter(text)
    except FilterError as error:
        raise FetchRefusedError(str(error)) from error
    config = repository.config
    allowed = config.flag("uploadpackfilter.allow", default=True)
    kinds = {
        "blob:none": parsed.blob_bytes_limit == 0,
        "blob:limit": parsed.blob_bytes_limit not in (None, 0),
        "tree": parsed.tree_depth is not None,
        "object:type": parsed.kind is not None,
    }
    for name, is_used in kinds.items():
        if is_used and not config.flag(f"uploadpackfilter.{name}.allow", default=allowed):
            raise FetchRefusedError(f"filter '{name}' not supported")
    if text.startswith("combine:") and not config.flag(
        "uploadpackfilter.combine.allow", default=allowed
    ):
        raise FetchRefusedError("filter 'combine' not supported")
    depth_max = config.number("uploadpackfilter.tree.maxdepth")
    if parsed.tree_depth is not None and depth_max is not None and parsed.tree_depth > depth_max:
        raise FetchRefusedError(
            f"tree filter allows max depth {depth_max}, but got {parsed.tree_depth}"
        )
    return text


# thoughts about the repository: all blocking, run in a thread


def require_wants(repository: Repository, wants: Iterable[bytes]) -> None:
    """Check that every wanted object exists.

    Raises:
        FetchRefusedError: one does not.
    """
    for oid in wants:
        if not repository.objects.contains(oid):
            raise FetchRefusedError(f"upload-pack: not our ref {oid.hex()}")


def require_reachable(repository: Repository, view: VisibleRefs, wants: Iterable[bytes]) -> None:
    """Check that every wanted object may be wanted: a visible tip, or reachable from one.

    Raises:
        FetchRefusedError: one is not, or is not there at all.
    """
    config = repository.config
    tips = {*view.values.values(), *view.peeled.values()}
    if view.head is not None:
        tips.add(view.head)
    if config.flag("uploadpack.allowtipsha1inwant"):
        tips |= set(view.snapshot.values.values())
    others = {oid for oid in wants if oid not in tips}
    if not others:
        return
    require_wants(repository, others)
    if config.flag("uploadpack.allowanysha1inwant"):
        return
    objects = repository.objects
    try:
        reached = reachable_among(
            others,
            {objects.peel(oid)[1] for oid in view.values.values()},
            objects,
            cut=repository.shallow(),
        )
    except RepositoryError:
        reached = set()
    for oid in others - reached:
        raise FetchRefusedError(f"upload-pack: not our ref {oid.hex()}")


def find_borders(repository: Repository, fetch: FetchRequest) -> Borders:
    """Find the shallow borders after a fetch.

    Raises:
        FetchRefusedError: the wished depth leaves nothing.
    """
    server = repository.shallow()
    if not fetch.deepens and not fetch.shallow and not server:
        return Borders()
    if not fetch.deepens and not server:
        return Borders(cut=frozenset(fetch.shallow))
    try:
        return borders_after(
            repository.objects,
            wants=fetch.wants,
            depth=fetch.depth,
            client=fetch.shallow,
            server=server,
        )
    except DeepenError as error:
        raise FetchRefusedError(f"upload-pack: {error}") from error


def shallow_lines(borders: Borders) -> list[bytes]:
    """Render the news about borders."""
    return [b"shallow " + oid.hex().encode() for oid in borders.shallow] + [
        b"unshallow " + oid.hex().encode() for oid in borders.unshallow
    ]


def common_haves(repository: Repository, fetch: FetchRequest) -> list[bytes]:
    """Return those of the client's objects that are here too."""
    contains = repository.objects.contains
    return [oid for oid in dict.fromkeys(fetch.haves) if contains(oid)]


def is_ready(repository: Repository, fetch: FetchRequest, common: list[bytes]) -> bool:
    """Say whether more negotiation would hardly make the pack smaller."""
    cut = {*repository.shallow(), *fetch.shallow}
    return all_reach_some(repository.objects, fetch.wants, common, cut=cut)


# the pack


class ClonePacks:
    """Packs that answer whole clones, kept for the next one. What is wanted never changes: an id
    stands for one history, so that a kept pack is right for as long as it is there.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, BuiltPack] = OrderedDict()
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def new_path(self) -> str:
        """Return a path for a pack to be written to."""
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="gitd-packs-")
        self._count += 1
        return f"{self._directory.name}/{self._count}.pack"

    def find(self, key: bytes) -> tuple[BuiltPack, int] | None:
        """Return a kept pack and a descriptor of its file, open; or None."""
        built = self._kept.get(key)
        if built is None or built.path is None:
            return None
        try:
            descriptor = os.open(built.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            del self._kept[key]
            return None
        if os.fstat(descriptor).st_size != built.size_bytes:
            os.close(descriptor)
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return built, descriptor

    def keep(self, key: bytes, built: BuiltPack) -> None:
        """Keep a pack; the oldest ones go when there are too many."""
        self._kept[key] = built
        while len(self._kept) > 1 and (
            len(self._kept) > CACHED_COUNT_MAX
            or sum(one.size_bytes for one in self._kept.values() if one.is_temporary)
            > CACHED_BYTES_MAX
        ):
            _, oldest = self._kept.popitem(last=False)
            drop(oldest)

    def close(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()


def drop(built: BuiltPack) -> None:
    """Delete the file of a pack that was made for one fetch."""
    if built.is_temporary and built.path is not None:
        with contextlib.suppress(FileNotFoundError):
            Path(built.path).unlink()


def clone_key(task: PackTask) -> bytes:
    """Name a clone by all that decides what is in its pack."""
    parts = [task.repository.encode(), *sorted(task.wants), b"|", *sorted(task.cut), b"|"]
    parts += [tag + target for tag, target in sorted(task.tags)]
    parts += [b"|", *task.leave_out, b"|"]
    parts += [(task.filter_spec or "").encode(), b"o" if task.may_offset else b""]
    return hashlib.sha256(b"\0".join(parts)).digest()


class PackSender:
    """Makes packs and sends them."""

    def __init__(self, views: RefViews, limits: GitLimits, workers: PackWorkers) -> None:
        self._views = views
        self._limits = limits
        self._workers = workers
        self._clones = ClonePacks()

    def close(self) -> None:
        self._clones.close()

    async def send(
        self,
        repository: Repository,
        fetch: FetchRequest,
        common: list[bytes],
        borders: Borders,
        answer: SideBandAnswer,
        *,
        announce: Callable[[BuiltPack], bytes] | None = None,
    ) -> None:
        """Send the pack of a fetch, with progress, and end the answer.

        `announce` makes what stands before the pack, once it is known.
        """
        try:
            task = await asyncio.to_thread(self._task, repository, fetch, common, borders)
            built, descriptor = await self._build(repository, task)
        except (RepositoryError, WorkerLostError, FilterError, OSError) as error:
            await answer.fail(f"upload-pack: {error}")
            await answer.finish()
            return
        try:
            if announce is not None:
                await answer.write(announce(built))
            if not fetch.no_progress:
                await answer.progress(_progress(built))
            if descriptor is None:
                await answer.send(built.data)
            else:
                await self._send_file(descriptor, built, answer)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        await answer.end()

    def _task(
        self,
        repository: Repository,
        fetch: FetchRequest,
        common: list[bytes],
        borders: Borders,
    ) -> PackTask:
        tags: list[tuple[bytes, bytes]] = []
        if fetch.with_tags:
            view = self._views.visible(repository, Service.UPLOAD_PACK)
            tags = [
                (oid, view.peeled[oid])
                for name, oid in view.values.items()
                if oid in view.peeled and name.startswith(b"refs/tags/")
            ]
        return PackTask(
            repository=os.fspath(repository.path),
            wants=[*dict.fromkeys([*fetch.wants, *borders.more_wants])],
            haves=common,
            cut=sorted({*borders.cut, *fetch.shallow}),
            tags=tags,
            filter_spec=fetch.filter_spec,
            leave_out=sorted(fetch.elsewhere),
            may_thin=fetch.may_thin,
            may_offset=fetch.may_offset,
        )

    async def _build(
        self, repository: Repository, task: PackTask, *, is_retry: bool = False
    ) -> tuple[BuiltPack, int | None]:
        is_clone = not task.haves
        key = clone_key(task) if is_clone else b""
        if is_clone and (found := self._clones.find(key)) is not None:
            return found
        ready = await asyncio.to_thread(ready_pack, task, repository) if is_clone else None
        if ready is not None:
            built = ready
        elif self._is_small(repository):
            built = await asyncio.to_thread(build_pack, task, repository)
        else:
            path = self._clones.new_path()
            built = await self._workers.pack(replace(task, out_path=path))
        if built.path is None:
            return built, None
        try:
            descriptor = os.open(built.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a stored pack that was joined with others meanwhile
            if is_retry:
                raise
            return await self._build(repository, replace(task, may_verbatim=False), is_retry=True)
        if is_clone:
            self._clones.keep(key, built)
        else:
            drop(built)
        return built, descriptor

    def _is_small(self, repository: Repository) -> bool:
        packs = repository.objects.packs()
        return (
            sum(pack.count for pack in packs) <= self._limits.thread_objects_max
            and sum(len(pack.bytes_map) for pack in packs) <= self._limits.thread_pack_bytes_max
        )

    async def _send_file(self, descriptor: int, built: BuiltPack, answer: SideBandAnswer) -> None:
        at = 0
        while at < built.size_bytes and not answer.is_gone:
            data = os.pread(descriptor, READ_BYTES, at)
            if not data:
                await answer.fail("upload-pack: the pack ended early")
                return
            at += len(data)
            await answer.send(data)


def _progress(built: BuiltPack) -> bytes:
    count, delta = built.object_count, built.delta_count
    return (
        f"Enumerating objects: {count}, done.\n"
        f"Counting objects: 100% ({count}/{count}), done.\n"
        f"Total {count} (delta {delta}), reused {built.reused_count} (delta {delta})\n"
    ).encode()


def error_packet(message: str) -> bytes:
    """Render `ERR message`, which git shows as `fatal: remote error: message`."""
    return pkt_line(b"ERR " + message.encode("utf-8", "replace")[:60_000])
