"""What a program in the sandbox can see, reach, use up and leave behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3

from hooks.builds.sandbox.bwrap import fixed_arguments
from hooks.builds.sandbox.namespace import Init
from hooks.builds.sandbox.sandbox import _gate
from hooks.builds.sandbox.spec import APP_DIR, HOME_DIR, Bind, SandboxSpec

MiB = 1 << 20


def python(code):
    return ["/usr/bin/python3", "-c", code]


# -- what it sees -------------------------------------------------------------------------------


def test_program_gives_its_output_and_exit_status(in_sandbox):
    ran = in_sandbox("echo out; echo err >&2; exit 3")
    assert (ran.status, ran.output) == (3, "out\nerr\n")
    assert ran.survivors == []


def test_program_ended_by_a_signal_has_128_and_the_signal(in_sandbox):
    assert in_sandbox("kill -SEGV $$").status == 128 + signal.SIGSEGV


def test_program_that_is_not_there_is_127(in_sandbox):
    ran = in_sandbox(["no-such-program"])
    assert ran.status == 127
    assert "no-such-program" in ran.output


def test_program_is_a_user_without_rights(in_sandbox):
    ran = in_sandbox("id -u; id -un; grep -E 'NoNewPrivs|Seccomp:|CapEff|CapBnd' /proc/self/status")
    assert ran.output.split() == [
        *("1000", "app"),
        *("CapEff:", "0000000000000000", "CapBnd:", "0000000000000000"),
        *("NoNewPrivs:", "1", "Seccomp:", "2"),
    ]


def test_host_name_is_the_sandboxes_own(in_sandbox):
    assert in_sandbox("uname -n").output == "build\n"
    assert in_sandbox("uname -n", hostname="acme-store").output == "acme-store\n"


def test_it_leads_a_session_of_its_own(in_sandbox):
    """One from outside has no number inside, and may have a terminal."""
    assert in_sandbox(python("import os; print(os.getsid(0) > 0)")).output == "True\n"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_may_not_start_a_sandbox(in_sandbox, start_starter):
    assert "never run as root" in in_sandbox("true", starter=start_starter(uid=None)).error


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/root", "/var/lib", "/etc/hostname", "/work", "/sys", "/boot", "/srv"]
)
def test_the_machine_is_not_there(in_sandbox, path):
    assert in_sandbox(["ls", path]).status == 2


WITH_SETTINGS = """
upper=$1; shift; settings=$1; shift
mount -t tmpfs none "$upper" && mkdir "$upper/upper" "$upper/work" &&
mount -t overlay none -o "lowerdir=/usr,upperdir=$upper/upper,workdir=$upper/work" /usr || exit 77
for each in $settings; do
  mkdir -p "${each%/*}"; rm -f "$each"; echo password > "$each"
done
echo password > /usr/share/linked; rm -f /usr/local/share/.yarnrc.yml
ln -s /usr/share/linked /usr/local/share/.yarnrc.yml
mkdir -p /usr/local/etc/php/conf.d; echo fit > /usr/local/etc/php/conf.d/gd.ini
chmod 700 /usr/etc
mkdir "$upper/etc" "$upper/etcwork" &&
mount -t overlay none -o "lowerdir=/etc,upperdir=$upper/etc,workdir=$upper/etcwork" /etc || exit 77
mkdir -p /etc/php/7.7/cli /etc/php/7.7/fpm/pool.d; echo fit > /etc/php/7.7/cli/php.ini
for each in php/7.7/fpm/pool.d/www.conf npmrc pip.conf gitconfig; do
  rm -f "/etc/$each"; echo password > "/etc/$each"
