"""The filter of system calls, run by an interpreter of its programs: both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.builds.sandbox import seccomp

ALLOW, KILL, DONE = "allow", "kill", "done"
ANSWERS = {ALLOW, DONE, "EPERM", "EINVAL", "ENOSYS"}
ANSWERS |= {"EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NAMESPACES = {  # Source: linux/sched.h
    "NS": 0x00020000,
    "CGROUP": 0x02000000,
    "UTS": 0x04000000,
    "IPC": 0x08000000,
    "USER": 0x10000000,
    "PID": 0x20000000,
    "NET": 0x40000000,
}


def judge(architecture, number, args=(), audit=None, **filtered):
    """Run the program on one call, as the kernel does. Source: Documentation/networking/filter."""
    program = seccomp.program(architecture, **filtered)
    steps = list(struct.iter_unpack("=HBBI", program))
    audit = ARCHITECTURES[architecture] if audit is None else audit
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("=iIQ6Q", number - (number >> 31 << 32), audit, 0, *padded)
    accumulator = place = 0
    while True:
        code, when_true, when_false, operand = steps[place]
        place += 1
        if code == 0x20:
            [accumulator] = struct.unpack_from("=I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            action, value = operand & 0xFFFF0000, operand & 0xFFFF
            known = {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(action)
            return known or (errno.errorcode[value] if value else DONE)
        else:
            matches = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }[code]
            place += when_true if matches else when_false


@pytest.mark.parametrize(
    ("call", "numbers", "args", "answer"),
    [
        ("read", (0, 63), (), ALLOW),
        ("execve", (59, 221), (), ALLOW),
        ("futex_requeue", (456, 456), (), ALLOW),
        ("what comes after", (457, 457), (), "ENOSYS"),
        ("mount", (165, 40), (), "EPERM"),
        ("ptrace", (101, 117), (), "EPERM"),
        ("setns", (308, 268), (), "EPERM"),
        ("clone3", (435, 435), (), "ENOSYS"),
        ("fork", (56, 220), (17,), ALLOW),
        ("thread", (56, 220), (0x3D0F00,), ALLOW),
        *[
            (f"clone with a new {kind}", (56, 220), (bit | 17,), "EPERM")
            for kind, bit in NAMESPACES.items()
        ],
        ("TIOCSTI", (16, 29), (0, 0x5412), "EPERM"),
        ("TIOCSTI with high bits", (16, 29), (0, (1 << 40) | 0x5412), "EPERM"),
        ("TIOCLINUX", (16, 29), (0, 0x541C), "EPERM"),
        ("TIOCSETD", (16, 29), (0, 0x5423), "EPERM"),
        ("EXT4_IOC_MOVE_EXT", (16, 29), (3, 0xC028660F), "EPERM"),
        ("XFS_IOC_SWAPEXT", (16, 29), (3, 0xC0C0586D), "EPERM"),
        ("XFS_IOC_EXCHANGE_RANGE", (16, 29), (3, 0x40285881), "EPERM"),
        ("F2FS_IOC_MOVE_RANGE", (16, 29), (3, 0xC020F509), "EPERM"),
        ("TCGETS", (16, 29), (0, 0x5401), ALLOW),
        ("AF_UNIX", (41, 198), (1, 1), ALLOW),
        ("AF_UNIX of another type", (41, 198), (1, 5, 99), ALLOW),
        *[(f"TCP, family {n}", (41, 198), (n, 0x80801, 6), ALLOW) for n in (2, 10)],
        *[(f"UDP, family {n}", (41, 198), (n, 2, 0), ALLOW) for n in (2, 10)],
        ("ping", (41, 198), (2, 2, 1), ALLOW),
        ("MPTCP", (41, 198), (2, 1, 262), ALLOW),
        ("SCTP", (41, 198), (2, 1, 132), "EPROTONOSUPPORT"),
        ("DCCP", (41, 198), (10, 6, 0), "ESOCKTNOSUPPORT"),
        ("DCCP with a flag", (41, 198), (10, 0x806, 0), "ESOCKTNOSUPPORT"),
        ("UDP-Lite", (41, 198), (2, 2, 136), "EPROTONOSUPPORT"),
        ("routing", (41, 198), (16, 3, 0), ALLOW),
        ("everybody's sockets", (41, 198), (16, 3, 4), "EPROTONOSUPPORT"),
        ("audit", (41, 198), (16, 3, 9), "EPROTONOSUPPORT"),
        ("pair", (53, 199), (1, 1), ALLOW),
        ("pair of AF_TIPC", (53, 199), (30, 5), "EAFNOSUPPORT"),
        ("memfd_secret", (447, 447), (), "EPERM"),
        ("ioprio_set", (251, 30), (), "EPERM"),
        ("fallocate", (285, 47), (), ALLOW),
        ("sched_setaffinity", (203, 122), (), ALLOW),
        *[(f"family {n}", (41, 198), (n,), "EAFNOSUPPORT") for n in (0, 3, 17, 38, 40, 44)],
        ("setrlimit of files", (160, 164), (7, 1), ALLOW),
        ("setrlimit of core dumps", (160, 164), (4, 1), DONE),
        ("prlimit of files", (302, 261), (0, 7, 1, 1), ALLOW),
        ("prlimit that reads that of core dumps", (302, 261), (0, 4, 0, 1), ALLOW),
        ("prlimit that sets it", (302, 261), (0, 4, 1, 0), DONE),
        ("prlimit that sets it from far up", (302, 261), (0, (1 << 40) | 4, 1 << 32, 0), DONE),
        ("prlimit that sets and reads it", (302, 261), (0, 4, 1, 1), "EPERM"),
        ("prlimit that reads it to far up", (302, 261), (0, 4, 1, 1 << 32), "EPERM"),
        ("PR_SCHED_CORE", (157, 167), (62, 1), "EINVAL"),
        ("PR_SCHED_CORE with high bits", (157, 167), ((1 << 40) | 62, 1), "EINVAL"),
        ("PR_SET_NO_NEW_PRIVS", (157, 167), (38, 1), ALLOW),
        ("PR_SET_NAME", (157, 167), (15, 1), ALLOW),
        ("personality 0", (135, 92), (0,), ALLOW),
        ("personality ?", (135, 92), (0xFFFFFFFF,), ALLOW),
        ("personality other", (135, 92), (0x0040000,), "EPERM"),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_call_is_judged(architecture, call, numbers, args, answer):
    number = numbers[list(ARCHITECTURES).index(architecture)]
    assert judge(architecture, number, args) == answer, call


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_more_is_had_of_sockets_and_personalities_than_is_listed(architecture):
    """What is rare loads a part of the kernel, and parts that nobody uses are where its holes are.

    Among them: SCTP by its type alone, uevents, programs of 32 bits.
    """
    x86 = architecture == "x86_64"
    socket, pair, personality = (41, 53, 135) if x86 else (198, 199, 92)

    def had(number, args, values):
        return {each for each in values if judge(architecture, number, args(each)) == ALLOW}

    assert had(socket, lambda family: (family, 1), range(256)) == {1, 2, 10, 16}
    assert had(pair, lambda family: (family, 1), range(256)) == {1}
    for family in (2, 10):
        assert had(socket, lambda kind, family=family: (family, kind), range(16)) == {1, 2, 3}
        protocols = had(socket, lambda number, family=family: (family, 1, number), range(512))
        assert protocols == {0, 1, 6, 17, 58, 262}
    assert had(socket, lambda protocol: (16, 3, protocol), range(256)) == {0}
    asked = (*range(512), *(1 << bit for bit in range(32)), 0xFFFFFFFF)
    assert had(personality, lambda value: (value,), asked) == {0, 0xFFFFFFFF}


# The kernel's own numbers, where a machine has its headers.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
REFUSED = """
_sysctl acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init
finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter
io_uring_register io_uring_setup ioperm ioprio_set iopl kcmp kexec_file_load kexec_load keyctl
lookup_dcookie mbind memfd_secret migrate_pages modify_ldt mount mount_setattr move_mount move_pages
name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
process_madvise process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot
request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday
swapoff swapon syslog umount2 unshare uselib userfaultfd ustat vhangup
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_refused_is_so_by_the_numbers_of_the_kernel(architecture):
    if not HEADERS[architecture].exists():
        pytest.skip("needs the kernel's headers")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[architecture].read_text())
    numbers = {name: int(number) for name, number in defined if name in REFUSED.split()}
    assert len(numbers) > 45
    assert [name for name in numbers if judge(architecture, numbers[name]) != "EPERM"] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_disk_is_taken_by_writing_alone_where_it_is_watched(architecture):
    x86 = architecture == "x86_64"
    fallocate, ioctl = (285, 16) if x86 else (47, 29)
    assert judge(architecture, fallocate, may_preallocate=False) == errno.errorcode[95]
    for order in (0x40305828, 0x4030582A, 0x40305839):
        assert judge(architecture, ioctl, (3, order), may_preallocate=False) == "EPERM"
        assert judge(architecture, ioctl, (3, order)) == ALLOW
    assert judge(architecture, ioctl, (3, 0x5401), may_preallocate=False) == ALLOW


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_processors_are_not_chosen_where_some_are_kept_from_it(architecture):
    setaffinity, getaffinity = (203, 204) if architecture == "x86_64" else (122, 123)
    assert judge(architecture, setaffinity, may_choose_processors=False) == DONE
    assert judge(architecture, getaffinity, may_choose_processors=False) == ALLOW


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_programs_of_another_architecture_are_killed(architecture):
    assert judge(architecture, 0, audit=0x40000003) == KILL


def test_calls_of_x32_are_not_there():
    assert judge("x86_64", 0x40000000 | 165) == "ENOSYS"


@given(st.sampled_from(list(ARCHITECTURES)), st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1))
def test_every_call_gets_an_answer(architecture, number, arg):
    assert judge(architecture, number, (arg, arg, arg)) in ANSWERS


def test_program_fits_the_kernels_bound():
    assert all(len(seccomp.program(name)) // 8 < 4096 for name in ARCHITECTURES)


def test_unknown_architecture_is_refused():
    with pytest.raises(seccomp.UnknownArchitectureError, match="riscv64"):
        seccomp.program("riscv64")
