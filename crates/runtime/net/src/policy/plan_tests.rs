//! The planned rules against an oracle that reads the policies as the API describes them, on random clusters.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(super) const NODES: [&str; 2] = ["here", "there"];
pub(super) const NAMESPACES: [&str; 3] = ["a", "b", "c"];
pub(super) const OUTSIDE: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 130)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
];
pub(super) const PORTS: [u16; 5] = [79, 80, 81, 443, 8080];

pub(super) fn here(node: &str) -> Here<'_> {
    Here { node, families: &Family::BOTH, starting: &[] }
}

/// What there is, and what of it is asked by the oracle directly.
#[derive(Clone)]
pub(super) struct Cluster {
    pub pods: Vec<Arc<core::Pod>>,
    pub namespaces: Vec<Arc<core::Namespace>>,
    pub policies: Vec<Arc<NetworkPolicy>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Connection {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

// -- the planned rules, as the kernel goes through them ---------------------------------------------

fn permitted_by(plan: &Plan, chain: Option<&String>, connection: Connection) -> bool {
    let Some(chain) = chain else { return true };
    let Chain { direction, rules, otherwise } = &plan.chains[chain];
    let peer = if *direction == Direction::Ingress { connection.from } else { connection.to };
    let Connection { to, protocol, port, .. } = connection;
    let matches = |rule: &&ChainRule| {
        let peer_matches = match &rule.peer {
            MatchedPeer::Anyone => true,
            MatchedPeer::Set(set) => plan.peers[set].contains(&peer),
            MatchedPeer::Block { cidr, except } => cidr.contains(peer) && !except.iter().any(|e| e.contains(peer)),
        };
        let port_matches = match &rule.ports {
            MatchedPorts::All => true,
            MatchedPorts::Protocol(of) => *of == protocol,
            MatchedPorts::Range(of, first, last) => *of == protocol && (*first..=*last).contains(&port),
            MatchedPorts::Named(set) => plan.named_ports[set].contains(&(to, protocol, port)),
        };
        peer_matches && port_matches
    };
    match rules.iter().find(matches).map_or(otherwise, |rule| &rule.outcome) {
        Outcome::Allow => true,
        Outcome::Deny => false,
        Outcome::Ask(next) => permitted_by(plan, Some(next), connection),
    }
}

/// Every node enforces its own pods' side; a connection has to pass both.
pub(super) fn permitted(plans: &[Plan], connection: Connection) -> bool {
    connection.from == connection.to
        || plans.iter().all(|plan| {
            permitted_by(plan, plan.egress.get(&connection.from), connection)
                && permitted_by(plan, plan.ingress.get(&connection.to), connection)
        })
}

// -- the oracle -------------------------------------------------------------------------------------

pub(super) fn selects(selector: &SelectorObject, labels: Option<&BTreeMap<String, String>>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| label(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let (value, values) = (label(&expression.key), expression.values.clone().unwrap_or_default());
            match expression.operator.as_str() {
                "In" => value.is_some_and(|value| values.contains(value)),
                "NotIn" => value.is_none_or(|value| !values.contains(value)),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

impl Cluster {
    pub fn pod_at(&self, address: IpAddr) -> Option<&core::Pod> {
        let at = |pod: &&Arc<core::Pod>| {
            let spec = pod.spec.as_ref().unwrap();
            spec.host_network != Some(true)
                && pod.status.as_ref().unwrap().pod_ips.iter().flatten().any(|ip| ip.ip == address.to_string())
        };
        self.pods.iter().find(at).map(AsRef::as_ref)
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, policy_namespace: &str, address: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let inside = |cidr: &String| cidr.parse::<Cidr>().is_ok_and(|cidr| cidr.contains(address));
            return inside(&block.cidr) && !block.except.iter().flatten().any(inside);
        }
        let Some(pod) = self.pod_at(address) else { return false };
        let namespace = pod.metadata.namespace.as_deref().unwrap();
        let in_namespace = match &peer.namespace_selector {
            None => namespace == policy_namespace,
            Some(selector) => self.namespaces.iter().any(|n| {
                n.metadata.name.as_deref() == Some(namespace) && selects(selector, n.metadata.labels.as_ref())
            }),
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selects(s, pod.metadata.labels.as_ref()))
    }

    fn rule_permits(
        &self,
        namespace: &str,
        peers: Option<&Vec<NetworkPolicyPeer>>,
        ports: Option<&Vec<k8s_openapi::api::networking::v1::NetworkPolicyPort>>,
        peer: IpAddr,
        connection: Connection,
    ) -> bool {
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        peers.is_none_or(|peers| peers.iter().any(|p| self.is_peer(p, namespace, peer)))
            && ports.is_none_or(|ports| {
                ports.iter().any(|port| {
                    let protocol = port.protocol.as_deref().unwrap_or("TCP");
                    protocol == connection.protocol.name()
                        && match &port.port {
                            None => true,
                            Some(IntOrString::Int(first)) => {
                                (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(connection.port))
                            }
                            Some(IntOrString::String(name)) => self.pod_at(connection.to).is_some_and(|pod| {
                                pod.spec.as_ref().unwrap().containers.iter().any(|container| {
                                    container.ports.iter().flatten().any(|p| {
                                        p.name.as_ref() == Some(name)
                                            && p.protocol.as_deref().unwrap_or("TCP") == protocol
                                            && p.container_port == i32::from(connection.port)
                                    })
                                })
                            }),
                        }
                })
            })
    }

    /// `None` where no policy speaks.
    pub fn direction_permits(&self, direction: Direction, connection: Connection) -> Option<bool> {
        let (own, peer) = match direction {
            Direction::Ingress => (connection.to, connection.from),
            Direction::Egress => (connection.from, connection.to),
        };
        let pod = self.pod_at(own)?;
        let mut isolated = false;
        for policy in &self.policies {
            let spec = policy.spec.as_ref().unwrap();
            let namespace = policy.metadata.namespace.as_deref().unwrap();
            let selected = spec.pod_selector.as_ref().is_none_or(|s| selects(s, pod.metadata.labels.as_ref()));
            if pod.metadata.namespace.as_deref() != Some(namespace) || !selected {
                continue;
            }
            let named = |name: &str| spec.policy_types.iter().flatten().any(|t| t == name);
            let listed = spec.policy_types.iter().flatten().next().is_some();
            let permits = match direction {
                Direction::Ingress if !listed || named("Ingress") => spec.ingress.iter().flatten().any(|rule| {
                    self.rule_permits(namespace, rule.from.as_ref(), rule.ports.as_ref(), peer, connection)
                }),
                Direction::Egress
                    if named("Egress") || (!listed && spec.egress.as_ref().is_some_and(|e| !e.is_empty())) =>
                {
                    spec.egress.iter().flatten().any(|rule| {
                        self.rule_permits(namespace, rule.to.as_ref(), rule.ports.as_ref(), peer, connection)
                    })
                }
                _ => continue,
            };
            if permits {
                return Some(true);
            }
            isolated = true;
        }
        isolated.then_some(false)
    }

    fn permits(&self, connection: Connection) -> bool {
        connection.from == connection.to
            || [Direction::Egress, Direction::Ingress]
                .iter()
                .all(|direction| self.direction_permits(*direction, connection).unwrap_or(true))
    }

    pub fn objects(&self) -> Objects {
        let Self { pods, namespaces, policies } = self.clone();
        Objects { pods, namespaces, policies, ..Objects::default() }
    }

    /// Addresses of its pods, and some of nobody's, in pairs of one family.
    pub fn pairs(&self) -> Vec<(IpAddr, IpAddr)> {
        let statuses = self.pods.iter().flat_map(|pod| pod.status.iter());
        let pods = statuses.flat_map(|status| status.pod_ips.iter().flatten().map(|ip| ip.ip.parse().unwrap()));
        let addresses: Vec<IpAddr> = pods.chain(OUTSIDE).collect();
        let pairs = addresses.iter().flat_map(|from| addresses.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to)).collect()
    }
}

// -- random clusters --------------------------------------------------------------------------------

pub(super) fn any_labels() -> impl Strategy<Value = Value> {
    (0..3u8, 0..3u8).prop_map(|(x, y)| {
        let mut labels = json!({});
        for (key, value) in [("x", x), ("y", y)] {
            if value > 0 {
                labels[key] = json!(value.to_string());
            }
        }
        labels
    })
}

pub(super) fn any_selector() -> impl Strategy<Value = Value> {
    let expression = (prop_oneof![Just("x"), Just("y")], 0..4usize, 1..3u8).prop_map(|(key, operator, value)| {
        let operator = ["In", "NotIn", "Exists", "DoesNotExist"][operator];
        match operator {
            "In" | "NotIn" => json!({"key": key, "operator": operator, "values": [value.to_string()]}),
            _ => json!({"key": key, "operator": operator}),
        }
    });
    prop_oneof![
        Just(json!({})),
        any_labels().prop_map(|labels| json!({"matchLabels": labels})),
        proptest::collection::vec(expression, 1..3).prop_map(|all| json!({"matchExpressions": all})),
    ]
}

fn any_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_selector().prop_map(|s| json!({"podSelector": s})),
        any_selector().prop_map(|s| json!({"namespaceSelector": s})),
        (any_selector(), any_selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        Just(json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}})),
        Just(json!({"ipBlock": {"cidr": "10.42.0.0/16", "except": ["10.42.0.4/31", "10.42.1.0/29"]}})),
        Just(json!({"ipBlock": {"cidr": "2001:db8::/32"}})),
        Just(json!({"ipBlock": {"cidr": "::/0", "except": ["fd42:0:0:1::/64"]}})),
    ]
}

