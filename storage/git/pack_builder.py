"""Make the pack that answers a fetch: in memory when it is small, else as a file.

A clone that wants all of a stored pack, and nothing else, gets that very file.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from storage.git.bitmap import reaches_all
from storage.git.errors import PackOutgrownError
from storage.git.object_filter import parse_filter
from storage.git.pack import Pack
from storage.git.pack_links import all_packs_if_wanted, write_links
from storage.git.pack_writer import PackWriter, Sink, find_verbatim
from storage.git.repository import Repository
from storage.git.selection import Selection, select_objects

_BUFFER_BYTES = 1 << 20


class PackTask(msgspec.Struct, frozen=True, kw_only=True):
    """What to send; can travel to another process. Oids are raw.

    Attributes:
        out_path: where to write it; None keeps it in memory.
        memory_bytes_max: bound on a pack in memory, and on each object inflated for it.
        may_verbatim: a stored pack's own file may be the answer.
        tags: (annotated tag, what it names), sent when what they name is sent.
        filter_spec: what to leave out, as the client wrote it.
        leave_out: objects that the client gets elsewhere.
    """

    repository: str
    wants: list[bytes]
    haves: list[bytes] = []
    cut: list[bytes] = []
    tags: list[tuple[bytes, bytes]] = []
    filter_spec: str | None = None
    leave_out: list[bytes] = []
    may_thin: bool = False
    may_offset: bool = True
    may_verbatim: bool = True
    out_path: str | None = None
    memory_bytes_max: int = 1 << 20


class BuiltPack(msgspec.Struct, frozen=True, kw_only=True):
    """A whole pack: in `data`, or at `path`.

    Attributes:
        is_temporary: the file was made for this fetch.
        left_out: those of the task's `leave_out` that would be in it.
    """

    data: bytes = b""
    path: str | None = None
    size_bytes: int = 0
    is_temporary: bool = False
    object_count: int = 0
    delta_count: int = 0
    reused_count: int = 0
    left_out: list[bytes] = []


def build_pack(task: PackTask, repository: Repository | None = None) -> BuiltPack:
    """Choose the objects and write the pack. Blocking, and heavy for large repositories.

    Raises:
        FilterError: the filter is not understood.
        PackOutgrownError: it would take more memory than it may.
        RepositoryCorruptError: an object is missing or damaged.
    """
    repository = repository or Repository(Path(task.repository))
    objects = repository.objects
    ready = ready_pack(task, repository)
    if ready is not None:
        return ready
    if _is_plain_clone(task):
        packs = all_packs_if_wanted(objects, task.wants)
        if packs is not None:
            oids = list(dict.fromkeys(oid for pack in packs for oid in pack.oids()))
            return _written(task, repository, Selection(oids=oids))
    selection = select_objects(
        objects,
        wants=task.wants,
        haves=task.haves,
        cut=frozenset(task.cut),
        object_filter=parse_filter(task.filter_spec) if task.filter_spec else None,
        tags=task.tags,
        is_memory_scarce=task.out_path is None,
        may_thin=task.may_thin,
    )
    if task.leave_out:
        return _written_without(task, repository, selection)
    if task.may_verbatim and not task.haves and task.may_offset and selection.oids:
        stored = find_verbatim(objects, selection.oids)
        if stored is not None:
            # Now it is known that the wants, and tags that came by themselves, reach all of it.
            if _is_plain_clone(task) and _present_tags(task, stored) <= set(task.wants):
                write_links(stored.path.parents[1], stored.path.stem, set(task.wants), ())
            return _verbatim(stored)
    return _written(task, repository, selection)


def ready_pack(task: PackTask, repository: Repository) -> BuiltPack | None:
    """Return a stored pack that is just what a clone wants, when bitmaps or records tell. Quick."""
    if not task.may_verbatim or not _is_plain_clone(task):
        return None
    objects = repository.objects
    for pack in objects.packs():
        if reaches_all(objects, pack, task.wants) and _has_tags_on_it(task, pack):
            return _verbatim(pack)
    packs = all_packs_if_wanted(objects, task.wants)
    return _verbatim(packs[0]) if packs is not None and len(packs) == 1 else None


def _is_plain_clone(task: PackTask) -> bool:
    is_whole = not task.haves and not task.cut and task.filter_spec is None
    return is_whole and not task.leave_out and task.may_offset


def _present_tags(task: PackTask, pack: Pack) -> set[bytes]:
    return {tag for tag, _ in task.tags if pack.find(tag) is not None}


def _has_tags_on_it(task: PackTask, pack: Pack) -> bool:
    """Say whether those of the task's tags that name an object of the pack are in the pack too."""
    named = {tag for tag, target in task.tags if pack.find(target) is not None}
    return named <= _present_tags(task, pack)


def _verbatim(pack: Pack) -> BuiltPack:
    return BuiltPack(
        path=os.fspath(pack.path),
        size_bytes=len(pack.bytes_map),
        object_count=pack.count,
        reused_count=pack.count,
    )


def _written_without(task: PackTask, repository: Repository, selection: Selection) -> BuiltPack:
    unwanted = set(task.leave_out)
    left_out = [oid for oid in selection.oids if oid in unwanted]
    oids = [oid for oid in selection.oids if oid not in unwanted]
    built = _written(task, repository, Selection(oids, selection.twins, selection.had - unwanted))
    return msgspec.structs.replace(built, left_out=left_out)


def _written(task: PackTask, repository: Repository, selection: Selection) -> BuiltPack:
    is_in_memory = task.out_path is None

    def write(sink: Sink) -> BuiltPack:
        writer = PackWriter(
            repository.objects,
            selection,
            sink,
            may_thin=task.may_thin,
            may_offset=task.may_offset,
            inflated_bytes_max=task.memory_bytes_max if is_in_memory else None,
        )
        result = writer.write()
        return BuiltPack(
            size_bytes=result.size_bytes,
            object_count=result.object_count,
            delta_count=result.delta_count,
            reused_count=result.reused_count,
        )

    if task.out_path is None:
        memory = _Memory(task.memory_bytes_max)
        built = write(memory.take)
        return msgspec.structs.replace(built, data=bytes(memory.data))
    with open(task.out_path, "wb", buffering=_BUFFER_BYTES) as file:  # noqa: PTH123
        built = write(file.write)
    return msgspec.structs.replace(built, path=task.out_path, is_temporary=True)


class _Memory:
    """Takes the bytes of a pack that should stay small."""

    def __init__(self, bytes_max: int) -> None:
        self.data = bytearray()
        self._bytes_max = bytes_max

    def take(self, piece: bytes | memoryview) -> None:
        if len(self.data) + len(piece) > self._bytes_max:
            raise PackOutgrownError("the pack is too large for memory")
        self.data += piece
