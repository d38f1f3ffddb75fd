"""Control groups: what all processes of a sandbox may use together, as the kernel keeps it.

    the group of this process, or the nearest above it that can have such groups below it
    └── gitd-<label>-<8 hex digits>     made by `Groups.prepare`, given to who makes the sandboxes
        ├── self                        the process that makes them (version 1: `cpu` alone)
        └── box-<number>                one sandbox

Version 2 is used where it has the controllers `memory` and `pids`, else version 1.

Source: Linux 6.1, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hooks.background import for_ever
from hooks.builds.errors import GroupsUnavailableError
from hooks.builds.sandbox import cgroupfs
from hooks.builds.sandbox.cgroupfs import V2
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sandbox.processor_share import ProcessorShare, weigh

PREFIX = "gitd-"
TIDY_EVERY_S = 30.0
_BOX_WEIGHT = 10  # against 100 for the process that makes the sandboxes and must stay awake
_NEEDED = ("memory", "pids")
_WELCOME_V2 = ("cpu", "io")
_WELCOME_V1 = ("cpu", "cpuacct", "freezer")
_NEARLY_FULL = 0.95  # memory is taken in pieces: the last one may have been too large
_TRIES = 10


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What happened in a group since it was made.

    `cpu_s`: None where the kernel does not count it. `was_full`: its own limit of memory was in the
    way. The counts: processes killed for want of memory, in it or on the machine; processes and
    threads that were refused.
    """

    cpu_s: float | None
    was_full: bool
    oom_kill_count: int
    fork_failed_count: int


