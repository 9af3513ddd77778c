//! The planned rules of all tiers against an oracle that reads the policies as upstream's API describes them.
#![allow(clippy::unwrap_used)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as SelectorObject, ObjectMeta};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::kinds::{ClusterNetworkPolicy, PolicyPeer, PolicyPort, PolicyProtocol, PolicyRule, PolicySpec};
use super::super::{AdminNetworkPolicy, BaselineAdminNetworkPolicy};
use super::tests::{
    Cluster, Connection, NODES, PORTS, any_cluster, any_labels, any_selector, here, permitted, selects,
};
use super::*;

/// A cluster with policies for all of it, and nodes besides those that run pods.
#[derive(Clone)]
struct Administered {
    cluster: Cluster,
    nodes: Vec<Arc<core::Node>>,
    admin: Vec<Arc<AdminNetworkPolicy>>,
    baseline: Vec<Arc<BaselineAdminNetworkPolicy>>,
    both: Vec<Arc<ClusterNetworkPolicy>>,
}

// -- the oracle -------------------------------------------------------------------------------------

/// What a tier says of a connection.
#[derive(Debug, PartialEq)]
enum Says {
    Allow,
    Deny,
    Pass,
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap()
}

impl Administered {
    fn namespace_labels(&self, name: &str) -> BTreeMap<String, String> {
        let found = self.cluster.namespaces.iter().find(|n| n.metadata.name.as_deref() == Some(name));
        found.and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    /// A subject, or a peer that is pods.
    fn is_of(&self, selection: &PolicyPeer, address: IpAddr) -> bool {
        let Some(pod) = self.cluster.pod_at(address) else { return false };
        let namespace = self.namespace_labels(pod.metadata.namespace.as_deref().unwrap());
        let of = |namespaces: &SelectorObject, pods: &SelectorObject| {
            selects(namespaces, Some(&namespace)) && selects(pods, pod.metadata.labels.as_ref())
        };
        match (&selection.namespaces, &selection.pods) {
            (Some(namespaces), _) => of(namespaces, &SelectorObject::default()),
            (_, Some(pods)) => of(&pods.namespace_selector, &pods.pod_selector),
            _ => false,
        }
    }

    fn is_peer(&self, peer: &PolicyPeer, address: IpAddr) -> bool {
        if let Some(nodes) = &peer.nodes {
            let selected = self.nodes.iter().filter(|node| selects(nodes, node.metadata.labels.as_ref()));
            let mut addresses = selected.flat_map(|n| n.status.as_ref().unwrap().addresses.iter().flatten());
            return addresses.any(|at| at.address == address.to_string());
        }
        if let Some(networks) = &peer.networks {
            return networks.iter().any(|network| network.parse::<Cidr>().unwrap().contains(address));
        }
        self.is_of(peer, address)
    }

    /// Whether the pod at the connection's end calls its port so, in the connection's protocol.
    fn has_name(&self, connection: Connection, name: &str) -> bool {
        let Some(pod) = self.cluster.pod_at(connection.to) else { return false };
        let ports = pod.spec.as_ref().unwrap().containers.iter().flat_map(|c| c.ports.iter().flatten());
        ports.clone().any(|port| {
            port.name.as_deref() == Some(name)
                && port.protocol.as_deref() == Some(connection.protocol.name())
                && port.container_port == i32::from(connection.port)
        })
    }

    fn is_port(&self, port: &PolicyPort, connection: Connection) -> bool {
        let (protocol, number) = (connection.protocol.name(), i32::from(connection.port));
        let named = |wanted: &str| wanted == protocol || (wanted.is_empty() && protocol == "TCP");
        if let Some(wanted) = &port.port_number {
            return named(&wanted.protocol) && wanted.port == number;
        }
        if let Some(range) = &port.port_range {
            return named(&range.protocol) && range.start <= number && number <= range.end;
        }
        self.has_name(connection, port.named_port.as_ref().unwrap())
    }

    fn is_protocol(&self, wanted: &PolicyProtocol, connection: Connection) -> bool {
        if let Some(name) = &wanted.destination_named_port {
            return self.has_name(connection, name);
        }
        let transport = match connection.protocol {
            Protocol::Tcp => &wanted.tcp,
            Protocol::Udp => &wanted.udp,
            Protocol::Sctp => &wanted.sctp,
        };
        let Some(transport) = transport else { return false };
        let Some(port) = &transport.destination_port else { return true };
        let number = i32::from(connection.port);
        match &port.range {
            Some(range) => (range.start..=range.end).contains(&number),
            None => port.number == Some(number),
        }
    }

    fn tier(&self, policies: &[(i32, String, &PolicySpec)], direction: Direction, connection: Connection) -> Says {
        let (own, peer) = match direction {
            Direction::Ingress => (connection.to, connection.from),
            Direction::Egress => (connection.from, connection.to),
        };
        let mut policies = policies.to_vec();
        policies.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, _, spec) in policies.into_iter().filter(|(_, _, spec)| self.is_of(&spec.subject, own)) {
            let rules: &[PolicyRule] = if direction == Direction::Ingress { &spec.ingress } else { &spec.egress };
            for rule in rules {
                let peers = if direction == Direction::Ingress { &rule.from } else { &rule.to };
                let ports = rule.ports.as_ref().is_none_or(|p| p.iter().any(|p| self.is_port(p, connection)));
                let protocols = rule.protocols.as_ref();
                let protocols = protocols.is_none_or(|p| p.iter().any(|p| self.is_protocol(p, connection)));
                if ports && protocols && peers.iter().any(|p| self.is_peer(p, peer)) {
                    return match rule.action.as_str() {
                        "Allow" | "Accept" => Says::Allow,
                        "Deny" => Says::Deny,
                        _ => Says::Pass,
                    };
                }
            }
        }
        Says::Pass
    }

