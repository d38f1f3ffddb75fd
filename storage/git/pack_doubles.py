"""A received pack that has an object more than once, written anew with each of them once.

git takes such a pack unless it checks objects, and keeps it as it came. Here none is kept: of two
entries of one object each may lead to the other through its base, and who clones with checks would
refuse the pack as it lies. So it may come even where objects are checked.
Source: git's t5308-pack-detect-duplicates.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection
from itertools import groupby
from pathlib import Path

from storage.git.errors import PackInvalidError, RepositoryCorruptError
from storage.git.object_formats import OID_BYTES
from storage.git.objects import ObjectStore
from storage.git.pack import Pack, read_entry_head
from storage.git.pack_index import row_offset, row_oid, write_index
from storage.git.pack_writer import PackWriter
from storage.git.selection import Selection

DOUBLED = "the same object appears twice in the pack"
_BUFFER_BYTES = 1 << 20
_GROWTH_BYTES_MAX = 16 << 20  # by deltas whose bases come behind them: writers of packs make none


def drop_doubles(
    path: Path,
    mapped: mmap.mmap,
    rows: list[bytes],
    *,
    bases: ObjectStore,
    outside: Collection[bytes],
) -> None:
    """Replace a pack by one that has each of its objects once, thin as it is. Nothing is synced.

    Args:
        path: the pack; its directory takes two more files meanwhile.
        mapped: its bytes.
        rows: of all its entries, sorted; see `index_row`.
        bases: where the objects are that its deltas need and it lacks.
        outside: the ids of these.

    Raises:
        PackInvalidError: an object leads to itself through its base, or the pack would grow much.
    """
    index_path, anew = path.with_suffix(".idx"), path.with_suffix(".anew")
    write_index(index_path, _whole_ones_first(mapped, rows), mapped[-OID_BYTES:])
    try:
        store = ObjectStore.over([Pack(index_path, path)])
        store.add_alternate(bases)
        oids = [oid for oid, _ in groupby(map(row_oid, rows))]
        _write(store, Selection(oids=oids, had={*outside}), anew, len(mapped) + _GROWTH_BYTES_MAX)
        anew.replace(path)
    finally:
        index_path.unlink()
        anew.unlink(missing_ok=True)


def _whole_ones_first(mapped: mmap.mmap, rows: list[bytes]) -> list[bytes]:
    """Of several entries of an object the first is the one that is found, and used."""

    def order(row: bytes) -> tuple[bool, int]:
        base = read_entry_head(mapped, row_offset(row))[2]
        return base is not None, row_offset(row)

    return [row for _, same in groupby(rows, row_oid) for row in sorted(same, key=order)]


def _write(store: ObjectStore, selection: Selection, path: Path, bytes_max: int) -> None:
    with path.open("wb", buffering=_BUFFER_BYTES) as file:

        def put(piece: bytes | memoryview) -> None:
            if file.tell() + len(piece) > bytes_max:
                raise PackInvalidError(DOUBLED)
            file.write(piece)

        try:
            PackWriter(store, selection, put, may_thin=True).write()
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"{DOUBLED}, and cannot be told apart: {error}") from error
