"""A second process that reads the blobs of a large tree: Python uses one core at a time.

It is told keys and sizes, and answers with the keys of those blobs that are not as they must be. It
is started before there is anything to read, so that its start costs no time. Nothing depends on it:
where there is no second core, or it ends early for whatever reason, nobody has read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from storage.blob_reading import suspects
from storage.blob_worker import FROM_MEDIUM, SIZE_BYTES, end_of
from storage.digest import KEY_BYTES, split
from storage.layout import Layout
from storage.worker_process import has_core, start_worker, stop_worker

# Less is read sooner than a process starts.
FILES_COUNT_MIN = 4000
SIZE_BYTES_MIN = 256 << 20

_PIPE_BYTES = 1 << 20  # 25,000 keys: who hands them over need not wait for the start
_FILE_COST_BYTES = 64 << 10  # what opening a file takes, as if so much were read


class SecondReader:
    """A process that waits for what it is to read. End it with `stop`."""

    def __init__(self, layout: Layout, *, from_medium: bool = False) -> None:
        """Raises OSError where none can be started. `from_medium`: as for `suspects`."""
        said = [FROM_MEDIUM] if from_medium else []
        self._process = start_worker(
            "blob_worker", layout.root.absolute(), *said, pipe_bytes=_PIPE_BYTES
        )
        self._count = 0

    def begin(self, blobs: Iterable[tuple[bytes, int]]) -> None:
        """Let it read these: keys and sizes. Does not wait for the end."""
        records = [key + size.to_bytes(SIZE_BYTES, "big") for key, size in blobs]
        self._count = len(records)
        data = b"".join(records)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(data)

    def result(self) -> list[bytes] | None:
        """Wait for the keys of what somebody should look at; None when it failed."""
        assert self._process.stdout is not None
        data = self._process.stdout.read()
        end = end_of(self._count)
        # How it ended says nothing where somebody ignores the ends of children.
        if self._process.wait() != 0 or not data.endswith(end):
            return None
        return split(data.removesuffix(end), KEY_BYTES)

    def stop(self) -> None:
        """Break it off, unless it has ended."""
        stop_worker(self._process)


@contextlib.contextmanager
def second_reader(
    layout: Layout, *, files: int, size_bytes: int, from_medium: bool = False
) -> Iterator[SecondReader | None]:
    """Give a second reader where there is so much to read that it pays, and a core for it."""
    second = None
    if files >= FILES_COUNT_MIN or size_bytes >= SIZE_BYTES_MIN:
        with contextlib.suppress(OSError):
            if has_core():
                second = SecondReader(layout, from_medium=from_medium)
    try:
        yield second
    finally:
        if second is not None:
            second.stop()


class Halves:
    """Blobs of which one half is read by a second reader, where there is one, while the caller
    reads the other and does whatever else there is to do.
    """

    def __init__(
        self,
        layout: Layout,
        blobs: Iterable[tuple[bytes, int]],
        second: SecondReader | None,
        *,
        from_medium: bool = False,
    ) -> None:
        self._layout = layout
        self._from_medium = from_medium
        self._second = second
        ordered = sorted(blobs)
        count = len(ordered) if second is None else _middle(ordered)
        self._ours, self._theirs = ordered[:count], ordered[count:]
        if second is not None:
            second.begin(self._theirs)

    def ours(self, *, reads: bool = True) -> Iterator[bytes]:
        """Yield the keys of those of the caller's half that somebody should look at."""
        return self._suspects(self._ours, reads=reads)

    def theirs(self) -> Iterable[bytes]:
        """As `ours`, of the other half, when it was read."""
        found = self._second.result() if self._second is not None else None
        return self._suspects(self._theirs, reads=True) if found is None else found

    def _suspects(self, blobs: Iterable[tuple[bytes, int]], *, reads: bool) -> Iterator[bytes]:
        return suspects(self._layout, blobs, reads=reads, from_medium=self._from_medium)


@contextlib.contextmanager
def reading_halves(
    layout: Layout,
    blobs: Sequence[tuple[bytes, int]],
    *,
    reads: bool = True,
    from_medium: bool = False,
) -> Iterator[Halves]:
    """Begin to read blobs, which are keys and sizes. Without `reads` all are the caller's half.

    `from_medium`: as for `suspects`.
    """
    count = len(blobs) if reads else 0
    size_bytes = sum(size for _, size in blobs) if reads else 0
    with second_reader(
        layout, files=count, size_bytes=size_bytes, from_medium=from_medium
    ) as second:
        yield Halves(layout, blobs, second, from_medium=from_medium)


def _middle(blobs: Sequence[tuple[bytes, int]]) -> int:
    """How many of the first ones take as long to read as the others."""
    left = sum(size + _FILE_COST_BYTES for _, size in blobs) // 2
    for count, (_, size) in enumerate(blobs):
        if left <= 0:
            return count
        left -= size + _FILE_COST_BYTES
    return len(blobs)
