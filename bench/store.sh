#!/bin/sh
# Measures the stores side by side with etcd and prints the figures for docs/benchmarks.md, section Store.
# The stores lie in TMPDIR: point it at the disk that matters. Needs etcd (package etcd-server).
set -eu
cd "$(dirname "$0")/.."
printf '%s, %s cores, Linux %s\n' "$(uname -m)" "$(nproc)" "$(uname -r)"
etcd --version | head -n 1
printf 'data on %s\n\n' "$(findmnt -n -o FSTYPE -T "${TMPDIR:-/tmp}")"
exec cargo bench --quiet -p dhow-store --bench store
