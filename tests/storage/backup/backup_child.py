"""A process that backs up, or restores, to be killed or failed at any system call of it.

Usage: backup_child.py FOLDER take|restore. Exits 0 when it is done, 3 when it was said why not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.backup.destination import Destination
from storage.backup.keys import KeyPlan
from storage.backup.places import Places
from storage.backup.restore import restore
from storage.backup.take import take
from storage.errors import StorageError


def main() -> int:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    destination = Destination(folder / "backups")
    try:
        if what == "take":
            take(Places(folder / "data"), destination, with_keys=True, keep_count=2)
        else:
            restore(destination, Places(folder / "new" / "data"), KeyPlan({}))
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
