"""Counts visits in the cache: one line of Redis' protocol for each."""

import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def increment():
    with socket.create_connection((os.environ.get("CACHE", "cache"), 6379), 5) as cache:
        cache.sendall(b"INCR hits\r\n")
        answer = cache.makefile("rb").readline()
    if not answer.startswith(b":"):
        raise OSError(answer.decode(errors="replace"))
    return int(answer[1:])


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, f"visit {increment()}\n"
        except OSError as error:
            status, text = 503, f"{error}\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


ThreadingHTTPServer(("", 8000), Handler).serve_forever()
