"""The scrub reads everything once in a while, goes on after a restart, and hurries nobody."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import scrub
from storage.check import check_store
from storage.copies import Lacking, Offer, issued_statements, twins
from storage.digest import Digest
from storage.envelope import seal
from storage.inspector import Inspector
from storage.parts import Part
from storage.records import release_statements, unsecured
from storage.records import scrub as rows
from storage.records.build_caches import every as every_cache
from storage.records.release_statements import IssuedStatement
from storage.repair import Repairer
from storage.scrub import FILE_COST_BYTES, Scrubber, ScrubLimits, Turn
from storage.scrub_round import SETTLE_MS, TRUST_EVERY_MS, Round
from storage.signing import SigningKey
from storage.trust import introduce
from tests.spoiling import closed_quarantine, flip

DAY = 24 * 3_600_000
FAST = 1 << 40


def scrubber_of(world, *, bytes_per_s: int = FAST) -> Scrubber:
    shop = world.shop
    return Scrubber(
        Repairer(shop.store, shop.records, clock=world.clock),
        shop.records,
        [twins(shop.store.layout), issued_statements(shop.records)],
        shop.store.layout.trust,
        limits=ScrubLimits(every_ms=30 * DAY, bytes_per_s=bytes_per_s),
        clock=world.clock,
    )


def ages(world) -> list[int]:
    """When the blobs were read, by their contents' order of ingest."""
    db = world.shop.records.reader()
    return [row[0] for row in db.execute("SELECT verified_at FROM blob ORDER BY id")]


@pytest.fixture
def forgotten(monkeypatch) -> list[str]:
    """The files of which the system was asked to forget what it has in memory."""
    names: list[str] = []
    real = os.posix_fadvise

    def note(fd: int, *advice: int) -> None:
        assert advice == (0, 0, os.POSIX_FADV_DONTNEED)
        names.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd, *advice)

    monkeypatch.setattr(os, "posix_fadvise", note)
    return names


def test_every_kind_of_part_is_read_from_the_medium(world, forgotten: list[str]) -> None:
    shop = world.shop
    ingested = shop.ingest({"a": b"a"})
    released = issue(world, ingested)
    released.write_bytes(seal(b'{"a":"statement"}', shop.signing_key).data)
    released.chmod(0o444)
    world.clock.now = time.time_ns() // 1_000_000 + 60 * DAY
    scrubber = scrubber_of(world)
    scrubber.turn()
    world.clock.now += SETTLE_MS
    assert scrubber.turn().parts == 1
    layout = shop.store.layout
    assert sorted(forgotten) == sorted(
        [
            str(shop.blob(b"a")),
            str(layout.tree(ingested.digest)),
            str(layout.envelope(ingested.envelope_sha256)),
            str(released),
        ]
    )


def test_copies_of_every_kind_are_read_from_the_medium_at_a_pace(
    shop, forgotten: list[str]
) -> None:
    ingested = shop.ingest({"a": b"a"})
    inspector = Inspector(shop.store.layout)
    for part, size_bytes in (
        (Part.of_blob(Digest.of(b"a") + b"f"), 1),
        (Part.of_tree(ingested.digest), None),
        (Part.of_envelope(ingested.envelope_sha256), None),
    ):
        path = part.path(shop.store.layout)
        for look in (
            lambda pace, part=part, size=size_bytes: inspector.fault(part, size, pace=pace) is None,
            lambda pace, part=part, size=size_bytes, path=path: inspector.is_copy(
                path, part, size, pace
            ),
        ):
            assert look(None)
            assert forgotten == []
            assert look(lambda _: None)
            assert forgotten == [path]
            forgotten.clear()


def test_everything_is_read_once_in_its_time_and_not_again_before(world) -> None:
    world.clock.now = time.time_ns() // 1_000_000
    world.shop.ingest({"a": b"a", "b*": b"b"})
    scrubber = scrubber_of(world)
    assert scrubber.turn().parts == 1  # the statement: the builds of these tests are from 1970
    assert scrubber.turn().is_idle
    world.clock.now += 30 * DAY + 10_000
    assert scrubber.progress().due == 4
    turn = scrubber.turn()
    assert (turn.parts, turn.size_bytes, turn.found) == (4, 2, ())
    assert scrubber.turn().is_idle
    assert scrubber.progress() == rows.Progress(4, 0, 0, world.clock.now, world.clock.now, 0, 0)
    world.write(lambda db: db.execute("UPDATE blob SET verified_at = NULL WHERE size_bytes = 1"))
    assert (scrubber.progress().oldest, scrubber.progress().due_bytes) == (None, 2)


