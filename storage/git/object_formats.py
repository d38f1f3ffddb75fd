"""The four kinds of git object, and what is inside their bytes.

An object id (`oid`) is the 20 raw bytes of its SHA-1 everywhere below the protocol's edge.
Source: gitformat-pack(5), "Object types"; gitdatamodel(7).
"""

from __future__ import annotations

import hashlib
import re
from binascii import unhexlify
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from storage.git.errors import RepositoryCorruptError

COMMIT, TREE, BLOB, TAG, OFS_DELTA, REF_DELTA = 1, 2, 3, 4, 6, 7
TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}

OID_BYTES = 20
TIME_MAX = 2**63 - 1
TIME_DIGITS_MAX = 18
NULL_OID = bytes(OID_BYTES)
EMPTY_TREE = bytes.fromhex("4b825dc642cb6eb9a060e54bf8d69288fbee4904")  # there without a file
MODE_TREE, MODE_LINK, MODE_SUBMODULE = b"40000", b"120000", b"160000"
_MODE_FILE, MODE_PROGRAM = b"100644", b"100755"
_PLAIN_MODES = frozenset((_MODE_FILE, MODE_PROGRAM, MODE_TREE, MODE_LINK, MODE_SUBMODULE))
_mode_of = itemgetter(0)

TREE_ENTRY = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
# A search in bytes that are no tree begins anew at each of them: where they may be anybody's and
# are many, it is asked first, in one go, whether they are a tree.
# Three groups: a tree's id, a blob's, and that of an entry whose mode is to be looked at.
_TREE_LINK = re.compile(
    rb"(?:40000 [^\0]+\0(.{20})|(?:100644|100755|120000) [^\0]+\0(.{20})"
    rb"|[0-7]{1,11} [^\0]+\0(.{20}))",
    re.DOTALL,
)
_FILES = re.compile(rb"(?:(?:100644|100755|120000) [^\0]++\0.{20})*+", re.DOTALL)
_FOLDERS = re.compile(rb"(?:40000 [^\0]++\0.{20})*+", re.DOTALL)
_ANY_LINK = re.compile(rb"\0(.{20})", re.DOTALL)  # of a tree that is known to be one
_TREE = re.compile(rb"(?:[0-7]{1,11} [^\0]++\0.{20})*+", re.DOTALL)
_SEARCHED_BYTES_MAX = 2048
# The line's end is looked for first: what has none would be searched over and over for a time.
_COMMIT = re.compile(
    rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)(?:author [^\n]*\n)?"
    rb"(?:committer (?=[^\n]*+\n)[^\n]*?(?:> (\d++)[^\n]*+)?\n)?"
)
_COMMIT_LINKS = re.compile(rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)")
_TAG = re.compile(rb"object ([0-9a-f]{40})\ntype (commit|tree|blob|tag)\n")
OID_DIGITS = re.compile(rb"[0-9a-fA-F]{40}")
_PARENT_LINE_BYTES = len(b"parent ") + 40 + 1


def object_id(kind: int, data: bytes) -> bytes:
    """Return the id of an object of this type and content."""
    digest = hashlib.sha1(b"%b %d\0" % (TYPE_NAMES[kind], len(data)), usedforsecurity=False)
    digest.update(data)
    return digest.digest()


class Commit(NamedTuple):
    """The links of a commit; `time` is the committer's, in seconds, 0 when unreadable."""

    tree: bytes
    parents: tuple[bytes, ...]
    time: int


def commit_links(data: bytes) -> tuple[bytes, list[bytes]]:
    """Read what a commit links to and nothing else, quickly: its tree and its parents.

    Raises:
        RepositoryCorruptError: the bytes do not begin as a commit does.
    """
    found = _COMMIT_LINKS.match(data)
    if found is None:
        raise RepositoryCorruptError("bad commit object")
    tree, lines = found.groups()
    parents = [
        unhexlify(lines[at : at + 40])
        for at in range(len(b"parent "), len(lines), _PARENT_LINE_BYTES)
    ]
    return unhexlify(tree), parents


