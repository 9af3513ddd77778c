//! What the host's own rules say of published ports, and how fast pods may be.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dhow_cri::PodNetwork;
use dhow_cri::runtime::PortMapping;
use dhow_net::proxy::Proxy;
use serde_json::json;
use support::{Netns, Node, connect_outside, greeting, privileged, request, service, slice};

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// A firewall as people write it: nothing is forwarded but what is on the list, by the port that was asked for.
const RULES: &str = "
table inet firewall {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname \"dhow0\" accept
        meta l4proto { tcp, udp } ct original proto-dst { 8080, 30080 } accept
    }
}";

#[tokio::test]
async fn published_ports_obey_the_hosts_firewall() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    let mapping = |host_port| PortMapping { protocol: "TCP".to_owned(), container_port: 80, host_port, host_ip: None };
    let pod = node.pod_with_ports(vec![mapping(8080), mapping(8081)]).await;
    pod.serve(80, "pod");
    let ports = json!([{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]);
    let web = service("web", json!({"type": "NodePort", "clusterIP": "10.43.0.80", "ports": ports}));
    let mut endpoints = (*slice("web", 80, "TCP", &[pod.ip])).clone();
    endpoints.ports =
        Some(serde_json::from_value(json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])).unwrap());
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&[web], &[std::sync::Arc::new(endpoints)]).await.unwrap();
    let reached = |port: u16| {
        outside.run(move || {
            let connected = TcpStream::connect_timeout(&(NODE, port).into(), Duration::from_millis(300));
            connected.is_ok()
        })
    };
    assert!([8080, 8081, 30080, 30081].iter().all(|port| reached(*port)), "nothing forbids them");
    node.netns.run(|| {
        let mut nft = std::process::Command::new("nft");
        let mut child = nft.args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    });
    assert!(reached(8080) && reached(30080), "the firewall lets them pass");
    assert!(!reached(8081) && !reached(30081), "the firewall drops them");
    assert_eq!(greeting(&node.netns, (pod.ip, 80)).unwrap().0, "pod");
}

/// Bytes a second from one namespace to an address in another, over some hundred milliseconds.
fn speed(from: &Netns, server: &Netns, to: IpAddr) -> f64 {
    let listener = server.run(move || TcpListener::bind((to, 5001)).unwrap());
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut total) = (vec![0; 65_536], 0);
        // What the bucket holds at first is not the rate.
        let mut begun = None;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            total += count;
            if begun.is_none() && total > 300_000 {
                begun = Some((Instant::now(), total));
            }
        }
        let (begun, before) = begun.unwrap();
        (total - before) as f64 / begun.elapsed().as_secs_f64()
    });
    from.run(move || {
        let mut stream = TcpStream::connect((to, 5001)).unwrap();
        let chunk = vec![0; 16_384];
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(1500) {
            stream.write_all(&chunk).unwrap();
        }
    });
    receiving.join().unwrap()
}

#[tokio::test]
async fn pods_are_held_to_their_bandwidth() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (free, limited) = (node.pod().await, Netns::new());
    let mut wanted = request("limited", vec![]);
    wanted.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "16M".into());
    wanted.annotations.insert("kubernetes.io/egress-bandwidth".into(), "8M".into());
    let ip = node.net.attach(limited.fd(), &wanted).await.unwrap()[0];
    let (to_it, from_it) = (speed(&free.netns, &limited, ip), speed(&limited, &free.netns, free.ip));
    // Two and one million bytes a second, less the headers; a busy machine may be late, never early.
    assert!((1_000_000.0..2_300_000.0).contains(&to_it), "{to_it} bytes/s to the pod");
    assert!((500_000.0..1_200_000.0).contains(&from_it), "{from_it} bytes/s from the pod");
    wanted.sandbox_id = "nonsense".to_owned();
    wanted.annotations.insert("kubernetes.io/egress-bandwidth".into(), "fast".into());
    let error = node.net.attach(Netns::new().fd(), &wanted).await.unwrap_err();
    assert!(error.to_string().contains("egress-bandwidth"), "{error}");
}
