//! Services on one node: cluster addresses, node ports, hairpin, updates and restarts, on real packets.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use dhow_net::proxy::Proxy;
use serde_json::json;
use support::{Client, Netns, Node, connect_outside, greeting, privileged, service, slice};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 80));

#[tokio::test]
async fn cluster_address_from_pods_the_node_and_the_endpoint_itself() {
    if !privileged() {
        return;
    }
    for bridged in [true, false] {
        let node = Node::new().await;
        node.filter_bridged(bridged);
        check_cluster_address(&node).await;
    }
}

async fn check_cluster_address(node: &Node) {
    let (client, server) = (node.pod().await, node.pod().await);
    server.serve(8080, "server");
    let web = service("web", json!({"clusterIP": VIP, "ports": [{"port": 80}]}));
    let mut proxy = Proxy::open(node.net.clone(), "node");
    let error = greeting(&client.netns, (VIP, 80)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "an unknown service address is refused");
    proxy.sync(std::slice::from_ref(&web), &[slice("web", 8080, "TCP", &[server.ip])]).await.unwrap();
    assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap(), ("server".to_owned(), client.ip));
    assert_eq!(greeting(&node.netns, (VIP, 80)).unwrap().0, "server");
    assert_eq!(greeting(&server.netns, (VIP, 80)).unwrap().0, "server", "hairpin");
    // Without endpoints the answer is a refusal, at once.
    proxy.sync(&[web], &[]).await.unwrap();
    let start = Instant::now();
    assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(greeting(&node.netns, (VIP, 80)).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(start.elapsed() < Duration::from_secs(2));
    proxy.sync(&[], &[]).await.unwrap();
    assert!(!node.ruleset_text().contains("10.43.0.80"));
}

#[tokio::test]
async fn node_port_from_the_node_pods_and_loopback() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (client, server) = (node.pod().await, node.pod().await);
    server.serve(8080, "server");
    for (policy, bridged) in [("Cluster", true), ("Local", true), ("Cluster", false), ("Local", false)] {
        node.filter_bridged(bridged);
        let web = service(
            "web",
            json!({
                "type": "NodePort", "clusterIP": VIP, "externalTrafficPolicy": policy,
                "externalIPs": ["192.0.2.10"], "ports": [{"port": 80, "nodePort": 30080}],
            }),
        );
        let mut proxy = Proxy::open(node.net.clone(), "node");
        proxy.sync(&[web], &[slice("web", 8080, "TCP", &[server.ip])]).await.unwrap();
        let gateway = node.net.bridge_gateway();
        for from in [&client.netns, &node.netns, &server.netns] {
            assert_eq!(greeting(from, (gateway, 30080)).unwrap().0, "server", "{policy}");
        }
        assert_eq!(greeting(&node.netns, (Ipv4Addr::LOCALHOST, 30080)).unwrap().0, "server", "{policy}");
        assert_eq!(greeting(&client.netns, (Ipv4Addr::new(192, 0, 2, 10), 80)).unwrap().0, "server", "{policy}");
    }
}

