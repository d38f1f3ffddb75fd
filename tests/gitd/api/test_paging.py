"""Contract §2 "Pagination": exact boundaries however much is written in between."""

from __future__ import annotations

import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitd.api.paging import list_name, read_cursor, write_cursor
from gitd.errors import RequestError
from storage.ids import new_id
from storage.model import Artifact, Attestation
from storage.records import artifacts

CLEAN = {"clean": True}  # what is never taken for a build that is on its way
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_cursor_gives_back_its_places_to_its_own_list(part: str, places: list[str]) -> None:
    name = list_name("things", part)
    cursor = write_cursor(name, *places)
    if len(cursor) <= 200:
        assert list(read_cursor(cursor, name, len(places))) == places


@given(st.lists(TEXTS | st.none(), max_size=3), st.lists(TEXTS | st.none(), max_size=3))
def test_other_filters_are_another_list(one, other) -> None:
    assert (list_name(*one) == list_name(*other)) == (one == other)


@given(st.data())
def test_damaged_cursor_is_refused(data) -> None:
    cursor = write_cursor("list", "job_01J9ZZZZZZZZZZZZZZZZZZZZZZ")
    at = data.draw(st.integers(0, len(cursor) - 1))
    char = data.draw(st.characters(min_codepoint=1, max_codepoint=0x2FF))
    damaged = cursor[:at] + char + cursor[at + 1 :]
    if damaged != cursor:
        with pytest.raises(RequestError) as refused:
            read_cursor(damaged, "list")
        assert refused.value.code == "pagination.cursor_invalid"


async def test_bad_and_foreign_cursors_are_400(service, acme) -> None:
    for name in ("one", "two", "three"):
        await service.post("/v1/sites", {"name": name})
        await service.post(f"{acme.production}/builds", CLEAN)
        await service.post(f"{acme.staging}/builds", {"ref": "main"} | CLEAN)
    cursor = (await service.get("/v1/sites?limit=1")).body["pagination"]["next_cursor"]
    jobs = (await service.get("/v1/jobs?limit=1")).body["pagination"]["next_cursor"]
    builds = (await service.get(f"{acme.production}/builds?limit=1")).body["pagination"]
    wrong = [
        "/v1/sites?cursor=",
        "/v1/sites?cursor=nonsense",
        f"/v1/sites?cursor={cursor}x",
        f"/v1/sites?cursor={cursor}%3D%3D",
        f"/v1/sites?cursor={'A' * 300}",
        f"/v1/sites?cursor={base64.urlsafe_b64encode(b'site_1').decode()}",
        f"/v1/jobs?cursor={cursor}",
        f"/v1/jobs?status=queued&cursor={jobs}",
        f"{acme.staging}/builds?cursor={builds['next_cursor']}",
        f"{acme.production}/deployments?cursor={builds['next_cursor']}",
    ]
    for path in wrong:
        heard = await service.get(path)
        assert (heard.status, heard.code) == (400, "pagination.cursor_invalid"), path
        assert heard.body["error"]["param"] == "cursor"
    by_id = f"/v1/sites/{acme.id}/environments/{await acme.env_id('production')}/builds"
    assert (await service.get(f"{by_id}?cursor={builds['next_cursor']}")).status == 200
    assert (await service.get(f"/v1/sites?limit=2&cursor={cursor}")).status == 200


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_every_item_is_seen_once_at_any_limit(service, acme, limit: int) -> None:
    builds = f"{acme.production}/builds"
    made = [(await service.post(builds, CLEAN)).data["resource"]["id"] for _ in range(14)]
    listed = await service.every(f"{acme.production}/builds", limit=limit)
    assert [b["id"] for b in listed] == made[::-1]


async def test_default_limit_is_20_and_the_last_page_says_so(service, acme) -> None:
    for _ in range(21):
        await service.post(f"{acme.production}/builds", CLEAN)
    page = await service.get("/v1/jobs")
    assert (len(page.data), page.body["pagination"]["has_more"]) == (20, True)
    cursor = page.body["pagination"]["next_cursor"]
    last = await service.get(f"/v1/jobs?cursor={cursor}")
    assert len(last.data) == 1
    assert last.body["pagination"] == {"next_cursor": None, "has_more": False}


