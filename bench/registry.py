#!/usr/bin/env python3
"""Push and pull of blobs and manifests: our registry beside Debian's docker-registry.

Usage: bench/registry.py [--binary target/release/examples/serve] [--rounds 5] [--large-mib 64] [--small 100]
Prints a Markdown table. Build the binary with `cargo build --release -p dhow-registry --example serve`. Servers are pinned to
one core and the client to another; they take turns within each round. Everything acknowledged is on disk on both sides.
"""

import argparse
import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile
import time

import peers

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OURS, THEIRS = 5061, 5062


class Client:
    """One connection that is kept open."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, blocksize=1 << 20)

    def ask(self, method, path, body=None, expect=(200, 201, 202), **headers):
        self.connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = self.connection.getresponse()
        content = response.read()
        if response.status not in expect:
            raise RuntimeError(f"{method} {path}: {response.status} {content[:300]}")
        return response, content

    def push(self, repository, blob):
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        begun, _ = self.ask("POST", f"/v2/{repository}/blobs/uploads/", b"")
        location = begun.headers["Location"]
        location = location[location.index("/v2/"):]
        joint = "&" if "?" in location else "?"
        self.ask("PUT", f"{location}{joint}digest={digest}", blob, Content_Type="application/octet-stream")
        return digest

    def pull(self, repository, digest, buffer):
        self.connection.request("GET", f"/v2/{repository}/blobs/{digest}")
        response = self.connection.getresponse()
        have, view = 0, memoryview(buffer)
        while got := response.readinto(view[have:]):
            have += got
        response.read()
        return have


def image(config, layer):
    def descriptor(kind, blob):
        return {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(blob).hexdigest(), "size": len(blob)}

    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST,
                       "config": descriptor("application/vnd.oci.image.config.v1+json", config),
                       "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]}).encode()


def measure(port, options):
    """One round: what was measured by name."""
    client, found = Client(port), {}
    noise = random.Random(time.perf_counter_ns())
    large = noise.randbytes(options.large_mib << 20)
    begin = time.perf_counter()
    digest = client.push("bench/large", large)
    found["push, MiB/s"] = options.large_mib / (time.perf_counter() - begin)
    buffer = bytearray(len(large))
    rates = []
    for _ in range(3):
        begin = time.perf_counter()
        assert client.pull("bench/large", digest, buffer) == len(large)
        rates.append(options.large_mib / (time.perf_counter() - begin))
    assert buffer == large
    found["pull, MiB/s"] = statistics.median(rates)

    blobs = [noise.randbytes(1024) for _ in range(options.small)]
    begin = time.perf_counter()
    digests = [client.push("bench/small", blob) for blob in blobs]
    found["push of 1 KiB blobs, one client, /s"] = len(blobs) / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for digest in digests:
        client.ask("GET", f"/v2/bench/small/blobs/{digest}")
    found["pull of 1 KiB blobs, one client, /s"] = len(blobs) / (time.perf_counter() - begin)

    def many(mine):
        own = Client(port)
        for blob in mine:
            own.push("bench/many", blob)

    lots = [noise.randbytes(1024) for _ in range(options.small * 2)]
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(many, [lots[n::8] for n in range(8)]))
    found["push of 1 KiB blobs, 8 clients, /s"] = len(lots) / (time.perf_counter() - begin)

    config, layers = b"{}", blobs[:20]
    client.push("bench/image", config)
    for layer in layers:
        client.push("bench/image", layer)
    manifests = [image(config, layer) for layer in layers]
    begin = time.perf_counter()
    for number, manifest in enumerate(manifests):
        client.ask("PUT", f"/v2/bench/image/manifests/t{number}", manifest, Content_Type=MANIFEST)
    found["push of manifests, /s"] = len(manifests) / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for number in range(len(manifests)):
        client.ask("GET", f"/v2/bench/image/manifests/t{number}", Accept=MANIFEST)
    found["pull of manifests, /s"] = len(manifests) / (time.perf_counter() - begin)
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