fn any_ports() -> impl Strategy<Value = Value> {
    let protocol = || prop_oneof![Just("TCP"), Just("UDP")];
    prop_oneof![
        protocol().prop_map(|p| json!({"protocol": p})),
        (protocol(), proptest::sample::select(&PORTS[..])).prop_map(|(p, n)| json!({"protocol": p, "port": n})),
        Just(json!({"port": 80, "endPort": 443})),
        (protocol(), prop_oneof![Just("web"), Just("dns"), Just("none")])
            .prop_map(|(p, name)| json!({"protocol": p, "port": name})),
    ]
}

fn any_policy() -> impl Strategy<Value = Value> {
    let lists = || (proptest::collection::vec(any_peer(), 0..3), proptest::collection::vec(any_ports(), 0..3));
    let rules = || proptest::collection::vec(lists(), 0..3);
    let types = prop_oneof![
        Just(json!(null)),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    (proptest::sample::select(&NAMESPACES[..]), any_selector(), rules(), rules(), types).prop_map(
        |(namespace, pods, ingress, egress, types)| {
            let rules = |peers: &str, rules: Vec<(Vec<Value>, Vec<Value>)>| {
                rules.into_iter().map(|(p, ports)| json!({peers: p, "ports": ports})).collect::<Vec<_>>()
            };
            json!({
                "metadata": {"namespace": namespace},
                "spec": {
                    "podSelector": pods, "policyTypes": types,
                    "ingress": rules("from", ingress), "egress": rules("to", egress),
                },
            })
        },
    )
}

fn any_pod() -> impl Strategy<Value = Value> {
    let port = (prop_oneof![Just("web"), Just("dns")], prop_oneof![Just("TCP"), Just("UDP")], 0..PORTS.len())
        .prop_map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "containerPort": PORTS[port]}));
    let ports = proptest::collection::vec(port, 0..3);
    let namespace = proptest::sample::select(&NAMESPACES[..]);
    let node = proptest::sample::select(&NODES[..]);
    (namespace, any_labels(), node, ports, 0..8u8).prop_map(|(namespace, labels, node, ports, rare)| {
        json!({
            "metadata": {"namespace": namespace, "labels": labels},
            "spec": {
                "nodeName": node, "hostNetwork": rare == 0,
                "containers": [{"name": "c", "ports": ports}],
            },
            "status": {"phase": "Running"},
        })
    })
}

