"""The parsers of what clients send, by themselves: any bytes, cut up and packed in any way."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitd.git.advertisement import protocol_version
from gitd.git.body import BodyReader
from gitd.git.errors import BodyInvalidError, BodyTooLargeError, GitRequestError
from gitd.git.limits import GitLimits
from gitd.git.pkt_line import (
    DATA_BYTES_MAX,
    LINE_BYTES_MAX,
    Marker,
    parse_length,
    pkt_line,
    side_band,
)
from gitd.git.push_certificate import Certificate
from gitd.git.push_request import CAPABILITIES_MAX, Wish, read_wish
from storage.git.object_filter import FilterError, ObjectFilter, parse_filter
from storage.git.refs import is_valid_name, is_writable_name

BRIEF, LONG = 60, 20_000
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LIMITS = GitLimits(
    commands_max=5, push_options_max=3, push_options_bytes_max=64, wants_max=5,
    request_bytes_max=4096,
)  # fmt: skip
OFFERED = (b"report-status", b"push-options", b"atomic", b"push-cert=1-x")
ENCODERS = {
    "": lambda data: data,
    "x-gzip": gzip.compress,
}

briefly_and_long = pytest.mark.parametrize(
    "examples",
    [BRIEF, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)


def reader_of(pieces: list[bytes], encoding: str = "") -> BodyReader:
    """Make a reader of a request whose body comes in these pieces; aiohttp inflates nothing."""
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    for piece in pieces:
        content.feed_data(piece)
    content.feed_eof()
    headers = {"Content-Encoding": encoding} if encoding else {}
    request = make_mocked_request("POST", "/", headers=headers, payload=content)
    return BodyReader(request, idle_s=60, bytes_max=None)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at some places, in order, each modulo their number."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in itertools.pairwise([0, *ends, len(data)]) if a < b]


async def packets_of(reader: BodyReader) -> tuple[list[bytes | Marker], str]:
    """Read packets to the end; return them and what was wrong at last."""
    found: list[bytes | Marker] = []
    try:
        while (packet := await reader.pkt()) is not Marker.END:
            found.append(packet)
    except BodyInvalidError as error:
        return found, error.message
    return found, ""


def framed(packet: bytes | Marker) -> bytes:
    return b"%04x" % packet.value if isinstance(packet, Marker) else pkt_line(packet)


PACKETS = st.lists(
    st.binary(max_size=80) | st.sampled_from([Marker.FLUSH, Marker.DELIM, Marker.RESPONSE_END]),
    max_size=8,
)
PLACES = st.lists(st.integers(0, 2000), max_size=6)


@briefly_and_long
def test_packets_are_what_was_framed_however_it_is_cut(examples: int) -> None:
    @settings(UNHURRIED, max_examples=examples)
    @given(packets=PACKETS, places=PLACES, encoding=st.sampled_from(sorted(ENCODERS)))
    def each(packets: list[bytes | Marker], places: list[int], encoding: str) -> None:
        async def run() -> None:
            body = ENCODERS[encoding](b"".join(map(framed, packets)))
            found = await packets_of(reader_of(cut(body, places), encoding))
            assert found == (packets, "")

        asyncio.run(run())

    each()


@briefly_and_long
def test_any_bytes_are_packets_and_then_an_error_or_the_end(examples: int) -> None:
    some = st.binary(max_size=60) | st.lists(
        st.sampled_from([b"0000", b"0001", b"0003", b"0005a", b"0004", b"000", b"ffff", b"-001",
                         b"0X12", b" 12 ", b"+123", b"1_23", b"\xd9\xa1\xd9\xa1", b"fff1"])
    ).map(b"".join)  # fmt: skip

    @settings(UNHURRIED, max_examples=examples)
    @given(data=some, places=PLACES)
    def each(data: bytes, places: list[int]) -> None:
        async def run() -> None:
            packets, wrong = await packets_of(reader_of(cut(data, places)))
            read = b"".join(map(framed, packets))
            rest = data[len(read) :]
            assert data.lower().startswith(read.lower())
            assert bool(wrong) == bool(rest)
            assert (packets, wrong) == await packets_of(reader_of([data] if data else []))

        asyncio.run(run())

    each()


@UNHURRIED
@given(data=st.binary(min_size=1, max_size=2000), bytes_max=st.integers(1, 999))
def test_a_band_carries_what_it_was_given(data: bytes, bytes_max: int) -> None:
    packets = side_band(2, data, bytes_max=bytes_max)
    assert b"".join(packet[5:] for packet in packets) == data
    assert all(packet[4] == 2 and int(packet[:4], 16) == len(packet) for packet in packets)
    assert all(len(packet) <= bytes_max + 5 for packet in packets)


def test_lengths_of_packets() -> None:
    assert parse_length(b"fff0") == LINE_BYTES_MAX - 4 == DATA_BYTES_MAX
    assert parse_length(b"0004") == 0
    assert pkt_line(bytes(DATA_BYTES_MAX))[:4] == b"fff0"
    with pytest.raises(ValueError, match="at most 65516"):
        pkt_line(bytes(DATA_BYTES_MAX + 1))
    for wrong in (b"0003", b"fff1", b"ffff", b"", b"00000", b"0x10", b"-001", b" 001", b"00_4"):
        with pytest.raises(BodyInvalidError):
            parse_length(wrong)


# the head of a push


NULL, SOME = b"0" * 40, b"a" * 40
OIDS = st.sampled_from([NULL, SOME, b"A" * 40, b"g" * 40, b"a" * 39, b"\xd9\xa1" * 20])
WORDS = st.sampled_from(
    [b"report-status", b"atomic", b"push-options", b"object-format=sha1", b"object-format=sha256",
     b"agent=\xff", b"push-cert=", b"", b"side-band-64k"]
)  # fmt: skip
NAMES = st.sampled_from(
    [b"refs/heads/x", b"", b"\xff", b"HEAD", b"a b", b"refs/heads/" + b"n" * 300]
)


@st.composite
def push_lines(draw: st.DrawFn) -> bytes:
    """A command, a border, a beginning of a certificate, an option: right or nearly so."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return b"shallow " + draw(OIDS)
    if kind == 1:
        return b"push-cert\0" + b" ".join(draw(st.lists(WORDS, max_size=3))) + b"\n"
    if kind == 2:
        return draw(st.sampled_from([b"push-cert-end\n", b"certificate version 0.1\n", b"\n"]))
    if kind == 3:
        return draw(st.binary(max_size=50))
    line = b" ".join((draw(OIDS), draw(OIDS), draw(NAMES)))
    words = draw(st.lists(WORDS, max_size=4))
    return line + (b"\0" + b" ".join(words) if words else b"") + draw(st.sampled_from([b"", b"\n"]))


