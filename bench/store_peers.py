"""The peers of the store: what each of them runs for the same work, and whether it is here."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# The package that has a tool, in Debian.
PACKAGES = {
    "ostree": "ostree",
    "restic": "restic",
    "borg": "borgbackup",
    "git": "git",
    "b3sum": "b3sum",
    "tar": "tar",
    "cp": "coreutils",
}
_ENVIRON = {
    **os.environ,
    "RESTIC_PASSWORD": "bench",
    "BORG_BASE_DIR": "{work}/borg-home",
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass(frozen=True, slots=True)
class Took:
    """What a piece of work took.

    `peak_bytes`: the most memory of the largest process in it; 0 where it is less than this one's,
    which is what the system says of a child then.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's command for one piece of work; a line of shell with `{tree}`, `{work}` in it.

    Attributes:
        tool: What it needs, out of `PACKAGES`.
        is_durable: Whether the work survives a power cut when the command returns.
    """

    name: str
    tool: str
    command: str
    is_durable: bool = True


# Once for each fresh set of folders; not measured.
SETUPS = {
    "ostree": "ostree --repo={work}/ostree init --mode=bare-user",
    "restic": "restic -q -r {work}/restic init",
    "borg": "borg init -e none {work}/borg",
    "git": "git init -q --bare {work}/git && git -C {work}/git config gc.auto 0",
}
_OSTREE_IN = "ostree --repo={work}/ostree commit -b main --tree=dir={tree}"
_RESTIC_IN = "restic -q -r {work}/restic backup {tree}"
_BORG_IN = "cd {tree} && borg create {work}/borg::"
_GIT = "git --git-dir={work}/git --work-tree="

PEERS: dict[str, tuple[Peer, ...]] = {
    "first": (
        Peer("ostree commit", "ostree", _OSTREE_IN),
        Peer("restic backup", "restic", _RESTIC_IN),
        Peer("borg create", "borg", _BORG_IN + "first .", is_durable=False),
        Peer("git add", "git", _GIT + "{tree} add -A", is_durable=False),
        Peer("cp -a, sync", "cp", "cp -a {tree} {work}/copy && sync -f {work}"),
        Peer("tar c, sync", "tar", "tar cf {work}/tree.tar -C {tree} . && sync {work}/tree.tar"),
    ),
    "again": (
        Peer("ostree commit", "ostree", _OSTREE_IN),
        Peer("restic backup", "restic", _RESTIC_IN),
        Peer("borg create", "borg", _BORG_IN + "again .", is_durable=False),
        Peer("git add", "git", _GIT + "{tree} add -A", is_durable=False),
        Peer("b3sum", "b3sum", "cd {tree} && find . -type f -print0 | xargs -0 b3sum >/dev/null"),
    ),
    "2 % changed": (
        Peer("ostree commit", "ostree", _OSTREE_IN),
        Peer("restic backup", "restic", _RESTIC_IN),
        Peer("borg create", "borg", _BORG_IN + "changed .", is_durable=False),
    ),
    "out": (
        Peer("cp -al", "cp", "cp -al {tree} {work}/linked", is_durable=False),
        Peer(
            "ostree checkout, links",
            "ostree",
            "ostree --repo={work}/ostree checkout -U -H main {work}/ostree-linked",
            is_durable=False,
        ),
        # Ours does not link without reading both files; so these read as much.
        Peer(
            "cp -al, b3sum of both",
            "b3sum",
            "cp -al {tree} {work}/linked-too && for at in {tree} {work}/linked-too;"
            " do cd $at && find . -type f -print0 | xargs -0 b3sum >/dev/null; done",
            is_durable=False,
        ),
        Peer(
            "ostree checkout, links, fsck",
            "ostree",
            "ostree --repo={work}/ostree checkout -U -H main {work}/ostree-linked-too"
            " && ostree --repo={work}/ostree fsck",
            is_durable=False,
        ),
        Peer(
            "ostree checkout, copies",
            "ostree",
            "ostree --repo={work}/ostree checkout -U -C main {work}/ostree-copied",
            is_durable=False,
        ),
        Peer(
            "restic restore",
            "restic",
            "restic -q -r {work}/restic restore latest --target {work}/restic-out",
            is_durable=False,
        ),
        Peer(
            "borg extract",
            "borg",
            "mkdir {work}/borg-out && cd {work}/borg-out && borg extract {work}/borg::first",
            is_durable=False,
        ),
        Peer(
            "git checkout",
            "git",
            "mkdir {work}/git-out && " + _GIT + "{work}/git-out checkout-index -a",
            is_durable=False,
        ),
        Peer(
            "tar x",
            "tar",
            "mkdir {work}/tar-out && tar xf {work}/tree.tar -C {work}/tar-out",
            is_durable=False,
        ),
    ),
    "check": (
        Peer("b3sum", "b3sum", "cd {tree} && find . -type f -print0 | xargs -0 b3sum >/dev/null"),
        Peer("ostree fsck", "ostree", "ostree --repo={work}/ostree fsck"),
        Peer("restic check", "restic", "restic -q -r {work}/restic check --read-data"),
        Peer("borg check", "borg", "borg check --verify-data {work}/borg"),
        Peer("git fsck", "git", "git --git-dir={work}/git fsck --no-dangling"),
    ),
}


def is_here(tool: str) -> bool:
    return shutil.which(tool) is not None


def missing_tools() -> list[str]:
    return [tool for tool in PACKAGES if not is_here(tool)]


def prepare(work: Path) -> None:
    """Make empty stores of all peers that are here."""
    for tool, command in SETUPS.items():
        if is_here(tool):
            run(command, work, work)


def run(command: str, work: Path, tree: Path) -> Took:
    """Run a line of shell, and its children, to their end."""
    environ = {name: text.replace("{work}", str(work)) for name, text in _ENVIRON.items()}
    line = command.format(work=work, tree=tree)
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            ["sh", "-ec", line], env=environ, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{line}: {errors.read().decode(errors='replace')}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = usage.ru_maxrss if usage.ru_maxrss > own else 0
    return Took(wall_s, usage.ru_utime + usage.ru_stime, peak * 1024)
