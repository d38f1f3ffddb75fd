from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from hooks.deploys.host.control import BATCH_BYTES_MAX, ControlLine, Outbox, RollJournal
from hooks.deploys.host.unclaimed import KEPT_S
from hooks.deploys.wire import ArtifactPin, Coming, Report, Running, Snapshot
from storage import trust
from tests.hooks.deploys.conftest import WAIT_S
from tests.spoiling import flip, rewrite


def page(text: str) -> dict[str, str]:
    return {"index.html": text}


def release_folders(host, env="env_1") -> list[str]:
    """The names of the folders; each has its proof beside it."""
    releases = host.directory / "environments" / env / "releases"
    return sorted(path.name for path in releases.iterdir() if path.is_dir())


async def test_a_roll_tells_its_story(shelf, control, host, wanted):
    roll = wanted(pin=shelf.put({"index.html": "x", "a/b.txt": "y"}))
    await control.roll(roll)
    lines = control.lines[roll.deployment_id]
    assert [(line.stage, line.line) for line in lines] == [
        ("verify", f"verified 2 files, key {shelf.key.key_id[:16]}…"),
        ("unpack", f"release folder 000001-{roll.artifact.digest[7:15]} is complete"),
        ("switch", "switched"),
    ]
    assert control.progress[roll.deployment_id] == 100


async def test_an_environment_with_nothing_released_says_so(control, host, visitor, wanted):
    control.want(wanted())
    await visitor.until(404)
    async with asyncio.timeout(WAIT_S):
        while "Nothing here yet" not in await visitor.text():
            await asyncio.sleep(0.02)


async def test_a_rollback_copies_nothing(shelf, control, host, visitor, wanted):
    old, new = shelf.put(page("old")), shelf.put(page("new"))
    for pin in (old, new, old):
        await control.roll(wanted(pin=pin))
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 2


async def test_lines_that_wait_go_along_with_the_report(control):
    line = ControlLine(control.path)
    following = asyncio.create_task(line.follow(lambda _: None))
    outbox = Outbox(line)
    journal = RollJournal(outbox, "dep_1")
    journal.say("verified", stage="verify")
    journal.say("switched", stage="switch", progress=100)
    outbox.put(Report("env_1", "dep_1", "serving"))
    report = await control.reported("dep_1")
    assert [one.line for one in report.log.lines] == control.log_of("dep_1")
    assert control.log_of("dep_1") == ["verified", "switched"]
    journal.say("alone", stage="switch")
    async with asyncio.timeout(WAIT_S):
        while "alone" not in control.log_of("dep_1"):
            await asyncio.sleep(0.01)
    await outbox.close()
    following.cancel()


async def test_how_a_program_runs_is_told_once_when_control_comes_back(control):
    line = ControlLine(control.path)
    outbox = Outbox(line)
    outbox.put(Report("env_1", "dep_1", "serving", timings={"switch": 0.1}))
    for restarts in range(100):
        running = Running("restarting", restarts, None)
        outbox.put(Report("env_1", "dep_1", "serving", running=running))
    following = asyncio.create_task(line.follow(lambda _: None))
    await control.reported("dep_1")
    outbox.put(Report("env_1", "dep_2", "serving"))
    await control.reported("dep_2")
    assert [(one.deployment_id, one.running) for one in control.reports] == [
        ("dep_1", running),
        ("dep_2", None),
    ]
    assert control.reports[0].timings == {"switch": 0.1}
    await outbox.close()
    following.cancel()


@pytest.mark.parametrize("failure", [KeyError, OSError, ValueError])
async def test_message_that_cannot_be_taken_in_keeps_no_other_away(control, failure):
    line = ControlLine(control.path)
    heard = asyncio.Queue()

    def take(message):
        heard.put_nowait(message)
        if isinstance(message, Coming):
            raise failure

    following = asyncio.create_task(line.follow(take))
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await heard.get(), Snapshot)
        for env_id in ("env_1", "env_2"):
            control.foretell(env_id)
            assert (await heard.get()).env_id == env_id
    assert control.connections == 1
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_lines_of_another_attempt_are_not_put_to_those_before(control):
    """Of one roll that was begun, given up and begun again before control was reached."""
    line = ControlLine(control.path)
    outbox = Outbox(line)
    for _ in range(2):
        journal = RollJournal(outbox, "dep_1")
        journal.say_all(("verified", "unpacked"), stage="verify")
    outbox.put(Report("env_1", "dep_1", "serving"))
    following = asyncio.create_task(line.follow(lambda _: None))
    await control.reported("dep_1")
    assert control.log_of("dep_1") == ["verified", "unpacked"] * 2
    await outbox.close()
    following.cancel()


