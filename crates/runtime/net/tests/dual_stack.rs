//! Both address families on one node, and IPv6 alone: pods, services, host ports and policies, on real packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use dhow_cri::PodNetwork;
use dhow_cri::runtime::PortMapping;
use dhow_net::policy::{Objects, Policies};
use dhow_net::proxy::Proxy;
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;
use support::{Netns, Node, Pod, connect_outside, greeting, privileged, service, slice};

const V4: &str = "10.42.0.0/24";
const V6: &str = "fd42::/64";
const NODE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const OUTSIDE: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
const VIP: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd43, 0, 0, 0, 0, 0, 0, 0x80));
const VIP4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 43, 0, 80));

fn six(pod: &Pod) -> IpAddr {
    pod.ips.iter().copied().find(IpAddr::is_ipv6).unwrap()
}

/// Both ways to use IPv6.
async fn nodes() -> [Node; 2] {
    [Node::open(&[V4, V6], |_| {}).await, Node::open(&[V6], |_| {}).await]
}

#[tokio::test]
async fn pods_have_an_address_of_each_family_and_the_node_hides_them_outside() {
    if !privileged() {
        return;
    }
    let node = Node::open(&[V4, V6], |_| {}).await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    let (a, b) = (node.pod().await, node.pod().await);
    assert_eq!(a.ips, ["10.42.0.2".parse::<IpAddr>().unwrap(), "fd42::2".parse().unwrap()]);
    b.serve(8080, "b");
    assert_eq!(greeting(&a.netns, (six(&b), 8080)).unwrap(), ("b".to_owned(), six(&a)));
    assert_eq!(greeting(&a.netns, (b.ip, 8080)).unwrap(), ("b".to_owned(), a.ip));
    let gateways = node.net.bridge_gateways();
    assert_eq!(greeting(&node.netns, (six(&b), 8080)).unwrap(), ("b".to_owned(), gateways[1]));
    // Nobody outside knows a way back to a pod's address.
    let server =
        Pod { netns: outside, ip: OUTSIDE, ips: vec![OUTSIDE], sandbox: String::new(), request: a.request.clone() };
    server.serve(80, "outside");
    assert_eq!(greeting(&a.netns, (OUTSIDE, 80)).unwrap(), ("outside".to_owned(), NODE));
    // A restart leaves everything as it is; what belongs to nobody goes.
    let before = node.ruleset_text();
    let mut node = node;
    node.reopen().await;
    assert_eq!(node.ruleset_text(), before);
    assert_eq!(node.net.attach(a.netns.fd(), &a.request).await.unwrap(), a.ips);
    node.net.purge().await.unwrap();
    assert!(!node.ruleset_text().contains("dhow"));
    let routes = node.netns.command("ip", &["-6", "route"]);
    assert!(!routes.contains("fd42") && !routes.contains("fd43"), "{routes}");
}

