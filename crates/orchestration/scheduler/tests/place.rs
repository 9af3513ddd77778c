//! Placement, case by case, in kube-scheduler's words.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::resources::Request;
use dhow_scheduler::{Decision, Engine, Outcome, PodKey, Snapshot, place};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi"}},
    });
    change(&mut node);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    }))
    .unwrap()
}

fn asking(name: &str, requests: Value) -> Pod {
    pod(name, json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
}

fn cluster(nodes: &[Arc<Node>]) -> Snapshot {
    let mut snapshot = Snapshot::new();
    nodes.iter().for_each(|n| snapshot.set_node(Arc::clone(n)));
    snapshot
}

fn key(name: &str) -> PodKey {
    ("default".to_owned(), name.to_owned())
}

fn chosen(snapshot: &Snapshot, pod: &Pod) -> String {
    match place(snapshot, pod) {
        Decision::Place { node } => node,
        Decision::Unschedulable(why) => panic!("{why}"),
    }
}

fn refusal(snapshot: &Snapshot, pod: &Pod) -> String {
    match place(snapshot, pod) {
        Decision::Place { node } => panic!("placed on {node}"),
        Decision::Unschedulable(why) => why.to_string(),
    }
}

#[test]
fn says_what_is_missing() {
    let plain = || node("n1", |_| {});
    let cases: Vec<(Arc<Node>, Value, &str)> = vec![
        (
            plain(),
            json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "4001m"}}}]}),
            "1 Insufficient cpu",
        ),
        (
            plain(),
            json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "9Gi", "cpu": "5"}}}]}),
            "1 Insufficient cpu, 1 Insufficient memory",
        ),
        (
            plain(),
            json!({"containers": [{"name": "c", "resources": {"requests": {"ephemeral-storage": "11Gi"}}}]}),
            "1 Insufficient ephemeral-storage",
        ),
        (
            plain(),
            json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}),
            "1 Insufficient example.com/gpu",
        ),
        (node("n1", |n| n["status"]["allocatable"]["pods"] = json!("0")), json!({}), "1 Too many pods"),
        (node("n1", |n| n["spec"]["unschedulable"] = json!(true)), json!({}), "1 node(s) were unschedulable"),
        (
            node("n1", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}])),
            json!({}),
            "1 node(s) had untolerated taint {k: v}",
        ),
        (plain(), json!({"nodeSelector": {"disk": "ssd"}}), "1 node(s) didn't match Pod's node affinity/selector"),
    ];
    for (node, spec, expected) in cases {
        assert_eq!(refusal(&cluster(&[node]), &pod("p", spec)), format!("0/1 nodes are available: {expected}."));
    }
    assert_eq!(refusal(&Snapshot::new(), &pod("p", json!({}))), "no nodes available to schedule pods");

    let three = cluster(&[
        plain(),
        node("n2", |n| n["spec"]["unschedulable"] = json!(true)),
        node("n3", |n| n["status"]["allocatable"]["cpu"] = json!("1")),
    ]);
    let text = refusal(&three, &asking("p", json!({"cpu": "8"})));
    assert_eq!(text, "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
}

#[test]
fn requests_follow_the_life_of_a_pod() {
    let request = |spec: Value| Request::of(&pod("p", spec)).amounts;
    let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    assert_eq!(request(json!({"containers": [c("100m"), c("200m")]})).cpu, 300);
    assert_eq!(request(json!({"initContainers": [c("1"), c("2")], "containers": [c("100m")]})).cpu, 2000);
    assert_eq!(request(json!({"initContainers": [sidecar("300m")], "containers": [c("100m")]})).cpu, 400);
    // The init container runs beside the sidecar that started before it, not beside the one after.
    let spec = json!({"initContainers": [sidecar("300m"), c("1"), sidecar("200m")], "containers": [c("100m")]});
    assert_eq!(request(spec).cpu, 1300);
    let spec = json!({"containers": [c("100m")], "overhead": {"cpu": "50m", "memory": "1Mi"}});
    assert_eq!((request(spec.clone()).cpu, request(spec).memory), (150, 1 << 20));
    let spec = json!({"containers": [c("100m")], "resources": {"requests": {"cpu": "2"}}});
    assert_eq!(request(spec).cpu, 2000);
    assert_eq!(request(json!({"containers": [c("0.1")]})).cpu, 100);
}

