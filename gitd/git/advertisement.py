"""What a server says first: its refs, and what it can do.

Source: gitprotocol-pack(5), "Reference Discovery"; gitprotocol-capabilities(5);
gitprotocol-v2(5), "Capability Advertisement".
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path
from weakref import WeakValueDictionary

from gitd.git.access import Service
from gitd.git.pkt_line import FLUSH, pkt_line
from gitd.git.push_certificate import SEED_KEY, make_nonce
from storage.git.errors import RepositoryCorruptError
from storage.git.object_formats import TAG
from storage.git.refs import RefSnapshot, RefStore
from storage.git.repository import Repository

AGENT = b"agent=git/gitd-" + version_of("gitd").encode()
_REMEMBERED_MAX = 64
_SESSION_ID = b"session-id="
_VERSIONS = ("version=1", "version=2")


def protocol_version(header: str) -> int:
    """Return the highest version (0, 1, 2) that a `Git-Protocol` header asks for."""
    return max((int(part[8:]) for part in header.split(":") if part in _VERSIONS), default=0)


# which refs


class HiddenRefs:
    """`transfer.hideRefs` and its like: the last pattern that matches a ref decides."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [
            (pattern.startswith("!"), pattern.lstrip("!").lstrip("^").rstrip("/").encode())
            for pattern in patterns
        ]

    @classmethod
    def of(cls, repository: Repository, service: Service) -> HiddenRefs:
        section = "uploadpack" if service is Service.UPLOAD_PACK else "receive"
        return cls(repository.config.texts("transfer.hiderefs", f"{section}.hiderefs"))

    def hides(self, name: bytes) -> bool:
        for is_shown, prefix in reversed(self._patterns):
            if name == prefix or name.startswith(prefix + b"/"):
                return not is_shown
        return False

    @property
    def is_empty(self) -> bool:
        return not self._patterns

    @property
    def key(self) -> tuple[tuple[bool, bytes], ...]:
        return tuple(self._patterns)


@dataclass(frozen=True, slots=True)
class VisibleRefs:
    """The refs that a client may see, all of them pointing at objects that exist.

    Attributes:
        values: name -> oid, ascending.
        peeled: oid of an annotated tag -> what it names in the end.
        is_whole: false when refs are left out because what they name is missing; it may come
            back without any ref's changing.
    """

    snapshot: RefSnapshot
    values: dict[bytes, bytes]
    peeled: dict[bytes, bytes]
    head: bytes | None
    is_whole: bool


class RefViews:
    """Visible refs and rendered advertisements, remembered while the refs stay as they are."""

    def __init__(self) -> None:
        self._views: OrderedDict[tuple[object, ...], tuple[RefSnapshot, VisibleRefs]] = (
            OrderedDict()
        )
        self._rendered: OrderedDict[tuple[object, ...], tuple[VisibleRefs, bytes]] = OrderedDict()
        self._turns: WeakValueDictionary[tuple[object, ...], threading.Lock] = WeakValueDictionary()

    def _turn(self, key: tuple[object, ...]) -> threading.Lock:
        """Return what is held while something is made: equal requests at once make it once."""
        return self._turns.setdefault(key, threading.Lock())

    def visible(self, repository: Repository, service: Service) -> VisibleRefs:
        """Return the refs to show. Blocking."""
        snapshot = repository.refs.snapshot()
        hidden = HiddenRefs.of(repository, service)
        key = (repository.path, hidden.key)
        found = self._views.get(key)
        if found is not None and found[0] is snapshot:
            return found[1]
        with self._turn(key):
            found = self._views.get(key)
            if found is None or found[0] is not snapshot:
                found = (snapshot, _visible(repository, snapshot, hidden))
                if found[1].is_whole:
                    _remember(self._views, key, found)
            return found[1]

    def remembered(
        self, key: tuple[object, ...], view: VisibleRefs, render: Callable[[], bytes]
    ) -> bytes:
        """Return what `render` made of this very view before, or what it makes now."""
        with self._turn(key):
            found = self._rendered.get(key)
            if found is None or found[0] is not view:
                found = (view, render())
                _remember(self._rendered, key, found)
            return found[1]

    def known_advertisement(
        self, repository: Repository, service: Service, version: int, *, refs_max: int
    ) -> tuple[bytes, bytes] | None:
        """Return what `refs_advertisement` would, where that is known; else None. Never waits.

        Of a repository with up to `refs_max` refs, and what it offers by itself: neither borders
        nor what it borrows.
        """
        snapshot = repository.refs.known_snapshot(refs_max)
        if snapshot is None or repository.objects.alternates or repository.is_shallow:
            return None
        seen = self._views.get((repository.path, HiddenRefs.of(repository, service).key))
        if seen is None or seen[0] is not snapshot:
            return None
        capabilities = _capabilities(repository, service, snapshot)
        if service is Service.RECEIVE_PACK:
            return _all_rendered(seen[1], repository, service, capabilities, version), FLUSH
        found = self._rendered.get((repository.path, service, tuple(capabilities), version))
        return (found[1], FLUSH) if found is not None and found[0] is seen[1] else None

    def refs_advertisement(
        self,
        repository: Repository,
        service: Service,
        version: int,
        *,
        shows: Callable[[bytes], bool] | None = None,
    ) -> tuple[bytes, bytes]:
        """Render the v0 or v1 advertisement of a service, its refs and its end. Blocking.

        `shows`: which refs a pusher may know of.
        """
        view = self.visible(repository, service)
        if shows is not None:
            assert service is Service.RECEIVE_PACK, "a fetch reaches the whole repository"
            values = {name: oid for name, oid in view.values.items() if shows(name)}
            view = replace(view, values=values)
        capabilities = _capabilities(repository, service, view.snapshot)
        key = (repository.path, service, tuple(capabilities), version)
        is_sending = service is Service.UPLOAD_PACK

        def render() -> bytes:
            return _all_rendered(view, repository, service, capabilities, version)

        # What is offered to pushers has the tips of alternates in it, which may have moved; and
        # what names its session is said once.
        is_lasting = is_sending and not any(map(_is_session_id, capabilities))
        body = self.remembered(key, view, render) if is_lasting else render()
        shallow = sorted(repository.shallow())
        cuts = b"".join(pkt_line(b"shallow " + oid.hex().encode()) for oid in shallow)
        return body, cuts + FLUSH


