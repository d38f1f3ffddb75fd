"""What a client asks of upload-pack, and what is thought about it before a pack is made.

Versions 0 and 2 differ in how they ask and acknowledge (`upload.py`, `upload_v2.py`); what is the
same in both is here and in `pack_sender.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gitd.git.advertisement import VisibleRefs
from gitd.git.errors import GitRequestError
from gitd.git.pkt_line import pkt_line
from storage.git.errors import RepositoryError
from storage.git.object_filter import FilterError, parse_filter
from storage.git.object_formats import OID_DIGITS, unhex
from storage.git.repository import Repository
from storage.git.shallow import Borders, DeepenError, Depth, all_reach_some, borders_after
from storage.git.walk import reachable_among

_NUMBER = re.compile("0*[1-9][0-9]{0,17}")


class FetchRefusedError(GitRequestError):
    """A fetch that is answered with `ERR <message>`."""


@dataclass(slots=True)
class FetchRequest:
    """A fetch, version-independent. Oids are raw.

    Attributes:
        shallow: the client's own borders.
        want_refs: names wanted instead of ids, in their order, each once.
        is_done: the client negotiates no further.
        all_on_bands: every line of the answer goes on band 1 (`sideband-all`).
        uri_protocols: packs may be named by URLs of these.
        elsewhere: objects that a URL has -> `<pack hash> <url>`.
    """

    wants: list[bytes] = field(default_factory=list)
    want_refs: dict[bytes, None] = field(default_factory=dict)
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


def too_many(what: str, count_max: int) -> FetchRefusedError:
    """Say so of `wants` or `haves`, of which a request may have so many."""
    return FetchRefusedError(
        f"upload-pack: too many {what}: {count_max} at most (git.{what}_max); "
        "fetch fewer refs at once"
    )


def _positive(text: str, message: str) -> int:
    if not _NUMBER.fullmatch(text):
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
    if not OID_DIGITS.fullmatch(digits):
        shown = digits[:80].decode("latin-1")
        raise FetchRefusedError(f"upload-pack: protocol error, expected an id in '{what} {shown}'")
    return unhex(digits)


def take_filter(fetch: FetchRequest, spec: bytes, repository: Repository) -> None:
    """Take the filter of a fetch.

    Raises:
        FetchRefusedError: it is not offered or not understood, or is another one.
    """
    if fetch.filter_spec is not None:
        raise FetchRefusedError("multiple filter-specs cannot be combined")
    fetch.filter_spec = _checked_filter(spec, repository)


def _checked_filter(spec: bytes, repository: Repository) -> str:
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
            {objects.links.peel(oid)[1] for oid in view.values.values()},
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


def error_packet(message: str) -> bytes:
    """Render `ERR message`, which git shows as `fatal: remote error: message`."""
    return pkt_line(b"ERR " + message.encode("utf-8", "replace")[:60_000])
