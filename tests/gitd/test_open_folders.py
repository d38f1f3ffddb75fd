"""What sandboxes can look into is no place for the server's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gitd.errors import StartError
from gitd.open_folders import require_outside


@pytest.mark.parametrize(
    "path",
    [
        "/usr/src/app/data",
        "/usr/local/var/gitd",
        "/bin/data",
        "/lib/gitd",
        "/etc/ssl/certs/gitd",
        "/usr",
        "/tmp/../usr/share/gitd",
    ],
)
def test_folder_that_every_sandbox_sees_is_refused(path: str) -> None:
    with pytest.raises(StartError, match=r"^the data folder .* which every build and site can re"):
        require_outside(Path(path), "the data folder")


def test_link_into_such_a_folder_is_refused_and_others_are_not(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/usr/share")
    with pytest.raises(StartError):
        require_outside(link / "gitd", "the data folder")
    for path in (tmp_path, Path("/var/lib/gitd"), Path("/etc/gitd/gitd.toml"), Path("/usrlocal")):
        require_outside(path, "the data folder")


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--data", "/usr/src/app/data"),
        ("serve", "--data", "{there}", "--config", "/usr/src/app/gitd.toml"),
        ("builder", "--socket", "{there}/none", "--scratch", "/usr/src/app/scratch"),
        ("host", "--socket", "{there}/none", "--dir", "/usr/src/app/host", "--store", "{there}"),
    ],
)
def test_nothing_starts_with_such_a_folder(tmp_path: Path, words: tuple[str, ...]) -> None:
    there = tmp_path / "data"
    command = [sys.executable, "-m", "gitd", *(word.format(there=there) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "lies in /usr, which every build and site can read" in done.stderr
    assert not there.exists()
    assert not Path("/usr/src/app").exists()
