"""The peer: git's own http-backend behind Apache, on a free port, over a folder of repositories."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

MODULES = Path("/usr/lib/apache2/modules")
START_S = 10.0
CONFIG = """
ServerRoot "{root}"
PidFile "{root}/pid"
ErrorLog "{root}/error.log"
Listen 127.0.0.1:{port}
ServerName 127.0.0.1
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authn_file_module {modules}/mod_authn_file.so
LoadModule auth_basic_module {modules}/mod_auth_basic.so
LoadModule alias_module {modules}/mod_alias.so
LoadModule env_module {modules}/mod_env.so
LoadModule setenvif_module {modules}/mod_setenvif.so
LoadModule cgid_module {modules}/mod_cgid.so
ScriptSock "{root}/cgid.sock"
{user}
SetEnv GIT_PROJECT_ROOT {repositories}
SetEnv GIT_HTTP_EXPORT_ALL 1
PassEnv PATH
SetEnvIf Git-Protocol ".*" GIT_PROTOCOL=$0
ScriptAlias / {backend}/
<Directory "{backend_folder}">
{rule}
</Directory>
"""
ANYBODY = "Require all granted"
USERS = """AuthType Basic
AuthName git
AuthUserFile "{root}/users"
Require valid-user"""


class ApacheMissingError(Exception):
    """Apache or git's http-backend is not installed here."""


@contextlib.contextmanager
def http_backend(root: Path, repositories: Path, *, password: str | None) -> Iterator[str]:
    """Serve the repositories to the user `x`; yields the URL below which they are.

    Without a password it serves everybody; pushes need `http.receivepack` then. The password is
    kept as Apache's cheapest hash, so that the peer does not pay for a slow one.
    """
    program = shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")
    exec_path = subprocess.run(
        ["git", "--exec-path"], capture_output=True, text=True, check=True
    ).stdout.strip()
    backend = Path(exec_path) / "git-http-backend"
    if program is None or not backend.exists():
        raise ApacheMissingError("apt-get install apache2 git")
    root.mkdir(parents=True)
    user = ""
    if os.getuid() == 0:
        user = "User www-data\nGroup www-data"
        shutil.chown(root, "www-data", "www-data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = CONFIG.format(
        root=root,
        port=port,
        modules=MODULES,
        user=user,
        repositories=repositories,
        backend=backend,
        backend_folder=backend.parent,
        rule=ANYBODY if password is None else USERS.format(root=root),
    )
    (root / "apache.conf").write_text(text)
    if password is not None:
        hashed = base64.b64encode(hashlib.sha1(password.encode(), usedforsecurity=False).digest())
        (root / "users").write_text(f"x:{{SHA}}{hashed.decode()}\n")
    process = subprocess.Popen(
        [program, "-f", str(root / "apache.conf"), "-D", "FOREGROUND"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _wait(port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/")
            connection.getresponse()
            return
        if time.monotonic() > end:
            raise ApacheMissingError("Apache did not start")
        time.sleep(0.05)
