//! Network policies on real packets: pods, services and the world beyond in namespaces of their own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use dhow_net::policy::{Objects, Policies};
use dhow_net::proxy::Proxy;
use serde_json::{Value, json};
use support::{Client, Netns, Node, Pod, connect_outside, greeting, privileged, service, slice};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 80));
const REFUSES_SILENTLY: Duration = Duration::from_millis(400);

/// A cluster of one node, `node`, whose API objects the test writes itself.
struct Cluster {
    policies: Policies,
    objects: Objects,
}

impl Cluster {
    fn on(node: &Node) -> Self {
        let namespace = |name: &str| {
            let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let namespaces = ["default", "other"].map(namespace).to_vec();
        let objects = Objects { namespaces, ..Objects::default() };
        Self { policies: Policies::open(node.net.clone(), "node"), objects }
    }

    fn add(&mut self, namespace: &str, app: &str, address: IpAddr) {
        let object = json!({
            "metadata": {"namespace": namespace, "name": address.to_string(), "labels": {"app": app}},
            "spec": {"nodeName": "node", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]},
            ]},
            "status": {"phase": "Running", "podIP": address},
        });
        self.objects.pods.retain(|pod| pod.metadata.name != Some(address.to_string()));
        self.objects.pods.push(Arc::new(serde_json::from_value(object).unwrap()));
    }

    /// Changes the object of a pod.
    fn change(&mut self, pod: &Pod, change: impl Fn(&mut Value)) {
        let name = pod.ip.to_string();
        let object = self.objects.pods.iter_mut().find(|object| object.metadata.name.as_ref() == Some(&name)).unwrap();
        let mut value = serde_json::to_value(&**object).unwrap();
        change(&mut value);
        *object = Arc::new(serde_json::from_value(value).unwrap());
    }

    async fn enforce(&mut self, specs: &[Value]) -> usize {
        let policy = |spec: &Value| {
            let object = json!({"metadata": {"namespace": "default", "name": "p"}, "spec": spec});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        self.objects.policies = specs.iter().map(policy).collect();
        self.sync().await
    }

    async fn sync(&mut self) -> usize {
        self.policies.sync(&self.objects).await.unwrap()
    }
}

/// Whether a connection opens; what policies drop does not, however long one waits.
fn reaches(from: &Netns, to: (IpAddr, u16)) -> bool {
    let to = std::net::SocketAddr::from(to);
    from.run(move || std::net::TcpStream::connect_timeout(&to, REFUSES_SILENTLY).is_ok())
}

fn app(name: &str) -> Value {
    json!({"matchLabels": {"app": name}})
}

async fn pods(node: &Node, cluster: &mut Cluster) -> (Pod, Pod, Pod) {
    let (web, friend, stranger) = (node.pod().await, node.pod().await, node.pod().await);
    for (pod, name) in [(&web, "web"), (&friend, "friend"), (&stranger, "stranger")] {
        cluster.add("default", name, pod.ip);
    }
    web.serve(8080, "web");
    web.serve(9090, "admin");
    (web, friend, stranger)
}

#[tokio::test]
async fn ingress_by_label_changes_live_and_breaks_no_open_connection() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    let mut open = Client::connect(&stranger.netns, (web.ip, 8080)).unwrap();
    open.line().unwrap();

    let only_friends = json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app("friend")}]}]});
    cluster.enforce(std::slice::from_ref(&only_friends)).await;
    assert!(reaches(&friend.netns, (web.ip, 8080)));
    assert!(!reaches(&stranger.netns, (web.ip, 8080)));
    assert!(reaches(&node.netns, (web.ip, 8080)), "the kubelet's probes come from the node");
    assert!(reaches(&web.netns, (web.ip, 8080)), "itself");
    assert_eq!(open.echo("still here").unwrap(), "still here");
    // The isolated pod opens connections as before, and gets its answers.
    friend.serve(8080, "friend");
    assert_eq!(greeting(&web.netns, (friend.ip, 8080)).unwrap().0, "friend");

    cluster.add("default", "friend", stranger.ip);
    assert_eq!(cluster.sync().await, 1, "a changed label is one element");
    assert!(reaches(&stranger.netns, (web.ip, 8080)));
    cluster.add("other", "friend", stranger.ip);
    cluster.sync().await;
    assert!(!reaches(&stranger.netns, (web.ip, 8080)), "a pod selector alone means the policy's own namespace");
    let by_namespace = json!({"podSelector": {}, "ingress": [{"from": [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}, "podSelector": app("friend"),
    }]}]});
    cluster.enforce(&[only_friends, by_namespace]).await;
    assert!(reaches(&stranger.netns, (web.ip, 8080)), "policies add up");

    cluster.enforce(&[]).await;
    assert!(!node.ruleset_text().contains("policy_permits"), "{}", node.ruleset_text());
    assert!(!node.ruleset_text().contains("policy_peers"));
}

