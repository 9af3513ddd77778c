"""A registry that serves one image in several ways, most of them wrong: `registry.py ADDRESS PORT`."""

import gzip, hashlib, io, json, platform, shutil, sys, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(kind, data):
    return {"mediaType": kind, "digest": digest(data), "size": len(data)}


def tar(marker):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(shutil.which("busybox"), "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
        note = tarfile.TarInfo("marker")
        note.size = len(marker)
        archive.addfile(note, io.BytesIO(marker.encode()))
    return out.getvalue()


BLOBS, MANIFESTS, TROUBLE = {}, {}, {}


def image(tag, trouble=None, layer_kind=LAYER, cut=None):
    """`cut`: the layer is packed only so far, and everything else is right about it."""
    plain = tar(tag)
    packed = gzip.compress(plain, 1)[:cut]
    config = json.dumps({
        "architecture": ARCHITECTURES[platform.machine()], "os": "linux",
        "config": {"Cmd": ["/no/such/program"] if tag == "binary" else ["/bin/sh", "-c", "sleep 1000"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
        "layers": [descriptor(layer_kind, packed)],
    }).encode()
    BLOBS[digest(config)], BLOBS[digest(packed)], MANIFESTS[tag] = config, packed, manifest
    TROUBLE[digest(packed)] = trouble


image("good")
image("hangs", "hang")
image("breaks", "break")
image("wrong", "flip")
image("short", cut=100_000)
image("media", layer_kind="application/vnd.example.layer.v1.squashfs")
image("binary")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind, name = self.path.split("?")[0].split("/")[-2:]
        if kind == "manifests" and name in MANIFESTS:
            return self.answer(MANIFESTS[name], MANIFEST)
        if kind == "blobs" and name in BLOBS:
            return self.blob(BLOBS[name], TROUBLE.get(name))
        if self.path.rstrip("/") == "/v2":
            return self.answer(b"{}", "application/json")
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        self.answer(json.dumps(error).encode(), "application/json", 404)

    do_HEAD = do_GET

    def blob(self, data, trouble):
        if trouble == "flip":
            data = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        if trouble not in ("hang", "break"):
            return self.answer(data, "application/octet-stream")
        # Never further than its first bytes, wherever one asks it to go on.
        wanted = self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-")
        start = int(wanted)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if start < 20000:
            self.wfile.write(data[start:20000])
            self.wfile.flush()
        self.close_connection = True
        if trouble == "hang":
            threading.Event().wait()

    def answer(self, data, kind, status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
server.daemon_threads = True
server.serve_forever()