#[tokio::test]
async fn balances_over_endpoints_and_sticks_with_affinity() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (client, one, two) = (node.pod().await, node.pod().await, node.pod().await);
    one.serve(8080, "one");
    two.serve(8080, "two");
    let names = |count: usize| {
        let mut names: Vec<String> = (0..count).map(|_| greeting(&client.netns, (VIP, 80)).unwrap().0).collect();
        names.sort();
        names.dedup();
        names
    };
    let mut proxy = Proxy::open(node.net.clone(), "node");
    let slices = [slice("web", 8080, "TCP", &[one.ip, two.ip])];
    proxy.sync(&[service("web", json!({"clusterIP": VIP, "ports": [{"port": 80}]}))], &slices).await.unwrap();
    // One in 2^39 runs would see only one of them.
    assert_eq!(names(40), ["one", "two"]);
    let sticky = service("web", json!({"clusterIP": VIP, "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}));
    proxy.sync(std::slice::from_ref(&sticky), &slices).await.unwrap();
    let chosen = names(20);
    assert_eq!(chosen.len(), 1, "{chosen:?}");
    // When its endpoint goes, the client is not stuck to it.
    let rest = if chosen[0] == "one" { two.ip } else { one.ip };
    proxy.sync(&[sticky], &[slice("web", 8080, "TCP", &[rest])]).await.unwrap();
    let moved = names(5);
    assert_eq!(moved.len(), 1);
    assert_ne!(moved, chosen);
}

#[tokio::test]
async fn an_endpoint_change_is_one_small_transaction_and_breaks_no_connection() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (client, one, two) = (node.pod().await, node.pod().await, node.pod().await);
    one.serve(8080, "one");
    two.serve(8080, "two");
    let mut services = vec![service("web", json!({"clusterIP": VIP, "ports": [{"port": 80}]}))];
    let mut slices = vec![slice("web", 8080, "TCP", &[one.ip])];
    for index in 0..200u16 {
        let name = format!("other-{index}");
        let ip = Ipv4Addr::new(10, 43, 1, index as u8);
        services.push(service(&name, json!({"clusterIP": ip, "ports": [{"port": 80}]})));
        slices.push(slice(&name, 8080, "TCP", &[one.ip, two.ip]));
    }
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&services, &slices).await.unwrap();
    assert_eq!(proxy.sync(&services, &slices).await.unwrap(), 0, "nothing to do is nothing done");
    let mut open = Client::connect(&client.netns, (VIP, 80)).unwrap();
    assert!(open.line().unwrap().starts_with("one"));
    slices[0] = slice("web", 8080, "TCP", &[two.ip]);
    let small = proxy.sync(&services, &slices).await.unwrap();
    assert_eq!(small, 2, "one endpoint goes, one comes");
    assert_eq!(open.echo("kept").unwrap(), "kept");
    assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap().0, "two");
}

#[tokio::test]
async fn a_restart_finds_everything_in_place() {
    if !privileged() {
        return;
    }
    let mut node = Node::new().await;
    let (client, server) = (node.pod().await, node.pod().await);
    server.serve(8080, "server");
    let spec = json!({
        "type": "NodePort", "clusterIP": VIP, "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let services = [service("web", spec), service("gone", json!({"clusterIP": "10.43.0.81", "ports": [{"port": 1}]}))];
    let slices = [slice("web", 8080, "TCP", &[server.ip])];
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&services, &slices).await.unwrap();
    let mut open = Client::connect(&client.netns, (VIP, 80)).unwrap();
    open.line().unwrap();
    let generation = |node: &Node| node.netns.command("nft", &["list", "chains"]);
    let before = generation(&node);
    drop(proxy);
    node.reopen().await;
    let mut proxy = Proxy::open(node.net.clone(), "node");
    assert_eq!(proxy.sync(&services, &slices).await.unwrap(), 0, "the kernel already holds the plan");
    assert_eq!(generation(&node), before);
    assert_eq!(open.echo("kept").unwrap(), "kept");
    // What went away while the daemon was down is removed.
    assert!(proxy.sync(&services[..1], &slices).await.unwrap() > 0);
    assert!(!node.ruleset_text().contains("10.43.0.81"));
}

#[tokio::test]
async fn udp_clients_move_when_their_endpoint_goes() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let (client, one, two) = (node.pod().await, node.pod().await, node.pod().await);
    one.serve_udp(5353, "one");
    two.serve_udp(5353, "two");
    let dns = service("dns", json!({"clusterIP": VIP, "ports": [{"port": 53, "protocol": "UDP"}]}));
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(std::slice::from_ref(&dns), &[slice("dns", 5353, "UDP", &[one.ip])]).await.unwrap();
    // One socket, so the flow is the same all the time.
    let socket = client.netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    });
    let ask = || {
        socket.send_to(b"?", (VIP, 53)).unwrap();
        let mut buffer = [0; 16];
        let (count, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), VIP);
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    assert_eq!(ask(), "one");
    proxy.sync(&[dns], &[slice("dns", 5353, "UDP", &[two.ip])]).await.unwrap();
    assert_eq!(ask(), "two");
}

