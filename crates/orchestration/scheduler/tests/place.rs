//! Placement, case by case, in kube-scheduler's words.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use dhow_scheduler::resources::Request;
use dhow_scheduler::{Decision, Engine, GroupRule, Outcome, PodKey, Snapshot, place};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
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
    match place(&mut snapshot.clone(), pod) {
        Decision::Place { node } => node,
        Decision::Unschedulable(why) => panic!("{why}"),
    }
}

fn refusal(snapshot: &Snapshot, pod: &Pod) -> String {
    match place(&mut snapshot.clone(), pod) {
        Decision::Place { node } => panic!("placed on {node}"),
        Decision::Unschedulable(why) => why.plain(),
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
        let placed =
            matches!(place(&mut cluster(&[tainted("k", "NoSchedule")]), &pod("p", spec)), Decision::Place { .. });
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
    let mut versioned = pod("p", odd);
    versioned.metadata.labels = Some([("v".to_owned(), "2".to_owned())].into());
    assert!(refusal(&nodes, &versioned).contains("3 node(s) didn't match pod affinity rules"), "none of its version");
    let mut web = labelled("web-2", "web", json!({}));
    web.metadata.labels.as_mut().unwrap().insert("v".to_owned(), "2".to_owned());
    nodes.remove_pod(&key("x1"));
    nodes.place_pod(key("web-2"), &web, "n1");
    versioned.metadata.labels.as_mut().unwrap().insert("app".to_owned(), "y".to_owned());
    assert!(["n0", "n1"].contains(&chosen(&nodes, &versioned).as_str()));
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

/// Everything that would be tried now.
fn awake(engine: &Engine) -> Vec<PodKey> {
    std::iter::from_fn(|| engine.pop().map(|(key, _)| key)).collect()
}

fn see(engine: &Engine, pod: &Pod) -> Vec<PodKey> {
    engine.pod_changed(key(pod.metadata.name.as_deref().unwrap()), &Arc::new(pod.clone()));
    awake(engine)
}

#[test]
fn an_arrival_wakes_pods_that_wait_for_company() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n0", |n| n["metadata"]["labels"] = json!({"zone": "a"})));
    let near = pod("near", beside("podAffinity", "web"));
    assert!(matches!(engine.decide(&key("near"), &near), Outcome::Wait(_)));
    let mut web = labelled("web", "web", json!({"nodeName": "n0"}));
    assert_eq!(see(&engine, &web), [key("near")]);
    assert_eq!(engine.decide(&key("near"), &near), Outcome::Bind { node: "n0".into() });
    web.metadata.resource_version = Some("2".into());
    assert!(see(&engine, &web).is_empty());
}

#[test]
fn the_engine_counts_assumed_pods_and_wakes_waiting_ones() {
    let engine = Engine::new("default-scheduler");
    let n1 = node("n1", |n| n["status"]["allocatable"]["cpu"] = json!("1"));
    engine.node_changed(Arc::clone(&n1));
    let (a, b) = (asking("a", json!({"cpu": "600m"})), asking("b", json!({"cpu": "600m"})));
    assert_eq!(see(&engine, &a), [key("a")]);
    assert_eq!(engine.decide(&key("a"), &a), Outcome::Bind { node: "n1".into() });
    assert_eq!(engine.decide(&key("a"), &a), Outcome::Ignore, "decided once");
    assert!(see(&engine, &a).is_empty(), "an update before the binding is seen changes nothing");
    assert_eq!(see(&engine, &b), [key("b")]);
    let Outcome::Wait(why) = engine.decide(&key("b"), &b) else { panic!("b fits beside an assumed pod") };
    assert_eq!(why.plain(), "0/1 nodes are available: 1 Insufficient cpu.");
    assert_eq!(
        why.advice.unwrap(),
        "It can run once a node has 600m of cpu free (the most is 400m on n1), or it requests less."
    );

    // Our own status update must not make us try again; a heartbeat neither.
    assert!(see(&engine, &b).is_empty());
    engine.node_changed(node("n1", |n| {
        n["status"]["allocatable"]["cpu"] = json!("1");
        n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    }));
    assert!(awake(&engine).is_empty());

    engine.bind_failed(&key("a"));
    assert_eq!(awake(&engine), [key("b")], "the room is free; a itself rests after the failure");
    assert!(engine.due().is_some());
    assert_eq!(engine.decide(&key("b"), &b), Outcome::Bind { node: "n1".into() });
    assert!(matches!(engine.decide(&key("a"), &a), Outcome::Wait(_)));
    let mut bound = b.clone();
    bound.spec.as_mut().unwrap().node_name = Some("n1".into());
    assert!(see(&engine, &bound).is_empty());
    engine.bind_failed(&key("b"));
    assert!(awake(&engine).is_empty(), "the API says it is bound");

    bound.status.get_or_insert_default().phase = Some("Succeeded".into());
    assert_eq!(see(&engine, &bound), [key("a")], "a finished pod makes room");
    assert!(matches!(engine.decide(&key("a"), &a), Outcome::Bind { .. }));
    engine.pod_removed(&key("a"));
    assert!(awake(&engine).is_empty());

    assert!(see(&engine, &pod("g", json!({"schedulingGates": [{"name": "x"}]}))).is_empty());
    let other = pod("o", json!({"schedulerName": "other"}));
    assert!(see(&engine, &other).is_empty());
    assert_eq!(engine.decide(&key("o"), &other), Outcome::Ignore);
    assert_eq!(see(&engine, &pod("g", json!({}))), [key("g")], "the gate is open");
}

#[test]
fn only_what_a_change_helps_is_tried_again() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", |_| {}));
    engine.node_changed(node("n2", |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}])));
    let large = asking("large", json!({"cpu": "5"}));
    let picky = pod("picky", json!({"nodeSelector": {"disk": "ssd"}}));
    for one in [&large, &picky] {
        see(&engine, one);
        assert!(matches!(engine.decide(&key(one.metadata.name.as_deref().unwrap()), one), Outcome::Wait(_)));
    }
    engine.node_changed(node("n3", |n| n["metadata"]["labels"] = json!({"disk": "ssd"})));
    assert_eq!(awake(&engine), [key("picky")]);
    engine.node_changed(node("n4", |n| n["status"]["allocatable"]["cpu"] = json!("8")));
    assert_eq!(awake(&engine), [key("large")]);
}

