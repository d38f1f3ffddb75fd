"""A process that signs again what a key signed, to be killed or failed at any system call of it.

Usage: resign_child.py SHOP KEY. Exits 0 when all is signed again, 3 when it was said why not.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop, make_shop

from storage.custody import Custody
from storage.errors import StorageError
from storage.records import attestations
from storage.resign import Resigned, resign


def sign_again(shop: Shop, key_id: str) -> Resigned:
    made = attestations.signed_by(shop.records.reader(), key_id)
    return resign(shop.records, shop.reader, Custody(shop.folder), made)


def main(folder: str, key_id: str) -> int:
    try:
        shop = make_shop(Path(folder))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        done = sign_again(shop, key_id)
        shop.records.close()
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    if done.failures:
        print("\n".join(done.failures))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
