"""A process that changes refs atomically, and dies before one of its steps on the disk.

Usage: atomic_child.py REPOSITORY ONE TWO STEP. Exits 9 when it died so, 0 when it was done before.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from storage.git.object_formats import NULL_OID
from storage.git.repository import Repository
from storage.git.transaction import RefChange, change_refs

STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def main() -> int:
    one, two = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
    changes = [
        RefChange(b"refs/heads/gone/loose", one, NULL_OID),
        RefChange(b"refs/heads/gone/packed", one, NULL_OID),
        RefChange(b"refs/heads/loose", one, two),
        RefChange(b"refs/heads/packed", one, two),
        RefChange(b"refs/heads/new/deep", NULL_OID, two),
    ]
    repository = Repository(Path(sys.argv[1]))
    left = int(sys.argv[4])

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes_names = event in STEPS or (event == "open" and arguments[1] in ("wb", "ab"))
        if changes_names or (event == "open" and arguments[2] & os.O_CREAT):
            left -= 1
            if left == 0:
                os._exit(9)

    sys.addaudithook(count)
    errors = change_refs(repository, changes, is_atomic=True)
    return 0 if errors == [None] * len(changes) else 1


if __name__ == "__main__":
    sys.exit(main())
