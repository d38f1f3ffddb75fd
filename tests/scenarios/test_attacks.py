"""What hostile or unlucky users and operators do to the installed daemon."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest


@pytest.mark.own_server
def test_lost_database_is_not_made_anew_and_no_site_loses_its_data(server) -> None:
    work = server.work()
    work.commit({"index.html": "kept"})
    work.push()
    assert server.stop() == 0
    database = server.data / "gitd.db"
    kept = {path: path.read_bytes() for path in server.data.glob("gitd.db*")}
    for path in kept:
        path.unlink()
    for command in (["serve", "--listen", "127.0.0.1:65535"], ["site", "create", "another"]):
        refused = subprocess.run(
            ["gitd", *command, "--data", str(server.data)],
            env=server.environ,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert refused.returncode == 1
        assert f"{database} is gone or empty" in refused.stderr
    for path, content in kept.items():
        path.write_bytes(content)
    server.start()
    assert server.serves("kept")


LISTENS = """
import socket, sys
for options in ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)):
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as taking:
            for option in options:
                taking.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                taking.bind((host, int(sys.argv[1])))
                print("taken")
            except OSError as error:
                print(error.strerror)
"""


@pytest.mark.own_server
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs users of their own")
def test_site_gets_no_port_of_a_killed_control(server) -> None:
    """Sites live on with their host, and would be sent the keys of whoever pushes."""
    host = json.loads((server.data / "run" / "host.json").read_text())["pid"]
    uid = Path(f"/proc/{host}").stat().st_uid
    assert uid != 0
    server.kill()
    tried = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", LISTENS, str(server.port)],
        user=uid,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(tried.stdout.splitlines()) == {"Address already in use"}, tried
    server.start()
    assert "child_taken_over" in server.log()
    work = server.work()
    work.commit({"index.html": "fine"})
    assert "is live" in work.push()


def test_children_import_nothing_from_the_folder_that_control_is_started_in(
    stopped, folder, monkeypatch
) -> None:
    hostile = folder / "hostile"
    hostile.mkdir()
    for name in ("structlog", "aiohttp", "gitd"):
        (hostile / f"{name}.py").write_text(f"open({str(folder / 'taken')!r}, 'w')\n")
    monkeypatch.chdir(hostile)
    stopped.is_anew = True
    stopped.start()
    stopped.new_site()
    work = stopped.work()
    work.commit({"index.html": "fine"})
    assert "is live" in work.push()
    assert not (folder / "taken").exists()


def test_push_of_a_name_that_is_no_text_is_refused_and_the_others_land(server) -> None:
    work = server.work()
    work.commit({"index.html": "fine"})
    strange = os.fsdecode(b"refs/heads/\xff\xfe")
    pushed = subprocess.run(
        ["git", "push", "managed", "main", f"main:{strange}"],
        cwd=work.path,
        env=server.environ,
        capture_output=True,
        timeout=60,
    )
    assert b"the name is not UTF-8" in pushed.stderr
    server.wait_for("fine")


def test_malformed_request_is_one_quiet_line_in_the_log_without_its_password(server) -> None:
    password = base64.b64encode(f"me:{server.token}".encode())
    head = b"GET /acme-store.git/info/refs HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %b"
    for end in (b"\0\r\n\r\n", b"\r\nX: \x01\r\n\r\n", b"\r\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(head % password + end)
            assert b" 400 " in connection.recv(4096)
    assert server.stop() == 0
    assert server.log().count("request_malformed") == 3
    assert "Traceback" not in server.log()
    assert password.decode() not in server.log()
