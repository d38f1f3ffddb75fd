"""Tar streams: an archive from a stranger as the entries of a source, in one pass; and headers.

Read strictly and with bounds: POSIX ustar, pax headers for long names and sizes, GNU's long
names. Hard links, devices, sparse files and names that leave the tree are refused.

Source: pax(1), "ustar Interchange Format" and "pax Interchange Format"; the GNU tar manual.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from zlib import adler32

from storage.errors import TreeInvalidError
from storage.source import (
    WHOLE_BYTES_MAX,
    Place,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
)

BLOCK_BYTES = 512
CHUNK_BYTES = 1 << 20
HEADER_BYTES_MAX = 64 << 10  # of one pax header or long name
FILE, LINK, DIRECTORY = b"0", b"2", b"5"  # kinds of entries
_NAME_BYTES = 100
_NUMBER_MAX = 8**11 - 1  # of a size, and of a time
# Name, mode, owner and group 0, size, time; check sum; kind, target, magic and the rest.
_BEFORE_SUM = b"%b%07o\x000000000\x000000000\x00%011o\x00%011o\x00"
_AFTER_SUM = b"%b%bustar\x0000%b"
_SUM_OF_SPACES = 8 * ord(" ")
_ZERO = bytes(BLOCK_BYTES)
_REST = bytes(BLOCK_BYTES - 265)  # names of owner and group, and of devices; a prefix
_SET_ID = 0o7000
# What stands between name and size, and behind the check sum, where a plain file has such a mode.
_PLAIN_MODES = {b"%07o\x000000000\x000000000\x00" % mode: mode for mode in (0o644, 0o755)}
_PLAIN_AFTER = _AFTER_SUM % (FILE, bytes(_NAME_BYTES), _REST)
# Keys of a pax header that mean nothing to a tree.
_IGNORED_KEYS = (b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment")
# Said where names are no UTF-8, and where they are: they are bytes here in either case.
_CHARSETS = (b"BINARY", b"ISO-IR 10646 2000 UTF-8")


def scan_tar(stream: BinaryIO, *, is_file: bool = False) -> Iterator[SourceEntry]:
    """Give what is in an uncompressed tar stream, in its order; reads to the archive's end.

    A file's contents can be read once, before the next entry is asked for; where the stream
    `is_file`, a plain one that nobody writes to, as often as wanted while it is open. Names may
    begin with `./`; `./` itself is left out.

    Raises:
        TreeInvalidError: While iterating or reading: the archive is malformed or cut short, or
            something in it may not be in an artifact.
    """
    while (header := _next_header(stream)) is not None:
        if header.name == b"":
            continue
        if header.kind == b"0":
            contents = _InFile(stream, header) if is_file else _Contents(stream, header)
            yield SourceFile(
                header.name,
                header.size_bytes,
                bool(header.mode & 0o111),
                contents.read,
                is_repeatable=is_file,
                place=contents.place,
            )
            contents.skip()
        elif header.kind == b"5":
            yield SourceDirectory(header.name)
        else:
            yield SourceLink(header.name, header.target)


def encode_header(
    path: bytes, kind: bytes, mode: int, *, size_bytes: int = 0, target: bytes = b"", time: int = 0
) -> bytes:
    """Write what stands before an entry's contents, as `tarfile` does: owner 0, pax where needed.

    Short names in ASCII, which are nearly all, take a tenth of its time.
    """
    name = path + b"/" if kind == DIRECTORY else path
    if (
        len(name) > _NAME_BYTES
        or len(target) > _NAME_BYTES
        or not 0 <= time <= _NUMBER_MAX >= size_bytes
        or not (name.isascii() and target.isascii())
    ):
        member = tarfile.TarInfo(os.fsdecode(path))
        member.type, member.mode, member.size, member.mtime = kind, mode, size_bytes, time
        member.linkname = os.fsdecode(target)
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    before = _BEFORE_SUM % (name.ljust(_NAME_BYTES, b"\0"), mode, size_bytes, time)
    after = _AFTER_SUM % (kind, target.ljust(_NAME_BYTES, b"\0"), _REST)
    # Together they are a block without its check sum, which counts as spaces.
    return b"%b%06o\x00 %b" % (before, _sum(before + after) + _SUM_OF_SPACES, after)


def chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join headers, contents and padding to chunks of about a megabyte, and end the archive."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
    yield b"".join([*waiting, bytes(2 * BLOCK_BYTES)])


@dataclass(slots=True)
class _Header:
    name: bytes
    target: bytes
    kind: bytes
    mode: int
    size_bytes: int


@dataclass(slots=True)
class _Extended:
    """What the headers before the next entry say of it."""

    name: bytes | None = None
    target: bytes | None = None
    size_bytes: int | None = None


_NOTHING = _Extended()


class _Contents:
    """The bytes of the entry that the stream stands at."""

    __slots__ = ("_left", "_padding", "_path", "_stream")

    def __init__(self, stream: BinaryIO, header: _Header) -> None:
        self._stream = stream
        self._path = header.name
        self._left = header.size_bytes
        self._padding = -header.size_bytes % BLOCK_BYTES

    def place(self) -> Place | None:
        return None  # a stream is read by one

    def read(self) -> bytes | Iterator[bytes]:
        if self._left <= WHOLE_BYTES_MAX:
            data = _read_exactly(self._stream, self._left, self._path)
            self._left = 0
            return data
        return self._pieces()

    def skip(self) -> None:
        if self._left:
            for _ in self._pieces():
                pass
        _read_exactly(self._stream, self._padding, self._path)

    def _pieces(self) -> Iterator[bytes]:
        while self._left:
            data = _read_exactly(self._stream, min(self._left, WHOLE_BYTES_MAX), self._path)
            self._left -= len(data)
            yield data


class _InFile(_Contents):
    """As `_Contents`, of a file: what was read, or passed over, is read again from its place."""

    __slots__ = ("_fd", "_is_taken", "_offset", "_size_bytes")

    def __init__(self, stream: BinaryIO, header: _Header) -> None:
        super().__init__(stream, header)
        self._fd = stream.fileno()
        self._offset = stream.tell()
        self._size_bytes = header.size_bytes
        self._is_taken = False

    def place(self) -> Place:
        return Place(self._stream, self._fd, b"", self._offset, b"")

    def read(self) -> bytes | Iterator[bytes]:
        if not self._is_taken:
            self._is_taken = True
            return super().read()
        if self._size_bytes > WHOLE_BYTES_MAX:
            return self._pieces_again()
        return self._read_at(self._offset, self._size_bytes)

    def skip(self) -> None:
        if self._is_taken:
            super().skip()
            return
        self._is_taken = True
        # Beyond the end of what is cut short there is no next header.
        self._stream.seek(self._offset + self._size_bytes + self._padding)

    def _pieces_again(self) -> Iterator[bytes]:
        end = self._offset + self._size_bytes
        for at in range(self._offset, end, WHOLE_BYTES_MAX):
            yield self._read_at(at, min(WHOLE_BYTES_MAX, end - at))

    def _read_at(self, offset: int, count: int) -> bytes:
        data = os.pread(self._fd, count, offset)
        if len(data) != count:
            raise TreeInvalidError(self._path, "the archive is cut short")
        return data


def _next_header(stream: BinaryIO) -> _Header | None:
    extended = _NOTHING
    while True:
        block = _read_exactly(stream, BLOCK_BYTES, b"")
        if block == _ZERO:
            _read_to_end(stream)
            return None
        if extended is _NOTHING and (plain := _plain_header(block)) is not None:
            return plain
        _check_sum(block)
        kind = block[156:157]
        size_bytes = _number(block[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            if size_bytes > HEADER_BYTES_MAX:
                raise TreeInvalidError(b"", "the archive has too long a header")
            data = _read_exactly(stream, size_bytes, b"")
            _read_exactly(stream, -size_bytes % BLOCK_BYTES, b"")
            if extended is _NOTHING:
                extended = _Extended()
            _extend(extended, kind, data)
            continue
        return _entry_header(block, kind, size_bytes, extended)


def _plain_header(block: bytes) -> _Header | None:
    """Read the header of a file as `encode_header` writes nearly all of them, in a third of the
    time. None for any other.
    """
    mode = _PLAIN_MODES.get(block[100:124])
    name, size, total = block[:100].rstrip(b"\0"), block[124:135], block[148:154]
    if (
        mode is None
        or block[156:] != _PLAIN_AFTER
        or block[135] != 0
        or block[154:156] != b"\0 "
        or not (size.isdigit() and total.isdigit())
        or b"\0" in name
        or name.startswith(b"./")
        or name[-1:] in (b"", b".", b"/")
    ):
        return None
    try:
        is_whole = int(total, 8) == _sum(block[:148] + block[156:]) + _SUM_OF_SPACES
        return _Header(name, b"", FILE, mode, int(size, 8)) if is_whole else None
    except ValueError:
        return None


def _entry_header(block: bytes, kind: bytes, size_bytes: int, extended: _Extended) -> _Header:
    name = extended.name if extended.name is not None else _name(block)
    target = extended.target if extended.target is not None else _text(block[157:257])
    mode = _number(block[100:108])
    if kind in (b"\0", b"7"):
        kind = b"0"
    if kind == b"0" and name.endswith(b"/"):
        kind = b"5"  # how archives before POSIX wrote directories
    path = _plain(name)
    if kind not in (b"0", b"2", b"5"):
        what = "a hard link" if kind == b"1" else "neither a file, a directory nor a symbolic link"
        raise TreeInvalidError(path, f"is {what}")
    if kind == b"0" and mode & _SET_ID:
        raise TreeInvalidError(path, "has a set-uid, set-gid or sticky bit")
    if kind == b"0" and extended.size_bytes is not None:
        size_bytes = extended.size_bytes
    if kind != b"0" and size_bytes:
        raise TreeInvalidError(path, "has contents although it is no file")
    if path == b"" and kind != b"5":
        raise TreeInvalidError(name, "is no name")
    return _Header(path, target, kind, mode, size_bytes)


def _extend(extended: _Extended, kind: bytes, data: bytes) -> None:
    if kind == b"L":
        extended.name = _text(data)
    elif kind == b"K":
        extended.target = _text(data)
    else:
        for key, value in _records(data):
            _apply(extended, key, value, is_global=kind == b"g")


def _apply(extended: _Extended, key: bytes, value: bytes, *, is_global: bool) -> None:
    if key in _IGNORED_KEYS or key.startswith((b"LIBARCHIVE.", b"SCHILY.dev", b"SCHILY.ino")):
        return
    if key == b"hdrcharset" and value in _CHARSETS:
        return
    if is_global or key not in (b"path", b"linkpath", b"size"):
        raise TreeInvalidError(b"", f"the archive has the header {key.decode('utf-8', 'replace')}")
    if key == b"path":
        extended.name = value
    elif key == b"linkpath":
        extended.target = value
    else:
        if not value.isdigit() or len(value) > 18:
            raise TreeInvalidError(b"", "the archive has a malformed size")
        extended.size_bytes = int(value)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    r"""Give the records `<length> <key>=<value>\n` of a pax header."""
    while data:
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() and space else 0
        record = data[len(digits) + 1 : length]
        key, _, value = record.partition(b"=")  # neither without a length, no value without `=`
        if length > len(data) or not value.endswith(b"\n"):
            raise TreeInvalidError(b"", "the archive has a malformed header")
        yield key, value[:-1]
        data = data[length:]


def _name(block: bytes) -> bytes:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _plain(name: bytes) -> bytes:
    """Strip the `./` that archives of `.` begin with, and a directory's last slash."""
    while name.startswith(b"./"):
        name = name[2:]
    return b"" if name == b"." else name.removesuffix(b"/")


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _number(data: bytes) -> int:
    if data[0] & 0x80:  # GNU's base 256, for what octal digits cannot hold
        return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 1)) - 1)
    digits = data.strip(b" \0") or b"0"
    # What `int` would take besides: signs, underscores, a prefix.
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TreeInvalidError(b"", "the archive has a malformed number")
    return int(digits, 8)


def _check_sum(block: bytes) -> None:
    if _number(block[148:156]) != _sum(block[:148] + block[156:]) + _SUM_OF_SPACES:
        raise TreeInvalidError(b"", "the archive is damaged")


def _sum(header: bytes) -> int:
    """Add up the bytes of a header of up to 512, which `sum` takes ten times as long for.

    The lower half of Adler-32 is one more than their sum, modulo 65521, which 256 cannot reach.
    """
    return (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2


def _read_exactly(stream: BinaryIO, count: int, path: bytes) -> bytes:
    if not count:
        return b""
    data = stream.read(count)
    if len(data) == count:
        return data
    parts = [data]
    missing = count - len(data)
    while missing and (data := stream.read(missing)):
        parts.append(data)
        missing -= len(data)
    if missing:
        raise TreeInvalidError(path, "the archive is cut short")
    return b"".join(parts)


def _read_to_end(stream: BinaryIO) -> None:
    """Read the padding behind the end; whoever sends waits for it to be taken."""
    while stream.read(WHOLE_BYTES_MAX):
        pass
