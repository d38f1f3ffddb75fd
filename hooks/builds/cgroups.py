"""Control groups: what all processes of a sandbox may use together, as the kernel keeps it.

    the group of this process, or the nearest above it that can have such groups below it
    └── gitd-<label>-<8 hex digits>     made by `Groups.prepare`, given to who makes the sandboxes
        ├── self                        the process that makes them (version 1: `cpu` alone)
        └── box-<number>                one sandbox

Version 2 is used where it has the controllers `memory` and `pids`, else version 1.

Source: Linux 6.1, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hooks.builds.errors import GroupsUnavailableError
from hooks.builds.limits import Limits

PREFIX = "gitd-"
_BOX_WEIGHT = 10  # against 100 for the process that makes the sandboxes and must stay awake
_NEEDED = ("memory", "pids")
_WELCOME_V2 = ("cpu", "io")
_WELCOME_V1 = ("cpu", "cpuacct", "freezer")
_V2 = ""  # what /proc/self/cgroup calls the hierarchy of version 2
_NEARLY_FULL = 0.95  # memory is taken in pieces: the last one may have been too large
_SHARES_PER_WEIGHT = 1024 / 100  # of version 1
_SHARES_MIN = 2


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What happened in a group since it was made.

    `was_full`: its own limit of memory was in the way. The counts: processes killed for want of
    memory, in it or on the machine; processes and threads that were refused.
    """

    cpu_s: float
    was_full: bool
    oom_kill_count: int
    fork_failed_count: int


