"""What changes twice within one tick of a filesystem's clock is seen to have changed twice."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from storage.git.file_times import COARSE_NS, RACY_NS, is_settled
from storage.git.repository import Repository
from tests.gitd.git.conftest import run_git

SECOND_NS = 1_000_000_000
FINE_NS = 1_700_000_000 * SECOND_NS + 1
COARSE_AT_NS = 1_700_000_000 * SECOND_NS


@pytest.mark.parametrize(
    ("changed_ns", "age_ns", "expected"),
    [
        (FINE_NS, 0, False),
        (FINE_NS, RACY_NS, False),
        (FINE_NS, RACY_NS + 1, True),
        (FINE_NS, -SECOND_NS, False),  # a clock that was set back
        (COARSE_AT_NS, RACY_NS + 1, False),
        (COARSE_AT_NS, COARSE_NS, False),
        (COARSE_AT_NS, COARSE_NS + 1, True),
    ],
)
def test_times_of_whole_seconds_settle_later(
    changed_ns: int, age_ns: int, *, expected: bool
) -> None:
    assert is_settled(changed_ns, changed_ns + age_ns) is expected


def write(bare: Path, oid: str, flag: str, then_ns: int) -> None:
    """Write what a repository reads again only when it changed, with files of that time."""
    contents = {
        "refs/heads/main": f"{oid}\n",
        "packed-refs": f"{oid} refs/heads/other\n",
        "config": f"[http]\n\treceivepack = {flag}\n",
    }
    for name, content in contents.items():
        path = bare / name
        path.write_text(content)
        os.utime(path, ns=(then_ns, then_ns))


def test_a_second_change_in_a_whole_second_is_seen(tmp_path: Path) -> None:
    """As on a filesystem that keeps whole seconds: same time, same file, same size, other bytes."""
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    for _ in range(20):
        # Old enough for a clock of nanoseconds, and too young for one of seconds.
        then_ns = (time.time_ns() - 2 * RACY_NS) // SECOND_NS * SECOND_NS
        write(bare, "1" * 40, "1", then_ns)
        repository = Repository(bare)
        repository.refs.snapshot()
        is_in_time = time.time_ns() - then_ns < COARSE_NS
        write(bare, "2" * 40, "0", then_ns)
        if is_in_time:
            break
    assert not repository.is_current()
    repository.refresh()
    assert repository.config.flag("http.receivepack") is False
    assert repository.refs.known_snapshot(10) is None
    oids = {name: oid.hex() for name, oid in repository.refs.snapshot().values.items()}
    assert oids == {b"refs/heads/main": "2" * 40, b"refs/heads/other": "2" * 40}


def memory_of_reading(bare: Path, thread_count: int) -> int:
    """The most bytes that were in use while refs just written were read, by all at once."""
    refs = Repository(bare).refs
    start = threading.Barrier(thread_count)
    found = []

    def read() -> None:
        start.wait()
        found.append(refs.snapshot())

    threads = [threading.Thread(target=read) for _ in range(thread_count)]
    tracemalloc.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(snapshot.values) for snapshot in found] == [20_000] * thread_count
    return peak_bytes


def test_refs_just_written_are_held_once_however_many_read_them(tmp_path: Path) -> None:
    bare = tmp_path / "r.git"
    run_git("init", "-q", "--bare", "-b", "main", bare, cwd=tmp_path)
    lines = [f"{'1' * 40} refs/tags/{'t' * 100}{number:06}\n" for number in range(20_000)]
    (bare / "packed-refs").write_text("".join(lines))
    soon_ns = (time.time_ns() // SECOND_NS + 600) * SECOND_NS  # it does not settle meanwhile
    os.utime(bare / "packed-refs", ns=(soon_ns, soon_ns))
    assert memory_of_reading(bare, 16) < 3 * memory_of_reading(bare, 1)
