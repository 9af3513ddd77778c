#!/bin/sh
# Starts an etcd cluster of three members with TLS on this machine, to try out several servers on it:
#
#   examples/etcd/three-members.sh DIR      # prints the flags for `dhow server`
#   kill $(cat DIR/*.pid)                   # ends it
#
# For a real cluster run one member per machine, with the machine's address in place of 127.0.0.1 and a certificate that
# names it; everything else is the same. Ports are taken from PORTS: three for clients, three for the members themselves.
# Needs etcd (package etcd-server), openssl and curl.
set -eu
dir=${1:?name a folder for data and certificates}
set -- ${PORTS:-2379 2381 2383 2380 2382 2384}
umask 077
mkdir -p "$dir"
cd "$dir"

new_key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
if [ ! -f ca.pem ]; then
    openssl req -x509 $new_key -days 3650 -subj /CN=etcd-ca -keyout ca.key -out ca.pem 2>/dev/null
fi
issue() { # name
    [ -f "$1.pem" ] && return
    printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' >"$1.ext"
    openssl req -new $new_key -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}
for name in m1 m2 m3 dhow; do issue $name; done

start() { # name, client port, member port
    etcd --name "$1" --data-dir "$1.data" \
        --listen-client-urls "https://127.0.0.1:$2" --advertise-client-urls "https://127.0.0.1:$2" \
        --listen-peer-urls "https://127.0.0.1:$3" --initial-advertise-peer-urls "https://127.0.0.1:$3" \
        --initial-cluster "$members" --initial-cluster-state new \
        --cert-file "$1.pem" --key-file "$1.key" --trusted-ca-file ca.pem --client-cert-auth \
        --peer-cert-file "$1.pem" --peer-key-file "$1.key" --peer-trusted-ca-file ca.pem --peer-client-cert-auth \
        --logger zap --log-level error >>"$1.log" 2>&1 </dev/null &
    echo $! >"$1.pid"
}
members="m1=https://127.0.0.1:$4,m2=https://127.0.0.1:$5,m3=https://127.0.0.1:$6"
start m1 "$1" "$4"
start m2 "$2" "$5"
start m3 "$3" "$6"

for port in "$1" "$2" "$3"; do
    # Each answers once a leader is elected.
    curl --silent --fail --output /dev/null --noproxy '*' --retry 60 --retry-delay 1 --retry-all-errors --max-time 60 \
        --cacert ca.pem --cert dhow.pem --key dhow.key "https://127.0.0.1:$port/health" || {
        echo "the member on port $port does not answer; see the logs in $dir" >&2
        exit 1
    }
done
dir=$(pwd)
echo "--store etcd://127.0.0.1:$1,127.0.0.1:$2,127.0.0.1:$3 --store-ca $dir/ca.pem --store-cert $dir/dhow.pem --store-key $dir/dhow.key"
