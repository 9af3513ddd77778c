#!/usr/bin/env python3
"""Start to Ready, first pod, pod start latency, memory and idle CPU of one cloud in a network namespace of its own.

Usage, as root: bench/slice.py [--binary target/release/dhow] [--image target/images/busybox.tar] [--pods 50] [--burst 60]
                               [--peers]
Prints a Markdown table. Latency is measured from the outside: a POST of the pod, then the watch until it is Running; for peers
`docker run --detach` (with Docker's bridge) and `ctr run --detach` (without a network) until they return, in turns with pods.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import ssl
import statistics
import subprocess
import tempfile
import time

import peers

HOST = "198.18.0.1"


class Cloud:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.netns = binary, folder, f"dhow-bench-{os.getpid()}"
        self.env = dict(os.environ, DHOW_NODE_MAX_PODS="240", DHOW_DATA_DIR=f"{folder}/data", DHOW_RUN_DIR=f"{folder}/run", DHOW_NODE_IP=HOST,
                        DHOW_NODE_NAME="bench", KUBECONFIG=f"{folder}/kubeconfig")
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        for command in ("link set lo up", "link add host0 type veth peer name host1", f"addr add {HOST}/24 dev host0",
                        "link set host0 up", "link set host1 up", "route add default via 198.18.0.254"):
            self.inside(["ip", *command.split()])

    def inside(self, command):
        return subprocess.run(["nsenter", f"--net=/run/netns/{self.netns}", "--", *command], check=True, env=self.env,
                              capture_output=True, text=True).stdout

    def dhow(self, *args):
        return self.inside([self.binary, *args])

    def end(self):
        self.dhow("down", "--purge")
        subprocess.run(["ip", "netns", "del", self.netns], check=True)

    def connect(self):
        config = json.loads(subprocess.run(["kubectl", "config", "view", "--raw", "-o", "json"], check=True, env=self.env,
                                           capture_output=True, text=True).stdout)
        context = ssl.create_default_context(cadata=base64.b64decode(
            config["clusters"][0]["cluster"]["certificate-authority-data"]).decode())
        user = config["users"][0]["user"]
        with tempfile.NamedTemporaryFile("w") as pem:
            for field in ("client-certificate-data", "client-key-data"):
                pem.write(base64.b64decode(user[field]).decode() + "\n")
            pem.flush()
            context.load_cert_chain(pem.name)
        connection = http.client.HTTPSConnection(HOST, 6443, context=context, timeout=60)
        connection.connect()
        return connection


def enter(netns):
    """This process moves into the cloud's network: its requests come from the machine itself."""
    handle = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    import ctypes
    if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def pod(name):
    return json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "containers": [
            {"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}]},
    })


def start_pod(writer, watch, name):
    begin = time.perf_counter()
    writer.request("POST", "/api/v1/namespaces/default/pods", pod(name), {"Content-Type": "application/json"})
    answer = writer.getresponse()
    body = answer.read()
    assert answer.status == 201, body
    while True:
        event = json.loads(watch.readline())
        if event["object"]["metadata"]["name"] == name and event["object"].get("status", {}).get("phase") == "Running":
            return (time.perf_counter() - begin) * 1000


def start_burst(writer, watch, count):
    """Pods as fast as one client can write them, until the last is Running."""
    begin, waiting = time.perf_counter(), {f"burst-{n}" for n in range(count)}
    for name in sorted(waiting):
        writer.request("POST", "/api/v1/namespaces/default/pods", pod(name), {"Content-Type": "application/json"})
        answer = writer.getresponse()
        body = answer.read()
        assert answer.status == 201, body
    written = (time.perf_counter() - begin) * 1000
    while waiting:
        event = json.loads(watch.readline())
        if event["object"].get("status", {}).get("phase") == "Running":
            waiting.discard(event["object"]["metadata"]["name"])
    return written, (time.perf_counter() - begin) * 1000


def forget(writer, watch):
    """Removes all pods and waits until the last is gone, so that each figure begins on an empty node."""
    writer.request("GET", "/api/v1/namespaces/default/pods")
    waiting = {item["metadata"]["name"] for item in json.loads(writer.getresponse().read())["items"]}
    writer.request("DELETE", "/api/v1/namespaces/default/pods")
    writer.getresponse().read()
    while waiting:
        event = json.loads(watch.readline())
        if event["type"] == "DELETED":
            waiting.discard(event["object"]["metadata"]["name"])