def unhex(digits: bytes) -> bytes:
    """Turn 40 hexadecimal digits into 20 bytes."""
    return bytes.fromhex(digits.decode("ascii"))


def parse_commit(data: bytes) -> Commit:
    """Read the links of a commit.

    Raises:
        RepositoryCorruptError: the bytes do not begin as a commit does.
    """
    found = _COMMIT.match(data)
    if found is None:
        raise RepositoryCorruptError("bad commit object")
    tree, lines, time = found.groups()
    parents = tuple(unhex(lines[at : at + 40]) for at in range(7, len(lines), _PARENT_LINE_BYTES))
    return Commit(unhex(tree), parents, _seconds(time or b"0"))


def _seconds(digits: bytes) -> int:
    """Read a time; one that no machine can count to is the last one, as git reads it."""
    return int(digits) if len(digits) <= TIME_DIGITS_MAX else TIME_MAX


def tree_entries(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """List a tree's entries as (mode, name, oid), in the tree's own order.

    Each mode is one of the five that git writes, see `plain_mode`.
    """
    entries: list[tuple[bytes, bytes, bytes]] = TREE_ENTRY.findall(data)
    if _PLAIN_MODES.issuperset(map(_mode_of, entries)):
        return entries
    return [(plain_mode(mode), name, oid) for mode, name, oid in entries]


def plain_mode(mode: bytes) -> bytes:
    """Return what git takes a mode for: old trees have zeros before it, or other bits in it.

    Source: git's object.h, `canon_mode`.
    """
    number = int(mode, 8)
    match number & 0o170000:
        case 0o040000:
            return MODE_TREE
        case 0o100000:
            return MODE_PROGRAM if number & 0o100 else _MODE_FILE
        case 0o120000:
            return MODE_LINK
        case _:
            return MODE_SUBMODULE


def tree_links(data: bytes) -> tuple[Iterable[bytes], Iterable[bytes]]:
    """Return the trees and the blobs that a tree links to, quickly.

    Raises:
        RepositoryCorruptError: the bytes are not those of a tree.
    """
    if b"40000 " not in data:  # most trees have files only, or folders only
        if _FILES.fullmatch(data) is not None:
            return (), _ANY_LINK.findall(data)
    elif _FOLDERS.fullmatch(data) is not None:
        return _ANY_LINK.findall(data), ()
    if len(data) > _SEARCHED_BYTES_MAX and _TREE.fullmatch(data) is None:
        raise RepositoryCorruptError("badTree: cannot be parsed as a tree")
    # Split by its entries, a tree leaves its links and nothing between them.
    pieces = _TREE_LINK.split(data)
    if any(pieces[::4]):
        raise RepositoryCorruptError("badTree: cannot be parsed as a tree")
    if any(pieces[3::4]):
        entries = tree_entries(data)
        trees = [oid for mode, _, oid in entries if mode == MODE_TREE]
        return trees, [oid for mode, _, oid in entries if mode not in (MODE_TREE, MODE_SUBMODULE)]
    return filter(None, pieces[1::4]), filter(None, pieces[2::4])


def links_of(kind: int, data: bytes) -> list[bytes]:
    """List what an object links to, without submodules.

    Raises:
        RepositoryCorruptError: the bytes are not those of such an object.
    """
    if kind == TREE:
        entries = TREE_ENTRY.findall(data)
        if sum(len(mode) + len(name) + OID_BYTES + 2 for mode, name, _ in entries) != len(data):
            raise RepositoryCorruptError("bad tree object")
        return [oid for mode, _, oid in entries if plain_mode(mode) != MODE_SUBMODULE]
    if kind == COMMIT:
        commit = parse_commit(data)
        return [commit.tree, *commit.parents]
    return [parse_tag(data)[0]] if kind == TAG else []


def parse_tag(data: bytes) -> tuple[bytes, int]:
    """Read what an annotated tag points at: its oid and type number.

    Raises:
        RepositoryCorruptError: the bytes do not begin as a tag does.
    """
    found = _TAG.match(data)
    if found is None:
        raise RepositoryCorruptError("bad tag object")
    return unhex(found[1]), TYPE_NUMBERS[found[2]]
