"""Peers to measure beside: containerd, Docker and a registry, each with folders of its own. Used by the other scripts."""

import os
import pathlib
import socket
import subprocess
import time


def timed(call):
    """How many seconds `call` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Daemon:
    """A daemon that answers on a socket once it is there; everything it mounted goes with it."""

    def __init__(self, command, folder, address, netns=None):
        self.folder = folder
        inside = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
        with open(f"{folder}/{pathlib.Path(command[0]).name}.log", "ab") as log:
            self.process = subprocess.Popen([*inside, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self.answers(address, netns):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start; see {folder}")
            time.sleep(0.05)

    @staticmethod
    def answers(address, netns):
        if isinstance(address, str):
            with socket.socket(socket.AF_UNIX) as connection:
                return connection.connect_ex(address) == 0
        host, port = address
        probe = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
        return subprocess.run([*probe, "bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}"], stderr=subprocess.DEVNULL).returncode == 0

    def end(self):
        self.process.terminate()
        self.process.wait(60)
        for line in reversed(pathlib.Path("/proc/self/mounts").read_text().splitlines()):
            point = line.split(" ")[1]
            if point.startswith(str(self.folder)):
                subprocess.run(["umount", "-l", point], check=False)


def containerd(folder, netns=None, cri=False):
    """Its socket is `<folder>/c.sock`."""
    disabled = "" if cri else 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
    pathlib.Path(f"{folder}/containerd.toml").write_text(
        f'version = 2\nroot = "{folder}/c-root"\nstate = "{folder}/c-state"\n{disabled}[grpc]\naddress = "{folder}/c.sock"\n')
    return Daemon(["containerd", "--config", f"{folder}/containerd.toml"], folder, f"{folder}/c.sock", netns)


def docker(folder, netns=None, bridge=True):
    """Over the containerd in the same folder; its socket is `<folder>/d.sock`."""
    pathlib.Path(f"{folder}/none.json").write_text("{}")
    network = [] if bridge else ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    return Daemon(["dockerd", "--config-file", f"{folder}/none.json", "--containerd", f"{folder}/c.sock", "--data-root",
                   f"{folder}/d-data", "--exec-root", f"{folder}/d-exec", "--pidfile", f"{folder}/d.pid", "--host",
                   f"unix://{folder}/d.sock", *network], folder, f"{folder}/d.sock", netns)


def registry(folder, port, netns=None):
    """docker-registry on loopback, without TLS."""
    pathlib.Path(f"{folder}/registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n")
    return Daemon(["docker-registry", "serve", f"{folder}/registry.yml"], folder, ("127.0.0.1", port), netns)


def ctr(folder, *args, netns=None):
    inside = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns else []
    return subprocess.run([*inside, "ctr", "--address", f"{folder}/c.sock", *args], check=True, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env=dict(os.environ, NO_PROXY="*")).stdout
