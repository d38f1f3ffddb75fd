"""A file that tells what a disk in it is told to do: each write and each flush, in their order.

Usage: recorder.py FUSE IMAGE LOG. Serves one file, `disk`, to the kernel through the open device of
FUSE number FUSE; what it contains lies in IMAGE, and what it is told is added to LOG. Ends with its
standard input.

The kernel here has no dm-log-writes. Source: fuse(4); linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import sys
from pathlib import Path

RECORD = struct.Struct("<cQQ")  # what, where, how long; then the bytes of a write
WRITE, ZEROES, FLUSH = b"w", b"z", b"f"

_IN = struct.Struct("<IIQQIIIHH")  # length, what is asked, its number, of which file, ...
_OUT = struct.Struct("<IiQ")  # length, error, number
_INIT = struct.Struct("<IIIIHHIIHHI28x")
_ENTRY = struct.Struct("<QQQQII")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ATTR_OUT = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QII")
_SPAN = struct.Struct("<QQI")  # of a read or a write: open file, where, how long
_WRITE_BYTES = 40  # what comes before the bytes
_FALLOCATE = struct.Struct("<QQQI")
_VERSION = (7, 31)
_MAX_PAGES = 1 << 22
_SIZE_BYTES_MAX = 1 << 20
_ROOT, _DISK = 1, 2
_NAME = b"disk"
_LASTS_S = 3600
_PUNCH_OR_ZERO = 0x02 | 0x10
_BIG_WRITES = 1 << 5
_HOLE = 0x02 | 0x01  # which keeps the size
_LIBC = ctypes.CDLL(None, use_errno=True)

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 14, 15, 16
_RELEASE, _FSYNC, _FLUSH, _INIT_ASKED, _INTERRUPT = 18, 20, 25, 26, 36
_DESTROY, _BATCH_FORGET, _FALLOCATE_ASKED = 38, 42, 43
_SILENT = {_FORGET, _BATCH_FORGET, _INTERRUPT}


class Recorder:
    """Answers the kernel, one request after the other."""

    def __init__(self, image: Path, log: Path) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._answers = {
            _INIT_ASKED: self._begin,
            _LOOKUP: self._look_up,
            _GETATTR: self._attributes,
            _OPEN: lambda *_: _OPEN_OUT.pack(0, 0, 0),
            _READ: self._read,
            _WRITE: self._write,
            _FSYNC: self._flush,
            _FALLOCATE_ASKED: self._zero,
            **dict.fromkeys((_FLUSH, _RELEASE, _DESTROY), lambda *_: b""),
        }

    def answer(self, request: bytes) -> bytes | None:
        """What to say to a request; None when nobody waits for it."""
        _, asked, number, file, *_ = _IN.unpack_from(request)
        if asked in _SILENT:
            return None
        code, data = 0, b""
        try:
            data = self._answers.get(asked, _refuse)(file, memoryview(request)[_IN.size :])
        except OSError as error:
            code = error.errno or errno.EIO
        return _OUT.pack(_OUT.size + len(data), -code, number) + data

    def _begin(self, _file: int, _body: memoryview) -> bytes:
        pages = _SIZE_BYTES_MAX >> 12
        return _INIT.pack(
            *_VERSION, 0, _MAX_PAGES | _BIG_WRITES, 16, 12, _SIZE_BYTES_MAX, 1, pages, 0, 0
        )

    def _look_up(self, _file: int, body: memoryview) -> bytes:
        if bytes(body).rstrip(b"\0") != _NAME:
            raise FileNotFoundError(errno.ENOENT, "there is one file")
        return _ENTRY.pack(_DISK, 0, _LASTS_S, _LASTS_S, 0, 0) + self._facts(_DISK)

    def _attributes(self, file: int, _body: memoryview) -> bytes:
        return _ATTR_OUT.pack(_LASTS_S, 0, 0) + self._facts(file)

    def _facts(self, file: int) -> bytes:
        size = os.fstat(self._image).st_size
        mode = stat.S_IFDIR | 0o755 if file == _ROOT else stat.S_IFREG | 0o600
        return _ATTR.pack(file, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, _file: int, body: memoryview) -> bytes:
        _, offset, size = _SPAN.unpack_from(body)
        return os.pread(self._image, size, offset)

    def _write(self, _file: int, body: memoryview) -> bytes:
        _, offset, size = _SPAN.unpack_from(body)
        data = body[_WRITE_BYTES : _WRITE_BYTES + size]
        self._record(WRITE, offset, size, data)
        return struct.pack("<II", size, 0)

    def _zero(self, _file: int, body: memoryview) -> bytes:
        _, offset, size, mode = _FALLOCATE.unpack_from(body)
        if not mode & _PUNCH_OR_ZERO:
            raise OSError(errno.EOPNOTSUPP, "it is as long as it is")
        self._record(ZEROES, offset, size)
        return b""

    def _flush(self, _file: int, _body: memoryview) -> bytes:
        self._record(FLUSH, 0, 0)
        return b""

    def _record(self, what: bytes, offset: int, size: int, data: bytes | memoryview = b"") -> None:
        os.writev(self._log, [RECORD.pack(what, offset, size), data])
        apply(self._image, what, offset, size, data)


def apply(fd: int, what: bytes, offset: int, size: int, data: bytes | memoryview) -> None:
    """Do to a disk in a file what it was told."""
    if what == WRITE:
        os.pwrite(fd, data, offset)
    elif what == ZEROES and _LIBC.fallocate(
        fd, _HOLE, ctypes.c_int64(offset), ctypes.c_int64(size)
    ):
        raise OSError(ctypes.get_errno(), "no hole can be made")


def _refuse(_file: int, _body: memoryview) -> bytes:
    raise OSError(errno.ENOSYS, "not here")


def main(fuse: int, image: Path, log: Path) -> None:
    recorder = Recorder(image, log)
    while True:
        ready, _, _ = select.select([fuse, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        try:
            request = os.read(fuse, _SIZE_BYTES_MAX + (64 << 10))
        except FileNotFoundError:  # what was asked was taken back
            continue
        except OSError as error:
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        if answer := recorder.answer(request):
            os.write(fuse, answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
