"""What changes twice within one tick of a filesystem's clock is seen to have changed twice."""

from __future__ import annotations

import os
import time
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