async def test_no_gap_and_no_repeat_while_others_write(service, acme) -> None:
    builds = f"{acme.production}/builds"
    before = [(await service.post(builds, CLEAN)).data["id"] for _ in range(25)]
    stopped = asyncio.Event()

    async def keep_writing() -> None:
        while not stopped.is_set():
            await service.post(f"{acme.production}/builds", CLEAN)

    writers = [asyncio.create_task(keep_writing()) for _ in range(3)]
    try:
        for _ in range(3):
            seen = [job["id"] for job in await service.every("/v1/jobs", limit=4)]
            assert len(seen) == len(set(seen))
            assert seen == sorted(seen, reverse=True)
            assert [job for job in seen if job <= before[-1]] == before[::-1]
    finally:
        stopped.set()
        await asyncio.gather(*writers)


async def test_artifact_built_again_between_two_pages_keeps_its_place(service, acme) -> None:
    def attest(number: int) -> None:
        artifact_id = f"art_{number:026d}"
        build_id = new_id("build")
        artifact = Artifact(artifact_id, f"blake3:{number:064x}", "0" * 64, 1, 1, number)
        made = Attestation(
            new_id("x"), artifact_id, acme.id, build_id, "key", "sig", "static", None, "0", number
        )

        def change(db) -> None:
            artifacts.add(db, artifact)
            artifacts.attest(db, made)

        service.records.write(change)

    for number in range(9):
        attest(number)
    topic = {"kind": "preview", "branch": "topic"}  # which any build may be deployed onto
    await service.post(f"{acme.path}/environments", topic)
    path = f"{acme.path}/environments/topic/artifacts"
    seen, cursor = [], ""
    while True:
        page = await service.get(f"{path}?limit=2{cursor}")
        seen += [int(item["id"][4:]) for item in page.data]
        attest(0)  # the oldest, not seen yet, is built again
        attest(100 + len(seen))
        if not page.body["pagination"]["has_more"]:
            break
        cursor = f"&cursor={page.body['pagination']['next_cursor']}"
    assert seen == [8, 7, 6, 5, 4, 3, 2, 1, 0]


async def test_filters_of_jobs_hold_across_pages(service, acme) -> None:
    for _ in range(5):
        await service.post(f"{acme.production}/builds", CLEAN)
    await service.build()
    await service.build()
    done = await service.every("/v1/jobs?status=succeeded", limit=1)
    assert [job["status"] for job in done] == ["succeeded"] * 2
    assert len(await service.every("/v1/jobs?resource_type=build", limit=2)) == 5
    assert await service.every("/v1/jobs?resource_type=deployment", limit=2) == []


async def test_jobs_of_a_site_or_an_environment_are_listed_by_its_name(service, acme) -> None:
    other = (await service.post("/v1/sites", {"name": "other"})).data
    for _ in range(3):
        await service.post(f"{acme.production}/builds", CLEAN)
    await service.post(f"{acme.staging}/builds", {**CLEAN, "ref": "main"})
    for site in ("acme-store", acme.id):
        assert len(await service.every(f"/v1/jobs?site={site}", limit=2)) == 4
    production = await acme.env_id("production")
    for env in ("production", production):
        jobs = await service.every(f"/v1/jobs?site=acme-store&env={env}", limit=2)
        assert [job["resource"]["env_id"] for job in jobs] == [production] * 3
    assert (await service.get(f"/v1/jobs?site={other['name']}")).data == []
    heard = await service.get("/v1/jobs?env=production")
    assert (heard.status, heard.body["error"]["param"]) == (400, "env")
    for query, code in (("nope", "site"), ("acme-store&env=nope", "environment")):
        heard = await service.get(f"/v1/jobs?site={query}")
        assert (heard.status, heard.code) == (404, f"{code}.not_found")


async def test_key_sees_jobs_by_name_of_what_it_is_bound_to_alone(service, acme) -> None:
    await service.post(f"{acme.production}/builds", CLEAN)
    await service.post("/v1/sites", {"name": "other"})
    bound = service.key("jobs:read", site_id=acme.id, env_id=await acme.env_id("staging"))
    assert (await service.get("/v1/jobs?site=acme-store", secret=bound)).data == []
    for query in ("site=other", "site=acme-store&env=production"):
        assert (await service.get(f"/v1/jobs?{query}", secret=bound)).status == 404
