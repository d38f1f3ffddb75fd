"""What control foretells is unpacked before it is wanted, and nothing depends on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hooks.deploys.errors import RollFailedError
from hooks.deploys.host import foresight
from hooks.deploys.host.control import ControlLine, Outbox, RollJournal
from hooks.deploys.host.foresight import SERVED_COUNT_MAX, Foresight, Served
from hooks.deploys.host.rollout import Rollout
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState
from storage.reader import StoreReader
from tests.hooks.deploys.host.test_host_rolls import release_folders
from tests.spoiling import flip

ENV = "env_1"
WAIT_S = 20


def site(page: str) -> dict[str, str]:
    return {"index.html": page, "a/same.css": "same"}


def releases(host) -> Path:
    return host.directory / "environments" / ENV / "releases"


def drafts(host) -> list[Path]:
    return [path for path in releases(host).iterdir() if path.name.startswith(".aside-")]


async def until(found) -> None:
    async with asyncio.timeout(WAIT_S):
        while not found():
            await asyncio.sleep(0.02)


async def drafted(control, host, pin=None) -> None:
    """Foretell it until there is a draft: a slow host may have dropped the last one already."""
    async with asyncio.timeout(WAIT_S):
        while not drafts(host):
            control.foretell(ENV, pin)
            await asyncio.sleep(0.05)


async def rolled(control, roll) -> None:
    report = await control.roll(roll)
    assert report.status == "serving", report


@pytest.mark.parametrize("is_known", [False, True])
async def test_what_was_foretold_is_served(shelf, control, host, visitor, wanted, is_known) -> None:
    old, new = shelf.put(site("old")), shelf.put(site("new"))
    await rolled(control, wanted(pin=old))
    await drafted(control, host, new if is_known else None)
    await rolled(control, wanted(pin=new))
    assert await visitor.text() == "new"
    assert await visitor.text("/a/same.css") == "same"
    first, second = release_folders(host)
    assert (releases(host) / first / "a/same.css").samefile(releases(host) / second / "a/same.css")
    await until(lambda: not drafts(host))


async def test_first_release_can_be_foretold(shelf, control, host, visitor, wanted) -> None:
    control.want(wanted())
    await visitor.until(404)
    pin = shelf.put(site("first"))
    await until(releases(host).exists)
    await drafted(control, host, pin)
    await rolled(control, wanted(pin=pin))
    assert await visitor.text() == "first"


async def test_rollback_that_was_foretold_unpacks_nothing(
    shelf, control, host, visitor, wanted
) -> None:
    old, new = shelf.put(site("old")), shelf.put(site("new"))
    for pin in (old, new):
        await rolled(control, wanted(pin=pin))
    control.foretell(ENV, old)
    await rolled(control, wanted(pin=old))
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 2


async def test_what_was_foretold_and_does_not_come_is_dropped(
    shelf, control, host, visitor, wanted
) -> None:
    await rolled(control, wanted(pin=shelf.put(site("old"))))
    await drafted(control, host)
    await until(lambda: not drafts(host))
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 1


async def test_another_release_than_was_foretold_is_served(
    shelf, control, host, visitor, wanted
) -> None:
    old, foretold, new = (shelf.put(site(page)) for page in ("old", "foretold", "new"))
    await rolled(control, wanted(pin=old))
    await drafted(control, host, foretold)
    await rolled(control, wanted(pin=new))
    assert await visitor.text() == "new"
    await until(lambda: not drafts(host))


@pytest.mark.parametrize("name", ["index.html", "a/same.css"])
@pytest.mark.parametrize("is_known", [False, True])
async def test_tampered_store_is_refused_though_it_was_foretold(
    shelf, control, host, visitor, wanted, name, is_known
) -> None:
    old, new = shelf.put(site("old")), shelf.put(site("new"))
    await rolled(control, wanted(pin=old))
    flip(shelf.blob_of(new, name))
    control.foretell(ENV, new if is_known else None)
    report = await control.roll(wanted(pin=new))
    assert report.error is not None
    assert report.error.code == "artifact.corrupt"
    assert await visitor.text() == "old"
    await until(lambda: not drafts(host))


async def test_statement_that_does_not_hold_rolls_nothing_that_was_foretold(
    shelf, control, host, visitor, wanted
) -> None:
    old, new = shelf.put(site("old")), shelf.put(site("new"))
    await rolled(control, wanted(pin=old))
    await drafted(control, host, new)
    report = await control.roll(shelf.release(wanted(pin=new), shelf.root_key))
    assert report.error is not None
    assert report.error.code == "release.statement_invalid"
    assert await visitor.text() == "old"
    await until(lambda: not drafts(host))


async def test_draft_of_a_host_that_was_killed_is_removed(
    shelf, control, host, visitor, wanted
) -> None:
    host.kill()
    host.start(fresh_s=600.0)
    await rolled(control, wanted(pin=shelf.put(site("old"))))
    await drafted(control, host)
    host.kill()
    assert drafts(host)
    host.start()
    await visitor.until(200)
    assert drafts(host) == []


async def test_draft_that_grows_old_while_others_unpack_counts_for_nothing(
    shelf, wanted, tools, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(foresight, "FRESH_S", 600.0)
    new = wanted(pin=shelf.put(site("new")))
    state = EnvironmentState(ENV, new.site, new.slug, new.kind, new.hostnames)
    folder = EnvironmentFolder(tmp_path / ENV)
    folder.prepare(state)
    rollout = Rollout(folder, state, tools=tools)
    rollout.foresee(shelf.digest_of(new.artifact))
    await until(lambda: rollout._foresight._foreseen is not None)
    async with tools.unpacking:  # another environment's turn
        journal = RollJournal(Outbox(ControlLine(tmp_path / "none")), new.deployment_id)
        rolling = asyncio.create_task(rollout.roll(shelf.release(new), journal))
        await until(lambda: rollout._foresight._foreseen is None)
        monkeypatch.setattr(foresight, "FRESH_S", 0.0)
        flip(shelf.blob_of(new.artifact, "index.html"))
    with pytest.raises(RollFailedError) as failed:
        await rolling
    assert failed.value.code == "artifact.corrupt"
    assert [path for path in folder.releases.iterdir() if path.is_dir()] == []
    await rollout.close()


async def test_what_goes_wrong_in_it_stays_in_it(shelf, tmp_path) -> None:
    calls = []

    def state():
        calls.append(1)
        raise OSError("the disk is gone")

    async def in_thread(work) -> None:
        await asyncio.to_thread(work)

    folder, reader = EnvironmentFolder(tmp_path), StoreReader(shelf.layout.root)
    lock, unpacking = asyncio.Lock(), asyncio.Semaphore(1)
    made = Foresight(folder, reader, state, lock, unpacking, in_thread, served=Served())
    for count in (1, 2):
        made.begin(None)
        await until(lambda count=count: len(calls) == count)
    await made.close()


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_what_is_coming_is_read_in_the_store_though_it_is_remembered(
    shelf, wanted, tmp_path, is_damaged
) -> None:
    new = wanted(pin=shelf.put(site("new")))
    digest = shelf.digest_of(new.artifact)
    state = EnvironmentState(ENV, new.site, new.slug, new.kind, new.hostnames)
    folder, reader, served = EnvironmentFolder(tmp_path), StoreReader(shelf.layout.root), Served()
    folder.prepare(state)
    served.note(reader.manifest(digest))
    if is_damaged:
        flip(Path(shelf.layout.tree(digest)))
    looks = []

    async def in_thread(work) -> None:
        await asyncio.to_thread(work)
        looks.append(made.take())

    lock, unpacking = asyncio.Lock(), asyncio.Semaphore(1)
    made = Foresight(folder, reader, lambda: state, lock, unpacking, in_thread, served=served)
    made.begin(digest)
    await until(lambda: looks)
    await made.close()
    assert (looks[0] is None) == is_damaged


def test_manifests_of_what_is_served_are_remembered_within_bounds(shelf) -> None:
    served = Served()
    pins = [shelf.put(site(str(number))) for number in range(SERVED_COUNT_MAX + 1)]
    reader = StoreReader(shelf.layout.root)
    for pin in pins:
        served.note(reader.manifest(shelf.digest_of(pin)))
    known = [served.find(shelf.digest_of(pin)) is not None for pin in pins]
    assert known == [False] + [True] * SERVED_COUNT_MAX


async def test_foretelling_nonsense_harms_nothing(shelf, control, host, visitor, wanted) -> None:
    pin = shelf.put(site("old"))
    await rolled(control, wanted(pin=pin))
    for env_id in ("env_2", ENV):
        control.foretell(env_id, pin.__class__("art_x", "md5:1", "0" * 64))
    gone = shelf.put(site("gone"))
    Path(shelf.layout.tree(shelf.digest_of(gone))).unlink()
    control.foretell(ENV, gone)
    await rolled(control, wanted(pin=shelf.put(site("new"))))
    assert await visitor.text() == "new"
    assert control.connections == 1
