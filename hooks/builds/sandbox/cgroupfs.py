"""The kernel's control groups as files: where this process is among them, what they say.

Source: cgroups(7); proc(5), `/proc/pid/cgroup` and `/proc/pid/mountinfo`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

V2: Final = ""  # what /proc/self/cgroup calls the hierarchy of version 2


def own_folders() -> dict[str, Path]:
    found = find_folders(
        Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    )
    return {name: folder for name, folder in found.items() if folder.is_dir()}


def find_folders(cgroup: str, mountinfo: str) -> dict[str, Path]:
    """Return where a process is: by controller in version 1, by "" in version 2. Pure.

    The arguments are what `/proc/self` has under these names. A hierarchy that is not mounted, or
    of which the process's part is not seen, is left out.
    """
    places = {}
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        places.update(dict.fromkeys(names.split(","), PurePosixPath(path)))
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        mount, _, what = line.partition(" - ")
        kind, _, options = what.split(" ", 2)
        root, point = (_unescaped(text) for text in mount.split(" ")[3:5])
        here = {"cgroup2": [V2], "cgroup": options.split(",")}.get(kind, [])
        for name in places.keys() & here - found.keys():
            place = places[name]
            if place.is_relative_to(root) and ".." not in place.parts:
                found[name] = Path(point, place.relative_to(root))
    return found


def upward(folder: Path) -> Iterator[Path]:
    """Yield a group and those above it, as far as they are seen here."""
    while (folder / "cgroup.procs").exists():
        yield folder
        folder = folder.parent


def _unescaped(text: str) -> str:
    """Undo what mountinfo does to spaces and the like: backslash and three octal digits."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def processes(folder: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    return []


def threads(folder: Path) -> list[int]:
    for name in ("cgroup.threads", "tasks"):  # of version 2, of version 1
        with contextlib.suppress(OSError):
            return [int(line) for line in (folder / name).read_text().split()]
    return []


def below(folder: Path) -> list[Path]:
    """Return the groups right below a group; none when it has gone."""
    with contextlib.suppress(OSError):
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    return []


def is_runnable(tid: int) -> bool:
    """Say whether a thread runs or waits for a processor; False when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].startswith(" R")
    return False


def words(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().split()
    return []


def values(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; other lines do not count."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def number(path: Path) -> int:
    """Read a number; 0 where the kernel does not count."""
    with contextlib.suppress(OSError):
        return int(path.read_text())
    return 0


def write(path: Path, value: str | int) -> None:
    """Write to a file of the kernel's, in one call: each call is one order."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


def lock(folder: Path) -> int | None:
    """Hold a group for as long as this process lives; None when another one does.

    Raises:
        FileNotFoundError: It is gone.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()  # whoever held it may have removed it
    except BlockingIOError:
        os.close(fd)
        return None
    except FileNotFoundError:
        os.close(fd)
        raise
    return fd
