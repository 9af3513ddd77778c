#!/bin/sh
# Pods per second of the scheduler end to end, through the API of a server of its own, in the shapes of Kubernetes'
# scheduler_perf. A fresh server for each shape. DHOW: the binary. NODES, PODS and SHAPES may be given.
set -eu
dhow=${DHOW:-target/release/dhow}
nodes=${NODES:-5000}
pods=${PODS:-10000}
shapes=${SHAPES:-"basic node-affinity affinity anti-affinity spread preferred-spread preemption churn daemonset unschedulable volumes"}
folder=$(mktemp -d)
server=
stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}
trap 'stop; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
port=${PORT:-16499}
for shape in $shapes; do
    rm -rf "$folder/data" "$folder/run"
    "$dhow" server --node-ip 127.0.0.1 --node-name bench --api-port "$port" \
        --data-dir "$folder/data" --run-dir "$folder/run" >"$folder/log" 2>&1 &
    server=$!
    tries=0
    until NO_PROXY='*' KUBECONFIG=$folder/data/admin.kubeconfig kubectl get --raw /readyz >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ] || ! kill -0 "$server" 2>/dev/null; then
            cat "$folder/log" >&2
            exit 1
        fi
        sleep 0.1
    done
    # As upstream's: no more pods than nodes where each needs one of its own, and some hundreds that others make room for.
    count=$pods
    case $shape in
    anti-affinity | daemonset | volumes) [ "$count" -le "$nodes" ] || count=$nodes ;;
    preemption) [ "$count" -le 1000 ] || count=1000 ;;
    esac
    echo "== $shape: $nodes nodes, $count pods"
    # Upstream's nodes have 4 CPUs and 32 GiB, its pods ask for 100m and 500Mi.
    NO_PROXY='*' "$dhow" sim --kubeconfig "$folder/data/admin.kubeconfig" --nodes "$nodes" --pods "$count" --shape "$shape" \
        --node-cpu 4 --node-memory 32Gi --pod-cpu 100m --pod-memory 500Mi --zones 10 --keep ${OUTPUT:+-o "$OUTPUT"}
    stop
done
