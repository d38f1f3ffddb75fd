"""A process that switches an environment, to be killed or failed at any system call of it.

Usage: switch_child.py ENVIRONMENT FOLDER, a folder that its state keeps. Exits 0 when that is
served, 3 when it was said why not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from hooks.deploys.host.state import EnvironmentFolder
from storage.errors import StorageError


def main(environment: str, name: str) -> int:
    folder = EnvironmentFolder(Path(environment))
    state = folder.read()
    assert state is not None
    assert state.served is not None
    try:
        folder.write(state.serving(msgspec.structs.replace(state.served, folder=name), 2))
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