#[tokio::test]
async fn ports_ranges_and_names() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let mut cluster = Cluster::on(&node);
    let (web, friend, _) = pods(&node, &mut cluster).await;
    web.serve_udp(8080, "udp");
    let ask = || {
        let to = (web.ip, 8080);
        friend.netns.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(REFUSES_SILENTLY)).unwrap();
            socket.send_to(b"?", to).unwrap();
            socket.recv_from(&mut [0; 16]).is_ok()
        })
    };
    for (ports, tcp_8080, tcp_9090, udp) in [
        (json!([{"port": 8080}]), true, false, false),
        (json!([{"port": "web"}]), true, false, false),
        (json!([{"port": 8081, "endPort": 9090}]), false, true, false),
        (json!([{"port": 8000, "endPort": 9090}]), true, true, false),
        (json!([{"protocol": "UDP"}]), false, false, true),
        (json!([]), true, true, true),
    ] {
        cluster.enforce(&[json!({"podSelector": app("web"), "ingress": [{"ports": ports}]})]).await;
        let seen = (reaches(&friend.netns, (web.ip, 8080)), reaches(&friend.netns, (web.ip, 9090)), ask());
        assert_eq!(seen, (tcp_8080, tcp_9090, udp), "ingress to {ports}");
        let egress = json!({"podSelector": app("friend"), "policyTypes": ["Egress"], "egress": [{"ports": ports}]});
        cluster.enforce(&[egress]).await;
        let seen = (reaches(&friend.netns, (web.ip, 8080)), reaches(&friend.netns, (web.ip, 9090)), ask());
        assert_eq!(seen, (tcp_8080, tcp_9090, udp), "egress to {ports}");
    }
}

#[tokio::test]
async fn services_hide_nothing_and_the_world_is_a_block() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let outside = Netns::new();
    connect_outside(&node.netns, &outside);
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    let mut proxy = Proxy::open(node.net.clone(), "node");
    let spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 80, "nodePort": 30080}]});
    proxy.sync(&[service("web", spec)], &[slice("web", 8080, "TCP", &[web.ip])]).await.unwrap();
    let node_port = (IpAddr::from([192, 0, 2, 1]), 30080);

    // By cluster address, judged as the pod's own.
    let rule = |cidr: &str, except: &[&str]| {
        let block = json!({"cidr": cidr, "except": except});
        json!({"podSelector": app("web"), "ingress": [
            {"from": [{"ipBlock": block}, {"podSelector": app("friend")}], "ports": [{"port": 8080}]},
        ]})
    };
    cluster.enforce(&[rule("192.0.2.0/24", &[])]).await;
    assert!(reaches(&friend.netns, (VIP, 80)) && !reaches(&stranger.netns, (VIP, 80)));
    assert!(reaches(&outside, node_port), "the client's own address counts, not the node's");
    cluster.enforce(&[rule("192.0.2.0/24", &["192.0.2.0/30"])]).await;
    assert!(!reaches(&outside, node_port));

    // What a pod may open, through the service too.
    let listener = outside.run(|| std::net::TcpListener::bind("192.0.2.2:443").unwrap());
    let egress = |rules: Value| json!({"podSelector": app("friend"), "policyTypes": ["Egress"], "egress": rules});
    cluster.enforce(&[egress(json!([{"to": [{"podSelector": app("web")}], "ports": [{"port": "web"}]}]))]).await;
    assert!(reaches(&friend.netns, (VIP, 80)) && !reaches(&friend.netns, (web.ip, 9090)));
    assert!(!reaches(&friend.netns, (IpAddr::from([192, 0, 2, 2]), 443)));
    assert!(reaches(&stranger.netns, (IpAddr::from([192, 0, 2, 2]), 443)));
    cluster.enforce(&[egress(json!([{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]))]).await;
    assert!(!reaches(&friend.netns, (VIP, 80)));
    assert!(reaches(&friend.netns, (IpAddr::from([192, 0, 2, 2]), 443)));
    // Nothing at all, but for the node: name servers and probes are there.
    cluster.enforce(&[egress(json!([]))]).await;
    assert!(!reaches(&friend.netns, (VIP, 80)) && !reaches(&friend.netns, (IpAddr::from([192, 0, 2, 2]), 443)));
    let on_node = node.netns.run(|| std::net::TcpListener::bind("0.0.0.0:5353").unwrap());
    assert!(reaches(&friend.netns, (node.net.bridge_gateway(), 5353)));
    drop((listener, on_node));
}

