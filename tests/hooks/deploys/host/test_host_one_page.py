from __future__ import annotations

SITE = {"index.html": "home", "200.html": "app", "404.html": "own not found"}
RELEASE = {"tree": SITE}


async def test_application_of_one_page_answers_all_paths_but_those_of_files(guest):
    answer = await guest.ask("/users/7?tab=1")
    assert (answer.status, answer.body) == (200, b"app")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    again = await guest.ask("/orders", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status == 304
    assert (await guest.ask("/")).body == b"home"
    answer = await guest.ask("/assets/gone.js")
    assert (answer.status, answer.body) == (404, b"own not found")