def test_what_was_read_by_a_clock_that_was_ahead_is_read_again(world) -> None:
    """A machine that starts in the wrong year reads all, and would read nothing until then."""
    now = time.time_ns() // 1_000_000
    shop = world.shop
    released = issue(world, shop.ingest({"a": b"a", "b*": b"b"}))
    released.write_bytes(seal(b'{"a":"statement"}', shop.signing_key).data)
    released.chmod(0o444)
    scrubber = scrubber_of(world)
    world.clock.now = now + 3650 * DAY
    assert scrubber.turn().parts == 4
    world.clock.now += SETTLE_MS
    assert scrubber.turn().parts == 1
    world.clock.now = now
    flip(shop.blob(b"a"))
    (shop.store.layout.trust / "root.1.json").rename(shop.folder / "away")
    assert scrubber.progress().due == 4
    turn = scrubber.turn()
    assert (turn.parts, len(turn.found), turn.trust_fault is None) == (5, 1, False)
    assert scrubber.turn().is_idle
    assert scrubber.progress().due == 0


def test_restart_goes_on_with_what_was_not_read_for_longest(world) -> None:
    world.shop.ingest({f"f{n}": b"%d" % n for n in range(20)})
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    scrubber = scrubber_of(world)
    now = world.clock.now
    due = rows.due(world.shop.records.reader(), now - 30 * DAY, now, limit_count=12)
    world.write(lambda db: rows.note_read(db, [one.part for one in due], world.clock.now - DAY))
    world.restart()
    scrubber = scrubber_of(world)
    assert scrubber.progress().due == 22 - 12
    assert scrubber.turn().parts == 10
    assert scrubber.turn().is_idle
    assert sorted(set(ages(world))) == [world.clock.now - DAY, world.clock.now]


