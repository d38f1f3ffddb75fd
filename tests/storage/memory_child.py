"""A process that takes a folder in, verifies it and unpacks it; prints by how much it grew, in KiB.

Usage: memory_child.py SHOP FOLDER.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_shop

from storage.scan import scan_directory


def peak_kib() -> int:
    """The most memory that this process had at once."""
    (peak,) = re.findall(r"^VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak)


def main(folder: Path, tree: Path) -> None:
    shop = make_shop(folder)
    shop.verify(shop.ingest({"a": b"a"}))
    before = peak_kib()
    verified = shop.verify(shop.ingest(scan_directory(tree, owner_uid=None)))
    shop.reader.materialise(verified, folder / "release")
    shop.reader.verify_blobs(verified)
    print(peak_kib() - before)
    shop.records.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
