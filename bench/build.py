#!/usr/bin/env python3
"""Builds beside buildah and Docker (its BuildKit): first (of a folder that nobody saw before), cold (of one that was built from before,
without a cache), incremental (one source file changed), warm (nothing changed).

Usage, as root: bench/build.py [--binary target/release/dhow] [--rounds 5] [--files 2000] [--isolation oci|chroot]
Prints a Markdown table. All build the same Dockerfile over the same base image and take turns within each round; buildah keeps
layers (`--layers`) and uses its overlay driver where the file system allows, else copies (vfs).
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile

import peers
from peers import timed
from slice import Cloud

DOCKERFILE = """
FROM docker.io/dhow/debian-base:latest AS build
WORKDIR /src
COPY vendor/ vendor/
RUN find vendor -type f | xargs cat | sha256sum > /sum
COPY app/ app/
RUN cat app/* /sum > /out
FROM docker.io/dhow/debian-base:latest
RUN mkdir -p /opt/app && echo ready > /opt/app/state
COPY --from=build /out /opt/app/
ENV MODE=production
CMD ["/bin/cat", "/opt/app/out"]
"""


def context(folder, files):
    for place, count, size in (("vendor", files, 8192), ("app", 20, 2048)):
        os.makedirs(f"{folder}/{place}")
        for number in range(count):
            pathlib.Path(f"{folder}/{place}/{number}").write_bytes(os.urandom(size))
    pathlib.Path(f"{folder}/Dockerfile").write_text(DOCKERFILE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--isolation", default="chroot", choices=["oci", "chroot"])
    options = parser.parse_args()
    load, times = os.getloadavg()[0], {}
    archive = os.path.abspath("target/images/debian-base.tar")
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        context(f"{folder}/context", options.files)
        peer = ["buildah", "--root", f"{folder}/bh", "--runroot", f"{folder}/bhrun"]

        def buildah(*args):
            subprocess.run([*peer, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        # The client that came with the daemon: newer ones need a plug-in to reach its BuildKit.
        environment = dict(os.environ, DOCKER_BUILDKIT="1", DOCKER_CONFIG=f"{folder}/docker")

        def docker(*args):
            subprocess.run(["/usr/bin/docker", "--host", f"unix://{folder}/d.sock", *args], check=True, env=environment,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        cloud, daemons = Cloud(os.path.abspath(options.binary), folder), []
        try:
            daemons.append(peers.containerd(folder))
            daemons.append(peers.docker(folder))
            cloud.dhow("up")
            cloud.dhow("image", "import", archive)
            buildah("pull", "--quiet", f"oci-archive:{archive}")
            cloud.dhow("image", "export", "--format", "docker", "--output", f"{folder}/base.tar", "docker.io/dhow/debian-base:latest")
            docker("load", "--input", f"{folder}/base.tar")
            where = f"{folder}/context"
            builders = {
                "dhow": lambda where, *more: cloud.dhow("build", "--quiet", "-t", "bench:1", *more, where),
                "buildah": lambda where, *more: buildah("bud", "--quiet", "--layers", "--isolation", options.isolation,
                                                        "--pull-never", "-t", "bench:1", *more, where),
                "docker": lambda where, *more: docker("build", "--quiet", "-t", "bench:1", *more, where),
            }
            for number in range(options.rounds):
                order = list(builders) if number % 2 == 0 else list(reversed(builders))
                for name in order:
                    build = builders[name]
                    note = times.setdefault(name, {"first": [], "cold": [], "incremental": [], "warm": []})
                    new = f"{folder}/new-{name}-{number}"
                    context(new, options.files)
                    note["first"].append(timed(lambda: build(new)))
                    note["cold"].append(timed(lambda: build(where, "--no-cache")))
                    build(where)
                    pathlib.Path(f"{where}/app/0").write_bytes(os.urandom(2048))
                    note["incremental"].append(timed(lambda: build(where)))
                    note["warm"].append(timed(lambda: build(where)))
        finally:
            cloud.end()
            for daemon in reversed(daemons):
                daemon.end()
            subprocess.run([*peer, "rmi", "--all", "--force"], check=False, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    print(f"load average {load:.1f}, {options.rounds} rounds, {options.files} files of 8 KiB, isolation {options.isolation}\n")
    print("| build | dhow | buildah | ratio | docker | ratio |\n|---|---|---|---|---|---|")
    for kind in ("first", "cold", "incremental", "warm"):
        ours, *theirs = (statistics.median(times[name][kind]) for name in ("dhow", "buildah", "docker"))
        beside = " | ".join(f"{one * 1000:.0f} ms | {one / ours:.1f}x" for one in theirs)
        print(f"| {kind} | {ours * 1000:.0f} ms | {beside} |")


if __name__ == "__main__":
    main()