#[tokio::test]
async fn pods_that_end_or_are_the_node_s() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    let only_friends = json!({"podSelector": app("web"), "ingress": [{"from": [{"podSelector": app("friend")}]}]});
    cluster.enforce(std::slice::from_ref(&only_friends)).await;
    let mut open = Client::connect(&friend.netns, (web.ip, 8080)).unwrap();
    open.line().unwrap();
    // While they end, policies hold, for those that are selected as for their peers.
    for ending in [&web, &friend] {
        cluster.change(ending, |pod| pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:00Z"));
    }
    cluster.sync().await;
    assert!(reaches(&friend.netns, (web.ip, 8080)) && !reaches(&stranger.netns, (web.ip, 8080)));
    // Ended, its address is the next one's, who is no friend.
    cluster.change(&friend, |pod| pod["status"]["phase"] = json!("Succeeded"));
    cluster.sync().await;
    assert!(!reaches(&friend.netns, (web.ip, 8080)));
    assert_eq!(open.echo("still here").unwrap(), "still here");
    cluster.change(&friend, |pod| pod["status"]["phase"] = json!("Running"));
    // The node's own network is neither a friend's nor isolated.
    cluster.change(&friend, |pod| pod["spec"]["hostNetwork"] = json!(true));
    cluster.change(&web, |pod| pod["spec"]["hostNetwork"] = json!(true));
    cluster.sync().await;
    assert!(reaches(&stranger.netns, (web.ip, 8080)));
    cluster.change(&web, |pod| pod["spec"]["hostNetwork"] = json!(false));
    cluster.sync().await;
    assert!(!reaches(&friend.netns, (web.ip, 8080)));
}

