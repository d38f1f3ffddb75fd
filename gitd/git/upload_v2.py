"""upload-pack, protocol version 2: `ls-refs`, `fetch`, `object-info`, `bundle-uri`.

Source: gitprotocol-v2(5); git's serve.c, ls-refs.c, upload-pack.c.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable

from gitd.git.access import Service
from gitd.git.advertisement import RefViews, VisibleRefs
from gitd.git.body import BodyReader
from gitd.git.errors import BodyTooLargeError
from gitd.git.fetch import (
    DepthWish,
    FetchRefusedError,
    FetchRequest,
    common_haves,
    find_borders,
    is_ready,
    parse_oid,
    require_wants,
    shallow_lines,
    take_filter,
    too_many,
)
from gitd.git.limits import GitLimits
from gitd.git.pack_sender import PackSender
from gitd.git.pkt_line import DELIM, FLUSH, Marker, pkt_line
from gitd.git.side_band import DATA, SideBandAnswer
from storage.git.errors import RepositoryCorruptError
from storage.git.pack_builder import BuiltPack
from storage.git.repository import Repository

PACKFILE_URI_KEY = "uploadpack.blobpackfileuri"
PREFIXES_MAX = 65536
REMEMBERED_REFS_MIN = 500  # fewer are rendered as fast as they are found
REMEMBERED_PREFIXES_MAX = 16
TRIED_PREFIXES_MAX = 16  # with each name; of more, each is looked for among the names
LINES_MAX = 1_500_000
_CAPABILITIES = (b"agent", b"object-format", b"server-option", b"session-id")


class UploadV2:
    """Answers one command of version 2."""

    def __init__(
        self, repository: Repository, views: RefViews, sender: PackSender, limits: GitLimits
    ) -> None:
        self._repository = repository
        self._views = views
        self._sender = sender
        self._limits = limits

    async def run(self, body: BodyReader, answer: SideBandAnswer) -> None:
        """Read the command and answer it.

        Raises:
            FetchRefusedError: it is wrong; nothing was answered yet.
            BodyInvalidError, BodyTooLargeError, BodyStalledError: see `BodyReader`.
        """
        command, ended = await self._read_head(body)
        if command is None:
            await answer.finish()
            return
        arguments = [] if ended else await self._read_arguments(body, command)
        if command == "bundle-uri":
            await answer.write(self._bundle_uri(arguments))
            await answer.finish()
        elif command == "ls-refs":
            await answer.write(await asyncio.to_thread(self._ls_refs, arguments))
            await answer.finish()
        elif command == "fetch":
            await self._fetch(arguments, answer)
        else:
            await answer.write(await asyncio.to_thread(self._object_info, arguments))
            await answer.finish()

    async def _read_head(self, body: BodyReader) -> tuple[str | None, bool]:
        command: str | None = None
        object_format = b"sha1"
        has_keys = False
        while not isinstance(line := await body.pkt(), Marker):
            text = line.removesuffix(b"\n")
            key, _, value = text.partition(b"=")
            has_keys = True
            if key == b"command":
                name = value.decode("utf-8", "replace")
                if command is not None:
                    raise FetchRefusedError(
                        f"command '{name}' requested after already requesting command '{command}'"
                    )
                if name not in self._commands():
                    raise FetchRefusedError(f"invalid command '{name}'")
                command = name
            elif key == b"object-format":
                object_format = value
            elif key not in _CAPABILITIES:
                raise FetchRefusedError(
                    f"unknown capability '{text.decode('utf-8', 'replace')[:200]}'"
                )
        if command is None and has_keys:
            raise FetchRefusedError("no command requested")
        if command is not None:
            self._require_format(object_format.decode("utf-8", "replace"))
        return command, line is not Marker.DELIM

    def _require_format(self, wished: str) -> None:
        ours = self._repository.object_format
        if wished not in ("sha1", "sha256"):
            raise FetchRefusedError(f"unknown object format '{wished}'")
        if wished != ours:
            raise FetchRefusedError(f"mismatched object format: server {ours}; client {wished}")

    def _commands(self) -> list[str]:
        config = self._repository.config
        found = ["ls-refs", "fetch"]
        if config.flag("transfer.advertiseobjectinfo"):
            found.append("object-info")
        if config.flag("uploadpack.advertisebundleuris"):
            found.append("bundle-uri")
        return found

    async def _read_arguments(self, body: BodyReader, command: str) -> list[bytes]:
        arguments = []
        while not isinstance(line := await body.pkt(), Marker):
            arguments.append(line.removesuffix(b"\n"))
            if len(arguments) > LINES_MAX:
                raise BodyTooLargeError("too many lines in one request")
        if line is not Marker.FLUSH:
            raise FetchRefusedError(f"expected flush after {command} arguments")
        return arguments

    # ls-refs

    def _ls_refs(self, arguments: list[bytes]) -> bytes:
        prefixes: list[bytes] = []
        wants_symrefs = wants_peel = wants_unborn = False
        for line in arguments:
            if line.startswith(b"ref-prefix "):
                prefixes.append(line[11:])
            elif line == b"symrefs":
                wants_symrefs = True
            elif line == b"peel":
                wants_peel = True
            elif line == b"unborn":
                wants_unborn = self._may_unborn()
            else:
                raise FetchRefusedError(f"unexpected line: '{line.decode('utf-8', 'replace')}'")
        view = self._views.visible(self._repository, Service.UPLOAD_PACK)
        wanted = tuple(prefixes) if len(prefixes) <= PREFIXES_MAX else ()

        def render() -> bytes:
            head = self._head_lines(view, wanted, symrefs=wants_symrefs, unborn=wants_unborn)
            lines = _ref_lines(view, wanted, symrefs=wants_symrefs, peel=wants_peel)
            return b"".join([*head, *lines]) + FLUSH

        if len(view.values) < REMEMBERED_REFS_MIN or len(prefixes) > REMEMBERED_PREFIXES_MAX:
            return render()
        key = (self._repository.path, wanted, wants_symrefs, wants_peel, wants_unborn)
        return self._views.remembered(key, view, render)

    def _may_unborn(self) -> bool:
        wish = self._repository.config.text("lsrefs.unborn") or "advertise"
        return wish in ("advertise", "allow")

    def _head_lines(
        self, view: VisibleRefs, wanted: tuple[bytes, ...], *, symrefs: bool, unborn: bool
    ) -> list[bytes]:
        if wanted and not b"HEAD".startswith(wanted):
            return []
        target = view.snapshot.head_target if symrefs else None
        note = b" symref-target:" + target if target is not None else b""
        if view.head is not None:
            return [pkt_line(view.head.hex().encode() + b" HEAD" + note + b"\n")]
        if unborn and note and view.snapshot.head is None:
            return [pkt_line(b"unborn HEAD" + note + b"\n")]
        return []

    # fetch

    async def _fetch(self, arguments: list[bytes], answer: SideBandAnswer) -> None:
        fetch = await asyncio.to_thread(self._parse, arguments)
        try:
            await self._answer_fetch(fetch, answer)
        except FetchRefusedError as error:
            if not fetch.all_on_bands:
                raise
            await answer.fail(error.message)
            await answer.finish()

    async def _answer_fetch(self, fetch: FetchRequest, answer: SideBandAnswer) -> None:
        repository = self._repository
        if not fetch.wants and not fetch.want_refs and not fetch.waits_for_done:
            await answer.finish()
            return
        wanted_refs = await asyncio.to_thread(self._resolve_wants, fetch)
        common: list[bytes] = []
        if not fetch.is_done or fetch.haves:
            common = await asyncio.to_thread(common_haves, repository, fetch)
        sections: list[bytes] = []
        if not fetch.is_done and (fetch.haves or fetch.waits_for_done):
            may_send = await asyncio.to_thread(self._acknowledge, fetch, common, sections)
            if not may_send:
                await answer.write(_joined(sections, fetch) + FLUSH)
                await answer.finish()
                return
        borders = await asyncio.to_thread(find_borders, repository, fetch)
        is_cut = bool(repository.shallow())
        if fetch.deepens or fetch.shallow or is_cut:
            sections.append(pkt_line(b"shallow-info\n"))
            sections += [pkt_line(line) for line in shallow_lines(borders)]
            sections.append(DELIM)
        if wanted_refs:
            sections.append(pkt_line(b"wanted-refs\n"))
            sections += [
                pkt_line(oid.hex().encode() + b" " + name + b"\n") for name, oid in wanted_refs
            ]
            sections.append(DELIM)
        if fetch.elsewhere:
            await answer.write(_joined(sections, fetch))
            await self._sender.send(
                repository,
                fetch,
                common,
                borders,
                answer,
                announce=lambda built: _uris(built, fetch),
            )
            return
        sections.append(pkt_line(b"packfile\n"))
        await answer.write(_joined(sections, fetch))
        answer.keep_alive(band=DATA)
        await self._sender.send(repository, fetch, common, borders, answer)

    def _parse(self, arguments: list[bytes]) -> FetchRequest:
        fetch = FetchRequest()
        depth = DepthWish()
        view = self._views.visible(self._repository, Service.UPLOAD_PACK)
        for line in arguments:
            if line.startswith(b"want "):
                fetch.wants.append(parse_oid(line[5:], "want"))
            elif line.startswith(b"have "):
                fetch.haves.append(parse_oid(line[5:], "have"))
            elif line.startswith(b"shallow "):
                fetch.shallow.append(parse_oid(line[8:], "shallow"))
            elif not (self._take_flag(line, fetch) or depth.take(line, view)):
                self._take_optional(line, fetch)
        if len(fetch.wants) + len(fetch.want_refs) > self._limits.wants_max:
            raise too_many("wants", self._limits.wants_max)
        if len(fetch.haves) > self._limits.haves_max:
            raise too_many("haves", self._limits.haves_max)
        fetch.depth = depth.depth()
        if fetch.uri_protocols and fetch.all_on_bands:
            fetch.elsewhere = _elsewhere(self._repository, fetch.uri_protocols)
        fetch.wants = list(dict.fromkeys(fetch.wants))
        return fetch

    def _take_flag(self, line: bytes, fetch: FetchRequest) -> bool:
        match line:
            case b"done":
                fetch.is_done = True
            case b"thin-pack":
                fetch.may_thin = True
            case b"ofs-delta":
                fetch.may_offset = True
            case b"no-progress":
                fetch.no_progress = True
            case b"include-tag":
                fetch.with_tags = True
            case b"wait-for-done":
                fetch.waits_for_done = True
            case _:
                return False
        return True

    def _take_optional(self, line: bytes, fetch: FetchRequest) -> None:
        config = self._repository.config
        if line.startswith(b"filter ") and config.flag("uploadpack.allowfilter"):
            take_filter(fetch, line[7:], self._repository)
        elif line.startswith(b"want-ref ") and config.flag("uploadpack.allowrefinwant"):
            name = line[9:]
            if name in fetch.want_refs:
                raise FetchRefusedError(f"duplicate want-ref {name.decode('utf-8', 'replace')}")
            fetch.want_refs[name] = None
        elif line == b"sideband-all" and config.flag("uploadpack.allowsidebandall"):
            fetch.all_on_bands = True
        elif line.startswith(b"packfile-uris ") and config.texts(PACKFILE_URI_KEY):
            if fetch.uri_protocols:
                raise FetchRefusedError("multiple packfile-uris lines forbidden")
            fetch.uri_protocols = line[14:].decode("utf-8", "replace").split(",")
        else:
            raise FetchRefusedError(f"unexpected line: '{line.decode('utf-8', 'replace')[:200]}'")

    def _resolve_wants(self, fetch: FetchRequest) -> list[tuple[bytes, bytes]]:
        view = self._views.visible(self._repository, Service.UPLOAD_PACK)
        found = []
        for name in fetch.want_refs:
            oid = view.head if name == b"HEAD" else view.values.get(name)
            if oid is None:
                raise FetchRefusedError(f"unknown ref {name.decode('utf-8', 'replace')}")
            found.append((name, oid))
        require_wants(self._repository, fetch.wants)
        fetch.wants = list(dict.fromkeys([*fetch.wants, *(oid for _, oid in found)]))
        return found

    def _acknowledge(self, fetch: FetchRequest, common: list[bytes], sections: list[bytes]) -> bool:
        """Add the acknowledgments; true when the pack follows in the same answer. Blocking."""
        sections.append(pkt_line(b"acknowledgments\n"))
        if not common:
            sections.append(pkt_line(b"NAK\n"))
        sections += [pkt_line(b"ACK " + oid.hex().encode() + b"\n") for oid in common]
        if fetch.waits_for_done:
            return False
        if not is_ready(self._repository, fetch, common):
            return False
        sections.append(pkt_line(b"ready\n"))
        sections.append(DELIM)
        return True

    # bundle-uri, object-info

    def _bundle_uri(self, arguments: list[bytes]) -> bytes:
        for line in arguments:
            raise FetchRefusedError(
                f"bundle-uri: unexpected argument: '{line.decode('utf-8', 'replace')[:200]}'"
            )
        found = self._repository.config.section("bundle.").items()
        lines = [
            f"bundle.{name}={value}".encode("utf-8", "surrogateescape") for name, value in found
        ]
        return b"".join(map(pkt_line, lines)) + FLUSH

    def _object_info(self, arguments: list[bytes]) -> bytes:
        wants_size = b"size" in arguments
        lines = [pkt_line(b"size")] if wants_size else []
        for line in arguments:
            if not line.startswith(b"oid "):
                if line != b"size":
                    raise FetchRefusedError(
                        f"object-info: unexpected line: '{line.decode('utf-8', 'replace')[:200]}'"
                    )
                continue
            oid = parse_oid(line[4:], "oid")
            try:
                size = b"%d" % self._repository.objects.kind_and_size(oid)[1]
            except RepositoryCorruptError:
                size = b""
            lines.append(pkt_line(oid.hex().encode() + (b" " + size if wants_size else b"")))
        return b"".join(lines) + FLUSH


def _ref_lines(
    view: VisibleRefs, wanted: tuple[bytes, ...], *, symrefs: bool, peel: bool
) -> list[bytes]:
    targets = view.snapshot.symrefs if symrefs else {}
    peeled = view.peeled if peel else {}
    lines = []
    for name in _names_below(view, wanted):
        oid = view.values[name]
        line = oid.hex().encode() + b" " + name
        if name in targets:
            line += b" symref-target:" + targets[name]
        if oid in peeled:
            line += b" peeled:" + peeled[oid].hex().encode()
        lines.append(b"%04x%b\n" % (len(line) + 5, line))
    return lines


def _names_below(view: VisibleRefs, prefixes: tuple[bytes, ...]) -> Iterable[bytes]:
    """Return the names with one of some prefixes, in order; all where there are none."""
    if not prefixes:
        return view.values
    if len(prefixes) <= TRIED_PREFIXES_MAX:
        return [name for name in view.values if name.startswith(prefixes)]
    names, found = list(view.values), []
    last: bytes | None = None
    for prefix in sorted(prefixes):
        if last is not None and prefix.startswith(last):
            continue  # all of its names are there
        last = prefix
        at = bisect_left(names, prefix)
        while at < len(names) and names[at].startswith(prefix):
            found.append(names[at])
            at += 1
    return found


def _joined(sections: list[bytes], fetch: FetchRequest) -> bytes:
    """Join packets, put on band 1 if all lines are to be there."""
    if fetch.all_on_bands:
        sections = [
            packet if packet in (DELIM, FLUSH) else pkt_line(b"%c%b" % (DATA, packet[4:]))
            for packet in sections
        ]
    return b"".join(sections)


def _elsewhere(repository: Repository, protocols: list[str]) -> dict[bytes, str]:
    """Find the objects that the operator has put elsewhere -> `<pack hash> <url>`.

    Raises:
        FetchRefusedError: a setting is malformed.
    """
    found = {}
    for setting in repository.config.texts(PACKFILE_URI_KEY):
        digits, _, rest = setting.partition(" ")
        url = rest.partition(" ")[2]
        if not url:
            raise FetchRefusedError(f"upload-pack: bad {PACKFILE_URI_KEY}")
        if url.partition(":")[0] in protocols:
            found[parse_oid(digits.encode(), PACKFILE_URI_KEY)] = rest
    return found


def _uris(built: BuiltPack, fetch: FetchRequest) -> bytes:
    """Name the packs that hold what is not in this one; the pack itself follows."""
    sections = []
    if built.left_out:
        sections.append(pkt_line(b"packfile-uris\n"))
        lines = [fetch.elsewhere[oid].encode("utf-8", "surrogateescape") for oid in built.left_out]
        sections += [pkt_line(line + b"\n") for line in lines]
        sections.append(DELIM)
    return _joined([*sections, pkt_line(b"packfile\n")], fetch)
