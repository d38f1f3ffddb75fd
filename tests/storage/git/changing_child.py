"""A process that changes refs; what it is told of each goes to standard output, as JSON.

Usage: changing_child.py REPOSITORY (atomic|each) NAME OLD NEW [NAME OLD NEW]...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from storage.git.object_formats import NULL_OID
from storage.git.repository import Repository
from storage.git.transaction import RefChange, change_refs


def main() -> None:
    repository, how, *words = sys.argv[1:]
    changes = [
        RefChange(
            f"refs/heads/{name}".encode(),
            bytes.fromhex(old) or NULL_OID,
            bytes.fromhex(new) or NULL_OID,
        )
        for name, old, new in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]
    errors = change_refs(Repository(Path(repository)), changes, is_atomic=how == "atomic")
    told = [None if error is None else [error.reason, str(error)] for error in errors]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
