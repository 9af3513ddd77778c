#!/usr/bin/env python3
"""Push and pull of blobs and manifests: our registry beside Debian's docker-registry.

Usage: bench/registry.py [--binary target/release/examples/serve] [--rounds 5] [--large-mib 64] [--small 100]
Prints a Markdown table. Build the binary with `cargo build --release -p dhow-registry --example serve`. Servers are pinned to
one core and the client to another; they take turns within each round. Everything acknowledged is on disk on both sides.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import peers

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OURS, THEIRS = 5061, 5062


class Connection:
    """HTTP/1.1 over one socket that is kept open, with next to no work of its own: the server is what is measured."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scratch = memoryview(bytearray(1 << 20))
        self.waiting = b""

    def head(self):
        """Status, head, and how long the body is that follows it."""
        while (end := self.waiting.find(b"\r\n\r\n")) < 0:
            got = self.socket.recv(1 << 16)
            if not got:
                raise RuntimeError("the server closed the connection")
            self.waiting += got
        head, self.waiting = self.waiting[:end + 2], self.waiting[end + 4:]
        return int(head[9:12]), head, int((LENGTH.search(head) or [b"", b"0"])[1])

    def ask(self, request, body=None, expect=(200, 201, 202)):
        self.socket.sendall(request)
        if body is not None:
            self.socket.sendall(body)
        status, head, length = self.head()
        while len(self.waiting) < length:
            self.waiting += self.socket.recv(1 << 16)
        content, self.waiting = self.waiting[:length], self.waiting[length:]
        if status not in expect:
            raise RuntimeError(f"{request[:200]}: {status} {content[:300]}")
        return head, content

    def pull(self, repository, digest, into=None):
        """How many bytes came; they are only looked at when they are wanted."""
        self.socket.sendall(get(f"/v2/{repository}/blobs/{digest}"))
        status, _, length = self.head()
        assert status == 200, status
        have = len(self.waiting)
        if into is not None:
            into[:have] = self.waiting
        self.waiting = b""
        while have < length:
            have += self.socket.recv_into(self.scratch if into is None else into[have:])
        return have

    def push(self, repository, blob, digest):
        head, _ = self.ask(post(f"/v2/{repository}/blobs/uploads/"))
        self.ask(put(finish(head, digest), len(blob)), blob)


LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
LOCATION = re.compile(rb"(?i)\r\nlocation: *(?:https?://[^/]*)?(/v2/[^\r]*)")
OCTETS = "application/octet-stream"


def get(path, accept="*/*"):
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: {accept}\r\n\r\n".encode()


def post(path):
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n".encode()


def put(path, length, kind=OCTETS):
    return f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def finish(head, digest):
    """Where the blob goes that an upload was begun for."""
    location = LOCATION.search(head)[1].decode()
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def digest_of(blob):
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def push_many(port, repository, blobs, clients):
    """So many clients, each with a connection of its own, in one thread: threads would wait for each other, not for the server."""
    todo, selector = iter(blobs), selectors.DefaultSelector()

    def steps():
        for blob, digest in todo:
            head = yield post(f"/v2/{repository}/blobs/uploads/")
            yield put(finish(head, digest), len(blob)) + blob

    def go_on(connection, work, head):
        try:
            connection.socket.sendall(work.send(head))
        except StopIteration:
            selector.unregister(connection.socket)
            connection.socket.close()

    for _ in range(clients):
        connection, work = Connection(port), steps()
        selector.register(connection.socket, selectors.EVENT_READ, (connection, work))
        go_on(connection, work, None)
    while selector.get_map():
        for key, _ in selector.select():
            connection, work = key.data
            status, head, length = connection.head()
            if status not in (201, 202) or length or connection.waiting:
                raise RuntimeError(f"a push was answered with {head}")
            go_on(connection, work, head)


def image(config, layer):
    def descriptor(kind, blob):
        return {"mediaType": kind, "digest": digest_of(blob), "size": len(blob)}

    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST,
                       "config": descriptor("application/vnd.oci.image.config.v1+json", config),
                       "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]}).encode()


