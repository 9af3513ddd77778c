#!/usr/bin/env python3
"""Pull and unpack of images from a registry on the same machine: `dhow image pull` beside containerd.

Usage, as root: bench/images.py [--binary target/release/dhow] [--images nginx,mariadb] [--rounds 5]
Prints a Markdown table. Each image is pulled with layers packed by gzip, as most are, and by zstd. Both pull into an empty
store, unpacking included, and take turns within each round; the page cache is warm, so it is work that is measured, not the disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile

import peers
from peers import timed
from slice import Cloud

PORT = 5000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/dhow")
    parser.add_argument("--images", default="nginx,mariadb", help="names of archives in target/images")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    begun, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="dhow-bench") as folder:
        cloud, daemons = Cloud(os.path.abspath(options.binary), folder), []
        try:
            daemons.append(peers.registry(folder, PORT, cloud.netns))
            daemons.append(peers.containerd(folder, cloud.netns))
            cloud.dhow("up")
            for name in options.images.split(","):
                for packing in ("gzip", "zstd"):
                    image = f"127.0.0.1:{PORT}/{name}:{packing}"
                    cloud.inside(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-compress-format", packing,
                                  f"oci-archive:target/images/{name}.tar", f"docker://{image}"])
                    manifest = json.loads(cloud.inside(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}"]))
                    size = sum(layer["size"] for layer in manifest["layers"]) / (1 << 20)
                    times = {"dhow": [], "containerd": []}
                    for _ in range(options.rounds):
                        times["dhow"].append(timed(lambda: cloud.dhow("image", "pull", image)))
                        cloud.dhow("image", "remove", image)
                        cloud.dhow("image", "prune")
                        times["containerd"].append(timed(
                            lambda: peers.ctr(folder, "images", "pull", "--plain-http", image, netns=cloud.netns)))
                        peers.ctr(folder, "images", "remove", "--sync", image, netns=cloud.netns)
                    ours, theirs = (statistics.median(times[who]) for who in ("dhow", "containerd"))
                    rows.append(f"| {name}, {len(manifest['layers'])} layers, {packing} | {size:.1f} | {ours:.2f} s "
                                f"({size / ours:.0f} MiB/s) | {theirs:.2f} s ({size / theirs:.0f} MiB/s) | {theirs / ours:.1f} |")
        finally:
            cloud.end()
            for daemon in reversed(daemons):
                daemon.end()
    print(f"Load average {begun:.1f} at the beginning, {os.getloadavg()[0]:.1f} at the end; median of {options.rounds} rounds.\n")
    print("| image | MiB packed | dhow | containerd | ratio |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
