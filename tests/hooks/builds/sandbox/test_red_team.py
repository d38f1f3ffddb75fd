"""What a hostile build tries: to get out, to look out, to stay, and to smuggle things out.

Each attack is made for real, by a program in a sandbox as builds have it, or by the command of a
build whose output the slot then takes. Each must fail, and fail closed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from hooks.builds.sandbox.spec import APP_DIR
from tests.hooks.builds.conftest import UID
from tests.power import disk_of, needs_disks

STRICT = {"disk_bytes": 1 << 30}  # as builds have it: what reserves disk is refused

PRELUDE = """
import array, ctypes, errno, mmap, os, platform, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
IS_X86 = platform.machine() == 'x86_64'
def call(x86, arm, *args):
    ctypes.set_errno(0)
    number = x86 if IS_X86 else arm
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else f'got {result}'
def attempt(what, *args, **kwargs):
    try: return f'got {what(*args, **kwargs)!r}'
    except OSError as error: return errno.errorcode[error.errno]
def write(path, text='1'):
    with open(path, 'w') as file: return file.write(text)
def read(path, mode='rb'):
    with open(path, mode) as file: return file.read(4096)
"""


def python(code):
    return ["/usr/bin/python3", "-c", f"{PRELUDE}\n{code}"]


@pytest.fixture
def attack(in_sandbox, own_dir):
    """Run Python in a sandbox as builds have it: /app is a folder on the disk."""

    def run(code, **rest):
        binds = [[str(own_dir), APP_DIR, True]]
        return in_sandbox(
            python(code), binds=binds, cwd=APP_DIR, limits=STRICT, is_background=True, **rest
        )

    return run


# -- getting out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("remount what is read-only", "call(165, 40, 0, P('/usr'), 0, 32 | 4096, 0)"),
        ("mount a file system of processes", "call(165, 40, P('p'), P('/tmp'), P('proc'), 0, 0)"),
        ("mount by the newer calls", "call(430, 430, P('tmpfs'), 0)"),
        ("uncover what bubblewrap has covered", "call(166, 39, P('/proc/sys'), 2)"),
        ("change the root back", "call(155, 41, P('/'), P('/tmp'))"),
        ("open by a handle, beside the mounts", "call(304, 265, 0, 0, 0)"),
        ("a user namespace of its own", "call(272, 97, 0x10000000)"),
        ("a mount namespace of its own", "call(272, 97, 0x20000)"),
        ("the namespaces of the first process", "call(308, 268, 0, 0)"),
        ("load a module", "call(175, 105, 0, 0, P(''))"),
        ("another kernel", "call(246, 104, 0, 0, 0, 0)"),
        ("programs in the kernel", "call(321, 280, 0, 0, 0)"),
        ("watch the kernel", "call(298, 241, 0, 0, -1, -1, 0)"),
        ("io_uring, past the filter", "call(425, 425, 8, 0)"),
        ("keys", "call(250, 219, 0, -5, 1)"),
        ("keys of others", "call(249, 218, P('user'), P('x'), 0, -5)"),
        ("trace a process", "call(101, 117, 16, 1, 0, 0)"),
        ("read the memory of a process", "call(310, 270, 1, 0, 0, 0, 0, 0)"),
        ("write the memory of a process", "call(311, 271, 1, 0, 0, 0, 0, 0)"),
        ("take a file from a process", "call(438, 438, 0, 0, 0)"),
        ("faults of its own, to win races", "call(323, 282, 1)"),
        ("memory that nobody sees", "call(447, 447, 0)"),
        ("set the clock", "call(227, 112, 0, 0)"),
        ("the priority of the disk", "call(251, 30, 1, 0, 1 << 13)"),
        ("swap to a file", "call(167, 224, P('/app/x'), 0)"),
        ("reserve disk", "call(285, 47, os.open('/app/x', 65), 0, 0, 1 << 20)"),
        ("load a driver of lines", "call(16, 29, os.open('/dev/ptmx', 2), 0x5423, 0)"),
        ("type into a terminal", "call(16, 29, os.open('/dev/ptmx', 2), 0x5412, P('x'))"),
    ],
)
def test_call_does_not_lead_out(attack, what, code):
    ran = attack(
        f"keep = []\ndef P(t): keep.append(ctypes.create_string_buffer(t.encode())); "
        f"return ctypes.addressof(keep[-1])\nprint({code})"
    )
    assert ran.output.strip() in {"EPERM", "ENOTSUP", "EOPNOTSUPP"}, (what, ran)


@pytest.mark.parametrize(
    ("what", "family"),
    [
        *(("the wire", 17), ("the kernel's ciphers", 38), ("the host of a virtual machine", 40)),
        *(("Bluetooth", 31), ("a bus", 29), ("a cluster", 30), ("XDP", 44), ("nothing", 0)),
    ],
)
def test_socket_of_another_family_is_not_had(attack, what, family):
    ran = attack(f"print(attempt(socket.socket, {family}, 1, 0), call(53, 199, {family}, 1, 0, 0))")
    assert ran.output == "EAFNOSUPPORT EAFNOSUPPORT\n", what


def test_sockets_of_rare_protocols_are_not_had(attack):
    ran = attack(
        "print(attempt(socket.socket, 2, 1, 132), attempt(socket.socket, 10, 6, 0),"
        " attempt(socket.socket, 16, 3, 4), attempt(socket.socket, 2, 3, 1))"
    )
    assert ran.output == "EPROTONOSUPPORT ESOCKTNOSUPPORT EPROTONOSUPPORT EPERM\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="calls of 32 bits are of x86")
def test_calls_of_32_bits_end_the_program(attack):
    """Their numbers mean other calls than those that the filter knows."""
    ran = attack(
        "code = bytes.fromhex('b814000000cd80c3')  # getpid, by int 0x80\n"
        "page = mmap.mmap(-1, 4096, prot=7); page.write(code)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "print('begun', flush=True); ctypes.CFUNCTYPE(ctypes.c_int)(at)(); print('survived')"
    )
    assert (ran.output, ran.status) == ("begun\n", 128 + signal.SIGSYS)


@pytest.mark.parametrize(
    "path",
    [
        *("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"),
        *("/proc/sys/kernel/modprobe", "/proc/sys/fs/binfmt_misc/register", "/proc/1/exe"),
        *("/proc/irq/default_smp_affinity", "/usr/bin/true", "/etc/passwd", "/etc/ld.so.preload"),
        *("/dev/sda", "/dev/mem", "/dev/kmsg", "/sys/kernel/uevent_helper", "/bin/x", "/x"),
        "/proc/1/root/x",
    ],
)
def test_file_of_the_machine_is_not_written(attack, path):
    ran = attack(f"print(attempt(write, {path!r}))")
    refusals = {"EACCES", "EPERM", "EROFS", "ENOENT", "ETXTBSY", "ENODEV"}
    assert ran.output.strip() in refusals, ran


def test_program_from_memory_is_as_confined_as_any(attack):
    ran = attack(
        "fd = os.memfd_create('x'); os.write(fd, open('/usr/bin/grep', 'rb').read())\n"
        "os.execve(fd, ['grep', '-E', 'Seccomp:|NoNewPrivs|Cap(Eff|Bnd)', '/proc/self/status'], {})"
    )
    assert ran.output.split()[1::2] == ["0" * 16, "0" * 16, "1", "2"]


def test_set_user_id_bit_gives_nothing(attack, own_dir):
    ran = attack(
        "import shutil, subprocess; shutil.copy('/usr/bin/id', 'id'); os.chmod('id', 0o6755)\n"
        "print(subprocess.check_output(['./id', '-u'], text=True), end='')"
    )
    assert ran.output == "1000\n"
    assert attack("os.execvp('su', ['su', '-c', 'id -u'])").output.strip() != "0"


def test_it_cannot_become_another_user(attack):
    ran = attack(
        "print(attempt(os.setuid, 0), attempt(os.setgid, 0), attempt(os.setgroups, [0]),"
        " attempt(os.chown, '/app', 0, 0), attempt(os.mknod, '/app/null', 0o20666, 259))"
    )
    assert set(ran.output.split()) <= {"EINVAL", "EPERM"}, ran.output


# -- looking out ----------------------------------------------------------------------------------


def test_first_process_gives_nothing_away(attack, start_starter):
    """bubblewrap itself: its environment, its arguments, its open files, its root."""
    starter = start_starter(env={"SECRET": "leakme"})
    ran = attack(
        "print(read('/proc/1/environ'), read('/proc/1/cmdline'))\n"
        "print(sorted(os.readlink(f'/proc/1/fd/{fd}').split(':')[0] for fd in"
        " os.listdir('/proc/1/fd')))\n"
        "print(os.listdir('/proc/1/root') == os.listdir('/'), os.readlink('/proc/1/cwd'))",
        starter=starter,
        environ={"TOKEN": "hushhush"},
    )
    said, fds, roots = ran.output.splitlines()
    assert said.startswith("b'' ")
    assert "hushhush" not in said
    assert "leakme" not in ran.output
    assert fds == "['/dev/null', 'anon_inode', 'pipe', 'pipe']"
    assert roots == f"True {APP_DIR}"


@pytest.mark.parametrize("name", ["cmdline", "keys", "key-users"])
def test_what_everybody_may_read_of_the_kernel_is_hidden(attack, name):
    """Covered, and not empty because nobody has keys at the moment."""
    ran = attack(
        f"print(attempt(read, '/proc/{name}'))\n"
        f"print(open('/proc/self/mountinfo').read().count(' /proc/{name} ro,'))"
    )
    assert ran.output == "got b''\n1\n"


@pytest.mark.parametrize("name", ["kcore", "kmsg", "kpagecount", "slabinfo", "vmallocinfo"])
def test_what_only_root_may_read_of_the_kernel_stays_so(attack, name):
    assert attack(f"print(attempt(read, '/proc/{name}'))").output in {"EACCES\n", "ENOENT\n"}


def test_devices_are_the_harmless_ones(attack):
    ran = attack("print(*sorted(os.listdir('/dev')), *os.listdir('/dev/pts'))")
    assert set(ran.output.split()) <= {
        *("core", "fd", "full", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    }


def test_keys_beside_the_certificates_are_not_there(attack):
    ran = attack("print(sorted(os.listdir('/etc/ssl')), os.path.exists('/etc/ssl/private'))")
    assert ran.output == "['certs', 'openssl.cnf'] False\n"


def test_files_of_another_slot_are_not_there(attack, open_dir):
    """Not by their path, not by way of the own folder, not by a link or a second name."""
    other = open_dir / "other"
    other.mkdir(mode=0o755)
    (other / "secret").write_text("another slot's")
    path = str(other / "secret")
    ran = attack(
        f"print(attempt(read, {path!r}), attempt(read, '/app/../other/secret'),"
        f" attempt(os.link, {path!r}, '/app/hard'))\n"
        f"os.symlink({path!r}, '/app/soft'); print(attempt(read, '/app/soft'))\n"
        f"print(attempt(read, '/proc/self/root' + {path!r}))\n"
        f"print(attempt(os.listdir, {str(open_dir)!r}))"
    )
    assert ran.output.split() == ["ENOENT"] * 6


def test_strangers_file_gets_no_second_name_in_the_build(attack):
    ran = attack(
        "for source in ('/etc/shadow', '/usr/bin/su', '/etc/passwd', '/proc/1/environ'):\n"
        "    print(attempt(os.link, source, '/app/second'))"
    )
    assert ran.output.split() == ["ENOENT", "EXDEV", "EXDEV", "EXDEV"]


# -- reaching out ---------------------------------------------------------------------------------


def test_processes_outside_of_the_same_uid_are_not_signaled(attack, sandbox_uid):
    """Even by a signal to all processes."""
    outside = subprocess.Popen(["sleep", "600"], user=sandbox_uid)
    try:  # its number in hexadecimal, for decimals may be taken for marks of processes
        ran = attack(
            f"signal.signal(15, signal.SIG_IGN)\nprint(attempt(os.kill, {outside.pid:#x}, 9),"
            f" attempt(os.pidfd_open, {outside.pid:#x}), attempt(os.kill, -1, 15))"
        )
        assert ran.output.split() == ["ESRCH", "ESRCH", "ESRCH"]
        assert outside.poll() is None
    finally:
        outside.kill()
        outside.wait()


def test_abstract_and_named_sockets_of_the_machine_are_not_reached(attack, open_dir):
    name = f"gitd-red-{os.getpid()}"
    path = open_dir / "socket"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        abstract.bind(f"\0{name}")
        named.bind(str(path))
        path.chmod(0o777)
        for each in (abstract, named):
            each.listen()
        ran = attack(
            f"s = socket.socket(socket.AF_UNIX)\nprint(attempt(s.connect, '\\0{name}'),"
            f" attempt(s.connect, {str(path)!r}))"
        )
    assert ran.output.split() == ["ECONNREFUSED", "ENOENT"]


def test_queues_and_shared_memory_of_the_machine_are_not_there(attack):
    made = subprocess.run(["ipcmk", "-M", "4096", "-p", "0666"], capture_output=True, text=True)
    key = made.stdout.split()[-1]
    try:
        ran = attack(
            "print(read('/proc/sysvipc/shm').decode().count('\\n'))\n"
            f"print(call(30, 196, {key}, 0, 0))"
        )
        assert ran.output.split() == ["1", "EINVAL"]  # the head of the list alone
    finally:
        subprocess.run(["ipcrm", "-m", key], check=True)


# -- taking more than its share -------------------------------------------------------------------


def may_set_limits():
    """Whether this process has CAP_SYS_RESOURCE, as root has outside of some containers."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1


