"""A process that unpacks an artifact, to be killed or failed at any system call of it.

Usage: unpack_child.py STORE DIGEST ENVELOPE DEST [BESIDE]. Durable without a folder beside, as a
site host does it with one. Exits 0 when it is there, 3 when not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.digest import Digest
from storage.errors import StorageError
from storage.materialise import materialise
from storage.reader import StoreReader


def main(store: str, digest: str, envelope: str, dest: str, *beside: str) -> int:
    try:
        reader = StoreReader(Path(store))
        verified = reader.verify(Digest.parse(digest), envelope)
        if beside:
            reader.materialise(verified, Path(dest), beside=Path(*beside))
        else:
            materialise(reader.layout, verified.manifest, Path(dest))
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
