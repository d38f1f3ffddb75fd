"""What holds for all tests, held against tests that skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
AS_A_CALL = "import pytest\ndef test_it(): pytest.skip({reason!r})\n"
AS_A_MARK = "import pytest\n@pytest.mark.skipif(True, reason={reason!r})\ndef test_it(): pass\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="installs nothing but as root, and may skip then")
@pytest.mark.parametrize("form", [AS_A_CALL, AS_A_MARK])
@pytest.mark.parametrize(
    ("environ", "reason", "passes"),
    [
        ({"CI": "true"}, "builds have no npm here", False),
        ({"CI": "true"}, "no registry answers: timed out", False),
        ({"CI": "true"}, "needs caddy", True),
        ({"CI": "true"}, "xfs cannot be mounted here", True),
        ({}, "builds have no npm here", True),
    ],
)
def test_nothing_is_skipped_in_a_whole_run_that_could_have_run(
    tmp_path, form, environ, reason, passes
):
    (tmp_path / "test_it.py").write_text(form.format(reason=reason))
    argv = ["-m", "pytest", "-q", "-p", "tests.conftest", "-c", "/dev/null", tmp_path]
    mine = {
        name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST"))
    }
    ran = subprocess.run(
        [sys.executable, *argv],
        cwd=REPOSITORY,
        env=mine | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode == 0) is passes, ran.stdout + ran.stderr
    assert ("was to run here, and did not: " + reason in ran.stdout) is not passes
