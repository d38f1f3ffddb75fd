"""The system calls that sandboxed programs are refused, as a BPF program for the kernel.

The program is assembled here, from the table below, when the module is first used: no compiled file
to trust, and no libseccomp needed on the machine.

Everything is allowed except what is listed: calls that reach into other processes, namespaces,
mounts, clocks, keys, modules or rarely used parts of the kernel. Calls newer than this table answer
"not implemented", so that programs fall back to older ones that the table knows.

The limit of core dumps stays as it is, and who sets it is told that it was set. It is one byte:
programs that lower it to none would make the kernel hand their crashes to the machine's own
program for them, which runs as root and counts as nobody's.

Core scheduling (`prctl` with `PR_SCHED_CORE`) is not there, as on kernels without it: a group of
its own would keep the other threads of a core idle, which sites may need.

Source: seccomp(2); linux/filter.h; linux/audit.h; linux/prctl.h; linux/f2fs.h; xfs/xfs_fs.h;
core(5) "Piping core dumps to a program", and do_coredump in the kernel's fs/coredump.c for the
limit of one byte; Linux 6.1, Documentation/admin-guide/hw-vuln/core-scheduling.rst.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator
from functools import cache

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NEWEST_CALL = 456  # futex_requeue; numbers from 424 on are the same on every architecture

# name: (number on x86_64, number on aarch64); None where the architecture has no such call
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "ioprio_set": (251, 30),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_IOCTL = {"x86_64": 16, "aarch64": 29}
_PRCTL = {"x86_64": 157, "aarch64": 167}
_PERSONALITY = {"x86_64": 135, "aarch64": 92}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_FALLOCATE = {"x86_64": 285, "aarch64": 47}
_SETRLIMIT = {"x86_64": 160, "aarch64": 164}
_PRLIMIT64 = {"x86_64": 302, "aarch64": 261}
_SCHED_SETAFFINITY = {"x86_64": 203, "aarch64": 122}

_CLONE_NEW_NAMESPACES = 0x7E020000  # NS, CGROUP, UTS, IPC, USER, PID, NET
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into a terminal that somebody else reads
_TIOCSETD = 0x5423  # makes the kernel load a driver of serial lines
# Other contents come into a file, by no time of it: EXT4_IOC_MOVE_EXT, XFS_IOC_SWAPEXT. The others
# do the like, and no build needs them: XFS_IOC_EXCHANGE_RANGE, F2FS_IOC_MOVE_RANGE.
_MOVES_OF_CONTENTS = (0xC028660F, 0xC0C0586D, 0x40285881, 0xC020F509)
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_NETLINK_PROTOCOLS = (0,)  # routing: getaddrinfo asks for the machine's addresses
_INET_TYPES = (1, 2, 3)  # streams, datagrams; raw ones, which the kernel refuses by itself
_INET_PROTOCOLS = (0, 1, 6, 17, 58, 262)  # the type's own, ICMP, TCP, UDP, ICMPv6, MPTCP
_TYPE_BITS = 0xF  # the others are flags
_PREALLOCATE = (0x40305828, 0x4030582A, 0x40305839)  # FS_IOC_RESVSP, _RESVSP64, _ZERO_RANGE
_PERSONALITIES = (0, 0xFFFFFFFF)  # the usual one, and the question which one it is
_PR_SCHED_CORE = 62
_RLIMIT_CORE = 4
_DONE = 0  # the "error" of a call that is not made, and is said to have succeeded

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_NR, _ARCH = 0, 4
_ARG0, _ARG1, _ARG2, _ARG3 = 16, 24, 32, 40  # the low halves: both are little-endian
_HIGH = 4  # from there to the high half
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]  # code, steps when true, steps when false, operand


class UnknownArchitectureError(LookupError):
    """There is no table of system calls for this machine's architecture."""


@cache
def program(
    architecture: str = platform.machine(),
    *,
    may_preallocate: bool = True,
    may_choose_processors: bool = True,
) -> bytes:
    """Return the filter as the kernel wants it: `struct sock_filter` after `struct sock_filter`.

    `architecture`: as `uname -m` says it, `x86_64` or `aarch64`. Unless it `may_preallocate`, a
    program takes disk only by writing: programs do so by themselves where a file system says that
    it cannot reserve space, and it gives who watches the disk the time to look. Unless it
    `may_choose_processors`, it stays on those that it begins on, and is told that it has moved, as
    where the kernel itself keeps processors from it.

    Raises:
        UnknownArchitectureError: Neither of the two.
    """
    if architecture not in _AUDIT_ARCH:
        raise UnknownArchitectureError(
            f"no table of system calls for {architecture}: builds need x86_64 or aarch64"
        )
    return b"".join(
        struct.pack("=HBBI", *step)
        for step in _assemble(
            architecture,
            may_preallocate=may_preallocate,
            may_choose_processors=may_choose_processors,
        )
    )