done
exec "$@"
"""
SETTINGS = (
    *("/usr/pip.conf", "/usr/local/pip.conf"),
    *("/usr/local/share/.yarnrc", "/usr/local/share/.npmrc"),
    *("/usr/local/share/.config/yarn/config", "/usr/local/share/.yarn/config"),
    *("/usr/lib/node_modules/npm/npmrc", "/usr/local/lib/node_modules/pnpm/pnpmrc"),
    *("/usr/share/nodejs/npm/npmrc", "/usr/local/cargo/credentials.toml"),
    *("/usr/local/cargo/credentials", "/usr/local/share/.config/pip/pip.conf"),
    "/usr/share/.config/yarn",
)
IN_ETC = (
    *("/usr/etc/npmrc", "/usr/local/etc/npmrc", "/usr/etc/yarnrc"),
    *("/usr/etc/gitconfig", "/usr/local/etc/gitconfig", "/usr/local/etc/php-fpm.d/www.conf"),
)


@pytest.fixture
def starter_with_settings(start_starter, tmp_path):
    """On a machine whose clients have settings among its programs, as far as it can see."""
    settings = " ".join((*SETTINGS, *IN_ETC))
    through = ("unshare", "--mount", "sh", "-c", WITH_SETTINGS, "sh", tmp_path, settings)
    if subprocess.run([*through, "true"], check=False).returncode:
        pytest.skip("needs root, and overlays, to put files there")
    return start_starter(through=through)


@pytest.mark.parametrize("network", [False, True])
def test_settings_of_the_machines_package_clients_are_hidden(
    in_sandbox, starter_with_settings, network
):
    """They may hold passwords, and lie among the programs that builds and sites are to see."""
    shown = f"cat {' '.join(SETTINGS)} /usr/local/share/.yarnrc.yml /usr/share/linked; echo end"
    ran = in_sandbox(shown, starter=starter_with_settings, network=network)
    assert (ran.status, ran.output) == (0, "end\n")


def test_no_setting_lies_among_the_programs_that_is_not_hidden(in_sandbox, starter_with_settings):
    ran = in_sandbox(
        "grep -rs ^password$ /usr/etc /usr/local /usr/share/nodejs /usr/lib/node_modules",
        starter=starter_with_settings,
    )
    assert ran.output == ""


def test_etc_below_usr_is_hidden_as_etc_is(in_sandbox, starter_with_settings):
    """As folders: what an operator puts there later is not seen by what runs already."""
    ran = in_sandbox(
        "find /usr/etc /usr/local/etc -type f; cat /usr/local/etc/php/conf.d/gd.ini\n"
        "grep -c -e ' /usr/etc ro,' -e ' /usr/local/etc ro,' /proc/self/mountinfo",
        starter=starter_with_settings,
    )
    assert ran.output.split() == ["/usr/local/etc/php/conf.d/gd.ini", "fit", "2"]


@pytest.mark.parametrize("network", [False, True])
def test_of_etc_there_is_what_programs_need_and_no_settings_of_others(
    in_sandbox, starter_with_settings, network
):
    """PHP's are those of its command line: those of its FPM hold the environments of sites."""
    ran = in_sandbox(
        "cat /etc/php/7.7/cli/php.ini; grep -rs ^password$ /etc",
        starter=starter_with_settings,
        network=network,
    )
    assert ran.output == "fit\n"


def test_names_and_servers_of_the_machines_network_are_not_told(in_sandbox):
    ran = in_sandbox("cat /etc/hosts; ls /etc/resolv.conf /etc/gai.conf /etc/services")
    assert ran.output.splitlines()[:2] == ["127.0.0.1 localhost", "::1 localhost"]
    assert ran.output.count("No such file") == 3


def test_other_folders_of_the_same_uid_are_not_there(in_sandbox, open_dir, own_dir):
    secret = own_dir / "secret"
    secret.write_text("control's own")
    mine = open_dir / "mine"
    mine.mkdir()
    ran = in_sandbox(
        f"cat {secret}; cat /app/../own/secret; ls {open_dir}; cat /proc/1/root{secret}",
        binds=[[str(mine), APP_DIR, False]],
    )
    assert "control's own" not in ran.output
    assert ran.output.count("No such file") >= 3


def test_environment_of_the_parents_is_nowhere(in_sandbox, start_starter):
    starter = start_starter(env={"SECRET": "leakme"})
    ran = in_sandbox("env; cat /proc/*/environ", starter=starter, environ={"MINE": "yes"})
    assert "leakme" not in ran.output
    assert "MINE=yes" in ran.output


def test_environment_that_is_given_wins_over_the_usual_one(in_sandbox):
    usual = in_sandbox("echo $PATH $LANG $TZ").output
    assert usual == "/usr/local/bin:/usr/bin:/bin C.UTF-8 UTC\n"
    given = in_sandbox("echo $PATH $LANG $TZ", environ={"PATH": "/app/bin:/bin", "TZ": "CET"})
    assert given.output == "/app/bin:/bin C.UTF-8 CET\n"


