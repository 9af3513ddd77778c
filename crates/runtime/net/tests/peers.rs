//! Nodes on one link and behind a router, in real network namespaces.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use dhow_net::peers::{End, Mode, Way, tunnel_mac};
use dhow_net::{Cidr, Family};
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

const LEFT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const RIGHT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
const LEFT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
const RIGHT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1));

/// Families of pods; the nodes have both.
#[derive(Clone, Copy, PartialEq)]
enum Pods {
    Four,
    Six,
    FourAndSix,
}

impl Pods {
    fn cidrs(self, four: &'static str, six: &'static str) -> Vec<&'static str> {
        match self {
            Self::Four => vec![four],
            Self::Six => vec![six],
            Self::FourAndSix => vec![four, six],
        }
    }
}

/// Two nodes with a router between them, whose link to the second carries no more than `mtu` bytes.
async fn apart(mtu: &'static str, pods: Pods) -> (Node, Netns, Node) {
    let (left, right, router) = (Netns::new(), Netns::new(), Netns::new());
    link(&left, "wan", &router, "left");
    link(&right, "wan", &router, "right");
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    router.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap());
    router.command("ip", Box::leak(Box::new(["link", "set", "right", "mtu", mtu])));
    right.command("ip", Box::leak(Box::new(["link", "set", "wan", "mtu", mtu])));
    let addresses: [(&Netns, &'static str, &'static str); 8] = [
        (&left, "192.0.2.1/24", "wan"),
        (&left, "2001:db8:1::1/64", "wan"),
        (&right, "198.51.100.1/24", "wan"),
        (&right, "2001:db8:2::1/64", "wan"),
        (&router, "192.0.2.254/24", "left"),
        (&router, "2001:db8:1::fe/64", "left"),
        (&router, "198.51.100.254/24", "right"),
        (&router, "2001:db8:2::fe/64", "right"),
    ];
    for (netns, address, link) in addresses {
        let nodad: &[&'static str] = if address.contains(':') { &["nodad"] } else { &[] };
        let args = [&["addr", "add", address, "dev", link][..], nodad].concat();
        netns.command("ip", Box::leak(args.into_boxed_slice()));
    }
    for (netns, gateway) in [(&left, "192.0.2.254"), (&right, "198.51.100.254")] {
        netns.command("ip", Box::leak(Box::new(["route", "add", "default", "via", gateway])));
    }
    for (netns, gateway) in [(&left, "2001:db8:1::fe"), (&right, "2001:db8:2::fe")] {
        netns.command("ip", Box::leak(Box::new(["-6", "route", "add", "default", "via", gateway])));
    }
    let left = Node::at(left, &pods.cidrs("10.42.0.0/24", "fd42::/64"), &[LEFT, LEFT6], Mode::Auto).await;
    let right = Node::at(right, &pods.cidrs("10.42.1.0/24", "fd42:0:0:1::/64"), &[RIGHT, RIGHT6], Mode::Auto).await;
    (left, router, right)
}

/// Through the tunnel, whose outside is of the pods' first family.
fn ways_to(node: &Node) -> BTreeMap<Cidr, Way> {
    let config = node.net.config();
    let family = config.pod_cidr.family();
    let address = config.node_ips.iter().find(|address| Family::of(**address) == family).unwrap();
    let end = End { node: *address, mac: tunnel_mac(config.pod_cidr) };
    config.networks().map(|networks| (networks.pods, Way::Tunnel(end))).collect()
}

async fn know_each_other(left: &Node, right: &Node) {
    assert_eq!(left.net.set_peers(&ways_to(right)).await.unwrap(), 0);
    assert_eq!(right.net.set_peers(&ways_to(left)).await.unwrap(), 0);
}

/// Sends `size` bytes from a pod to another, which must come back.
fn flows(from: &Pod, to: &Pod, port: u16, size: usize) -> std::io::Result<()> {
    flows_to(from, to, to.ip, port, size)
}

