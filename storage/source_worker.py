"""The helper's side of `storage.source_helper`.

Usage: `source_worker.py FD`, which is a folder, or a file with all contents in it. It imports as
little as it can, since it is started for a tenth of a second of work.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys

from blake3 import blake3

from storage.beneath import FILE, descend, facts_of, identity

HEAD = struct.Struct("<QQHH")
"""Of a question: offset and size; how long the path and the facts are, which follow."""
ANSWER = struct.Struct(f"<Q?{blake3.digest_size}s")
"""How many were asked, with this one; whether it was read; its digest."""


def main() -> None:
    """Answer the questions on standard input, in their order, until it ends."""
    # Nobody waits for the answers: whoever else wants the processor has it.
    try:  # noqa: SIM105 - without contextlib it starts sooner
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass
    reader = _Reader(int(sys.argv[1]))
    ask = sys.stdin.buffer.read
    try:
        for number in itertools.count(1):
            if len(head := ask(HEAD.size)) != HEAD.size:
                break
            offset, size_bytes, path_bytes, facts_bytes = HEAD.unpack(head)
            digest = reader.digest(ask(path_bytes), ask(facts_bytes), offset, size_bytes)
            os.write(1, ANSWER.pack(number, digest is not None, digest or b""))
    except BrokenPipeError:
        pass  # nobody wants to know any more


class _Reader:
    """Reads files below a folder, of which it keeps open the one that it was in last."""

    def __init__(self, whole: int) -> None:
        self._whole = whole
        self._parent: bytes | None = None
        self._folder = -1

    def digest(self, path: bytes, facts: bytes, offset: int, size_bytes: int) -> bytes | None:
        """The digest of what is as long as it must be, and unchanged; None of whatever is not."""
        try:
            if not path:
                data = os.pread(self._whole, size_bytes, offset)
            else:
                fd = self._open(path)
                try:
                    data = os.pread(fd, size_bytes + 1, offset)
                    if facts_of(identity(os.fstat(fd))) != facts:
                        return None
                finally:
                    os.close(fd)
        except OSError:
            return None
        return blake3(data).digest() if len(data) == size_bytes else None

    def _open(self, path: bytes) -> int:
        parent, _, name = path.rpartition(b"/")
        if parent != self._parent:
            if self._parent is not None:
                os.close(self._folder)
            self._parent = None
            self._folder = descend(os.dup(self._whole), parent)
            self._parent = parent
        return os.open(name, FILE, dir_fd=self._folder)


if __name__ == "__main__":
    main()
