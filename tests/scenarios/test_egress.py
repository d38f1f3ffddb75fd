"""A push whose build reaches out: what it gets, what it is refused, and how it is told."""

from __future__ import annotations

import http.server
import json
import threading

import pytest


@pytest.fixture
def world():
    """A web server of the world outside, at an address that builds ask their proxy for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the world")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def fetching(*urls):
    fetches = " && ".join(f"curl -sSf --max-time 20 {url} >> dist/index.html" for url in urls)
    return {"managed.toml": f'[build]\ncommand = "mkdir dist && {fetches}"\noutput = "dist"\n'}


def test_build_reaches_what_the_operator_allows_and_the_push_tells_of_the_rest(stopped, world):
    stopped.config = (
        f"[builders]\negress_allow = ['127.0.0.2:{world}']\negress_replace = true\nslots = 1\n"
    )
    stopped.start()
    stopped.new_site()
    work = stopped.work()
    work.commit(fetching(f"http://127.0.0.2:{world}/"))
    said = work.push()
    assert f"egress: 127.0.0.2:{world}: 1 connection, " in said
    stopped.wait_for("from the world")

    work.commit(fetching(f"http://127.0.0.2:{world}/", "https://evil.example/"))
    said = work.push()
    assert "egress: refused evil.example:443 (not in builders.egress_allow)" in said
    assert stopped.visit().body == b"from the world"

    shown = json.loads(
        stopped.gitd("egress", "--config", str(stopped.root / "gitd.toml"), "--json")
    )
    assert [(each["host"], each["port"], each["source"]) for each in shown["allow"]] == [
        ("127.0.0.2/32", world, "builders.egress_allow")
    ]
