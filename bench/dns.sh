#!/bin/sh
# Measures the name server beside Knot and Unbound, each pinned to one core with dnsperf on another, turns interleaved,
# and prints the table for docs/benchmarks.md, section DNS. Needs root, and the Debian packages dnsperf, knot, unbound.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3}
seconds=${2:-5}
services=1000
folder=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
bench=${DHOW_DNS_BENCH:-$(cargo bench --quiet --no-run --message-format=json -p dhow-dns --bench serve |
    sed -n 's/.*"executable":"\([^"]*serve[^"]*\)".*/\1/p')}

# The same names for all three: $services services; one question in eleven is for one that does not exist.
zone=$folder/cluster.local.zone
{
    echo '$ORIGIN cluster.local.'
    echo '$TTL 5'
    echo '@ SOA ns.dns hostmaster 1 7200 1800 86400 5'
    echo '@ NS ns.dns'
    echo 'ns.dns A 10.43.0.10'
    seq 0 $((services - 1)) | while read -r i; do
        echo "service-$i.default.svc A 10.43.$((i / 250)).$((i % 250 + 1))"
    done
} >"$zone"
seq 0 9999 | while read -r i; do
    echo "service-$((i * 7919 % (services + services / 10))).default.svc.cluster.local A"
done >"$folder/questions"
cat >"$folder/knot.conf" <<END
server:
  listen: 127.0.0.1@5302
  rundir: $folder
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: $folder
zone:
  - domain: cluster.local
    file: $zone
END
cat >"$folder/unbound.conf" <<END
server:
  interface: 127.0.0.1@5303
  do-daemonize: no
  chroot: ""
  username: ""
  directory: $folder
  pidfile: $folder/unbound.pid
  use-syslog: no
  num-threads: 1
  do-not-query-localhost: no
auth-zone:
  name: cluster.local
  zonefile: $zone
  for-downstream: yes
  for-upstream: no
remote-control:
  control-enable: no
END
taskset -c 0 "$bench" 127.0.0.1:5301 $services & ours=$!
taskset -c 0 knotd -c "$folder/knot.conf" >/dev/null 2>&1 & knot=$!
taskset -c 0 unbound -d -c "$folder/unbound.conf" >/dev/null 2>&1 & unbound=$!
pids="$ours $knot $unbound"
for port in 5301 5302 5303; do
    until dig +tries=1 +time=1 @127.0.0.1 -p $port service-1.default.svc.cluster.local A +short | grep -q 10.43; do :; done
done

printf '%s, %s cores, Linux %s, load %s\n\n' "$(uname -m)" "$(nproc)" "$(uname -r)" "$(cut -d' ' -f1 /proc/loadavg)"
printf '| round | server | answers/s | mean latency (ms) | CPU per answer (us) | resident (MiB) |\n|---|---|---|---|---|---|\n'
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
for round in $(seq "$rounds"); do
    for server in "Dhow $ours 5301" "Knot $knot 5302" "Unbound $unbound 5303"; do
        set -- $server
        before=$(ticks "$2")
        taskset -c 1 dnsperf -s 127.0.0.1 -p "$3" -d "$folder/questions" -l "$seconds" -c 8 -q 200 >"$folder/out" 2>&1
        spent=$(($(ticks "$2") - before))
        awk -v round="$round" -v name="$1" -v spent="$spent" -v hertz="$(getconf CLK_TCK)" \
            -v resident="$(awk '/VmRSS/ { print $2 / 1024 }' "/proc/$2/status")" '
            /Queries completed:/ { count = $3 }
            /Queries per second:/ { rate = $4 }
            /Average Latency/ { latency = $4 * 1000 }
            END { printf "| %s | %s | %d | %.2f | %.2f | %.1f |\n", round, name, rate, latency, spent / hertz * 1e6 / count, resident }
        ' "$folder/out"
    done
done
