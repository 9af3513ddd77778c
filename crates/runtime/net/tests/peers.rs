//! Nodes on one link and behind a router, in real network namespaces.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use dhow_net::peers::{Mode, Way};
use support::{Netns, Node, Pod, greeting, privileged};

/// A link between two namespaces, one of which routes.
fn link(near: &Netns, near_name: &'static str, far: &Netns, far_name: &'static str) {
    let path = format!("/proc/{}/fd/{}", std::process::id(), far.fd().as_raw_fd());
    near.run(move || {
        let args = ["link", "add", near_name, "type", "veth", "peer", "name", far_name, "netns", &path];
        assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
    });
    near.command("ip", Box::leak(Box::new(["link", "set", near_name, "up"])));
    far.command("ip", Box::leak(Box::new(["link", "set", far_name, "up"])));
}

const LEFT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RIGHT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Two nodes with a router between them, whose link to the second carries no more than `mtu` bytes.
async fn apart(mtu: &'static str) -> (Node, Netns, Node) {
    let (left, right, router) = (Netns::new(), Netns::new(), Netns::new());
    link(&left, "wan", &router, "left");
    link(&right, "wan", &router, "right");
    left.command("ip", &["addr", "add", "192.0.2.1/24", "dev", "wan"]);
    left.command("ip", &["route", "add", "default", "via", "192.0.2.254"]);
    right.command("ip", &["addr", "add", "198.51.100.1/24", "dev", "wan"]);
    right.command("ip", &["route", "add", "default", "via", "198.51.100.254"]);
    router.command("ip", &["addr", "add", "192.0.2.254/24", "dev", "left"]);
    router.command("ip", &["addr", "add", "198.51.100.254/24", "dev", "right"]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    router.command("ip", Box::leak(Box::new(["link", "set", "right", "mtu", mtu])));
    right.command("ip", Box::leak(Box::new(["link", "set", "wan", "mtu", mtu])));
    let left = Node::at(left, "10.42.0.0/24", LEFT, Mode::Auto).await;
    let right = Node::at(right, "10.42.1.0/24", RIGHT, Mode::Auto).await;
    (left, router, right)
}

async fn know_each_other(left: &Node, right: &Node) {
    let to = |cidr: &str, way| BTreeMap::from([(cidr.parse().unwrap(), way)]);
    assert_eq!(left.net.set_peers(&to("10.42.1.0/24", Way::Tunnel(RIGHT))).await.unwrap(), 0);
    assert_eq!(right.net.set_peers(&to("10.42.0.0/24", Way::Tunnel(LEFT))).await.unwrap(), 0);
}

/// Sends `size` bytes from a pod to another, which must come back.
fn flows(from: &Pod, to: &Pod, port: u16, size: usize) -> std::io::Result<()> {
    let listener = to.netns.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        peer.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut all = vec![0; size];
        peer.read_exact(&mut all)?;
        peer.write_all(&all)
    });
    let target = (to.ip, port).into();
    let mut stream = from.netns.run(move || TcpStream::connect_timeout(&target, Duration::from_secs(5)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let sent: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
    stream.write_all(&sent)?;
    let mut back = vec![0; size];
    stream.read_exact(&mut back)?;
    assert!(back == sent);
    echo.join().unwrap()
}

#[tokio::test]
async fn a_tunnel_leads_through_a_router_and_keeps_addresses() {
    if !privileged() {
        return;
    }
    let (left, _router, right) = apart("1500").await;
    know_each_other(&left, &right).await;
    let (a, b) = (left.pod().await, right.pod().await);
    b.serve(8080, "b");
    a.serve(8080, "a");
    assert_eq!(greeting(&a.netns, (b.ip, 8080)).unwrap(), ("b".to_owned(), a.ip));
    assert_eq!(greeting(&b.netns, (a.ip, 8080)).unwrap(), ("a".to_owned(), b.ip));
    // The node itself reaches the other's pods, too, and answers come back through the tunnel.
    let (_, seen) = greeting(&left.netns, (b.ip, 8080)).unwrap();
    assert_eq!(seen, Ipv4Addr::new(10, 42, 0, 0));
    flows(&a, &b, 9000, 1 << 20).unwrap();
    // Doing it again changes nothing; a node that goes takes all of it along.
    know_each_other(&left, &right).await;
    let before = left.netns.command("bridge", &["fdb", "show", "dev", "dhow0-vx"]);
    assert!(before.contains("dst 198.51.100.1"), "{before}");
    assert_eq!(left.net.set_peers(&BTreeMap::new()).await.unwrap(), 0);
    assert!(!left.links().contains(&"dhow0-vx".to_owned()));
    assert!(!left.netns.command("ip", &["route"]).contains("10.42.1."));
}

#[tokio::test]
async fn a_smaller_link_on_the_way_is_no_black_hole() {
    if !privileged() {
        return;
    }
    let (left, router, right) = apart("1280").await;
    know_each_other(&left, &right).await;
    // Nobody tells anybody that something is too large.
    router.run(|| {
        let rules =
            "table inet quiet {\nchain out {\ntype filter hook output priority 0;\nip protocol icmp drop\n}\n}\n";
        let mut nft = std::process::Command::new("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
    });
    let (a, b) = (left.pod().await, right.pod().await);
    flows(&a, &b, 9000, 1 << 20).unwrap();
    flows(&b, &a, 9001, 1 << 20).unwrap();
    // And a link that shrinks later, which only the ends can find out, as those of pods do.
    for pod in [&a, &b] {
        pod.netns.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_mtu_probing", "1").unwrap());
    }
    left.netns.command("ip", &["link", "set", "wan", "mtu", "1000"]);
    flows(&b, &a, 9002, 1 << 20).unwrap();
}

#[tokio::test]
async fn nobody_else_speaks_through_the_tunnel() {
    if !privileged() {
        return;
    }
    let (left, router, right) = apart("1500").await;
    know_each_other(&left, &right).await;
    let (_a, b) = (left.pod().await, right.pod().await);
    b.serve_udp(5000, "b");
    // The router plays a node that nobody knows: it has a tunnel of its own into the second.
    for args in [
        &[
            "link",
            "add",
            "vx",
            "type",
            "vxlan",
            "id",
            "42",
            "dstport",
            "14789",
            "local",
            "198.51.100.254",
            "nolearning",
        ][..],
        &["addr", "add", "10.42.9.0/32", "dev", "vx"],
        &["link", "set", "vx", "up"],
        &["route", "add", "10.42.1.0/24", "via", "10.42.1.0", "dev", "vx", "onlink"],
        &["neigh", "add", "10.42.1.0", "lladdr", "02:76:0a:2a:01:00", "dev", "vx", "nud", "permanent"],
    ] {
        router.command("ip", Box::leak(args.to_vec().into_boxed_slice()));
    }
    router.command("bridge", &["fdb", "add", "02:76:0a:2a:01:00", "dev", "vx", "dst", "198.51.100.1"]);
    let target = b.ip;
    router.run(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"hello", (target, 5000)).unwrap();
    });
    // What is let through comes after what was dropped.
    let c = left.pod().await;
    c.serve(8080, "c");
    assert_eq!(greeting(&b.netns, (c.ip, 8080)).unwrap(), ("c".to_owned(), b.ip));
    let flows = right.netns.command("cat", &["/proc/net/nf_conntrack"]);
    assert!(flows.contains(&b.ip.to_string()) && !flows.contains("10.42.9.0"), "{flows}");
}

#[tokio::test]
async fn the_tunnel_and_its_routes_go_with_a_purge() {
    if !privileged() {
        return;
    }
    let (left, _router, right) = apart("1500").await;
    know_each_other(&left, &right).await;
    left.net.purge().await.unwrap();
    assert_eq!(left.links(), ["lo", "wan"]);
    assert!(!left.netns.command("ip", &["route"]).contains("10.42"));
    assert_eq!(left.netns.command("nft", &["list", "ruleset"]), "");
}

#[tokio::test]
async fn pods_are_as_large_as_the_way_allows() {
    if !privileged() {
        return;
    }
    let (left, _router, right) = apart("1400").await;
    let (a, b) = (left.pod().await, right.pod().await);
    assert!(a.netns.command("ip", &["link", "show", "eth0"]).contains("mtu 1450"));
    assert!(b.netns.command("ip", &["link", "show", "eth0"]).contains("mtu 1350"));
}