async def test_a_report_is_not_held_up_by_a_long_log(control):
    line = ControlLine(control.path)
    following = asyncio.create_task(line.follow(lambda _: None))
    outbox = Outbox(line)
    journal = RollJournal(outbox, "dep_1")
    said = [f"{number:03d} " + "\x01" * 8_000 for number in range(60)]  # six bytes each in JSON
    for text in said:
        journal.say(text, stage="release")
    outbox.put(Report("env_1", "dep_1", "serving"))
    await control.reported("dep_1")
    assert control.log_of("dep_1") == said
    assert control.longest_bytes <= BATCH_BYTES_MAX + 1000
    await outbox.close()
    following.cancel()


async def test_only_the_last_five_folders_are_kept(shelf, control, host, wanted):
    for number in range(8):
        await control.roll(wanted(pin=shelf.put(page(f"{number}"))))
    async with asyncio.timeout(WAIT_S):
        while len(release_folders(host)) > 5:
            await asyncio.sleep(0.02)
    assert [name[:6] for name in release_folders(host)] == [f"{n:06d}" for n in range(4, 9)]


# -- what is tampered with is not served ----------------------------------------------------------


def envelope(shelf, pin) -> Path:
    return Path(shelf.layout.envelope(pin.envelope))


def tree(shelf, pin) -> Path:
    from storage.digest import Digest

    return Path(shelf.layout.tree(Digest.parse(pin.digest)))


TAMPERINGS = {
    "a flipped bit in a file": (
        lambda shelf, pin: flip(shelf.blob_of(pin, "index.html")),
        "artifact.corrupt",
    ),
    "a file cut short": (
        lambda shelf, pin: rewrite(shelf.blob_of(pin, "index.html"), b"n"),
        "artifact.corrupt",
    ),
    "a file gone": (
        lambda shelf, pin: shelf.blob_of(pin, "index.html").unlink(),
        "artifact.missing",
    ),
    "a flipped bit in the manifest": (
        lambda shelf, pin: flip(tree(shelf, pin), -10),
        "artifact.corrupt",
    ),
    "the manifest gone": (lambda shelf, pin: tree(shelf, pin).unlink(), "artifact.missing"),
    "a flipped bit in the envelope": (
        lambda shelf, pin: flip(envelope(shelf, pin), 100),
        "artifact.signature_invalid",
    ),
    "the envelope gone": (lambda shelf, pin: envelope(shelf, pin).unlink(), "artifact.missing"),
    "the key revoked": (
        lambda shelf, pin: revoke(shelf),
        "artifact.signature_invalid",
    ),
    "no keys at all": (
        lambda shelf, pin: [path.unlink() for path in shelf.layout.trust.iterdir()],
        "artifact.signature_invalid",
    ),
}


def revoke(shelf) -> None:
    trust.revoke(shelf.layout.trust, root=shelf.root_key, key_id=shelf.key.key_id, reason="lost")
    shelf.share_trust()


@pytest.mark.parametrize("tampering", TAMPERINGS)
async def test_a_tampered_artifact_is_refused_and_the_old_one_goes_on(
    shelf, control, host, visitor, wanted, tampering
):
    tamper, code = TAMPERINGS[tampering]
    await control.roll(wanted(pin=shelf.put(page("old"))))
    pin = shelf.put(page("new!"))
    tamper(shelf, pin)
    report = await control.roll(wanted(pin=pin))
    assert (report.status, report.error.code) == ("failed", code)
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 1


