"""Each object of a received pack: named, checked, searched for links, compared to a stored one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from storage.git.closure import Closure, Links
from storage.git.errors import PackInvalidError, RepositoryCorruptError
from storage.git.fsck import FsckRules, SpecialFile, findings, is_clean, special_files
from storage.git.object_formats import (
    BLOB,
    COMMIT,
    TREE,
    TYPE_NAMES,
    commit_links,
    parse_tag,
    tree_links,
)
from storage.git.objects import ObjectStore
from storage.git.pack_streams import PackStreams

LINKED_BYTES_MAX = 8 << 20  # trees and commits remembered for the connectivity check
WARNINGS_MAX = 100
_HEADS = {kind: name + b" %d\0" for kind, name in TYPE_NAMES.items()}


class ObjectChecks:
    """Looks at one object after the other, and notes what they say together.

    Args:
        bases: where objects of the same id may be already.
        rules: how strictly objects are checked; None checks only what links need.
        linked_bytes_max: of commits and trees that are remembered.

    Attributes:
        links: type -> what the objects link to as such.
        commits, trees: (id, content) of each; empty when they are too many to be remembered.
        warnings: findings of fsck that do not refuse.
        special_files: those in trees whose content is to be checked when all objects are there.
    """

    def __init__(
        self,
        bases: ObjectStore,
        rules: FsckRules | None,
        linked_bytes_max: int = LINKED_BYTES_MAX,
    ) -> None:
        self.bases = bases
        self.rules = rules
        self.links = {kind: Links() for kind in TYPE_NAMES}
        self._named: dict[int, list[bytes]] = {kind: [] for kind in TYPE_NAMES}
        self.commits: list[tuple[bytes, bytes]] = []
        self.trees: list[tuple[bytes, bytes]] = []
        self.linked_bytes = 0
        self.linked_bytes_max = linked_bytes_max
        self.warnings: list[str] = []
        self.special_files: set[SpecialFile] = set()
        self._may_exist = _existence(bases)

    @property
    def is_linked(self) -> bool:
        """Whether all commits and trees are remembered."""
        return self.linked_bytes <= self.linked_bytes_max

    def named(self, kind: int, data: bytes) -> bytes:
        """Hash, check and search one object; return its id.

        Raises:
            PackInvalidError: it is refused, or differs from a stored one of the same id.
        """
        digest = hashlib.sha1(_HEADS[kind] % len(data), usedforsecurity=False)
        digest.update(data)
        oid = digest.digest()
        if self._may_exist is not None and self._may_exist(oid):
            self._compare(oid, kind, data)
        self._named[kind].append(oid)
        if kind != BLOB:
            self._link(oid, kind, data)
            if self.rules is not None and not is_clean(kind, data):
                self.warn(self.rules.judge(oid, findings(kind, data)))
                if kind == TREE:
                    self.special_files.update(special_files(data))
        return oid

    def named_blob(self, streams: PackStreams, at: int, size: int) -> tuple[bytes, int]:
        """Hash a large blob piece by piece; return its id and where its stream ends.

        Raises:
            PackInvalidError: it is damaged, or differs from a stored one of the same id.
        """
        digest = hashlib.sha1(_HEADS[BLOB] % size, usedforsecurity=False)
        end = streams.pieces(at, size, digest.update)
        oid = digest.digest()
        self._named[BLOB].append(oid)
        if self._may_exist is not None and self._may_exist(oid):
            self._compare_streamed(oid, streams, at, size)
        return oid, end

    def _link(self, oid: bytes, kind: int, data: bytes) -> None:
        try:
            if kind == TREE:
                trees, blobs = tree_links(data)
                if trees:
                    self.links[TREE].note(trees)
                if blobs:
                    self.links[BLOB].note(blobs)
                if self.linked_bytes <= self.linked_bytes_max:
                    self._remember(self.trees, oid, data)
            elif kind == COMMIT:
                tree, parents = commit_links(data)
                self.links[TREE].note((tree,))
                self.links[COMMIT].note(parents)
                if self.linked_bytes <= self.linked_bytes_max:
                    self._remember(self.commits, oid, data)
            else:
                target, target_kind = parse_tag(data)
                self.links[target_kind].note((target,))
        except RepositoryCorruptError as error:
            raise PackInvalidError(f"object {oid.hex()}: {error}") from error

    def _remember(self, place: list[tuple[bytes, bytes]], oid: bytes, data: bytes) -> None:
        place.append((oid, data))
        self.linked_bytes += len(data)
        self._forget_too_many()

    def _forget_too_many(self) -> None:
        if not self.is_linked:
            self.commits, self.trees = [], []

    def remember_more(
        self,
        commits: list[tuple[bytes, bytes]],
        trees: list[tuple[bytes, bytes]],
        linked_bytes: int,
    ) -> None:
        """Remember what another process has read; without any, too many bytes were linked."""
        self.commits += commits
        self.trees += trees
        is_forgotten = linked_bytes and not commits and not trees
        self.linked_bytes += self.linked_bytes_max + 1 if is_forgotten else linked_bytes
        self._forget_too_many()

    def closure(self) -> Closure:
        """Return the closure of the objects that were named."""
        return Closure.of(
            {kind: list(oids) for kind, oids in self._named.items()},
            {kind: noted.all() for kind, noted in self.links.items()},
        )

    def warn(self, warnings: list[str]) -> None:
        """Note findings that do not refuse, as far as somebody would read them."""
        self.warnings += warnings[: WARNINGS_MAX - len(self.warnings)]

    def _compare(self, oid: bytes, kind: int, data: bytes) -> None:
        """Refuse an object that has a stored one's id and another content."""
        try:
            is_equal = (
                self.bases.kind_and_size(oid) == (kind, len(data))
                and self.bases.read_unchecked(oid)[1] == data
            )
        except RepositoryCorruptError:  # a damaged object is better replaced
            return
        if not is_equal:
            raise _collision(oid)

    def _compare_streamed(self, oid: bytes, streams: PackStreams, at: int, size: int) -> None:
        received, stored = hashlib.sha256(), hashlib.sha256()
        streams.pieces(at, size, received.update)
        try:
            for piece in self.bases.stream(oid):
                stored.update(piece)
        except RepositoryCorruptError:
            return
        if received.digest() != stored.digest():
            raise _collision(oid)


def _collision(oid: bytes) -> PackInvalidError:
    return PackInvalidError(f"SHA1 COLLISION FOUND WITH {oid.hex()} !")


def _existence(bases: ObjectStore) -> Callable[[bytes], bool] | None:
    """Return a quick test for objects that are stored already; None when none are."""
    locate = bases.locate
    loose = bases.loose_directories()
    if not bases.packs() and not loose:
        return None
    if not loose:
        return lambda oid: locate(oid) is not None
    return lambda oid: locate(oid) is not None or (oid[0] in loose and bases.contains(oid))
