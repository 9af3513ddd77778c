#!/usr/bin/env python3
"""create, start and exit of a static binary from one bundle, through `dhow oci`, runc and crun. (For `ctr`, see slice.py.)

Usage, as root: bench/bundle.py [--binary target/release/dhow] [--rounds 30]
Prints a Markdown table. The runtimes take turns within each round, so that all see the same machine. Each round runs
`create`, `start`, waits for the program's end by a pidfd, and runs `delete`; the columns are what a caller waits for.
crun refuses machines with both kinds of control groups, so each of its calls sees one kind only (in a mount namespace of
its own); the cost of that is measured by itself and taken off.
"""

import argparse
import json
import os
import pathlib
import select
import shutil
import statistics
import subprocess
import tempfile
import time

ALONE = ["unshare", "-m", "sh", "-c",
         "if grep -q ' /sys/fs/cgroup/unified ' /proc/mounts; then umount /sys/fs/cgroup/unified; fi; exec \"$@\"", "sh"]


def bundle(folder):
    root = folder / "rootfs"
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/true")
    mount = lambda kind, target, *options: {"destination": target, "type": kind, "source": kind, "options": list(options)}
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
                    "noNewPrivileges": True},
        "root": {"path": "rootfs"},
        "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev", "nosuid", "mode=755", "size=65536k"),
                   mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
                   mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro")],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
                  "resources": {"memory": {"limit": 64 << 20}, "devices": [{"allow": False, "access": "rwm"}]},
                  "maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]},
    }


def measure(command, folder, config, name):
    config["linux"]["cgroupsPath"] = f"/{name}"
    (folder / "config.json").write_text(json.dumps(config))
    pid_file = folder / "pid"
    times = {}

    def call(verb, *args):
        begin = time.perf_counter()
        subprocess.run([*command, verb, *args, name], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        times[verb] = (time.perf_counter() - begin) * 1000

    begin = time.perf_counter()
    call("create", "--bundle", str(folder), "--pid-file", str(pid_file))
    pidfd = os.pidfd_open(int(pid_file.read_text()))
    call("start")
    select.select([pidfd], [], [])
    os.close(pidfd)
    times["to its end"] = (time.perf_counter() - begin) * 1000
    call("delete", "--force")
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = bundle(folder)
        root = lambda runtime: ["--root", str(folder / f"state-{runtime}")]
        commands = {"dhow oci": [args.binary, "oci", *root("dhow")]}
        if shutil.which("runc"):
            commands["runc"] = ["runc", *root("runc")]
        if shutil.which("crun"):
            commands["crun"] = [*ALONE, "crun", *root("crun")]
        results = {runtime: [] for runtime in commands}
        wrapper = []
        for turn in range(args.rounds):
            for runtime, command in commands.items():
                results[runtime].append(measure(command, folder, config, f"dhow-bench-{os.getpid()}-{turn}"))
            begin = time.perf_counter()
            subprocess.run([*ALONE, "true"], check=True)
            wrapper.append((time.perf_counter() - begin) * 1000)
        columns = ["create", "start", "to its end", "delete"]
        off = statistics.median(wrapper)
        print(f"load {os.getloadavg()[0]:.1f}, {args.rounds} rounds; ms, median (p95)\n")
        print("| runtime | " + " | ".join(columns) + " | to its end, ratio |")
        print("|---" * (len(columns) + 2) + "|")
        ours = statistics.median(times["to its end"] for times in results["dhow oci"])
        for runtime, all_times in results.items():
            cells = []
            for column in columns:
                calls = {"create": 1, "start": 1, "to its end": 2, "delete": 1}[column]
                less = off * calls if runtime == "crun" else 0
                values = sorted(times[column] - less for times in all_times)
                cells.append(f"{statistics.median(values):.1f} ({values[int(len(values) * 0.95) - 1]:.1f})")
                if column == "to its end":
                    ratio = statistics.median(values) / ours
            print(f"| {runtime} | " + " | ".join(cells) + f" | {ratio:.1f} |")


if __name__ == "__main__":
    main()
