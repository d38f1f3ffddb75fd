"""Commits that are written straight into a repository, by one process of the real git.

Source: git-fast-import(1).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

NONE = "0" * 40
ASIDE = "refs/aside"


def write_commit(
    repository: Path,
    files: Mapping[str, bytes],
    *,
    branch: str | None = "main",
    submodules: Mapping[str, str] | None = None,
    at: str = "now",
) -> str:
    """Write a commit of these files, without a parent, and return its id.

    `branch`: the one that is there, or goes there, then; None for no branch at all. `submodules`:
    the commits that stand at paths. `at`: `now`, or seconds since 1970 and a zone.
    """
    ref = f"refs/heads/{branch}" if branch else ASIDE
    who = f"A <a@example.com> {at}\n"
    stream = [f"commit {ref}\nmark :1\nauthor {who}committer {who}data 9\na commit\n".encode()]
    for path, content in files.items():
        stream += [b"M 100644 inline %b\ndata %d\n" % (_quoted(path), len(content)), content]
        stream.append(b"\n")
    for path, pinned in (submodules or {}).items():
        stream.append(b"M 160000 %b %b\n" % (pinned.encode(), _quoted(path)))
    stream.append(b"\nget-mark :1\n")
    if branch is None:
        stream.append(f"reset {ref}\nfrom {NONE}\n\n".encode())
    command = ["git", "fast-import", "--quiet", "--force", "--done", f"--date-format={_form(at)}"]
    done = subprocess.run(
        command,
        env={**os.environ, "GIT_DIR": str(repository)},
        input=b"".join([*stream, b"done\n"]),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def _quoted(path: str) -> bytes:
    data = os.fsencode(path).replace(b"\\", rb"\\").replace(b'"', rb"\"")
    return b'"%b"' % data.replace(b"\n", rb"\n")


def _form(at: str) -> str:
    return "now" if at == "now" else "raw"
