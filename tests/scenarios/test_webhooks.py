"""Webhooks as the installed daemon sends them."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import Server, wait_until


class Receiver(http.server.BaseHTTPRequestHandler):
    heard: list[dict]

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def new_authority(folder: Path) -> Path:
    """A certificate authority, and a certificate of localhost that it signed."""
    folder.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        folder,
        *("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem"),
        *("-subj", "/CN=tests", "-days", "2", "-addext", "keyUsage=critical,keyCertSign"),
    )
    openssl(folder, "req", *key, "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        folder,
        *("x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "cert.pem"),
    )
    return folder


@contextlib.contextmanager
def https_receiver(authority: Path) -> Iterator[tuple[int, list[dict]]]:
    """Its port, and what it has heard."""
    heard: list[dict] = []
    handler = type("Handler", (Receiver,), {"heard": heard})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1], heard
        finally:
            serving.shutdown()
            thread.join()


def new_webhook(server: Server, url: str) -> str:
    body = {"url": url, "events": ["build.succeeded"]}
    made = server.api("POST", "/webhooks", body)
    assert made.status == 201, made.body
    return made.json["data"]["id"]


def first_delivery(server: Server, webhook_id: str) -> dict:
    def tried() -> dict | None:
        listed = server.api("GET", f"/webhooks/{webhook_id}/deliveries").json["data"]
        return listed[-1] if listed and listed[-1]["attempts"] else None

    return wait_until(tried, "a delivery was tried")


def test_https_receiver_is_told_if_an_authority_that_is_trusted_vouches_for_it(
    stopped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, strange = new_authority(tmp_path / "ours"), new_authority(tmp_path / "strange")
    monkeypatch.setenv("SSL_CERT_FILE", str(ours / "ca.pem"))
    stopped.start()
    stopped.new_site()
    with https_receiver(ours) as (port, heard), https_receiver(strange) as (other, unheard):
        good = new_webhook(stopped, f"https://localhost:{port}/")
        unknown = new_webhook(stopped, f"https://localhost:{other}/")
        misnamed = new_webhook(stopped, f"https://127.0.0.1:{port}/")
        work = stopped.work()
        work.commit({"index.html": "one"})
        work.push()
        delivery = first_delivery(stopped, good)
        assert (delivery["status"], delivery["response_status"]) == ("succeeded", 204)
        for webhook_id in (unknown, misnamed):
            assert "certificate was refused" in first_delivery(stopped, webhook_id)["error"]
    assert [body["type"] for body in heard] == ["build.succeeded"]
    assert unheard == []
