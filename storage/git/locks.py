"""Lock files as git makes them: `<path>.lock` beside what it locks.

Source: git's lockfile.h; gitrepository-layout(5).
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from storage.git.pack_keeps import STAGED_KEEP_PREFIX, is_left_over

QUARANTINE_PREFIX = "tmp_objdir-incoming-"  # git's own name for it
STAGED_PACK_PREFIX, STAGED_INDEX_PREFIX = "tmp_pack_", "tmp_idx_"  # git's own, too
RETRY_S = 0.005
_STAGED = (STAGED_PACK_PREFIX, STAGED_INDEX_PREFIX, STAGED_KEEP_PREFIX)


def create_lock(path: bytes, twin: bytes | None = None) -> None:
    """Make the lock file at `path`. Raises FileExistsError when somebody holds it.

    `twin`: a lock that the caller holds, for one that nothing will be written to: it becomes a
    second name of that file. Where many files were removed lately, a new one costs ext4 some
    milliseconds, and a name costs it next to nothing.
    """
    if twin is not None:
        try:
            os.link(twin, path)
        except FileExistsError:
            raise
        except OSError:  # it has as many names as a file may have, or may have but one
            pass
        else:
            return
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))


def wait_for_lock(path: bytes, timeout_s: float) -> None:
    """Make the lock file at `path`, once it is free. Raises FileExistsError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            create_lock(path)
            return
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def forget_locks(repository_path: Path) -> list[str]:
    """Remove locks, incoming objects and `.keep` files that a process left which died.

    Returns their names.

    Only for repositories that nobody else writes, while nothing is being pushed to them.
    """
    gone = []
    root = os.fspath(repository_path)
    objects, packs = f"{root}/objects", f"{root}/objects/pack"
    places = [(place, _names(place)) for place in (root, objects, packs)]
    places += [(directory, files) for directory, _, files in os.walk(f"{root}/refs")]
    for directory, names in places:
        for name in names:
            path = Path(directory) / name
            is_file = (
                name.endswith(".lock")
                or path == repository_path / "packed-refs.new"
                or (directory == packs and _is_left_beside_packs(path))
            )
            if is_file and path.is_file():
                path.unlink(missing_ok=True)
            elif directory == objects and name.startswith(QUARANTINE_PREFIX):
                shutil.rmtree(path, ignore_errors=True)
            else:
                continue
            gone.append(str(path.relative_to(repository_path)))
    return gone


def _is_left_beside_packs(path: Path) -> bool:
    return path.name.startswith(_STAGED) or (path.suffix == ".keep" and is_left_over(path))


def _names(place: str) -> list[str]:
    try:
        return os.listdir(place)  # noqa: PTH208
    except FileNotFoundError:
        return []
