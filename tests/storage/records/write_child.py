"""A process that writes one record, to be failed at a system call of it.

Usage: write_child.py SHOP. Exits 0 when the record is written, 3 when it was said why not. A
reserve is given up for it, if there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.errors import StorageError
from storage.layout import Layout
from storage.records.db import Records
from storage.room import Room, RoomLimits

ADD_SITE = "INSERT INTO site(id, name, default_branch, created_at) VALUES('new', 'new', 'main', 0)"


def main() -> int:
    shop = Path(sys.argv[1])
    room = Room(Layout(shop / "store"), RoomLimits())
    try:
        with Records.open(shop / "gitd.db", relieve=room.relieve) as records:
            records.write(lambda db: db.execute(ADD_SITE))
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
