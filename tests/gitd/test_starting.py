"""What a start loads (decision 0065)."""

from __future__ import annotations

import subprocess
import sys


def loaded(program: str) -> list[str]:
    code = f"import sys; {program}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_no_process_of_gitd_loads_what_only_mf_shows() -> None:
    names = loaded("import gitd.__main__, gitd.app, hooks.builds.builder, hooks.deploys.host")
    assert "structlog.dev" in names
    assert not [name for name in names if name.split(".")[0] in ("rich", "pygments")]


def test_rich_is_there_for_who_asks_afterwards() -> None:
    assert "rich.table" in loaded("import gitd.starting, rich.table")


def test_aiohttp_reads_no_certificates_and_refuses_tls_which_others_have() -> None:
    code = """
import asyncio, ssl
ssl.SSLContext.load_default_certs = None
from gitd import starting
starting.load_aiohttp()
import aiohttp
import urllib.request
assert urllib.request.HTTPSHandler and asyncio.sslproto.ssl is ssl
async def ask():
    async with aiohttp.ClientSession() as session:
        try:
            await session.get("https://127.0.0.1:1/")
        except RuntimeError as error:
            print(error)
asyncio.run(ask())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "SSL is not supported.\n"), done.stderr
