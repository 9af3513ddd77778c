#!/usr/bin/env python3
"""Kills everything of ours at random, by kill -9, while clients write to and read from a database through Services.

Usage, as root: bench/chaos.py [--minutes 10] [--database mariadb|redis] [--seed N] [--binary target/release/dhow]
Needs the images of `cargo xtask images --only busybox,python,mariadb,redis`.

One cloud in a network namespace of its own: a database on a persistent volume, a program in front of it in two pods, and
pods that do nothing. Daemon, name server and shims are killed, one every few seconds; a daemon that was killed is started
again by `dhow up`, as a service manager would. Clients outside speak to the program's Service, which speaks to the
database's by name. At the end nobody is killed any more, and then it has to hold that
 - every row that was acknowledged is there, and no row was gone when it was read in between,
 - all pods are ready, and `dhow doctor` finds nothing,
 - nothing runs but what belongs to a pod or waits for one: shims, control groups and links are counted,
 - nothing is left when all pods are deleted, and nothing at all after `dhow down --purge`.
It ends with 1 if any of that does not hold.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import slice as single

PROGRAM = r'''
import http.server, os, signal, socket, sys, urllib.parse
signal.signal(signal.SIGTERM, lambda *_: sys.exit())

def redis(*words):
    with socket.create_connection(("database", 6379), timeout=5) as connection:
        request = "*%d\r\n" % len(words) + "".join("$%d\r\n%s\r\n" % (len(word), word) for word in words)
        connection.sendall(request.encode())
        stream = connection.makefile("rb")
        line = stream.readline()
        if not line or line[:1] == b"-":
            raise OSError(line)
        return stream.readline().strip() if line[:1] == b"$" and line.strip() != b"$-1" else line.strip()

class Redis:
    def write(self, row):
        redis("SET", row, "1")
    def read(self, row):
        return redis("GET", row) == b"1"

class MariaDB:
    def ask(self, statement, row):
        import pymysql
        database = pymysql.connect(host="database", user="root", password=os.environ["PASSWORD"], autocommit=True,
                                   connect_timeout=5, read_timeout=5, write_timeout=5)
        with database, database.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS chaos")
            cursor.execute("CREATE TABLE IF NOT EXISTS chaos.rows_ (id VARCHAR(64) PRIMARY KEY)")
            cursor.execute(statement, (row,))
            return cursor.fetchone()
    def write(self, row):
        self.ask("REPLACE INTO chaos.rows_ VALUES (%s)", row)
    def read(self, row):
        return self.ask("SELECT id FROM chaos.rows_ WHERE id = %s", row) is not None

store = {"redis": Redis, "mariadb": MariaDB}[os.environ["DATABASE"]]()

class Rows(http.server.BaseHTTPRequestHandler):
    def answer(self, work):
        try:
            found = work(urllib.parse.unquote(self.path[1:]))
            code, text = (404, "no") if found is False else (200, "yes")
        except Exception as error:
            code, text = 503, repr(error)
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        if self.path == "/":
            return self.answer(lambda _: True)
        self.answer(store.read)
    def do_PUT(self):
        self.answer(store.write)
    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("", 8000), Rows).serve_forever()
'''

DATABASES = {
    "redis": {
        "image": "redis:latest",
        "command": ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", "--appendonly", "yes",
                    "--appendfsync", "always"],
        "port": 6379, "folder": "/data", "probe": ["redis-cli", "ping"]},
    "mariadb": {
        "image": "mariadb:latest", "command": None, "port": 3306, "folder": "/var/lib/mysql",
        "probe": ["sh", "-c", 'mariadb-admin --user=root --password="$MARIADB_ROOT_PASSWORD" --host=127.0.0.1 ping']},
}


def manifests(name, idle):
    """The database, the program in front of it, and pods that do nothing."""
    database = DATABASES[name]
    container = {
        "name": "database", "image": database["image"], "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "MARIADB_ROOT_PASSWORD", "value": "chaos"}],
        "readinessProbe": {"exec": {"command": database["probe"]}, "periodSeconds": 1, "timeoutSeconds": 5},
        "volumeMounts": [{"name": "data", "mountPath": database["folder"]}]}
    if database["command"]:
        container["command"] = database["command"]
    workload = lambda kind, name, replicas, container, **more: {
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, **more,
                 "template": {"metadata": {"labels": {"app": name}},
                              "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]}}}}
    service = lambda name, port: {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                                  "spec": {"selector": {"app": name}, "ports": [{"port": port}]}}
    claim = {"metadata": {"name": "data"},
             "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    stateful = workload("StatefulSet", "database", 1, container, serviceName="database", volumeClaimTemplates=[claim])
    if name == "redis":
        # The image's user may not write to a new volume.
        stateful["spec"]["template"]["spec"]["securityContext"] = {"runAsUser": 0}
    program = {"name": "program", "image": "python:latest", "imagePullPolicy": "IfNotPresent",
               "command": ["python3", "-c", PROGRAM],
               "env": [{"name": "DATABASE", "value": name}, {"name": "PASSWORD", "value": "chaos"}],
               "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1, "timeoutSeconds": 5}}
    sleeper = {"name": "idle", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}
    return [service("database", database["port"]), stateful, service("program", 8000),
            workload("Deployment", "program", 2, program), workload("Deployment", "idle", idle, sleeper)]


class Clients:
    """Write rows of their own and read ones that were acknowledged, until told to stop. What was acknowledged is kept here."""

    def __init__(self, address, count, seed):
        self.address, self.stop = address, threading.Event()
        self.lock, self.acknowledged, self.lost, self.numbers = threading.Lock(), [], [], collections.Counter()
        self.last, self.gap = time.monotonic(), 0.0
        self.threads = [threading.Thread(target=self.work, args=(n, random.Random(f"{seed}/{n}"))) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def ask(self, method, row, timeout=10):
        connection = http.client.HTTPConnection(self.address, 8000, timeout=timeout)
        try:
            connection.request(method, f"/{row}")
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def work(self, number, chance):
        row = 0
        while not self.stop.is_set():
            name = f"row-{number}-{row}"
            status = self.ask("PUT", name)
            with self.lock:
                self.numbers["writes" if status == 200 else "failed writes"] += 1
                if status == 200:
                    self.acknowledged.append(name)
                    self.gap, self.last = max(self.gap, time.monotonic() - self.last), time.monotonic()
                known = chance.choice(self.acknowledged) if self.acknowledged else None
            if status == 200:
                row += 1
            else:
                self.stop.wait(0.2)
            if known:
                status = self.ask("GET", known)
                with self.lock:
                    self.numbers["reads" if status == 200 else "failed reads"] += 1
                    if status == 404:
                        self.lost.append(known)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def missing(self):
        """Acknowledged rows that are not there, with patience for those who answer."""
        missing, deadline = [], time.monotonic() + 120
        for row in self.acknowledged:
            while (status := self.ask("GET", row)) not in (200, 404):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"reading {row}: {status}")
                time.sleep(0.2)
            if status == 404:
                missing.append(row)
        return missing


def wait(what, limit, check):
    """Until the check gives no complaint any more."""
    deadline = time.monotonic() + limit
    while complaint := check():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: {complaint}")
        time.sleep(0.5)


class Chaos:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.cloud = single.Cloud(os.path.abspath(options.binary), folder)
        self.data = f"{folder}/data"
        self.kills, self.chance = collections.Counter(), random.Random(options.seed)
        self.starts = []

    def get(self, *what):
        return json.loads(self.cloud.inside(["kubectl", "get", *what, "-o", "json"]))["items"]

    def begin(self):
        self.cloud.dhow("up")
        for image in ("busybox", "python", self.options.database):
            self.cloud.dhow("image", "import", os.path.abspath(f"{self.options.images}/{image}.tar"))
        path = f"{self.folder}/all.json"
        objects = {"apiVersion": "v1", "kind": "List", "items": manifests(self.options.database, self.options.idle)}
        pathlib.Path(path).write_text(json.dumps(objects))
        self.cloud.inside(["kubectl", "apply", "-f", path])
        wait("the pods at the beginning", 240, self.not_ready)
        [service] = [one for one in self.get("services") if one["metadata"]["name"] == "program"]
        return service["spec"]["clusterIP"]

    def not_ready(self):
        try:
            pods = self.get("pods")
        except subprocess.CalledProcessError as error:
            return error.stderr
        ready = lambda pod: any(one["type"] == "Ready" and one["status"] == "True"
                                for one in pod.get("status", {}).get("conditions", []))
        missing = [pod["metadata"]["name"] for pod in pods if not ready(pod) or "deletionTimestamp" in pod["metadata"]]
        if missing:
            return f"not ready: {', '.join(missing)}"
        wanted = 3 + self.options.idle
        return None if len(pods) == wanted else f"{len(pods)} pods in the place of {wanted}"

    def kill_one(self):
        """One kind first, so that the many shims are not all that ever dies."""
        found = {kind: pids for kind, pids in single.processes(self.data).items() if pids}
        if not found:
            return
        kind = self.chance.choice(sorted(found))
        pid = self.chance.choice(sorted(found[kind]))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.kills[kind] += 1
        if kind == "daemon":
            # Now and then it stays away for a while.
            time.sleep(self.chance.choice([0, 0, 0.5, 3]))
            begun = time.monotonic()
            self.cloud.dhow("up")
            self.starts.append(time.monotonic() - begun)

    def rage(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.kill_one()
            time.sleep(self.chance.uniform(0.3, self.options.pause))

    def settled(self):
        """All is green, and nothing is there that should not be."""
        # Containers that failed often are waited for: a back-off grows to five minutes.
        wait("the pods at the end", self.options.patience, self.not_ready)
        doctor = lambda: None if not (found := self.doctor()) else found
        wait("dhow doctor", 60, doctor)
        wait("leaks", 60, self.leaks)

    def doctor(self):
        try:
            self.cloud.dhow("doctor")
        except subprocess.CalledProcessError as error:
            return error.stdout

    def leaks(self):
        uids = {pod["metadata"]["uid"] for pod in self.get("pods")}
        groups = self.pod_groups()
        strangers = {uid for uid in groups if uid not in uids}
        shims = len(single.processes(self.data)["shims"])
        links = [link["ifname"] for link in json.loads(self.cloud.inside(["ip", "-j", "link"]))]
        of_pods = [name for name in links if name not in ("lo", "host0", "host1", "dhow0")]
        if strangers:
            return f"control groups of pods that are gone: {sorted(strangers)}"
        spare = self.options.slots
        if not len(uids) <= shims <= len(uids) + spare:
            return f"{shims} shims for {len(uids)} pods and at most {spare} that wait"
        if not len(uids) <= len(of_pods) <= len(uids) + spare:
            return f"{len(of_pods)} links for {len(uids)} pods and at most {spare} that wait: {of_pods}"
        return None

    def pod_groups(self):
        """Uids of pods that have a control group, in any hierarchy."""
        found = set()
        value = 0x811c9dc5
        for byte in self.data.encode():
            value = ((value ^ byte) * 0x01000193) & 0xffffffff
        root, name = pathlib.Path("/sys/fs/cgroup"), f"dhow-{value:08x}"
        for top in [*root.glob(name), *root.glob(f"*/{name}")]:
            for group in top.glob("**/"):
                name = group.name.removeprefix("pod").replace("_", "-")
                if group.name.startswith("pod") and len(name) == 36:
                    found.add(name)
        return found

    def empty(self):
        self.cloud.inside(["kubectl", "delete", "deployment,statefulset", "--all", "--timeout=120s"])
        wait("the pods to go", 120, lambda: ", ".join(pod["metadata"]["name"] for pod in self.get("pods")))
        wait("what pods leave", 60, self.leaks)

    def purge(self):
        """All goes, and the machine is as it was."""
        self.cloud.dhow("down", "--purge")
        left = self.cloud.inside(["nft", "list", "ruleset"]).strip()
        links = self.cloud.inside(["ip", "-br", "link"]).splitlines()
        mounts = [line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if self.folder in line]
        processes = {kind: pids for kind, pids in single.processes(self.data).items() if pids}
        if left or len(links) != 3 or mounts or processes or self.pod_groups():
            raise RuntimeError(f"left behind: {left} {links} {mounts} {processes} {self.pod_groups()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--images", default="target/images", help="folder of the images")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--database", choices=sorted(DATABASES), default="mariadb")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--idle", type=int, default=6, help="pods that do nothing")
    parser.add_argument("--slots", type=int, default=2, help="sandboxes that wait for pods (node.podSlots)")
    parser.add_argument("--pause", type=float, default=4, help="seconds between two kills, at most")
    parser.add_argument("--patience", type=float, default=420, help="seconds to become green in the end")
    parser.add_argument("--seed", type=int, default=None, help="who is killed, and when [default: another each time]")
    options = parser.parse_args()
    options.seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-chaos") as folder:
        chaos = Chaos(options, folder)
        failure = None
        try:
            address = chaos.begin()
            single.enter(chaos.cloud.netns)
            clients = Clients(address, options.clients, options.seed)
            try:
                chaos.rage(options.minutes * 60)
                chaos.settled()
                # Some writes after the storm.
                before = len(clients.acknowledged)
                wait("writes at the end", 60, lambda: None if len(clients.acknowledged) > before else "none")
            finally:
                clients.end()
            missing = clients.missing()
            print("| What | Number |\n|---|---|")
            for what, number in [*sorted(chaos.kills.items()), *sorted(clients.numbers.items())]:
                print(f"| {what + ' killed' if what in chaos.kills else what} | {number} |")
            print(f"| longest time without an acknowledged write | {clients.gap:.1f} s |")
            if chaos.starts:
                print(f"| `dhow up` after a kill, longest | {max(chaos.starts):.2f} s |")
            print(f"| acknowledged rows lost | {len(missing)} |", flush=True)
            if missing or clients.lost:
                raise RuntimeError(f"lost: {missing[:10]}, gone when read: {clients.lost[:10]}")
            chaos.empty()
            chaos.purge()
        except (RuntimeError, subprocess.CalledProcessError) as error:
            failure = error
            output = getattr(error, "stderr", "") or ""
            print(f"FAILED: {error} {output}", flush=True)
            log = pathlib.Path(f"{folder}/data/dhow.log")
            if log.exists():
                print("\n".join(log.read_text(errors="replace").splitlines()[-80:]))
            for what in ("pods", "events"):
                shown = subprocess.run(["nsenter", f"--net=/run/netns/{chaos.cloud.netns}", "--", "kubectl", "get", what, "-A",
                                        "-o", "wide"], env=chaos.cloud.env, capture_output=True, text=True)
                print("\n".join(shown.stdout.splitlines()[-60:]))
        finally:
            chaos.cloud.end()
        sys.exit(1 if failure else 0)


if __name__ == "__main__":
    main()