def test_damage_is_found_mended_and_counted(world) -> None:
    shop = world.shop
    shop.pin(shop.ingest({"a": b"hello", "a.sh*": b"hello", "b": b"other"}))
    shop.keep_tree({"cache": b"cached"})
    flip(shop.blob(b"hello"))
    flip(shop.blob(b"other"))
    flip(shop.blob(b"cached"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    turn = scrubber_of(world).turn()
    assert {found.part for found in turn.found} == {
        Part.of_blob(Digest.of(data) + b"f") for data in (b"hello", b"other", b"cached")
    }
    assert [mended.source for mended in turn.mended] == ["the same content in the store"]
    assert every_cache(shop.records.reader()) == [], "the next build makes it anew"
    progress = scrubber_of(world).progress()
    assert (progress.found, progress.mended) == (3, 1)
    problems = check_store(shop.store.layout.root, shop.records).problems
    assert len(problems) == 2
    assert all("it counts as absent" in problem for problem in problems)


def stopped_turn(scrubber: Scrubber) -> Turn:
    """A turn that would take long, and is stopped on the way."""
    turns: list[Turn] = []
    turning = threading.Thread(target=lambda: turns.append(scrubber.turn()))
    turning.start()
    turning.join(0.5)
    assert turning.is_alive()
    scrubber.stop()
    turning.join(60)
    (turn,) = turns
    return turn


def test_reading_keeps_to_its_pace_and_stops_in_the_middle_of_a_file(world) -> None:
    shop = world.shop
    shop.ingest({"large": bytes(8 << 20), "small": b"small"})
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    scrubber = scrubber_of(world, bytes_per_s=512 << 10)  # some 17 s for the large one
    turn = stopped_turn(scrubber)
    assert turn.parts < 4
    assert scrubber_of(world).progress().due == 4 - turn.parts


def test_small_files_are_read_slowly_too_and_a_turn_ends_in_time(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening each takes a disk as long as reading some."""
    world.shop.ingest({f"f{n}": b"%d" % n for n in range(30)})
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    monkeypatch.setattr(scrub, "TURN_S", 0.3)
    scrubber = scrubber_of(world, bytes_per_s=10 * FILE_COST_BYTES)
    assert 0 < scrubber.turn().parts < 10
    assert stopped_turn(scrubber_of(world, bytes_per_s=FILE_COST_BYTES)).parts < 3


def test_damage_that_was_found_before_the_stop_is_put_away(world) -> None:
    shop = world.shop
    shop.ingest({"large": bytes(8 << 20), "small": b"small"})
    flip(shop.blob(b"small"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    world.write(lambda db: rows.note_read(db, [part_of(b"small")], 1))
    turn = stopped_turn(scrubber_of(world, bytes_per_s=2 << 20))  # some 4 s for the large one
    assert [one.part for one in turn.found] == [part_of(b"small")]
    assert not shop.blob(b"small").exists()


def test_mending_keeps_to_the_pace_and_stops_in_the_middle_of_a_file(world) -> None:
    shop = world.shop
    shop.pin(shop.ingest({"large": bytes(8 << 20), "a": b"hello", "a.sh*": b"hello"}))
    damaged = [bytes(8 << 20), b"hello"]
    for data in damaged:
        flip(shop.blob(data))
    parts = [Part.of_blob(Digest.of(data) + b"f") for data in damaged]
    Repairer(shop.store, shop.records).condemn(parts)
    scrubber = scrubber_of(world, bytes_per_s=512 << 10)  # some 17 s for the large one
    turn = stopped_turn(scrubber)
    assert turn.found == ()
    assert [mended.part for mended in turn.mended] == [parts[1]], "before it was stopped"
    assert scrubber_of(world).progress().mended == 1


@pytest.mark.parametrize("who", ["turn", "examine"])
def test_what_was_mended_before_the_disk_was_full_is_said_and_counted(world, who: str) -> None:
    shop = world.shop
    ingested = shop.ingest({"a": b"hello", "b": b"other"})
    shop.pin(ingested)
    flip(shop.blob(b"hello"))
    flip(shop.blob(b"other"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY

    def elsewhere(_: Lacking) -> Iterator[Offer]:
        yield Offer(part_of(b"other"), "elsewhere", 5, iter([b"other"]))
        yield Offer(part_of(b"hello"), "elsewhere", 1 << 60, iter([b"hello"]))

    repairer = Repairer(shop.store, shop.records, clock=world.clock)
    trust = shop.store.layout.trust
    limits = ScrubLimits(bytes_per_s=FAST)
    scrubber = Scrubber(
        repairer, shop.records, [elsewhere], trust, limits=limits, clock=world.clock
    )
    if who == "turn":
        turn = scrubber.turn()
        found, mended, trouble = turn.found, turn.mended, turn.trouble
    else:
        condemned, mending = scrubber.examine(ingested.digest, ingested.envelope_sha256)
        found, mended, trouble = tuple(condemned), mending.mended, mending.trouble
    assert {one.part for one in found} == {part_of(b"hello"), part_of(b"other")}
    assert [one.part for one in mended] == [part_of(b"other")]
    assert "more are needed" in str(trouble)
    progress = scrubber.progress()
    assert (progress.found, progress.mended) == (2, 1)
    assert [one.part for one in repairer.damage()] == [part_of(b"hello")]


def part_of(data: bytes) -> Part:
    return Part.of_blob(Digest.of(data) + b"f")


@pytest.mark.parametrize("what", ["blob", "tree", "envelope"])
def test_damaged_parts_are_found_and_what_counts_as_absent_is_not_read(world, what: str) -> None:
    shop = world.shop
    ingested = shop.ingest({"a": b"a"})
    layout = shop.store.layout
    path = {
        "blob": shop.blob(b"a"),
        "tree": Path(layout.tree(ingested.digest)),
        "envelope": Path(layout.envelope(ingested.envelope_sha256)),
    }[what]
    flip(path)
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    scrubber = scrubber_of(world)
    turn = scrubber.turn()
    assert [found.part.kind for found in turn.found] == [what]
    assert scrubber.turn().is_idle, "it is known now"
    world.clock.now += 40 * DAY
    due = rows.due(shop.records.reader(), world.clock.now, world.clock.now, limit_count=9)
    assert len(due) == (3 if what == "envelope" else 2)


@pytest.mark.parametrize("what", ["blob", "tree", "envelope"])
def test_who_stumbles_over_an_artifact_has_all_of_it_looked_at(world, what: str) -> None:
    shop = world.shop
    ingested = shop.ingest({"a": b"a"})
    layout = shop.store.layout
    part = {
        "blob": part_of(b"a"),
        "tree": Part.of_tree(ingested.digest),
        "envelope": Part.of_envelope(ingested.envelope_sha256),
    }[what]
    flip(Path(part.path(layout)))
    scrubber = scrubber_of(world)
    with closed_quarantine(layout):
        (found,), _ = scrubber.examine(ingested.digest, ingested.envelope_sha256)
        assert (found.part, found.found_at) == (part, None)
        assert scrubber.progress().found == 0, "it is found again"
    (found,), _ = scrubber.examine(ingested.digest, ingested.envelope_sha256)
    assert (found.part, found.found_at) == (part, world.clock.now)
    assert scrubber.progress().found == 1


def test_quarantine_is_tidied_after_its_time(world) -> None:
    shop = world.shop
    shop.ingest({"a": b"a"})
    flip(shop.blob(b"a"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    scrubber = scrubber_of(world)
    assert len(scrubber.turn().found) == 1
    shop.ingest({"b": b"a"})  # whole again
    world.clock.now += scrubber.limits.quarantine_ms
    assert scrubber.tidy() == 0
    world.clock.now += 1
    assert scrubber.tidy() == 1


def issue(world, ingested) -> Path:
    """Release an artifact with a statement, as control does; return its file in the store."""
    world.release(ingested)
    deployment_id = world.shop.records.reader().execute("SELECT id FROM deployment").fetchone()[0]
    envelope = seal(b'{"a":"statement"}', world.shop.signing_key)
    issued = IssuedStatement(
        envelope.sha256,
        "env_1",
        1,
        deployment_id,
        world.shop.signing_key.key_id,
        ingested.envelope_sha256,
        envelope.data.decode(),
        0,
    )
    world.write(lambda db: release_statements.add(db, issued))
    return Path(world.shop.store.layout.envelope(envelope.sha256))


def test_release_statement_is_read_a_while_after_it_was_issued_and_mended(world) -> None:
    path = issue(world, world.shop.ingest({"a": b"a"}))
    scrubber = scrubber_of(world)
    assert scrubber.turn().found == (), "control is about to lay it there"
    path.write_bytes(b"rotten")
    world.clock.now += SETTLE_MS
    turn = scrubber.turn()
    assert [found.part.name for found in turn.found] == [path.name[:64]]
    assert [mended.source for mended in turn.mended] == ["the records"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name[:64]
    flip(path)
    assert scrubber.turn().is_idle, "it was read a moment ago"
    world.clock.now += 30 * DAY
    assert [found.part.name for found in scrubber.turn().found] == [path.name[:64]]


def test_release_statement_is_let_be_at_first_however_often_all_is_read(world) -> None:
    ingested = world.shop.ingest({"a": b"a"})
    issue(world, ingested)
    trust = world.shop.store.layout.trust
    turning = Round(trust, world.shop.records, every_ms=1000)
    now = world.clock.now
    assert turning.due(now, limit_count=9) == []
    (part,) = turning.due(now + SETTLE_MS, limit_count=9)
    turning.note_read([part], now + SETTLE_MS)
    assert turning.due(now + SETTLE_MS + 999, limit_count=9) == []
    assert turning.due(now + SETTLE_MS + 1000, limit_count=0) == []
    assert turning.due(now + SETTLE_MS + 1000, limit_count=1) == [part]


def test_generations_of_trust_are_read(world) -> None:
    path = world.shop.store.layout.trust / "root.1.json"
    scrubber = scrubber_of(world)
    assert scrubber.turn().trust_fault is None
    flip(path)
    assert scrubber.turn().trust_fault is None, "they were read a moment ago"
    world.clock.now += TRUST_EVERY_MS
    assert scrubber.turn().trust_fault is not None
    assert scrubber.turn().trust_fault is not None, "it is said until they are whole again"
    flip(path)
    world.clock.now += TRUST_EVERY_MS
    assert scrubber.turn().trust_fault is None


def test_generation_that_was_taken_away_is_missed(world) -> None:
    shop = world.shop
    other = SigningKey.load_or_create(shop.folder / "other.key")
    introduce(shop.store.layout.trust, root=shop.root_key, signing=other)
    scrubber = scrubber_of(world)
    assert scrubber.turn().trust_fault is None
    (shop.store.layout.trust / "root.2.json").unlink()  # what is left holds by itself
    world.clock.now += TRUST_EVERY_MS
    fault = scrubber.turn().trust_fault
    assert fault is not None
    assert "newer ones were taken away" in fault


def test_generation_that_came_after_the_first_look_is_missed_too(world) -> None:
    shop = world.shop
    scrubber = scrubber_of(world)
    assert scrubber.turn().trust_fault is None
    other = SigningKey.load_or_create(shop.folder / "other.key")
    introduce(shop.store.layout.trust, root=shop.root_key, signing=other)
    world.clock.now += TRUST_EVERY_MS
    assert scrubber.turn().trust_fault is None
    (shop.store.layout.trust / "root.2.json").unlink()
    world.clock.now += TRUST_EVERY_MS
    assert "newer ones were taken away" in str(scrubber.turn().trust_fault)


def test_generation_that_is_being_added_is_not_taken_for_one_that_is_missing(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the reading of them and the look at how many there are."""
    shop, glob = world.shop, Path.glob
    other = SigningKey.load_or_create(shop.folder / "other.key")

    def late(folder: Path, pattern: str) -> Iterator[Path]:
        monkeypatch.undo()
        introduce(folder, root=shop.root_key, signing=other)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", late)
    assert scrubber_of(world).turn().trust_fault is None
    assert (shop.store.layout.trust / "root.2.json").exists()


def test_scrub_that_is_turned_off_reads_nothing(world) -> None:
    world.shop.ingest({"a": b"a"})
    flip(world.shop.blob(b"a"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    flip(world.shop.store.layout.trust / "root.1.json")
    turn = scrubber_of(world, bytes_per_s=0).turn()
    assert (turn.is_idle, turn.parts, turn.found, turn.trust_fault) == (True, 0, (), None)


def test_scrub_that_was_told_to_stop_reads_nothing_more(world) -> None:
    world.shop.ingest({"a": b"a"})
    scrubber = scrubber_of(world)
    scrubber.stop()
    turn = scrubber.turn()
    assert (turn.is_idle, turn.parts) == (False, 0)


def test_copies_are_asked_for_when_damage_is_found_and_not_each_time_after(world) -> None:
    shop = world.shop
    shop.pin(shop.ingest({"a": b"a"}))
    asked: list[int] = []

    def source(lacking: Lacking) -> Iterator[Offer]:
        asked.append(len(lacking))
        yield from ()

    repairer = Repairer(shop.store, shop.records)
    limits = ScrubLimits(bytes_per_s=FAST)
    scrubber = Scrubber(repairer, shop.records, [source], shop.store.layout.trust, limits=limits)
    scrubber.turn()
    assert asked == []
    flip(shop.blob(b"a"))
    repairer.condemn([Part.of_blob(Digest.of(b"a") + b"f")])
    world.write(lambda db: db.execute("UPDATE tree SET verified_at = NULL"))
    assert scrubber.turn().found == ()
    assert asked == [], "it was tried a moment ago"
    flip(Path(shop.store.layout.tree(Digest.parse(world_digest(world)))))
    world.write(lambda db: db.execute("UPDATE tree SET verified_at = NULL"))
    assert len(scrubber.turn().found) == 1
    assert asked == [2]
    assert scrubber.turn().is_idle
    assert asked == [2]


def test_copies_are_asked_for_again_after_a_while(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be one by then."""
    shop = world.shop
    shop.pin(shop.ingest({"a": b"a"}))
    flip(shop.blob(b"a"))
    repairer = Repairer(shop.store, shop.records)
    repairer.condemn([part_of(b"a")])
    offers: list[Offer] = []
    scrubber = Scrubber(
        repairer,
        shop.records,
        [lambda _: iter(offers)],
        shop.store.layout.trust,
        limits=ScrubLimits(bytes_per_s=FAST),
    )
    assert scrubber.turn().mended == ()
    offers.append(Offer.of_bytes(part_of(b"a"), "elsewhere", b"a"))
    assert scrubber.turn().mended == (), "it was tried a moment ago"
    monkeypatch.setattr(scrub, "MEND_EVERY_S", 0.0)
    assert [one.part for one in scrubber.turn().mended] == [part_of(b"a")]


def test_what_could_not_be_put_away_keeps_nothing_waiting_and_is_tried_again(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first in the list of what is due, as long as that is."""
    shop = world.shop
    shop.ingest({"a": b"a", "b": b"b"})
    flip(shop.blob(b"a"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    monkeypatch.setattr(scrub, "TURN_COUNT", 1)
    world.write(lambda db: rows.note_read(db, [part_of(b"a")], 1))
    scrubber = scrubber_of(world)
    with closed_quarantine(shop.store.layout):
        turns = [scrubber.turn() for _ in range(5)]
        assert [turn.parts for turn in turns] == [1, 1, 1, 1, 0]
        assert [turn.is_idle for turn in turns] == [False, False, False, False, True]
        assert [one.part for turn in turns for one in turn.found] == [part_of(b"a")]
        assert scrubber.progress().due == 1
    monkeypatch.setattr(scrub, "MEND_EVERY_S", 0.0)
    assert [one.part for one in scrubber.turn().found] == [part_of(b"a")]


def test_what_was_not_read_for_longest_comes_first(world) -> None:
    world.shop.ingest({name: name.encode() for name in "abc"})
    now = world.clock.now = time.time_ns() // 1_000_000 + 100 * DAY
    for name, at in (("b", now - 50 * DAY), ("c", now - 40 * DAY), ("a", now - 60 * DAY)):
        parts = [part_of(name.encode())]
        world.write(lambda db, parts=parts, at=at: rows.note_read(db, parts, at))
    world.write(lambda db: db.execute("UPDATE tree SET verified_at = ?", (now,)))
    world.write(lambda db: db.execute("UPDATE attestation SET verified_at = ?", (now,)))
    for count in (1, 2, 3):
        due = rows.due(world.shop.records.reader(), now - 30 * DAY, now, limit_count=count)
        assert [one.part for one in due] == [part_of(name) for name in (b"a", b"b", b"c")][:count]


def test_what_came_in_meanwhile_was_not_read_by_a_wrong_clock(world) -> None:
    world.shop.ingest({"a": b"a"})
    now = world.clock.now = time.time_ns() // 1_000_000
    scrubber = scrubber_of(world)
    scrubber.turn()
    parts = [part_of(b"a")]
    world.write(lambda db: rows.note_read(db, parts, now + 30_000))
    assert (scrubber.progress().due, scrubber.turn().parts) == (0, 0)
    world.write(lambda db: rows.note_read(db, parts, now + 90_000))
    assert (scrubber.progress().due, scrubber.turn().parts) == (1, 1)


def world_digest(world) -> str:
    (row,) = world.shop.records.reader().execute("SELECT digest FROM artifact").fetchall()
    return row["digest"]


@pytest.mark.parametrize("what", ["blob", "tree", "envelope"])
def test_damage_that_cannot_be_put_away_is_not_taken_for_read_and_is_said(world, what: str) -> None:
    shop = world.shop
    ingested = shop.ingest({"a": b"a", "b": b"b"})
    layout = shop.store.layout
    part = {
        "blob": Part.of_blob(Digest.of(b"a") + b"f"),
        "tree": Part.of_tree(ingested.digest),
        "envelope": Part.of_envelope(ingested.envelope_sha256),
    }[what]
    flip(Path(part.path(layout)))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    with closed_quarantine(shop.store.layout):
        scrubber = scrubber_of(world)
        (found,) = scrubber.turn().found
        assert (found.part, found.found_at) == (part, None)
        assert scrubber.progress().due == 1, "it was not read"
        assert scrubber.turn().is_idle, "it is tried again later, and keeps nothing else waiting"
        assert scrubber.progress().found == 0
        assert Path(part.path(layout)).exists()
        for is_deep in (False, True):
            report = check_store(layout.root, shop.records, is_deep=is_deep)
            (problem,) = report.problems
            assert problem.startswith(f"{part}: ")
            assert "has other bytes; no place in quarantine: " in problem
    (found,) = scrubber_of(world).turn().found
    assert (found.part, found.found_at) == (part, world.clock.now)
    assert unsecured.every(shop.records.reader()) == {}


@pytest.mark.parametrize("seen_by", ["the scrub", "a repair", "a check"])
def test_what_could_not_be_put_away_and_is_whole_again_is_said_no_more(world, seen_by) -> None:
    shop = world.shop
    shop.ingest({"a": b"a"})
    part = Part.of_blob(Digest.of(b"a") + b"f")
    flip(shop.blob(b"a"))
    world.clock.now = time.time_ns() // 1_000_000 + 40 * DAY
    with closed_quarantine(shop.store.layout):
        assert len(scrubber_of(world).turn().found) == 1
    flip(shop.blob(b"a"))
    if seen_by == "the scrub":
        assert scrubber_of(world).turn().found == ()
    elif seen_by == "a repair":
        assert Repairer(shop.store, shop.records).condemn([part]) == []
    assert check_store(shop.store.layout.root, shop.records).problems == ()
    assert (unsecured.every(shop.records.reader()) == {}) == (seen_by != "a check")