pub(super) fn any_cluster() -> impl Strategy<Value = Cluster> {
    let pods = proptest::collection::vec(any_pod(), 2..8);
    let policies = proptest::collection::vec(any_policy(), 0..5);
    let labels = proptest::collection::vec(any_labels(), NAMESPACES.len());
    (pods, labels, policies).prop_map(|(pods, labels, policies)| {
        let object = |(index, mut pod): (usize, Value)| {
            let node = u8::from(pod["spec"]["nodeName"] == NODES[1]);
            let last = u8::try_from(index).unwrap() + 2;
            let four = Ipv4Addr::new(10, 42, node, last);
            pod["status"]["podIP"] = json!(four);
            let six = Ipv6Addr::new(0xfd42, 0, 0, node.into(), 0, 0, 0, last.into());
            pod["status"]["podIPs"] = json!([{"ip": four}, {"ip": six}]);
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let namespace = |(name, labels): (&&str, Value)| {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
        };
        Cluster {
            pods: pods.into_iter().enumerate().map(object).collect(),
            namespaces: NAMESPACES.iter().zip(labels).map(namespace).collect(),
            policies: policies.into_iter().map(|p| Arc::new(serde_json::from_value(p).unwrap())).collect(),
        }
    })
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pods = serde_json::to_string(&self.pods.iter().map(AsRef::as_ref).collect::<Vec<_>>()).unwrap();
        let policies = serde_json::to_string(&self.policies.iter().map(AsRef::as_ref).collect::<Vec<_>>()).unwrap();
        write!(f, "pods: {pods}\npolicies: {policies}")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plan_permits_what_the_policies_say(cluster in any_cluster()) {
        let plans: Vec<Plan> = NODES.iter().map(|node| plan(&cluster.objects(), here(node))).collect();
        for (from, to) in cluster.pairs() {
            for (protocol, port) in PORTS.iter().flat_map(|&port| [(Protocol::Tcp, port), (Protocol::Udp, port)]) {
                let connection = Connection { from, to, protocol, port };
                prop_assert_eq!(permitted(&plans, connection), cluster.permits(connection), "{:?}", connection);
            }
        }
    }
}

// -- what the plan costs ----------------------------------------------------------------------------

fn pods(count: u8) -> Vec<Arc<core::Pod>> {
    let pod = |index: u8| {
        json!({
            "metadata": {"namespace": "a", "name": index.to_string(), "labels": {"x": "1"}},
            "spec": {"nodeName": "here", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": Ipv4Addr::new(10, 42, 0, index)},
        })
    };
    (2..2 + count).map(|index| Arc::new(serde_json::from_value(pod(index)).unwrap())).collect()
}

#[test]
fn pods_share_chains_and_peers_and_a_new_pod_changes_elements_only() {
    let namespaces = [Arc::new(serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap())];
    let rule = json!([{"from": [{"podSelector": {"matchLabels": {"x": "1"}}}]}]);
    let policy = json!({"metadata": {"namespace": "a"}, "spec": {"podSelector": {}, "ingress": rule}});
    let policies = [Arc::new(serde_json::from_value(policy).unwrap())];
    let of = |count, node| {
        let objects = Objects {
            pods: pods(count),
            namespaces: namespaces.to_vec(),
            policies: policies.to_vec(),
            ..Objects::default()
        };
        plan(&objects, here(node))
    };
    let (few, more) = (of(3, "here"), of(4, "here"));
    assert_eq!((few.chains.len(), few.peers.len(), few.ingress.len(), few.egress.len()), (1, 1, 3, 0));
    assert_eq!(few.chains, more.chains);
    assert_eq!(few.peers.keys().collect::<Vec<_>>(), more.peers.keys().collect::<Vec<_>>());
    assert_eq!((more.ingress.len(), more.peers.values().next().unwrap().len()), (4, 4));
    assert_eq!(of(3, "there"), Plan::default(), "other nodes enforce their own pods");
}

#[test]
fn a_pod_is_isolated_before_its_status_has_its_address() {
    let namespaces = [Arc::new(serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap())];
    let policy = json!({"metadata": {"namespace": "a"}, "spec": {"podSelector": {"matchLabels": {"x": "1"}}}});
    let policies = [Arc::new(serde_json::from_value(policy).unwrap())];
    let new = |name: &str, x: &str, last: u8| StartingPod {
        namespace: "a".to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::from([("x".to_owned(), x.to_owned())]),
        addresses: vec![Ipv4Addr::new(10, 42, 0, last).into(), format!("fd42::{last}").parse().unwrap()],
    };
    let mut objects = pods(1);
    Arc::make_mut(&mut objects[0]).status = None;
    // The first has an object, which says what its labels are; the others are known by what the node was told.
    let starting = [new("2", "0", 2), new("other", "1", 3), new("open", "2", 4)];
    let objects =
        Objects { pods: objects, namespaces: namespaces.to_vec(), policies: policies.to_vec(), ..Objects::default() };
    let plan = plan(&objects, Here { starting: &starting, ..here("here") });
    let isolated: Vec<String> = plan.ingress.keys().map(ToString::to_string).collect();
    assert_eq!(isolated, ["10.42.0.2", "10.42.0.3", "fd42::2", "fd42::3"]);
}
