"""A guest counter: one page, a number that survives new releases, and a health check.

Python's standard library only. It listens where $PORT says and keeps its data in $DATA_DIR.
"""

import os
import signal
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "Version one"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Guest counter</title>
<body style="font: 1.25rem/1.6 system-ui, sans-serif; max-width: 32rem; margin: 4rem auto">
<h1>You are guest number {count}.</h1>
<p>{version}, served by Python's standard library.</p>
"""


def count_guest():
    with sqlite3.connect(Path(os.environ["DATA_DIR"], "guests.db"), timeout=10) as database:
        [count] = database.execute("UPDATE guests SET count = count + 1 RETURNING count").fetchone()
    database.close()
    return count


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, "text/plain", "ok\n")
        elif self.path == "/version":
            self.answer(200, "text/plain", f"{VERSION}\n")
        elif self.path == "/":
            page = PAGE.format(count=count_guest(), version=VERSION)
            self.answer(200, "text/html; charset=utf-8", page)
        else:
            self.answer(404, "text/plain", "There is nothing at this address.\n")

    do_HEAD = do_GET

    def answer(self, status, content_type, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main():
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)

    def stop(*_):
        # By now gitd sends no more requests, and has waited for those that were being answered.
        # From a thread: shutdown waits for serve_forever, which this signal has interrupted.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    print(f"{VERSION} listens on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