    fn permits(&self, connection: Connection) -> bool {
        let of_both = |tier: &'static str| {
            let of_tier = self.both.iter().filter(move |policy| policy.spec.tier == tier);
            of_tier.map(|p| (p.spec.priority, name(&p.metadata), &p.spec))
        };
        let admin = self.admin.iter().map(|p| (p.spec.priority, name(&p.metadata), &p.spec));
        let admin: Vec<_> = admin.chain(of_both("Admin")).collect();
        let baseline = self.baseline.iter().map(|p| (i32::MAX, name(&p.metadata), &p.spec));
        let baseline: Vec<_> = baseline.chain(of_both("Baseline")).collect();
        let direction = |direction| match self.tier(&admin, direction, connection) {
            Says::Allow => true,
            Says::Deny => false,
            Says::Pass => self
                .cluster
                .direction_permits(direction, connection)
                .unwrap_or_else(|| self.tier(&baseline, direction, connection) != Says::Deny),
        };
        connection.from == connection.to || (direction(Direction::Egress) && direction(Direction::Ingress))
    }

    fn objects(&self) -> Objects {
        Objects {
            nodes: self.nodes.clone(),
            admin: self.admin.clone(),
            baseline: self.baseline.clone(),
            cluster: self.both.clone(),
            ..self.cluster.objects()
        }
    }
}

// -- random policies --------------------------------------------------------------------------------

fn any_pods() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_selector().prop_map(|s| json!({"namespaces": s})),
        (any_selector(), any_selector()).prop_map(|(n, p)| json!({"pods": {"namespaceSelector": n, "podSelector": p}})),
    ]
}

fn any_destination() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => any_pods(),
        1 => any_selector().prop_map(|s| json!({"nodes": s})),
        1 => Just(json!({"networks": ["192.0.2.0/25", "2001:db8::/32"]})),
        1 => Just(json!({"networks": ["10.42.0.0/29", "fd42::/63"]})),
        1 => Just(json!({"networks": ["0.0.0.0/0", "::/0"]})),
    ]
}

fn any_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("web"), Just("dns"), Just("none")]
}

fn any_ports() -> impl Strategy<Value = Value> {
    let protocol = || prop_oneof![Just("TCP"), Just("UDP"), Just("SCTP")];
    let port = || proptest::sample::select(&PORTS[..]);
    let v1alpha1 = prop_oneof![
        (protocol(), port()).prop_map(|(protocol, port)| json!({"portNumber": {"protocol": protocol, "port": port}})),
        protocol().prop_map(|protocol| json!({"portRange": {"protocol": protocol, "start": 80, "end": 443}})),
        any_name().prop_map(|name| json!({"namedPort": name})),
    ];
    let transport = || prop_oneof![Just("tcp"), Just("udp"), Just("sctp")];
    let v1alpha2 = prop_oneof![
        transport().prop_map(|protocol| json!({protocol: {}})),
        (transport(), port()).prop_map(|(protocol, port)| json!({protocol: {"destinationPort": {"number": port}}})),
        transport().prop_map(|protocol| json!({protocol: {"destinationPort": {"range": {"start": 80, "end": 443}}}})),
        any_name().prop_map(|name| json!({"destinationNamedPort": name})),
    ];
    prop_oneof![
        2 => Just(json!({})),
        1 => proptest::collection::vec(v1alpha1, 1..3).prop_map(|ports| json!({"ports": ports})),
        1 => proptest::collection::vec(v1alpha2, 1..3).prop_map(|protocols| json!({"protocols": protocols})),
    ]
}

fn any_rule(field: &'static str, peer: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let action = prop_oneof![Just("Allow"), Just("Accept"), Just("Deny"), Just("Pass")];
    (action, proptest::collection::vec(peer, 1..3), any_ports()).prop_map(move |(action, peers, mut rule)| {
        rule["action"] = json!(action);
        rule[field] = json!(peers);
        rule
    })
}

fn any_spec() -> impl Strategy<Value = Value> {
    let ingress = proptest::collection::vec(any_rule("from", any_pods()), 0..4);
    let egress = proptest::collection::vec(any_rule("to", any_destination()), 0..4);
    let tier = prop_oneof![Just("Admin"), Just("Baseline")];
    (any_pods(), 0..4, tier, ingress, egress).prop_map(|(subject, priority, tier, ingress, egress)| {
        json!({"subject": subject, "priority": priority, "tier": tier, "ingress": ingress, "egress": egress})
    })
}