#[tokio::test]
async fn outside_clients_keep_their_address_under_local_policy() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    let server = node.pod().await;
    server.serve(8080, "server");
    let (node_ip, client_ip) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    let mut proxy = Proxy::open(node.net.clone(), "node");
    for (policy, seen) in [("Cluster", node.net.bridge_gateway()), ("Local", client_ip)] {
        let spec = json!({
            "type": "NodePort", "clusterIP": VIP, "externalTrafficPolicy": policy,
            "ports": [{"port": 80, "nodePort": 30080}],
        });
        proxy.sync(&[service("web", spec)], &[slice("web", 8080, "TCP", &[server.ip])]).await.unwrap();
        assert_eq!(greeting(&outside, (node_ip, 30080)).unwrap(), ("server".to_owned(), seen), "{policy}");
    }
}

#[tokio::test]
async fn a_service_on_the_node_itself_answers_pods_and_the_node() {
    if !privileged() {
        return;
    }
    for bridged in [true, false] {
        let node = Node::new().await;
        node.filter_bridged(bridged);
        let client = node.pod().await;
        let gateway = node.net.bridge_gateway();
        let socket = node.netns.run(move || UdpSocket::bind((gateway, 53)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..count], from);
            }
        });
        let dns = service("dns", json!({"clusterIP": VIP, "ports": [{"port": 53, "protocol": "UDP"}]}));
        let mut proxy = Proxy::open(node.net.clone(), "node");
        proxy.sync(&[dns], &[slice("dns", 53, "UDP", &[gateway])]).await.unwrap();
        for from in [&client.netns, &node.netns] {
            let answer = from.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.send_to(b"?", (VIP, 53)).unwrap();
                let mut buffer = [0; 64];
                socket.recv_from(&mut buffer).map(|(_, from)| from.ip())
            });
            assert_eq!(answer.unwrap(), VIP);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancers_address_is_for_its_source_ranges_and_its_health_port_counts_local_endpoints() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    outside.command("ip", &["route", "add", "203.0.113.0/24", "via", "192.0.2.1"]);
    let server = node.pod().await;
    server.serve(8080, "server");
    let (balancer, client) = (IpAddr::from([203, 0, 113, 7]), IpAddr::from([192, 0, 2, 2]));
    let web = |range: &str| {
        let spec = json!({
            "type": "LoadBalancer", "clusterIP": VIP, "externalTrafficPolicy": "Local", "healthCheckNodePort": 30123,
            "loadBalancerSourceRanges": [range], "ports": [{"port": 80, "nodePort": 30080}],
        });
        let mut web = (*service("web", spec)).clone();
        let status = json!({"loadBalancer": {"ingress": [{"ip": balancer}]}});
        web.status = Some(serde_json::from_value(status).unwrap());
        [std::sync::Arc::new(web)]
    };
    let slices = [slice("web", 8080, "TCP", &[server.ip])];
    let mut proxy = Proxy::open(node.net.clone(), "node");
    proxy.sync(&web("192.0.2.0/24"), &slices).await.unwrap();
    assert_eq!(greeting(&outside, (balancer, 80)).unwrap(), ("server".to_owned(), client));
    proxy.sync(&web("198.51.100.0/24"), &slices).await.unwrap();
    let refused = outside.run(move || {
        let to = std::net::SocketAddr::from((balancer, 80));
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)).unwrap_err()
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "dropped");

    let health = || {
        outside.run(|| {
            let mut stream = std::net::TcpStream::connect(("192.0.2.1", 30123)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    };
    // The test's thread blocks while the proxy's task answers.
    let answer = tokio::task::block_in_place(health);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"localEndpoints\":1"), "{answer}");
    proxy.sync(&web("192.0.2.0/24"), &[]).await.unwrap();
    let answer = tokio::task::block_in_place(health);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"name\":\"web\""), "{answer}");
    proxy.sync(&[], &[]).await.unwrap();
    let closed = outside.run(|| std::net::TcpStream::connect(("192.0.2.1", 30123)));
    assert_eq!(closed.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
