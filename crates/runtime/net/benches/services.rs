//! What one endpoint's change costs, and what connecting to a service costs, by the number of services.
//!
//! `bench/services.sh` prints the table of `docs/benchmarks.md`. Each size has a node of its own in a network
//! namespace: pods on its bridge, the proxy on its tables. With a number as the argument, one change among so many
//! services is made between two marks on standard output, for a tracer to count the bytes sent to the kernel.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_client::Key;
use dhow_net::proxy::Proxy;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use support::{Node, Pod, privileged, service, slice};

const SIZES: [u16; 3] = [10, 1_000, 10_000];
const CHANGES: usize = 200;
const CONNECTS: usize = 3_000;
const MARK: &str = "one change";

fn address(net: u8, index: u16) -> Ipv4Addr {
    let [high, low] = index.to_be_bytes();
    Ipv4Addr::new(10, net, high, low)
}

struct Cluster {
    node: Node,
    client: Pod,
    backends: [Pod; 2],
    proxy: Proxy,
    all_at_once: Duration,
    changes: usize,
}

impl Cluster {
    /// Services `s1` to `s<count>`; the middle one leads to the pods, the others to three addresses each.
    async fn new(count: u16) -> Self {
        let node = Node::new().await;
        let (client, one, two) = (node.pod().await, node.pod().await, node.pod().await);
        one.serve(8080, "one");
        two.serve(8080, "two");
        let services: Vec<Arc<Service>> = (1..=count).map(named).collect();
        let slices: Vec<Arc<EndpointSlice>> = (1..=count)
            .map(|i| {
                slice(&format!("s{i}"), 8080, "TCP", &[1, 2, 3].map(|n| address(44, i.wrapping_mul(3) + n).into()))
            })
            .collect();
        let mut proxy = Proxy::open(node.net.clone(), "node");
        let start = Instant::now();
        proxy.sync(&services, &slices).await.unwrap();
        let all_at_once = start.elapsed();
        let mut cluster = Self { node, client, backends: [one, two], proxy, all_at_once, changes: 0 };
        cluster.change(count).await;
        cluster
    }

    /// Gives the middle service one pod more or less; returns how long it took.
    async fn change(&mut self, count: u16) -> Duration {
        self.changes += 1;
        let endpoints: Vec<IpAddr> = self.backends.iter().take(1 + self.changes % 2).map(|pod| pod.ip).collect();
        let middle = named(count / 2);
        let slices = vec![slice(&format!("s{}", count / 2), 8080, "TCP", &endpoints)];
        let changed = BTreeMap::from([(Key::of(&middle.metadata), Some((middle, slices)))]);
        let start = Instant::now();
        assert!(self.proxy.update(changed).await.unwrap() > 0);
        start.elapsed()
    }

    /// Times of connect() from a pod.
    fn connects(&self, to: (impl Into<IpAddr> + Copy, u16)) -> Vec<Duration> {
        let to = SocketAddr::new(to.0.into(), to.1);
        self.client.netns.run(move || {
            let connect = || {
                let start = Instant::now();
                let stream = TcpStream::connect(to).unwrap();
                let took = start.elapsed();
                // Nobody waits for the greeting: the reset frees the port at once.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                took
            };
            (0..CONNECTS).map(|_| connect()).collect()
        })
    }
}

fn named(index: u16) -> Arc<Service> {
    service(&format!("s{index}"), json!({"clusterIP": address(43, index), "ports": [{"port": 80}]}))
}

fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort();
    let last = times.len() - 1;
    times[(last as f64 * q) as usize].as_secs_f64() * 1e6
}

async fn measure(count: u16) {
    let mut cluster = Cluster::new(count).await;
    let mut changes = Vec::new();
    for _ in 0..CHANGES {
        changes.push(cluster.change(count).await);
    }
    let mut direct = cluster.connects((cluster.backends[0].ip, 8080));
    let mut by_service = cluster.connects((address(43, count / 2), 80));
    println!(
        "| {count} | {:.0} ms | {:.2} ms | {:.2} ms | {:.1} µs | {:.1} µs | {:.1} µs |",
        cluster.all_at_once.as_secs_f64() * 1e3,
        quantile(&mut changes, 0.5) / 1e3,
        quantile(&mut changes, 0.99) / 1e3,
        quantile(&mut direct, 0.5),
        quantile(&mut by_service, 0.5),
        quantile(&mut by_service, 0.99),
    );
    drop(cluster.node);
}

fn mark() {
    std::io::stdout().write_all(format!("{MARK}\n").as_bytes()).unwrap();
}

fn main() {
    if !privileged() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let traced = std::env::args().skip(1).find_map(|argument| argument.parse::<u16>().ok());
    runtime.block_on(async {
        if let Some(count) = traced {
            let mut cluster = Cluster::new(count).await;
            mark();
            cluster.change(count).await;
            mark();
            return;
        }
        println!(
            "| services | all at once | one change, p50 | p99 | connect() to the pod, p50 | to the service, p50 | p99 |"
        );
        println!("|---|---|---|---|---|---|---|");
        for count in SIZES {
            measure(count).await;
        }
    });
}
