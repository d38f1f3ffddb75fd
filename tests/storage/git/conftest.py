"""A repository of objects that no git command would make."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import pytest

from storage.git.ingest import Ingested, IngestTask, StagedPack, ingest
from storage.git.object_formats import BLOB, COMMIT, REF_DELTA, TAG, TREE, TYPE_NAMES
from storage.git.pack import entry_head
from storage.git.repository import Repository

BEGIN = 1_700_000_000


class MadeRepository:
    """Makes objects, each of which goes into the next pack, and takes packs in as a push does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("objects/pack", "refs/heads"):
            (path / name).mkdir(parents=True)
        (path / "HEAD").write_text("ref: refs/heads/main\n")
        self.repository = Repository(path)
        self._entries: list[bytes] = []
        self._known: set[bytes] = set()

    def blob(self, data: bytes) -> bytes:
        return self._made(BLOB, data)

    def tree(self, *entries: tuple[bytes, bytes, bytes]) -> bytes:
        return self._made(TREE, b"".join(b"%b %b\0%b" % entry for entry in entries))

    def commit(self, tree: bytes, *parents: bytes, time: int = 0, more: bytes = b"") -> bytes:
        links = b"".join(b"parent %b\n" % parent.hex().encode() for parent in parents)
        who = b"x <x@x> %d +0000" % (BEGIN + time)
        lines = b"author %b\ncommitter %b\n\n%b\n" % (who, who, more)
        return self._made(COMMIT, b"tree %b\n" % tree.hex().encode() + links + lines)

    def tag(self, target: bytes, kind: bytes = b"commit") -> bytes:
        lines = b"tag t\ntagger x <x@x> %d +0000\n\nt\n" % BEGIN
        return self._made(TAG, b"object %b\ntype %b\n" % (target.hex().encode(), kind) + lines)

    def delta(self, base: bytes, old: bytes, new: bytes) -> None:
        """Put a delta into the next pack that copies nothing of its base."""
        data = bytes((len(old), len(new), len(new))) + new
        self._entries.append(entry_head(REF_DELTA, len(data)) + base + zlib.compress(data))

    def _made(self, kind: int, data: bytes) -> bytes:
        oid = oid_of(kind, data)
        if oid not in self._known:
            self._known.add(oid)
            self._entries.append(entry_head(kind, len(data)) + zlib.compress(data, 1))
        return oid

    def forget(self) -> None:
        """Leave what was made since out of the next pack: it will be missing."""
        self._entries.clear()

    def push(self, *tips: bytes, shallow: Iterable[bytes] = ()) -> Ingested:
        """Take in what was made, as for refs that are to point at `tips`."""
        body = b"PACK" + struct.pack(">LL", 2, len(self._entries)) + b"".join(self._entries)
        self.forget()
        staged = StagedPack(self.path, body + hashlib.sha1(body).digest())
        task = IngestTask(
            repository=str(self.path), quarantine=None, tips=list(tips), shallow=list(shallow)
        )
        ingested = ingest(task, self.repository, staged=staged)
        if ingested.error is None and not ingested.broken:
            staged.take_in(self.repository.sharing)
            self.repository.refresh()
        else:
            staged.discard()
        return ingested

    def unpack(self) -> None:
        """Make loose objects of all that is in packs."""
        packs = list((self.path / "objects/pack").glob("*.pack"))
        moved = [pack.rename(self.path / pack.name) for pack in packs]
        for index in (self.path / "objects/pack").iterdir():
            index.unlink()
        for pack in moved:
            with pack.open("rb") as file:
                subprocess.run(
                    ["git", "unpack-objects", "-q"], cwd=self.path, stdin=file, check=True
                )

    def point(self, name: str, oid: bytes) -> None:
        """Let a branch point there."""
        (self.path / "refs/heads" / name).write_text(oid.hex() + "\n")
        self.repository.refresh()

    def reached(self, *tips: bytes, without: Collection[bytes] = ()) -> set[bytes]:
        """List what git finds from there."""
        revisions: Sequence[str] = [*(t.hex() for t in tips), *(f"^{t.hex()}" for t in without)]
        listed = subprocess.run(
            ["git", "rev-list", "--objects", *revisions],
            cwd=self.path, capture_output=True, check=True, text=True,
        )  # fmt: skip
        return {bytes.fromhex(line[:40]) for line in listed.stdout.splitlines()}


def oid_of(kind: int, data: bytes) -> bytes:
    return hashlib.sha1(b"%b %d\0%b" % (TYPE_NAMES[kind], len(data), data)).digest()


@pytest.fixture
def made(tmp_path: Path) -> MadeRepository:
    return MadeRepository(tmp_path / "r.git")


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], MadeRepository]:
    return lambda name: MadeRepository(tmp_path / name)