@briefly_and_long
def test_a_push_is_understood_or_refused(examples: int) -> None:
    lines = st.lists(push_lines() | st.sampled_from([Marker.FLUSH, Marker.DELIM]), max_size=12)

    @settings(UNHURRIED, max_examples=examples)
    @given(packets=lines, places=PLACES, tail=st.binary(max_size=8))
    def each(packets: list[bytes | Marker], places: list[int], tail: bytes) -> None:
        async def run() -> None:
            body = b"".join(map(framed, packets)) + tail
            with contextlib.suppress(GitRequestError):
                wish = await read_wish(reader_of(cut(body, places)), LIMITS, offered=OFFERED)
                require_sane(wish)

        asyncio.run(run())

    each()


def require_sane(wish: Wish) -> None:
    if wish.refusal is None:
        assert len(wish.commands) <= LIMITS.commands_max
        assert len(wish.options or ()) <= LIMITS.push_options_max
        assert not any("\0" in option for option in wish.options or ())
    assert len(wish.shallow) <= LIMITS.wants_max
    for command in wish.commands:
        assert command.name
        assert b"\0" not in command.name
        assert len(command.old) == len(command.new) == 20
        assert command.update.old == command.old.hex()


@briefly_and_long
def test_capabilities_of_a_push(examples: int) -> None:
    @settings(UNHURRIED, max_examples=examples)
    @given(words=st.lists(WORDS | st.binary(max_size=9), max_size=6), is_offered=st.booleans())
    def each(words: list[bytes], *, is_offered: bool) -> None:
        capabilities_are_heard(words, is_offered=is_offered)

    each()