def _remember(
    memory: OrderedDict[tuple[object, ...], tuple[RefSnapshot, VisibleRefs]]
    | OrderedDict[tuple[object, ...], tuple[VisibleRefs, bytes]],
    key: tuple[object, ...],
    value: tuple[RefSnapshot, VisibleRefs] | tuple[VisibleRefs, bytes],
) -> None:
    memory[key] = value  # type: ignore[assignment]
    memory.move_to_end(key)
    while len(memory) > _REMEMBERED_MAX:
        memory.popitem(last=False)


def _visible(repository: Repository, snapshot: RefSnapshot, hidden: HiddenRefs) -> VisibleRefs:
    objects = repository.objects
    values: dict[bytes, bytes] = {}
    peeled: dict[bytes, bytes] = {}
    existing: dict[bytes, bool] = {}
    for name, oid in snapshot.values.items():
        if not hidden.is_empty and hidden.hides(name):
            continue
        is_there = existing.get(oid)
        if is_there is None:
            is_there = existing[oid] = objects.contains(oid)
            if is_there and oid not in snapshot.unpeelable:
                target = snapshot.peeled.get(oid) or _peeled(repository, oid)
                if target != oid:
                    peeled[oid] = target
        if is_there:
            values[name] = oid
    head = snapshot.head
    if head is not None and (hidden.hides(b"HEAD") or not objects.contains(head)):
        head = None
    return VisibleRefs(snapshot, values, peeled, head, is_whole=all(existing.values()))


def _peeled(repository: Repository, oid: bytes) -> bytes:
    try:
        if repository.objects.kind_and_size(oid)[0] != TAG:
            return oid
        return repository.objects.links.peel(oid)[1]
    except RepositoryCorruptError:
        return oid


# rendering


def _upload_lines(view: VisibleRefs) -> list[bytes]:
    lines = [b"%s HEAD" % view.head.hex().encode()] if view.head is not None else []
    for name, oid in view.values.items():
        lines.append(b"%s %s" % (oid.hex().encode(), name))
        target = view.peeled.get(oid)
        if target is not None:
            lines.append(b"%s %s^{}" % (target.hex().encode(), name))
    return lines


def _receive_lines(view: VisibleRefs, repository: Repository) -> list[bytes]:
    lines = [b"%s %s" % (oid.hex().encode(), name) for name, oid in view.values.items()]
    seen = set(view.values.values())
    for store in repository.objects.alternates:
        for oid in RefStore(Path(store.directory).parent).snapshot().values.values():
            if oid not in seen and repository.objects.contains(oid):
                seen.add(oid)
                lines.append(b"%s .have" % oid.hex().encode())
    return lines


