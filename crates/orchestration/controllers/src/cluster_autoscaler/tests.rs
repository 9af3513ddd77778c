//! What rounds decide, from views made by hand.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::config::{ClusterAutoscalerConfig, ClusterAutoscalerSettings};
use super::machines::{Repair, Watched};
use super::provider::{Instance, InstanceState};
use super::view::{Group, TO_BE_DELETED, View, name};
use super::{down, up};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn settings(more: Value) -> ClusterAutoscalerSettings {
    let mut config = json!({"provider": {"address": "localhost:1"}});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    of::<ClusterAutoscalerConfig>(config).settings().unwrap().unwrap()
}

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn room(cpu: &str, memory: &str) -> Value {
    json!({"cpu": cpu, "memory": memory, "pods": "110"})
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

fn node(id: &str) -> Value {
    json!({"metadata": {"name": id, "labels": {"kubernetes.io/hostname": id}}, "spec": {"providerID": id},
        "status": {"conditions": ready(), "allocatable": room("4", "8Gi")}})
}

fn pod(id: &str, cpu: &str, node: Option<&str>) -> Value {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "s", "controller": true}]);
    let refused = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]);
    let spec = json!({"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}]});
    let status = if node.is_some() { json!({"phase": "Running"}) } else { json!({"conditions": refused}) };
    json!({"metadata": {"namespace": "d", "name": id, "uid": id, "labels": {"app": "a"}, "ownerReferences": owner},
        "spec": spec, "status": status})
}

/// A group with a machine for each of its nodes.
fn group(id: &str, min: i32, max: i32, cpu: &str, machines: &[&str], options: &ClusterAutoscalerSettings) -> Group {
    let template = json!({"metadata": {"name": "t", "labels": {"group": id}}, "spec": {},
        "status": {"conditions": ready(), "allocatable": room(cpu, "8Gi")}});
    let instance = |id: &&str| Instance { id: (*id).to_owned(), state: InstanceState::Running, error: None };
    Group {
        id: id.to_owned(),
        min,
        max,
        target: i32::try_from(machines.len()).unwrap(),
        instances: machines.iter().map(instance).collect(),
        template: Some(of(template)),
        options: options.options,
    }
}

fn view(nodes: Vec<Value>, pods: Vec<Value>, groups: Vec<Group>) -> View {
    let nodes: Vec<Arc<Node>> = nodes.into_iter().map(of).collect();
    let machines = |node: &Node| groups.iter().position(|group| group.instances.iter().any(|one| one.id == name(node)));
    let group_of = nodes.iter().filter_map(|node| Some((name(node).to_owned(), machines(node)?))).collect();
    View { now: start(), nodes, pods: pods.into_iter().map(of).collect(), groups, group_of, ..View::default() }
}

fn grow(view: &View, settings: &ClusterAutoscalerSettings) -> up::Up {
    up::plan(view, settings, &mut view.trial(), &HashMap::new())
}

fn sizes(up: &up::Up) -> Vec<(usize, i32, i32)> {
    up.increases.iter().map(|one| (one.group, one.from, one.to)).collect()
}

#[test]
fn pods_are_packed_on_as_many_nodes_as_they_need() {
    let settings = settings(json!({}));
    let pods: Vec<Value> = (0..7).map(|n| pod(&format!("p{n}"), "1500m", None)).collect();
    let up = grow(&view(vec![], pods, vec![group("g", 0, 10, "4", &[], &settings)]), &settings);
    // Two of each on four processors.
    assert_eq!(sizes(&up), [(0, 0, 4)]);
    assert_eq!((up.triggered.len(), up.helpless.len()), (7, 0));
}

#[test]
fn nodes_under_way_are_counted_and_present_ones_used() {
    let settings = settings(json!({}));
    let mut one = group("g", 0, 10, "4", &["n1"], &settings);
    one.target = 2;
    let pods = vec![pod("a", "3", Some("n1")), pod("b", "1", None), pod("c", "3", None), pod("d", "3", None)];
    let up = grow(&view(vec![node("n1")], pods, vec![one]), &settings);
    assert_eq!((up.awaiting, sizes(&up)), (2, vec![(0, 2, 3)]));
}

#[test]
fn the_least_waste_wins_and_a_full_group_leaves_the_rest_to_another() {
    let settings = settings(json!({}));
    let groups = || vec![group("large", 0, 9, "32", &[], &settings), group("small", 0, 2, "2", &[], &settings)];
    let up = grow(&view(vec![], vec![pod("a", "2", None)], groups()), &settings);
    assert_eq!(sizes(&up), [(1, 0, 1)]);
    let pods = (0..4).map(|n| pod(&format!("p{n}"), "2", None)).collect();
    let up = grow(&view(vec![], pods, groups()), &settings);
    assert_eq!(sizes(&up), [(0, 0, 1), (1, 0, 2)]);
}

#[test]
fn priorities_go_before_waste_where_asked_for() {
    let settings =
        settings(json!({"expander": ["priority", "least-waste"], "priorities": {"10": [".*"], "50": ["^spot-"]}}));
    let groups = vec![group("small", 0, 2, "2", &[], &settings), group("spot-large", 0, 9, "32", &[], &settings)];
    let up = grow(&view(vec![], vec![pod("a", "2", None)], groups), &settings);
    assert_eq!(sizes(&up), [(1, 0, 1)]);
}

#[test]
fn who_is_not_helped_hears_why() {
    let settings = settings(json!({}));
    let mut picky = pod("picky", "1", None);
    picky["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    picky["metadata"]["ownerReferences"] = json!([]);
    let groups = vec![group("g", 0, 1, "4", &["n1"], &settings), group("h", 0, 0, "64", &[], &settings)];
    let pods = vec![pod("busy", "4", Some("n1")), pod("huge", "9", None), picky];
    let up = grow(&view(vec![node("n1")], pods, groups), &settings);
    let why = |id: &str| {
        let found = up.helpless.iter().find(|(pod, _)| pod.metadata.name.as_deref() == Some(id));
        found.unwrap().1.clone()
    };
    assert_eq!(why("huge"), "1 Insufficient cpu, 1 max node group size reached");
    assert_eq!(why("picky"), "2 node(s) didn't match Pod's node affinity/selector");
    assert!(up.increases.is_empty());
}

#[test]
fn daemons_take_their_share_of_a_new_node() {
    let settings = settings(json!({}));
    let container = json!({"name": "c", "resources": {"requests": {"cpu": "1"}}});
    let daemon = json!({"metadata": {"namespace": "d", "name": "agent", "uid": "u"}, "spec": {"selector": {},
        "template": {"metadata": {}, "spec": {"containers": [container]}}}});
    let mut view =
        view(vec![], vec![pod("a", "2", None), pod("b", "2", None)], vec![group("g", 0, 9, "4", &[], &settings)]);
    assert_eq!(sizes(&grow(&view, &settings)), [(0, 0, 1)]);
    view.daemon_sets.push(of(daemon));
    assert_eq!(sizes(&grow(&view, &settings)), [(0, 0, 2)]);
}

#[test]
fn pods_that_may_not_share_a_node_get_one_each_within_the_total() {
    let anti = |id: &str| {
        let mut pod = pod(id, "100m", None);
        pod["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "a"}}, "topologyKey": "kubernetes.io/hostname"}]}});
        pod
    };
    let settings = settings(json!({"maxNodesTotal": 2}));
    let pods = ["a", "b", "c"].map(anti).to_vec();
    let up = grow(&view(vec![], pods, vec![group("g", 0, 9, "4", &[], &settings)]), &settings);
    assert_eq!(sizes(&up), [(0, 0, 2)]);
    assert_eq!(up.helpless[0].1, "1 max total nodes in cluster reached");
}

fn shrink(view: &View, settings: &ClusterAutoscalerSettings, known: &HashMap<String, Timestamp>) -> down::Down {
    down::plan(view, settings, &mut view.trial(), known, &HashSet::new(), true)
}

fn leaving(down: &down::Down) -> Vec<&str> {
    down.removals.iter().map(|one| name(&one.node)).collect()
}

#[test]
fn an_unneeded_node_goes_when_its_time_has_come() {
    let settings = settings(json!({}));
    let groups = vec![group("g", 1, 9, "4", &["n1", "n2"], &settings)];
    let pods = vec![pod("a", "3", Some("n1")), pod("b", "1", Some("n2"))];
    let mut view = view(vec![node("n1"), node("n2")], pods, groups);
    let first = shrink(&view, &settings, &HashMap::new());
    assert_eq!(first.unneeded.keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!((leaving(&first).len(), first.wait), (0, Some(Duration::from_secs(600))));
    assert!(first.kept["n1"].starts_with("utilization is 0.75"));
    view.now = start() + SignedDuration::from_mins(10);
    let second = shrink(&view, &settings, &first.unneeded);
    assert_eq!(leaving(&second), ["n2"]);
    assert_eq!(second.removals[0].pods.len(), 1);
    // A pod that fits nowhere else holds it.
    view.pods[1] = of(pod("b", "1500m", Some("n2")));
    let third = shrink(&view, &settings, &first.unneeded);
    assert!(third.unneeded.is_empty() && third.kept["n2"] == "no place to move pods: d/b", "{:?}", third.kept);
}

#[test]
fn two_nodes_do_not_go_for_the_same_free_place() {
    let settings = settings(json!({"scaleDownUnneededTime": "0s", "maxDrainParallelism": 9}));
    let groups = vec![group("g", 0, 9, "4", &["n1", "n2", "n3"], &settings)];
    let pods = vec![pod("a", "2500m", Some("n1")), pod("b", "1500m", Some("n2")), pod("c", "1500m", Some("n3"))];
    let view = view(vec![node("n1"), node("n2"), node("n3")], pods, groups);
    // The first one's pod goes to one of the others; then no two of them are left to be one.
    let down = shrink(&view, &settings, &HashMap::new());
    assert_eq!(leaving(&down), ["n2"], "{:?}", down.kept);
}

#[test]
fn some_pods_hold_their_node() {
    let settings = settings(json!({"scaleDownUnneededTime": "0s", "maxDrainParallelism": 9}));
    let try_one = |change: &dyn Fn(&mut Value)| {
        let mut held = pod("b", "100m", Some("n2"));
        change(&mut held);
        let groups = vec![group("g", 1, 9, "4", &["n1", "n2"], &settings)];
        let mut view = view(vec![node("n1"), node("n2")], vec![pod("a", "3", Some("n1")), held], groups);
        let budget = json!({"metadata": {"namespace": "d", "name": "b"}, "spec": {"selector": {"matchLabels": {"app": "b"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}});
        view.budgets.push(of(budget));
        let down = shrink(&view, &settings, &HashMap::new());
        down.kept.get("n2").cloned().unwrap_or_default()
    };
    let annotation = "cluster-autoscaler.kubernetes.io/safe-to-evict";
    let local = json!([{"name": "v", "emptyDir": {}}]);
    assert_eq!(try_one(&|_| {}), "");
    assert_eq!(
        try_one(&|pod| pod["metadata"]["annotations"] = json!({annotation: "false"})),
        "pod annotated as not safe to evict present: d/b"
    );
    assert_eq!(try_one(&|pod| pod["metadata"]["ownerReferences"] = json!([])), "not replicated pod present: d/b");
    assert_eq!(try_one(&|pod| pod["spec"]["volumes"] = local.clone()), "pod with local storage present: d/b");
    assert_eq!(
        try_one(&|pod| pod["metadata"]["labels"] = json!({"app": "b"})),
        "not enough pod disruption budget to move pod: d/b"
    );
    assert_eq!(
        try_one(&|pod| pod["metadata"]["namespace"] = json!("kube-system")),
        "kube-system pod without a disruption budget present: kube-system/b"
    );
    // What is declared safe is, and what has another way out too.
    assert_eq!(
        try_one(&|pod| {
            pod["metadata"]["annotations"] = json!({annotation: "true"});
            pod["spec"]["volumes"] = local.clone();
        }),
        ""
    );
    let volumes = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
    assert_eq!(
        try_one(&|pod| {
            pod["metadata"]["annotations"] = json!({volumes: "x,v"});
            pod["spec"]["volumes"] = local.clone();
        }),
        ""
    );
}

#[test]
fn groups_keep_their_least_and_nodes_their_wish() {
    let settings = settings(json!({"scaleDownUnneededTime": "0s"}));
    let mut wish = node("n3");
    wish["metadata"]["annotations"] = json!({"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"});
    let groups = vec![group("g", 2, 9, "4", &["n1", "n2", "n3"], &settings)];
    let view = view(vec![node("n1"), node("n2"), wish], vec![], groups);
    let down = shrink(&view, &settings, &HashMap::new());
    assert_eq!(leaving(&down), ["n1"]);
    assert_eq!(down.kept["n2"], "node group min size reached");
    assert_eq!(down.kept["n3"], "scale down disabled annotation present");
    let cooling = down::plan(&view, &settings, &mut view.trial(), &HashMap::new(), &HashSet::new(), false);
    assert!(cooling.removals.is_empty() && cooling.unneeded.len() == 1);
}

#[test]
fn machines_that_become_no_nodes_are_given_up() {
    let settings = settings(json!({}));
    let mut one = group("g", 0, 9, "4", &["n1", "late", "broken"], &settings);
    one.target = 4;
    one.instances[2].error = Some(("QUOTA".into(), "no more".into()));
    let mut view = view(vec![node("n1")], vec![], vec![one]);
    let mut watched = Watched::default();
    let remove = |instance: &str, why: &str| Repair::Remove { group: 0, instance: instance.into(), why: why.into() };
    assert_eq!(watched.look(&view), [remove("broken", "QUOTA: no more")]);
    assert_eq!(watched.backoff("g", view.now), Some(Duration::from_secs(300)));
    view.groups[0].instances.pop();
    view.groups[0].target = 3;
    view.now = start() + SignedDuration::from_mins(16);
    assert_eq!(watched.backoff("g", view.now), None);
    let repairs = watched.look(&view);
    assert_eq!(repairs, [remove("late", "no node after 900 seconds"), Repair::Decrease { group: 0, by: 1 }]);
    // Two failures in one round, and one before: the longest pause.
    assert_eq!(watched.backoff("g", view.now), Some(Duration::from_secs(1200)));
}

#[test]
fn the_node_of_a_machine_that_was_removed_goes_too() {
    let settings = settings(json!({}));
    let mut gone = node("n2");
    gone["spec"]["taints"] = json!([{"key": TO_BE_DELETED, "effect": "NoSchedule"}]);
    let view = view(vec![node("n1"), gone], vec![], vec![group("g", 0, 9, "4", &["n1"], &settings)]);
    assert_eq!(Watched::default().look(&view), [Repair::Forget { node: "n2".into() }]);
}

#[test]
fn a_template_is_a_node_of_the_group_as_if_new() {
    let settings = settings(json!({}));
    let mut worn = node("n1");
    worn["metadata"]["labels"]["zone"] = json!("a");
    worn["spec"]["taints"] = json!([{"key": "dedicated", "effect": "NoSchedule"},
        {"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"}]);
    let view = view(vec![worn], vec![], vec![group("g", 0, 9, "4", &["n1"], &settings)]);
    let template = view.template(0).unwrap();
    let fresh = view.instantiate(0, &template, 3);
    assert_eq!(name(&fresh), "template-node-for-g-3");
    assert_eq!(fresh.metadata.labels.as_ref().unwrap()["zone"], "a");
    assert_eq!(fresh.metadata.labels.as_ref().unwrap()["kubernetes.io/hostname"], "template-node-for-g-3");
    let taints: Vec<&str> =
        fresh.spec.as_ref().unwrap().taints.as_ref().unwrap().iter().map(|taint| taint.key.as_str()).collect();
    assert_eq!(taints, ["dedicated"]);
}

#[test]
fn expendable_pods_and_daemons_make_no_nodes() {
    let settings = settings(json!({}));
    let mut cheap = pod("cheap", "1", None);
    cheap["spec"]["priority"] = json!(-100);
    let mut daemon = pod("daemon", "1", None);
    daemon["metadata"]["ownerReferences"][0]["kind"] = json!("DaemonSet");
    let mut young = pod("new", "1", None);
    young["status"] = json!({});
    let view = view(vec![], vec![cheap, daemon, young], vec![group("g", 0, 9, "4", &[], &settings)]);
    let up = grow(&view, &settings);
    assert!(up.increases.is_empty() && up.helpless.is_empty());
}

/// A node with one device, as its driver tells.
fn slice(node: &str) -> Value {
    json!({"metadata": {"name": node}, "spec": {"driver": "x.io", "nodeName": node, "devices": [{"name": "d"}],
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}})
}

/// A pod with a claim of its own, which has the device of `node` if that is given.
fn with_device(view: &mut View, id: &str, node: Option<&str>) {
    let mut pod = pod(id, "100m", node);
    pod["spec"]["resourceClaims"] = json!([{"name": "own", "resourceClaimTemplateName": "t"}]);
    pod["status"]["resourceClaimStatuses"] = json!([{"name": "own", "resourceClaimName": id}]);
    let here = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]);
    let result = json!({"request": "r", "driver": "x.io", "pool": node, "device": "d"});
    let status = json!({"reservedFor": [{"resource": "pods", "name": id, "uid": id}],
        "allocation": {"devices": {"results": [result]}, "nodeSelector": {"nodeSelectorTerms": here}}});
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": id, "uid": id, "controller": true}]);
    let exactly = json!({"deviceClassName": "any", "allocationMode": "ExactCount", "count": 1});
    let claim = json!({"metadata": {"namespace": "d", "name": id, "uid": id, "ownerReferences": owner},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}},
        "status": if node.is_some() { status } else { Value::Null }});
    view.pods.push(Arc::new(of(pod)));
    view.device_claims.push(Arc::new(of(claim)));
}

#[test]
fn nodes_come_for_the_devices_that_pods_wait_for() {
    let settings = settings(json!({}));
    let groups = vec![group("g", 0, 10, "4", &["n1"], &settings), group("plain", 0, 10, "4", &[], &settings)];
    let mut view = view(vec![node("n1")], vec![], groups);
    view.device_classes.push(Arc::new(of(json!({"metadata": {"name": "any"}, "spec": {}}))));
    view.slices.push(Arc::new(of(slice("n1"))));
    with_device(&mut view, "a", Some("n1"));
    for id in ["b", "c", "e"] {
        with_device(&mut view, id, None);
    }
    let up = grow(&view, &settings);
    assert_eq!((sizes(&up), up.helpless.len()), (vec![(0, 1, 4)], 0), "{up:?}");
    // Where nodes have none, more of them help nobody.
    view.slices.clear();
    let up = grow(&view, &settings);
    assert_eq!((sizes(&up), up.helpless.len()), (vec![], 3), "{up:?}");
    assert!(up.helpless[0].1.contains("cannot allocate all claims"), "{up:?}");
}

#[test]
fn a_pod_moves_with_its_claim_to_another_device() {
    let settings = settings(json!({}));
    let groups = vec![group("g", 0, 10, "4", &["n1", "n2"], &settings)];
    // The other node is too busy to go.
    let mut view = view(vec![node("n1"), node("n2")], vec![pod("x", "3", Some("n2"))], groups);
    view.device_classes.push(Arc::new(of(json!({"metadata": {"name": "any"}, "spec": {}}))));
    view.slices.push(Arc::new(of(slice("n1"))));
    with_device(&mut view, "a", Some("n1"));
    let (none, going) = (HashMap::new(), HashSet::new());
    let stays = down::plan(&view, &settings, &mut view.trial(), &none, &going, true);
    assert!(stays.kept["n1"].contains("no place to move pods: d/a"), "{:?}", stays.kept);
    view.slices.push(Arc::new(of(slice("n2"))));
    let moves = down::plan(&view, &settings, &mut view.trial(), &none, &going, true);
    assert!(moves.unneeded.contains_key("n1"), "{:?}", moves.kept);
}
