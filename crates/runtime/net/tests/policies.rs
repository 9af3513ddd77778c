//! Network policies on real packets: pods, services and the world beyond in namespaces of their own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use dhow_net::policy::Policies;
use dhow_net::proxy::Proxy;
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use support::{Client, Netns, Node, Pod, connect_outside, greeting, privileged, service, slice};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 80));
const REFUSES_SILENTLY: Duration = Duration::from_millis(400);

/// A cluster of one node, `node`, whose API objects the test writes itself.
struct Cluster {
    policies: Policies,
    pods: Vec<Arc<PodObject>>,
    namespaces: Vec<Arc<Namespace>>,
    rules: Vec<Arc<NetworkPolicy>>,
}

impl Cluster {
    fn on(node: &Node) -> Self {
        let namespace = |name: &str| {
            let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let namespaces = ["default", "other"].map(namespace).to_vec();
        Self { policies: Policies::open(node.net.clone(), "node"), pods: Vec::new(), namespaces, rules: Vec::new() }
    }

    fn add(&mut self, namespace: &str, app: &str, address: IpAddr) {
        let object = json!({
            "metadata": {"namespace": namespace, "name": address.to_string(), "labels": {"app": app}},
            "spec": {"nodeName": "node", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]},
            ]},
            "status": {"phase": "Running", "podIP": address},
        });
        self.pods.retain(|pod| pod.metadata.name != Some(address.to_string()));
        self.pods.push(Arc::new(serde_json::from_value(object).unwrap()));
    }

    async fn enforce(&mut self, specs: &[Value]) -> usize {
        let policy = |spec: &Value| {
            let object = json!({"metadata": {"namespace": "default", "name": "p"}, "spec": spec});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        self.rules = specs.iter().map(policy).collect();
        self.sync().await
    }

    async fn sync(&mut self) -> usize {
        self.policies.sync(&self.pods, &self.namespaces, &self.rules).await.unwrap()
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
