#!/usr/bin/env python3
"""What a cloud costs before anything runs in it: start to Ready, to the first pod, memory and CPU while idle, size of the binary.

Usage, as root: bench/footprint.py [--binary target/release/dhow] [--image target/images/busybox.tar] [--rounds 5] [--idle 60]
Prints a Markdown table. Each round is a cloud in a network namespace of its own on empty folders. Memory is that of all processes
of the cloud: daemon, name server, and the shims that wait for pods; RSS counts pages that processes share in each of them, PSS
counts them once. `bench/slice.py` goes on from here, with pods.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import slice as single


def running(connection, name):
    """Waits until the pod runs."""
    connection.request("GET", f"/api/v1/namespaces/default/pods?watch=true&fieldSelector=metadata.name%3D{name}")
    answer = connection.getresponse()
    while line := answer.readline():
        if json.loads(line)["object"].get("status", {}).get("phase") == "Running":
            return
    raise RuntimeError("the watch ended")


def round_of(options, figures):
    """One cloud from nothing to nothing."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        cloud = single.Cloud(os.path.abspath(options.binary), folder)
        try:
            begin = time.perf_counter()
            cloud.dhow("up")
            figures["first start to Ready, ms"].append((time.perf_counter() - begin) * 1000)
            time.sleep(2)
            found = single.processes(f"{folder}/data")
            pids = [pid for kind in found.values() for pid in kind]
            before = sum(map(single.cpu_seconds, pids))
            time.sleep(options.idle)
            used = sum(map(single.cpu_seconds, pids)) - before
            figures[f"idle CPU over {options.idle} s, % of a core"].append(used / options.idle * 100)
            shares = {kind: [single.memory(pid) for pid in of_kind] for kind, of_kind in found.items()}
            for kind, of_kind in shares.items():
                for index, what in enumerate(("RSS", "PSS")):
                    figures[f"idle {what}, {kind}, MiB"].append(sum(share[index] for share in of_kind))
            for index, what in enumerate(("RSS", "PSS")):
                figures[f"idle {what} in all, MiB"].append(sum(share[index] for of_kind in shares.values() for share in of_kind))
            cloud.dhow("image", "import", os.path.abspath(options.image))
            cloud.dhow("down")
            begin = time.perf_counter()
            cloud.dhow("up")
            figures["start on its data to Ready, ms"].append((time.perf_counter() - begin) * 1000)
            if pid := os.fork():
                # A child is in the cloud's network; this process makes more clouds.
                if os.waitpid(pid, 0)[1]:
                    raise RuntimeError("the first pod did not start")
            else:
                code = 1
                try:
                    single.enter(cloud.netns)
                    connection = cloud.connect()
                    connection.request("POST", "/api/v1/namespaces/default/pods", single.pod("first"),
                                       {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == 201
                    running(connection, "first")
                    pathlib.Path(f"{folder}/time").write_text(str((time.perf_counter() - begin) * 1000))
                    code = 0
                finally:
                    os._exit(code)
            figures["start on its data to the first pod Running (cached image), ms"].append(
                float(pathlib.Path(f"{folder}/time").read_text()))
        finally:
            cloud.end()


class Figures(dict):
    def __missing__(self, key):
        self[key] = []
        return self[key]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--image", default="target/images/busybox.tar")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=60, help="seconds of idling to measure")
    options = parser.parse_args()
    figures, begun = Figures(), os.getloadavg()[0]
    for _ in range(options.rounds):
        round_of(options, figures)
    print(f"Load average {begun:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end; {options.rounds} rounds.\n")
    print("| What | Median | Range |\n|---|---|---|")
    for what, values in figures.items():
        digits = 2 if "CPU" in what else 0 if what.endswith("ms") else 1
        print(f"| {what} | {statistics.median(values):.{digits}f} | {min(values):.{digits}f}–{max(values):.{digits}f} |")
    print(f"| binary, MiB | {os.path.getsize(options.binary) / (1 << 20):.1f} | – |")


if __name__ == "__main__":
    main()