@pytest.mark.root
@pytest.mark.skipif(not may_set_limits(), reason="needs root, as slots are started")
async def test_build_stays_the_first_to_go_when_memory_runs_out(control, slot):
    command = (
        "echo 0 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj; renice -n 0 $$; nice"
    )
    job = await control.build(hostile(command))
    assert "500" in job.stage("build")
    assert "0" not in job.stage("build")


def test_limits_cannot_be_raised_or_left(attack):
    ran = attack(
        "import resource\n"
        "try: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)); print('raised')\n"
        "except ValueError: print('refused')\n"
        "print(attempt(os.listdir, '/sys/fs/cgroup'))"
    )
    assert ran.output.split() == ["refused", "ENOENT"]


def test_contents_are_not_moved_into_a_file_behind_the_back_of_its_times(attack):
    """ext4 has a call that does: a file would be another, and look as it was unpacked."""
    ran = attack(
        """
import fcntl, struct
for name in ("app", "mine"):
    with open(f"/app/{name}", "wb") as file:
        file.write(name.encode() * 4096)
        os.fsync(file.fileno())
theirs, mine = (os.open(f"/app/{name}", os.O_RDWR) for name in ("app", "mine"))
for fd in (theirs, mine):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
moved = struct.pack("=IIQQQQ", 0, theirs, 0, 0, 1, 0)
print(attempt(fcntl.ioctl, mine, 0xC028660F, moved), read("/app/app")[:6] == b"appapp")
"""
    )
    assert ran.output.split() == ["EPERM", "True"]