/// Sends an INIT chunk to a port and tells whether it arrives. Sockets for SCTP are not in every kernel, raw ones are.
fn sctp_arrives(from: &Pod, to: &Pod, port: u16) -> bool {
    use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, sendto, socket, sockopt};
    let sctp = Protocol::from_raw(std::num::NonZeroU32::new(132).unwrap());
    let raw = |pod: &Pod| pod.netns.run(move || socket(AddressFamily::INET, SocketType::RAW, Some(sctp)).unwrap());
    let (sender, receiver) = (raw(from), raw(to));
    sockopt::set_socket_timeout(&receiver, sockopt::Timeout::Recv, Some(REFUSES_SILENTLY)).unwrap();
    let mut packet = vec![0; 32];
    packet[..2].copy_from_slice(&4000u16.to_be_bytes());
    packet[2..4].copy_from_slice(&port.to_be_bytes());
    // INIT, 20 bytes long, with a tag and a window.
    (packet[12], packet[15], packet[19], packet[22], packet[25], packet[27]) = (1, 20, 7, 0xff, 1, 1);
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    let address = std::net::SocketAddr::new(to.ip, 0);
    sendto(&sender, &packet, SendFlags::empty(), &address).unwrap();
    let mut buffer = [0; 256];
    recv(&receiver, &mut buffer[..], RecvFlags::empty()).is_ok()
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[tokio::test]
async fn sctp_by_port() {
    if !privileged() {
        return;
    }
    let node = Node::new().await;
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    assert!(sctp_arrives(&friend, &web, 3868));
    let ports = json!([{"protocol": "SCTP", "port": 3868}]);
    let rules = json!([{"from": [{"podSelector": app("friend")}], "ports": ports}]);
    cluster.enforce(&[json!({"podSelector": app("web"), "ingress": rules})]).await;
    // From pods that the connection tracking does not know yet.
    let (friend, other) = (node.pod().await, friend);
    cluster.add("default", "friend", friend.ip);
    cluster.sync().await;
    assert!(sctp_arrives(&friend, &web, 3868));
    assert!(!sctp_arrives(&friend, &web, 3869), "another port");
    assert!(!sctp_arrives(&stranger, &web, 3868), "another peer");
    assert!(!reaches(&other.netns, (web.ip, 8080)), "another protocol");
}

fn named<T: serde::de::DeserializeOwned>(name: &str, spec: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
}