class Group:
    """The control group of one sandbox. Made by `Groups.make`; `remove` it when all have ended."""

    def __init__(
        self, folders: Mapping[str, Path], *, version: int, share: ProcessorShare | None = None
    ) -> None:
        """`share`: of all sandboxes together and who makes them, where it can be changed."""
        self._folders = folders
        self._version = version
        self.share = share

    def set_limits(self, limits: Limits) -> None:
        """Bound memory, swap included, and the count of processes; give way to everyone else."""
        memory = self._folders["memory"]
        if self._version == 1:
            cgroupfs.write(memory / "memory.limit_in_bytes", limits.memory_bytes)
            with contextlib.suppress(OSError):  # the kernel may not account for swap
                cgroupfs.write(memory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
        else:
            cgroupfs.write(memory / "memory.max", limits.memory_bytes)
            cgroupfs.write(memory / "memory.oom.group", 1)
            with contextlib.suppress(OSError):
                cgroupfs.write(memory / "memory.swap.max", 0)
        # one more: bubblewrap's own process 1
        cgroupfs.write(self._folders["pids"] / "pids.max", limits.process_count + 1)

    def come_last(self) -> None:
        """Let it have little of the processor while who made it wants some too."""
        if "cpu" in self._folders:
            weigh(self._folders["cpu"], _BOX_WEIGHT, version=self._version)

    def join(self, pid: int) -> None:
        """Move a process here; what it starts from now on is here too. Blocking, some 10 ms."""
        for folder in set(self._folders.values()):
            cgroupfs.write(folder / "cgroup.procs", pid)

    @property
    def refusals(self) -> Path:
        """The file that has another content once processes were refused."""
        return self._folders["pids"] / "pids.events"

    def use(self) -> GroupUse:
        memory = self._folders["memory"]
        forks = cgroupfs.values(self.refusals).get("max", 0)
        if self._version == 1:
            kills = cgroupfs.values(memory / "memory.oom_control").get("oom_kill", 0)
            limit = cgroupfs.number(memory / "memory.limit_in_bytes")
            full = cgroupfs.number(memory / "memory.max_usage_in_bytes") > _NEARLY_FULL * limit
            return GroupUse(self._cpu_s(), full, kills, forks)
        events = cgroupfs.values(memory / "memory.events")
        cpu_s = cgroupfs.values(memory / "cpu.stat").get("usage_usec", 0) / 1e6
        return GroupUse(cpu_s, events.get("oom", 0) > 0, events.get("oom_kill", 0), forks)

    def _cpu_s(self) -> float | None:
        """In version 1 a controller of its own, which may be missing."""
        folder = self._folders.get("cpuacct")
        return None if folder is None else cgroupfs.number(folder / "cpuacct.usage") / 1e9

    def kill(self) -> None:
        """End every process in it, whatever they do meanwhile."""
        if self._version == 2:
            with contextlib.suppress(OSError):
                cgroupfs.write(self._folders["memory"] / "cgroup.kill", 1)
            return
        self.freeze()
        for pid in cgroupfs.processes(self._folders["memory"]):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.thaw()

    def freeze(self) -> bool:
        """Halt every process in it, and say whether that is possible here."""
        return self._set_frozen(is_frozen=True)

    def thaw(self) -> None:
        """Let its processes go on."""
        self._set_frozen(is_frozen=False)

    def _set_frozen(self, *, is_frozen: bool) -> bool:
        if self._version == 2:
            place, value = self._folders["memory"] / "cgroup.freeze", str(int(is_frozen))
        elif "freezer" in self._folders:
            place = self._folders["freezer"] / "freezer.state"
            value = "FROZEN" if is_frozen else "THAWED"
        else:
            return False
        try:
            cgroupfs.write(place, value)
        except OSError:  # it is gone, or the kernel has none (before Linux 5.2)
            return False
        return True

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

    def __init__(self, folders: Mapping[str, Path], locks: Sequence[int], *, version: int) -> None:
        self.version = version
        self._folders = folders
        self._locks = tuple(locks)  # open as long as this process lives
        self._numbers = itertools.count(1)
        self._ended: list[Group] = []
        self.share: ProcessorShare | None = None

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
        own = cgroupfs.own_folders()
        try:
            if V2 in own and any(map(_has_controllers, cgroupfs.upward(own[V2]))):
                folders, locks = _divide_v2(own[V2], label)
            elif set(_NEEDED) <= own.keys():
                folders, locks = _divide_v1(own, label)
            else:
                raise GroupsUnavailableError("no control groups with memory and pids are mounted")
        except OSError as error:
            raise GroupsUnavailableError(f"{error.filename}: {error.strerror}") from error
        groups = cls(folders, locks, version=2 if V2 in folders else 1)
        if weight is not None:
            groups._set_weight(weight, own, owner)
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
            {key: path / name for key, path in self._folders.items()},
            version=self.version,
            share=self.share if is_background else None,
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

    def _set_weight(
        self, weight: int, before: Mapping[str, Path], owner: tuple[int, int] | None
    ) -> None:
        """`before`: where this process was before it went below its own folder."""
        if "cpu" in self._folders:
            folder = self._folders["cpu"]
            outside = before["cpu" if self.version == 1 else V2]
            with contextlib.suppress(OSError):
                weigh(folder, weight, version=self.version)
            if outside != folder.parent or _is_top(outside):
                # Else it is alone there, in a unit of its own: idle beside nobody.
                self.share = ProcessorShare.open(
                    folder,
                    weight,
                    version=self.version,
                    counting=self._folders.get("cpuacct", folder),
                    outside=outside,
                    owner=owner,
                )
        with contextlib.suppress(OSError, KeyError):
            cgroupfs.write(self._folders["io"] / "io.weight", f"default {weight}")

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
    own = cgroupfs.own_folders().get(V2)
    if own is None or _is_top(own) or cgroupfs.processes(own) != [os.getpid()]:
        return
    with contextlib.suppress(OSError):
        leaf = own / "control"
        leaf.mkdir(exist_ok=True)
        cgroupfs.write(leaf / "cgroup.procs", 0)


async def keep_tidy(every_s: float = TIDY_EVERY_S) -> None:
    """Do what `tidy` does, for ever: processes that were killed could not."""

    async def turn() -> None:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(tidy)

    await for_ever(turn, failed="groups_not_tidied", pause_s=every_s)


def tidy() -> None:
    """Remove what ended processes left near this one's groups; end what runs in there."""
    own = cgroupfs.own_folders()
    if V2 in own:
        for parent in cgroupfs.upward(own[V2]):
            _sweep({V2: parent})
    if "memory" in own:
        _sweep({name: own[name] for name in (*_NEEDED, *_WELCOME_V1) if name in own})


def _divide_v1(own: Mapping[str, Path], label: str) -> tuple[dict[str, Path], list[int]]:
    parents = {name: own[name] for name in (*_NEEDED, *_WELCOME_V1) if name in own}
    _sweep(parents)
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # one was swept before it was locked
            return _make_v1(parents, _name(label))
    raise OSError(errno.EBUSY, "its groups are removed as they are made", str(parents["memory"]))


def _make_v1(parents: Mapping[str, Path], name: str) -> tuple[dict[str, Path], list[int]]:
    folders: dict[str, Path] = {}
    locks: list[int] = []
    try:
        for controller, parent in parents.items():
            folder = parent / name
            if folder not in folders.values():  # some controllers share a hierarchy
                try:
                    folder.mkdir()
                except OSError:
                    if controller in _NEEDED:
                        raise
                    continue
                locks.append(_locked(folder))
            folders[controller] = folder
        if "cpu" in folders:  # what it does for its sandboxes has their weight
            (folders["cpu"] / "self").mkdir()
            cgroupfs.write(folders["cpu"] / "self" / "cgroup.procs", 0)
    except OSError:
        for lock in locks:
            os.close(lock)
        for parent in parents.values():
            with contextlib.suppress(OSError):
                (parent / name).rmdir()
        raise
    return folders, locks


def _divide_v2(own: Path, label: str) -> tuple[dict[str, Path], list[int]]:
    """Take the nearest group that has no process but this one, and may pass on controllers."""
    refusal: OSError | None = None
    for parent in cgroupfs.upward(own):
        is_shared = not _is_top(parent) and set(cgroupfs.processes(parent)) - {os.getpid()}
        if is_shared or not _has_controllers(parent):
            continue
        _sweep({V2: parent})
        try:
            return _divide_below(parent, own, label)
        except OSError as error:
            refusal = error
    raise refusal or OSError(errno.EBUSY, "other processes share its control group", str(own))


def _divide_below(parent: Path, own: Path, label: str) -> tuple[dict[str, Path], list[int]]:
    name, lock = _make_locked(parent, label)
    group = parent / name
    leaf = group / "self"
    try:
        leaf.mkdir()
        cgroupfs.write(leaf / "cgroup.procs", 0)
        for controller in _NEEDED:
            _enable(parent, controller)
            _enable(group, controller)
        folders = {V2: group, **dict.fromkeys(_NEEDED, group)}
        for controller in _WELCOME_V2:
            with contextlib.suppress(OSError):
                _enable(parent, controller)
                _enable(group, controller)
                folders[controller] = group
    except OSError:
        with contextlib.suppress(OSError):
            cgroupfs.write(own / "cgroup.procs", 0)
            leaf.rmdir()
            group.rmdir()
        os.close(lock)
        raise
    return folders, [lock]


def _is_top(folder: Path) -> bool:
    """Say whether it may have others in it beside groups with limits.

    In version 2 that is the group of the whole machine alone, in version 1 any.
    """
    return not (folder / "cgroup.type").exists()


def _has_controllers(folder: Path) -> bool:
    return set(_NEEDED) <= set(cgroupfs.words(folder / "cgroup.controllers"))


def _enable(folder: Path, controller: str) -> None:
    if controller not in cgroupfs.words(folder / "cgroup.subtree_control"):
        cgroupfs.write(folder / "cgroup.subtree_control", f"+{controller}")


def _make_locked(parent: Path, label: str) -> tuple[str, int]:
    """Make a group that nobody sweeps away while this process lives."""
    while True:
        name = _name(label)
        (parent / name).mkdir()
        with contextlib.suppress(FileNotFoundError):  # it was swept before it was locked
            return name, _locked(parent / name)


def _name(label: str) -> str:
    return f"{PREFIX}{label}-{secrets.token_hex(4)}"


def _locked(folder: Path) -> int:
    """Hold a group that was made just now.

    Raises:
        FileNotFoundError: It was swept already, or is being so.
    """
    lock = cgroupfs.lock(folder)
    if lock is None:
        raise FileNotFoundError(errno.ENOENT, "is being swept away", str(folder))
    return lock


def _sweep(parents: Mapping[str, Path]) -> None:
    """Remove the groups that no living process holds, and end what may run in them.

    In each hierarchy by itself: the kernel may have let one go, and not yet the other.
    """
    left = {path.name for parent in parents.values() for path in parent.glob(f"{PREFIX}*")}
    for name in left:
        folders = {key: parent / name for key, parent in parents.items()}
        folders = {key: folder for key, folder in folders.items() if folder.is_dir()}
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            if _is_elsewhere(folders):
                continue
            for folder in set(folders.values()):
                if (lock := cgroupfs.lock(folder)) is None:
                    break
                held.callback(os.close, lock)
            else:
                _remove_all(folders)


def _is_elsewhere(folders: Mapping[str, Path]) -> bool:
    """Say whether a group is in use whose memory is counted below another group than this one's."""
    if not {"memory", V2}.isdisjoint(folders):
        return False
    return any(
        cgroupfs.processes(path.parent)
        for folder in set(folders.values())
        for path in folder.rglob("cgroup.procs")
    )


def _remove_all(folders: Mapping[str, Path]) -> None:
    version = 2 if V2 in folders else 1
    names = {path.name for folder in folders.values() for path in folder.glob("*/")}
    for name in names:
        inner = {controller: folder / name for controller, folder in folders.items()}
        group = Group({"memory": inner.get(V2, Path()), **inner}, version=version)
        group.kill()
        group.remove()
    for folder in set(folders.values()):
        with contextlib.suppress(OSError):
            folder.rmdir()
