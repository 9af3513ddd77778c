//! Pods on one node, in real network namespaces.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use dhow_cri::PodNetwork;
use dhow_cri::runtime::PortMapping;
use dhow_net::peers::Way;
use support::{Client, Netns, Node, connect_outside, greeting, privileged};

fn mapping(protocol: &str, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: protocol.to_owned(), container_port, host_port, host_ip: None }
}

#[tokio::test]
async fn pods_reach_each_other_with_their_own_addresses() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (a, b) = (node.pod().await, node.pod().await);
    b.serve(8080, "b");
    assert_eq!(greeting(&a.netns, (b.ip, 8080)).unwrap(), ("b".to_owned(), a.ip));
    // The node reaches pods, and pods reach the node.
    assert_eq!(greeting(&node.netns, (b.ip, 8080)).unwrap(), ("b".to_owned(), node.net.bridge_gateway()));
    let addresses = a.netns.command("ip", &["-br", "addr"]);
    assert!(addresses.contains("127.0.0.1/8"), "{addresses}");
}

#[tokio::test]
async fn attach_is_idempotent_and_detach_frees_everything() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let before = node.links();
    let pod = node.pod_with_ports(vec![mapping("TCP", 8088, 80)]).await;
    let again = node.net.attach(pod.netns.fd(), &pod.request).await.unwrap();
    assert_eq!(again, [pod.ip]);
    assert_eq!(node.links().len(), before.len() + 1);
    node.net.detach(&pod.sandbox).await.unwrap();
    node.net.detach(&pod.sandbox).await.unwrap();
    assert_eq!(node.links(), before);
    assert!(!node.ruleset_text().contains("8088"), "{}", node.ruleset_text());
    // A failed attach leaves nothing either: the name eth0 is taken.
    let taken = Netns::new();
    taken.command("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    let request = support::request("taken", vec![mapping("TCP", 8089, 80)]);
    assert!(node.net.attach(taken.fd(), &request).await.is_err());
    assert_eq!(node.links(), before);
    assert!(!node.ruleset_text().contains("8089"));
}

#[tokio::test]
async fn host_ports_lead_to_the_pod_from_everywhere() {
    if !privileged() {
        return;
    }
    let mut node = Node::new().await;
    let client = node.pod().await;
    let pod = node.pod_with_ports(vec![mapping("TCP", 8080, 80), mapping("UDP", 5353, 53)]).await;
    pod.serve(80, "pod");
    pod.serve_udp(53, "dns");
    let gateway = node.net.bridge_gateway();
    assert_eq!(greeting(&client.netns, (gateway, 8080)).unwrap(), ("pod".to_owned(), client.ip));
    assert_eq!(greeting(&node.netns, (gateway, 8080)).unwrap().0, "pod");
    assert_eq!(greeting(&node.netns, (Ipv4Addr::LOCALHOST, 8080)).unwrap().0, "pod");
    assert_eq!(greeting(&pod.netns, (gateway, 8080)).unwrap().0, "pod", "itself through its own host port");
    let answer = client.netns.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(b"?", (gateway, 5353)).unwrap();
        let mut buffer = [0; 16];
        let (count, _) = socket.recv_from(&mut buffer).unwrap();
        buffer[..count].to_vec()
    });
    assert_eq!(answer, b"dns");
    // Another sandbox cannot take it.
    let other = Netns::new();
    let error = node.net.attach(other.fd(), &support::request("other", vec![mapping("TCP", 8080, 1)])).await;
    assert!(error.unwrap_err().to_string().contains("already used"));
    // It survives a restart, and so does the connection through it.
    let mut open = Client::connect(&client.netns, (gateway, 8080)).unwrap();
    open.line().unwrap();
    let before = node.ruleset_text();
    node.reopen().await;
    assert_eq!(open.echo("still here").unwrap(), "still here");
    assert_eq!(node.ruleset_text(), before);
    // What belongs to no live sandbox goes.
    node.net.retain(std::slice::from_ref(&client.sandbox)).await.unwrap();
    assert!(Client::connect(&client.netns, (gateway, 8080)).is_err());
    assert!(!node.ruleset_text().contains("8080"));
}

#[tokio::test]
async fn pods_cannot_reach_the_nodes_loopback() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let pod = node.pod().await;
    let listener = node.netns.run(|| std::net::TcpListener::bind("127.0.0.1:9000").unwrap());
    pod.netns.command("ip", &["link", "set", "lo", "down"]);
    pod.netns.command("ip", &["route", "add", "127.0.0.0/8", "via", "10.42.0.1", "dev", "eth0", "onlink"]);
    pod.netns.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
    let reached = pod
        .netns
        .run(|| std::net::TcpStream::connect_timeout(&"127.0.0.1:9000".parse().unwrap(), Duration::from_millis(300)));
    assert!(reached.is_err());
    drop(listener);
}

#[tokio::test]
async fn egress_is_masqueraded_and_pod_traffic_is_not() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let outside = Netns::new();
    // The world: a machine that knows no route to pods.
    connect_outside(&node.netns, &outside);
    let listener = outside.run(|| std::net::TcpListener::bind("192.0.2.2:80").unwrap());
    let seen = std::thread::spawn(move || listener.accept().unwrap().1.ip());
    let pod = node.pod().await;
    let _client = Client::connect(&pod.netns, (Ipv4Addr::new(192, 0, 2, 2), 80)).unwrap();
    assert_eq!(seen.join().unwrap(), Ipv4Addr::new(192, 0, 2, 1));
}

#[tokio::test]
async fn pods_of_two_nodes_reach_each_other_with_their_own_addresses() {
    if !privileged() {
        return;
    }
    let (left, right) = (Node::new().await, Node::with_pods_in("10.42.1.0/24").await);
    connect_outside(&left.netns, &right.netns);
    let to = |cidr: &str, gateway: Ipv4Addr| {
        std::collections::BTreeMap::from([(cidr.parse().unwrap(), Way::Direct(gateway.into()))])
    };
    let (left_ip, right_ip) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    assert_eq!(left.net.set_peers(&to("10.42.1.0/24", right_ip)).await.unwrap(), 0);
    assert_eq!(right.net.set_peers(&to("10.42.0.0/24", left_ip)).await.unwrap(), 0);
    assert_eq!(left.net.set_peers(&to("10.42.2.0/24", Ipv4Addr::new(198, 51, 100, 1))).await.unwrap(), 1);
    assert_eq!(left.net.set_peers(&to("10.42.1.0/24", right_ip)).await.unwrap(), 0);
    let (a, b) = (left.pod().await, right.pod().await);
    b.serve(8080, "b");
    assert_eq!(greeting(&a.netns, (b.ip, 8080)).unwrap(), ("b".to_owned(), a.ip));
    left.net.purge().await.unwrap();
    assert!(!left.netns.command("ip", &["route"]).contains("10.42"));
}

#[tokio::test]
async fn purge_leaves_nothing() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let _pod = node.pod_with_ports(vec![mapping("TCP", 8080, 80)]).await;
    node.net.purge().await.unwrap();
    assert_eq!(node.links(), ["lo"]);
    let objects = node.ruleset()["nftables"].as_array().unwrap().len();
    assert_eq!(objects, 1, "only nft's own header: {}", node.ruleset_text());
    assert_eq!(node.netns.command("ip", &["route"]), "");
    let forwarding = node.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    assert_eq!(forwarding.trim(), "0");
    node.net.purge().await.unwrap();
}
