#!/usr/bin/env python3
"""A small guestbook: rows in MariaDB, one page, health endpoints, an orderly end.

Settings (environment): PORT, DB_HOST, DB_PORT, DB_USER, DB_PASSWORD, DB_NAME, DRAIN_SECONDS, APP_VERSION.
"""

import html
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pymysql

PORT = int(os.environ.get("PORT", "8080"))
VERSION = os.environ.get("APP_VERSION", "dev")
# After SIGTERM the listener stays open this long, so that proxies can take this replica out first.
DRAIN_SECONDS = float(os.environ.get("DRAIN_SECONDS", "2"))
HOSTNAME = socket.gethostname()
MAX_BODY = 64 * 1024

draining = threading.Event()

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Guestbook</title>
<style>body{{font-family:sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}
footer{{color:#666;margin-top:2rem}}li{{margin:.3rem 0}}</style>
<h1>Guestbook</h1>
<form method="post"><input name="author" placeholder="Name" maxlength="64">
<input name="message" placeholder="Message" maxlength="500" required> <button>Sign</button></form>
<ul>{rows}</ul>
<footer>version {version}, served by {hostname}, {count} entries</footer>
</html>
"""


def log(text):
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)


def connect():
    return pymysql.connect(
        host=os.environ.get("DB_HOST", "mariadb"),
        port=int(os.environ.get("DB_PORT", "3306")),
        user=os.environ.get("DB_USER", "guestbook"),
        password=os.environ.get("DB_PASSWORD", ""),
        database=os.environ.get("DB_NAME", "guestbook"),
        charset="utf8mb4",
        connect_timeout=3,
        read_timeout=10,
        write_timeout=10,
        autocommit=True,
    )


def query(sql, parameters=()):
    """Runs one statement on a connection of its own; once more if the first attempt meets a restart."""
    for attempt in (1, 2):
        try:
            connection = connect()
            try:
                with connection.cursor() as cursor:
                    cursor.execute(sql, parameters)
                    return cursor.fetchall()
            finally:
                connection.close()
        except pymysql.err.OperationalError:
            if attempt == 2:
                raise
            time.sleep(0.2)


def prepare_database():
    """Creates the table, waiting for the database as long as it takes."""
    delay = 0.2
    while not draining.is_set():
        try:
            query(
                "CREATE TABLE IF NOT EXISTS entries ("
                " id BIGINT AUTO_INCREMENT PRIMARY KEY,"
                " author VARCHAR(64) NOT NULL,"
                " message VARCHAR(500) NOT NULL,"
                " created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)"
            )
            log("database ready")
            return
        except (pymysql.err.MySQLError, OSError) as error:
            log(f"waiting for the database: {error}")
            draining.wait(delay)
            delay = min(delay * 2, 5)


class Handler(BaseHTTPRequestHandler):
    server_version = "guestbook/" + VERSION
    timeout = 15

    def do_GET(self):
        path = self.path.split("?", 1)[0]
        if path == "/healthz":
            self.answer(200, "ok\n")
        elif path == "/readyz":
            self.ready()
        elif path == "/entries":
            self.guarded(self.entries)
        elif path == "/":
            self.guarded(self.page)
        else:
            self.answer(404, "not found\n")

    do_HEAD = do_GET

    def do_POST(self):
        if self.path.split("?", 1)[0] != "/":
            self.answer(404, "not found\n")
            return
        self.guarded(self.add)

    def guarded(self, action):
        try:
            action()
        except (pymysql.err.MySQLError, OSError) as error:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                return
            log(f"database error: {error}")
            self.answer(503, "the database is not reachable\n", headers={"Retry-After": "2"})

    def ready(self):
        if draining.is_set():
            self.answer(503, "draining\n")
            return
        try:
            query("SELECT 1 FROM entries LIMIT 1")
            self.answer(200, "ready\n")
        except (pymysql.err.MySQLError, OSError) as error:
            self.answer(503, f"database: {error}\n")

    def page(self):
        rows = query("SELECT author, message, created FROM entries ORDER BY id DESC LIMIT 50")
        count = query("SELECT COUNT(*) FROM entries")[0][0]
        items = "".join(
            f"<li><b>{html.escape(author)}</b>: {html.escape(message)} <small>{created}</small></li>"
            for author, message, created in rows
        )
        body = PAGE.format(rows=items, version=html.escape(VERSION), hostname=html.escape(HOSTNAME), count=count)
        self.answer(200, body, "text/html; charset=utf-8")

    def entries(self):
        rows = query("SELECT id, author, message FROM entries ORDER BY id")
        document = {
            "version": VERSION,
            "hostname": HOSTNAME,
            "entries": [{"id": i, "author": author, "message": message} for i, author, message in rows],
        }
        self.answer(200, json.dumps(document) + "\n", "application/json")

    def add(self):
        try:
            length = int(self.headers.get("Content-Length", "0"))
        except ValueError:
            self.answer(400, "malformed Content-Length\n")
            return
        if not 0 < length <= MAX_BODY:
            self.answer(413 if length > MAX_BODY else 400, "a form of up to 64 KiB is expected\n")
            return
        form = parse_qs(self.rfile.read(length).decode("utf-8", "replace"))
        message = form.get("message", [""])[0].strip()[:500]
        author = form.get("author", [""])[0].strip()[:64] or "anonymous"
        if not message:
            self.answer(400, "a message is expected\n")
            return
        query("INSERT INTO entries (author, message) VALUES (%s, %s)", (author, message))
        self.answer(303, "added\n", headers={"Location": "/"})

    def answer(self, status, body, content_type="text/plain; charset=utf-8", headers=None):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Served-By", HOSTNAME)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, template, *values):
        if not self.path.startswith(("/healthz", "/readyz")):
            log(f"{self.client_address[0]} {template % values}")


class Server(ThreadingHTTPServer):
    # Closing the server waits for the requests under way.
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128


def main():
    server = Server(("0.0.0.0", PORT), Handler)

    def drain():
        log(f"terminating: not ready any more, closing in {DRAIN_SECONDS:g} s")
        time.sleep(DRAIN_SECONDS)
        server.shutdown()

    def terminate(_signal, _frame):
        if not draining.is_set():
            draining.set()
            threading.Thread(target=drain).start()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, terminate)
    threading.Thread(target=prepare_database, daemon=True).start()
    log(f"guestbook {VERSION} on port {PORT}, host {HOSTNAME}")
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    log("all requests finished")


if __name__ == "__main__":
    main()
