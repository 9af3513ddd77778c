#!/bin/sh
# Measures the service proxy at 10, 1,000 and 10,000 services, and prints the tables for docs/benchmarks.md, section
# Service proxy. Needs root, and strace for the bytes.
set -eu
cd "$(dirname "$0")/.."
printf '%s, %s cores, Linux %s\n\n' "$(uname -m)" "$(nproc)" "$(uname -r)"
bench=$(cargo bench --quiet --no-run --message-format=json -p dhow-net --bench services |
    sed -n 's/.*"executable":"\([^"]*services[^"]*\)".*/\1/p')
"$bench"
printf '\n| services | bytes sent to the kernel for one change |\n|---|---|\n'
for count in 10 1000 10000; do
    bytes=$(strace -f -s 16 -e trace=sendto,sendmsg,write -o /dev/stdout "$bench" "$count" |
        awk '/write\(1, "one change/ { inside = !inside } inside && /send(to|msg)\(/ && $NF > 0 { sum += $NF } END { print sum }')
    printf '| %s | %s |\n' "$count" "$bytes"
done
