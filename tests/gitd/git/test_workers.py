"""Pack workers whose server is killed: they end by themselves, and say nothing about it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.git.ingest import SPOOL_NAME, IngestTask, make_quarantine
from storage.git.worker import Task, encode_frame

Git = Callable[..., Any]
LARGE_BYTES = 4 << 20  # read by a worker, and not in a moment


def wait_until(is_true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found += [int(word) for word in task.read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def has_open(pid: int, name: str) -> bool:
    try:
        return any(file.readlink().name == name for file in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("is_answer_broken_off", [False, True])
def test_a_worker_that_nobody_listens_to_ends_in_silence(
    bare: Path, work: Path, wire: Any, tmp_path: Path, head: Git, *, is_answer_broken_off: bool
) -> None:
    """It has a task, and its server dies before, or in the middle of, the answer."""
    quarantine = make_quarantine(bare)
    (quarantine / "pack" / SPOOL_NAME).write_bytes(wire.pack("main"))
    tips = [bytes.fromhex(head(work))]
    task = IngestTask(repository=str(bare), quarantine=str(quarantine), tips=tips, shallow=[])
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "storage.git.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None
        frame = encode_frame(Task(ingest=task))
        if not is_answer_broken_off:
            worker.stdout.close()
        worker.stdin.write(frame if not is_answer_broken_off else frame * 2)
        worker.stdin.flush()
        if is_answer_broken_off:
            assert worker.stdout.read(2)
            worker.stdout.close()
        worker.stdin.close()
        assert worker.wait(60) == 0
    assert log.read_text() == ""
    shutil.rmtree(quarantine)


def test_5_silence_before_a_pack_is_bridged(
    launch: Any, tmp_path: Path, raw: Any, git: Git, commit: Git, head: Git
) -> None:
    """What makes the pack stands still, and the client hears something all the same."""
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    server = launch(root)
    bare = server.create("a.git", uploadpack__keepAlive="1")
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    (work / "data").write_bytes(os.urandom(LARGE_BYTES + 1))
    commit(work, "large", other="x")
    git("push", "-q", bare, "main", cwd=work)
    wait_until(lambda: children(server.process.pid) != [])
    git("config", "uploadpack.allowFilter", "true", cwd=bare)

    def asking(limit: int) -> bytes:
        lines = [f"want {head(work)}\n", f"filter blob:limit={limit}\n", "done\n"]
        return raw.pkt("command=fetch\n") + b"0001" + b"".join(map(raw.pkt, lines)) + b"0000"

    # For another pack than the one that is waited for: from then on a worker waits for work.
    first = server.post(bare, "git-upload-pack", asking(2), Git_Protocol="version=2")
    assert first.content.startswith(b"000dpackfile\n")
    workers = children(server.process.pid)
    headers = {
        "Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2",
    }  # fmt: skip
    url = f"{server.url_of(bare)}/git-upload-pack"
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        with server.client.stream("POST", url, content=asking(1), headers=headers) as answer:
            heard = b""
            for piece in answer.iter_raw():
                heard += piece
                if b"0005\x01" in heard:
                    break
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGCONT)
    assert heard.startswith(b"000dpackfile\n0005\x01")


@pytest.mark.parametrize("state", ["idle", "working", "stopped"])
def test_workers_of_a_killed_server_end_by_themselves(
    launch: Any, tmp_path: Path, git: Git, commit: Git, head: Git, state: str
) -> None:
    root, log, work = tmp_path / "root", tmp_path / "log", tmp_path / "work"
    root.mkdir()
    server = launch(root, log=log)
    bare = server.create("a.git")
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    (work / "data").write_bytes(os.urandom(LARGE_BYTES))
    commit(work, "large", other="x")
    wait_until(lambda: children(server.process.pid) != [])
    workers = children(server.process.pid)
    push = ["git", "push", "-q", server.url_of(bare), "main"]
    with subprocess.Popen(push, cwd=work, stderr=subprocess.DEVNULL) as pushing:
        if state != "working":
            assert pushing.wait(60) == 0
        else:
            wait_until(
                lambda: (
                    any(has_open(pid, SPOOL_NAME) for pid in workers) or pushing.poll() is not None
                )
            )
        workers = children(server.process.pid)
        if state == "stopped":  # it does not see that its server is gone
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
    try:
        wait_until(lambda: not any(map(is_alive, workers)))
    finally:
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)
    assert "Traceback" not in log.read_text()
    assert "Error" not in log.read_text()