#[tokio::test]
async fn services_of_both_families() {
    if !privileged() {
        return;
    }
    for node in nodes().await {
        let outside = Netns::new();
        connect_outside(&node.netns, &outside);
        let (client, server) = (node.pod().await, node.pod().await);
        server.serve(8080, "server");
        let both = server.ips.len() == 2;
        let ips = if both { json!([VIP4, VIP]) } else { json!([VIP]) };
        let slices: Vec<_> = server.ips.iter().map(|ip| slice("web", 8080, "TCP", &[*ip])).collect();
        let mut proxy = Proxy::open(node.net.clone(), "node");
        // A cluster address alone is balanced by the fixed rules.
        let plain = service("web", json!({"clusterIPs": ips, "ports": [{"port": 80}]}));
        proxy.sync(std::slice::from_ref(&plain), &slices).await.unwrap();
        assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap(), ("server".to_owned(), six(&client)));
        assert_eq!(greeting(&node.netns, (VIP, 80)).unwrap().0, "server");
        assert_eq!(greeting(&server.netns, (VIP, 80)).unwrap().0, "server", "hairpin");
        if both {
            assert_eq!(greeting(&client.netns, (VIP4, 80)).unwrap(), ("server".to_owned(), client.ip));
        }
        proxy.sync(&[plain], &[]).await.unwrap();
        let refused = greeting(&client.netns, (VIP, 80)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        // Others have chains of their own.
        for (policy, seen) in [("Cluster", node.net.bridge_gateways().pop().unwrap()), ("Local", OUTSIDE)] {
            let spec = json!({
                "type": "NodePort", "clusterIPs": ips, "externalTrafficPolicy": policy, "sessionAffinity": "ClientIP",
                "externalIPs": ["2001:db8:1::10"], "ports": [{"port": 80, "nodePort": 30080}],
            });
            let web = service("web", spec);
            proxy.sync(std::slice::from_ref(&web), &slices).await.unwrap();
            assert_eq!(greeting(&outside, (NODE, 30080)).unwrap(), ("server".to_owned(), seen), "{policy}");
            assert_eq!(greeting(&node.netns, (NODE, 30080)).unwrap().0, "server", "{policy}");
            assert_eq!(greeting(&client.netns, ("2001:db8:1::10".parse::<IpAddr>().unwrap(), 80)).unwrap().0, "server");
            if both {
                assert_eq!(greeting(&node.netns, (std::net::Ipv4Addr::LOCALHOST, 30080)).unwrap().0, "server");
            }
            // Without endpoints, a node port is refused, whatever listens on the node.
            proxy.sync(&[web], &[]).await.unwrap();
            let _listener = node.netns.run(|| std::net::TcpListener::bind("[::]:30080").unwrap());
            let refused = greeting(&outside, (NODE, 30080)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{policy}");
        }
        assert!(proxy.sync(&[], &[]).await.unwrap() > 0);
        assert!(!node.ruleset_text().contains("fd43::80"));
    }
}

#[tokio::test]
async fn host_ports_and_node_port_addresses() {
    if !privileged() {
        return;
    }
    let only = |config: &mut dhow_net::NetConfig| config.node_port_addresses = vec!["2001:db8::1/128".parse().unwrap()];
    let node = Node::open(&[V4, V6], only).await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    let mapping = |host_port, host_ip: Option<&str>| PortMapping {
        protocol: "TCP".to_owned(),
        container_port: 80,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    let ports = vec![mapping(8080, None), mapping(8081, Some("2001:db8::1")), mapping(8082, Some("192.0.2.1"))];
    let pod = node.pod_with_ports(ports).await;
    pod.serve(80, "pod");
    let four: IpAddr = [192, 0, 2, 1].into();
    for (address, port, reached) in [
        (NODE, 8080, true),
        (four, 8080, true),
        (NODE, 8081, true),
        (four, 8081, false),
        (four, 8082, true),
        (NODE, 8082, false),
    ] {
        assert_eq!(greeting(&outside, (address, port)).is_ok(), reached, "{address} {port}");
    }
    // Node ports answer on the chosen address alone.
    let spec = json!({"type": "NodePort", "clusterIPs": [VIP4, VIP], "ports": [{"port": 80, "nodePort": 30080}]});
    let slices: Vec<_> = pod.ips.iter().map(|ip| slice("web", 80, "TCP", &[*ip])).collect();
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&[service("web", spec)], &slices).await.unwrap();
    assert_eq!(greeting(&outside, (NODE, 30080)).unwrap().0, "pod");
    assert!(greeting(&outside, (four, 30080)).is_err());
    node.net.detach(&pod.sandbox).await.unwrap();
    assert!(!node.ruleset_text().contains("8081"));
}

#[tokio::test]
async fn policies_judge_both_families() {
    if !privileged() {
        return;
    }
    for node in nodes().await {
        let pods = [node.pod().await, node.pod().await, node.pod().await];
        let [client, friend, server] = &pods;
        server.serve(8080, "server");
        let object = |pod: &Pod, role: &str| -> Arc<PodObject> {
            let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
            let object = json!({
                "metadata": {"namespace": "a", "name": pod.sandbox, "labels": {"role": role}},
                "spec": {"nodeName": "node", "containers": []},
                "status": {"phase": "Running", "podIP": pod.ip, "podIPs": ips},
            });
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let objects = [object(client, "client"), object(friend, "friend"), object(server, "server")];
        let namespace: Arc<Namespace> = Arc::new(serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap());
        let policy = |from: serde_json::Value| {
            let spec = json!({"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [{"from": [from]}]});
            [Arc::new(serde_json::from_value(json!({"metadata": {"namespace": "a"}, "spec": spec})).unwrap())]
        };
        let mut policies = Policies::open(node.net.clone(), "node");
        let with = |policies: &[Arc<NetworkPolicy>]| Objects {
            pods: objects.to_vec(),
            namespaces: vec![Arc::clone(&namespace)],
            policies: policies.to_vec(),
            ..Objects::default()
        };
        let friends = policy(json!({"podSelector": {"matchLabels": {"role": "friend"}}}));
        policies.sync(&with(&friends)).await.unwrap();
        let reaches = |from: &Pod, to: IpAddr| {
            from.netns.run(move || {
                std::net::TcpStream::connect_timeout(&(to, 8080).into(), Duration::from_millis(300)).is_ok()
            })
        };
        for ip in &server.ips {
            assert!(reaches(friend, *ip) && !reaches(client, *ip), "{ip}");
            assert!(greeting(&node.netns, (*ip, 8080)).is_ok(), "the node itself");
        }
        // A restart finds everything in place.
        let mut again = Policies::open(node.net.clone(), "node");
        assert_eq!(again.sync(&with(&friends)).await.unwrap(), 0);
        // A block is of one family.
        let block = policy(json!({"ipBlock": {"cidr": "fd42::/64", "except": ["fd42::2/128"]}}));
        again.sync(&with(&block)).await.unwrap();
        assert!(reaches(friend, six(server)) && !reaches(client, six(server)));
        for ip in server.ips.iter().filter(|ip| ip.is_ipv4()) {
            assert!(!reaches(friend, *ip));
        }
        again.sync(&with(&[])).await.unwrap();
        assert!(server.ips.iter().all(|ip| reaches(client, *ip)));
    }
}

#[tokio::test]
async fn flows_to_endpoints_that_went_while_nobody_watched_are_forgotten() {
    if !privileged() {
        return;
    }
    let node = Node::open(&[V4, V6], |_| {}).await;
    let (client, old, new) = (node.pod().await, node.pod().await, node.pod().await);
    old.serve_udp(53, "old");
    new.serve_udp(53, "new");
    let dns = [service("dns", json!({"clusterIPs": [VIP4, VIP], "ports": [{"port": 53, "protocol": "UDP"}]}))];
    let slices = |pod: &Pod| pod.ips.iter().map(|ip| slice("dns", 53, "UDP", &[*ip])).collect::<Vec<_>>();
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&dns, &slices(&old)).await.unwrap();
    let sockets = [VIP4, VIP].map(|vip| {
        let socket = client.netns.run(move || {
            let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = std::net::UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.connect((vip, 53)).unwrap();
            socket
        });
        let ask = move || {
            socket.send(b"?").unwrap();
            let mut buffer = [0; 16];
            let count = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..count].to_vec()).unwrap()
        };
        assert_eq!(ask(), "old");
        ask
    });
    drop(proxy);
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&dns, &slices(&new)).await.unwrap();
    for ask in sockets {
        assert_eq!(ask(), "new");
    }
}
