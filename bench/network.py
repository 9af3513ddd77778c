#!/usr/bin/env python3
"""Throughput and latency between pods: of one node, and of two nodes by routes and by VXLAN, beside a plain veth.

Usage, as root: bench/network.py [--binary target/release/dhow] [--image target/images/busybox.tar] [--rounds 5] [--seconds 2]
Needs Debian's qperf. Prints a Markdown table. Two network namespaces joined by one veth pair are the machines; the floor is TCP
over just such a pair. Rounds take turns (floor, pods, floor, pods, …); figures are medians, ratios are of medians. Server and client
share the machine's cores, as pods of one node do.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import slice as single

SECOND = "198.18.0.2"
WAYS = {"one node": None, "two nodes, routes": "routes", "two nodes, VXLAN": "vxlan"}


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


class Namespace:
    """Where a command runs: a network namespace by the path of its handle."""

    def __init__(self, path, address):
        self.path, self.address = path, address

    def command(self, *command):
        return ["nsenter", f"--net={self.path}", "--", *command]


class Floor:
    """Two namespaces with one veth pair between them."""

    def __init__(self):
        self.names = [f"dhow-floor-{os.getpid()}-{side}" for side in "ab"]
        for name in self.names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "v0", "netns", self.names[0], "type", "veth", "peer", "name", "v0", "netns", self.names[1])
        for number, name in enumerate(self.names):
            run("ip", "-n", name, "addr", "add", f"198.19.0.{number + 1}/24", "dev", "v0")
            run("ip", "-n", name, "link", "set", "v0", "up")
        self.sides = [Namespace(f"/run/netns/{name}", f"198.19.0.{number + 1}") for number, name in enumerate(self.names)]

    def end(self):
        for name in self.names:
            run("ip", "netns", "del", name)


def measure(server, client, seconds):
    """TCP bytes per second and the time of a question and its answer of one byte each, in microseconds."""
    listener = subprocess.Popen(server.command("qperf"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        out = run(*client.command("qperf", "--wait_server", "5", "-t", str(seconds), "-u", "-uu", "-vvu", "-m", "64K",
                                  server.address, "tcp_bw"))
        out += run(*client.command("qperf", "-t", str(seconds), "-u", server.address, "tcp_lat"))
    finally:
        listener.kill()
        listener.wait()
    values = {}
    for line in out.splitlines():
        if "=" in line:
            name, value = line.split("=")
            values.setdefault(name.strip(), value.split())
    scale = {"bytes/sec": 1, "KB/sec": 1e3, "MB/sec": 1e6, "GB/sec": 1e9, "ns": 1e-3, "us": 1, "ms": 1e3}
    number = lambda name: float(values[name][0].replace(",", "")) * scale[values[name][1]]
    # qperf gives one way of a round trip.
    return number("bw"), number("latency") * 2


def pods(cloud, nodes):
    """One pod for each of `nodes`, running; their network namespaces."""
    found = []
    kubectl = lambda *args, **options: subprocess.run(["nsenter", f"--net=/run/netns/{cloud.netns}", "--", "kubectl", *args], check=True,
                                                      env=cloud.env, capture_output=True, text=True, **options).stdout
    for number, node in enumerate(nodes):
        text = single.pod(f"end-{number}").replace('"spec": {', f'"spec": {{"nodeName": "{node}", ', 1)
        kubectl("apply", "-f", "-", input="---\n" + text)
    for number in range(len(nodes)):
        kubectl("wait", "--for=condition=Ready", "--timeout=60s", f"pod/end-{number}")
        address = kubectl("get", "pod", f"end-{number}", "-o", "jsonpath={.status.podIP}")
        found.append(Namespace(handle(cloud, address), address))
    return found


def handle(cloud, address):
    """The handle of the network namespace that has `address`, by its shim."""
    for pid in single.processes(cloud.folder)["shims"]:
        path = f"/proc/{pid}/ns/net"
        if f"inet {address}/" in run("nsenter", f"--net={path}", "--", "ip", "-4", "addr"):
            return path
    raise RuntimeError(f"no shim has {address}")


class Second:
    """A machine at the other end of the first one's link."""

    def __init__(self, cloud, folder, token):
        self.netns, self.binary = f"{cloud.netns}-2", cloud.binary
        self.env = dict(cloud.env, DHOW_DATA_DIR=f"{folder}/data-2", DHOW_RUN_DIR=f"{folder}/run-2", DHOW_NODE_IP=SECOND,
                        DHOW_NODE_NAME="bench-2", KUBECONFIG=f"{folder}/none")
        run("ip", "netns", "add", self.netns)
        run("ip", "-n", cloud.netns, "link", "set", "host1", "netns", self.netns)
        for command in ("link set lo up", f"addr add {SECOND}/24 dev host1", "link set host1 up", "route add default via 198.18.0.254"):
            run("ip", "-n", self.netns, *command.split())
        self.dhow("join", f"https://{single.HOST}:6443", DHOW_TOKEN=token)

    def dhow(self, *args, **env):
        return subprocess.run(["nsenter", f"--net=/run/netns/{self.netns}", "--", self.binary, *args], check=True,
                              env=dict(self.env, **env), capture_output=True, text=True).stdout

    def end(self):
        self.dhow("down", "--purge")
        run("ip", "netns", "del", self.netns)


def one_way(way, options):
    """Rounds of (floor, pods) for one way between them."""
    rounds, ending = [], []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        try:
            cloud = single.Cloud(os.path.abspath(options.binary), folder)
            ending.append(cloud.end)
            cloud.env["DHOW_POD_NETWORK"] = way or "auto"
            cloud.dhow("up")
            if way:
                ending.append(Second(cloud, folder, cloud.dhow("token", "create").strip()).end)
            nodes = ["bench", "bench-2" if way else "bench"]
            for node in set(nodes):
                cloud.dhow("image", "import", "--node", node, os.path.abspath(options.image))
            ends = pods(cloud, nodes)
            floor = Floor()
            ending.append(floor.end)
            for _ in range(options.rounds):
                rounds.append((measure(*floor.sides, options.seconds), measure(*ends, options.seconds)))
        finally:
            for end in reversed(ending):
                end()
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--image", default="target/images/busybox.tar")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    print(f"Load average {os.getloadavg()[0]:.1f} at the beginning.\n")
    print("| between pods of | throughput | of a plain veth | round trip | of a plain veth |\n|---|---|---|---|---|")
    for name, way in WAYS.items():
        rounds = one_way(way, options)
        middle = lambda side, figure: statistics.median(turn[side][figure] for turn in rounds)
        print(f"| {name} | {middle(1, 0) * 8 / 1e9:.1f} Gbit/s | {middle(1, 0) / middle(0, 0):.2f} × {middle(0, 0) * 8 / 1e9:.1f} Gbit/s"
              f" | {middle(1, 1):.1f} µs | {middle(1, 1) / middle(0, 1):.2f} × {middle(0, 1):.1f} µs |", flush=True)


if __name__ == "__main__":
    main()