#[tokio::test]
async fn administrators_rules_come_first_and_last() {
    if !privileged() {
        return;
    }
    let node = Node::open(&["10.42.0.0/24", "fd42::/64"], |_| {}).await;
    let outside = Netns::new();
    outside.command("ip", &["link", "set", "lo", "up"]);
    connect_outside(&node.netns, &outside);
    outside.command("ip", &["route", "add", "10.42.0.0/16", "via", "192.0.2.1"]);
    outside.command("ip", &["-6", "route", "add", "fd42::/56", "via", "2001:db8::1"]);
    let listener = outside.run(|| std::net::TcpListener::bind("[::]:443").unwrap());
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    let of = |name: &str| json!({"pods": {"namespaceSelector": {}, "podSelector": app(name)}});
    // Both families, as each address of a pod is judged.
    let seen = |from: &Pod| {
        let (four, six) = (reaches(&from.netns, (web.ips[0], 8080)), reaches(&from.netns, (web.ips[1], 8080)));
        assert_eq!(four, six);
        four
    };
    for (pod, name) in [(&web, "web"), (&friend, "friend"), (&stranger, "stranger")] {
        let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
        cluster.change(pod, |object| object["status"]["podIPs"] = json!(ips));
        assert_eq!(cluster.sync().await, 0, "{name}: no policy, nothing to do");
    }
    let deny_friends =
        json!({"priority": 20, "subject": of("web"), "ingress": [{"action": "Deny", "from": [of("friend")]}]});
    cluster.objects.admin = vec![named("deny", deny_friends)];
    let everyone = json!({"podSelector": app("web"), "ingress": [{}]});
    cluster.enforce(&[everyone]).await;
    assert!(!seen(&friend) && seen(&stranger), "a denial wins over what a NetworkPolicy permits");
    assert!(reaches(&node.netns, (web.ip, 8080)), "probes");
    let pass = json!({"priority": 10, "subject": of("web"), "ingress": [{
        "action": "Pass", "from": [of("friend")], "ports": [{"portNumber": {"protocol": "TCP", "port": 8080}}],
    }]});
    cluster.objects.admin.push(named("pass", pass));
    cluster.sync().await;
    assert!(seen(&friend) && !reaches(&friend.netns, (web.ip, 9090)), "earlier priorities are asked first");
    cluster.enforce(&[json!({"podSelector": app("web"), "policyTypes": ["Ingress"]})]).await;
    assert!(!seen(&friend) && !seen(&stranger), "what passes is the NetworkPolicy's to decide");
    cluster.objects.admin = vec![named(
        "allow",
        json!({"priority": 0, "subject": of("web"), "ingress": [
            {"action": "Allow", "from": [of("stranger")]},
        ]}),
    )];
    cluster.sync().await;
    assert!(!seen(&friend) && seen(&stranger), "and what is allowed is not");

    // The baseline is asked where no NetworkPolicy speaks of the direction.
    cluster.objects.admin.clear();
    let baseline = json!({"subject": of("web"), "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]});
    cluster.objects.baseline = vec![named("default", baseline)];
    cluster.enforce(&[json!({"podSelector": app("web"), "policyTypes": ["Egress"], "egress": [{}]})]).await;
    assert!(!seen(&friend));
    cluster.enforce(&[json!({"podSelector": app("web"), "ingress": [{}]})]).await;
    assert!(seen(&friend));

    // Networks and nodes that a pod may not reach.
    cluster.objects.baseline.clear();
    let there = [IpAddr::from([192, 0, 2, 2]), "2001:db8::2".parse().unwrap()];
    let egress = |rules: Value| json!({"priority": 1, "subject": of("friend"), "egress": rules});
    let out = |pod: &Pod| there.map(|to| reaches(&pod.netns, (to, 443)));
    cluster.objects.admin = vec![named(
        "out",
        egress(json!([
            {"action": "Pass", "to": [{"namespaces": {}}]},
            {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
        ])),
    )];
    cluster.enforce(&[]).await;
    assert_eq!((out(&friend), out(&stranger), seen(&friend)), ([false, true], [true, true], true));
    let worker = json!({
        "metadata": {"name": "worker", "labels": {"zone": "a"}},
        "status": {"addresses": there.map(|address| json!({"type": "InternalIP", "address": address}))},
    });
    cluster.objects.nodes = vec![Arc::new(serde_json::from_value(worker).unwrap())];
    let nodes = |zone: &str| json!([{"action": "Deny", "to": [{"nodes": {"matchLabels": {"zone": zone}}}]}]);
    cluster.objects.admin = vec![named("out", egress(nodes("a")))];
    cluster.sync().await;
    assert_eq!((out(&friend), out(&stranger)), ([false, false], [true, true]));
    cluster.objects.admin = vec![named("out", egress(nodes("b")))];
    cluster.sync().await;
    assert_eq!(out(&friend), [true, true]);

    // A restart changes nothing; without policies, nothing is left.
    let before = node.ruleset_text();
    cluster.policies = Policies::open(node.net.clone(), "node");
    assert_eq!(cluster.sync().await, 0);
    assert_eq!(node.ruleset_text(), before);
    cluster.objects.admin.clear();
    cluster.sync().await;
    for left in ["policy_admin_", "policy_permits_", "policy_baseline_", "policy_peers_"] {
        assert!(!node.ruleset_text().contains(left), "{}", node.ruleset_text());
    }
    drop(listener);
}

#[tokio::test]
async fn a_restart_finds_the_policies_in_force() {
    if !privileged() {
        return;
    }
    let mut node = Node::new().await;
    let mut cluster = Cluster::on(&node);
    let (web, friend, stranger) = pods(&node, &mut cluster).await;
    let rules = json!([{"from": [{"podSelector": app("friend")}], "ports": [{"port": "web"}]}]);
    cluster.enforce(&[json!({"podSelector": app("web"), "ingress": rules})]).await;
    let before = node.ruleset_text();
    node.reopen().await;
    cluster.policies = Policies::open(node.net.clone(), "node");
    assert_eq!(node.ruleset_text(), before);
    assert!(!reaches(&stranger.netns, (web.ip, 8080)), "nothing is open in between");
    assert_eq!(cluster.sync().await, 0, "the kernel already holds the plan");
    // What changed while the daemon was down is made up for.
    cluster.policies = Policies::open(node.net.clone(), "node");
    cluster.add("default", "friend", stranger.ip);
    cluster.add("default", "stranger", friend.ip);
    cluster.sync().await;
    assert!(reaches(&stranger.netns, (web.ip, 8080)) && !reaches(&friend.netns, (web.ip, 8080)));
    node.net.purge().await.unwrap();
    assert!(!node.ruleset_text().contains("policy"));
}