#[test]
fn the_important_go_first() {
    let engine = Engine::new("default-scheduler");
    for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
        engine.pod_changed(key(name), &Arc::new(pod(name, json!({"priority": priority}))));
    }
    assert_eq!(awake(&engine), [key("b"), key("d"), key("a"), key("c")]);
}

fn prioritised(name: &str, priority: i32, cpu: &str, node: Option<&str>) -> Pod {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let mut one = pod(name, json!({"priority": priority, "containers": containers, "nodeName": node}));
    one.metadata.labels = Some([("app".to_owned(), name[..1].to_owned())].into());
    one.metadata.uid = Some(name.to_owned());
    one
}

fn budget(app: &str, allowed: i32) -> PodDisruptionBudget {
    let budget = json!({"metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}}, "status": {"disruptionsAllowed": allowed,
        "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    serde_json::from_value(budget).unwrap()
}

#[test]
fn preemption_ends_as_little_as_it_can() {
    let engine = Engine::new("default-scheduler");
    for name in ["n1", "n2", "n3"] {
        engine.node_changed(node(name, |_| {}));
    }
    // A budget covers n1's pod; n2 would lose a more important pod than n3.
    for (name, priority, cpu, node) in [
        ("guarded-1", 1, "3", "n1"),
        ("high-2", 5, "3", "n2"),
        ("low-3a", 1, "1", "n3"),
        ("mid-3b", 2, "1500m", "n3"),
        ("low-3c", 1, "500m", "n3"),
    ] {
        assert!(see(&engine, &prioritised(name, priority, cpu, Some(node))).is_empty());
    }
    engine.budget_changed(key("g"), Some(&budget("g", 0)));
    let urgent = prioritised("urgent", 100, "2", None);
    see(&engine, &urgent);
    let Outcome::Preempt { preemption, why, .. } = engine.decide(&key("urgent"), &urgent) else {
        panic!("not preempted")
    };
    assert_eq!(why.plain(), "0/3 nodes are available: 3 Insufficient cpu.");
    assert_eq!(preemption.node, "n3");
    assert_eq!(preemption.victims, [key("low-3a")], "one is enough: 1 was free");
    // The room is kept: another pod does not get it, though it fits.
    engine.pod_removed(&key("low-3a"));
    assert_eq!(awake(&engine), [key("urgent")]);
    let rival = prioritised("rival", 0, "2", None);
    see(&engine, &rival);
    assert!(matches!(engine.decide(&key("rival"), &rival), Outcome::Wait(_)));
    assert_eq!(engine.decide(&key("urgent"), &urgent), Outcome::Bind { node: "n3".into() });

    let mut polite = prioritised("polite", 100, "4", None);
    polite.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    let Outcome::Wait(why) = engine.decide(&key("polite"), &polite) else { panic!("it preempts") };
    assert_eq!(why.preemption.as_deref(), Some("not eligible due to preemptionPolicy=Never."));
    let Outcome::Wait(why) = engine.decide(&key("meek"), &prioritised("meek", 0, "4", None)) else { panic!("placed") };
    let none = "0/3 nodes are available: 3 No preemption victims found for incoming pod.";
    assert_eq!(why.preemption.as_deref(), Some(none));
}

#[test]
fn preemption_breaks_budgets_only_without_another_way() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", |_| {}));
    engine.node_changed(node("n2", |_| {}));
    see(&engine, &prioritised("guarded", 0, "4", Some("n1")));
    see(&engine, &prioritised("plain", 50, "4", Some("n2")));
    engine.budget_changed(key("g"), Some(&budget("g", 0)));
    let urgent = prioritised("urgent", 100, "4", None);
    let Outcome::Preempt { preemption, .. } = engine.decide(&key("urgent"), &urgent) else { panic!("not preempted") };
    assert_eq!((preemption.node.as_str(), &preemption.victims[..]), ("n2", &[key("plain")][..]));
    let next = prioritised("next", 40, "4", None);
    let Outcome::Preempt { preemption, .. } = engine.decide(&key("next"), &next) else { panic!("not preempted") };
    assert_eq!(preemption.node, "n1", "a budget is broken where nothing else helps");
}

#[test]
fn a_group_is_placed_all_or_not_at_all() {
    let engine = Engine::new("default-scheduler");
    engine.node_changed(node("n1", |_| {}));
    let member = |name: &str, cpu: &str| {
        let mut member = asking(name, json!({"cpu": cpu}));
        member.metadata.labels = Some([("scheduling.x-k8s.io/pod-group".to_owned(), "train".to_owned())].into());
        Arc::new(member)
    };
    let arrive = |name: &str, cpu: &str| {
        engine.pod_changed(key(name), &member(name, cpu));
        let (key, pod) = engine.pop().unwrap();
        engine.decide_all(&key, &pod)
    };
    let waits = |outcome: &Outcome| match outcome {
        Outcome::Wait(why) => why.to_string(),
        other => panic!("{other:?}"),
    };
    let first = arrive("a", "2");
    assert!(waits(&first[0].2).contains("waiting for PodGroup \"train\" to exist"));
    engine.groups_changed("default", "PodGroup", &[("train".to_owned(), Some(GroupRule::Gang(3)))]);
    let (known, first) = engine.pop().unwrap();
    assert!(waits(&engine.decide_all(&known, &first)[0].2).contains("has 1 of the 3 pods it needs"));
    assert_eq!(arrive("b", "2").len(), 2);
    let all = arrive("c", "2");
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|(_, _, outcome)| waits(outcome).contains("2 of the 3 pods that pod group train needs")));
    // What they had for a moment is free.
    let single = asking("single", json!({"cpu": "4"}));
    assert_eq!(engine.decide(&key("single"), &single), Outcome::Bind { node: "n1".into() });
    engine.node_changed(node("n2", |n| n["status"]["allocatable"]["cpu"] = json!("6")));
    let (woken, pod) = engine.pop().unwrap();
    let all = engine.decide_all(&woken, &pod);
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|(_, _, outcome)| *outcome == Outcome::Bind { node: "n2".into() }), "{all:?}");
    assert!(engine.pop().is_none());
}
