"""bubblewrap's arguments: the root of a sandbox, made from pieces, so that the rest is not there.

Source: bwrap(1), version 0.8.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from hooks.builds.errors import SandboxUnavailableError
from hooks.builds.sandbox import seccomp
from hooks.builds.sandbox.spec import HOME_DIR, IN_MEMORY, SandboxSpec

SHELL = "/bin/sh"
INNER_UID = 1000  # what the program believes to be, whatever its uid on the machine

_BASE_ENVIRON = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": HOME_DIR,
    "USER": "app",
    "LOGNAME": "app",
    "SHELL": SHELL,
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
    "TZ": "UTC",
}
_ETC_FILES = {
    "passwd": b"root:x:0:0:root:/root:/bin/sh\n"
    b"app:x:1000:1000:app:/home/app:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": b"root:x:0:\napp:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
}
_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"
_HIDDEN_IN_PROC = ("cmdline", "keys", "key-users")  # the machine's and other users', for all to see
# Settings of the machine's own clients that lie among the programs which all see. They may hold
# passwords; what builds may know of them is in `Egress.home_files`. Source: npm-config(1), "npmrc
# Files"; of yarn 1 `user-home-dir.js` (root has its home in /usr/local/share) and `rc.js`; pip's
# "Configuration"; Cargo's "Configuration" (images of Rust have CARGO_HOME there).
_HIDDEN_IN_USR = (
    *("pip.conf", "cargo/credentials", "cargo/credentials.toml"),
    *("share/.npmrc", "share/.yarnrc", "share/.yarnrc.yml", "share/.yarn/config"),
    *("share/.config/yarn", "share/.config/yarn/config", "share/.config/pip/pip.conf"),
    *("lib/node_modules/*/npmrc", "lib/node_modules/*/pnpmrc", "share/nodejs/*/npmrc"),
)
# Settings of programs that were not installed by the system: npmrc, gitconfig, wgetrc, whatever has
# passwords. Hidden as folders, for a file that is hidden comes to light when it is replaced, as npm
# does it, and new ones would be there at once.
_ETC_IN_USR = (Path("/usr/local/etc"), Path("/usr/etc"))
_TOP_LEVEL = tuple(map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")))
_ETC_OF_THE_MACHINE = (
    "ssl/certs",  # not the keys beside them
    "ssl/openssl.cnf",
    "ca-certificates",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "php.d",  # which of its extensions PHP loads: without them composer does not start
    "php.ini",
)
_SHOWN_OF_ETC_IN_USR = (
    *("php/php.ini", "php/conf.d"),  # of a PHP that was made there
    *("fonts", "ImageMagick-6", "ImageMagick-7"),
)
_ETC_FOR_NETWORK = ("resolv.conf", "hosts", "services", "protocols", "gai.conf")


def shown_folders() -> list[Path]:
    """Return what every sandbox sees of the machine: folders and files, as they really lie."""
    shown = [Path("/usr"), *_TOP_LEVEL, *(Path("/etc", name) for name in _ETC_OF_THE_MACHINE)]
    shown += map(Path, _settings_of_php())
    return list(dict.fromkeys(path.resolve() for path in shown if path.exists()))


def fixed_arguments(spec: SandboxSpec) -> list[str]:
    """Return bubblewrap's arguments for `spec`, without those that name open files."""
    network = ["--share-net"] if spec.network else []
    environ = {**_BASE_ENVIRON, **spec.environ}
    tmp_bytes = str(spec.limits.tmp_bytes)
    etc = (*_ETC_OF_THE_MACHINE, *(_ETC_FOR_NETWORK if spec.network else ()))
    args = ["--unshare-all", *network, "--unshare-user", "--disable-userns"]
    args += ["--uid", str(INNER_UID), "--gid", str(INNER_UID)]
    args += ["--die-with-parent", "--new-session", "--hostname", spec.hostname, "--clearenv"]
    for name, value in environ.items():
        args += ["--setenv", name, value]
    args += ["--ro-bind", "/usr", "/usr", *_etc_in_usr(etc), *_top_level_folders()]
    for name in etc:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for path in _settings_of_php():
        args += ["--ro-bind", path, path]
    args += ["--proc", "/proc", "--dev", "/dev"]
    for folder in IN_MEMORY:
        args += ["--perms", "1777", "--size", tmp_bytes, "--tmpfs", folder]
    args += ["--remount-ro", "/dev"]
    args += ["--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108 - likewise
    if spec.home_is_in_memory:
        args += ["--size", tmp_bytes, "--tmpfs", HOME_DIR]
    for bind in spec.binds:
        args += ["--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target]
    return [*args, "--chdir", spec.cwd, "--remount-ro", "/"]


def arguments(spec: SandboxSpec, files: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    """Return bubblewrap's arguments for `spec`, and the open files that they name.

    The files are closed with `files`.

    Raises:
        SandboxUnavailableError: There is no filter of system calls for this machine.
    """
    contents = dict(_ETC_FILES)
    if not spec.network:
        contents["hosts"] = _HOSTS
    args: list[str] = []
    pass_fds: list[int] = []
    for name, content in contents.items():
        pass_fds.append(memory_file(files, content))
        args += ["--perms", "0444", "--file", str(pass_fds[-1]), f"/etc/{name}"]
    hidden: list[str] = []
    for path in (*(f"/proc/{name}" for name in _HIDDEN_IN_PROC), *_hidden_in_usr()):
        pass_fds.append(memory_file(files, b""))
        hidden += ["--ro-bind-data", str(pass_fds[-1]), path]
    try:
        calls = seccomp.program(
            may_preallocate=spec.limits.disk_bytes is None,
            may_choose_processors=not spec.limits.processors_free,
        )
        pass_fds.append(memory_file(files, calls))
    except seccomp.UnknownArchitectureError as error:
        raise SandboxUnavailableError(str(error)) from error
    return [*args, *fixed_arguments(spec), *hidden, "--seccomp", str(pass_fds[-1])], pass_fds


def memory_file(files: contextlib.ExitStack, content: bytes) -> int:
    """Return a descriptor that reads `content`; it is closed with `files`."""
    fd = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    files.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _top_level_folders() -> Iterator[str]:
    """Show /bin, /lib, ... as the machine has them: links into /usr, or folders of their own."""
    for path in _TOP_LEVEL:
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))


def _etc_in_usr(names: Collection[str]) -> Iterator[str]:
    """Show of each such folder what is shown of /etc, and no more."""
    for folder in _folders_of_etc_in_usr():
        yield from ("--perms", "0755", "--tmpfs", str(folder))
        for name in (*names, *_SHOWN_OF_ETC_IN_USR):
            if os.access(folder / name, os.R_OK):  # without errors, where a folder is root's alone
                yield from ("--ro-bind", str(folder / name), str(folder / name))
        yield from ("--remount-ro", str(folder))


def _folders_of_etc_in_usr() -> list[Path]:
    """Those that are there, as they really lie: one may be a link to the other, or out of /usr."""
    real = {folder.resolve() for folder in _ETC_IN_USR if folder.is_dir()}
    return sorted(folder for folder in real if folder.is_relative_to("/usr"))


def _hidden_in_usr() -> list[str]:
    """The files of `_HIDDEN_IN_USR` that are there; a link leads on to what has to be hidden."""
    prefixes = (Path("/usr"), Path("/usr/local"))
    found = (path for prefix in prefixes for name in _HIDDEN_IN_USR for path in prefix.glob(name))
    gone = _folders_of_etc_in_usr()
    real = {path.resolve() for path in found}
    return sorted(
        str(path)
        for path in real
        if path.is_relative_to("/usr") and path.is_file() and not {*path.parents} & {*gone}
    )


def _settings_of_php() -> Iterator[str]:
    """Show Debian's settings of PHP, and not those of its FPM: they hold others' environments."""
    for name in ("cli", "mods-available"):
        yield from map(str, Path("/etc/php").glob(f"*/{name}"))