class Group:
    """The control group of one sandbox. Made by `Groups.make`; `remove` it when all have ended."""

    def __init__(self, folders: Mapping[str, Path], *, version: int) -> None:
        self._folders = folders
        self._version = version

    def set_limits(self, limits: Limits) -> None:
        """Bound memory, swap included, and the count of processes; give way to everyone else."""
        memory = self._folders["memory"]
        if self._version == 1:
            _write(memory / "memory.limit_in_bytes", limits.memory_bytes)
            with contextlib.suppress(OSError):  # the kernel may not account for swap
                _write(memory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
        else:
            _write(memory / "memory.max", limits.memory_bytes)
            _write(memory / "memory.oom.group", 1)
            with contextlib.suppress(OSError):
                _write(memory / "memory.swap.max", 0)
        # one more: bubblewrap's own process 1
        _write(self._folders["pids"] / "pids.max", limits.process_count + 1)

    def come_last(self) -> None:
        """Let it have little of the processor while who made it wants some too."""
        if "cpu" in self._folders:
            _weigh(self._folders["cpu"], _BOX_WEIGHT, version=self._version)

    def join(self, pid: int) -> None:
        """Move a process here; what it starts from now on is here too. Blocking, some 10 ms."""
        for folder in set(self._folders.values()):
            _write(folder / "cgroup.procs", pid)

    @property
    def refusals(self) -> Path:
        """The file that has another content once processes were refused."""
        return self._folders["pids"] / "pids.events"

    def use(self) -> GroupUse:
        memory = self._folders["memory"]
        forks = _values(self.refusals).get("max", 0)
        if self._version == 1:
            kills = _values(memory / "memory.oom_control").get("oom_kill", 0)
            limit = _number(memory / "memory.limit_in_bytes")
            full = _number(memory / "memory.max_usage_in_bytes") > _NEARLY_FULL * limit
            cpu_ns = _number(self._folders.get("cpuacct", Path()) / "cpuacct.usage")
            return GroupUse(cpu_ns / 1e9, full, kills, forks)
        events = _values(memory / "memory.events")
        cpu_s = _values(memory / "cpu.stat").get("usage_usec", 0) / 1e6
        return GroupUse(cpu_s, events.get("oom", 0) > 0, events.get("oom_kill", 0), forks)

    def kill(self) -> None:
        """End every process in it, whatever they do meanwhile."""
        if self._version == 2:
            with contextlib.suppress(OSError):
                _write(self._folders["memory"] / "cgroup.kill", 1)
            return
        freezer = self._folders.get("freezer")
        if freezer is not None:
            with contextlib.suppress(OSError):
                _write(freezer / "freezer.state", "FROZEN")
        for pid in _processes(self._folders["memory"]):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if freezer is not None:
            with contextlib.suppress(OSError):
                _write(freezer / "freezer.state", "THAWED")

    def remove(self) -> bool:
        """Remove it, and say whether that was possible: no process may be in it."""
        is_gone = True
        for folder in set(self._folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                is_gone = False
        return is_gone


class Groups:
    """The part of the hierarchy in which this process makes a group for each of its sandboxes.

    It lasts as long as this process: the next one that prepares groups there removes it.
    """

    def __init__(self, folders: Mapping[str, Path], lock: int, *, version: int) -> None:
        self.version = version
        self._folders = folders
        self._lock = lock
        self._numbers = itertools.count(1)
        self._ended: list[Group] = []

    @classmethod
    def prepare(
        cls, label: str, *, owner: tuple[int, int] | None = None, weight: int | None = None
    ) -> Groups:
        """Make the folder that sandboxes get their groups in. Moves this process (version 2).

        `label` is for people who look at the hierarchy. `owner`: the uid and gid that this process,
        now root, will go on as. `weight`: what all sandboxes together get of the processor, and of
        the disk where the kernel weighs that, while others want it who weigh 100.

        Raises:
            GroupsUnavailableError: The kernel has none, or this process may not make any.
        """
        own = _own_folders()
        try:
            if _V2 in own and any(map(_has_controllers, _upward(own[_V2]))):
                folders, lock = _divide_v2(own[_V2], label)
            elif set(_NEEDED) <= own.keys():
                folders, lock = _divide_v1(own, label)
            else:
                raise GroupsUnavailableError("no control groups with memory and pids are mounted")
        except OSError as error:
            raise GroupsUnavailableError(f"{error.filename}: {error.strerror}") from error
        groups = cls(folders, lock, version=2 if _V2 in folders else 1)
        if weight is not None:
            groups._set_weight(weight)
        if owner is not None:
            groups._give_to(*owner)
        return groups

    def make(self, limits: Limits, *, is_background: bool) -> Group:
        """Make a group with these limits and no process in it.

        Raises:
            OSError: The kernel refuses.
        """
        self._ended = [group for group in self._ended if not group.remove()]
        name = f"box-{next(self._numbers)}"
        group = Group(
            {key: path / name for key, path in self._folders.items()}, version=self.version
        )
        for folder in set(self._folders.values()):
            (folder / name).mkdir()
        try:
            group.set_limits(limits)
            if is_background:
                group.come_last()
        except OSError:
            group.remove()
            raise
        return group

    def end(self, group: Group) -> None:
        """Remove a group whose processes have ended, at the latest when the next one is made."""
        if not group.remove():
            self._ended.append(group)

    def _set_weight(self, weight: int) -> None:
        with contextlib.suppress(OSError, KeyError):
            _weigh(self._folders["cpu"], weight, version=self.version)
        with contextlib.suppress(OSError, KeyError):
            _write(self._folders["io"] / "io.weight", f"default {weight}")

    def _give_to(self, uid: int, gid: int) -> None:
        """Let a user make groups here and move processes: its own limits stay root's."""
        for folder in set(self._folders.values()):
            for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(folder / name, uid, gid)


def vacate() -> None:
    """Go to a group below, so that this process's group may have others with limits beside it.

    Version 2 has either processes or limits in a group. Does nothing where that is not needed or
    not possible: for a service manager's unit it wants `Delegate=yes`.
    """
    own = _own_folders().get(_V2)
    if own is None or not (own / "cgroup.type").exists() or _processes(own) != [os.getpid()]:
        return
    with contextlib.suppress(OSError):
        leaf = own / "control"
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", 0)


def tidy() -> None:
    """Remove what ended processes left near this one's groups; end what runs in there."""
    own = _own_folders()
    if _V2 in own:
        for parent in _upward(own[_V2]):
            _sweep({_V2: parent})
    if "memory" in own:
        _sweep({name: own[name] for name in (*_NEEDED, *_WELCOME_V1) if name in own})


def _divide_v1(own: Mapping[str, Path], label: str) -> tuple[dict[str, Path], int]:
    parents = {name: own[name] for name in (*_NEEDED, *_WELCOME_V1) if name in own}
    _sweep(parents)
    name, lock = _make_locked(parents["memory"], label)
    folders = {"memory": parents["memory"] / name}
    try:
        for controller, parent in parents.items():
            try:
                (parent / name).mkdir(exist_ok=True)
            except OSError:
                if controller in _NEEDED:
                    raise
            else:
                folders[controller] = parent / name
        if "cpu" in folders:  # what it does for its sandboxes has their weight
            (folders["cpu"] / "self").mkdir()
            _write(folders["cpu"] / "self" / "cgroup.procs", 0)
    except OSError:
        for folder in set(folders.values()):
            folder.rmdir()
        os.close(lock)
        raise
    return folders, lock


def _divide_v2(own: Path, label: str) -> tuple[dict[str, Path], int]:
    """Take the nearest group that has no process but this one, and may pass on controllers."""
    refusal: OSError | None = None
    for parent in _upward(own):
        is_top = not (parent / "cgroup.type").exists()  # where the rule about processes is lifted
        is_shared = not is_top and set(_processes(parent)) - {os.getpid()}
        if is_shared or not _has_controllers(parent):
            continue
        _sweep({_V2: parent})
        try:
            return _divide_below(parent, own, label)
        except OSError as error:
            refusal = error
    raise refusal or OSError(errno.EBUSY, "other processes share its control group", str(own))


def _divide_below(parent: Path, own: Path, label: str) -> tuple[dict[str, Path], int]:
    name, lock = _make_locked(parent, label)
    group = parent / name
    leaf = group / "self"
    try:
        leaf.mkdir()
        _write(leaf / "cgroup.procs", 0)
        for controller in _NEEDED:
            _enable(parent, controller)
            _enable(group, controller)
        folders = {_V2: group, **dict.fromkeys(_NEEDED, group)}
        for controller in _WELCOME_V2:
            with contextlib.suppress(OSError):
                _enable(parent, controller)
                _enable(group, controller)
                folders[controller] = group
    except OSError:
        with contextlib.suppress(OSError):
            _write(own / "cgroup.procs", 0)
            leaf.rmdir()
            group.rmdir()
        os.close(lock)
        raise
    return folders, lock


def _has_controllers(folder: Path) -> bool:
    return set(_NEEDED) <= set(_words(folder / "cgroup.controllers"))


def _weigh(folder: Path, weight: int, *, version: int) -> None:
    if version == 1:
        _write(folder / "cpu.shares", max(_SHARES_MIN, round(weight * _SHARES_PER_WEIGHT)))
    else:
        _write(folder / "cpu.weight", weight)


def _enable(folder: Path, controller: str) -> None:
    if controller not in _words(folder / "cgroup.subtree_control"):
        _write(folder / "cgroup.subtree_control", f"+{controller}")


def _make_locked(parent: Path, label: str) -> tuple[str, int]:
    """Make a group that nobody sweeps away while this process lives."""
    while True:
        name = f"{PREFIX}{label}-{secrets.token_hex(4)}"
        (parent / name).mkdir()
        with contextlib.suppress(FileNotFoundError):  # it was swept before it was locked
            lock = _lock(parent / name)
            if lock is not None:
                return name, lock


def _lock(folder: Path) -> int | None:
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


def _sweep(parents: Mapping[str, Path]) -> None:
    """Remove the groups that no living process holds, and end what may run in them."""
    first = parents.get("memory") or parents[_V2]
    for left in first.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = _lock(left)
            if lock is None:
                continue
            try:
                _remove_all({name: parent / left.name for name, parent in parents.items()})
            finally:
                os.close(lock)


def _remove_all(folders: Mapping[str, Path]) -> None:
    version = 2 if _V2 in folders else 1
    names = {path.name for folder in folders.values() for path in folder.glob("*/")}
    for name in names:
        inner = {controller: folder / name for controller, folder in folders.items()}
        group = Group({"memory": inner.get(_V2, Path()), **inner}, version=version)
        group.kill()
        group.remove()
    for folder in set(folders.values()):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _own_folders() -> dict[str, Path]:
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
        here = {"cgroup2": [_V2], "cgroup": options.split(",")}.get(kind, [])
        for name in places.keys() & here - found.keys():
            place = places[name]
            if place.is_relative_to(root) and ".." not in place.parts:
                found[name] = Path(point, place.relative_to(root))
    return found


def _upward(folder: Path) -> Iterator[Path]:
    """Yield a group and those above it, as far as they are seen here."""
    while (folder / "cgroup.procs").exists():
        yield folder
        folder = folder.parent


def _unescaped(text: str) -> str:
    """Undo what mountinfo does to spaces and the like: backslash and three octal digits."""
    return text.encode().decode("unicode_escape") if "\\" in text else text


def _processes(folder: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    return []


def _words(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().split()
    return []


def _values(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; other lines do not count."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int:
    """Read a number; 0 where the kernel does not count."""
    with contextlib.suppress(OSError):
        return int(path.read_text())
    return 0


def _write(path: Path, value: str | int) -> None:
    """Write to a file of the kernel's, in one call: each call is one order."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
