from __future__ import annotations

import asyncio
import email.utils
import os
import socket

import pytest

BIG = os.urandom(300_000)
SITE = {
    "index.html": "<h1>home</h1>",
    "about.html": "about",
    "docs/index.html": "docs",
    "404.html": "own not found",
    "app.js": "let a = 1",
    "data.bin": bytes(range(100)),
    "empty.txt": "",
    "big.bin": BIG,
    "home": ("link", "docs/index.html"),
}
RELEASE = {"tree": SITE}


async def test_a_static_release_is_served_after_its_roll(guest):
    answer = await guest.ask("/")
    assert (answer.status, answer.body) == (200, b"<h1>home</h1>")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "public, max-age=0, must-revalidate"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Server"] == "gitd"


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/about", 200, b"about"),
        ("/docs/", 200, b"docs"),
        ("/home", 200, b"docs"),
        ("/empty.txt", 200, b""),
        ("/big.bin", 200, BIG),
        ("/big.bin?version=2", 200, BIG),
        ("/nothing", 404, b"own not found"),
        ("/../../../etc/passwd", 404, b"own not found"),
        ("/%2e%2e/%2e%2e/etc/passwd", 404, b"own not found"),
    ],
)
async def test_paths_are_answered(guest, path, status, body):
    answer = await guest.ask(path)
    assert (answer.status, answer.body) == (status, body)


async def test_a_folder_redirects_with_its_query(guest):
    answer = await guest.ask("/docs?a=1&b=%20")
    assert answer.status == 301
    assert answer.headers["Location"] == "/docs/?a=1&b=%20"


@pytest.mark.parametrize("path", ["/", "/big.bin", "/empty.txt", "/nothing"])
async def test_head_is_get_without_the_body(guest, path):
    get = await guest.ask(path)
    head = await guest.ask(path, method="HEAD")
    assert head.status == get.status
    assert head.body == b""
    varying = {"Date", "Last-Modified"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_static_site_takes_nothing(guest, method):
    answer = await guest.ask("/", method=method, data=b"x" * 1000)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "header", "status", "first", "last"),
    [
        ("/data.bin", "bytes=0-9", 206, 0, 9),
        ("/data.bin", "bytes=90-", 206, 90, 99),
        ("/data.bin", "bytes=-5", 206, 95, 99),
        ("/big.bin", "bytes=1000-250000", 206, 1000, 250_000),
        ("/big.bin", "bytes=299999-", 206, 299_999, 299_999),
        ("/data.bin", "bytes=0-1,3-4", 200, 0, 99),
        ("/data.bin", "nonsense", 200, 0, 99),
    ],
)
async def test_a_range_is_cut_out(guest, path, header, status, first, last):
    whole = BIG if path == "/big.bin" else bytes(range(100))
    answer = await guest.ask(path, headers={"Range": header})
    assert answer.status == status
    assert answer.body == whole[first : last + 1]
    assert int(answer.headers["Content-Length"]) == last + 1 - first
    if status == 206:
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"


async def test_a_range_behind_the_end_says_how_long_the_file_is(guest):
    answer = await guest.ask("/data.bin", headers={"Range": "bytes=100-"})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */100"


async def test_an_interrupted_download_goes_on_only_with_the_same_file(guest):
    etag = (await guest.ask("/big.bin", method="HEAD")).headers["ETag"]
    same = await guest.ask("/big.bin", headers={"Range": "bytes=5-", "If-Range": etag})
    other = await guest.ask("/big.bin", headers={"Range": "bytes=5-", "If-Range": '"old"'})
    assert (same.status, same.body) == (206, BIG[5:])
    assert (other.status, other.body) == (200, BIG)


async def test_what_a_cache_has_is_not_sent_again(guest):
    first = await guest.ask("/about")
    again = await guest.ask("/about", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert "Content-Type" not in again.headers


async def test_an_unchanged_file_keeps_its_etag_over_releases(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put(SITE)))
    before = await visitor.ask("/about")
    pin = shelf.put({**SITE, "index.html": "<h1>new</h1>"})
    await control.roll(wanted(pin=pin))
    assert await visitor.text("/") == "<h1>new</h1>"
    again = await visitor.ask("/about", headers={"If-None-Match": before.headers["ETag"]})
    assert again.status == 304


