"""The toolchain of a slot: what it tells control of the programs that its builds find."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hooks.builds.profiles import toolchain
from hooks.builds.profiles.toolchain import read_versions, toolchain_digest


@pytest.mark.parametrize(
    ("line", "versions"),
    [
        ("python3\tPython 3.11.2", {"python3": "3.11.2"}),
        ("node\tv20.20.2", {"node": "20.20.2"}),
        ("gcc\tgcc (Debian 12.2.0-14+deb12u1) 12.2.0", {"gcc": "12.2.0-14+deb12u1"}),
        ("go\tgo version go1.19.8 linux/amd64", {"go": "1.19.8"}),
        ('npm\t  "version": "10.8.2",', {"npm": "10.8.2"}),
        ("make\tGNU Make 4.3", {"make": "4.3"}),
        ("os\tdebian 12", {"os": "debian 12"}),
        ("machine\tx86_64", {"machine": "x86_64"}),
        ("broken\t", {}),
        ("slow\tphp", {}),
        ("\tno name 1.0", {}),
        ("no tab 1.0", {}),
        ("composer\tThe iconv extension is missing.", {}),
        ("os\tescape \x1b", {}),
        ("long\t" + "9." * 200 + "9", {"long": ("9." * 50)}),
    ],
)
def test_version_is_read_from_what_a_program_says(line: str, versions: dict[str, str]) -> None:
    assert read_versions(line) == versions


def test_versions_are_sorted_by_name() -> None:
    assert list(read_versions("node\tv20.1.0\ngit\t2.39.5\n")) == ["git", "node"]


def test_digest_depends_on_nothing_but_what_is_said() -> None:
    one = toolchain_digest({"node": "20.1.0", "git": "2.39.5"})
    assert one == toolchain_digest({"git": "2.39.5", "node": "20.1.0"})
    assert one != toolchain_digest({"git": "2.39.5", "node": "20.1.1"})
    assert len(one) == 64


async def test_slot_says_with_each_lease_request_what_its_builds_find(
    control, slot, unpacked
) -> None:
    job = await control.build(
        {"managed.toml": b'[build]\ncommand = "git --version > a.txt"\noutput = "."\n'}
    )
    assert control.toolchains[-1] == job.outcome["toolchain"]
    said = job.outcome["toolchain"]
    assert said["git"] in unpacked(job.output)["a.txt"].decode()
    assert {"git", "machine", "os"} <= set(said)
    assert job.outcome["settings"] == {
        "command": "git --version > a.txt",
        "output": ".",
        "network": "none",
    }


def test_program_that_answers_too_late_is_told_from_one_that_is_not_there(tmp_path) -> None:
    for name, script in {"node": "sleep 30", "git": "echo git version 2.39.5"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("timeout", "head", "uname", "sleep"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        ["/bin/sh", "-c", toolchain._SCRIPT, "sh", "1"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert f"{toolchain.SLOW}\tnode" in said
    assert not any("python3" in line for line in said)
    assert read_versions(done.stdout)["git"] == "2.39.5"


ASK_TWICE = """
import asyncio, json, os, resource, sys
import structlog
from hooks.builds.profiles.toolchain import Toolchain
from hooks.builds.sandbox.sandbox import Sandboxes
from hooks.process import drop_privileges

if sys.argv[1]:
    drop_privileges(int(sys.argv[1]), int(sys.argv[1]))
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
toolchain = Toolchain(Sandboxes())

async def ask(files_max):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max or hard, hard))
    return await toolchain.versions()

async def main():
    await asyncio.sleep(0)
    open_count = len(os.listdir("/proc/self/fd"))
    return [await ask(open_count), await ask(open_count), await ask(None)]

print(json.dumps(asyncio.run(main())))
"""


def test_programs_are_asked_again_when_the_sandbox_failed_for_a_moment(sandbox_uid) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK_TWICE, "" if sandbox_uid is None else str(sandbox_uid)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    without, still_without, then = json.loads(done.stdout)
    assert (without, still_without) == ({}, {})
    assert "python3" in then
    assert done.stderr.count("sandbox_unavailable") == 1
