"""The site host and release statements: what it goes by, what it refuses, what it remembers."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from storage import trust
from storage.digest import Digest
from storage.signing import SigningKey


def page(text: str) -> dict[str, str]:
    return {"index.html": text}


def state_file(host, env="env_1") -> Path:
    return host.directory / "environments" / env / "state.json"


def state(host) -> dict:
    return json.loads(state_file(host).read_text())


def edit_state(host, **fields) -> None:
    """Change what the host wrote, while it is down."""
    said = state(host)
    served = {**said["served"], **fields.pop("served", {})}
    state_file(host).write_text(json.dumps({**said, "served": served, **fields}))


# What a release statement says too much, or by whom: the code that the host answers with.
REFUSED = {
    "nobody's key": (
        lambda shelf, roll: shelf.release(roll, SigningKey.generate()),
        "release.statement_invalid",
    ),
    "another environment": (
        lambda shelf, roll: shelf.release(roll, env_id="env_2"),
        "release.wrong_environment",
    ),
    "another artifact": (
        lambda shelf, roll: shelf.release(roll, digest=Digest.of(b"other")),
        "release.statement_invalid",
    ),
    "another provenance": (
        lambda shelf, roll: shelf.release(roll, provenance_sha256="0" * 64),
        "release.statement_invalid",
    ),
    "an older sequence": (
        lambda shelf, roll: shelf.release(roll, sequence=4),
        "release.replayed",
    ),
    "an equal sequence": (
        lambda shelf, roll: shelf.release(roll, sequence=5),
        "release.replayed",
    ),
    "expired": (
        lambda shelf, roll: shelf.release(roll, sequence=6, expires_at="2026-01-02T00:00:00Z"),
        "release.expired",
    ),
    "no statement": (lambda shelf, roll: roll, "release.statement_missing"),
    "nonsense": (
        lambda shelf, roll: msgspec.structs.replace(roll, release="[]"),
        "release.statement_invalid",
    ),
}


async def test_statements_that_do_not_hold_roll_nothing(shelf, control, host, visitor, wanted):
    """Cases 29 to 31."""
    await control.roll(shelf.release(wanted(pin=shelf.put(page("old"))), sequence=5))
    control.signs = False
    for name, (state_of, code) in REFUSED.items():
        roll = state_of(shelf, wanted(pin=shelf.put(page(name))))
        report = await control.roll(roll)
        assert (report.status, report.error.code) == ("failed", code), name
        assert (report.sequence, report.serves is not None) == (5, True), name
    assert await visitor.text() == "old"


async def test_newer_statement_for_the_refused_roll_makes_it_happen(
    shelf, control, host, visitor, wanted
):
    """Control answers a replay with the next sequence."""
    await control.roll(shelf.release(wanted(pin=shelf.put(page("old"))), sequence=5))
    roll = wanted(pin=shelf.put(page("new")))
    assert (await control.roll(shelf.release(roll, sequence=3))).error.code == "release.replayed"
    report = await control.roll(shelf.release(roll, sequence=6))
    assert (report.status, report.sequence) == ("serving", 6)
    assert await visitor.text() == "new"


async def test_rollback_is_a_new_statement_about_the_old_artifact(
    shelf, control, host, visitor, wanted
):
    old, new = shelf.put(page("old")), shelf.put(page("new"))
    first = shelf.release(wanted(pin=old), sequence=1)
    await control.roll(first)
    await control.roll(shelf.release(wanted(pin=new), sequence=2))
    assert (await control.roll(first)).error.code == "release.replayed"
    assert await visitor.text() == "new"
    await control.roll(shelf.release(wanted(pin=old), sequence=3, rollback=True))
    assert await visitor.text() == "old"


async def test_sequence_is_remembered_over_a_restart(shelf, control, host, visitor, wanted):
    await control.roll(shelf.release(wanted(pin=shelf.put(page("old"))), sequence=5))
    host.kill()
    host.start()
    replay = shelf.release(wanted(pin=shelf.put(page("new"))), sequence=5)
    assert (await control.roll(replay)).error.code == "release.replayed"
    assert await visitor.text() == "old"


async def test_statement_that_takes_the_place_of_another_rolls_nothing(
    shelf, control, host, visitor, wanted
):
    roll = wanted(pin=shelf.put(page("x")))
    await control.roll(shelf.release(roll, sequence=1))
    folder = state(host)["served"]["folder"]
    renewed = shelf.release(roll, sequence=2)
    assert (await control.roll(renewed)).sequence == 2
    assert state(host)["served"]["release"] == renewed.release
    assert state(host)["served"]["folder"] == folder
    refused = await control.roll(shelf.release(roll, SigningKey.generate()))
    assert refused.error.code == "release.statement_invalid"
    assert state(host)["served"]["release"] == renewed.release
    assert await visitor.text() == "x"


# -- keys --------------------------------------------------------------------------------------


def rotate(shelf) -> SigningKey:
    following = SigningKey.generate()
    trust.establish(shelf.layout.trust, root=shelf.root_key, signing=following)
    shelf.share_trust()
    return following


async def test_retired_key_serves_on_and_releases_nothing(shelf, control, host, visitor, wanted):
    """What was gone by stays good over a restart; what is signed too late is refused."""
    pins = [shelf.put(page("old")), shelf.put(page("new"))]
    await control.roll(wanted(pin=pins[0]))
    following = rotate(shelf)
    await control.stop()
    host.kill()
    host.start()
    await visitor.until("old")
    await control.start()
    late = wanted(pin=pins[1])
    assert (await control.roll(shelf.release(late))).error.code == "release.key_retired"
    assert await visitor.text() == "old"
    assert (await control.roll(shelf.release(late, following))).status == "serving"


async def test_release_by_a_revoked_key_is_not_served_after_a_start(
    shelf, control, host, visitor, wanted
):
    """Until then it goes on; afterwards a statement by the next key brings it back."""
    roll = wanted(pin=shelf.put(page("x")))
    await control.roll(roll)
    following = rotate(shelf)
    again = shelf.sign_again(roll, following)
    trust.revoke(shelf.layout.trust, root=shelf.root_key, key_id=shelf.key.key_id, reason="lost")
    shelf.share_trust()
    assert await visitor.text() == "x"
    await control.stop()
    host.kill()
    host.start()
    await visitor.until(503)
    control.desired.clear()
    await control.start()
    assert (await control.roll(again)).status == "serving"
    assert await visitor.text() == "x"


async def test_trust_that_was_put_back_while_the_host_was_down_is_refused(
    shelf, control, host, visitor, wanted
):
    """The generation that retired a key is taken away."""
    await control.roll(wanted(pin=shelf.put(page("old"))))
    rotate(shelf)
    following = shelf.put(page("new"))
    await control.roll(wanted(pin=following))  # it has seen the second generation now
    host.kill()
    (shelf.layout.trust / "root.2.json").unlink()
    host.start()
    report = await control.roll(wanted(pin=shelf.put(page("newer"))))
    assert report.error.code == "artifact.signature_invalid"
    assert "generation 2 was seen before" in report.error.message
    assert "trust.json" in report.error.message


# -- what earlier versions left ----------------------------------------------------------------


async def test_release_of_an_earlier_version_is_served_on(shelf, control, host, visitor, wanted):
    """gitd 0.1 signed no releases: its state has none, and so has its control."""
    roll = wanted(pin=shelf.put(page("old")))
    await control.roll(roll)
    await control.stop()
    host.kill()
    said = state(host)
    del said["release_sequence"], said["served"]["release"]
    state_file(host).write_text(json.dumps(said))
    host.start()
    await visitor.until("old")
    control.signs = False
    control.desired = {roll.env_id: roll}
    await control.start()
    report = await control.reported(roll.deployment_id, since=len(control.reports))
    assert (report.status, report.sequence) == ("serving", 0)
    control.signs = True
    report = await control.roll(shelf.release(roll, sequence=1))
    assert (report.status, report.sequence) == ("serving", 1)
    assert state(host)["release_sequence"] == 1
    assert await visitor.text() == "old"


@pytest.mark.parametrize(
    ("served", "code"),
    [
        ({"release": None}, "release.statement_missing"),
        ({"release": "{}"}, "release.statement_invalid"),
    ],
)
async def test_served_release_without_its_statement_is_not_served(
    shelf, control, host, visitor, wanted, served, code
):
    await control.roll(wanted(pin=shelf.put(page("x"))))
    await control.stop()
    host.kill()
    edit_state(host, served=served)
    host.start()
    await visitor.until(503)
    refused = [event for event in host.events() if event["event"] == "release_refused"]
    assert [event["code"] for event in refused] == [code]