def measure(port, options):
    """One round: what was measured by name. Clients know their digests beforehand, as real ones do."""
    client, found = Connection(port), {}
    noise = random.Random(time.perf_counter_ns())

    def rate(what, count, call):
        begin = time.perf_counter()
        call()
        found[what] = count / (time.perf_counter() - begin)
        return found[what]

    large = noise.randbytes(options.large_mib << 20)
    digest = digest_of(large)
    rate("push, MiB/s", options.large_mib, lambda: client.push("bench/large", large, digest))
    rate("first pull after it, MiB/s", options.large_mib, lambda: client.pull("bench/large", digest))
    pulls = [rate("pull, MiB/s", options.large_mib, lambda: client.pull("bench/large", digest)) for _ in range(3)]
    found["pull, MiB/s"] = statistics.median(pulls)
    back = bytearray(len(large))
    assert client.pull("bench/large", digest, memoryview(back)) == len(large) and back == large
    del back

    def fresh(count):
        return [(blob, digest_of(blob)) for blob in (noise.randbytes(1024) for _ in range(count))]

    blobs, lots = fresh(options.small), fresh(options.small * 5)
    rate("push of 1 KiB blobs, one client, /s", len(blobs), lambda: [client.push("bench/small", *blob) for blob in blobs])
    rate("pull of 1 KiB blobs, one client, /s", len(blobs),
         lambda: [client.ask(get(f"/v2/bench/small/blobs/{digest}")) for _, digest in blobs])
    rate("push of 1 KiB blobs, 8 clients, /s", len(lots), lambda: push_many(port, "bench/many", lots, 8))

    config, layers = b"{}", [blob for blob, _ in blobs[:20]]
    for blob in [config, *layers]:
        client.push("bench/image", blob, digest_of(blob))
    manifests = [image(config, layer) for layer in layers]
    rate("push of manifests, /s", len(manifests), lambda: [
        client.ask(put(f"/v2/bench/image/manifests/t{number}", len(manifest), MANIFEST), manifest)
        for number, manifest in enumerate(manifests)])
    rate("pull of manifests, /s", len(manifests), lambda: [
        client.ask(get(f"/v2/bench/image/manifests/t{number}", MANIFEST)) for number in range(len(manifests))])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/examples/serve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mib", type=int, default=64)
    parser.add_argument("--small", type=int, default=100)
    options = parser.parse_args()
    begun, results = os.getloadavg()[0], {"dhow": [], "docker-registry": []}
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        daemons = []
        try:
            theirs = pathlib.Path(folder, "theirs")
            theirs.mkdir()
            daemons.append(peers.Daemon([os.path.abspath(options.binary), f"{folder}/ours", f"127.0.0.1:{OURS}"], folder,
                                        ("127.0.0.1", OURS)))
            daemons.append(peers.registry(str(theirs), THEIRS))
            for daemon in daemons:
                subprocess.run(["taskset", "--all-tasks", "--cpu-list", "--pid", str(cores[0]), str(daemon.process.pid)],
                               check=True, stdout=subprocess.DEVNULL)
            for _ in range(options.rounds):
                results["dhow"].append(measure(OURS, options))
                results["docker-registry"].append(measure(THEIRS, options))
        finally:
            for daemon in daemons:
                daemon.end()
            shutil.rmtree(f"{folder}/ours", ignore_errors=True)
    print(f"Load average {begun:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end; median of {options.rounds} rounds; "
          f"large blobs of {options.large_mib} MiB.\n")
    print("| what | dhow | docker-registry | ratio |\n|---|---|---|---|")
    for what in results["dhow"][0]:
        ours, others = (statistics.median(round[what] for round in results[who]) for who in ("dhow", "docker-registry"))
        print(f"| {what} | {ours:.0f} | {others:.0f} | {ours / others:.1f} |")


if __name__ == "__main__":
    main()