async def test_a_rollback_is_newer_than_what_it_replaces(shelf, control, host, visitor, wanted):
    """A cache that goes by time must not take the old content for unchanged."""
    old, new = (shelf.put({"index.html": text}) for text in ("old", "new"))
    await control.roll(wanted(pin=old))
    await control.roll(wanted(pin=new))
    await asyncio.sleep(3.1)
    fetched = await visitor.ask("/")
    last_modified = fetched.headers["Last-Modified"]
    assert email.utils.parsedate_to_datetime(last_modified) <= email.utils.parsedate_to_datetime(
        fetched.headers["Date"]
    )
    since = {"If-Modified-Since": last_modified}
    assert (await visitor.ask("/", headers=since)).status == 304
    by_its_date = {"If-Modified-Since": fetched.headers["Date"]}
    await control.roll(wanted(pin=old))
    assert (await visitor.ask("/", headers=since)).body == b"old"
    assert (await visitor.ask("/", headers=by_its_date)).body == b"old"


async def test_without_a_page_of_its_own_a_site_has_ours(shelf, control, host, visitor, wanted):
    await control.roll(wanted(pin=shelf.put({"index.html": "x"})))
    answer = await visitor.ask("/nothing")
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/html")


async def test_an_unknown_host_is_told_so(guest):
    answer = await guest.ask("/", host="nobody.localhost")
    assert answer.status == 404
    assert b"No site here" in answer.body


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: ENV-1.localhost.:8081\r\n", b"200"),
        (b"GET http://env-1.localhost/about HTTP/1.1\r\nHost: other.localhost\r\n", b"200"),
        (b"GET http://other.localhost/ HTTP/1.1\r\nHost: env-1.localhost\r\n", b"404"),
        (b"GET / HTTP/1.0\r\nHost: env-1.localhost\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n", b"404"),
        (b"GET / HTTP/1.1\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nHost: env-1.localhost\r\n", b"400"),
        (b"OPTIONS * HTTP/1.1\r\nHost: env-1.localhost\r\n", b"400"),
        (b"nonsense\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: env-1.localhost\r\nX: " + b"x" * 40_000 + b"\r\n", b"400"),
    ],
)
async def test_raw_requests_are_understood_or_refused(served, request_head, status):
    reader, writer = await asyncio.open_connection("127.0.0.1", served.host.port)
    writer.write(request_head + b"Connection: close\r\n\r\n")
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    assert line.split()[1] == status, line


async def test_pipelined_requests_are_answered_in_order(served):
    reader, writer = await asyncio.open_connection("127.0.0.1", served.host.port)
    head = b"Host: env-1.localhost\r\n"
    writer.write(
        b"GET /about HTTP/1.1\r\n" + head + b"\r\nGET /docs/ HTTP/1.1\r\n" + head
        + b"\r\nGET /big.bin HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n"
    )  # fmt: skip
    data = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    assert data.index(b"\r\n\r\nabout") < data.index(b"\r\n\r\ndocs") < data.index(BIG)


async def test_a_file_touched_while_it_is_served_is_not_served(
    shelf, control, host, visitor, wanted
):
    await control.roll(wanted(pin=shelf.put(SITE)))
    release = (host.directory / "environments/env_1/current").resolve()
    (release / "about.html").chmod(0o644)
    (release / "about.html").write_text("evil!")
    answer = await visitor.ask("/about")
    assert answer.status == 500
    assert b"evil" not in answer.body
    assert (await visitor.ask("/")).status == 200


async def test_a_visitor_who_leaves_in_the_middle_harms_nobody(served, guest):
    with socket.create_connection(("127.0.0.1", served.host.port)) as leaving:
        leaving.sendall(b"GET /big.bin HTTP/1.1\r\nHost: env-1.localhost\r\n\r\n")
        leaving.recv(10)
    assert (await guest.ask("/big.bin")).body == BIG