# struct xfs_swapext has a struct xfs_bstat in it, which must tell what the file has now.
# Source: xfs_fs.h of the kernel, fs/xfs/libxfs.
SWAP = """
import fcntl
for name in ("app", "mine"):
    with open(name, "wb") as file:
        file.write((b"mine" if name == "mine" else b"apps") * 4096)
        os.fsync(file.fileno())
os.sync()
theirs, mine = (os.open(name, os.O_RDWR) for name in ("app", "mine"))
before = os.fstat(theirs)
now = struct.pack(
    "=QHHIIIiiq", before.st_ino, before.st_mode, before.st_nlink, before.st_uid, before.st_gid,
    0, 4096, 0, before.st_size,
)
for at_ns in (before.st_atime_ns, before.st_mtime_ns, before.st_ctime_ns):
    now += struct.pack("=qii", at_ns // 10**9, at_ns % 10**9, 0)
swap = struct.pack("=qqqqq16x", 0, theirs, mine, 0, before.st_size) + now.ljust(136, bytes(1))
answer = attempt(fcntl.ioctl, theirs, 0xC0C0586D, bytearray(swap))
is_same = os.stat("app").st_ctime_ns == before.st_ctime_ns
print(answer.split()[0], read("app")[:4].decode(), "same" if is_same else "later")
"""


