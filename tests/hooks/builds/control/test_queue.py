"""Which build starts next, and where the others stand: tables."""

from __future__ import annotations

import pytest

from hooks.builds.control.queue import BuildQueue, Waiting, in_order


def waiting(*texts: str) -> list[Waiting]:
    """Builds in the order that they were asked for: `SITE`, or `SITE/ENV` of one that deploys."""
    builds = []
    for number, text in enumerate(texts):
        site, _, env = text.partition("/")
        lane = f"{site}/{env}" if env else None
        builds.append(Waiting(f"job_{number:02d}", f"build_{number:02d}", site, lane))
    return builds


def numbers(builds: list[Waiting]) -> str:
    return " ".join(str(int(build.job_id[4:])) for build in builds)


@pytest.mark.parametrize(
    ("asked", "under_way", "turns", "busy", "first", "later"),
    [
        pytest.param("", {}, {}, (), "", "", id="nothing waits"),
        pytest.param("a/1 a/2 a/3", {}, {}, (), "0 1 2", "", id="one site, oldest first"),
        pytest.param("a/1 a/2 a/3 b/1", {}, {}, (), "0 3 1 2", "", id="sites take turns"),
        pytest.param(
            "a/1 a/2 a/3 b/1", {}, {"a": 1}, (), "3 0 1 2", "", id="who had no turn yet is first"
        ),
        pytest.param(
            "a/1 b/1 c/1", {}, {"a": 9, "b": 7, "c": 8}, (), "1 2 0", "", id="longest ago is first"
        ),
        pytest.param(
            "a/2 b/1", {"a": 1}, {"a": 1, "b": 2}, (), "1 0", "", id="fewest under way is first"
        ),
        pytest.param("a/1 a/1 a/2", {}, {}, (), "0 2", "1", id="one at a time onto an environment"),
        pytest.param(
            "a/1 b/1", {"a": 1}, {}, ("a/1",), "1", "0", id="the environment is busy already"
        ),
        pytest.param("a a a/1", {}, {}, (), "0 1 2", "", id="what deploys nowhere needs no lane"),
        pytest.param(
            "a/1 a/1 a/1 b/1 b/1 a/2", {}, {}, (), "0 3 5", "1 4 2", id="what is blocked waits"
        ),
        pytest.param(
            " ".join(f"a/{n}" for n in range(50)) + " b/1",
            {"a": 2},
            {"a": 1},
            (),
            "50 " + " ".join(str(n) for n in range(50)),
            "",
            id="fifty of one site do not delay another's first",
        ),
    ],
)
def test_order(asked, under_way, turns, busy, first, later) -> None:
    startable, blocked = in_order(
        reversed(waiting(*asked.split())), under_way=under_way, turns=turns, busy=busy
    )
    assert (numbers(startable), numbers(blocked)) == (first, later)


def test_sites_share_one_slot_turn_by_turn() -> None:
    queue = BuildQueue()
    for build in waiting("a/1", "a/2", "a/3", "b/1", "b/2", "c/1"):
        queue.add(build)
    started = []
    while build := queue.take():
        started.append(build.job_id[-1])
        queue.leave(build.job_id)
    assert "".join(started) == "035142"


def test_site_that_comes_again_and_again_waits_for_the_others() -> None:
    queue = BuildQueue()
    for build in waiting("a/1", "a/2", "a/3", "a/4"):
        queue.add(build)
    started = ""
    for number in range(4, 8):
        queue.add(Waiting(f"job_{number:02d}", f"build_{number:02d}", "b", f"b/{number}"))
        build = queue.take()
        assert build is not None
        started += build.site_id
        queue.leave(build.job_id)
    assert started == "abab"


def test_places_count_what_starts_before_and_say_what_is_waited_for() -> None:
    queue = BuildQueue()
    for build in waiting("a/1", "a/1", "b/1"):
        queue.add(build)

    def place(job_id, free_slots=0):
        return queue.place(job_id, free_slots=free_slots, has_builders=True)

    assert [place(f"job_0{n}").before for n in range(3)] == [0, 2, 1]
    assert not place("job_00").is_starting
    assert place("job_00", 1).is_starting
    assert not place("job_02", 1).is_starting
    assert place("job_02", 2).is_starting
    assert not place("job_01", 9).is_starting
    assert queue.take().job_id == "job_00"
    assert place("job_00") is None
    assert place("job_01").behind == "build_00"
    assert [place("job_01").before, place("job_02").before] == [1, 0]
    queue.leave("job_02")
    assert not place("job_01", 1).is_starting
    queue.leave("job_00")
    assert (place("job_01").before, place("job_01").behind) == (0, None)
    assert place("job_01", 1).is_starting


def test_build_that_is_queued_again_keeps_its_lane_until_then() -> None:
    queue = BuildQueue()
    first, second = waiting("a/1", "a/1")
    queue.resume(first)
    queue.add(second)
    assert queue.take() is None
    queue.add(first)
    assert queue.take() == first
    assert queue.take() is None