@pytest.mark.parametrize("tampering", [name for name in TAMPERINGS if "file" in name])
async def test_a_tampered_artifact_is_refused_though_its_folder_is_kept(
    shelf, control, host, visitor, wanted, tampering
):
    tamper, code = TAMPERINGS[tampering]
    old, new = shelf.put(page("old")), shelf.put(page("new!"))
    await control.roll(wanted(pin=old))
    await control.roll(wanted(pin=new))
    tamper(shelf, old)
    report = await control.roll(wanted(pin=old))
    assert (report.status, report.error.code) == ("failed", code)
    assert await visitor.text() == "new!"


async def test_a_tampered_file_is_refused_though_the_release_before_has_it_too(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put({"index.html": "old", "same.css": "the same"})))
    new = shelf.put({"index.html": "new", "same.css": "the same"})
    flip(shelf.blob_of(new, "same.css"))
    report = await control.roll(wanted(pin=new))
    assert (report.status, report.error.code) == ("failed", "artifact.corrupt")
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 1


async def test_what_served_before_a_start_serves_on_while_the_store_is_bad(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put(page("good"))
    await control.roll(wanted(pin=pin))
    host.kill()
    await control.stop()
    flip(shelf.blob_of(pin, "index.html"))
    host.start()
    assert await visitor.text() == "good"


async def test_the_statement_of_another_artifact_does_not_vouch_for_this_one(
    shelf, control, host, visitor, wanted
):
    one, other = shelf.put(page("one")), shelf.put(page("other"))
    forged = ArtifactPin(one.id, one.digest, other.envelope)
    report = await control.roll(wanted(pin=forged))
    assert report.error.code == "artifact.signature_invalid"


async def test_an_artifact_built_for_another_site_is_refused(shelf, control, host, wanted):
    report = await control.roll(wanted(pin=shelf.put(page("x"), site="other-shop")))
    assert report.error.code == "artifact.signature_invalid"


async def test_a_tampered_release_folder_is_made_anew(shelf, control, host, visitor, wanted):
    old, new = shelf.put(page("old")), shelf.put(page("new"))
    await control.roll(wanted(pin=old))
    await control.roll(wanted(pin=new))
    kept = host.directory / "environments/env_1/releases" / release_folders(host)[0]
    rewrite(kept / "index.html", b"bad")
    report = await control.roll(wanted(pin=old))
    assert report.status == "serving"
    assert await visitor.text() == "old"
    async with asyncio.timeout(WAIT_S):
        while len(release_folders(host)) > 2:
            await asyncio.sleep(0.02)
    assert kept.name not in release_folders(host)


async def test_the_served_folder_stays_when_store_and_folder_are_both_bad(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put({"index.html": "old", "other.html": "other"})
    await control.roll(wanted(pin=pin))
    served = (host.directory / "environments/env_1/current").resolve()
    rewrite(served / "other.html", b"wrong")
    flip(shelf.blob_of(pin, "other.html"))
    report = await control.roll(wanted(pin=pin))
    assert report.error.code == "artifact.corrupt"
    assert await visitor.text() == "old"
    assert served.exists()


async def test_a_release_that_was_tampered_with_while_the_host_was_down_is_mended_or_refused(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put(page("good"))
    await control.roll(wanted(pin=pin))
    served = (host.directory / "environments/env_1/current").resolve()
    host.kill()
    await control.stop()
    rewrite(served / "index.html", b"evil")
    host.start()
    assert await visitor.text() == "good"
    host.kill()
    rewrite((host.directory / "environments/env_1/current").resolve() / "index.html", b"evil")
    flip(shelf.blob_of(pin, "index.html"))
    host.start()
    answer = await visitor.ask()
    assert answer.status == 503
    assert b"artifact.corrupt" in answer.body


# -- a failed roll -------------------------------------------------------------------------------


async def test_a_failed_roll_is_not_tried_again_but_said_again(shelf, control, host, wanted):
    await control.roll(wanted(pin=shelf.put(page("old"))))
    pin = shelf.put(page("new"))
    shelf.blob_of(pin, "index.html").unlink()
    failing = wanted(pin=pin)
    await control.roll(failing)
    lines = len(control.log_of(failing.deployment_id))
    report = await control.roll(failing)
    assert report.status == "failed"
    assert len(control.log_of(failing.deployment_id)) == lines


async def test_after_a_failed_roll_the_release_before_is_said_to_serve(
    shelf, control, host, wanted
):
    good = wanted(pin=shelf.put(page("old")))
    await control.roll(good)
    pin = shelf.put(page("new"))
    shelf.blob_of(pin, "index.html").unlink()
    await control.roll(wanted(pin=pin))
    report = await control.roll(good)
    assert report.status == "serving"


async def test_an_artifact_that_is_no_artifact_fails_its_roll(shelf, control, host, wanted):
    for pin in (
        ArtifactPin("art_x", "sha256:00", "00" * 32),
        ArtifactPin("art_x", "blake3:" + "00" * 32, "00" * 32),
        ArtifactPin("art_x", "blake3:" + "00" * 32, "../../../../etc/passwd"),
    ):
        report = await control.roll(wanted(pin=pin))
        assert report.status == "failed"
        assert report.error.code.startswith("artifact.")


async def test_a_release_that_was_refused_is_tried_again_once_mended(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put({"index.html": "good"})
    roll = wanted(pin=pin)
    await control.roll(roll)
    host.kill()
    blob = shelf.blob_of(pin, "index.html")
    flip(blob)
    rewrite((host.directory / "environments/env_1/current").resolve() / "index.html", b"evil")
    host.start()
    assert (await visitor.ask()).status == 503
    report = await control.reported(roll.deployment_id, since=1)
    assert report.error.code == "artifact.corrupt"
    flip(blob)
    report = await control.roll(roll)
    assert report.status == "serving"
    assert await visitor.text() == "good"


# -- restarts ------------------------------------------------------------------------------------


async def test_after_a_restart_everything_is_served_again_without_control(
    shelf, control, host, visitor, wanted
):
    for number in range(5):
        await control.roll(wanted(f"env_{number}", shelf.put(page(f"site {number}"))))
    await control.stop()
    host.kill()
    host.start()
    for number in range(5):
        assert await visitor.text(host=f"env-{number}.localhost") == f"site {number}"


async def test_after_each_connect_what_is_served_is_said_again(shelf, control, host, wanted):
    roll = wanted(pin=shelf.put(page("x")))
    await control.roll(roll)
    for restart in (control.stop, None):
        since = len(control.reports)
        if restart is None:
            host.kill()
            host.start()
        else:
            await control.stop()
            await control.start()
        report = await control.reported(roll.deployment_id, since=since)
        assert report.status == "serving"


async def test_reports_reach_a_control_that_was_in_trouble(shelf, control, host, wanted):
    control.fail_posts = 5
    roll = wanted(pin=shelf.put(page("x")))
    report = await control.roll(roll)
    assert report.status == "serving"
    assert control.log_of(roll.deployment_id)[-1] == "switched"


async def test_a_change_made_while_the_host_was_down_is_made_good(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted("env_1", shelf.put(page("one"))))
    await control.roll(wanted("env_2", shelf.put(page("two"))))
    host.kill()
    control.remove("env_2")
    newer = control.want(wanted("env_1", shelf.put(page("newer"))))
    host.start()
    await control.reported(newer.deployment_id)
    assert await visitor.text() == "newer"
    await visitor.until(404, host="env-2.localhost")
    async with asyncio.timeout(WAIT_S):
        while (host.directory / "environments/env_2").exists():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 4, 6, 8, 11, 15, 20])
async def test_a_host_killed_during_a_roll_serves_the_old_or_the_new_and_finishes(
    shelf, control, host, visitor, wanted, delay_ms
):
    def tree_of(text):
        return {"index.html": text, **{f"{n}.txt": f"{text} {n}" for n in range(200)}}

    await control.roll(wanted(pin=shelf.put(tree_of("old"))))
    pin = shelf.put(tree_of("new"))
    newer = control.want(wanted(pin=pin))
    await asyncio.sleep(delay_ms / 1000)
    host.kill()
    releases = host.directory / "environments/env_1/releases"
    left = [path.name for path in releases.iterdir()]
    host.start()
    assert await visitor.text() in ("old", "new")
    report = await control.reported(newer.deployment_id)
    assert report.status == "serving"
    assert await visitor.text() == "new"
    assert await visitor.text("/199.txt") == "new 199"
    await control.roll(wanted(pin=shelf.put(page("third"))))
    async with asyncio.timeout(WAIT_S):
        while any("partial" in name for name in release_folders(host)):
            await asyncio.sleep(0.02)
    print("left behind:", left)


async def test_a_host_asked_to_end_lets_requests_finish(shelf, control, host, visitor, wanted):
    body = os.urandom(40_000_000)
    await control.roll(wanted(pin=shelf.put({"big.bin": body})))
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port, limit=2**16)
    writer.write(b"GET /big.bin HTTP/1.0\r\nHost: env-1.localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0.3)
    assert not stopping.done()
    assert await reader.read(-1) == body
    writer.close()
    assert await stopping == 0


# -- many at once --------------------------------------------------------------------------------


async def test_the_newest_desire_wins(shelf, control, host, visitor, wanted):
    pins = [
        shelf.put({"index.html": f"{n}", **{f"{k}": f"{n} {k}" for k in range(50)}})
        for n in range(20)
    ]
    last = None
    for pin in pins:
        last = control.want(wanted(pin=pin))
    await control.reported(last.deployment_id)
    assert await visitor.text() == "19"
    await asyncio.sleep(0.2)
    assert control.reports[-1].deployment_id == last.deployment_id


async def test_environments_roll_side_by_side(shelf, control, host, visitor, wanted):
    rolls = [wanted(f"env_{number}", shelf.put(page(f"{number}"))) for number in range(30)]
    for roll in rolls:
        control.want(roll)
    for roll in rolls:
        assert (await control.reported(roll.deployment_id)).status == "serving"
    for number in range(30):
        assert await visitor.text(host=f"env-{number}.localhost") == f"{number}"


async def test_names_change_without_a_roll(shelf, control, host, visitor, wanted):
    roll = wanted(pin=shelf.put(page("x")), hostnames=("old.localhost",))
    await control.roll(roll)
    renamed = wanted(pin=roll.artifact, deployment=roll.deployment_id, hostnames=("new.localhost",))
    since = len(control.lines[roll.deployment_id])
    await control.roll(renamed)
    assert await visitor.text(host="new.localhost") == "x"
    assert (await visitor.ask(host="old.localhost")).status == 404
    assert len(control.lines[roll.deployment_id]) == since
    host.kill()
    await control.stop()
    host.start()
    assert await visitor.text(host="new.localhost") == "x"


async def test_a_removed_environment_is_gone_and_may_come_again(
    shelf, control, host, visitor, wanted
):
    pin = shelf.put(page("x"))
    await control.roll(wanted(pin=pin))
    control.remove("env_1")
    control.want(wanted(pin=pin))
    control.remove("env_1")
    again = wanted(pin=shelf.put(page("again")))
    assert (await control.roll(again)).status == "serving"
    assert await visitor.text() == "again"
    assert [name[:6] for name in release_folders(host)] == ["000001"]


async def test_a_withdrawn_release_is_not_served_any_more(shelf, control, host, visitor, wanted):
    await control.roll(wanted(pin=shelf.put(page("x"))))
    control.want(wanted())
    await visitor.until(404)
    await host.recorded_withdrawal()
    host.kill()
    await control.stop()
    host.start()
    assert (await visitor.ask()).status == 404


async def test_what_is_suspended_is_served_again_from_the_folder_that_it_had(
    shelf, control, host, visitor, wanted
):
    roll = control.want(wanted(pin=shelf.put(page("x")), release_command=True))
    await control.reported(roll.deployment_id)
    control.want(wanted(is_suspended=True))
    await visitor.until(503)
    assert b"suspended" in (await visitor.ask()).body
    await host.recorded_withdrawal()
    host.kill()
    await control.stop()
    host.start()
    await control.start()
    await visitor.until(503)
    assert (await control.roll(roll)).status == "serving"
    assert await visitor.text() == "x"
    assert [name[:6] for name in release_folders(host)] == ["000001"]


async def test_of_what_was_withdrawn_no_other_statement_of_that_number_is_gone_by(
    shelf, control, host, visitor, wanted
):
    roll = shelf.release(wanted(pin=shelf.put(page("old"))), sequence=5)
    await control.roll(roll)
    control.want(wanted(is_suspended=True))
    await visitor.until(503)
    other = shelf.release(wanted(pin=shelf.put(page("new"))), sequence=5)
    assert (await control.roll(other)).error.code == "release.replayed"
    assert (await control.roll(roll)).status == "serving"
    assert await visitor.text() == "old"


async def test_fifty_rolls_fail_no_request(shelf, control, host, visitor, wanted):
    pins = [shelf.put({"index.html": name, "big.bin": name * 200_000}) for name in "ab"]
    await control.roll(wanted(pin=pins[0]))
    rolling = True
    answered = itertools.count()

    async def visit(path, good):
        while rolling:
            answer = await visitor.ask(path)
            assert answer.status == 200
            assert answer.body in good
            next(answered)

    visits = [asyncio.create_task(visit("/", (b"a", b"b"))) for _ in range(4)]
    visits.append(asyncio.create_task(visit("/big.bin", (b"a" * 200_000, b"b" * 200_000))))
    for number in range(50):
        report = await control.roll(wanted(pin=pins[(number + 1) % 2]))
        assert report.status == "serving"
    rolling = False
    await asyncio.gather(*visits)
    print("requests answered:", next(answered))


async def test_folders_of_nobody_are_removed_once_control_says_what_there_is(
    shelf, control, host, wanted
):
    await control.roll(wanted(pin=shelf.put(page("x"))))
    stranger = host.directory / "environments/env_9"
    (stranger / "data").mkdir(parents=True)
    if os.geteuid() == 0:
        for path in (stranger, stranger / "data"):
            os.chown(path, host.directory.stat().st_uid, -1)
    host.kill()
    host.start()
    async with asyncio.timeout(WAIT_S):
        while stranger.exists():
            await asyncio.sleep(0.02)
    assert len(release_folders(host)) == 1


async def test_an_environment_that_control_lost_is_served_on_and_keeps_its_data(
    shelf, control, host, visitor, wanted
):
    """The records were put back from last night's copy, and the host was left as it was."""
    older, newer = wanted("env_1", shelf.put(page("old"))), wanted("env_2", shelf.put(page("new")))
    await control.roll(older)
    await control.roll(newer)
    folder = host.directory / "environments/env_2"
    (folder / "data/visitors").write_bytes(b"5")
    host.kill()
    control.lose("env_2")
    host.start()
    async with asyncio.timeout(WAIT_S):
        while not any(e["event"] == "environment_unknown_to_control" for e in host.events()):
            await asyncio.sleep(0.02)
    assert await visitor.text(host="env-2.localhost") == "new"
    control.want(newer)
    await control.stop()
    await control.start()
    async with asyncio.timeout(WAIT_S):
        while (folder / "unclaimed").exists():
            await asyncio.sleep(0.02)
    assert (folder / "data/visitors").read_bytes() == b"5"


async def test_an_environment_that_control_lost_long_ago_goes(shelf, control, host, wanted):
    await control.roll(wanted("env_1", shelf.put(page("x"))))
    folder = host.directory / "environments/env_1"
    host.kill()
    (folder / "unclaimed").write_text(str(KEPT_S))
    control.lose("env_1")
    host.start()
    async with asyncio.timeout(WAIT_S):
        while folder.exists():
            await asyncio.sleep(0.02)


async def test_a_host_that_cannot_listen_says_why(host, another_host):
    taken = another_host
    taken.start(listen_fd=None, listen=["127.0.0.1", host.port])
    assert await asyncio.to_thread(taken.process.wait, WAIT_S) == 1
    assert f"cannot listen on 127.0.0.1:{host.port}" in taken.log.read_text()


async def test_a_desire_with_a_bad_id_harms_no_other(shelf, control, host, visitor, wanted):
    control.want(wanted("../../evil", shelf.put(page("evil"))))
    await control.roll(wanted(pin=shelf.put(page("good"))))
    assert await visitor.text() == "good"
    assert not (host.directory / "evil").exists()
    assert "environment_refused" in host.log.read_text()
