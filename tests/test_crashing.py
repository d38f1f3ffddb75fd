"""The harness of the crash tests itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crashing import Forker, needs_strace

pytestmark = needs_strace


def test_run_that_failed_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nif __name__ == '__main__':\n    print(sys.argv[1])\n    sys.exit(3)"
    )
    trace = tmp_path / "trace"
    with pytest.raises(AssertionError):
        Forker.of(program).run(["first"], trace, "--no-such-option")
    assert Forker.of(program).run(["second"], trace) == (3, "second\n")
    Forker.of(program).close()
