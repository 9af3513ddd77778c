#!/bin/sh
# Measures the API server over HTTPS and prints the figures for docs/benchmarks.md, section API.
# The embedded store lies in TMPDIR: point it at the disk that matters.
set -eu
cd "$(dirname "$0")/.."
printf '%s, %s cores, Linux %s\n' "$(uname -m)" "$(nproc)" "$(uname -r)"
printf 'data on %s\n\n' "$(findmnt -n -o FSTYPE -T "${TMPDIR:-/tmp}")"
# With the argument `admission` or `memory`, only what admission costs a write, or what a pod costs in memory.
exec cargo bench --quiet -p dhow-apiserver --bench api -- "$@"