#[test]
fn tolerations_open_doors() {
    let tainted = |key: &str, effect: &str| {
        node("n1", |n| n["spec"]["taints"] = json!([{"key": key, "value": "v", "effect": effect}]))
    };
    let cases = [
        (json!({"key": "k", "operator": "Exists"}), true),
        (json!({"key": "k", "value": "v"}), true),
        (json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}), true),
        (json!({"operator": "Exists"}), true),
        (json!({"key": "k", "value": "w"}), false),
        (json!({"key": "other", "operator": "Exists"}), false),
        (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
    ];
    for (toleration, fits) in cases {
        let spec = json!({"tolerations": [toleration.clone()]});
        let placed = matches!(place(&cluster(&[tainted("k", "NoSchedule")]), &pod("p", spec)), Decision::Place { .. });
        assert_eq!(placed, fits, "{toleration}");
    }
    let cordoned = node("n1", |n| n["spec"]["unschedulable"] = json!(true));
    let daemon = json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]});
    assert_eq!(chosen(&cluster(&[cordoned]), &pod("p", daemon)), "n1");
    // PreferNoSchedule only discourages.
    let disliked = tainted("k", "PreferNoSchedule");
    assert_eq!(chosen(&cluster(&[Arc::clone(&disliked)]), &pod("p", json!({}))), "n1");
    assert_eq!(chosen(&cluster(&[disliked, node("n2", |_| {})]), &pod("p", json!({}))), "n2");
}

#[test]
fn affinity_requires_and_prefers() {
    let nodes = cluster(&[
        node("n1", |n| n["metadata"]["labels"] = json!({"zone": "a", "cores": "8"})),
        node("n2", |n| n["metadata"]["labels"] = json!({"zone": "b", "cores": "16"})),
        node("n3", |n| n["metadata"]["labels"] = json!({"zone": "c", "gpu": ""})),
    ]);
    let required = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
    let one = |key: &str, operator: &str, values: Value| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
    for (terms, expected) in [
        (one("zone", "In", json!(["b"])), "n2"),
        (one("zone", "NotIn", json!(["a", "b"])), "n3"),
        (one("gpu", "Exists", json!([])), "n3"),
        (one("cores", "Gt", json!(["8"])), "n2"),
        (one("cores", "Lt", json!(["9"])), "n1"),
        (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n3"]}]}]), "n3"),
        (
            json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}, {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]),
            "n3",
        ),
    ] {
        assert_eq!(chosen(&nodes, &pod("p", required(terms.clone()))), expected, "{terms}");
    }
    assert!(
        refusal(&nodes, &pod("p", required(json!([{}])))).contains("3 node(s) didn't match"),
        "an empty term matches nothing"
    );
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}},
        {"weight": 60, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}},
    ]}}});
    assert_eq!(chosen(&nodes, &pod("p", preferred)), "n3");
}