def _assemble(
    architecture: str, *, may_preallocate: bool, may_choose_processors: bool
) -> Iterator[Instruction]:
    column = 0 if architecture == "x86_64" else 1
    yield (_LOAD, 0, 0, _ARCH)
    yield (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[architecture])
    yield _answer(_KILL)  # a 32-bit program: its numbers mean other calls
    yield (_LOAD, 0, 0, _NR)
    if architecture == "x86_64":
        yield from _refuse_when((_JUMP_AT_LEAST, 0, 1, _X32_BIT), errno.ENOSYS)
    yield from _refuse_when((_JUMP_AT_LEAST, 0, 1, _NEWEST_CALL + 1), errno.ENOSYS)
    yield from _refuse_when((_JUMP_EQUAL, 0, 1, _CLONE3), errno.ENOSYS)  # its flags hide in memory
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            yield from _refuse_when((_JUMP_EQUAL, 0, 1, number), errno.EPERM)
    if not may_preallocate:
        fallocate = _FALLOCATE[architecture]
        yield from _refuse_when((_JUMP_EQUAL, 0, 1, fallocate), errno.EOPNOTSUPP)
    if not may_choose_processors:
        setaffinity = _SCHED_SETAFFINITY[architecture]
        yield from _refuse_when((_JUMP_EQUAL, 0, 1, setaffinity), _DONE)
    yield from _for_call(
        _CLONE[architecture],
        (_LOAD, 0, 0, _ARG0),
        (_JUMP_ANY_BIT, 0, 1, _CLONE_NEW_NAMESPACES),
        _answer(_ERRNO | errno.EPERM),
    )
    watched = () if may_preallocate else _PREALLOCATE
    orders = (_TIOCSTI, _TIOCLINUX, _TIOCSETD, *_MOVES_OF_CONTENTS, *watched)
    yield from _for_call(
        _IOCTL[architecture],
        (_LOAD, 0, 0, _ARG1),
        *_none_of(orders),
        _answer(_ERRNO | errno.EPERM),
    )
    yield from _for_call(
        _PERSONALITY[architecture],
        (_LOAD, 0, 0, _ARG0),
        *_one_of(_PERSONALITIES),
        _answer(_ERRNO | errno.EPERM),
    )
    yield from _for_call(
        _PRCTL[architecture],
        (_LOAD, 0, 0, _ARG0),
        *_none_of((_PR_SCHED_CORE,)),
        _answer(_ERRNO | errno.EINVAL),
    )
    yield from _for_call(
        _SOCKETPAIR[architecture],
        (_LOAD, 0, 0, _ARG0),
        *_one_of((_UNIX,)),
        _answer(_ERRNO | errno.EAFNOSUPPORT),
    )
    yield from _for_call(
        _SETRLIMIT[architecture],
        (_LOAD, 0, 0, _ARG0),
        (_JUMP_EQUAL, 0, 1, _RLIMIT_CORE),
        _answer(_ERRNO | _DONE),
    )
    yield from _for_call(_PRLIMIT64[architecture], *_judge_prlimit())
    yield from _for_call(_SOCKET[architecture], *_judge_socket())
    yield _answer(_ALLOW)


def _judge_socket() -> Iterator[Instruction]:
    """Refuse what loads rare parts of the kernel: by family, then by type and protocol."""
    netlink = (
        (_LOAD, 0, 0, _ARG2),
        *_one_of(_NETLINK_PROTOCOLS),
        _answer(_ERRNO | errno.EPROTONOSUPPORT),
        _answer(_ALLOW),
    )
    yield (_LOAD, 0, 0, _ARG0)
    yield from _one_of((_UNIX, _INET, _INET6, _NETLINK))
    yield _answer(_ERRNO | errno.EAFNOSUPPORT)
    yield (_JUMP_EQUAL, 0, 1, _UNIX)
    yield _answer(_ALLOW)
    yield (_JUMP_EQUAL, 0, len(netlink), _NETLINK)
    yield from netlink
    yield (_LOAD, 0, 0, _ARG1)
    yield (_AND, 0, 0, _TYPE_BITS)
    yield from _one_of(_INET_TYPES)
    yield _answer(_ERRNO | errno.ESOCKTNOSUPPORT)
    yield (_LOAD, 0, 0, _ARG2)
    yield from _one_of(_INET_PROTOCOLS)
    yield _answer(_ERRNO | errno.EPROTONOSUPPORT)


def _judge_prlimit() -> Iterator[Instruction]:
    """Let the limit of core dumps be read, but not set; not both at once, which would read nothing.

    A pointer is null when both of its halves are.
    """
    changes = (
        (_LOAD, 0, 0, _ARG3),
        (_JUMP_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _ARG3 + _HIGH),
        (_JUMP_EQUAL, 1, 0, 0),
        _answer(_ERRNO | errno.EPERM),
        _answer(_ERRNO | _DONE),
    )
    reads = (
        (_LOAD, 0, 0, _ARG2),
        (_JUMP_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _ARG2 + _HIGH),
        (_JUMP_EQUAL, len(changes), 0, 0),
    )
    yield (_LOAD, 0, 0, _ARG1)
    yield (_JUMP_EQUAL, 0, len(reads) + len(changes), _RLIMIT_CORE)
    yield from reads
    yield from changes


def _answer(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _refuse_when(test: Instruction, error: int) -> Iterator[Instruction]:
    yield test
    yield _answer(_ERRNO | error)


def _one_of(allowed: tuple[int, ...]) -> Iterator[Instruction]:
    """Step over the one instruction that follows when the operand is among `allowed`."""
    for place, value in enumerate(allowed):
        yield (_JUMP_EQUAL, len(allowed) - place, 0, value)


def _none_of(refused: tuple[int, ...]) -> Iterator[Instruction]:
    """Step over the one instruction that follows unless the operand is among `refused`."""
    *others, last = refused
    for place, value in enumerate(others):
        yield (_JUMP_EQUAL, len(others) - place, 0, value)
    yield (_JUMP_EQUAL, 0, 1, last)


def _for_call(number: int, *steps: Instruction) -> Iterator[Instruction]:
    """Judge one call by its arguments; nothing comes back to the number once it matched."""
    yield (_JUMP_EQUAL, 0, len(steps) + 1, number)
    yield from steps
    yield _answer(_ALLOW)
