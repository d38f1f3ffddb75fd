"""Repair beside others: what became of a part since it was looked at decides."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.copies import Offer
from storage.digest import Digest
from storage.errors import StorageFullError
from storage.inspector import Inspector
from storage.parts import Part
from storage.records import build_memos, damage
from storage.repair import Repairer
from storage.room import Room
from tests.spoiling import flip

HELLO = Part.of_blob(Digest.of(b"hello") + b"f")


class Late(Repairer):
    """Something happens between a look at a part and the gate."""

    def meanwhile(self) -> None:
        raise NotImplementedError

    def _condemn(self, part, size_bytes, fault):
        self.meanwhile()
        return super()._condemn(part, size_bytes, fault)


def test_blob_that_is_whole_again_by_then_is_not_condemned(world, shop) -> None:
    shop.ingest({"a": b"hello"})
    path = shop.blob(b"hello")
    good = path.with_name("good")
    good.write_bytes(b"hello")
    good.chmod(0o444)
    os.utime(good, (path.stat().st_atime, path.stat().st_mtime))
    flip(path)

    class Mended(Late):
        def meanwhile(self) -> None:
            good.rename(path)

    repairer = Mended(shop.store, shop.records)
    assert repairer.condemn([HELLO]) == []
    assert (repairer.quarantine.kept(), path.read_bytes()) == ([], b"hello")
    world.expect_whole()


def test_blob_that_another_condemned_by_then_is_told_once(shop) -> None:
    shop.ingest({"a": b"hello"})
    flip(shop.blob(b"hello"))

    class Second(Late):
        def meanwhile(self) -> None:
            assert len(Repairer(shop.store, shop.records).condemn([HELLO])) == 1

    repairer = Second(shop.store, shop.records)
    assert repairer.condemn([HELLO]) == []
    assert len(repairer.quarantine.kept()) == 1
    assert [one.why for one in damage.every(shop.records.reader())] == ["has other bytes"]


def test_blob_that_others_took_in_by_then_keeps_their_file(world, shop) -> None:
    shop.ingest({"a": b"hello"})
    flip(shop.blob(b"hello"))
    repairer = Repairer(shop.store, shop.records)
    repairer.condemn([HELLO])
    inodes = []

    def pieces() -> Iterator[bytes]:
        shop.ingest({"b": b"hello"})
        inodes.append(shop.blob(b"hello").stat().st_ino)
        yield b"hello"

    repairer.mend([lambda _: iter((Offer(HELLO, "somewhere", 5, pieces()),))])
    assert [shop.blob(b"hello").stat().st_ino] == inodes
    world.expect_whole()


def test_copies_are_not_written_where_there_is_no_room_for_them(shop) -> None:
    shop.ingest({"a": b"hello"})
    flip(shop.blob(b"hello"))
    room = Room(shop.store.layout, replace(shop.store.room.limits, free_bytes_min=1 << 60))
    shop.store.room = room
    repairer = Repairer(shop.store, shop.records)
    repairer.condemn([HELLO])
    offer = Offer.of_bytes(HELLO, "somewhere", b"hello")
    with pytest.raises(StorageFullError):
        repairer.mend([lambda _: iter((offer,))])
    assert not shop.blob(b"hello").exists()


def test_what_was_built_before_is_built_again_where_its_statement_is_damaged(world, shop) -> None:
    found = shop.ingest({"a": b"hello"})
    envelope = found.envelope_sha256
    shop.records.write(
        lambda db: build_memos.put(db, "site_1", "i", "t", envelope, previews_only=False)
    )

    def is_remembered() -> bool:
        db = shop.records.reader()
        return build_memos.find(db, "site_1", "i", "t", for_preview=False) is not None

    assert is_remembered()
    flip(Path(shop.store.layout.envelope(envelope)))
    Repairer(shop.store, shop.records).condemn([Part.of_envelope(envelope)])
    assert not is_remembered()


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process has as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_process_that_can_open_no_more_files_calls_nothing_damaged(shop) -> None:
    found = shop.ingest({"a": b"hello"})
    inspector = Inspector(shop.store.layout)
    parts = [HELLO, Part.of_tree(found.digest), Part.of_envelope(found.envelope_sha256)]
    for part in parts:
        with no_more_files(), pytest.raises(OSError, match="Too many open files"):
            inspector.fault(part, 5)
        assert inspector.fault(part, 5) is None