@pytest.mark.parametrize("kind", [pytest.param("xfs", marks=needs_disks)])
def test_contents_are_not_swapped_behind_the_back_of_times(in_sandbox, kind):
    """xfs has a call that does, for two files of one size."""
    with disk_of(kind, lambda _: None) as disk:
        own_dir = disk.begin() / "own"
        own_dir.mkdir(mode=0o700)
        outside = subprocess.run(
            python(SWAP), cwd=own_dir, capture_output=True, text=True, check=True
        )
        if outside.stdout.split() != ["got", "mine", "same"]:
            pytest.skip(f"this kernel does not: {outside.stdout}")
        for path in (own_dir, *own_dir.iterdir()):
            os.chown(path, UID, UID)
        binds = [[str(own_dir), APP_DIR, True]]
        ran = in_sandbox(python(SWAP), binds=binds, cwd=APP_DIR, limits=STRICT, is_background=True)
        assert ran.output.split() == ["EPERM", "apps", "same"]


def test_crashes_start_no_program_of_the_machine(attack):
    """With a limit of one byte they do not; a program would set it to none, to have them start."""
    ran = attack(
        "import resource, subprocess\n"
        "for limit in ((0, 0), (1 << 20, 1 << 20)):\n"
        "    resource.setrlimit(resource.RLIMIT_CORE, limit)\n"
        "    print(resource.getrlimit(resource.RLIMIT_CORE), call(160, 164, 4, 1), flush=True)\n"
        "subprocess.run('ulimit -c 0; ulimit -c; ulimit -Hc', shell=True)"
    )
    told = ran.output.splitlines()
    assert told[:2] == ["(1, 1) got 0"] * 2
    assert set(told[2:]) <= {"0", "1"}, "in blocks of the shell's own"