def _all_rendered(
    view: VisibleRefs,
    repository: Repository,
    service: Service,
    capabilities: list[bytes],
    version: int,
) -> bytes:
    is_sending = service is Service.UPLOAD_PACK
    lines = _upload_lines(view) if is_sending else _receive_lines(view, repository)
    null = b"0" * (64 if repository.object_format == "sha256" else 40)
    return _rendered(service, lines or [null + b" capabilities^{}"], capabilities, version)


def _rendered(
    service: Service, lines: list[bytes], capabilities: list[bytes], version: int
) -> bytes:
    head = pkt_line(b"# service=%s\n" % service.value.encode()) + FLUSH
    if version == 1:
        head += pkt_line(b"version 1\n")
    packets = [head, pkt_line(lines[0] + b"\0" + b" ".join(capabilities) + b"\n")]
    packets += [b"%04x%b\n" % (len(line) + 5, line) for line in lines[1:]]
    return b"".join(packets)


def _capabilities(repository: Repository, service: Service, snapshot: RefSnapshot) -> list[bytes]:
    if service is Service.RECEIVE_PACK:
        return receive_capabilities(repository)
    return upload_capabilities(repository, snapshot)


def upload_capabilities(repository: Repository, snapshot: RefSnapshot | None = None) -> list[bytes]:
    """List what upload-pack offers in v0 and v1, and with refs what HEAD stands for."""
    config = repository.config
    found = [
        b"multi_ack",
        b"thin-pack",
        b"side-band",
        b"side-band-64k",
        b"ofs-delta",
        b"shallow",
        b"deepen-since",
        b"deepen-not",
        b"deepen-relative",
        b"no-progress",
        b"include-tag",
        b"multi_ack_detailed",
    ]
    if config.flag("uploadpack.allowtipsha1inwant") or config.flag("uploadpack.allowanysha1inwant"):
        found.append(b"allow-tip-sha1-in-want")
    if config.flag("uploadpack.allowreachablesha1inwant") or config.flag(
        "uploadpack.allowanysha1inwant"
    ):
        found.append(b"allow-reachable-sha1-in-want")
    found.append(b"no-done")
    if snapshot is not None and snapshot.head_target is not None and snapshot.head is not None:
        found.append(b"symref=HEAD:" + snapshot.head_target)
    if config.flag("uploadpack.allowfilter"):
        found.append(b"filter")
    return [*found, _object_format(repository), AGENT, *_session_id(repository)]


def v2_advertisement(repository: Repository) -> bytes:
    """Render what upload-pack offers in v2."""
    config = repository.config
    fetch = [b"shallow", b"wait-for-done"]
    if config.flag("uploadpack.allowfilter"):
        fetch.append(b"filter")
    if config.flag("uploadpack.allowrefinwant"):
        fetch.append(b"ref-in-want")
    if config.flag("uploadpack.allowsidebandall"):
        fetch.append(b"sideband-all")
    if config.texts("uploadpack.blobpackfileuri"):
        fetch.append(b"packfile-uris")
    unborn = config.text("lsrefs.unborn") or "advertise"
    ls_refs = b"ls-refs=unborn" if unborn == "advertise" else b"ls-refs"
    lines = [b"version 2", AGENT, ls_refs, b"fetch=" + b" ".join(fetch), b"server-option"]
    lines += [_object_format(repository), *_session_id(repository)]
    if config.flag("transfer.advertiseobjectinfo"):
        lines.append(b"object-info")
    if config.flag("uploadpack.advertisebundleuris"):
        lines.append(b"bundle-uri")
    return b"".join(pkt_line(line + b"\n") for line in lines) + FLUSH


def _object_format(repository: Repository) -> bytes:
    return b"object-format=" + repository.object_format.encode()


def _session_id(repository: Repository) -> list[bytes]:
    """Name this session, where the operator wants to find it in the traces of clients."""
    if not repository.config.flag("transfer.advertisesid"):
        return []
    return [b"%b%x-%b" % (_SESSION_ID, time.time_ns() // 1000, os.urandom(4).hex().encode())]


def _is_session_id(capability: bytes) -> bool:
    return capability.startswith(_SESSION_ID)


def receive_capabilities(repository: Repository) -> list[bytes]:
    """List what receive-pack offers."""
    config = repository.config
    found = [b"report-status", b"report-status-v2", b"delete-refs", b"side-band-64k", b"quiet"]
    if config.flag("receive.advertiseatomic", default=True):
        found.append(b"atomic")
    found.append(b"ofs-delta")
    seed = config.text(SEED_KEY)
    if seed:
        nonce = make_nonce(seed, repository.path, int(time.time()))
        found.append(b"push-cert=" + nonce.encode())
    if config.flag("receive.advertisepushoptions"):
        found.append(b"push-options")
    return [*found, _object_format(repository), AGENT, *_session_id(repository)]
