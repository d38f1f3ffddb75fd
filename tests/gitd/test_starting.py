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
    names = loaded(
        "import gitd.__main__, gitd.app, hooks.builds.slot.builder, hooks.deploys.host.host"
    )
    assert "structlog.dev" in names
    assert not [name for name in names if name.split(".")[0] in ("rich", "pygments")]


def test_rich_is_there_for_who_asks_afterwards() -> None:
    assert "rich.table" in loaded("import gitd.starting, rich.table")


def test_aiohttp_reads_no_certificates_and_others_do() -> None:
    code = """
from gitd import starting
starting.load_aiohttp()
import ssl
from aiohttp import connector
print(connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"])
print(connector._SSL_CONTEXT_VERIFIED.verify_mode is ssl.CERT_REQUIRED)
print(ssl.SSLContext.set_default_verify_paths is ssl._ssl._SSLContext.set_default_verify_paths)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "True", "True"], done.stderr
