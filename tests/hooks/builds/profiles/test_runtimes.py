"""Which programs of the machine a plan needs."""

from __future__ import annotations

import os

import pytest

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import runtimes
from hooks.builds.profiles.plan import Need


@pytest.fixture
def machine(tmp_path):
    """A machine with `node`, and `python3`, which is a link to `python3.77`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("node", "python3.77"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    (programs / "python3").symlink_to("python3.77")
    (programs / "readme").write_text("no program")
    return tmp_path


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need(("node",), "nodejs"), ()),
        (Need(("pnpm", "node"), "pnpm"), ()),
        (Need(("python3",), "python3-venv", module="ensurepip"), ()),
        (Need(("php",), "php-cli"), ("needs php, which", "has to install php-cli")),
        (Need(("readme",), "x"), ("needs readme, which",)),
        (Need(("pnpm", "corepack"), "corepack"), ("needs pnpm or corepack, which",)),
        (Need(("python3",), "x", module="venv"), ("needs venv of ", "/bin/python3, which")),
    ],
)
def test_missing_program_is_named_with_what_the_operator_installs(machine, need, words):
    (machine / "lib" / "python3.77" / "ensurepip").mkdir(parents=True)
    path = os.pathsep.join([str(machine / "absent"), str(machine / "bin")])
    if not words:
        runtimes.require([need], path=path)
        return
    with pytest.raises(BuildFailedError) as caught:
        runtimes.require([need], path=path)
    assert caught.value.code == "build.runtime_missing"
    for word in words:
        assert word in str(caught.value)