def test_values_of_the_environment_are_not_on_any_command_line(in_sandbox):
    ran = in_sandbox("cat /proc/1/cmdline | tr '\\0' ' '", environ={"TOKEN": "hushhush"})
    assert "bwrap" in ran.output
    assert "hushhush" not in ran.output


def test_open_files_of_the_parents_are_closed(in_sandbox, start_starter, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("leakme")
    fd = os.open(secret, os.O_RDONLY)
    try:
        starter = start_starter(pass_fds=[fd])
        ran = in_sandbox("ls /proc/self/fd | sort -n | tr '\\n' ' '", starter=starter)
    finally:
        os.close(fd)
    assert ran.output == "0 1 2 3 "  # 3: ls itself, reading the folder


def test_processes_of_the_machine_are_not_there(in_sandbox):
    ran = in_sandbox("ls /proc | grep -c '^[0-9]'; cat /proc/1/comm")
    count, first = ran.output.split()
    assert int(count) < 8
    assert first == "bwrap"


def test_only_what_is_bound_writable_can_be_written(in_sandbox, open_dir, own_dir):
    shown = open_dir / "shown"
    shown.mkdir()
    (shown / "file").write_text("as it was")
    ran = in_sandbox(
        "for f in /x /usr/x /etc/x /dev/x /app/x /app/file /proc/sys/kernel/core_pattern; do"
        "  (echo 1 > $f) 2> /dev/null && echo wrote $f; done;"
        "echo fine > /data/y; for f in /tmp/z ~/z /dev/shm/z /dev/null; do echo 1 > $f; done",
        binds=[[str(shown), APP_DIR, False], [str(own_dir), "/data", True]],
    )
    assert (ran.status, ran.output) == (0, "")
    assert (shown / "file").read_text() == "as it was"
    assert (own_dir / "y").read_text() == "fine\n"


def test_read_only_binds_cannot_be_made_writable(in_sandbox, own_dir):
    ran = in_sandbox(
        "mount -o remount,bind,rw /app; unshare -Urm mount -o remount,bind,rw /app; touch /app/x",
        binds=[[str(own_dir), APP_DIR, False]],
    )
    assert ran.status != 0
    assert list(own_dir.iterdir()) == []


# -- what it reaches ----------------------------------------------------------------------------


def test_there_is_no_network_not_even_the_machines_own_loopback(in_sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = in_sandbox(
            python(
                "import socket\n"
                f"for address in (('127.0.0.1', {port}), ('1.1.1.1', 443), ('10.0.0.1', 80)):\n"
                "    try: socket.create_connection(address, 2); print('reached', address)\n"
                "    except OSError as error: print(error.strerror)\n"
                "try: socket.getaddrinfo('example.com', 443); print('resolved')\n"
                "except OSError: print('no names')\n"
            )
        )
    assert ran.output.splitlines() == [
        "Connection refused",
        "Network is unreachable",
        "Network is unreachable",
        "no names",
    ]


def test_abstract_sockets_of_the_machine_are_not_reached(in_sandbox):
    name = f"\0gitd-test-{os.getpid():#x}"  # no mark of processes, as decimals may be
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        ran = in_sandbox(
            python(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})"),
        )
    assert "ConnectionRefusedError" in ran.output


def test_network_is_the_machines_when_it_is_shared(in_sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taker = threading.Thread(target=lambda: server.accept()[0].close())  # noqa: PLW0108 - late
        taker.start()
        port = server.getsockname()[1]
        ran = in_sandbox(
            python(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"),
            network=True,
        )
        taker.join(10)
    assert (ran.status, ran.output) == (0, "")


def test_own_loopback_works(in_sandbox):
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(('localhost', s.getsockname()[1]))"
    )
    assert in_sandbox(python(code)).status == 0


def connecting(port):
    return python(
        f"import socket; s = socket.create_connection(('127.0.0.1', {port}));"
        "print(s.recv(99).decode(), end='')"
    )


def test_socket_that_listens_inside_is_held_outside_before_the_program_begins(in_sandbox):
    ran = in_sandbox(connecting(3128), listen_port=3128)
    assert (ran.status, ran.output) == (0, "from outside\n")
    assert ran.survivors == []


def test_sandboxes_with_the_same_listening_port_do_not_meet(in_sandbox, start_sandboxed, alive):
    start_sandboxed("exec sleep 4710", listen_port=3128)
    while not alive("4710"):
        time.sleep(0.01)
    assert "Connection refused" in in_sandbox(connecting(3128)).output
    assert in_sandbox(connecting(3128), listen_port=3128).output == "from outside\n"


def test_sandbox_whose_port_cannot_be_had_runs_nothing(in_sandbox):
    ran = in_sandbox("echo ran", listen_port=70_000)
    assert ran.error.startswith("cannot listen inside the sandbox: ")
    assert (ran.output, ran.survivors) == ("", [])


def test_processes_outside_cannot_be_signaled(in_sandbox):
    assert in_sandbox(f"kill -0 $(({os.getpid():#x}))").status != 0


def test_two_sandboxes_of_one_uid_do_not_see_each_other(in_sandbox, start_sandboxed, alive):
    other = start_sandboxed("sleep 4801")
    while not alive("sleep\x004801"):
        time.sleep(0.01)
    assert "4801" not in in_sandbox("ps ax").output
    other.kill()


# -- what it uses up ----------------------------------------------------------------------------


def test_processes_are_counted_for_each_sandbox_alone(in_sandbox, start_sandboxed, alive):
    """Two sites with one uid: what one has started is not taken from the other."""
    start_sandboxed("for i in $(seq 40); do sleep 4802 & done; wait", limits={"process_count": 50})
    while len(alive("sleep\x004802")) < 40:
        time.sleep(0.01)
    ran = in_sandbox(
        "for i in $(seq 40); do sleep 4803 & done; echo fine", limits={"process_count": 50}
    )
    assert ran.output == "fine\n"


def test_node_which_reserves_much_runs_in_little_memory(in_sandbox, runner, watching_runner):
    for starter in (runner, watching_runner):
        ran = in_sandbox(
            ["node", "-e", "console.log(typeof fetch)"],
            starter=starter,
            limits={"memory_bytes": 512 * MiB},
        )
        assert (ran.status, ran.output) == (0, "function\n")


def test_files_and_memory_folders_are_bounded(in_sandbox, own_dir):
    limits = {"file_bytes": 4 * MiB, "tmp_bytes": 2 * MiB}
    ran = in_sandbox(
        "head -c 9000000 /dev/zero > /app/x; echo $?; for d in /tmp /dev/shm ~; do"
        " head -c 3000000 /dev/zero > $d/x || echo full; done",
        binds=[[str(own_dir), APP_DIR, True]],
        limits=limits,
    )
    assert (own_dir / "x").stat().st_size == 4 * MiB + 1  # by which it is known to be too large
    assert ran.output.splitlines()[-1] == "full"
    assert ran.output.count("full") == 3
    assert "153" in ran.output.splitlines()


def test_program_in_the_background_comes_last_for_processor_and_memory(in_sandbox):
    command = "nice; cat /proc/self/oom_score_adj"
    assert in_sandbox(command).output == f"{os.nice(0)}\n0\n"
    assert in_sandbox(command, is_background=True).output == f"{max(os.nice(0), 10)}\n500\n"


def test_no_core_dump_is_written(in_sandbox, own_dir):
    in_sandbox("cd /app; kill -SEGV $$", binds=[[str(own_dir), APP_DIR, True]])
    assert list(own_dir.iterdir()) == []


def test_endless_output_is_read_until_the_kill(in_sandbox):
    ran = in_sandbox("yes | head -c 30000000; sleep 4804", kill_at_bytes=30_000_000)
    assert ran.output_bytes == 30_000_000
    assert ran.status == 137


# -- the calls that are refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("a user namespace", "unshare -U true"),
        ("a mount namespace", "unshare -m true"),
        ("a mount", "mount -t tmpfs none /tmp"),
        ("an unmount", "umount /usr"),
        ("a host name", "hostname evil"),
        ("another root", "chroot / true"),
        ("a device", "mknod /tmp/null c 1 3"),
        ("a kernel log", "dmesg"),
        ("a trace", "strace true"),
        ("a nested sandbox", "bwrap --ro-bind / / true"),
    ],
)
def test_call_is_refused(in_sandbox, what, command):
    assert in_sandbox(command).status != 0, what