fn named<T: serde::de::DeserializeOwned>(specs: Vec<Value>) -> Vec<Arc<T>> {
    let object = |(index, spec): (usize, Value)| {
        // Of equal priorities, the first by name counts.
        let name = format!("{}-{}", 9 - index, std::any::type_name::<T>());
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    };
    specs.into_iter().enumerate().map(object).collect()
}

fn any_administered() -> impl Strategy<Value = Administered> {
    let specs = || proptest::collection::vec(any_spec(), 0..3);
    let nodes = proptest::collection::vec(any_labels(), 2);
    (any_cluster(), nodes, specs(), proptest::collection::vec(any_spec(), 0..2), specs()).prop_map(
        |(cluster, nodes, admin, baseline, both)| {
            // What is outside of the pods' networks are nodes' addresses.
            let addresses = [["192.0.2.7", "2001:db8::7"], ["192.0.2.130", "worker"]];
            let node = |(labels, addresses): (Value, [&str; 2])| {
                let addresses = addresses.map(|a| json!({"type": "InternalIP", "address": a}));
                let object = json!({"metadata": {"name": "n", "labels": labels}, "status": {"addresses": addresses}});
                Arc::new(serde_json::from_value(object).unwrap())
            };
            let nodes = nodes.into_iter().zip(addresses).map(node).collect();
            Administered { cluster, nodes, admin: named(admin), baseline: named(baseline), both: named(both) }
        },
    )
}

impl std::fmt::Debug for Administered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |list: Vec<Value>| Value::from(list);
        let admin = list(self.admin.iter().map(|policy| json!(**policy)).collect());
        let baseline = list(self.baseline.iter().map(|policy| json!(**policy)).collect());
        let both = list(self.both.iter().map(|policy| json!(**policy)).collect());
        let nodes = list(self.nodes.iter().map(|node| json!(**node)).collect());
        write!(f, "{:?}\nadmin: {admin}\nbaseline: {baseline}\nboth: {both}\nnodes: {nodes}", self.cluster)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_permits_what_all_tiers_say(cluster in any_administered()) {
        let objects = cluster.objects();
        let plans: Vec<Plan> = NODES.iter().map(|node| plan(&objects, here(node))).collect();
        for (from, to) in cluster.cluster.pairs() {
            for &port in &PORTS {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    let connection = Connection { from, to, protocol, port };
                    prop_assert_eq!(permitted(&plans, connection), cluster.permits(connection), "{:?}", connection);
                }
            }
        }
    }
}

// -- what cannot be read -----------------------------------------------------------------------------

fn planned(rules: Value) -> Plan {
    let pod = json!({
        "metadata": {"namespace": "a", "name": "p"},
        "spec": {"nodeName": "here", "containers": []},
        "status": {"phase": "Running", "podIP": "10.42.0.2"},
    });
    let spec = json!({"subject": {"namespaces": {}}, "egress": rules});
    let objects = Objects {
        pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
        namespaces: vec![Arc::new(serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap())],
        admin: named(vec![spec]),
        ..Objects::default()
    };
    plan(&objects, here("here"))
}

#[test]
fn what_cannot_be_read_fails_closed() {
    let unknown = json!([{"networks": ["198.51.100.0/24"]}, {}]);
    let reaches = |plan: &Plan, to: &str| {
        let (from, to) = ("10.42.0.2".parse().unwrap(), to.parse().unwrap());
        permitted(std::slice::from_ref(plan), Connection { from, to, protocol: Protocol::Tcp, port: 80 })
    };
    for action in ["Deny", "Pass", "Later"] {
        let plan = planned(json!([{"action": action, "to": unknown}]));
        assert!(!reaches(&plan, "203.0.113.1"), "{action}");
    }
    let everyone = json!([{"networks": ["0.0.0.0/0"]}]);
    let allow = json!({"action": "Allow", "to": unknown});
    let plan = planned(json!([allow, {"action": "Deny", "to": everyone}]));
    assert!(!reaches(&plan, "198.51.100.1"), "a rule that allows what cannot be read allows nothing");
    let readable = json!({"action": "Allow", "to": [{"networks": ["198.51.100.0/24"]}]});
    let plan = planned(json!([readable, {"action": "Deny", "to": everyone}]));
    assert!(reaches(&plan, "198.51.100.1") && !reaches(&plan, "203.0.113.1"));
    let bad_port = json!([{"action": "Deny", "to": everyone, "ports": [{}]}]);
    assert!(!reaches(&planned(bad_port), "203.0.113.1"));
    let bad_selector = json!([{"action": "Deny", "to": [
        {"namespaces": {"matchExpressions": [{"key": "x", "operator": "Like", "values": ["y"]}]}},
    ]}]);
    assert!(!reaches(&planned(bad_selector), "203.0.113.1"));
}
