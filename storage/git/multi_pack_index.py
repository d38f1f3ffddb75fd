"""Which packs a multi-pack-index speaks for: they must stay as long as it does.

This server reads packs by their own indexes. Others keep a multi-pack-index, perhaps with bitmaps,
and a pack that it names and that is gone makes their repository unreadable to them.
Source: gitformat-pack(5), "multi-pack-index (MIDX) files have the following format".
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

from storage.git.errors import RepositoryCorruptError

_HEAD = struct.Struct(">4sBBBBL")
_CHUNK = struct.Struct(">4sQ")
_NAMES_BYTES_MAX = 64 << 20


def packs_of_indexes(pack_directory: Path) -> frozenset[str]:
    """Return the names (`pack-<digits>`) of the packs that any multi-pack-index there names.

    Raises:
        RepositoryCorruptError: one cannot be read.
    """
    paths = [pack_directory / "multi-pack-index"]
    paths += pack_directory.glob("multi-pack-index.d/*.midx")
    found: set[str] = set()
    for path in paths:
        try:
            found |= _names(path)
        except FileNotFoundError:
            continue
        except (OSError, struct.error) as error:
            raise RepositoryCorruptError(f"{path.name} cannot be read") from error
    return frozenset(found)


def _names(path: Path) -> set[str]:
    with path.open("rb") as file:
        magic, version, _, chunk_count, _, _ = _HEAD.unpack(file.read(_HEAD.size))
        if magic != b"MIDX" or version not in (1, 2):
            raise RepositoryCorruptError(f"{path.name} is of no known version")
        table = file.read(_CHUNK.size * (chunk_count + 1))
        chunks = list(_CHUNK.iter_unpack(table))
        for (name, start), (_, stop) in itertools.pairwise(chunks):
            if name == b"PNAM":
                file.seek(start)
                names = file.read(min(stop - start, _NAMES_BYTES_MAX)).split(b"\0")
                return {Path(name.decode("ascii", "replace")).stem for name in names if name}
    raise RepositoryCorruptError(f"{path.name} names no packs")