def test_processes_that_hide_from_their_parents_end_with_the_sandbox(attack, gone):
    """Twice forked, leaders of sessions, deaf to every signal that can be ignored."""
    ran = attack(
        "for _ in range(5):\n"
        "    if not os.fork():\n"
        "        os.setsid()\n"
        "        if not os.fork():\n"
        "            for number in range(1, 32):\n"
        "                try: signal.signal(number, signal.SIG_IGN)\n"
        "                except (OSError, ValueError): pass\n"
        "            os.closerange(0, 3)\n"
        "            os.execv('/bin/sleep', ['sleep', '4822'])\n"
        "        os._exit(0)\n"
        "import time; time.sleep(0.3)"
    )
    assert (ran.status, ran.survivors) == (0, [])
    gone("4822", timeout_s=0)


# -- smuggling something into the artifact --------------------------------------------------------


def hostile(command):
    return {"managed.toml": f"[build]\ncommand = '''{command}'''\noutput = \"dist\"\n".encode()}


DIST = "mkdir dist; echo 1 > dist/a; "


HOSTILE_OUTPUTS = [
    ("a link to a file of the machine", f"{DIST} ln -s /etc/shadow dist/x", "x"),
    ("a link to where the slot keeps builds", f"{DIST} ln -s ../../../home dist/x", "x"),
    ("a link by way of a link", f"{DIST} ln -s . dist/d; ln -s d/../../b dist/x", "x"),
    ("a link to its own processes", f"{DIST} ln -s /proc/self/environ dist/x", "x"),
    ("an output folder that is a link", "ln -s /etc dist", "dist"),
    ("an output folder that is a link inside", f"{DIST} mv dist real; ln -s real dist", "dist"),
    ("an output folder that is a pipe", "mkfifo dist", "dist"),
    ("a pipe", f"{DIST} mkfifo dist/x", "x"),
    (
        "a socket",
        f'{DIST} python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\\"dist/x\\")"',
        "x",
    ),
    ("a program with its owner's rights", f"{DIST} chmod u+s dist/a", "a"),
    ("a program with its group's rights", f"{DIST} chmod g+s dist/a", "a"),
    ("a name with a line end", f'{DIST} touch "dist/x$(printf "\\\\n_")y"', "x"),
    ("a name that colours the terminal", f'{DIST} touch "dist/x$(printf "\\\\033[1m")"', "x"),
    ("a name that is no text", f'{DIST} touch "dist/x$(printf "\\\\377")"', "x"),
    ("a file that nobody may read", f"{DIST} chmod 0 dist/a", "a"),
    ("a folder that nobody may read", f"{DIST} mkdir dist/x; chmod 0 dist/x", "x"),
    ("a tree that nobody may read", f"{DIST} chmod 0 dist", ""),
    ("a source that nobody may read", f"{DIST} chmod 0 /app", ""),
    (
        "folders without end",
        f"{DIST} cd dist; for i in $(seq 300); do mkdir x; cd x; done; touch y",
        "x",
    ),
]


