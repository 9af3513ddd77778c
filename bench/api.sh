#!/bin/sh
# Measures the API server over HTTPS and prints the figures for docs/benchmarks.md, section API.
# The embedded store lies in TMPDIR: point it at the disk that matters.
set -eu
cd "$(dirname "$0")/.."
printf '%s, %s cores, Linux %s\n' "$(uname -m)" "$(nproc)" "$(uname -r)"
printf 'data on %s\n\n' "$(findmnt -n -o FSTYPE -T "${TMPDIR:-/tmp}")"
exec cargo bench --quiet -p dhow-apiserver --bench api -- "$@"
