"""A static site's answers, with a real folder and a real server around them."""

from __future__ import annotations

import os
import secrets

import pytest
from aiohttp import web

from hooks.deploys.web.static import INLINE_BYTES_MAX, StaticSite
from hooks.deploys.web.static_index import StaticIndex
from storage.digest import Digest
from storage.manifest import FileEntry, Manifest

LARGE = secrets.token_bytes(3 * INLINE_BYTES_MAX)


@pytest.fixture
async def visitor(tmp_path, visitors):
    """A visitor of a site that has a large page for what is not there, and nothing else."""
    entry = FileEntry(b"404.html", False, len(LARGE), Digest.of(LARGE))
    index = StaticIndex(Manifest.of([entry]))
    own = index.not_found_page()
    (tmp_path / own.path).write_bytes(LARGE)
    os.utime(tmp_path / own.path, (own.mtime_s, own.mtime_s))
    site = StaticSite(tmp_path, index, modified_s=0)

    async def answer(request):
        return await site.respond(request, request.raw_path)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield visitors(runner.addresses[0][1])
    await runner.cleanup()
    await site.close(grace_s=0)


@pytest.mark.parametrize(("method", "body"), [("GET", LARGE), ("HEAD", b"")])
async def test_a_large_page_for_what_is_not_there_is_never_read_into_memory(
    visitor, monkeypatch, method, body
):
    read, sizes = os.pread, []

    def pread(fd, count, offset):
        sizes.append(count)
        return read(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    answer = await visitor.ask("/nothing", method=method)
    assert (answer.status, answer.body) == (404, body)
    assert answer.headers["Content-Length"] == str(len(LARGE))
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert sizes == []