#[test]
fn host_ports_are_held_once() {
    let mut nodes = cluster(&[node("n1", |_| {})]);
    let with = |name: &str, port: Value| pod(name, json!({"containers": [{"name": "c", "ports": [port]}]}));
    nodes.place_pod(key("a"), &with("a", json!({"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"})), "n1");
    let taken = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    for (port, free) in [
        (json!({"containerPort": 80, "hostPort": 8080}), false),
        (json!({"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"}), false),
        (json!({"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.2"}), true),
        (json!({"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}), true),
        (json!({"containerPort": 8080}), true),
    ] {
        let pod = with("b", port.clone());
        if free {
            assert_eq!(chosen(&nodes, &pod), "n1", "{port}");
        } else {
            assert_eq!(refusal(&nodes, &pod), taken, "{port}");
        }
    }
    nodes.remove_pod(&key("a"));
    assert_eq!(chosen(&nodes, &with("b", json!({"containerPort": 80, "hostPort": 8080}))), "n1");
}

#[test]
fn spreads_over_equal_nodes_and_balances() {
    let mut nodes = cluster(&[node("n1", |_| {}), node("n2", |_| {}), node("n3", |_| {})]);
    let mut seen = Vec::new();
    for i in 0..6 {
        let pod = pod(&format!("p{i}"), json!({}));
        let name = chosen(&nodes, &pod);
        nodes.place_pod(key(&format!("p{i}")), &pod, &name);
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, ["n1", "n1", "n2", "n2", "n3", "n3"]);
    // Of two equally full nodes, the one whose CPU and memory end up even is better.
    let mut nodes = cluster(&[node("n1", |_| {}), node("n2", |_| {})]);
    nodes.place_pod(key("cpu"), &asking("cpu", json!({"cpu": "2", "memory": "0"})), "n1");
    nodes.place_pod(key("memory"), &asking("memory", json!({"cpu": "0", "memory": "4Gi"})), "n2");
    assert_eq!(chosen(&nodes, &asking("p", json!({"cpu": "1", "memory": "0"}))), "n2");
    assert_eq!(chosen(&nodes, &asking("p", json!({"cpu": "0", "memory": "2Gi"}))), "n1");
}

fn labelled(name: &str, app: &str, spec: Value) -> Pod {
    let mut pod = pod(name, spec);
    pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
    pod
}

fn beside(kind: &str, app: &str) -> Value {
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]);
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}})
}

fn zones(names: &[&str]) -> Snapshot {
    let nodes: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, zone)| node(&format!("n{i}"), |n| n["metadata"]["labels"] = json!({"zone": zone})))
        .collect();
    cluster(&nodes)
}

#[test]
fn pods_keep_together_and_apart() {
    let mut nodes = zones(&["a", "a", "b"]);
    let web = labelled("web", "web", json!({}));
    let near = pod("near", beside("podAffinity", "web"));
    assert_eq!(refusal(&nodes, &near), "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.");
    nodes.place_pod(key("web"), &web, "n2");
    assert_eq!(chosen(&nodes, &near), "n2");
    let apart = pod("apart", beside("podAntiAffinity", "web"));
    assert!(chosen(&nodes, &apart) != "n2");
    // The first of a group that keeps to itself may go anywhere.
    assert_eq!(chosen(&nodes, &labelled("first", "db", beside("podAffinity", "db"))), "n0");

    // What is there keeps others away, too, and elsewhere is another namespace.
    nodes.place_pod(key("apart"), &apart, "n0");
    assert_eq!(chosen(&nodes, &labelled("web2", "web", json!({}))), "n2");
    let mut elsewhere = near.clone();
    elsewhere.metadata.namespace = Some("other".into());
    assert!(refusal(&nodes, &elsewhere).contains("3 node(s) didn't match pod affinity rules"));
    let one_per_zone = |name: &str| labelled(name, "x", beside("podAntiAffinity", "x"));
    nodes.place_pod(key("x1"), &one_per_zone("x1"), "n0");
    nodes.place_pod(key("x2"), &one_per_zone("x2"), "n2");
    let full = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.";
    assert_eq!(refusal(&nodes, &one_per_zone("x3")), full);
    let late = labelled("late", "x", json!({}));
    let kept = "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules.";
    assert_eq!(refusal(&nodes, &late), kept);
    nodes.remove_pod(&key("x2"));
    assert_eq!(chosen(&nodes, &late), "n2");

    let mut odd = beside("podAffinity", "web");
    odd["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["matchLabelKeys"] =
        json!(["v"]);
    assert_eq!(refusal(&nodes, &pod("p", odd)), "pod affinity with matchLabelKeys is not supported by this scheduler.");
}

#[test]
fn spread_constraints_hold() {
    let mut nodes = zones(&["a", "a", "b"]);
    let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]});
    let mut zones = Vec::new();
    for i in 0..6 {
        let pod = labelled(&format!("w{i}"), "web", spec.clone());
        let name = chosen(&nodes, &pod);
        nodes.place_pod(key(&format!("w{i}")), &pod, &name);
        zones.push(if name == "n2" { "b" } else { "a" });
        let a = zones.iter().filter(|z| **z == "a").count();
        assert!(a.abs_diff(zones.len() - a) <= 1, "{zones:?}");
    }
    nodes.set_node(node("n2", |n| {
        n["metadata"]["labels"] = json!({"zone": "b"});
        n["spec"]["unschedulable"] = json!(true);
    }));
    let next = labelled("w6", "web", spec.clone());
    assert!(chosen(&nodes, &next) != "n2");
    nodes.place_pod(key("w6"), &next, "n0");
    let text = refusal(&nodes, &labelled("w7", "web", spec));
    assert_eq!(
        text,
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn an_arrival_wakes_pods_that_wait_for_company() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(None, node("n0", |n| n["metadata"]["labels"] = json!({"zone": "a"})));
    let near = pod("near", beside("podAffinity", "web"));
    assert!(matches!(engine.decide(&key("near"), &near), Outcome::Wait(_)));
    let mut web = labelled("web", "web", json!({"nodeName": "n0"}));
    assert_eq!(engine.pod_changed(key("web"), &web), [key("near")]);
    assert_eq!(engine.decide(&key("near"), &near), Outcome::Bind { node: "n0".into() });
    web.metadata.resource_version = Some("2".into());
    assert!(engine.pod_changed(key("web"), &web).is_empty());
}