fn flows_to(from: &Pod, to: &Pod, ip: IpAddr, port: u16, size: usize) -> std::io::Result<()> {
    let listener = to.netns.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut peer, _) = listener.accept()?;
        peer.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut all = vec![0; size];
        peer.read_exact(&mut all)?;
        peer.write_all(&all)
    });
    let target = (ip, port).into();
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
    let (left, _router, right) = apart("1500", Pods::Four).await;
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
async fn a_tunnel_carries_both_families_over_either() {
    if !privileged() {
        return;
    }
    for pods in [Pods::FourAndSix, Pods::Six] {
        let (left, _router, right) = apart("1500", pods).await;
        know_each_other(&left, &right).await;
        let (a, b) = (left.pod().await, right.pod().await);
        b.serve(8080, "b");
        a.serve(8080, "a");
        for (port, (of_a, of_b)) in (9000..).zip(a.ips.iter().copied().zip(b.ips.iter().copied())) {
            assert_eq!(greeting(&a.netns, (of_b, 8080)).unwrap(), ("b".to_owned(), of_a));
            assert_eq!(greeting(&b.netns, (of_a, 8080)).unwrap(), ("a".to_owned(), of_b));
            // From the node itself: it is known by its tunnel's or its bridge's address.
            let (_, seen) = greeting(&left.netns, (of_b, 8080)).unwrap();
            assert!(left.net.config().networks().any(|networks| networks.pods.contains(seen)), "{seen}");
            flows_to(&a, &b, of_b, port, 1 << 20).unwrap();
        }
        let mtu = a.netns.command("ip", &["link", "show", "eth0"]);
        let size = if pods == Pods::Six { "mtu 1430" } else { "mtu 1450" };
        assert!(mtu.contains(size), "{mtu}");
        // Once more nothing changes, and nothing is left without peers.
        know_each_other(&left, &right).await;
        let fdb = left.netns.command("bridge", &["fdb", "show", "dev", "dhow0-vx"]);
        let end = if pods == Pods::Six { "dst 2001:db8:2::1" } else { "dst 198.51.100.1" };
        assert_eq!(fdb.matches(end).count(), 1, "{fdb}");
        assert!(left.netns.command("ip", &["-6", "route"]).contains("fd42:0:0:1::/64 via fe80::76:"));
        left.net.purge().await.unwrap();
        assert_eq!(left.links(), ["lo", "wan"]);
        assert!(!left.netns.command("ip", &["-6", "route"]).contains("fd42"));
        assert_eq!(left.netns.command("nft", &["list", "ruleset"]), "");
    }
}

#[tokio::test]
async fn routes_of_ipv6_lead_to_nodes_on_the_link() {
    if !privileged() {
        return;
    }
    let (left, right) = (Netns::new(), Netns::new());
    support::connect_outside(&left, &right);
    let here = |last| [IpAddr::from([192, 0, 2, last]), format!("2001:db8::{last}").parse().unwrap()];
    let left = Node::at(left, &["10.42.0.0/24", "fd42::/64"], &here(1), Mode::Routes).await;
    let right = Node::at(right, &["10.42.1.0/24", "fd42:0:0:1::/64"], &here(2), Mode::Routes).await;
    let ways = |node: &Node| -> BTreeMap<Cidr, Way> {
        let config = node.net.config();
        config.networks().map(|all| all.pods).zip(config.node_ips.iter().map(|ip| Way::Direct(*ip))).collect()
    };
    assert_eq!(left.net.set_peers(&ways(&right)).await.unwrap(), 0);
    assert_eq!(right.net.set_peers(&ways(&left)).await.unwrap(), 0);
    let (a, b) = (left.pod().await, right.pod().await);
    b.serve(8080, "b");
    for (of_a, of_b) in a.ips.iter().zip(&b.ips) {
        assert_eq!(greeting(&a.netns, (*of_b, 8080)).unwrap(), ("b".to_owned(), *of_a));
    }
    // A node that changes its address is followed; one that goes leaves nothing.
    assert!(left.netns.command("ip", &["-6", "route"]).contains("fd42:0:0:1::/64 via 2001:db8::2 dev up0"));
    right.netns.command("ip", &["addr", "add", "2001:db8::3/64", "dev", "up1", "nodad"]);
    let moved = BTreeMap::from([(b_network(), Way::Direct("2001:db8::3".parse().unwrap()))]);
    assert_eq!(left.net.set_peers(&moved).await.unwrap(), 0);
    let routes = left.netns.command("ip", &["-6", "route"]);
    assert!(routes.contains("via 2001:db8::3") && !routes.contains("via 2001:db8::2"), "{routes}");
    assert_eq!(left.net.set_peers(&BTreeMap::new()).await.unwrap(), 0);
    assert!(!left.netns.command("ip", &["-6", "route"]).contains("fd42:0:0:1:"));
}

fn b_network() -> Cidr {
    "fd42:0:0:1::/64".parse().unwrap()
}

#[tokio::test]
async fn a_smaller_link_on_the_way_is_no_black_hole() {
    if !privileged() {
        return;
    }
    let (left, router, right) = apart("1280", Pods::Four).await;
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
    let (left, router, right) = apart("1500", Pods::Four).await;
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
    let (left, _router, right) = apart("1500", Pods::Four).await;
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
    let (left, _router, right) = apart("1400", Pods::Four).await;
    let (a, b) = (left.pod().await, right.pod().await);
    assert!(a.netns.command("ip", &["link", "show", "eth0"]).contains("mtu 1450"));
    assert!(b.netns.command("ip", &["link", "show", "eth0"]).contains("mtu 1350"));
}