def capabilities_are_heard(words: list[bytes], *, is_offered: bool) -> None:
    wanted = set(b" ".join(words).partition(b"\0")[0].split())
    if not is_offered:
        wanted -= {b"atomic", b"push-options"}

    async def run() -> None:
        line = NULL + b" " + SOME + b" refs/heads/x\0" + b" ".join(words)
        options = pkt_line(b"o") + b"0000"
        reader = reader_of([pkt_line(line) + b"0000" + options])
        wish = await read_wish(reader, LIMITS, offered=OFFERED if is_offered else ())
        assert wish.capabilities == wanted
        assert wish.options == (["o"] if b"push-options" in wanted else None)

    formats = {word for word in wanted if word.startswith(b"object-format=")}
    if formats - {b"object-format=sha1"}:
        with pytest.raises(BodyInvalidError, match="unsupported object format"):
            asyncio.run(run())
    else:
        asyncio.run(run())


def wish_of(lines: list[bytes]) -> Wish:
    async def run() -> Wish:
        body = b"".join(map(pkt_line, lines)) + b"0000"
        return await read_wish(
            reader_of([body]), GitLimits(request_bytes_max=4096), offered=OFFERED
        )

    return asyncio.run(run())


def test_capabilities_are_few_however_many_lines_name_them() -> None:
    words = [b"w%d" % number for number in range(CAPABILITIES_MAX + 1)]
    line = NULL + b" " + SOME + b" refs/heads/x"
    few = [line + b"\0" + word for word in words[:20]] + [line]
    assert wish_of(few).capabilities == set(words[:20])
    with pytest.raises(BodyInvalidError, match="capabilities at most"):
        wish_of([line + b"\0" + b" ".join(words)])


def test_the_commands_of_a_push_have_a_bound_together() -> None:
    line = NULL + b" " + SOME + b" refs/heads/" + b"n" * 909
    assert len(line) == 1002
    assert wish_of([line] * 4).refusal is None
    refused = wish_of([line + b"\0report-status", *[line] * 50])
    assert "the commands of a push have 4096 bytes at most" in refused.refusal
    assert len(refused.commands) == 5
    assert refused.can(b"report-status")
    with pytest.raises(BodyTooLargeError):
        wish_of([b"shallow " + SOME] * 100)


@UNHURRIED
@given(
    content=st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                b"certificate version 0.1\n",
                b"nonce 1-x\n",
                b"push-option a\n",
                b"\n",
                b"pusher A\n",
                b"-----BEGIN SSH SIGNATURE-----\n",
                NULL + b" " + SOME + b" refs/heads/x\n",
            ]
        )
    ).map(b"".join)
)
def test_a_certificate_is_taken_apart_without_loss(content: bytes) -> None:  # fmt: skip
    try:
        found = Certificate.parse(content)
    except ValueError:
        assert b"\n\n" not in content
        return
    assert found.payload + found.signature == content
    assert b"\n" not in b"".join(found.values(b"nonce"))


# words of a fetch, names


@UNHURRIED
@given(
    header=st.text(max_size=40)
    | st.lists(st.sampled_from(["version=", "2", "1", "0", ":", "99", "foo", " ", "\u0661"])).map(
        "".join
    )
)
def test_any_header_is_a_version(header: str) -> None:  # fmt: skip
    assert protocol_version(header) in (0, 1, 2)


@UNHURRIED
@given(
    spec=st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                "combine:",
                "blob:",
                "none",
                "limit=",
                "tree:",
                "1",
                "k",
                "+",
                "%2B",
                "object:type=",
                "tag",
                "9" * 20,
                "sparse:oid=x",
                "%",
                "%zz",
            ]
        )
    ).map("".join)
)
def test_any_words_are_a_filter_or_none(spec: str) -> None:  # fmt: skip
    with contextlib.suppress(FilterError):
        assert parse_filter(spec) != ObjectFilter()


@UNHURRIED
@given(
    name=st.binary(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                b"refs/",
                b"heads",
                b"/",
                b".",
                b"..",
                b".lock",
                b"@{",
                b"@",
                b"a",
                b"\xff",
                b"\n",
                b"~",
            ]
        )
    ).map(b"".join)
)
def test_names_that_may_be_written_stay_below_refs(name: bytes) -> None:  # fmt: skip
    if is_writable_name(name):
        parts = name.split(b"/")
        assert parts[0] == b"refs"
        assert len(parts) > 2
        assert not {b"", b".", b".."} & set(parts)
        assert not any(part.endswith(b".lock") for part in parts)
        assert not any(byte < 33 for byte in name)
        assert is_valid_name(name)