def beside(cloud, folder, writer, watch, rounds=20):
    """Starts of pods, of Docker's and of containerd's containers, taking turns."""
    daemons, times = [], {"pod": [], "docker run": [], "ctr run": []}
    docker = ["docker", "--host", f"unix://{folder}/d.sock"]
    run = lambda command: subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def timed(what, call):
        begin = time.perf_counter()
        call()
        times[what].append((time.perf_counter() - begin) * 1000)

    try:
        daemons.append(peers.containerd(folder))
        daemons.append(peers.docker(folder))
        cloud.dhow("image", "export", "--format", "docker", "--output", f"{folder}/busybox.tar", "busybox")
        run([*docker, "load", "--input", f"{folder}/busybox.tar"])
        peers.ctr(folder, "images", "import", f"{folder}/busybox.tar")
        image = peers.ctr(folder, "images", "list", "-q").split()[0]
        for turn in range(rounds):
            times["pod"].append(start_pod(writer, watch, f"beside-{turn}"))
            timed("docker run", lambda: run([*docker, "run", "--detach", "busybox", "sleep", "100000"]))
            timed("ctr run", lambda: peers.ctr(folder, "run", "--detach", image, f"beside-{turn}", "sleep", "100000"))
        run(["sh", "-c", f"{' '.join(docker)} rm --force $({' '.join(docker)} ps --all --quiet)"])
        for turn in range(rounds):
            peers.ctr(folder, "tasks", "delete", "--force", f"beside-{turn}")
            peers.ctr(folder, "containers", "delete", f"beside-{turn}")
    finally:
        for daemon in reversed(daemons):
            daemon.end()
    return times


def in_short(times):
    ordered = sorted(times)
    return f"{statistics.median(ordered):.0f} / {ordered[max(int(len(ordered) * 0.99) - 1, 0)]:.0f} ms"


def memory(pid):
    fields = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    return fields["Rss"], fields["Pss"]


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes(data_dir):
    """Daemon, name server and shims by what they were started as."""
    found = {"daemon": [], "name server": [], "shims": []}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            args = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if not any(data_dir.encode() in argument for argument in args):
            continue
        for kind, word in (("daemon", b"serve"), ("name server", b"serve-dns"), ("shims", b"sandbox-shim")):
            if word in args:
                found[kind].append(int(path.parent.name))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--image", default="target/images/busybox.tar")
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--burst", type=int, default=50, help="pods written at once")
    parser.add_argument("--peers", action="store_true", help="also start containers in Docker and containerd")
    parser.add_argument("--idle", type=int, default=30, help="seconds of idling to measure")
    options = parser.parse_args()
    rows, begun = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        cloud = Cloud(os.path.abspath(options.binary), folder)
        try:
            starts = []
            begin = time.perf_counter()
            cloud.dhow("up")
            rows.append(("`dhow up`, first start, to Ready", f"{(time.perf_counter() - begin) * 1000:.0f} ms"))
            for _ in range(5):
                cloud.dhow("down")
                begin = time.perf_counter()
                cloud.dhow("up")
                starts.append((time.perf_counter() - begin) * 1000)
            rows.append(("`dhow up`, on its data, to Ready (median of 5)", f"{statistics.median(starts):.0f} ms"))
            data = f"{folder}/data"
            [daemon], [nameserver] = processes(data)["daemon"], processes(data)["name server"]
            time.sleep(2)
            idle = memory(daemon), memory(nameserver)
            before = cpu_seconds(daemon) + cpu_seconds(nameserver)
            time.sleep(options.idle)
            share = (cpu_seconds(daemon) + cpu_seconds(nameserver) - before) / options.idle * 100
            rows.append(("idle memory, daemon (RSS)", f"{idle[0][0]:.1f} MiB"))
            rows.append(("idle memory, name server (RSS / PSS)", f"{idle[1][0]:.1f} / {idle[1][1]:.1f} MiB"))
            rows.append((f"idle CPU over {options.idle} s", f"{share:.2f} % of a core"))
            cloud.dhow("image", "import", os.path.abspath(options.image))
            enter(cloud.netns)
            writer, watcher = cloud.connect(), cloud.connect()
            watcher.request("GET", "/api/v1/namespaces/default/pods?watch=true")
            watch = watcher.getresponse()
            times = [start_pod(writer, watch, f"pod-{n}") for n in range(options.pods)]
            rows.append(("first pod, cached image, POST to Running", f"{times[0]:.0f} ms"))
            rows.append((f"next {len(times) - 1} pods one after another, p50 / p99", in_short(times[1:])))
            shims = processes(data)["shims"]
            shares = [memory(pid) for pid in shims]
            rows.append((f"memory of a shim (RSS / PSS, median of {len(shims)})",
                         f"{statistics.median(s[0] for s in shares):.1f} / {statistics.median(s[1] for s in shares):.1f} MiB"))
            rows.append((f"memory of the daemon with {options.pods} pods (RSS)", f"{memory(daemon)[0]:.1f} MiB"))
            before = cpu_seconds(daemon) + cpu_seconds(nameserver) + sum(map(cpu_seconds, shims))
            time.sleep(options.idle)
            after = cpu_seconds(daemon) + cpu_seconds(nameserver) + sum(map(cpu_seconds, shims))
            rows.append((f"idle CPU with {options.pods} pods over {options.idle} s",
                         f"{(after - before) / options.idle * 100:.2f} % of a core"))
            forget(writer, watch)
            written, running = start_burst(writer, watch, options.burst)
            rows.append((f"{options.burst} pods at once, until all are written / Running", f"{written:.0f} / {running:.0f} ms"))
            if options.peers:
                forget(writer, watch)
                for what, times in beside(cloud, folder, writer, watch).items():
                    rows.append((f"in turns, p50 / p99: {what}", in_short(times)))
        finally:
            cloud.end()
    size = os.path.getsize(options.binary) / (1 << 20)
    rows.append(("binary", f"{size:.1f} MiB"))
    print(f"Load average {begun:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end.\n")
    print("| What | Measured |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
