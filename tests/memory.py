"""Where tests keep their files: in memory where that has room, since disks sync slowly.

What crashes lose of what was not synced is not told by a disk either, but by `tests.power`. Tests
of full or journalled disks make their own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
BYTES_MIN = 6 << 30  # the largest pushes of the long proofs leave copies


def has_room(bytes_min: int = BYTES_MIN) -> bool:
    if not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(MEMORY).free > bytes_min


def use() -> None:
    """Let temporary files be there, also those of what is started, unless TMPDIR says where."""
    if "TMPDIR" not in os.environ and has_room():
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None
