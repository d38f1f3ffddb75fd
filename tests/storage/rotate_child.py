"""A process that replaces a signing key and revokes the old one, to be killed or failed anywhere.

Usage: rotate_child.py KEYS TRUST. Exits 0 when both are done, 3 when it was said why not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.custody import Custody
from storage.errors import StorageError


def main(keys: str, trust: str) -> int:
    try:
        custody = Custody(Path(keys))
        old = custody.signing_key().key_id
        custody.rotate(Path(trust))
        custody.revoke(Path(trust), old, reason="lost")
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
