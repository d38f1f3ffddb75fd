"""The host sends its programs' logs, and keeps nothing of a reader who left."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from hooks.deploys.host.log_sender import LogSender
from hooks.deploys.host.state import HostFolder
from hooks.deploys.wire import LogWanted

READERS = 20


@pytest.fixture
async def hasty_control(tmp_path: Path):
    """Control that hangs up at once, before the log can be open."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    socket = tmp_path / "control.sock"
    async with await asyncio.start_unix_server(hang_up, socket):
        yield socket


def open_files(path: Path) -> int:
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(descriptor.readlink()).startswith(str(path))
    return found


async def test_reader_who_leaves_while_the_log_is_opened_leaves_no_open_file(
    hasty_control: Path, tmp_path: Path
) -> None:
    folder = HostFolder(tmp_path / "host")
    path = folder.environment("env_1").web_log
    path.parent.mkdir(parents=True)
    path.write_bytes(b"2026-01-01T00:00:00.000Z \n" * 30_000)  # long to look through
    sender = LogSender(folder, hasty_control)
    for number in range(READERS):
        sender.take(LogWanted(id=f"log_{number}", env_id="env_1", lines=100_000, follow=True))
    while sender._tasks:
        await asyncio.sleep(0.01)
    await asyncio.get_running_loop().shutdown_default_executor()  # whatever is opened is by now
    assert open_files(path) == 0
    await sender.close()
