"""What control foretells is unpacked before it is wanted, and nothing depends on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.hooks.deploys.test_host_rolls import flip, release_folders

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


async def rolled(control, roll) -> None:
    report = await control.roll(roll)
    assert report.status == "serving", report


@pytest.mark.parametrize("is_known", [False, True])
async def test_what_was_foretold_is_served(shelf, control, host, visitor, wanted, is_known) -> None:
    old, new = shelf.put(site("old")), shelf.put(site("new"))
    await rolled(control, wanted(pin=old))
    control.foretell(ENV, new if is_known else None)
    await until(lambda: drafts(host))
    await rolled(control, wanted(pin=new))
    assert await visitor.text() == "new"
    assert await visitor.text("/a/same.css") == "same"
    first, second = release_folders(host)
    assert (releases(host) / first / "a/same.css").samefile(releases(host) / second / "a/same.css")
    assert drafts(host) == []


async def test_first_release_can_be_foretold(shelf, control, host, visitor, wanted) -> None:
    control.want(wanted())
    await visitor.until(404)
    pin = shelf.put(site("first"))
    await until(releases(host).exists)
    control.foretell(ENV, pin)
    await until(lambda: drafts(host))
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
    control.foretell(ENV)
    await until(lambda: drafts(host))
    await until(lambda: not drafts(host))
    assert await visitor.text() == "old"
    assert len(release_folders(host)) == 1


async def test_another_release_than_was_foretold_is_served(
    shelf, control, host, visitor, wanted
) -> None:
    old, foretold, new = (shelf.put(site(page)) for page in ("old", "foretold", "new"))
    await rolled(control, wanted(pin=old))
    control.foretell(ENV, foretold)
    await until(lambda: drafts(host))
    await rolled(control, wanted(pin=new))
    assert await visitor.text() == "new"
    assert drafts(host) == []


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
    control.foretell(ENV, new)
    await until(lambda: drafts(host))
    report = await control.roll(shelf.release(wanted(pin=new), shelf.root_key))
    assert report.error is not None
    assert report.error.code == "release.statement_invalid"
    assert await visitor.text() == "old"
    await until(lambda: not drafts(host))


async def test_draft_of_a_host_that_was_killed_is_removed(
    shelf, control, host, visitor, wanted
) -> None:
    await rolled(control, wanted(pin=shelf.put(site("old"))))
    control.foretell(ENV)
    await until(lambda: drafts(host))
    host.kill()
    assert drafts(host)
    host.start()
    await visitor.until(200)
    assert drafts(host) == []


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
