"""Run in two network namespaces: registries that lie elsewhere, and control that asks them.

    python registry_child.py far            the registries, by 1.2.3.4, 10.1.2.3 and 10.9.9.9
    python registry_child.py near PLACE...  asks the index at each, and the one in Composer's way

`near` writes what it found, and `far` what it was asked, a line each.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hooks.builds.egress import file_hosts
from hooks.builds.egress.addresses import AddressInfo, look_up

NAMES = {
    "public.example": "1.2.3.4",
    "private.example": "10.1.2.3",
    "inner.example": "10.9.9.9",
    "metadata.example": "169.254.169.254",
}
ANSWERS = {
    "/page/pip/": '<a href="https://files.example/a.whl">',
    "/composer/packages.json": '{"packages": {"a/b": {"1": {"dist": {"url": "'
    'http://inner.example/a.zip"}}}}}',
}
SENT_ON = {"/leads/pip/": "inner.example", "/metadata/pip/": "metadata.example"}
PATHS = ("page", "leads", "metadata")


class Far(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        address = self.connection.getsockname()[0]
        print("far", self.command, address, self.path, flush=True)
        text = ANSWERS.get(self.path, "").encode()
        self.send_response(302 if self.path in SENT_ON else 200)
        if self.path in SENT_ON:
            self.send_header("Location", f"http://{SENT_ON[self.path]}/page/pip/")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text if self.command == "GET" else b"")

    do_HEAD = do_GET  # noqa: N815 - as the base class calls it

    def log_message(self, *_: object) -> None:
        pass


def named(host: str, port: int) -> list[AddressInfo]:
    return look_up(NAMES[host], port)


def near(place: str) -> None:
    for path in PATHS:
        try:
            found = file_hosts.of_index(f"http://{place}/{path}", None, "private", look_up=named)
            print("near", place, path, *(host for host, _ in found.found), found.reach)
        except file_hosts.SilentRegistryError as error:
            print("near", place, path, error)
    found = file_hosts.of_composer(f"http://{place}/composer", None, "private", look_up=named)
    print("near", place, "composer", *(host for host, _ in found.found), found.reach)


if __name__ == "__main__":
    if sys.argv[1] == "far":
        server = ThreadingHTTPServer(("", 80), Far)
        print("far is there", flush=True)
        server.serve_forever()
    for each in sys.argv[2:]:
        near(each)