async def test_output_that_smuggles_is_refused_by_name(control, slot):
    for what, command, name in HOSTILE_OUTPUTS:
        job = await control.build(hostile(command))
        error = job.outcome["error"]
        assert error["code"] == "build.output_invalid", (what, error)
        assert name in error["message"], (what, error)
        assert job.output is None
    await slot.cleaned()


async def test_giant_file_without_contents_is_too_large(control, slot):
    job = await control.build(
        hostile(f"{DIST} truncate -s 900M dist/x; truncate -s 900M dist/y; ls -ls dist"),
        output_bytes_max=1 << 30,
    )
    assert job.outcome["error"]["code"] == "build.output_too_large"
    assert "1 GiB together (builders.output_bytes_max)" in job.outcome["error"]["message"]


async def test_giant_file_beyond_the_bound_of_files_is_not_made(control, slot):
    job = await control.build(hostile(f"{DIST} truncate -s 1T dist/x"))
    error = job.outcome["error"]
    assert error["code"] == "build.limit_exceeded"
    assert "1 GiB (builders.file_bytes_max)" in error["message"]


@pytest.mark.parametrize(
    "names",
    [
        2_000,
        # Minutes on a machine with nothing else to do. A build gives way to all others there, so
        # that beside a whole suite it takes many times as long, and is not to be timed out.
        pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
async def test_names_without_number_fill_the_disk_that_a_build_has(control, slot, names):
    job = control.queue(
        hostile(f"mkdir dist; cd dist; seq {names} | xargs touch; sleep 100"),
        limits={"disk_bytes_max": names * 4096 - (1 << 20)},
        timeout_s=3000,
    )
    await asyncio.wait_for(job.finished.wait(), 3100)
    assert job.outcome["error"]["code"] == "build.limit_exceeded", job.outcome["error"]


async def test_second_names_of_one_file_are_files_of_their_own(control, slot, unpacked):
    job = await control.build(hostile(f"{DIST} ln dist/a dist/b; echo 2 > dist/b"))
    assert unpacked(job.output) == {"a": b"2\n", "b": b"2\n"}


async def test_output_is_not_swapped_by_what_the_build_leaves_running(control, slot, unpacked):
    """It would replace a file by a link as soon as it is looked at: it is dead by then."""
    swap = b"while :; do ln -sf /etc/passwd dist/a; rm dist/a; echo 1 > dist/a; done"
    command = f"{DIST} (setsid sh swap.sh > /dev/null 2>&1 &) ; sleep 0.1"
    for _ in range(3):
        job = await control.build({**hostile(command), "swap.sh": swap})
        if job.outcome["status"] == "succeeded":
            assert set(unpacked(job.output).values()) <= {b"1\n", b""}
        else:
            assert job.outcome["error"]["code"] in {"build.output_invalid", "build.output_missing"}


async def test_limit_that_a_build_exceeds_is_named_with_its_setting(control, slot, gone):
    hog = 'python3 -c "x = bytes([1]) * (40 << 20); import time; time.sleep(4823)"'
    job = await control.build(
        hostile(f"echo begun; {hog} & {hog} & wait"), limits={"memory_bytes_max": 64 << 20}
    )
    error = job.outcome["error"]
    assert error["code"] == "build.limit_exceeded"
    first, *tail = error["message"].splitlines()
    assert first == "memory: the build used more than 64 MiB (builders.memory_bytes_max)."
    assert tail == ["Its last lines:", "begun"]
    assert job.text[-1].startswith("memory: the build used more than 64 MiB")
    gone("4823", timeout_s=0)
    after = await control.build({"index.html": b"<p>"})
    assert after.outcome["status"] == "succeeded"


async def test_log_beyond_its_bound_is_cut_and_the_build_goes_on(control, slot):
    job = await control.build(hostile(f"{DIST} seq 5000"), limits={"log_chars_max": 1000})
    assert job.outcome["status"] == "succeeded"
    assert sum(map(len, job.stage("build"))) < 1500
    assert any("builders.log_chars_max" in line for line in job.text)


async def test_canceled_build_ends_whole_though_it_hides(control, slot, gone):
    hide = "setsid setsid sleep 4824 & (setsid nohup sleep 4824 > /dev/null 2>&1 &) "
    job = control.queue(hostile(f"{hide}; echo begun; sleep 4824"), lease_s=600)
    await job.said("begun")
    job.canceled.set()
    await asyncio.to_thread(gone, "4824", 20)
