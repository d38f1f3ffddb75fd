"""The moment of a backup: who waits for it, and what happens to what goes in the middle."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from pathlib import Path

import pytest

from storage.backup.take import TRIES_MAX
from storage.backup.verify import verify
from storage.custody import Custody
from storage.errors import BackupError
from storage.gate import locked
from storage.ids import new_id
from storage.model import SYSTEM, PushRecord, RefMove, Site
from storage.records import pushes, sites
from tests.waiting import wait_for, waiters_of


def collecting(small) -> tuple[Path, contextlib.AbstractContextManager[None]]:
    path = small.store.layout.collector
    return path, locked(path, fcntl.LOCK_EX)


def changing_keys(small) -> tuple[Path, contextlib.AbstractContextManager[None]]:
    return small.places.keys / "lock", Custody(small.places.keys).locked()


@pytest.mark.parametrize("busy", [collecting, changing_keys])
def test_moment_is_none_of_a_collection_or_a_change_of_keys(small, busy) -> None:
    """Or the records would count on what is just going, or on keys that are not there yet."""
    path, lock = busy(small)
    taken: list[object] = []
    backup = threading.Thread(target=lambda: taken.append(small.back_up(with_keys=True)))
    with lock:
        backup.start()
        wait_for(lambda: taken or waiters_of(path))
        assert not taken
    backup.join()
    assert [item.faults for item in verify(small.destination)] == [()]


def test_push_that_had_begun_and_was_not_written_down_yet_is_not_lost(small) -> None:
    """Its row says when it began, which was before the moment."""
    told: list[str] = []

    def tell(progress) -> None:
        if progress.what == "repositories" and not told:
            told.append(small.push("meanwhile"))
            began = time.time_ns() // 1_000_000 - 30_000
            move = RefMove("refs/heads/main", "0" * 40, told[0])
            push = PushRecord(new_id("push"), "site_1", SYSTEM, (move,), (), began, began)
            small.records.write(lambda db: pushes.add(db, push))

    assert small.back_up(tell=tell).facts.late_pushes == 1


def add_site(small, number: int) -> None:
    site = Site(f"site_{number}", f"more-{number}", "main", 0)
    small.records.write(lambda db: sites.add(db, site))
    small.repositories.create(site.id, "main")


def delete_site(small, number: int) -> None:
    small.records.write(lambda db: sites.delete(db, f"site_{number}"))
    small.repositories.remove(f"site_{number}")


def test_site_that_is_deleted_in_the_middle_is_not_in_it(small) -> None:
    add_site(small, 2)
    gone: list[int] = []

    def tell(progress) -> None:
        if progress.what == "repositories" and not gone:
            gone.append(2)
            delete_site(small, 2)

    assert small.back_up(tell=tell).facts.sites == 1
    assert [item.faults for item in verify(small.destination, is_deep=True)] == [()]


def test_sites_that_are_deleted_again_and_again_are_said(small) -> None:
    numbers = iter(range(2, 10))
    add_site(small, 2)

    def tell(progress) -> None:
        if progress.what == "repositories" and progress.done == 0:
            number = next(numbers)
            delete_site(small, number)
            add_site(small, number + 1)

    with pytest.raises(BackupError, match="deleted again and again"):
        small.back_up(tell=tell)
    assert next(numbers) == 2 + TRIES_MAX
    assert small.destination.names() == []