#[test]
fn the_engine_counts_assumed_pods_and_wakes_waiting_ones() {
    let engine = Engine::new("default-scheduler");
    let n1 = node("n1", |n| n["status"]["allocatable"]["cpu"] = json!("1"));
    assert!(engine.node_changed(None, Arc::clone(&n1)).is_empty());
    let (a, b) = (asking("a", json!({"cpu": "600m"})), asking("b", json!({"cpu": "600m"})));
    assert_eq!(engine.pod_changed(key("a"), &a), [key("a")]);
    assert_eq!(engine.decide(&key("a"), &a), Outcome::Bind { node: "n1".into() });
    assert_eq!(engine.decide(&key("a"), &a), Outcome::Ignore, "decided once");
    assert!(engine.pod_changed(key("a"), &a).is_empty(), "an update before the binding is seen changes nothing");
    let Outcome::Wait(why) = engine.decide(&key("b"), &b) else { panic!("b fits beside an assumed pod") };
    assert_eq!(why.to_string(), "0/1 nodes are available: 1 Insufficient cpu.");

    // Our own status update must not make us try again; a heartbeat neither.
    assert!(engine.pod_changed(key("b"), &b).is_empty());
    assert!(
        engine
            .node_changed(
                Some(&n1),
                node("n1", |n| {
                    n["status"]["allocatable"]["cpu"] = json!("1");
                    n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
                })
            )
            .is_empty()
    );

    assert_eq!(engine.bind_failed(&key("a")), [key("b")]);
    assert_eq!(engine.decide(&key("b"), &b), Outcome::Bind { node: "n1".into() });
    assert!(matches!(engine.decide(&key("a"), &a), Outcome::Wait(_)));
    let mut bound = b.clone();
    bound.spec.as_mut().unwrap().node_name = Some("n1".into());
    assert!(engine.pod_changed(key("b"), &bound).is_empty());
    assert!(engine.bind_failed(&key("b")).is_empty(), "the API says it is bound");
    assert!(matches!(engine.decide(&key("a"), &a), Outcome::Wait(_)));

    bound.status.get_or_insert_default().phase = Some("Succeeded".into());
    assert_eq!(engine.pod_changed(key("b"), &bound), [key("a")], "a finished pod makes room");
    assert!(matches!(engine.decide(&key("a"), &a), Outcome::Bind { .. }));
    assert!(engine.pod_removed(&key("a")).is_empty());

    let gated = pod("g", json!({"schedulingGates": [{"name": "x"}]}));
    assert!(engine.pod_changed(key("g"), &gated).is_empty());
    let other = pod("o", json!({"schedulerName": "other"}));
    assert!(engine.pod_changed(key("o"), &other).is_empty());
    assert_eq!(engine.decide(&key("o"), &other), Outcome::Ignore);
}
