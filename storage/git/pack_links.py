"""What leads into a pack and out of it, remembered beside the repository.

When every object that no other object links to (a root) is wanted, then all that is stored is
reachable from the wants, and a clone needs no walk: it gets all packs as they lie. That holds
because links cannot form a circle: from each object some chain of linking objects leads up to a
root. The record is a cache: it is written when a pack is indexed, and nothing breaks without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.git.object_formats import OID_BYTES
from storage.git.objects import ObjectStore
from storage.git.pack import Pack
from storage.git.sharing import Sharing

DIRECTORY = "info/gitd-links"
QUARANTINED_SUFFIX = ".links"  # of a record that waits beside its pack
OIDS_MAX = 20_000  # in one record; a pack with more of them has none
_MAGIC = b"gitd-links 1\n"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class PackLinks:
    """One pack's record.

    Attributes:
        roots: its objects that none of its other objects links to.
        outside: what its objects link to and it does not have.
    """

    roots: frozenset[bytes]
    outside: frozenset[bytes]


def write_links(
    objects_directory: Path, pack_name: str, roots: Collection[bytes], outside: Collection[bytes]
) -> None:
    """Remember a pack's links, if they are few. Failing to is no failure."""
    if data := encoded_links(roots, outside):
        keep_links(objects_directory, pack_name, data, Sharing())


def keep_links(objects_directory: Path, pack_name: str, data: bytes, sharing: Sharing) -> None:
    """Keep a record's file, with the bits of `sharing`. Failing to is no failure."""
    path = objects_directory / DIRECTORY / pack_name
    fresh = path.with_name(f"tmp_{os.urandom(6).hex()}")
    with contextlib.suppress(OSError):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sharing.apply(path.parent)
        fresh.write_bytes(data)
        sharing.apply(fresh)
        fresh.rename(path)


def write_quarantined_links(
    pack_path: Path, roots: Collection[bytes], outside: Collection[bytes]
) -> None:
    """Remember the links of a pack in quarantine; they come out of it with the pack."""
    if data := encoded_links(roots, outside):
        with contextlib.suppress(OSError):
            pack_path.with_suffix(QUARANTINED_SUFFIX).write_bytes(data)


def encoded_links(roots: Collection[bytes], outside: Collection[bytes]) -> bytes:
    """Return a record's file; nothing when it would be too large to be kept."""
    if len(roots) + len(outside) > OIDS_MAX:
        return b""
    body = _MAGIC + struct.pack(">LL", len(roots), len(outside))
    body += b"".join(sorted(roots)) + b"".join(sorted(outside))
    return body + hashlib.sha256(body).digest()


def read_links(pack: Pack) -> PackLinks | None:
    """Return a pack's record; None when there is none, or it was torn."""
    path = pack.path.parents[1] / DIRECTORY / pack.path.stem
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[:-_DIGEST_BYTES]
    is_whole = hashlib.sha256(body).digest() == data[-_DIGEST_BYTES:]
    if not is_whole or not body.startswith(_MAGIC):
        return None
    roots, outside = struct.unpack_from(">LL", body, len(_MAGIC))
    start = len(_MAGIC) + 8
    oids = [body[at : at + OID_BYTES] for at in range(start, len(body), OID_BYTES)]
    if len(oids) != roots + outside:
        return None
    return PackLinks(frozenset(oids[:roots]), frozenset(oids[roots:]))


def forget_links(pack_path: Path) -> None:
    """Drop the record of a pack that is gone."""
    with contextlib.suppress(OSError):
        (pack_path.parents[1] / DIRECTORY / pack_path.stem).unlink()


def all_packs_if_wanted(objects: ObjectStore, wants: Iterable[bytes]) -> list[Pack] | None:
    """Return all packs if every stored object is reachable from the wants, by their records.

    None when it is not so, or not known: a pack has no record, or objects lie elsewhere.
    """
    if objects.alternates or objects.loose_directories():
        return None
    packs = objects.packs()
    roots = set[bytes]()
    linked = set[bytes]()
    for pack in packs:
        links = read_links(pack)
        if links is None:
            return None
        roots |= links.roots
        linked |= links.outside
    return packs if roots - linked <= set(wants) else None