def test_user_namespaces_are_off_where_no_filter_refuses_them(sandbox_uid):
    """What a call that the filter does not know would lead to is not there either."""
    spec = SandboxSpec(argv=("true",), cwd="/")
    command = "unshare -U true && echo got; unshare -m true && echo got"
    ran = subprocess.run(
        ["bwrap", *fixed_arguments(spec), "/bin/sh", "-c", command],
        user=sandbox_uid,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr.count("unshare failed")) == ("", 2)


CALLS = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
column = 0 if platform.machine() == 'x86_64' else 1
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args))
    return errno.errorcode.get(ctypes.get_errno()) if result < 0 else 'ok'
"""


@pytest.mark.parametrize(
    ("name", "numbers", "args", "answer"),
    [
        ("unshare of users", (272, 97), (0x10000000,), "EPERM"),
        ("clone of users", (56, 220), (0x10000000 | 17, 0, 0, 0, 0), "EPERM"),
        ("clone3", (435, 435), (0, 0), "ENOSYS"),
        ("bpf", (321, 280), (0, 0, 0), "EPERM"),
        ("io_uring_setup", (425, 425), (1, 0), "EPERM"),
        ("keyctl", (250, 219), (0, -1, 1), "EPERM"),
        ("userfaultfd", (323, 282), (0,), "EPERM"),
        ("a call from the future", (600, 600), (), "ENOSYS"),
        ("a call of x32", (0x40000000 + 39, 600), (), "ENOSYS"),
        ("typing into the terminal", (16, 29), (0, 0x5412, 0), "EPERM"),
        ("the same, hidden in high bits", (16, 29), (0, 0x100005412, 0), "EPERM"),
        ("asking the personality", (135, 92), (0xFFFFFFFF,), "ok"),
        ("changing the personality", (135, 92), (0x0040000,), "EPERM"),
        ("AF_VSOCK", (41, 198), (40, 1, 0), "EAFNOSUPPORT"),
        ("AF_ALG", (41, 198), (38, 5, 0), "EAFNOSUPPORT"),
        ("AF_PACKET", (41, 198), (17, 3, 0), "EAFNOSUPPORT"),
        ("AF_UNIX", (41, 198), (1, 1, 0), "ok"),
        ("AF_INET6", (41, 198), (10, 1, 0), "ok"),
        ("getpid", (39, 172), (), "ok"),
    ],
)
def test_system_call_is_answered(in_sandbox, name, numbers, args, answer):
    ran = in_sandbox(python(f"{CALLS}\nprint(call({numbers}[column], *{args}))"))
    assert ran.output == f"{answer}\n", name


# -- how it ends --------------------------------------------------------------------------------

TREE = (
    "setsid sleep {n} & (setsid sh -c 'sleep {n}; :' &) ; nohup setsid sleep {n} > /dev/null 2>&1 &"
)


def test_nothing_outlives_a_normal_end(in_sandbox, gone):
    ran = in_sandbox(TREE.format(n=4805) + " sleep 0.2; exit 4")
    assert (ran.status, ran.survivors) == (4, [])
    gone("4805", timeout_s=0)


def test_kill_ends_the_whole_tree_at_once(in_sandbox, gone):
    ran = in_sandbox(TREE.format(n=4806) + " trap '' TERM INT HUP; sleep 4806", kill_after_s=0.5)
    assert (ran.status, ran.survivors) == (137, [])
    gone("4806", timeout_s=0)


def test_kill_while_it_starts_leaves_nothing(in_sandbox, gone):
    for after_s in (0, 0.001, 0.003):
        ran = in_sandbox("sleep 4807", kill_after_s=after_s)
        assert (ran.status, ran.survivors) == (137, [])
    gone("4807", timeout_s=0)


@pytest.mark.parametrize("port", [None, 3128])
def test_start_canceled_at_any_moment_leaves_nothing_and_ends(in_sandbox, gone, port):
    for after_ms in range(12):
        moment = {"cancel_after_s": after_ms / 1000, "kill_after_s": 0}
        ran = in_sandbox("sleep 4809", listen_port=port, **moment)
        assert (ran.seconds < 30, ran.survivors) == (True, [])
    gone("4809", timeout_s=0)


def test_gate_stays_shut_when_who_would_open_it_is_killed():
    """Else a program would begin before it has its limits."""
    opening, waiting = _gate()
    os.close(opening)
    try:
        assert select.select([waiting], [], [], 0) == ([], [], [])
    finally:
        os.close(waiting)


async def test_number_that_has_come_to_mean_another_process_leads_to_no_kill(
    start_sandboxed, alive
):
    """bubblewrap may have ended by then, and its number was given away: to a stranger here."""
    process = start_sandboxed("sleep 4812 & wait")
    while not alive("sleep\x004812"):
        await asyncio.sleep(0.01)
    init = Init.open(alive("sleep\x004812")[0], parent_pid=os.getpid())
    assert not init.is_there()
    init.kill()
    await asyncio.wait_for(init.gone(), 20)
    assert init.descendants() == []
    assert process.poll() is None
    assert alive("sleep\x004812")


def test_output_handed_to_a_process_elsewhere_does_not_keep_the_end_waiting(in_sandbox):
    address = f"@gitd-test-{os.getpid():#x}"  # no mark of processes, as decimals may be
    give = python(
        "import socket, array; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({address!r}.replace('@', chr(0)));"
        "s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [1]))])"
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address.replace("@", "\0"))
        server.listen()
        keep = threading.Event()
        got = threading.Event()

        def take():
            connection, _ = server.accept()
            _, fds, _, _ = socket.recv_fds(connection, 1, 1)
            got.set()
            keep.wait(20)
            for fd in fds:
                os.close(fd)
            connection.close()

        taker = threading.Thread(target=take)
        taker.start()
        try:
            ran = in_sandbox(give, network=True)
        finally:
            keep.set()
            taker.join()
    assert got.is_set()
    assert ran.status == 0
    assert ran.seconds < 20


def test_sandbox_left_by_a_starter_that_was_killed_is_ended_by_the_next(
    start_starter, in_sandbox, own_dir, sandbox_uid
):
    """A stand-in for the sandbox that bubblewrap leaves when it dies before its child asked to die
    too: that takes a kill within some microseconds.
    """
    name = f"bwrap-{blake3(os.fsencode(own_dir.resolve())).hexdigest()[:16]}"
    left = subprocess.Popen([name, "4810"], executable="/bin/sleep", user=sandbox_uid)
    other = subprocess.Popen(["bwrap-other", "4811"], executable="/bin/sleep", user=sandbox_uid)
    try:
        assert in_sandbox("true", starter=start_starter(owner=[str(own_dir)])).status == 0
        assert left.wait(20) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        left.kill()
        other.kill()
        other.wait()


def test_terminate_asks_every_process_inside(in_sandbox):
    ran = in_sandbox(
        "(trap 'echo child; exit' TERM; sleep 9 & wait) & trap 'wait; echo parent; exit 5' TERM;"
        " sleep 9 & wait",
        terminate_after_s=2,
    )
    assert ran.status == 5
    assert sorted(ran.output.split()) == ["child", "parent"]
    assert ran.seconds < 9


def test_terminate_ends_a_program_that_does_not_listen_to_it(in_sandbox):
    ran = in_sandbox(["sleep", "9"], terminate_after_s=0.5)
    assert ran.status == 128 + signal.SIGTERM


def test_death_of_the_starter_ends_everything(start_sandboxed, alive, gone):
    """Without control groups: whoever makes others beside those ends what is in them."""
    process = start_sandboxed(TREE.format(n=4808) + " sleep 4808", way="watching")
    while len(alive("4808")) < 4:
        time.sleep(0.01)
    process.kill()
    gone("4808")


def test_sandbox_that_cannot_be_set_up_is_our_fault_and_says_why(in_sandbox):
    ran = in_sandbox("true", binds=[["/no/such/folder", APP_DIR, False]])
    assert "did not start" in ran.error
    assert "/no/such/folder" in ran.error


def test_start_up_takes_milliseconds(in_sandbox):
    """The quickest of many, since others have the processors too."""
    times = sorted(in_sandbox(["true"]).seconds for _ in range(20))
    assert times[0] < 0.1, times


# -- the specification --------------------------------------------------------------------------


def test_home_is_in_memory_unless_a_folder_is_given():
    without = fixed_arguments(SandboxSpec(argv=("true",)))
    assert without[without.index(HOME_DIR, without.index("--clearenv") + 12) - 1] == "--tmpfs"
    bound = fixed_arguments(
        SandboxSpec(argv=("true",), binds=(Bind(Path("/srv/home"), HOME_DIR, writable=True),))
    )
    place = bound.index("/srv/home")
    assert bound[place - 1 : place + 2] == ["--bind", "/srv/home", HOME_DIR]


def test_bubblewrap_is_the_version_that_this_was_written_for():
    version = subprocess.run(["/usr/bin/bwrap", "--version"], capture_output=True, text=True)
    assert tuple(map(int, version.stdout.split()[1].split("."))) >= (0, 8)
