#!/bin/sh
# Counts what a cluster of 1,000 idle pods asks of its store in a minute, and prints the table for docs/benchmarks.md,
# section Idle.
set -eu
cd "$(dirname "$0")/.."
printf '%s, %s cores, Linux %s\n\n' "$(uname -m)" "$(nproc)" "$(uname -r)"
exec cargo bench --quiet -p dhow-controllers --bench idle
