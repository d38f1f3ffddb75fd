"""The second reader's side of `storage.second_reader`.

Usage: `blob_worker.py STORE [medium]`. It imports little, since it is
started for half a second of work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.blob_reading import suspects
from storage.digest import KEY_BYTES, split
from storage.layout import Layout

SIZE_BYTES = 8
FROM_MEDIUM = "medium"
END = b"read"
"""Ends the answer, with the count of blobs that were read: without it none counts as read."""


def main() -> None:
    """Read the blobs that standard input names, until that ends; say which somebody should see."""
    from_medium = sys.argv[2:] == [FROM_MEDIUM]
    records = split(sys.stdin.buffer.read(), KEY_BYTES + SIZE_BYTES)
    blobs = ((one[:KEY_BYTES], int.from_bytes(one[KEY_BYTES:], "big")) for one in records)
    layout = Layout(Path(sys.argv[1]))
    found = b"".join(suspects(layout, blobs, reads=True, from_medium=from_medium))
    try:
        sys.stdout.buffer.write(found + end_of(len(records)))
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # nobody waits for it any more


def end_of(count: int) -> bytes:
    """What an answer about so many blobs ends with."""
    return END + count.to_bytes(SIZE_BYTES, "big")


if __name__ == "__main__":
    main()
